"""Who breaks nodes, brings them back, and changes the membership: what each kind of fault does, and what
heals it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from chaos.sim.faults import SHAPES, Fault, cuts
from chaos.sim.observed import ObservedNode
from raftstate.core.types import Message
from raftstate.errors import FailedPreconditionError
from raftstate.node.environment import PeerBody, Rejected
from raftstate.node.member_changes import (
    AddMember,
    MemberRequest,
    MembersChanged,
    RemoveMembers,
    ReplaceMember,
)

if TYPE_CHECKING:
    from chaos.sim.simulation import Simulation

VOTERS_MIN, VOTERS_MAX = 3, 5
ADDED_MAX = 4
"""Nodes that join during a run."""
DRIFT_MAX = 0.02
"""How much faster or slower a clock may run: far more than any that is left alone does."""
HANG_MS = 900.0
"""A write of the log that takes so long outlasts every election timeout."""
STUCK_MS = 5_000.0
"""One that takes so long should have cost its leader the leadership, whoever took it."""


class Operators:
    """See the module."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self._random = random.Random(f"{sim.seed}/operators")
        self._added = 0
        self._under_way = 0
        """Changes of the membership that are."""
        self._lost: int | None = None
        """The one node that has lost what it had acknowledged, until it has caught up again: more would be
        more than the cluster promises to stand."""
        self._loss = self._duplicates = self._delays = 0.0
        self._delay_s = 0.05
        self.handlers: dict[str, Callable[[Fault], str | None]] = {
            "crash": self._crash,
            "crash-all": self._crash_all,
            "pause": self._pause,
            "partition": self._partition,
            "loss": self._lose,
            "duplicate": self._duplicate,
            "delay": self._delay,
            "slow-disk": lambda fault: self._slow_disk(fault, 5 + 40 * fault.size),
            "hung-disk": lambda fault: self._slow_disk(fault, HANG_MS if fault.size < 0.5 else STUCK_MS),
            "disk-error": self._disk_error,
            "disk-full": self._disk_full,
            "rot": self._rot,
            "bad-snapshots": self._spoil_snapshots,
            "crash-install": self._crash_at_install,
            "clock-drift": self._drift,
            "wall-jump": self._jump,
            "transfer": self._transfer,
            "add": self._add,
            "add-two": self._add_two,
            "remove": self._remove,
            "wipe": self._wipe,
        }

    @property
    def idle(self) -> bool:
        """Whether no change of the membership is under way, and nobody waits to be replaced."""
        return not self._under_way

    def describe(self) -> str:
        """Return where each node stands, for people."""
        return "; ".join(_describe(node) for node in self._nodes())

    def expected(self, leader: ObservedNode) -> list[ObservedNode]:
        """Return the nodes that must agree in the end: the members, but for those that nobody has started."""
        members = {member.id: member.incarnation for member in leader.driver.applied.members}
        return [node for node in self._nodes() if members.get(node.id) == node.incarnation]

    def _nodes(self) -> list[ObservedNode]:
        return list(self._sim.cluster.nodes.values())

    def _running(self) -> list[ObservedNode]:
        return [node for node in self._nodes() if node.running]

    def _pick(self, fault: Fault, nodes: list[ObservedNode]) -> ObservedNode | None:
        return nodes[int(fault.pick * len(nodes)) % len(nodes)] if nodes else None

    # -- processes

    def _crash(self, fault: Fault) -> str | None:
        node = self._pick(fault, self._running())
        if node is None:
            return None
        self._sim.cluster.crash(node.id)
        self.restart_later(node, fault.for_s)
        return f"n{node.id}"

    def _crash_all(self, fault: Fault) -> str | None:
        for node in self._running():
            self._sim.cluster.crash(node.id)
            self.restart_later(node, fault.for_s * (0.5 + self._random.random()))
        return "all"

    def restart_later(self, node: ObservedNode, after_s: float) -> None:
        """Start a node again that is down, or halted, unless somebody else does before."""
        epoch = node.epoch
        self._sim.later(after_s, lambda: self._restart(node) if node.epoch in (epoch, epoch + 1) else None)

    def _restart(self, node: ObservedNode) -> None:
        if node.running or self._sim.cluster.nodes.get(node.id) is not node:
            return
        if node.alive:
            self._sim.cluster.crash(node.id)
        node.failures.clear()
        try:
            node.start()
        except FailedPreconditionError as refused:
            # It has applied its own removal.
            node.crash()
            node.is_gone = True
            self._sim.tell(f"n{node.id} does not start: {refused}")
        else:
            self._sim.tell(f"n{node.id} starts")

    def _pause(self, fault: Fault) -> str | None:
        node = self._pick(fault, [node for node in self._running() if not node.paused])
        if node is None:
            return None
        node.pause()
        epoch = node.epoch
        self._sim.later(fault.for_s, lambda: node.resume() if node.epoch == epoch and node.paused else None)
        return f"n{node.id}"

    # -- network

    def _partition(self, fault: Fault) -> str | None:
        cluster = self._sim.cluster
        shape = SHAPES[int(fault.size * len(SHAPES)) % len(SHAPES)]
        cut = cuts(shape, cluster.ids, fault.pick, cluster.known_leader)
        cluster.cut |= cut
        self._sim.later(fault.for_s, lambda: cluster.cut.difference_update(cut))
        return f"{shape}, {sorted(cut)}"

    def _tamper(self, sender: int, to: int, body: PeerBody) -> list[float]:
        drawn = self._sim.cluster.random
        delay_s = drawn.uniform(0.0001, 0.002)
        if not isinstance(body, Message):
            return [delay_s]
        if drawn.random() < self._loss:
            return []
        if drawn.random() < self._delays:
            delay_s += drawn.expovariate(1 / self._delay_s)
        if drawn.random() < self._duplicates:
            return [delay_s, delay_s + drawn.expovariate(1 / 0.05)]
        return [delay_s]

    def _set_tampering(self) -> None:
        tampers = self._loss or self._duplicates or self._delays
        self._sim.cluster.tamper = self._tamper if tampers else None

    def _for_a_while(self, name: str, value: float, seconds: float) -> None:
        setattr(self, name, value)
        self._set_tampering()

        def end() -> None:
            setattr(self, name, 0.0)
            self._set_tampering()

        self._sim.later(seconds, end)

    def _lose(self, fault: Fault) -> str | None:
        self._for_a_while("_loss", 0.02 + 0.3 * fault.size, fault.for_s)
        return f"{self._loss:.0%} of messages"

    def _duplicate(self, fault: Fault) -> str | None:
        self._for_a_while("_duplicates", 0.05 + 0.3 * fault.size, fault.for_s)
        return f"{self._duplicates:.0%} of messages"

    def _delay(self, fault: Fault) -> str | None:
        self._delay_s = 0.25 if fault.size > 0.8 else 0.05
        self._for_a_while("_delays", 0.1 + 0.6 * fault.size, fault.for_s)
        return f"{self._delays:.0%} of messages, which others overtake"

    # -- disks

    def _slow_disk(self, fault: Fault, delay_ms: float) -> str | None:
        node = self._pick(fault, self._running())
        if node is None:
            return None
        node.disk_delay_ms = delay_ms
        self._sim.later(fault.for_s, lambda: setattr(node, "disk_delay_ms", 1.0))
        return f"n{node.id}, about {delay_ms:.0f} ms a write"

    def _disk_error(self, fault: Fault) -> str | None:
        node = self._pick(fault, self._running())
        if node is None:
            return None
        node.disk_fails = True
        return f"n{node.id}"

    def _disk_full(self, fault: Fault) -> str | None:
        node = self._pick(fault, self._running())
        if node is None:
            return None
        node.disk_is_full = True
        self._sim.later(fault.for_s, lambda: setattr(node, "disk_is_full", False))
        return f"n{node.id}"

    def _spoil_snapshots(self, fault: Fault) -> str | None:
        node = self._pick(fault, self._running())
        if node is None:
            return None
        node.damage_snapshots = True
        self._sim.later(fault.for_s, lambda: setattr(node, "damage_snapshots", False))
        return f"n{node.id} makes damaged ones"

    def _crash_at_install(self, fault: Fault) -> str | None:
        """Have a node crash in the midst of its next install, and be away for long enough to need one."""
        node = self._pick(fault, self._running())
        if node is None:
            return None
        node.crashes_at_install = lambda: self._sim.cluster.crash(node.id) or self.restart_later(node, 0.3)
        self._sim.cluster.crash(node.id)
        self.restart_later(node, 1.0 + fault.for_s)
        return f"n{node.id}, and crashes again as it installs a snapshot"

    def _may_lose(self, node: ObservedNode) -> bool:
        """Whether a node may lose what it has acknowledged, now: the others hold it all, and can do without
        it."""
        leader = self._sim.cluster.leader()
        if leader is None or len(self._voters()) < VOTERS_MIN:
            return False
        if self._lost is not None:
            before = self._sim.cluster.nodes[self._lost]
            recovered = (
                before.running
                and not before.storage.rotten
                and before in self.expected(leader)
                and before.id in self._voters()
                and before.driver.applied_index >= leader.driver.applied_index - 5
            )
            if not recovered:
                return False
            self._lost = None
        return True

    def _rot(self, fault: Fault) -> str | None:
        leader = self._sim.cluster.leader()
        node = leader if self._random.random() < 0.3 else self._pick(fault, self._running())
        if node is None or not self._may_lose(node):
            return None
        first, last = node.storage.first_index(), node.storage.last_index()
        if last < first:
            return None
        index = last - int((1 - fault.size) * min(last - first, 40))
        self._lost = node.id
        node.storage.rotten.add(index)
        if self._random.random() < 0.5:
            self._sim.cluster.crash(node.id)
            self.restart_later(node, fault.for_s)
        return f"entry {index} of n{node.id}"

    # -- clocks

    def _drift(self, fault: Fault) -> str | None:
        node = self._pick(fault, self._running())
        if node is None:
            return None
        node.set_clock_rate(1 + DRIFT_MAX * (2 * fault.size - 1))
        return f"n{node.id} runs at {node.clock_rate:.4f}"

    def _jump(self, fault: Fault) -> str | None:
        node = self._pick(fault, self._nodes())
        if node is None:
            return None
        by_s = (fault.size - 0.5) * 7_200
        node.wall_offset_ns += int(by_s * 1e9)
        return f"n{node.id} by {by_s:.0f} s"

    # -- leadership and membership

    def _transfer(self, fault: Fault) -> str | None:
        node = self._pick(fault, self._running())
        target = self._random.choice(self._sim.cluster.ids)
        if node is None or node.paused:
            return None
        node.driver.transfer_leader(target)
        return f"n{node.id} asks for n{target}"

    def _voters(self) -> tuple[int, ...]:
        leader = self._sim.cluster.leader()
        return () if leader is None else leader.driver.applied.conf_state.voters

    def _add(self, fault: Fault) -> str | None:
        if self._under_way or self._added >= ADDED_MAX or not 0 < len(self._voters()) < VOTERS_MAX:
            return None
        return self._add_one()

    def _add_one(self) -> str:
        self._added += 1
        name = f"n{100 + self._added}"
        request = AddMember(name, f"h{name}:7101", f"h{name}:7001")

        def join(changed: MembersChanged) -> None:
            record = next((member for member in changed.members if member.name == name), None)
            if record is not None and record.id not in self._sim.cluster.nodes:
                self._sim.cluster.join(record)
                self._sim.tell(f"n{record.id} joins as {name}")

        self._change(request, join)
        return name

    def _add_two(self, fault: Fault) -> str | None:
        """Two operators have a node join, at different nodes, at the same time."""
        if self._under_way or self._added + 2 > ADDED_MAX or not 0 < len(self._voters()) < VOTERS_MAX - 1:
            return None
        first = self._add_one()
        return f"{first} and {self._add_one()}"

    def _remove(self, fault: Fault) -> str | None:
        voters = self._voters()
        if self._under_way or len(voters) <= VOTERS_MIN or self._lost is not None:
            return None
        node = self._pick(fault, [self._sim.cluster.nodes[id] for id in voters])
        leader = self._sim.cluster.leader()
        if node is None or leader is None:
            return None
        name = next(member.name for member in leader.driver.applied.members if member.id == node.id)
        self._change(RemoveMembers([name]), lambda changed: None)
        return name

    def _wipe(self, fault: Fault) -> str | None:
        node = self._pick(fault, [node for node in self._running() if node.id in self._voters()])
        leader = self._sim.cluster.leader()
        if self._under_way or node is None or leader is None or not self._may_lose(node):
            return None
        record = next(member for member in leader.driver.applied.members if member.id == node.id)
        self._lost = node.id
        self._sim.inside.wiped(node)
        self._sim.cluster.crash(node.id)
        node.epoch += 2  # nobody starts it again as it was
        node.is_gone = True

        def join(changed: MembersChanged) -> None:
            fresh = next((member for member in changed.members if member.id == node.id), None)
            if fresh is not None and fresh.incarnation > node.incarnation:
                self._sim.cluster.join(fresh)
                self._sim.tell(f"n{node.id} begins anew as incarnation {fresh.incarnation}")

        self._change(ReplaceMember(record.name, incarnation=node.incarnation), join)
        return f"n{node.id}"

    def _change(self, request: MemberRequest, done: Callable[[MembersChanged], None]) -> None:
        """Have the membership changed, however long it takes: asked again for as long as nobody says whether
        it was."""
        self._under_way += 1
        sim = self._sim

        def ask() -> None:
            nodes = [node for node in self._running() if not node.paused]
            if not nodes:
                sim.later(0.3, ask)
                return
            node = self._random.choice(nodes)
            answered = False

            def answer(outcome: MembersChanged | Rejected) -> None:
                nonlocal answered
                if answered:
                    return
                answered = True
                if isinstance(outcome, MembersChanged):
                    self._under_way -= 1
                    done(outcome)
                elif isinstance(request, RemoveMembers) and outcome.applied_never:
                    self._under_way -= 1
                else:
                    sim.later(0.3, ask)

            def unanswered() -> None:
                nonlocal answered
                if not answered:
                    answered = True
                    ask()

            node.membership.submit(request, 3_000_000_000, answer)
            node.driver.turn()
            sim.later(4.0, unanswered)

        ask()

    # -- healing

    def heal(self) -> None:
        """End all faults, and start whoever is down."""
        cluster = self._sim.cluster
        cluster.cut.clear()
        self._loss = self._duplicates = self._delays = 0.0
        self._set_tampering()
        for node in self._nodes():
            node.disk_delay_ms, node.disk_is_full, node.disk_fails = 1.0, False, False
            node.damage_snapshots = False
            node.set_clock_rate(1.0)
            if node.paused:
                node.resume()
            if not node.running and not node.is_gone:
                self._restart(node)


def _describe(node: ObservedNode) -> str:
    raft = node.driver.raw.raft
    return (
        f"n{node.id} {'runs' if node.running else 'is down'}, {raft.state.name.lower()} of term {raft.term}, "
        f"log {node.storage.first_index()}-{node.storage.last_index()}, applied {node.driver.applied_index}"
    )
