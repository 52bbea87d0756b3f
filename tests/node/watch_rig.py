"""A hub of watches over a real machine in memory; its clock and its thread move when they are told to."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from raftstate.errors import RaftstateError
from raftstate.machine.tables import ReadTables
from raftstate.machine.types import CompactTo
from raftstate.node.service import WatchEnd, WatchEvent, WatchNews, WatchSpec
from raftstate.node.watch_match import prefix_end
from raftstate.node.watch_memory import WatchLimits
from raftstate.node.watch_scan import SliceLimits
from raftstate.node.watch_stream import Watches
from raftstate.node.watches import WatchHub
from raftstate.pb.v1.pipeline_pb2 import Command
from tests.machine.rig import Rig, delete, put

SMALL = WatchLimits(
    stream_bytes=4_000,
    total_bytes=9_000,
    groups=5,
    on_loop=SliceLimits(changes=4, size_bytes=2_000, matches=12),
    beside=SliceLimits(changes=7, size_bytes=3_000, matches=9),
)


class ManualTimer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class ManualClock:
    def __init__(self) -> None:
        self.now_ns = 10**12
        self.soon: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[int, int, ManualTimer]] = []
        self._order = count()

    def monotonic_ns(self) -> int:
        return self.now_ns

    boot_ns = wall_ns = monotonic_ns

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> ManualTimer:
        timer = ManualTimer(callback)
        heapq.heappush(self._timers, (self.now_ns + round(delay_s * 1e9), next(self._order), timer))
        return timer

    def turn(self) -> None:
        """Call what waits for the loop's next turn."""
        for _ in range(len(self.soon)):
            self.soon.popleft()()

    def advance(self, seconds: float) -> None:
        """Let time pass, and call what becomes due."""
        end_ns = self.now_ns + round(seconds * 1e9)
        self.turn()
        while self._timers and self._timers[0][0] <= end_ns:
            self.now_ns, _, timer = heapq.heappop(self._timers)
            if timer.callback is not None:
                timer.callback()
            self.turn()
        self.now_ns = end_ns


class WatchRig:
    """`jobs`: what was given to the thread. It runs when `run_job` is called."""

    def __init__(self, limits: WatchLimits | None = None) -> None:
        self.machine_rig = Rig()
        self.machine = self.machine_rig.machine
        self.clock = ManualClock()
        self.jobs: deque[tuple[Callable[[], Any], Callable[[Any], None]]] = deque()
        self.reads = 0
        self.read_failure: RaftstateError | None = None
        self.confirmed: list[float] = []
        self.confirm_failure: BaseException | None = None
        self.on_confirm: Callable[[], None] = lambda: None
        self.hub = WatchHub(self._read, self.clock, self._beside, self._confirm, limits)

    @contextmanager
    def _read(self) -> Iterator[ReadTables]:
        if self.read_failure is not None:
            raise self.read_failure
        self.reads += 1
        yield self.machine_rig.tables

    def _beside(self, job: Callable[[], Any], done: Callable[[Any], None]) -> None:
        self.jobs.append((job, done))

    async def _confirm(self, timeout_s: float) -> None:
        self.confirmed.append(timeout_s)
        self.on_confirm()
        if self.confirm_failure is not None:
            raise self.confirm_failure

    def run_job(self) -> None:
        job, done = self.jobs.popleft()
        done(job())

    def settle(self) -> None:
        """Do all that can be done without anybody reading."""
        for _ in range(10_000):
            self.clock.advance(0.002)
            if self.jobs:
                self.run_job()
            elif not self.clock.soon and not self.hub._pass_soon:
                return
        raise AssertionError("the hub never comes to rest")

    # -- what happens to the state

    def write(self, *commands: Command) -> None:
        """Apply one batch."""
        self.machine_rig.write(*commands)
        self.hub.applied()

    def put(self, key: bytes, value: bytes = b"v") -> int:
        """Put one key; return the revision."""
        self.write(put(1, key, value))
        return self.machine.revision

    def delete(self, key: bytes, range_end: bytes = b"") -> int:
        """Delete a key or a range; return the revision."""
        self.write(delete(1, key, range_end))
        return self.machine.revision

    def compact(self, revision: int) -> None:
        self.machine_rig.run(CompactTo(revision))
        self.hub.applied()

    def sweep(self) -> None:
        """Take away what is compacted, as far as the hub lets it go."""
        while self.machine.sweep_pending and not self.hub.needs_before(self.machine.compacted_revision):
            with self.machine_rig.tables.write() as tables:
                self.machine.sweep(tables, 1_000)


