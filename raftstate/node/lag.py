"""How far behind a follower is in time: when the first entry that it lacks came into the leader's log."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

SAMPLE_NS = 100_000_000
"""Between two notes of the log's end, and so the precision of what is said."""
SAMPLES_MAX = 6_000
"""Ten minutes of a log that never rests: who is further behind is said to be at least that old."""


class LogAges:
    """When the log had which length, on a leader. Cheap: one note for each tenth of a second."""

    def __init__(self) -> None:
        self._samples: deque[tuple[int, int]] = deque(maxlen=SAMPLES_MAX)
        """(last index, monotonic time at which it was first seen), both ascending."""
        self._due_ns = 0

    def clear(self) -> None:
        """Forget everything: another leads, or this node leads anew."""
        self._samples.clear()
        self._due_ns = 0

    def note(self, now_ns: int, last_index: int) -> None:
        """Note the log's end, if it is time to and there is anything new."""
        if now_ns < self._due_ns:
            return
        self._due_ns = now_ns + SAMPLE_NS
        if not self._samples or self._samples[-1][0] < last_index:
            self._samples.append((last_index, now_ns))

    def behind_ns(self, now_ns: int, match_index: int) -> int:
        """Return how long ago the first entry after `match_index` was there, in ns; 0: there is none.

        Too low by the time between two notes at most, and where what was noted does not reach back so far.
        """
        position = bisect_right(self._samples, match_index, key=lambda sample: sample[0])
        if position == len(self._samples):
            return 0
        return max(0, now_ns - self._samples[position][1])
