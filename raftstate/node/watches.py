"""All watches of a node: one reader of new changes, the tail, and one of old ones for those who missed them.

    a transaction is applied ──> pass: read what is new, once, and add it to the pending news of each
                                 group of watches that wants it; at most one pass every 2 ms
    no room in the stream    ──> the group is behind: only a cursor is kept of it
    its stream is read again ──> it takes part in slices of the history, until it meets the tail

A position is (revision, sub), the next change to read. All that is before the tail's was given to the groups
that are up to date; all before its own cursor to a group that is behind; and it joins the others where its
cursor is the tail's position, exactly. So nothing is missed, and nothing comes twice.

What is far behind is read on a thread, one slice at a time; what is near the tail on the event loop, since
the tail would move on meanwhile. A slice is for all groups that stand within it, if their streams have room.

Memory: events that were not written yet are counted, for each stream and for all. Events that do not fit are
not kept; where all streams together hold too much, the one that was not read for the longest gives back what
it holds, and reads it again. What is handed out is copied for each stream: they take turns (`watch_turns`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol, TypeVar

from raftstate.errors import (
    ClosedError,
    DataLossError,
    InvariantError,
    OutOfRangeError,
    RaftstateError,
    ResourceExhaustedError,
)
from raftstate.machine.layout import Meta, read_meta
from raftstate.machine.tables import ReadTables
from raftstate.node.environment import Clock, Timer
from raftstate.node.service import WatchEnd, WatchSpec
from raftstate.node.watch_match import Intervals
from raftstate.node.watch_memory import PendingMemory, WatchLimits
from raftstate.node.watch_scan import Found, Position, Slice, SliceLimits, read_slice
from raftstate.node.watch_stream import ENDED, Group, Watches
from raftstate.node.watch_turns import Turns
from raftstate.node.watch_waiting import Later, Waiting, finder

T = TypeVar("T")

PASS_NS = 2_000_000
"""From one pass to the next, at least: under load, what is applied within it shares one. The first after a
pause comes at once."""
RETRY_NS = 50_000_000
"""After so long it is tried again to read, when too many others were reading."""
PROGRESS_NS = 5_000_000_000
"""After so long without an event a watch that asked for it is told how far it is."""
_NOTES_NS = PROGRESS_NS // 10
"""From one look for notes that are due to the next."""
_FIRST_CHANGE = 2
"""The revision of a store's first change."""


class Beside(Protocol):
    """Runs what may take some milliseconds where it holds nobody up."""

    def __call__(self, job: Callable[[], T], done: Callable[[T], None]) -> None:
        """Run `job`, which raises nothing that is expected; call `done` on the event loop with its result.

        `done` may never be called once the node stops.
        """
        ...


def beside_on(executor: Executor) -> Beside:
    """Return a `Beside` that runs jobs on `executor`. Use it on the event loop."""

    def run(job: Callable[[], T], done: Callable[[T], None]) -> None:
        def finished(running: asyncio.Future[T]) -> None:
            if not running.cancelled():
                done(running.result())

        asyncio.get_running_loop().run_in_executor(executor, job).add_done_callback(finished)

    return run


