"""Watches: the changes to keys, each once and in order, whatever becomes of the nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from raftstate.client import limits
from raftstate.client.limits import Key
from raftstate.client.requests import interval_to_read
from raftstate.client.watch_inbox import EventKind, Inbox, WatchEvent
from raftstate.client.watch_stream import Watcher
from raftstate.errors import (
    ClosedError,
    DeadlineError,
    FailedPreconditionError,
    InvalidArgumentError,
    RaftstateError,
)
from raftstate.pb.v1 import watch_pb2


def watch_request(
    key: Key | None,
    range_end: Key | None,
    prefix: Key | None,
    start_revision: int | None,
    prev_kv: bool,
    kinds: EventKind | None,
) -> watch_pb2.WatchCreate:
    """Return what a watch asks for. Raises `InvalidArgumentError`."""
    if kinds not in (None, "put", "delete"):
        raise InvalidArgumentError(f'kinds must be None, "put" or "delete", got {kinds!r}', field="kinds")
    first, end = _interval(key, range_end, prefix)
    if start_revision is not None:
        limits.check_count(start_revision, "start_revision", 1, limits.COUNT_MAX)
    return watch_pb2.WatchCreate(
        key=first,
        range_end=end,
        start_revision=start_revision or 0,
        prev_kv=limits.check_flag(prev_kv, "prev_kv"),
        progress_notify=True,
        no_put=kinds == "delete",
        no_delete=kinds == "put",
    )


def _interval(key: Key | None, range_end: Key | None, prefix: Key | None) -> tuple[bytes, bytes]:
    """Return (key, range_end) of the wire."""
    if prefix is not None:
        if key is not None or range_end is not None:
            raise InvalidArgumentError("give key and range_end, or prefix, not both", field="prefix")
        return limits.prefix_interval(prefix)
    if key is not None and range_end is None:
        return limits.encode_key(key), b""
    first, end = interval_to_read(key, range_end, None)
    if range_end is not None and end <= first:
        raise InvalidArgumentError(
            f"range_end must lie above key, or nothing can happen between them: got key {key!r}, range_end"
            f" {range_end!r}",
            field="range_end",
        )
    return first, end


class AsyncWatch:
    """The changes to a key, an interval or a prefix: `async for event in watch`.

    It begins with `async with`, which waits until a node has created it, or with the first event that is
    asked for. It ends with `async with`, with `close`, or when nobody holds it any more. In between it goes
    on by itself when its node goes away: no change is missed and none comes twice. Of the events that nobody
    takes it keeps 4 MiB; it fetches the others when those are taken.

    The iteration ends when the watch was closed, and raises:

    Raises:
        OutOfRangeError: the revision to go on from is compacted; `detail["compacted_revision"]` is the first
            from which a watch can begin. All events received before come first.
        ClosedError: the client was closed.
        WrongClusterError: a node belongs to another cluster than those that answered before.
        FailedPreconditionError: the watch belongs to another event loop or process.
        RaftstateError: what else a node refuses for good.

    Any number of tasks may take its events; each event goes to one of them.
    """

    def __init__(
        self, connect: Callable[[], Watcher], request: watch_pb2.WatchCreate, timeout_s: float
    ) -> None:
        self._connect = connect
        self._timeout_s = timeout_s
        self._watcher: Watcher | None = None
        self._inbox = Inbox(request)
        self._closed = False

    @property
    def revision(self) -> int:
        """All events up to this revision, and of it, were handed out.

        A later watch with `start_revision=watch.revision + 1` goes on from here. 0: it has not begun.
        """
        return self._inbox.handed_out

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    async def __aenter__(self) -> Self:
        await self.begin(self._timeout_s)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchEvent:
        try:
            return await self.next()
        except ClosedError:
            if self._closed:
                raise StopAsyncIteration from None
            raise

    async def begin(self, timeout: float | None = None) -> None:
        """Wait until a node has created the watch; one that ever was, is.

        Args:
            timeout: in seconds; None: as long as it takes.

        Raises:
            NoLeaderError: no node was reached in time; its message says which were tried.
            DeadlineError: a node was, and did not create it in time.
            RaftstateError: else as the iteration.
        """
        timeout_s = None if timeout is None else limits.check_timeout(timeout)
        watcher = self._begun()
        inbox = self._inbox
        try:
            async with asyncio.timeout(timeout_s):
                while not inbox.created:
                    if inbox.error is not None:
                        raise _copy(inbox.error)
                    await self._news()
        except TimeoutError:
            await self.close()
            raise watcher.late(timeout_s or 0) from None
        except BaseException:
            await self.close()
            raise

    async def next(self, timeout: float | None = None) -> WatchEvent:
        """Return the next event. Cancelled, it loses none.

        Args:
            timeout: in seconds; None: as long as it takes.

        Raises:
            DeadlineError: none came in time; the watch goes on.
            ClosedError: the watch, or the client, was closed.
            RaftstateError: else as the iteration.
        """
        event = self.take()
        while event is None:
            await self.arrival(timeout)
            event = self.take()
        return event

    async def close(self) -> None:
        """End the watch. Whoever waits for an event of it, waits no more; events not taken are dropped."""
        self._closed = True
        if self._watcher is not None:
            self._watcher.remove(self._inbox)
        self._inbox.drop()
        self._inbox.end(ClosedError("the watch was closed"))

    def __del__(self) -> None:
        # May run on any thread, and after the loop has gone.
        if self._watcher is not None and not self._closed:
            self._watcher.remove_soon(self._inbox)

    # ---- for the face for threads, too

    def take(self) -> WatchEvent | None:
        """Return the next event if there is one now; None: there may be one later. From any one thread.

        Raises as `next`.
        """
        error = self._inbox.error  # read first: its last events stand there by then
        event = self._inbox.take()
        if event is None and error is not None:
            raise _copy(error)
        self._refill()
        return event

    async def arrival(self, timeout: float | None, waited_s: float = 0.0) -> None:
        """Wait until there is an event, or the watch has ended. Arguments and errors as `next`.

        `waited_s`: how much of the timeout has passed, if others have taken what came in it.
        """
        timeout_s = None if timeout is None else limits.check_timeout(timeout)
        inbox = self._inbox
        if inbox.events or inbox.error is not None:
            return
        watcher = self._begun()
        self._refill()  # by now the consumer may have taken all, while it was being parked
        left_s = None if timeout_s is None else max(0.0, timeout_s - waited_s)
        try:
            async with asyncio.timeout(left_s):
                while not inbox.events and inbox.error is None:
                    await self._news()
        except TimeoutError:
            raise DeadlineError(f"no event came within {timeout_s:g} s; {watcher.standing}") from None

    async def _news(self) -> None:
        news = self._inbox.news
        news.clear()
        await news.wait()

    def _begun(self) -> Watcher:
        """Return the watcher that the watch belongs to; the first call begins the watch."""
        if self._closed:
            raise ClosedError("the watch was closed; begin another")
        watcher = self._connect()
        if self._watcher is None:
            watcher.add(self._inbox)
            self._watcher = watcher
        elif self._watcher is not watcher:
            raise FailedPreconditionError(
                "this watch was begun in another process, before a fork; begin another here"
            )
        return watcher

    def _refill(self) -> None:
        if self._watcher is not None and self._inbox.wants_more:
            self._watcher.refill_soon(self._inbox)


def _copy(error: RaftstateError) -> RaftstateError:
    """Return the same error anew: each that is raised has a traceback of its own."""
    return type(error)(error.message, field=error.field, detail=error.detail)
