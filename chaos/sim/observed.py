"""Nodes that tell a simulation what they do. The product's code is not touched: its own hooks are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from chaos.sim.log_disk import SimLog
from chaos.sim.members import MemberCluster, MemberNode
from raftstate.core.errors import Compacted, Damaged, Unavailable
from raftstate.core.types import ConfState, Entry
from raftstate.machine.layout import lease_key
from raftstate.machine.tables import Table
from raftstate.machine.types import EntryResult

if TYPE_CHECKING:
    from chaos.sim.simulation import Simulation


CONNECTED_NS = 100_000_000


class ObservedLog(SimLog):
    """Tells what is made durable."""

    def __init__(self, node: ObservedNode) -> None:
        super().__init__()
        self._node = node

    def append(self, entries: list[Entry]) -> None:
        super().append(entries)
        self._node.simulation.stored(self._node, entries, self._term_before(entries[0].index))

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
        self.driver.leader_watchers.append(self._leader_changed)
        self._leases: set[int] = set()

    def _leader_changed(self, leader: int) -> None:
        if leader == self.id:
            self.cluster.known_leader = self.id
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
        self.known_leader: int | None = None
        self._connected: dict[tuple[int, int], tuple[tuple[int, int], int]] = {}
        super().__init__(size, seed)
        self.crashes_keep_writes = True

    def make_node(self, node_id: int) -> ObservedNode:
        return ObservedNode(self, node_id)

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
