"""Time as the event loop has it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class LoopClock:
    """The real clock. `loop`: where callbacks run."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def monotonic_ns(self) -> int:
        """Return CLOCK_MONOTONIC_RAW where there is one: the lease clock must not be slewed."""
        return time.clock_gettime_ns(_MONOTONIC)

    def boot_ns(self) -> int:
        """Return CLOCK_BOOTTIME where there is one: a staleness bound must grow while the machine sleeps."""
        return time.clock_gettime_ns(_BOOT)

    def wall_ns(self) -> int:
        """Return the time of day."""
        return time.time_ns()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Call back on the loop after `delay_s` seconds."""
        return self._loop.call_later(delay_s, callback)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call back on the loop's next turn."""
        self._loop.call_soon(callback)


_BOOT: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_MONOTONIC: int = getattr(time, "CLOCK_MONOTONIC_RAW", time.CLOCK_MONOTONIC)


class LeaseClock:
    """The cluster's clock for leases and sessions, as one node has it: in milliseconds, and deaf to stalls.

    A leader stamps entries with it, and it never goes back there. Each step adds at most 500 ms, so that a
    leader which was stopped for a minute expires nothing whose renewal waits in its sockets.

    A follower's runs on from the last stamp of its leader, whether that is above its own or below: what
    passed without a leader does not count. So it is never ahead of the leader's by more than what the leader
    missed since, and a leader starts with what it has, unless its log holds a higher stamp.
    """

    STEP_MS_MAX = 500

    def __init__(self, now_ns: int, stamp_ms: int) -> None:
        self._last_ns = now_ns
        self._value_ns = stamp_ms * 1_000_000
        self.stalled_ns = 0
        """When a step was last cut short (monotonic)."""

    def set(self, now_ns: int, stamp_ms: int) -> None:
        """Go by `stamp_ms`, the stamp of a leader, as of `now_ns` (monotonic)."""
        self._last_ns = now_ns
        self._value_ns = stamp_ms * 1_000_000

    def raise_to(self, stamp_ms: int) -> None:
        """Go on from `stamp_ms` if the clock is behind it."""
        self._value_ns = max(self._value_ns, stamp_ms * 1_000_000)

    def step(self, now_ns: int) -> int:
        """Advance to `now_ns` (monotonic), and return the clock's value in ms."""
        elapsed_ns = max(now_ns - self._last_ns, 0)
        self._last_ns = now_ns
        if elapsed_ns > self.STEP_MS_MAX * 1_000_000:
            elapsed_ns = self.STEP_MS_MAX * 1_000_000
            self.stalled_ns = now_ns
        self._value_ns += elapsed_ns
        return self._value_ns // 1_000_000
