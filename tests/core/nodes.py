"""Single nodes in a chosen state, and what they do when they are let work."""

from __future__ import annotations

from random import Random

from raftstate.core.conf_change import decode_conf_change
from raftstate.core.config import Config
from raftstate.core.rawnode import RawNode
from raftstate.core.roles import Role
from raftstate.core.storage import MemoryStorage
from raftstate.core.types import (
    ConfState,
    Entry,
    EntryType,
    HardState,
    Message,
    MessageType,
    Snapshot,
    SnapshotMetadata,
)

ELECTION_TICKS = 10


def entry(index: int, term: int, data: bytes = b"") -> Entry:
    return Entry(index=index, term=term, data=data)


def stored(
    terms: tuple[int, ...] = (),
    *,
    voters: tuple[int, ...] = (1, 2, 3),
    learners: tuple[int, ...] = (),
    hard_state: HardState | None = None,
) -> MemoryStorage:
    """A storage with entries 1, 2, ... of these terms. Without `hard_state` the term is the last entry's."""
    storage = MemoryStorage()
    storage.apply_snapshot(Snapshot(metadata=SnapshotMetadata(ConfState(voters=voters, learners=learners))))
    storage.append([entry(index, term) for index, term in enumerate(terms, 1)])
    storage.set_hard_state(hard_state or HardState(term=terms[-1] if terms else 0))
    return storage


def build(storage: MemoryStorage | None = None, node_id: int = 1, **settings: object) -> RawNode:
    """A node over `storage` (none: an empty one of voters 1, 2 and 3), with timeouts of 10 to 19 ticks."""
    config = Config(
        id=node_id,
        storage=stored() if storage is None else storage,
        random=Random(node_id),
        election_ticks=ELECTION_TICKS,
    )
    for name, value in settings.items():
        setattr(config, name, value)
    return RawNode(config)


def work(node: RawNode) -> list[Message]:
    """Let a node of the synchronous mode write and apply until it has nothing to do; return what it sent."""
    storage = node.raft.raft_log.storage
    assert isinstance(storage, MemoryStorage)
    sent: list[Message] = []
    while node.has_ready():
        ready = node.ready()
        if ready.hard_state is not None:
            storage.set_hard_state(ready.hard_state)
        if ready.snapshot is not None:
            storage.apply_snapshot(ready.snapshot)
        storage.append(ready.entries)
        sent += ready.messages
        for committed in ready.committed_entries:
            if committed.type is not EntryType.NORMAL:
                node.apply_conf_change(decode_conf_change(committed))
        node.advance()
    return sent


def elected(storage: MemoryStorage | None = None, **settings: object) -> RawNode:
    """Node 1, just elected: its first entry is stored, its first appends are sent, none is answered."""
    node = build(storage, **settings)
    node.campaign()
    work(node)
    if node.raft.state is Role.PRE_CANDIDATE:
        grant_votes(node, MessageType.PRE_VOTE_RESP, node.raft.term + 1)
    if node.raft.state is Role.CANDIDATE:
        grant_votes(node, MessageType.VOTE_RESP, node.raft.term)
    assert node.raft.state is Role.LEADER
    return node


def grant_votes(node: RawNode, kind: MessageType, term: int) -> None:
    for voter in node.raft.tracker.voter_nodes():
        if node.raft.state in (Role.CANDIDATE, Role.PRE_CANDIDATE) and voter != node.raft.id:
            node.step(Message(kind, to=node.raft.id, from_=voter, term=term))
    work(node)


def leading(storage: MemoryStorage | None = None, **settings: object) -> RawNode:
    """Node 1 as leader, its first entry acknowledged by all and applied."""
    node = elected(storage, **settings)
    for peer in node.raft.peers:
        acknowledge(node, peer, node.raft.raft_log.last_index())
        work(node)
    return node


def acknowledge(node: RawNode, peer: int, index: int) -> None:
    """Let `peer` tell the leader that its log matches up to `index`."""
    node.step(Message(MessageType.APP_RESP, to=node.raft.id, from_=peer, term=node.raft.term, index=index))
