"""What parts of a node keep of how long things took: counts in buckets, cheap enough for every commit.

Whoever shows them to people (`raftstate.ops`) reads a snapshot. Imports nothing of ours.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from typing import NamedTuple


def doubling(first: float, count: int) -> tuple[float, ...]:
    """Return `count` bounds, each twice the one before."""
    return tuple(first * 2**exponent for exponent in range(count))


SECONDS = doubling(0.0001, 17)
"""From 0.1 ms, a commit on a disk that takes its time for nothing, to 6.6 s, beyond any election timeout."""


class Snapshot(NamedTuple):
    """A histogram at one moment. `counts`: of each bound's bucket (those that are not in the one before), and
    last of what is above all bounds."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float


class Histogram:
    """Counts observations by size. Any thread may observe: it takes one or two microseconds.

    `bounds`: ascending; an observation belongs to the first that it does not exceed.
    """

    __slots__ = ("_bounds", "_counts", "_lock", "_sum")

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, value: float) -> None:
        """Count one observation."""
        with self._lock:
            self._counts[bisect_left(self._bounds, value)] += 1
            self._sum += value

    def observe_ns(self, nanoseconds: int) -> None:
        """Count a time, given in nanoseconds and kept in seconds."""
        self.observe(nanoseconds / 1e9)

    def snapshot(self) -> Snapshot:
        """Return what was counted: the sum is that of the counts."""
        with self._lock:
            return Snapshot(self._bounds, tuple(self._counts), self._sum)
