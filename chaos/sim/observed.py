"""Nodes that tell a simulation what they do. The product's code is not touched: its own hooks are used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from chaos.sim.inside import Inside
from chaos.sim.log_disk import SimLog
from chaos.sim.members import MemberCluster, MemberNode
from raftstate.core.errors import Compacted, Damaged, Unavailable
from raftstate.core.types import ConfState, Entry, Snapshot
from raftstate.machine.layout import lease_key
from raftstate.machine.tables import Table
from raftstate.machine.types import EntryResult
from raftstate.node.environment import PeerBody

if TYPE_CHECKING:
    from chaos.sim.simulation import Simulation


T = TypeVar("T")
R = TypeVar("R")

MAX_APPLYING_BYTES, APPLY_DELAY_S = 512, 0.02
"""A replay takes many hand-outs, and some time."""
CONNECTED_NS = 100_000_000


class ObservedLog(SimLog):
    """Tells what is made durable."""

    def __init__(self, node: ObservedNode) -> None:
        super().__init__()
        self._node = node

    def append(self, entries: list[Entry]) -> None:
        self._node.simulation.inside.appending(self._node, entries)
        super().append(entries)
        self._node.simulation.inside.appended(self._node, entries)
        self._node.simulation.stored(self._node, entries, self._term_before(entries[0].index))

    def apply_snapshot(self, snapshot: Snapshot) -> None:
        metadata = snapshot.metadata
        self._node.simulation.inside.resetting(self._node, metadata.index, metadata.term)
        super().apply_snapshot(snapshot)

    def _term_before(self, index: int) -> int | None:
        try:
            return self.term(index - 1)
        except (Compacted, Unavailable, Damaged):
            return None


class ObservedNode(MemberNode):
    """Tells of its start, its leadership, what it applies, and why it halts."""

    cluster: ObservedCluster

    def __init__(self, cluster: ObservedCluster, node_id: int) -> None:
        super().__init__(cluster, node_id)
        self.simulation = cluster.simulation
        self.storage = ObservedLog(self)
        self.failures = _Failures(self)
        self.is_gone = False
        """Whether it is no member any more, or its data are gone: nobody starts it again as it is."""

    def start(self) -> None:
        super().start()
        apply = self.machine.apply

        def applied(
            tables: object, entries: Sequence[Entry], conf_states: Mapping[int, ConfState], **options: int
        ) -> list[EntryResult]:
            results = apply(tables, entries, conf_states, **options)  # type: ignore[arg-type]
            self.simulation.applied(self, results, dict(conf_states))
            return results

        self.machine.apply = applied  # type: ignore[method-assign]
        raft = self.driver.raw.raft
        self.commit_seen = raft.raft_log.committed
        raft.step = self._told(raft.step)  # type: ignore[method-assign]
        self.driver.raw.apply_conf_change = self._told(  # type: ignore[method-assign]
            self.driver.raw.apply_conf_change
        )
        self.driver.leader_watchers.append(self._leader_changed)
        self._leases: set[int] = set()

    def _told(self, step: Callable[[T], R]) -> Callable[[T], R]:
        inside, depth = self.simulation.inside, 0

        def told(what: T) -> R:
            nonlocal depth
            depth += 1
            try:
                return step(what)
            finally:
                depth -= 1
                if not depth:  # the core steps messages of its own within another
                    inside.stepped(self)

        return told

    def resume(self) -> None:
        self.simulation.inside.began(self)
        super().resume()

    def _leader_changed(self, leader: int) -> None:
        if leader == self.id:
            self.cluster.known_leader = self.id
            self.simulation.inside.began(self)
            self.simulation.leads(self)

    def lease_has_ended(self, lease: int) -> bool:
        """Whether its state held a lease in this life, and holds it no more."""
        if self.tables.get(Table.HOT, lease_key(lease)) is not None:
            self._leases.add(lease)
            return False
        return lease in self._leases


class _Failures(list[BaseException]):
    """Why a node has halted: told at once."""

    def __init__(self, node: ObservedNode) -> None:
        super().__init__()
        self._node = node

    def append(self, error: BaseException) -> None:
        super().append(error)
        self._node.simulation.halted(self._node, error)


class ObservedCluster(MemberCluster):
    """A cluster whose nodes tell."""

    nodes: dict[int, ObservedNode]  # type: ignore[assignment]

    def __init__(self, size: int, seed: int, simulation: Simulation) -> None:
        self.simulation = simulation
        simulation.inside = Inside(self)
        self.known_leader: int | None = None
        self._connected: dict[tuple[int, int], tuple[tuple[int, int], int]] = {}
        super().__init__(size, seed)
        self.crashes_keep_writes = True
        self.max_applying_bytes, self.apply_delay_s = MAX_APPLYING_BYTES, APPLY_DELAY_S

    def make_node(self, node_id: int) -> ObservedNode:
        return ObservedNode(self, node_id)

    def deliver(self, sender: int, to: int, body: PeerBody) -> None:
        node = self.nodes[to]
        if node.running and not node.paused and (sender, to) not in self.cut:
            self.simulation.inside.arriving(sender, node, body)
        super().deliver(sender, to, body)

    def connects(self, source: MemberNode, node: MemberNode) -> bool:
        # A connection is let in once, and lasts: what comes over it is looked at by itself (`takes`). Now and
        # then it is made anew, as after a loss, so that one who was removed hears of it.
        lives, until_ns = self._connected.get((source.id, node.id), ((0, 0), 0))
        if lives == (source.epoch, node.epoch) and self.time.now_ns < until_ns:
            return True
        if not super().connects(source, node):
            return False
        self._connected[source.id, node.id] = (source.epoch, node.epoch), self.time.now_ns + CONNECTED_NS
        return True
