"""A cluster in memory: nodes over `MemoryStorage`, a network that loses, repeats and reorders, and crashes.

One seeded generator decides everything, so that a seed is a run. After every step of a node the cluster
compares what all nodes ever did:

    election safety        at most one leader a term
    log matching           one index and term, one entry, after one predecessor
    leader completeness    whoever is elected holds every entry that was committed before
    state machine safety   no two nodes apply different entries at one index
    linearizable reads     a read index covers what was applied anywhere when it was asked for

The first four are those of the Raft paper, figure 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import msgspec

from raftstate.core.conf_change import decode_conf_change
from raftstate.core.config import Config
from raftstate.core.errors import ProposalDropped, StepPeerNotFound
from raftstate.core.membership import ConfChangeError
from raftstate.core.rawnode import RawNode
from raftstate.core.ready import Ready
from raftstate.core.roles import Role
from raftstate.core.storage import NO_LIMIT, MemoryStorage
from raftstate.core.types import (
    LOCAL_APPEND_THREAD,
    LOCAL_APPLY_THREAD,
    ConfChange,
    ConfChangeV2,
    ConfState,
    Entry,
    EntryType,
    HardState,
    Message,
    MessageType,
    Snapshot,
    SnapshotMetadata,
)

APPLIED = msgspec.msgpack.Decoder(list[Entry])


@dataclass
class Member:
    """One node, what it keeps over a crash (`storage`), and what it loses."""

    id: int
    storage: MemoryStorage
    options: dict[str, object]
    synced: HardState = field(default_factory=HardState)
    """The hard state that a crash leaves: a write that needed no sync may be lost."""
    raw: RawNode | None = None
    applied: list[Entry] = field(default_factory=list)
    conf_state: ConfState = field(default_factory=ConfState)
    append_work: list[Message] = field(default_factory=list)
    apply_work: list[Message] = field(default_factory=list)

    @property
    def node(self) -> RawNode:
        assert self.raw is not None, f"node {self.id} is down"
        return self.raw


class Cluster:
    """Nodes `voters`, and `spares` that know nothing until they are added.

    Args:
        seed: decides everything that is left to chance.
        voters: the first configuration.
        spares: nodes outside of it, with empty storages.
        options: settings of every node, by their name in `Config`.
    """

    def __init__(
        self, seed: int, voters: tuple[int, ...] = (1, 2, 3), spares: tuple[int, ...] = (), **options: object
    ) -> None:
        self.random = Random(seed)
        self.network: list[Message] = []
        self.cut: set[frozenset[int]] = set()
        """Pairs of nodes between which everything is lost."""
        self.members: dict[int, Member] = {}
        self.leaders: dict[int, int] = {}
        self.entries: dict[tuple[int, int], tuple[Entry, int]] = {}
        """By index and term: the entry, and the term of its predecessor."""
        self.committed: dict[int, Entry] = {}
        self.reads: dict[bytes, int] = {}
        self.reads_answered = 0
        self.delivered: list[Message] = []
        self.snapshots_installed = 0
        settings: dict[str, object] = {"async_storage_writes": True, "pre_vote": True, "check_quorum": True}
        for node_id in (*voters, *spares):
            storage = MemoryStorage()
            if node_id in voters:
                storage.apply_snapshot(
                    Snapshot(APPLIED_NOTHING, SnapshotMetadata(ConfState(voters=voters), 1, 1))
                )
            self.members[node_id] = Member(node_id, storage, settings | options)
            self.start(node_id)

    # -- nodes

    def start(self, node_id: int) -> None:
        """Start a node from its storage; its state machine starts from the storage's snapshot."""
        member = self.members[node_id]
        snapshot = member.storage.snapshot()
        member.applied = APPLIED.decode(snapshot.data) if snapshot.data else []
        member.conf_state = snapshot.metadata.conf_state
        config = Config(
            id=node_id, storage=member.storage, random=Random(self.random.random()), election_ticks=5
        )
        for name, value in member.options.items():
            setattr(config, name, value)
        member.raw = RawNode(config)

    def crash(self, node_id: int) -> None:
        """Stop a node; what it had not synced is lost, and what it had sent stays under way."""
        member = self.members[node_id]
        member.raw = None
        member.append_work.clear()
        member.apply_work.clear()
        member.storage.set_hard_state(member.synced)

    def up(self) -> list[int]:
        return [node_id for node_id, member in self.members.items() if member.raw is not None]

    def leader(self) -> int | None:
        """The node that leads the highest term, if one does."""
        leading = [self.members[n].node for n in self.up() if self.members[n].node.raft.state is Role.LEADER]
        return max(leading, key=lambda node: node.raft.term).raft.id if leading else None

    def tick(self, node_id: int) -> None:
        self.members[node_id].node.tick()
        self._check_leader(node_id)

    def propose(self, node_id: int, data: bytes) -> bool:
        """Propose `data`; return whether it was taken."""
        try:
            self.members[node_id].node.propose(data)
        except ProposalDropped:
            return False
        return True

    def propose_conf_change(self, node_id: int, change: ConfChange | ConfChangeV2) -> bool:
        """Propose a change; return whether it was taken."""
        try:
            self.members[node_id].node.propose_conf_change(change)
        except ProposalDropped:
            return False
        return True

    def read(self, node_id: int) -> None:
        """Ask for a read index that must cover everything applied anywhere by now."""
        context = b"read-%d" % len(self.reads)
        self.reads[context] = max(self.committed, default=0)
        self.members[node_id].node.read_index(context)

    def compact(self, node_id: int) -> None:
        """Make a snapshot of what is applied, and drop the log up to it."""
        member = self.members[node_id]
        index = member.applied[-1].index if member.applied else 0
        storage = member.storage
        if index <= storage.snapshot().metadata.index or index < storage.first_index():
            return
        storage.create_snapshot(index, member.conf_state, msgspec.msgpack.encode(member.applied))
        storage.compact(index)
        # One log, one order of writes: whatever was written before is durable when this is.
        member.synced = storage.initial_state()[0]

    # -- work

    def handle_ready(self, node_id: int) -> None:
        """Take a node's `Ready`, if there is one. Asynchronous storage work is queued, not done."""
        member = self.members[node_id]
        if not member.node.has_ready():
            return
        ready = member.node.ready()
        for state in ready.read_states:
            assert state.index >= self.reads[state.context], (
                f"stale read: {state.index} < {self.reads[state.context]}"
            )
            self.reads_answered += 1
        self._record_entries(member, ready)
        if member.options["async_storage_writes"]:
            for message in ready.messages:
                if message.to == LOCAL_APPEND_THREAD:
                    member.append_work.append(message)
                elif message.to == LOCAL_APPLY_THREAD:
                    member.apply_work.append(message)
                else:
                    self.network.append(message)
            return
        self._write(member, ready.hard_state, ready.entries, ready.snapshot, synced=ready.must_sync)
        self.network.extend(ready.messages)
        self._apply(member, ready.committed_entries)
        member.node.advance()
        self._check_leader(node_id)

    def do_append_work(self, node_id: int) -> None:
        """Write what the oldest append message says, and pass on its responses."""
        member = self.members[node_id]
        if not member.append_work:
            return
        message = member.append_work.pop(0)
        hard_state = HardState(message.term, message.vote, message.commit) if message.term else None
        self._write(member, hard_state, message.entries, message.snapshot, synced=bool(message.responses))
        self._pass_on(message.responses)

    def do_apply_work(self, node_id: int) -> None:
        """Apply what the oldest apply message says, and pass on its responses."""
        member = self.members[node_id]
        if member.apply_work:
            message = member.apply_work.pop(0)
            self._apply(member, message.entries)
            self._pass_on(message.responses)

    def _pass_on(self, responses: list[Message]) -> None:
        # A node tells itself at once; to others it goes like everything else.
        for response in responses:
            if self._is_own(response):
                self._step(response)
            else:
                self.network.append(response)

    @staticmethod
    def _is_own(message: Message) -> bool:
        return message.from_ in (message.to, LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD)

    def _write(
        self,
        member: Member,
        hard_state: HardState | None,
        entries: list[Entry],
        snapshot: Snapshot | None,
        *,
        synced: bool,
    ) -> None:
        storage = member.storage
        if hard_state is not None:
            storage.set_hard_state(hard_state)
        if snapshot is not None:
            storage.apply_snapshot(snapshot)
            member.applied = APPLIED.decode(snapshot.data)
            member.conf_state = snapshot.metadata.conf_state
            self.snapshots_installed += 1
        storage.append(entries)
        if synced or entries or snapshot is not None:
            member.synced = storage.initial_state()[0]

    def _apply(self, member: Member, entries: list[Entry]) -> None:
        for entry in entries:
            last = member.applied[-1].index if member.applied else 1
            if entry.index <= last:
                continue  # handed out before a snapshot that was installed meanwhile
            assert entry.index == last + 1, f"node {member.id} applies {entry.index} after {last}"
            known = self.committed.setdefault(entry.index, entry)
            assert known == entry, f"state machine safety: {known} and {entry} were both applied"
            member.applied.append(entry)
            if entry.type is not EntryType.NORMAL:
                try:
                    member.conf_state = member.node.apply_conf_change(decode_conf_change(entry))
                except ConfChangeError:
                    continue
        self._check_leader(member.id)

    # -- network

    def deliver(self, position: int, *, keep: bool = False) -> None:
        """Deliver a message; `keep`: as one of two copies."""
        message = self.network[position] if keep else self.network.pop(position)
        connected = frozenset((message.from_, message.to)) not in self.cut
        if connected and self.members[message.to].raw is not None:
            self._step(message)
            self._report_snapshot(message, ok=True)
        else:
            self._report_snapshot(message, ok=False)

    def lose(self, position: int) -> None:
        """Lose a message."""
        self._report_snapshot(self.network.pop(position), ok=False)

    def _report_snapshot(self, message: Message, *, ok: bool) -> None:
        # Whoever carries a snapshot has to say what became of it; an acknowledgement may be lost.
        if message.type is MessageType.SNAP and self.members[message.from_].raw is not None:
            self.members[message.from_].node.report_snapshot(message.to, ok)

    def _step(self, message: Message) -> None:
        # What travels is encoded: nothing is shared between two nodes.
        message = msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=Message)
        self.delivered.append(message)
        node = self.members[message.to].node
        try:
            node.step(message)
        except (ProposalDropped, StepPeerNotFound):
            return
        self._check_leader(message.to)

    def partition(self, *groups: tuple[int, ...]) -> None:
        """Cut all pairs of nodes that are in different groups; no groups: heal."""
        side = {node_id: number for number, group in enumerate(groups) for node_id in group}
        self.cut = {
            frozenset((a, b)) for a in self.members for b in self.members if groups and side[a] != side[b]
        }

    def settle(self, rounds: int = 200) -> None:
        """Let everything that is under way arrive and be done, without ticking."""
        for _ in range(rounds):
            for node_id in self.up():
                self.handle_ready(node_id)
                while self.members[node_id].append_work:
                    self.do_append_work(node_id)
                while self.members[node_id].apply_work:
                    self.do_apply_work(node_id)
            idle = not any(self.members[node_id].node.has_ready() for node_id in self.up())
            if not self.network and idle:
                return
            while self.network:
                self.deliver(0)
        raise AssertionError(f"the cluster did not settle within {rounds} rounds: {self.network[:3]}")

    def has_applied(self, node_id: int, data: bytes) -> bool:
        return any(entry.data == data for entry in self.members[node_id].applied)

    # -- what must hold

    def _record_entries(self, member: Member, ready: Ready) -> None:
        previous_term = None
        for entry in ready.entries:
            if previous_term is None:
                previous_term = member.node.raft.raft_log.term(entry.index - 1)
            known = self.entries.setdefault((entry.index, entry.term), (entry, previous_term))
            assert known == (entry, previous_term), f"log matching: {known} and {(entry, previous_term)}"
            previous_term = entry.term

    def _check_leader(self, node_id: int) -> None:
        raft = self.members[node_id].node.raft
        if raft.state is not Role.LEADER or self.leaders.get(raft.term) == node_id:
            return
        known = self.leaders.setdefault(raft.term, node_id)
        assert known == node_id, f"election safety: {known} and {node_id} both lead term {raft.term}"
        log = raft.raft_log
        for index, entry in self.committed.items():
            assert index < log.first_index() or log.match_term(index, entry.term), (
                f"leader completeness: leader {node_id} of term {raft.term} lacks {entry}"
            )

    def logs(self) -> dict[int, list[Entry]]:
        """Each running node's whole log."""
        found = {}
        for node_id in self.up():
            log = self.members[node_id].node.raft.raft_log
            found[node_id] = log.slice(log.first_index(), log.last_index() + 1, NO_LIMIT)
        return found


APPLIED_NOTHING = msgspec.msgpack.encode([])