class WatchHub:
    """The watches of a node. Everything here is called on its event loop.

    Args:
        read: begins to read the state as committed last; also called by what runs beside the loop.
        clock: the node's.
        beside: runs the reading of old changes.
        confirm: waits until the state here includes every write acknowledged before the call, at most so
            many seconds, or raises a `RaftstateError`.
        limits: how much of everything.
        on_damage: told, on a later turn of the loop, of what was found damaged.
    """

    def __init__(
        self,
        read: Callable[[], AbstractContextManager[ReadTables]],
        clock: Clock,
        beside: Beside,
        confirm: Callable[[float], Awaitable[object]],
        limits: WatchLimits | None = None,
        *,
        on_damage: Callable[[DataLossError], object] = lambda _: None,
    ) -> None:
        self._read = read
        self._clock = clock
        self._beside = beside
        self.confirm = confirm
        self.limits = limits or WatchLimits()
        self._on_damage = on_damage
        self._withheld: DataLossError | None = None
        self.watch_count = 0
        """Watches whose end was not told yet."""
        self.applied_index = 0
        """The state that the tail has read to its end."""
        self._compacted = 0
        self._tail: Position = (_FIRST_CHANGE, 0)
        self._up_to_date: Intervals[Group] = Intervals()
        """All of them want what the tail comes to next."""
        self._later = Later()
        self._waiting = Waiting()
        self.memory = PendingMemory(
            self.limits, fill=self._fill, take_back=self._take_back, give_room=self.give_room
        )
        self.turns = Turns(self.limits, clock)
        self._streams: dict[Watches, None] = {}
        self._noting: dict[Group, None] = {}
        """Groups that want progress notes, of those that are up to date."""
        self._pass_timer: Timer | None = None
        self._pass_soon = False
        self._passed_ns = 0
        self._notes_timer: Timer | None = None
        self._scanning = False
        self._closed = False

    # -- what the node calls

    @property
    def stream_count(self) -> int:
        """Streams that were opened and not closed."""
        return len(self._streams)

    @property
    def revision(self) -> int:
        """All changes up to it were given to the watches that are up to date."""
        return self._tail[0] - 1

    def open(self) -> Watches:
        """Return the watches of a new stream.

        Raises `ResourceExhaustedError` at the limit of streams, `ClosedError` when the node stops, or shows
        nothing.
        """
        if self._closed:
            raise ClosedError("this node is stopping")
        if self._withheld is not None:
            raise ClosedError(self._withheld.message)
        if len(self._streams) >= self.limits.streams:
            raise ResourceExhaustedError(
                f"{len(self._streams)} streams of watches are open at this node, its limit; put more watches "
                "into one stream, or use another node"
            )
        stream = Watches(self)
        self._streams[stream] = None
        return stream

    def applied(self) -> None:
        """Take note that a transaction was committed. Cheap; the work is done on a later turn of the loop."""
        if self.watch_count:
            self._schedule(PASS_NS)

    def state_replaced(self) -> None:
        """Take note that the state is another one, at a later revision: this node was sent a snapshot.

        Its history is the same, as far as it reaches back. But what the tail has not read of it, before the
        compacted revision, may have been swept where it comes from, and nothing held that up for the sake of
        watches here: those who want it end as compacted.
        """
        if self._closed:
            return
        try:
            with self._read() as tables:
                compacted = read_meta(tables).compacted_revision
        except RaftstateError as error:
            self._end_all(error)
            return
        self._see_compaction(compacted)
        if self._tail[0] < compacted:
            refusal = _compacted(self._tail[0], compacted)
            for stream in list(self._streams):
                for group in list(stream.up_to_date):
                    if group.first_revision < compacted:
                        self._end(group, refusal)
            self._tail = (compacted, 0)
        self._schedule(PASS_NS)

    def needs_before(self, revision: int) -> bool:
        """Return whether changes before `revision` were not read yet that watches which are up to date wait
        for: a moment later they will be. Until then none that another change took the place of may go."""
        first = self._later.first
        begins = first is not None and first < revision
        return self._tail[0] < revision and (bool(self._up_to_date) or begins)

    def close(self) -> None:
        """Stop: all streams are closed, and whoever waits for their news is told so.

        What runs beside the loop may still read for a moment.
        """
        self._closed = True
        for stream in list(self._streams):
            stream.close()
        self.turns.close()
        for timer in (self._pass_timer, self._notes_timer):
            if timer is not None:
                timer.cancel()

    def withhold(self, error: DataLossError) -> None:
        """Close all streams, with what they hold, and open none until `show`: the state can't be trusted.
        Clients go on elsewhere."""
        self._withheld = error
        for stream in list(self._streams):
            stream.close()

    def show(self) -> None:
        """Let watches begin again, on a state that may be another one."""
        if self._withheld is not None:
            self._withheld = None
            self._compacted = 0
            self._tail = (_FIRST_CHANGE, 0)

    # -- passes

    def _schedule(self, gap_ns: int) -> None:
        """Have a pass made `gap_ns` after the last one, if none is to come."""
        if self._pass_soon or self._closed:
            return
        self._pass_soon = True
        wait_ns = self._passed_ns + gap_ns - self._clock.monotonic_ns()
        if wait_ns <= 0:
            self._clock.call_soon(self._pass)
        else:
            self._pass_timer = self._clock.call_later(wait_ns / 1e9, self._pass)

    def _pass(self) -> None:
        self._pass_soon, self._pass_timer = False, None
        if self._closed or not self.watch_count or self._withheld is not None:
            return
        gap_ns, more = PASS_NS, False
        try:
            with self._read() as tables:
                meta = read_meta(tables)
                self._see_compaction(meta.compacted_revision)
                more = self._read_tail(tables, meta)
                more = self._read_near(tables, meta) or more
        except ResourceExhaustedError:
            gap_ns, more = RETRY_NS, True
        except RaftstateError as error:
            self._end_all(error)
        self._passed_ns = self._clock.monotonic_ns()
        if more:
            self._schedule(gap_ns)
        self._begin_scan()

    def _read_tail(self, tables: ReadTables, meta: Meta) -> bool:
        """Give a slice of new changes to those who are up to date; return whether there are more."""
        limits: SliceLimits | None = self.limits.on_loop
        while limits is not None:
            for group in self._later.take_due(self._tail[0]):
                self._up_to_date.add(*group.kind[:2], group)
            if not self._up_to_date:
                if self._move_tail(meta):
                    return False
                continue
            first = self._later.first
            until = None if first is None or first > meta.revision else (first, 0)
            new = read_slice(tables, meta, self._tail, until, self._up_to_date.find, limits)
            self._tail = new.position
            for found in new.found:
                for group in found.wanted_by:
                    # What was given before may have had its stream give up its events: it is behind then.
                    if group.cursor is None:
                        self._give(group, found)
            if new.error is not None:
                self._step_over(new.error, new.damaged_revision, meta)
                return True
            if not new.at_end:
                return True
            if until is None:
                self.applied_index = meta.applied_index
                return False
            limits = limits.less(new)
        return True

    def _move_tail(self, meta: Meta) -> bool:
        """Go to where a group begins, or to the end of the state: nobody is there to be given what is passed
        over. Return whether it is the end."""
        first = self._later.first
        if first is not None and first <= meta.revision:
            self._tail = max(self._tail, (first, 0))
            return False
        self._tail = (meta.revision + 1, 0)
        self.applied_index = meta.applied_index
        return True

    def _step_over(self, error: DataLossError, damaged_revision: int, meta: Meta) -> None:
        """End those who are up to date, since one of the next changes can't be read, and go on after it."""
        ended = self._missing(error, self._tail)
        self._tail = (min(damaged_revision, meta.revision) + 1, 0)
        for stream in list(self._streams):
            for group in list(stream.up_to_date):
                if group.first_revision <= damaged_revision:
                    self._end(group, ended)

    def _missing(self, error: DataLossError, position: Position) -> RaftstateError:
        """Say why changes from `position` on can't be read: they may only be compacted."""
        return _compacted(position[0], self._compacted) if position[0] < self._compacted else error

    # -- those who are behind

    def _read_near(self, tables: ReadTables, meta: Meta) -> bool:
        """Give a slice of changes just before the tail to those who are behind; return whether others are."""
        limits = self.limits.on_loop
        near = self._tail[0] - limits.changes
        start = self._waiting.first_from(near)
        if start is None:
            return False
        groups = self._waiting.take(start, limits.changes, self.limits.groups)
        self._take_slice(groups, read_slice(tables, meta, start, self._tail, finder(groups), limits))
        return self._waiting.first_from(near) is not None

    def _begin_scan(self) -> None:
        """Have a slice of changes far before the tail read, for those who have waited the longest for it."""
        start = self._waiting.longest_before(self._tail[0] - self.limits.on_loop.changes)
        if start is None or self._scanning or self._closed:
            return
        limits = self.limits.beside
        until = self._tail
        groups = self._waiting.take(start, limits.changes, self.limits.groups)
        self._scanning = True

        def job() -> tuple[Slice[Group], int] | RaftstateError:
            try:
                with self._read() as tables:
                    meta = read_meta(tables)
                    compacted = meta.compacted_revision
                    first = max(start, (compacted, 0))
                    return read_slice(tables, meta, first, until, finder(groups), limits), compacted
            except RaftstateError as error:
                return error

        self._beside(job, lambda result: self._scanned(groups, result))

    def _scanned(self, groups: list[Group], result: tuple[Slice[Group], int] | RaftstateError) -> None:
        self._scanning = False
        if self._closed:
            return
        gap_ns = PASS_NS
        if isinstance(result, ResourceExhaustedError):
            gap_ns = RETRY_NS
            for group in groups:
                self._settle(group, groups)
        elif isinstance(result, RaftstateError):
            for group in groups:
                if group.scan is groups:
                    self._end(group, result)
        else:
            old, compacted = result
            self._see_compaction(compacted)
            self._take_slice(groups, old)
        self._schedule(gap_ns)

    def _take_slice(self, groups: list[Group], old: Slice[Group]) -> None:
        """Give those who are behind what was read for them, and move them on."""
        for found in old.found:
            for group in found.wanted_by:
                if group.scan is groups and group.cursor is not None and group.cursor <= found.position:
                    self._give(group, found)
        for group in groups:
            if group.scan is not groups or group.cursor is None:
                continue
            if old.error is not None and group.cursor[0] <= old.damaged_revision:
                self._end(group, self._missing(old.error, old.position))
            else:
                group.cursor = max(group.cursor, old.position)
                self._settle(group, groups)

    def _settle(self, group: Group, scan: object = None) -> None:
        """Put a group that is behind where it belongs, after the slice that was read for it, if any."""
        if group.scan is not scan or group.cursor is None:
            return
        group.scan = None
        if group.cursor[0] < self._compacted:
            self._end(group, _compacted(group.cursor[0], self._compacted))
        elif group.cursor == self._tail:
            group.stream.behind.pop(group, None)
            self._join(group)
        else:
            group.stream.behind[group] = None
            if not group.stream.is_full:
                self._waiting.add(group)

    def _fall_behind(self, group: Group, cursor: Position) -> None:
        """Have a group read from the history, from `cursor` on."""
        if group.cursor is None:
            self._leave_tail(group)
        else:
            self._waiting.remove(group)
        group.cursor = cursor
        group.scan = None
        self._settle(group)

    def _join(self, group: Group) -> None:
        """Let the tail feed a group that wants no change before its position."""
        group.cursor = None
        group.stream.up_to_date[group] = None
        if group.first_revision > self._tail[0]:
            self._later.add(group)
        else:
            self._up_to_date.add(*group.kind[:2], group)
        if group.progress_notify:
            self._noting[group] = None
            self._look_for_notes_later()
        group.stream.join(group)

    def _leave_tail(self, group: Group) -> None:
        if not self._later.remove(group):
            self._up_to_date.remove(*group.kind[:2], group)
        self._noting.pop(group, None)
        group.stream.leave(group)

    def _see_compaction(self, compacted_revision: int) -> None:
        """End those who are behind what is compacted."""
        if compacted_revision <= self._compacted:
            return
        self._compacted = compacted_revision
        for stream in list(self._streams):
            for group in list(stream.behind):
                if group.cursor is not None and group.cursor[0] < compacted_revision:
                    self._end(group, _compacted(group.cursor[0], compacted_revision))

    # -- room

    def _give(self, group: Group, found: Found[Group]) -> None:
        """Add a change to what a group is to be told; or have it read again when there is room."""
        held = found.full if group.prev_kv else found.plain
        if held is None:
            raise InvariantError(f"the change at {found.position} was found for a watch, but not its event")
        if isinstance(held, DataLossError):
            self._end(group, held)
        elif not self.memory.hold(group, held, found.position):
            self._fall_behind(group, found.position)

    def _fill(self, stream: Watches) -> None:
        """Add nothing more to a stream, and read nothing for it."""
        stream.is_full = True
        for group in stream.behind:
            self._waiting.remove(group)

    def _take_back(self, stream: Watches) -> None:
        """Let go the events that a stream holds: they are read again when somebody asks for its news."""
        self._fill(stream)
        for group in list(stream.pending):
            self.memory.drop(group)
            if group.cursor != ENDED:
                self._fall_behind(group, group.since)

    def give_room(self, stream: Watches) -> None:
        """Go on with a stream that was full: somebody is about to take what it holds, or others have."""
        self.memory.forget(stream)
        if stream.is_full:
            stream.is_full = False
            for group in list(stream.behind):
                self._settle(group)
            if stream.behind:
                self._schedule(PASS_NS)

    # -- beginnings and ends

    def now_ns(self) -> int:
        """Return the clock's monotonic time."""
        return self._clock.monotonic_ns()

    def count_watch(self) -> None:
        """Count a watch that is being created. Raises `ResourceExhaustedError` at the limit of watches."""
        if self.watch_count >= self.limits.watches:
            raise ResourceExhaustedError(
                f"{self.watch_count} watches are open at this node, its limit; end some, or use another node"
            )
        self.watch_count += 1

    def uncount_watches(self, count: int) -> None:
        """Count watches no longer: they are gone, and that was told."""
        self.watch_count -= count

    def begin(self, stream: Watches, spec: WatchSpec) -> None:
        """Begin a watch, or end it at once. `start_revision` 0: with what is applied after now."""
        try:
            with self._read() as tables:
                meta = read_meta(tables)
        except RaftstateError as error:
            stream.end_watch(WatchEnd(spec.watch_id, error))
            return
        if not self._up_to_date:
            self._move_tail(meta)
        first = spec.start_revision or meta.revision + 1
        group = Group(stream, spec, first, self.now_ns())
        if first < meta.compacted_revision:
            refusal = _compacted(first, meta.compacted_revision)
            stream.end_watch(WatchEnd(spec.watch_id, refusal, meta.compacted_revision))
            return
        stream.begun(group, first)
        cursor = (max(first, _FIRST_CHANGE), 0)
        if cursor >= self._tail:
            self._join(group)
        else:
            group.cursor = cursor
            self._settle(group)
        self._schedule(PASS_NS)

    def _end(self, group: Group, error: RaftstateError) -> None:
        """End a group, after what it holds."""
        if isinstance(error, DataLossError):
            # First: if it has the node withhold all, the client goes on elsewhere, and is not told this end.
            self._clock.call_soon(partial(self._tell_damage, error))
        compacted = self._compacted if isinstance(error, OutOfRangeError) else 0
        for watch_id in group.ids:
            group.stream.end_watch(WatchEnd(watch_id, error, compacted))
        self.drop(group)

    def _tell_damage(self, error: DataLossError) -> None:
        self._on_damage(error)

    def _end_all(self, error: RaftstateError) -> None:
        for stream in list(self._streams):
            for group in [*stream.behind, *stream.up_to_date]:
                self._end(group, error)

    def drop(self, group: Group) -> None:
        """Forget a group. What it holds is still handed out. One that has ended already is forgotten."""
        if group.cursor is None:
            self._leave_tail(group)
        else:
            self._waiting.remove(group)
            group.stream.behind.pop(group, None)
        group.cursor = ENDED
        group.scan = None

    def forget(self, stream: Watches) -> None:
        """Forget a stream that is closed."""
        self._streams.pop(stream, None)
        stream.written()
        self.memory.forget(stream)

    # -- progress notes

    def _look_for_notes_later(self) -> None:
        if self._notes_timer is None and self._noting and not self._closed:
            self._notes_timer = self._clock.call_later(_NOTES_NS / 1e9, self._look_for_notes)

    def _look_for_notes(self) -> None:
        self._notes_timer = None
        due_ns = self._clock.monotonic_ns() - PROGRESS_NS
        for group in self._noting:
            if group.told_ns <= due_ns and not group.events:
                group.stream.noted[group] = None
                group.stream.wake()
        self._look_for_notes_later()


def _compacted(revision: int, compacted_revision: int) -> OutOfRangeError:
    return OutOfRangeError(
        f"the changes of revision {revision}, the next for this watch, are compacted; watch from "
        f"{compacted_revision} or later, and read what is there at that revision",
        field="start_revision",
        detail={"compacted_revision": compacted_revision},
    )
