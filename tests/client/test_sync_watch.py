"""Watches for threads."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
from collections.abc import AsyncIterator, Callable
from typing import cast

import pytest

import raftstate
from raftstate.client import watch_inbox
from raftstate.client.sync_watch import Watch
from raftstate.client.watch import AsyncWatch
from raftstate.errors import ClosedError, DeadlineError, InvalidArgumentError
from tests.client.watched_cluster import WatchedCluster


@pytest.fixture
async def cluster(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WatchedCluster]:
    async with WatchedCluster(monkeypatch) as cluster:
        yield cluster


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - of a fake, which has no events for it
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("name", ["watch", "lock", "election"])
def test_the_faces_take_the_same_arguments(name: str) -> None:
    here, there = (
        inspect.signature(getattr(kind, name)) for kind in (raftstate.Client, raftstate.AsyncClient)
    )
    assert here.parameters == there.parameters


async def test_a_thread_iterates_over_events(cluster: WatchedCluster) -> None:
    def use() -> None:
        with raftstate.connect(cluster.url) as store:
            with store.watch(prefix="k") as watch:
                store.put("k1", b"1")
                store.put("k2", b"2")
                store.delete("k1")
                got = [next(watch) for _ in range(3)]
                assert [(event.kind, event.key) for event in got] == [
                    ("put", b"k1"),
                    ("put", b"k2"),
                    ("delete", b"k1"),
                ]
                assert watch.revision == got[-1].revision - 1
                with pytest.raises(DeadlineError):
                    watch.next(timeout=0.05)
            assert list(watch) == []
            with pytest.raises(ClosedError):
                watch.next()
            for event in store.watch("k2", start_revision=1, kinds="put"):
                assert event.value == b"2"
                break
            with pytest.raises(InvalidArgumentError):
                store.watch("")

    await asyncio.to_thread(use)


async def test_a_closed_watch_tells_what_was_handed_out(cluster: WatchedCluster) -> None:
    def use() -> None:
        with raftstate.connect(cluster.url) as store:
            with store.watch(prefix="k") as watch:
                results = store.put_many((f"k{number}", b"") for number in range(5))
                assert watch.next().revision == results[0].revision
                arrived.wait(5)
            assert watch.revision == results[0].revision

    arrived = threading.Event()
    using = asyncio.create_task(asyncio.to_thread(use))
    await until(lambda: len(cluster.history) == 5)
    arrived.set()
    await using


class Contended:
    """A watch of which another thread takes each event just before. Each took 4 s to arrive."""

    def __init__(self, clock: list[float]) -> None:
        self.clock = clock
        self.waited_s: list[float] = []

    def take(self) -> None:
        return None

    async def arrival(self, timeout: float, waited_s: float) -> None:
        self.waited_s.append(waited_s)
        if waited_s + 4 > timeout:
            raise DeadlineError("no event came")
        self.clock[0] += 4


def test_a_thread_whose_events_others_take_waits_no_longer_than_it_wants_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [1_000.0]
    monkeypatch.setattr("raftstate.client.sync_watch.monotonic", lambda: clock[0])
    inner = Contended(clock)
    with pytest.raises(DeadlineError):
        Watch(cast(AsyncWatch, inner), asyncio.run).next(timeout=10)
    assert inner.waited_s == [0, 4, 8]


async def test_a_watch_waits_for_what_is_left_of_its_time(cluster: WatchedCluster) -> None:
    async with cluster.connect() as store, store.watch("k") as watch:
        with pytest.raises(DeadlineError, match="no event came within 1000 s"):
            await watch.arrival(1_000, 1_000)


async def test_closing_from_another_thread_ends_a_blocked_iteration(cluster: WatchedCluster) -> None:
    store = raftstate.connect(cluster.url)
    watch = store.watch("k")
    reading = asyncio.create_task(asyncio.to_thread(list, watch))
    await until(lambda: cluster.watches and cluster.watched_keys(0))
    await asyncio.to_thread(watch.close)
    assert await reading == []
    other = asyncio.create_task(asyncio.to_thread(list, store.watch("k")))
    await until(lambda: cluster.watched_keys(0))
    await asyncio.to_thread(store.close)
    with pytest.raises(ClosedError):
        await other


async def test_threads_share_a_watch_that_is_parked_now_and_then(
    cluster: WatchedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_inbox, "BYTES_MAX", 8 * watch_inbox.EVENT_BYTES)
    got: list[int] = []
    done = threading.Event()

    def read(watch: raftstate.Watch) -> None:
        for event in watch:
            got.append(event.revision)
            if len(got) == 600:
                done.set()

    def write(store: raftstate.Client) -> None:
        store.put("k", b"")
        got.append(watch.next().revision)
        store.put_many([(f"k{number}", b"") for number in range(599)])

    with raftstate.connect(cluster.url) as store:
        watch = store.watch(prefix="k", start_revision=1)
        await asyncio.to_thread(write, store)
        await until(lambda: watch._inner._inbox.parked)
        readers = [asyncio.create_task(asyncio.to_thread(read, watch)) for _ in range(3)]
        await asyncio.to_thread(done.wait, 20)
        assert sorted(got) == list(range(2, 602))
        assert watch.revision >= 600
        await asyncio.to_thread(watch.close)
        await asyncio.gather(*readers)
        assert len(cluster.watches[0].nodes[0].streams[0].creates()) > 1


async def test_a_watch_that_nobody_holds_any_more_ends_at_its_node(cluster: WatchedCluster) -> None:
    def use(store: raftstate.Client) -> None:
        store.put("k", b"")
        for _ in store.watch("k", start_revision=1):
            break

    with raftstate.connect(cluster.url) as store:
        await asyncio.to_thread(use, store)
        gc.collect()
        await until(lambda: cluster.watches[0].nodes[0].streams[0].cancels() == [1])
        await asyncio.to_thread(store.close)
