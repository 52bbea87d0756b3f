"""Elections: who leads, with which value, and who sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
import pytest

import raftstate
from raftstate.errors import (
    ClosedError,
    DataLossError,
    DeadlineError,
    FailedPreconditionError,
    InvalidArgumentError,
    LockLostError,
)
from tests.client.watched_cluster import WatchedCluster


@pytest.fixture
async def cluster(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WatchedCluster]:
    async with WatchedCluster(monkeypatch) as cluster:
        yield cluster


@pytest.fixture
async def store(cluster: WatchedCluster) -> AsyncIterator[raftstate.AsyncClient]:
    async with cluster.connect() as store:
        yield store


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - of a fake, which has no events for it
            await asyncio.sleep(0.001)


async def test_one_candidate_leads_and_the_next_follows(
    cluster: WatchedCluster, store: raftstate.AsyncClient
) -> None:
    election = store.election("boss")
    assert await election.leader() is None
    async with election.campaign(b"one") as first:
        leader = await election.leader()
        assert leader is not None
        assert (leader.key, leader.value, leader.create_revision) == (first.key, b"one", first.token)
        first.check()
        token = first.token

        async def campaign() -> object:
            return await election.campaign(b"two")

        other = asyncio.create_task(campaign())
        await until(lambda: len(cluster.keys()) == 2)
        with pytest.raises(DeadlineError, match=r"election 'boss' was not free within 0\.05 s"):
            await election.campaign(b"three", timeout=0.05)
        assert not other.done()
    second = await other
    assert isinstance(second, raftstate.AsyncLeadership)
    assert second.token > token
    leader = await election.leader()
    assert leader is not None
    assert leader.value == b"two"
    async with second:
        second.check()
    assert cluster.keys() == []
    with pytest.raises(FailedPreconditionError, match="election 'boss' is not held"):
        await second.resign()


async def test_a_leader_proclaims_other_values_until_it_has_lost(store: raftstate.AsyncClient) -> None:
    election = store.election("boss")
    leadership = await election.campaign(b"one")
    await leadership.proclaim(b"uno")
    leader = await election.leader()
    assert leader is not None
    assert (leader.value, leader.create_revision, leader.lease) == (
        b"uno",
        leadership.token,
        leadership._held().lease.id,
    )
    leadership._held()._stop_guard()
    await store.delete(leadership.key)
    with pytest.raises(LockLostError, match="election 'boss' is lost"):
        await leadership.proclaim(b"eins")
    assert await election.leader() is None
    with pytest.raises(InvalidArgumentError):
        await leadership.proclaim("text")  # type: ignore[arg-type]


async def test_a_leader_whose_key_is_deleted_is_told(store: raftstate.AsyncClient) -> None:
    async def lead() -> None:
        async with store.election("boss").campaign(b"one") as leadership:
            await store.delete(leadership.key)
            await asyncio.Event().wait()

    task = asyncio.create_task(lead())
    await until(task.done)
    with pytest.raises(LockLostError):
        await task


async def test_a_leadership_that_was_lost_before_it_is_entered_ends_at_once(
    store: raftstate.AsyncClient,
) -> None:
    leadership = await store.election("boss").campaign(b"one")
    await store.delete(leadership.key)
    await until(lambda: leadership._interrupted)

    async def lead() -> None:
        async with leadership:
            await asyncio.Event().wait()

    task = asyncio.create_task(lead())
    await until(task.done)
    with pytest.raises(LockLostError):
        await task


async def test_a_leadership_that_was_lost_before_it_is_entered_cancels_nobody(
    cluster: WatchedCluster, store: raftstate.AsyncClient
) -> None:
    leadership = await store.election("boss").campaign(b"one")
    await store.delete(leadership.key)
    await until(lambda: leadership._interrupted)
    with pytest.raises(LockLostError, match="its key was deleted"):
        async with leadership:
            raise AssertionError("entered")
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)
    async with leadership:
        assert cluster.keys() == [leadership.key]


async def test_observers_see_each_leader_and_each_value_wherever_streams_break(
    cluster: WatchedCluster, store: raftstate.AsyncClient
) -> None:
    election = store.election("boss")
    seen: list[bytes] = []

    async def observe() -> None:
        async for leader in election.observe():
            seen.append(leader.value)  # noqa: PERF401 - each as it comes

    watcher = asyncio.create_task(observe())
    await store.put("boss/other/0000000000000001", b"no candidate of this election")
    async with election.campaign(b"1") as leadership:
        await until(lambda: seen == [b"1"])
        await leadership.proclaim(b"1b")
        await until(lambda: seen == [b"1", b"1b"])
        node = cluster.watches[0].serving
        assert node is not None
        node.stream.break_off()
        later = asyncio.ensure_future(_campaign(election, b"2"))
        await until(lambda: len(cluster.keys()) == 3)
    second = await later
    await until(lambda: seen == [b"1", b"1b", b"2"])
    await second.resign()
    async with election.campaign(b"3"):
        await until(lambda: seen == [b"1", b"1b", b"2", b"3"])
    watcher.cancel()


async def _campaign(election: raftstate.AsyncElection, value: bytes) -> raftstate.AsyncLeadership:
    return await election.campaign(value)


async def test_an_observer_that_was_compacted_away_looks_who_leads_now(
    cluster: WatchedCluster, store: raftstate.AsyncClient
) -> None:
    election = store.election("boss")
    seen: list[bytes] = []

    async def observe() -> None:
        async for leader in election.observe():
            seen.append(leader.value)  # noqa: PERF401 - each as it comes

    watcher = asyncio.create_task(observe())
    await until(lambda: cluster.watches and cluster.watched_keys(0))
    watches = cluster.watches[0]
    for node in watches.nodes:
        node.down = True
    assert watches.serving is not None
    watches.serving.stream.break_off()
    async with cluster.connect() as other:
        leadership = await other.election("boss").campaign(b"1")
        await other.compact((await other.put("x", b"")).revision)
        for node in watches.nodes:
            node.down = False
        await until(lambda: seen == [b"1"])
        await leadership.resign()
    watcher.cancel()


async def test_a_step_of_an_observer_that_was_cancelled_or_failed_can_be_taken_again(
    cluster: WatchedCluster, store: raftstate.AsyncClient
) -> None:
    election = store.election("boss")
    leaders = election.observe()
    for turns in range(60):
        step = asyncio.ensure_future(anext(leaders))
        for _ in range(turns):
            await asyncio.sleep(0)
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step
    async with election.campaign(b"1") as leadership:
        assert (await anext(leaders)).value == b"1"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(leaders)
        await leadership.proclaim(b"2")
        assert (await anext(leaders)).value == b"2"
    await leaders.close()


async def test_an_observer_goes_on_after_an_error(
    cluster: WatchedCluster, store: raftstate.AsyncClient
) -> None:
    election = store.election("boss")
    async with election.campaign(b"1"):
        leaders = election.observe()
        for _ in range(2):
            cluster.read_faults.append((grpc.StatusCode.DATA_LOSS, None))
            with pytest.raises(DataLossError):
                await anext(leaders)
        assert (await anext(leaders)).value == b"1"


async def test_a_closed_observer_ends_for_all_who_wait(
    cluster: WatchedCluster, store: raftstate.AsyncClient
) -> None:
    async with store.election("boss").observe() as leaders:
        waiting = [asyncio.ensure_future(anext(leaders, None)) for _ in range(3)]
        await until(lambda: cluster.watches and cluster.watched_keys(0))
    assert await asyncio.gather(*waiting) == [None] * 3
    assert [leader async for leader in leaders] == []
    await until(lambda: cluster.watched_keys(0) == [])


@pytest.mark.parametrize(("name", "ttl"), [("", 10), (b"x" * 464, 10), ("e", 0), ("e", float("nan"))])
async def test_bad_arguments_are_refused(store: raftstate.AsyncClient, name: str, ttl: float) -> None:
    with pytest.raises(InvalidArgumentError):
        store.election(name, ttl=ttl)
    with pytest.raises(InvalidArgumentError):
        store.election("e").campaign("text")  # type: ignore[arg-type]


async def test_the_faces_for_threads_do_the_same(cluster: WatchedCluster) -> None:
    seen: list[bytes] = []

    def observe(store: raftstate.Client) -> None:
        for leader in store.election("boss").observe():
            seen.append(leader.value)  # noqa: PERF401 - each as it comes

    def lead(store: raftstate.Client) -> None:
        election = store.election("boss")
        with election.campaign(b"1") as leadership:
            assert election.leader().value == b"1"  # type: ignore[union-attr]
            leadership.proclaim(b"2")
            leadership.check()
            assert store.txn().when(leadership.held()).commit().succeeded
            with pytest.raises(DeadlineError):
                election.campaign(b"3", timeout=0.05)
        leadership = election.campaign(b"3")
        leadership.resign()
        with pytest.raises(FailedPreconditionError):
            leadership.check()
        with pytest.raises(LockLostError), election.campaign(b"4") as leadership:
            store.delete(leadership.key)

    with raftstate.connect(cluster.url) as store:
        watching = asyncio.create_task(asyncio.to_thread(observe, store))
        await until(lambda: cluster.watches and cluster.watched_keys(0))
        await asyncio.to_thread(lead, store)
        await until(lambda: seen[-1:] == [b"4"])
        assert seen == [b"1", b"2", b"3", b"4"]
        await asyncio.to_thread(store.close)
        with pytest.raises(ClosedError):
            await watching


async def test_an_observer_of_a_thread_is_closed_from_another(cluster: WatchedCluster) -> None:
    with raftstate.connect(cluster.url) as store:
        leaders = store.election("boss").observe()
        watching = asyncio.create_task(asyncio.to_thread(list, leaders))
        await until(lambda: cluster.watches and cluster.watched_keys(0))
        await asyncio.to_thread(leaders.close)
        assert await watching == []
        with leaders:
            assert list(leaders) == []
        await asyncio.to_thread(store.close)
        leaders.close()
