"""What pending events may take in memory: for each stream, and for all of a node's.

An event that several streams hold is in memory once, and counts once for all together; for each stream it
counts whole. Once it is handed out to one, that one has a copy of its own until it is written: it goes on to
count for the stream, and for all together if it is large. Small ones do not: clients that take nothing would
keep the others from their events, and a stream has one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raftstate.node.watch_scan import Held, Position, SliceLimits
from raftstate.node.watch_stream import Group, Watches

_ON_LOOP = SliceLimits(changes=256, size_bytes=1 << 20, matches=2_048)
_BESIDE = SliceLimits(changes=1_000, size_bytes=1 << 20, matches=4_096)


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """How much of everything."""

    watches: int = 10_000
    """At this node."""
    streams: int = 1_024
    """At this node."""
    stream_bytes: int = 2 << 20
    """Of events that a stream may hold, or one event: that is also the most that one news has."""
    total_bytes: int = 64 << 20
    """Of events that all streams may hold, or one event."""
    small_bytes: int = 64 << 10
    """News of so many bytes wait for nothing but their turn: 64 MiB if all streams have some to write."""
    large_bytes: int = 32 << 20
    """Of larger news that were handed out and are not written yet, or one of them."""
    turn_bytes: int = 1 << 20
    """Of news that are handed out in one turn of the loop, or one of them: some milliseconds to convert."""
    groups: int = 1_024
    """That a slice of old changes is for."""
    on_loop: SliceLimits = _ON_LOOP
    """Read by a pass, of new changes and of old ones: 2 ms or so of each."""
    beside: SliceLimits = _BESIDE
    """Read at once on the thread; some milliseconds, in which it can't be used for other reads."""


class PendingMemory:
    """Counts the events that streams hold, and decides which of them have room for more.

    Args:
        limits: how much they may hold.
        fill: called with a stream that has become full.
        take_back: called with a stream that has become full, and is to let go all that it holds.
        give_room: called with a stream that was full, because all together held too much, when they do no
            longer.
    """

    def __init__(
        self,
        limits: WatchLimits,
        *,
        fill: Callable[[Watches], None],
        take_back: Callable[[Watches], None],
        give_room: Callable[[Watches], None],
    ) -> None:
        self.pending_bytes = 0
        self._limits = limits
        self._fill = fill
        self._take_back = take_back
        self._give_room = give_room
        self._holding: dict[Watches, None] = {}
        """Streams that hold events; first the one that has held some for the longest."""
        self._short: dict[Watches, None] = {}
        """Streams that are full only because all together are."""

    def hold(self, group: Group, held: Held, position: Position) -> bool:
        """Add an event to those that a group holds. False: there is no room, and its stream is full now."""
        stream = group.stream
        if stream.is_full or not self._has_room(stream, held):
            return False
        if not held.holders:
            self.pending_bytes += held.size_bytes
        held.holders += 1
        stream.pending_bytes += held.size_bytes
        if not group.events:
            group.since = position
            stream.pending[group] = None
            self._holding.setdefault(stream)
            stream.wake()
        group.events.append(held)
        return True

    def _has_room(self, stream: Watches, held: Held) -> bool:
        limits = self._limits
        if stream.pending_bytes and stream.pending_bytes + held.size_bytes > limits.stream_bytes:
            self._fill(stream)
            return False
        if held.holders:
            return True
        while self.pending_bytes and self.pending_bytes + held.size_bytes > limits.total_bytes:
            # Those that somebody waits for are handed out in a moment anyway.
            silent = next((each for each in self._holding if each is not stream and not each.is_read), None)
            if silent is None:
                self._short[stream] = None
                self._fill(stream)
                return False
            self._short.pop(silent, None)
            self._take_back(silent)
        return True

    def hand_out(self, stream: Watches) -> None:
        """Let go the events of a stream, which is handed a copy of its own. `written` must have been called
        for the one before."""
        size = stream.handed_bytes = stream.pending_bytes
        stream.pending_bytes += size
        if size > self._limits.small_bytes:
            self.pending_bytes += size
        for group in list(stream.pending):
            self.drop(group)

    def written(self, stream: Watches) -> None:
        """Count no longer what a stream was handed."""
        size, stream.handed_bytes = stream.handed_bytes, 0
        stream.pending_bytes -= size
        if size > self._limits.small_bytes:
            self.pending_bytes -= size
            self._give_room_to_short()

    def drop(self, group: Group) -> None:
        """Let go the events that a group holds: they were handed out, or nobody wants them any more."""
        if not group.events:
            return
        stream = group.stream
        for held in group.events:
            stream.pending_bytes -= held.size_bytes
            held.holders -= 1
            if not held.holders:
                self.pending_bytes -= held.size_bytes
        group.events = []
        del stream.pending[group]
        if not stream.pending:
            del self._holding[stream]
        self._give_room_to_short()

    def _give_room_to_short(self) -> None:
        short, self._short = self._short, {}
        for each in short:
            self._give_room(each)

    def forget(self, stream: Watches) -> None:
        """Forget a stream that is read, or closed: there is nothing more that it is short of."""
        self._short.pop(stream, None)
