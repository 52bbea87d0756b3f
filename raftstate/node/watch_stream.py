"""The watches of one stream, and what it has still to be told.

Watches that want the same, and have been told the same, are one group: an event stands once for all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

from raftstate.errors import ClosedError, InvalidArgumentError, RaftstateError, ResourceExhaustedError
from raftstate.node.service import WatchEnd, WatchEvent, WatchNews, WatchSpec
from raftstate.node.watch_scan import Held, Position

if TYPE_CHECKING:
    from raftstate.node.watches import WatchHub

ENDED: Position = (0, 0)
"""Stands for the cursor of a group that has ended."""

Kind = tuple[bytes, bytes | None, bool, bool, bool, bool]
"""What watches of one group have in common."""


class Group:
    """Watches of one stream that want the same, and have been told the same.

    `cursor` says where it stands. None: up to date, fed by the hub's tail. Else it is behind, and that is the
    first change that it has neither been told nor holds in `events`.
    """

    __slots__ = (
        "cursor",
        "events",
        "first_revision",
        "ids",
        "kind",
        "no_delete",
        "no_put",
        "prev_kv",
        "progress_notify",
        "scan",
        "since",
        "stream",
        "told_ns",
    )

    def __init__(self, stream: Watches, spec: WatchSpec, first_revision: int, now_ns: int) -> None:
        self.stream = stream
        self.kind: Kind = (
            spec.start,
            spec.end,
            spec.prev_kv,
            spec.progress_notify,
            spec.no_put,
            spec.no_delete,
        )
        self.prev_kv = spec.prev_kv
        self.progress_notify = spec.progress_notify
        self.no_put = spec.no_put
        self.no_delete = spec.no_delete
        self.ids = [spec.watch_id]
        self.first_revision = first_revision
        """Changes before it are not wanted."""
        self.cursor: Position | None = None
        self.scan: object | None = None
        """The slice of the history that is being read for it. Whatever moves the cursor meanwhile takes it
        away, and the slice then counts for nothing."""
        self.events: list[Held] = []
        self.since: Position = ENDED
        """Of the first of `events`."""
        self.told_ns = now_ns
        """When it was last told events, or that there are none."""


class _Creating:
    """Stands for a watch whose beginning is being confirmed."""


class Watches:
    """Implements `service.NodeWatches`. Made by `WatchHub.open`.

    What is not `NodeWatches` is there for the hub.
    """

    def __init__(self, hub: WatchHub) -> None:
        self._hub = hub
        self._watches: dict[int, Group | _Creating | None] = {}
        """None: ended, and not told yet, so that its id may not be used again."""
        self._created: list[tuple[int, int]] = []
        self._ended: list[WatchEnd] = []
        self._progress_requested = False
        self._wake = asyncio.Event()
        self._closed = False
        self._given_up: asyncio.Future[str] | None = None
        """Resolved with the reason. Made by who waits for it."""
        self.is_read = False
        """Whether somebody waits in `next`."""
        self.is_full = False
        """Whether something did not fit. Until there is room, nothing is added, and nothing read for it."""
        self.pending: dict[Group, None] = {}
        """Groups that hold events."""
        self.pending_bytes = 0
        """Of the events in `pending`, and of those that were handed out and are not written yet."""
        self.handed_bytes = 0
        """Of the latter."""
        self.behind: dict[Group, None] = {}
        self.up_to_date: dict[Group, None] = {}
        self.noted: dict[Group, None] = {}
        """Groups that a progress note is due for."""
        self._main: dict[Kind, Group] = {}
        """Of the groups that are up to date, the one that others of its kind join."""
        self._apart: dict[Group, None] = {}
        """Groups that are up to date, and will join another one once neither holds events."""

    # -- what services call

    async def create(self, spec: WatchSpec, *, timeout_s: float) -> None:
        """See `service.NodeWatches.create`. Raises `ClosedError` when the node stops."""
        self._require_open()
        if spec.watch_id in self._watches:
            raise InvalidArgumentError(
                f"this stream has a watch {spec.watch_id}, whose end it was not told; choose another id",
                field="watch_id",
            )
        self._hub.count_watch()
        creating = self._watches[spec.watch_id] = _Creating()
        try:
            if not spec.start_revision:
                await self._hub.confirm(timeout_s)
        except RaftstateError as error:
            if self._watches.get(spec.watch_id) is creating:
                self.end_watch(WatchEnd(spec.watch_id, error))
            return
        except BaseException:
            if self._watches.get(spec.watch_id) is creating:
                del self._watches[spec.watch_id]
                self._hub.uncount_watches(1)
            raise
        if self._watches.get(spec.watch_id) is creating:
            self._hub.begin(self, spec)

    def cancel(self, watch_id: int) -> None:
        """See `service.NodeWatches.cancel`."""
        watch = self._watches.get(watch_id)
        if watch is None:
            return
        if isinstance(watch, Group):
            watch.ids.remove(watch_id)
            if not watch.ids:
                self._hub.memory.drop(watch)
                self._hub.drop(watch)
        self.end_watch(WatchEnd(watch_id))

    def request_progress(self) -> None:
        """See `service.NodeWatches.request_progress`."""
        self._progress_requested = True
        self._wake.set()

    async def next(self) -> WatchNews:
        """See `service.NodeWatches.next`. One caller at a time. Raises `ClosedError` also after `close`."""
        self.is_read = True
        hub = self._hub
        try:
            self.written()
            hub.give_room(self)
            while True:
                self._require_open()
                self._wake.clear()
                if not self._has_news():
                    await self._wake.wait()
                    continue
                await hub.turns.wait(self)
                self._require_open()
                if self._has_news():  # not all of what there was may be there still
                    return self._take()
                hub.turns.leave(self)
        finally:
            self.is_read = False

    async def until_given_up(self) -> NoReturn:
        """See `service.NodeWatches.until_given_up`. One caller."""
        self._given_up = asyncio.get_running_loop().create_future()
        raise ResourceExhaustedError(await self._given_up)

    def close(self) -> None:
        """See `service.NodeWatches.close`. A second time it does nothing."""
        if self._closed:
            return
        self._closed = True
        for group in [*self.pending, *self.behind, *self.up_to_date]:
            self._hub.memory.drop(group)
            self._hub.drop(group)
        self._hub.uncount_watches(len(self._watches))
        self._watches.clear()
        self._hub.forget(self)
        self._wake.set()

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError("the stream of watches is closed, or this node is stopping")

    # -- what is told

    def _has_news(self) -> bool:
        return bool(
            self._created or self.pending or self._ended or self._progress_requested or any(self._notes())
        )

    def _notes(self) -> Iterator[Group]:
        """Yield the groups that can be said to have been told all, of those of which that should be said."""
        for group in self.up_to_date if self._progress_requested else self.noted:
            # One that has begun, or begins next, which no note can be too early for.
            if group.cursor is None and group.first_revision <= self._hub.revision + 1:
                yield group

    def _take(self) -> WatchNews:
        """Hand out all that is pending."""
        hub = self._hub
        events: list[tuple[tuple[int, ...], list[WatchEvent]]] = []
        now_ns = hub.now_ns()
        for group in list(self.pending):
            events.append((tuple(group.ids), [held.event for held in group.events]))
            group.told_ns = now_ns
        hub.memory.hand_out(self)
        progress: list[int] = []
        for group in self._notes():
            progress += group.ids
            group.told_ns = now_ns
        created, ended = self._created, self._ended
        self._created, self._ended, self._progress_requested = [], [], False
        self.noted.clear()
        for end in ended:
            del self._watches[end.watch_id]
        hub.uncount_watches(len(ended))
        for group in list(self._apart):
            self.join(group)
        return WatchNews(
            revision=hub.revision,
            applied_index=hub.applied_index,
            created=created,
            events=events,
            progress=progress,
            ended=ended,
        )

    # -- what the hub calls

    @property
    def waiting_bytes(self) -> int:
        """Of the events that were not handed out yet."""
        return self.pending_bytes - self.handed_bytes

    def written(self) -> None:
        """Take note that the news handed out last were written, and let go."""
        self._hub.memory.written(self)
        self._hub.turns.leave(self)

    def give_up(self, reason: str) -> None:
        """Close, and tell whoever serves the stream why."""
        if self._given_up is not None and not self._given_up.done():
            self._given_up.set_result(reason)
        self.close()

    def wake(self) -> None:
        """Have `next` look for news."""
        self._wake.set()

    def begun(self, group: Group, first_revision: int) -> None:
        """Take note that a watch, the only one of `group`, was created."""
        [watch_id] = group.ids
        self._watches[watch_id] = group
        self._created.append((watch_id, first_revision))
        self._wake.set()

    def end_watch(self, end: WatchEnd) -> None:
        """Take note that a watch has ended."""
        self._watches[end.watch_id] = None
        self._ended.append(end)
        self._wake.set()

    def join(self, group: Group) -> None:
        """Make a group that is up to date one with another of its kind, now or when their events are gone."""
        main = self._main.get(group.kind)
        self._apart.pop(group, None)
        if main is group:
            return
        if group.first_revision > self._hub.revision + 1:
            # It does not want yet what others want.
            self._apart[group] = None
        elif main is None:
            self._main[group.kind] = group
        elif main.events or group.events:
            self._apart[group] = None
        else:
            for watch_id in group.ids:
                self._watches[watch_id] = main
            main.ids += group.ids
            group.ids = []
            self._hub.drop(group)

    def leave(self, group: Group) -> None:
        """Take a group that is up to date no longer from those that are."""
        self.up_to_date.pop(group, None)
        self._apart.pop(group, None)
        self.noted.pop(group, None)
        if self._main.get(group.kind) is group:
            del self._main[group.kind]
