"""Whether a node lives, and whether it is ready, check by check.

*Lives*: its event loop turns (it answers at all) and its driver ticks. Who does not live is to be restarted.
*Ready*: it can serve every request now. Who is not ready wants no traffic, and a restart does not help.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from raftstate.core.types import NONE
from raftstate.node.driver import Driver

TICKS_SILENT_NS_MAX = 5_000_000_000
"""A driver ticks with every heartbeat; what holds it for so long has lost its timer, or is no stall any
more."""
READY_LAG_ENTRIES_MAX = 5_000
"""Committed entries that a ready node may have yet to apply: a second's worth at a high load. A read waits
for them."""


class Check(NamedTuple):
    """One thing that was looked at. `reason`: what is wrong; empty: nothing."""

    name: str
    reason: str


def alive(driver: Driver, now_ns: int) -> Iterator[Check]:
    """Yield what makes a node live; `now_ns` monotonic."""
    yield Check("driver", f"the node has halted: {driver.halted}" if driver.halted is not None else "")
    silent_ns = now_ns - driver.ticked_ns
    stuck = driver.running and silent_ns > TICKS_SILENT_NS_MAX
    yield Check("ticks", f"the last tick was {silent_ns / 1e9:.1f} s ago" if stuck else "")


def ready(driver: Driver) -> Iterator[Check]:
    """Yield what makes a node ready."""
    raft = driver.raw.raft
    yield Check("running", "" if driver.running else "the node is starting, stopping or has halted")
    yield Check("leader", "" if raft.lead != NONE else driver.describe_leader())
    behind = raft.raft_log.committed - driver.applied_index
    slow = behind > READY_LAG_ENTRIES_MAX
    yield Check(
        "applied",
        f"{behind} committed entries are not applied yet, {READY_LAG_ENTRIES_MAX} may be" if slow else "",
    )
    blank = "this node joins its cluster, and holds no state yet" if driver.applied.is_blank else ""
    yield Check("readable", driver.fitness.why_not_read() or blank)
