"""Our driver in its simulated world, where messages wait until a schedule delivers them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from chaos.sim.members import MemberCluster
from chaos.sim.world import was_applied
from raftstate.core.types import EntryType, Message
from raftstate.machine.reader import Reader
from raftstate.machine.types import Batch
from raftstate.node.environment import Outcome as DriverOutcome
from raftstate.node.environment import PeerBody, Rejected
from raftstate.node.member_changes import MembersChanged, RemoveMembers
from raftstate.pb.v1 import pipeline_pb2
from tests.peers.links import Links

BEAT_S = 0.015
TURN_S = 0.004
"""Enough for a write to the simulated disks."""


@dataclass
class _Outcome:
    told: list[DriverOutcome] | list[MembersChanged | Rejected]

    @property
    def acknowledged(self) -> bool:
        return was_applied(self.told) or any(isinstance(each, MembersChanged) for each in self.told)


class RaftstatePeers:
    """Implements `schedules.Peers`."""

    def __init__(self, seed: int) -> None:
        self.cluster = MemberCluster(3, seed)
        self.ids = self.cluster.ids
        self.large_bytes = 400_000  # a message of entries has 1 MiB at most
        self._dice = random.Random(seed)
        self._links: Links[PeerBody] = Links(self.ids, self.cluster.deliver)
        self._by_hand()

    def _by_hand(self) -> None:
        def keep(sender: int, to: int, body: PeerBody) -> list[float]:
            self._links.send(sender, to, body)
            return []

        self.cluster.tamper = keep
        self.cluster.run_for(0.002)  # what is still under way by itself

    def _by_itself(self) -> None:
        self._links.deliver_all()
        self.cluster.tamper = None

    # -- what nodes do

    def turn(self, node: int) -> None:
        self.cluster.run_for(TURN_S)

    def beat(self, node: int) -> None:
        self.cluster.run_for(BEAT_S)

    def elect(self, *candidates: int) -> int:
        self._by_itself()
        self.cluster.run_until(lambda: (leader := self.cluster.leader()) and leader.id in candidates)
        self.settle()
        return self.cluster.elect().id

    def settle(self) -> None:
        self._by_itself()
        self.cluster.run_for(2)
        self._by_hand()

    def put(self, node: int, key: str, size: int = 1) -> _Outcome:
        batch = pipeline_pb2.CommandBatch()
        put = batch.commands.add(serial=1).put
        put.key, put.value = key.encode(), self._dice.randbytes(size)
        outcomes: list[DriverOutcome] = []
        driver = self.cluster.nodes[node].driver
        driver.submit(Batch(batch.SerializeToString()), 1, 60_000_000_000, outcomes.append)
        self.turn(node)
        return _Outcome(outcomes)

    def remove(self, node: int, removed: int) -> _Outcome:
        outcomes = self.cluster.change(node, RemoveMembers([f"n{removed}"]))
        self.turn(node)
        return _Outcome(outcomes)

    def compact(self, node: int) -> None:
        self.cluster.nodes[node].take_checkpoint()
        self.cluster.nodes[node].cut_log(0)

    def appends(self, sender: int, to: int) -> list[Message]:
        """Return the messages with entries that are under way."""
        bodies = self._links.pending(sender, to)
        return [body for body in bodies if isinstance(body, Message) and body.entries]

    def changes_in_log(self, node: int) -> int:
        """Return how many entries that change the membership are in a node's log."""
        log = self.cluster.nodes[node].storage
        entries = log.entries(log.first_index(), log.last_index() + 1, 1 << 30)
        return sum(entry.type is not EntryType.NORMAL for entry in entries)

    def keys(self, node: int) -> set[str]:
        page = Reader(self.cluster.nodes[node].tables).range(
            b"\0", None, limit=0, keys_only=True, count_only=False, bytes_max=1 << 30
        )
        return {pair.key.decode() for pair in page.kvs}

    # -- what happens to them

    def crash(self, node: int) -> None:
        for other in self.ids:
            if other != node:
                self._links.sever(node, other)
        self.cluster.crash(node)

    def sever(self, one: int, other: int) -> None:
        self._links.sever(one, other)
        self.cluster.cut |= {(one, other), (other, one)}
        self.cluster.nodes[one].driver.link_lost(other)
        self.cluster.nodes[other].driver.link_lost(one)

    def connect(self, one: int, other: int) -> None:
        self._links.connect(one, other)
        self.cluster.cut -= {(one, other), (other, one)}
        nodes = self.cluster.nodes
        nodes[one].driver.upkeep.met(other, nodes[other].knows)
        nodes[other].driver.upkeep.met(one, nodes[one].knows)

    def lose(self, sender: int, to: int) -> None:
        # Neither end is told: that is harder than a connection that breaks.
        self._links.lose(sender, to)

    def deliver(self, sender: int, to: int, count: int | None = None) -> int:
        return self._links.deliver(sender, to, count)

    def deliver_refusal(self, sender: int, to: int) -> None:
        bodies = self._links.pending(sender, to)
        refusals = [n for n, body in enumerate(bodies) if isinstance(body, Message) and body.reject]
        assert refusals, f"no refusal is under way: {bodies}"
        self._links.deliver(sender, to, refusals[0] + 1)
