"""What goes on inside the nodes, told to the invariants that clients could not see broken: promises, commits,
leadership, configurations. It reads the nodes' own variables and disks, and changes nothing."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from chaos.invariants.commit_quorum import CommitQuorum
from chaos.invariants.configuration_in_use import ConfigurationInUse
from chaos.invariants.configuration_safety import Voters
from chaos.invariants.durable_promises import DurablePromises
from chaos.invariants.leader_stickiness import LeaderStickiness
from chaos.invariants.leadership import Leadership
from raftstate.core.election import TRANSFER_CONTEXT
from raftstate.core.errors import Compacted, Damaged, Unavailable
from raftstate.core.roles import Role
from raftstate.core.storage import MemoryStorage
from raftstate.core.types import NONE, ConfState, Entry, EntryType, Message, MessageType
from raftstate.node.environment import PeerBody

if TYPE_CHECKING:
    from chaos.sim.observed import ObservedCluster, ObservedNode

LOOK_S = 0.1
"""From one look at who leads to the next."""


class Inside:
    """See the module."""

    def __init__(self, cluster: ObservedCluster) -> None:
        self._cluster = cluster
        self._promises = DurablePromises()
        self._commits = CommitQuorum()
        self._leadership = Leadership()
        self._configurations = ConfigurationInUse()
        self._stickiness = LeaderStickiness()
        self._heard: dict[int, dict[int, int]] = {}
        """Node -> node -> when something of the core's arrived from it last."""
        self._since: dict[int, int] = {}
        """Node -> when it began to lead, or its process went on."""
        self._former: dict[int, list[MemoryStorage]] = {}
        """Logs that a node had when it was wiped: what it acknowledged then was counted then."""

    def start(self) -> None:
        """Begin to listen, and to look at who leads; before the cluster runs."""
        self._cluster.on_send = self._sending
        self._cluster.time.call_later(LOOK_S, self._look)

    # -- what the nodes tell

    def began(self, node: ObservedNode) -> None:
        """A node leads from now on, or its process goes on after a pause."""
        self._since[node.id] = self._cluster.time.now_ns

    def wiped(self, node: ObservedNode) -> None:
        """A node's data are gone."""
        self._former.setdefault(node.id, []).append(node.storage)

    def arriving(self, sender: int, node: ObservedNode, body: PeerBody) -> None:
        """Something has come to a node that runs; the node has not looked at it yet."""
        if type(body) is not Message:
            return
        self._heard.setdefault(node.id, {})[sender] = self._cluster.time.now_ns
        if body.type in (MessageType.VOTE, MessageType.PRE_VOTE):
            raft = node.driver.raw.raft
            hears = (
                raft.lead != NONE
                and raft.election_elapsed < raft.election_ticks
                and body.context != TRANSFER_CONTEXT
                and body.term > raft.term
            )
            self._stickiness.asked(node.id, sender, body.term, raft.lead if hears else NONE)

    def stepped(self, node: ObservedNode) -> None:
        """A node's core has taken a message, or has gone over to another configuration."""
        raft = node.driver.raw.raft
        log = raft.raft_log
        before, node.commit_seen = node.commit_seen, log.committed
        if log.committed <= before:
            return
        if raft.state is not Role.LEADER:
            self._commits.followed(node.id, log.committed, _term(node, log.committed))
            return
        first = max(before + 1, log.first_index())
        entries = [(index, _term(node, index) or 0) for index in range(first, log.committed + 1)]
        state = raft.tracker.conf_state()
        self._commits.led(node.id, raft.term, entries, (state.voters, state.voters_outgoing), self._holds)

    def appending(self, node: ObservedNode, entries: list[Entry]) -> None:
        """Entries are about to take the place of what a node's log holds from the first of them on."""
        first, last = entries[0].index, node.storage.last_index()
        if first <= last:
            terms = {entry.index: entry.term for entry in entries}
            for index in range(max(first, node.storage.first_index()), last + 1):
                term = MemoryStorage.term(node.storage, index)
                if terms.get(index) != term:
                    self._commits.removed(node.id, index, term)

    def appended(self, node: ObservedNode, entries: list[Entry]) -> None:
        """They have."""
        raft = node.driver.raw.raft
        if raft.state is not Role.LEADER:
            return
        for entry in entries:
            if entry.type is not EntryType.NORMAL and entry.term == raft.term:
                log = raft.raft_log
                unapplied = self._changes(node, log.applied + 1, min(log.last_index(), entry.index))
                self._configurations.appended(node.id, entry.index, unapplied)

    def applied(self, node: ObservedNode, index: int) -> None:
        """A node has applied all entries up to an index."""
        self._promises.applied(node.id, index, node.storage.last_index())

    def resetting(self, node: ObservedNode, index: int, term: int) -> None:
        """A node's log is about to begin anew behind an installed snapshot."""
        storage = node.storage
        last = storage.last_index()
        if storage.first_index() - 1 <= index <= last and MemoryStorage.term(storage, index) == term:
            for beyond in range(index + 1, last + 1):
                self._commits.removed(node.id, beyond, MemoryStorage.term(storage, beyond))

    # -- what they send

    def _sending(self, node: ObservedNode, to: int, body: PeerBody) -> None:
        if type(body) is not Message:
            return
        kind = body.type
        if kind is MessageType.APP_RESP:
            if not body.reject:
                self._acknowledges(node, to, body)
        elif kind is MessageType.VOTE_RESP or kind is MessageType.PRE_VOTE_RESP:
            if not body.reject:
                self._stickiness.granted(node.id, to, body.term)
                if kind is MessageType.VOTE_RESP:
                    hard_state, _ = node.storage.initial_state()
                    self._promises.voted(node.id, to, body.term, hard_state.term, hard_state.vote)
        elif kind is MessageType.VOTE or kind is MessageType.PRE_VOTE:
            log = node.driver.raw.raft.raft_log
            self._configurations.campaigns(node.id, self._changes(node, log.applied + 1, log.committed))

    def _acknowledges(self, node: ObservedNode, to: int, message: Message) -> None:
        storage = node.storage
        held_term = sent_term = None
        if storage.first_index() <= message.index <= storage.last_index():
            held_term = MemoryStorage.term(storage, message.index)
        leader = self._cluster.nodes[to]
        raft = leader.driver.raw.raft
        if leader.running and raft.state is Role.LEADER and raft.term == message.term:
            try:
                sent_term = raft.raft_log.term(message.index)
            except Unavailable:
                sent_term = 0  # it can't have sent it
            except (Compacted, Damaged):
                sent_term = None
        hard_state, _ = storage.initial_state()
        self._promises.acknowledged(
            node.id,
            message.index,
            message.term,
            durable_term=hard_state.term,
            durable_index=storage.last_index(),
            held_term=held_term,
            sent_term=sent_term,
        )

    # -- what can be seen at any time

    def _look(self) -> None:
        now_ns = self._cluster.time.now_ns
        for node in self._cluster.nodes.values():
            if not node.running or node.paused:
                continue
            raft = node.driver.raw.raft
            used = _voters(raft.tracker.conf_state())
            if (
                not node.driver.applied.is_blank
                and not node.driver.is_installing
                and raft.raft_log.applying == node.driver.applied_index
            ):
                self._configurations.goes_by(node.id, used, _voters(node.driver.applied.conf_state))
            leads = raft.state is Role.LEADER
            self._leadership.hands_over(node.id, now_ns, raft.term, raft.lead_transferee if leads else NONE)
            if leads:
                since_ns, heard_ns = self._since.get(node.id, now_ns), self._heard.get(node.id, {})
                self._leadership.leads(node.id, now_ns, since_ns, heard_ns, used)
                if len(used[0]) > 1:  # a sole voter has nobody who could lead better
                    self._leadership.writes(node.id, node.driver.log_write_pending_ns())
        self._cluster.time.call_later(LOOK_S, self._look)

    def _changes(self, node: ObservedNode, first: int, last: int) -> Collection[int]:
        """The indexes of the changes of the membership in a part of a node's log, as far as it is read."""
        log = node.driver.raw.raft.raft_log
        found = []
        for index in range(max(first, log.first_index()), last + 1):
            try:
                [entry] = log.slice(index, index + 1, 0)
            except Damaged:
                continue
            if entry.type is not EntryType.NORMAL:
                found.append(index)
        return found

    def _holds(self, id: int, index: int, term: int) -> bool:
        node = self._cluster.nodes.get(id)
        storages = [*self._former.get(id, ()), *([] if node is None else [node.storage])]
        return any(
            index < storage.first_index()
            or (index <= storage.last_index() and MemoryStorage.term(storage, index) == term)
            for storage in storages
        )


def _term(node: ObservedNode, index: int) -> int | None:
    """The term of an entry of a node's log, whether it is rotten or not; None: a snapshot stands for it."""
    try:
        return node.driver.raw.raft.raft_log.term(index)
    except Damaged:
        return MemoryStorage.term(node.storage, index)
    except (Compacted, Unavailable):
        return None


def _voters(state: ConfState) -> Voters:
    return tuple(sorted(state.voters)), tuple(sorted(state.voters_outgoing))
