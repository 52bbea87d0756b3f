"""The watches of a stream, over the tables of the fake node: as slow and as simple as it gets."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NoReturn

from raftstate.errors import ClosedError, InvalidArgumentError, OutOfRangeError, ResourceExhaustedError
from raftstate.machine.history import changes_from, key_value, previous_pair
from raftstate.machine.layout import Change, ChangeKind
from raftstate.machine.types import KeyValue
from raftstate.node.service import WatchEnd, WatchEvent, WatchNews, WatchSpec

if TYPE_CHECKING:
    from tests.rpc.fake_node import FakeNode


class FakeWatches:
    """Implements `NodeWatches`. `queued`: news to be told as they stand, before any others.

    `create_error`: what the next `create` fails with. `progress_requests`, `told`: how often it was asked for
    progress, and gave news. `is_closed`: whether the stream let go of it.
    """

    def __init__(self, node: FakeNode) -> None:
        self.queued: list[WatchNews] = []
        self.create_error: Exception | None = None
        self.timeouts_s: list[float] = []
        self.progress_requests = 0
        self.told = 0
        self.is_closed = False
        self.specs: dict[int, WatchSpec] = {}
        self._node = node
        self._next_revision: dict[int, int] = {}
        self._created: list[tuple[int, int]] = []
        self._ended: list[WatchEnd] = []
        self._wants_progress = False
        self._is_stopped = False
        self._woken = asyncio.Event()
        self.given_up: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def create(self, spec: WatchSpec, *, timeout_s: float) -> None:
        self.timeouts_s.append(timeout_s)
        if self.create_error is not None:
            error, self.create_error = self.create_error, None
            raise error
        if spec.watch_id in self.specs:
            raise InvalidArgumentError(f"watch_id {spec.watch_id} is that of an open watch", field="watch_id")
        self.wake()
        compacted_revision = self._node.compacted_revision
        if 0 < spec.start_revision < compacted_revision:
            error = OutOfRangeError(f"revision {spec.start_revision} is compacted", field="start_revision")
            self._ended.append(WatchEnd(spec.watch_id, error, compacted_revision))
            return
        start_revision = spec.start_revision or self._node.revision + 1
        self.specs[spec.watch_id] = spec
        self._next_revision[spec.watch_id] = start_revision
        self._created.append((spec.watch_id, start_revision))

    def cancel(self, watch_id: int) -> None:
        if self.specs.pop(watch_id, None) is not None:
            self._ended.append(WatchEnd(watch_id))
            self.wake()

    def request_progress(self) -> None:
        self.progress_requests += 1
        self._wants_progress = True
        self.wake()

    async def next(self) -> WatchNews:
        while True:
            if self._is_stopped:
                raise ClosedError("the node is stopping")
            news = self.queued.pop(0) if self.queued else self._news()
            if news.created or news.events or news.progress or news.ended:
                self.told += 1
                return news
            self._woken.clear()
            await self._woken.wait()

    async def until_given_up(self) -> NoReturn:
        raise ResourceExhaustedError(await self.given_up)

    def close(self) -> None:
        self.is_closed = True

    def wake(self) -> None:
        self._woken.set()

    def tell(self, news: WatchNews) -> None:
        self.queued.append(news)
        self.wake()

    def stop(self) -> None:
        self._is_stopped = True
        self.wake()

    def _news(self) -> WatchNews:
        revision = self._node.revision
        events = [((watch_id,), self._events(spec)) for watch_id, spec in self.specs.items()]
        news = WatchNews(
            revision,
            self._node.applied_index,
            created=self._created,
            events=[(ids, found) for ids, found in events if found],
            progress=list(self.specs) if self._wants_progress else (),
            ended=self._ended,
        )
        self._created, self._ended, self._wants_progress = [], [], False
        return news

    def _events(self, spec: WatchSpec) -> list[WatchEvent]:
        start_revision = self._next_revision[spec.watch_id]
        self._next_revision[spec.watch_id] = max(start_revision, self._node.revision + 1)
        return [
            self._event(spec, revision, change)
            for revision, _, change in changes_from(self._node.tables, start_revision)
            if spec.start <= change.key
            and (spec.end is None or change.key < spec.end)
            and not (spec.no_put if change.kind is ChangeKind.PUT else spec.no_delete)
        ]

    def _event(self, spec: WatchSpec, revision: int, change: Change) -> WatchEvent:
        previous = None
        if spec.prev_kv:
            previous = previous_pair(self._node.tables, revision, change, self._node.compacted_revision)
        if change.kind is ChangeKind.DELETE:
            return WatchEvent(True, KeyValue(change.key, b"", 0, revision, 0), previous)
        return WatchEvent(False, key_value(change, revision), previous)
