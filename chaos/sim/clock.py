"""Simulated time: one heap of timers for the whole world."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count

MS = 1_000_000


class SimTimer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class SimTime:
    """All clocks of the world, and what happens when."""

    def __init__(self) -> None:
        self.now_ns = 1_000 * MS
        self.wall_offset_ns = 0
        self._heap: list[tuple[int, int, SimTimer]] = []
        self._soon: deque[Callable[[], None]] = deque()
        self._sequence = count()

    def monotonic_ns(self) -> int:
        return self.now_ns

    def wall_ns(self) -> int:
        return 1_700_000_000_000 * MS + self.now_ns + self.wall_offset_ns

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> SimTimer:
        timer = SimTimer(callback)
        heapq.heappush(self._heap, (self.now_ns + round(delay_s * 1e9), next(self._sequence), timer))
        return timer

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)

    def step(self) -> None:
        """Do what is due next."""
        if self._soon:
            self._soon.popleft()()
            return
        self.now_ns, _, timer = heapq.heappop(self._heap)
        if timer.callback is not None:
            timer.callback()