def spec(
    watch_id: int,
    key: bytes,
    *,
    prefix: bool = False,
    end: bytes | None = b"",
    start: int = 0,
    prev_kv: bool = False,
    progress_notify: bool = False,
    no_put: bool = False,
    no_delete: bool = False,
) -> WatchSpec:
    """A watch of one key; of a prefix; or of all up to `end`."""
    if prefix:
        end = prefix_end(key)
    elif end == b"":
        end = key + b"\x00"
    return WatchSpec(watch_id, key, end, start, prev_kv, progress_notify, no_put, no_delete)


async def create(stream: Watches, wanted: WatchSpec) -> None:
    await stream.create(wanted, timeout_s=1.5)


async def created(stream: Watches, *wanted: WatchSpec) -> None:
    """Create watches, and take the news that they were."""
    for each in wanted:
        await create(stream, each)
    news = poll(stream)
    assert news is not None
    assert [watch_id for watch_id, _ in news.created] == [each.watch_id for each in wanted]


def poll(stream: Watches) -> WatchNews | None:
    """Return the news that there are at this moment, which count as written, or None: there are none."""
    reader = Reader(stream)
    try:
        return reader.read()
    finally:
        reader.stop()
        stream.written()


class Reader:
    """Somebody who waits for the news of a stream, over any number of steps of a test."""

    def __init__(self, stream: Watches) -> None:
        self._stream = stream
        self._next: Coroutine[Any, Any, WatchNews] | None = None

    def read(self) -> WatchNews | None:
        """Return the news that there are, or begin to wait, or wait on."""
        if self._next is None:
            self._next = self._stream.next()
        elif not self._stream._wake.is_set():
            return None
        try:
            self._next.send(None)
        except StopIteration as done:
            self._next = None
            news: WatchNews = done.value
            return news
        return None

    def stop(self) -> None:
        if self._next is not None:
            self._next.close()
            self._next = None


def says(news: WatchNews | None) -> dict[str, object]:
    """Return what news hold, without what they have nothing of."""
    assert news is not None
    parts: dict[str, list[object]] = {
        "created": list(news.created),
        "events": list(news.events),
        "progress": list(news.progress),
        "ended": list(news.ended),
    }
    head = {"revision": news.revision, "applied_index": news.applied_index}
    return head | {name: part for name, part in parts.items() if part}


def told(news: WatchNews | None) -> dict[int, list[tuple[int, bytes, bytes | None]]]:
    """Return what each watch is told: (revision, key, value; None: deleted)."""
    result: dict[int, list[tuple[int, bytes, bytes | None]]] = {}
    for watch_ids, events in [] if news is None else news.events:
        for watch_id in watch_ids:
            result.setdefault(watch_id, []).extend(short(event) for event in events)
    return result


def short(event: WatchEvent) -> tuple[int, bytes, bytes | None]:
    return event.kv.mod_revision, event.kv.key, None if event.is_delete else event.kv.value


def ends(news: WatchNews | None) -> list[tuple[int, str, int]]:
    """Return (watch id, name of the error, compacted revision)."""
    ended: list[WatchEnd] = [] if news is None else list(news.ended)
    return [(end.watch_id, type(end.error).__name__, end.compacted_revision) for end in ended]
