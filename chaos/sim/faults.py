"""What goes wrong in a run, and when: a plan that is drawn from the seed before anything runs.

A plan is data, so that a failing one can be made shorter: any part of it is a plan, too. What a fault does is
in `Injector`; one that does not fit the moment (the node is down already, nobody else holds the record) is
skipped and counted as such.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

FAULTS_PER_S = 0.6
"""Of simulated time: some are skipped, and at least 0.3 must not be."""
KINDS: dict[str, int] = {
    "crash": 14,
    "crash-all": 2,
    "pause": 6,
    "partition": 12,
    "loss": 6,
    "duplicate": 4,
    "delay": 6,
    "slow-disk": 5,
    "hung-disk": 3,
    "disk-error": 4,
    "disk-full": 4,
    "rot": 7,
    "bad-snapshots": 3,
    "crash-install": 4,
    "clock-drift": 6,
    "wall-jump": 4,
    "transfer": 6,
    "add": 3,
    "add-two": 2,
    "remove": 4,
    "wipe": 3,
}
"""How often each comes, beside the others."""
SHAPES = ("isolate", "halves", "bridge", "ring", "one-way", "leader-deaf", "leader-mute")


class Fault(NamedTuple):
    """One of a plan.

    `pick` chooses the node (or the cut), as the cluster is then: a number from 0 to 1. `size`, also from 0 to
    1, is how bad it is.
    """

    at_s: float
    kind: str
    for_s: float
    pick: float
    size: float

    def __str__(self) -> str:
        """For people."""
        how = f"(pick {self.pick:.3f}, size {self.size:.3f})"
        return f"{self.at_s:7.3f} s  {self.kind} for {self.for_s:.3f} s {how}"


def plan(seed: int, seconds: float) -> list[Fault]:
    """Return the faults of a run: the same for the same seed, in the order of their times."""
    drawn = random.Random(f"{seed}/faults")
    kinds, weights = list(KINDS), list(KINDS.values())
    at_s = 1.0  # there is a leader by then, mostly
    faults = []
    while (at_s := at_s + drawn.expovariate(FAULTS_PER_S)) < seconds:
        [kind] = drawn.choices(kinds, weights)
        for_s = min(drawn.expovariate(1 / 1.5), 8.0)
        pick, size = round(drawn.random(), 3), round(drawn.random(), 3)
        faults.append(Fault(round(at_s, 3), kind, round(for_s, 3), pick, size))
    return faults


def cuts(shape: str, ids: Sequence[int], pick: float, leader: int | None) -> set[tuple[int, int]]:
    """Return the ordered pairs (from, to) that a partition cuts.

    isolate: one node from all others. halves: two sides, one of them a minority. bridge: two sides that have
    one node in common. ring: each node reaches its two neighbours only. one-way: one node hears nobody, or is
    heard by nobody. leader-deaf, leader-mute: the leader can send and not hear, or the other way round.
    """
    nodes = list(ids)
    one = nodes[int(pick * len(nodes)) % len(nodes)]
    others = [node for node in nodes if node != one]
    if shape in ("leader-deaf", "leader-mute", "one-way"):
        target = leader if leader is not None and shape != "one-way" else one
        deaf = shape == "leader-deaf" or (shape == "one-way" and pick * 100 % 1 < 0.5)
        rest = [node for node in nodes if node != target]
        return {(node, target) for node in rest} if deaf else {(target, node) for node in rest}
    if shape == "isolate":
        return {pair for node in others for pair in ((one, node), (node, one))}
    turned = nodes[nodes.index(one) :] + nodes[: nodes.index(one)]
    if shape == "ring" and len(turned) > 3:
        near = {(turned[at], turned[(at + 1) % len(turned)]) for at in range(len(turned))}
        near |= {(second, first) for first, second in near}
        return {(a, b) for a in nodes for b in nodes if a != b and (a, b) not in near}
    sides = turned[1:] if shape == "bridge" else turned
    half = len(sides) // 2
    left, right = sides[:half], sides[half:]
    return {pair for a in left for b in right for pair in ((a, b), (b, a))}


class Injector:
    """Makes faults of a plan happen.

    Args:
        handlers: kind -> what does it; it returns a line that says what was done, or None: it was skipped.
        tell: told each fault and what came of it.
    """

    def __init__(
        self, handlers: dict[str, Callable[[Fault], str | None]], tell: Callable[[str], None]
    ) -> None:
        self._handlers = handlers
        self._tell = tell
        self.installed: dict[str, int] = {}
        self.skipped: dict[str, int] = {}

    def inject(self, fault: Fault) -> None:
        """Make one happen, now."""
        done = self._handlers[fault.kind](fault)
        counted = self.installed if done is not None else self.skipped
        counted[fault.kind] = counted.get(fault.kind, 0) + 1
        if done is not None:
            self._tell(f"fault {fault.kind}: {done}")
