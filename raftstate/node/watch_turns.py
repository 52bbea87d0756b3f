"""When a stream may be handed its news: then it holds a copy of its own of them, as a message and in what
carries messages, until its client has taken them.

    small (nearly all) ──┬── a bounded number of bytes in one turn of the loop ──> handed out ──> written
    large ── room for ───┘
             large copies

What a large value is watched by is woken one by one, so that neither the copies of all of them are in memory
at once, nor is the loop held for as long as it takes to make them. A client that does not take its large news
while others wait for that memory is given up after a while: it may watch again from where it was.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from raftstate.node.environment import Clock, Timer

if TYPE_CHECKING:
    from raftstate.node.watch_memory import WatchLimits
    from raftstate.node.watch_stream import Watches

PATIENCE_NS = 10_000_000_000
"""How long a client may take for its large news while others wait: 8 MiB at 7 Mbit/s."""

_Queue = dict["Watches", asyncio.Future[None]]


class Turns:
    """Lets streams take their news, in order, as many at once as there is room for.

    Args:
        limits: how much is handed out at once.
        clock: the hub's.
    """

    def __init__(self, limits: WatchLimits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._turn_bytes = 0
        """Handed out in this turn of the loop."""
        self._turn_to_come = False
        self._large: dict[Watches, tuple[int, int]] = {}
        """(bytes, since when) of streams that were handed large news; first the one that has them for the
        longest."""
        self._large_bytes = 0
        self._small_waiting: _Queue = {}
        self._large_waiting: _Queue = {}
        self._large_first = False
        self._timer: Timer | None = None

    async def wait(self, stream: Watches) -> None:
        """Wait until a stream may take what it holds; then it counts until `leave`. One caller a stream."""
        size = stream.waiting_bytes
        queue = self._queue_for(size)
        if not queue and self._has_room(size):
            self._enter(stream, size)
            return
        waiting = queue[stream] = asyncio.get_running_loop().create_future()
        self._turn_soon()
        try:
            await waiting
        finally:
            self._small_waiting.pop(stream, None)
            self._large_waiting.pop(stream, None)

    def leave(self, stream: Watches) -> None:
        """Take note that a stream's news were written, or that it is closed: it waits no longer."""
        for queue in (self._small_waiting, self._large_waiting):
            waiting = queue.pop(stream, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)
        size, _ = self._large.pop(stream, (0, 0))
        if size:
            self._large_bytes -= size
            self._turn_soon()

    def close(self) -> None:
        """Give nobody up any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _queue_for(self, size: int) -> _Queue:
        return self._large_waiting if size > self._limits.small_bytes else self._small_waiting

    def _has_room(self, size: int) -> bool:
        if self._turn_bytes and self._turn_bytes + size > self._limits.turn_bytes:
            return False
        return size <= self._limits.small_bytes or self._has_memory(size)

    def _has_memory(self, size: int) -> bool:
        return not self._large or self._large_bytes + size <= self._limits.large_bytes

    def _lacks_memory(self) -> bool:
        """Whether the next large news wait for others to be written, and not only for a turn of the loop."""
        first = next(iter(self._large_waiting), None)
        return first is not None and not self._has_memory(first.waiting_bytes)

    def _enter(self, stream: Watches, size: int) -> None:
        if size:
            self._turn_bytes += size
            self._turn_soon()
        if size > self._limits.small_bytes:
            self._large[stream] = (size, self._clock.monotonic_ns())
            self._large_bytes += size

    def _turn_soon(self) -> None:
        if not self._turn_to_come:
            self._turn_to_come = True
            self._clock.call_soon(self._turn)

    def _turn(self) -> None:
        """Let those take their news that a new turn of the loop, or those who have left, made room for."""
        self._turn_to_come = False
        self._turn_bytes = 0
        self._large_first = not self._large_first
        queues = (self._small_waiting, self._large_waiting)
        for queue in reversed(queues) if self._large_first else queues:
            self._admit(queue)
        if self._timer is None and self._lacks_memory():
            self._watch_oldest()

    def _admit(self, queue: _Queue) -> None:
        while queue:
            stream, waiting = next(iter(queue.items()))
            size = stream.waiting_bytes
            rightly = self._queue_for(size)
            if rightly is not queue:
                # It holds more by now, or less.
                rightly[stream] = queue.pop(stream)
                self._turn_soon()
            elif self._has_room(size):
                del queue[stream]
                if not waiting.done():
                    self._enter(stream, size)
                    waiting.set_result(None)
            else:
                break

    def _watch_oldest(self) -> None:
        since_ns = next((since_ns for _, since_ns in self._large.values()), None)
        if since_ns is not None:
            left_ns = max(0, since_ns + PATIENCE_NS - self._clock.monotonic_ns())
            self._timer = self._clock.call_later(left_ns / 1e9, self._look_at_oldest)

    def _look_at_oldest(self) -> None:
        self._timer = None
        if not self._lacks_memory():
            return
        stream, (size, since_ns) = next(iter(self._large.items()))
        if self._clock.monotonic_ns() >= since_ns + PATIENCE_NS:
            stream.give_up(
                f"the client has not taken {size} bytes of events for {PATIENCE_NS // 10**9} s, and others"
                " wait for the memory that they take; watch again from the revision after the last that came"
            )
        self._watch_oldest()
