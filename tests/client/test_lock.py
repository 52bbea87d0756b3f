"""Locks over nodes with the real machine: who holds them, in which order, and what is known of their loss."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest

import raftstate
from raftstate.client import claim
from raftstate.client.lease import boot_s
from raftstate.client.lock import AsyncLock
from raftstate.errors import (
    ClosedError,
    DeadlineError,
    FailedPreconditionError,
    InvalidArgumentError,
    LockLostError,
    NoLeaderError,
)
from raftstate.pb.v1 import common_pb2
from tests.client.fake_cluster import hold, lose_leader, refuse
from tests.client.fake_watch import refused
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


def leases(cluster: WatchedCluster) -> int:
    return cluster.rig.machine.lease_count


async def in_line(cluster: WatchedCluster, lock: AsyncLock, place: int) -> asyncio.Task[AsyncLock]:
    """Begin to acquire, and return when the lock's key is the one at `place`."""
    task = asyncio.create_task(lock.acquire())
    await until(lambda: len(cluster.keys()) == place + 1 or task.done())
    return task


# ---- holding


async def test_a_lock_is_a_key_under_a_lease_that_goes_away_with_it(
    cluster: WatchedCluster, store: raftstate.AsyncClient
) -> None:
    async with store.lock("jobs") as lock:
        [pair] = await store.range(prefix="jobs/")
        assert pair.key == lock.key == b"jobs/%016x" % pair.lease
        assert pair.create_revision == lock.token
        assert (await store.leases())[0].ttl_s == 10
        lock.check()
    assert cluster.keys() == []
    assert leases(cluster) == 0
    with pytest.raises(FailedPreconditionError, match="lock 'jobs' is not held"):
        lock.check()


async def test_holders_follow_in_the_order_of_coming_with_growing_tokens_and_wake_one_each(
    cluster: WatchedCluster, store: raftstate.AsyncClient
) -> None:
    locks = [store.lock("l") for _ in range(5)]
    tasks = [await in_line(cluster, lock, place) for place, lock in enumerate(locks)]
    line = [pair.key for pair in await store.range(prefix="l/", sort="create")]
    await until(lambda: len(cluster.watched_keys(0)) == 5)
    assert sorted(cluster.watched_keys(0)) == sorted([line[0], *line[:4]])  # the first one is guarded, too
    tokens = []
    for position, (lock, task) in enumerate(zip(locks, tasks, strict=True)):
        await task
        assert [each.done() for each in tasks] == [True] * (position + 1) + [False] * (4 - position)
        assert lock.key == line[position]
        tokens.append(lock.token)
        await lock.release()
    assert tokens == sorted(set(tokens))
    assert cluster.keys() == []


async def test_whoever_gives_up_in_the_middle_of_the_line_is_passed_over(
    cluster: WatchedCluster, store: raftstate.AsyncClient
) -> None:
    first, second, third = (store.lock("l") for _ in range(3))
    await first.acquire()
    waiting = await in_line(cluster, second, 1)
    last = await in_line(cluster, third, 2)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(cluster.keys()) == 2
    await until(lambda: cluster.watched_keys(0) == [first.key] * 2)
    assert not last.done()
    await first.release()
    await last
    await third.release()


async def test_names_that_begin_alike_are_different_locks(store: raftstate.AsyncClient) -> None:
    await store.put("a/notes", b"of somebody else")
    async with store.lock("a/b"), store.lock("a", timeout=5) as lock:
        assert lock.key.startswith(b"a/")


async def test_many_contend_and_never_two_hold(cluster: WatchedCluster, store: raftstate.AsyncClient) -> None:
    holders: list[int] = []
    most = 0

    async def contend(number: int) -> None:
        nonlocal most
        async with store.lock("l"):
            holders.append(number)
            most = max(most, len(holders))
            await asyncio.sleep(0)
            holders.remove(number)

    await asyncio.gather(*map(contend, range(30)))
    assert most == 1
    assert cluster.keys() == []


async def test_a_lock_object_is_held_once(cluster: WatchedCluster, store: raftstate.AsyncClient) -> None:
    lock = store.lock("l")
    with pytest.raises(FailedPreconditionError, match="not held"):
        await lock.release()
    async with lock:
        with pytest.raises(FailedPreconditionError, match="by this very object"):
            await lock.acquire()
        other = store.lock("l")
        waiting = await in_line(cluster, other, 1)
        with pytest.raises(FailedPreconditionError, match="by this very object"):
            await other.acquire()
        waiting.cancel()
    async with lock:
        pass


# ---- not getting it


async def test_a_timeout_leaves_nothing_behind_and_says_who_is_ahead(
    cluster: WatchedCluster, store: raftstate.AsyncClient
) -> None:
    async with store.lock("l") as first:
        message = (
            rf"lock 'l' was not free within 0\.2 s: {first.key!r}, created at revision {first.token}, is"
        )
        with pytest.raises(DeadlineError, match=message):
            await store.lock("l", timeout=0.2).acquire()
        with pytest.raises(DeadlineError):
            async with store.lock("l", timeout=0.05):
                pass
        assert cluster.keys() == [first.key]
        assert leases(cluster) == 1


async def test_a_cancellation_at_any_moment_leaves_nothing_behind(
    cluster: WatchedCluster, store: raftstate.AsyncClient
) -> None:
    rng = random.Random(1)
    async with store.lock("l"):
        for _ in range(40):
            waiting = asyncio.create_task(store.lock("l").acquire())
            for _ in range(rng.randrange(60)):
                await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        await until(lambda: len(cluster.keys()) == 1)
    await until(lambda: cluster.keys() == [])
    # A grant that was cancelled on its way ends by itself, and has no key.
    cluster.advance(60_000)
    assert leases(cluster) == 0


async def test_without_a_leader_it_says_so(cluster: WatchedCluster, store: raftstate.AsyncClient) -> None:
    cluster.move_leader(None)
    with pytest.raises(NoLeaderError):
        await store.lock("l").acquire(timeout=0.2)


@pytest.mark.parametrize(
    ("name", "options"),
    [("", {}), (7, {}), ("x" * 464, {}), ("l", {"ttl": 0.5}), ("l", {"ttl": "10"}), ("l", {"timeout": 0})],
)
async def test_bad_arguments_are_refused(
    store: raftstate.AsyncClient, name: str, options: dict[str, float]
) -> None:
    with pytest.raises(InvalidArgumentError):
        store.lock(name, **options)


async def test_the_longest_name_is_a_key(store: raftstate.AsyncClient) -> None:
    async with store.lock("x" * 463) as lock:
        assert len(lock.key) == 480


async def test_a_place_in_line_is_lost_with_its_key(
    cluster: WatchedCluster, store: raftstate.AsyncClient
) -> None:
    first, second = store.lock("l"), store.lock("l")
    await first.acquire()
    waiting = await in_line(cluster, second, 1)
    await until(lambda: len(cluster.watched_keys(0)) == 2)
    await store.delete("l/", prefix=True)
    with pytest.raises(LockLostError, match="its key was deleted"):
        await waiting
    with pytest.raises(LockLostError):
        await first.release()
    await until(lambda: leases(cluster) == 0)


async def test_a_place_in_line_is_lost_with_its_lease(
    cluster: WatchedCluster, store: raftstate.AsyncClient
) -> None:
    async with cluster.connect() as other, other.lock("l"):
        waiting = await in_line(cluster, store.lock("l", ttl=1), 1)
        status = (await store.leases())[-1]
        mine = next(each for each in await store.leases() if each.ttl_s == 1)
        assert status.key_count == 1
        await other.lease(id=mine.id).revoke()
        with pytest.raises(LockLostError, match="lock 'l' is lost"):
            await waiting


# ---- losing it


async def outcome(body: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Run something that must end by itself, to its end."""
    task = asyncio.create_task(body)
    await until(task.done)
    return task


async def test_the_body_is_cancelled_when_the_key_is_deleted(store: raftstate.AsyncClient) -> None:
    async def hold() -> None:
        async with store.lock("l") as lock:
            await store.delete(lock.key)
            await asyncio.Event().wait()

    task = await outcome(hold())
    with pytest.raises(LockLostError, match="lock 'l' is lost: its key was deleted") as caught:
        await task
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    assert task.cancelling() == 0


async def test_the_body_is_cancelled_when_the_lease_is_known_to_have_ended(
    store: raftstate.AsyncClient,
) -> None:
    async def hold() -> None:
        async with store.lock("l", ttl=1) as lock:
            lock._held().lease._end("it has ended")
            await asyncio.Event().wait()

    with pytest.raises(LockLostError, match="it has ended"):
        await (await outcome(hold()))


async def test_a_cancellation_from_outside_stays_one(store: raftstate.AsyncClient) -> None:
    entered = asyncio.Event()

    async def hold() -> None:
        async with store.lock("l"):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_a_cancellation_from_outside_beside_the_loss_stays_one(store: raftstate.AsyncClient) -> None:
    entered = asyncio.Event()
    lock = store.lock("l")

    async def hold() -> None:
        async with lock:
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    await entered.wait()
    lock._held()._lost = "of this test"
    lock._lost()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_of_the_body_matters_more_than_the_loss(store: raftstate.AsyncClient) -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - its end raises
        async with store.lock("l") as lock:
            lock._held()._lost = "of this test"  # and the body is not cancelled yet
            raise ZeroDivisionError


async def test_a_loss_after_the_last_await_of_the_body_is_found_at_its_end(
    store: raftstate.AsyncClient,
) -> None:
    with pytest.raises(LockLostError):  # noqa: PT012 - its end raises
        async with store.lock("l") as lock:
            lock._held()._stop_guard()  # its news have not arrived yet
            await store.delete(lock.key)
            lease = lock._held().lease
            await store.lease(id=lease.id).revoke()


async def test_a_process_that_was_stopped_for_longer_than_the_ttl_finds_the_lock_lost_at_once(
    store: raftstate.AsyncClient,
) -> None:
    lock = store.lock("l")
    await lock.acquire()
    lock.check()
    lock._held().lease._now_s = lambda: boot_s() + 10
    with pytest.raises(LockLostError, match="may have ended"):  # asks nobody: no turn of the loop passes
        lock.check()
    with pytest.raises(LockLostError):
        await lock.release()
    async with lock:
        lock.check()


async def test_a_transaction_of_a_holder_that_was_overtaken_does_not_run(
    cluster: WatchedCluster, store: raftstate.AsyncClient
) -> None:
    lock = store.lock("l")
    await lock.acquire()
    stale = lock.held()
    put = raftstate.Put("k", b"1")
    assert (await store.txn().when(stale).then(put).commit()).succeeded
    async with cluster.connect() as other:
        await other.delete(lock.key)
        async with other.lock("l") as next_lock:
            assert next_lock.token > lock.token
            assert not (await store.txn().when(stale).then(put).commit()).succeeded


async def test_closing_the_client_ends_waiting_and_holding(cluster: WatchedCluster) -> None:
    store = cluster.connect()
    holder = store.lock("l")
    await holder.acquire()
    waiting = await in_line(cluster, store.lock("l"), 1)
    await until(lambda: len(cluster.watched_keys(0)) == 2)
    await store.close()
    with pytest.raises((ClosedError, LockLostError)):
        await waiting
    with pytest.raises(LockLostError):
        holder.check()


# ---- what goes wrong on the way


async def test_waiting_goes_on_when_the_watch_breaks(
    cluster: WatchedCluster, store: raftstate.AsyncClient
) -> None:
    first, second = store.lock("l"), store.lock("l")
    await first.acquire()
    waiting = await in_line(cluster, second, 1)
    await until(lambda: len(cluster.watched_keys(0)) == 2)
    node = cluster.watches[0].serving
    assert node is not None
    node.stream.break_off()
    await first.release()
    await waiting
    await second.release()


async def test_waiting_goes_on_when_what_it_waits_for_was_compacted(
    cluster: WatchedCluster, store: raftstate.AsyncClient
) -> None:
    first, second = store.lock("l"), store.lock("l")
    await first.acquire()
    waiting = await in_line(cluster, second, 1)
    await until(lambda: len(cluster.watched_keys(0)) == 2)
    for node in cluster.watches[0].nodes:
        node.down = True
    cluster.watches[0].serving.stream.break_off()
    async with cluster.connect() as other:
        await other.lease(id=first._held().lease.id).revoke()
        revision = (await other.put("x", b"")).revision
        await other.compact(revision)
    for node in cluster.watches[0].nodes:
        node.down = False
    await waiting
    await second.release()


async def test_where_no_watch_is_to_be_had_the_line_is_asked_again_and_again(
    cluster: WatchedCluster, store: raftstate.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(claim, "POLL_S", 0.01)
    first, second = store.lock("l"), store.lock("l")
    await first.acquire()
    for node in cluster.watches[0].nodes:
        node.refusals.extend([refused(common_pb2.ERROR_CODE_RESOURCE_EXHAUSTED)] * 1_000)
    waiting = await in_line(cluster, second, 1)
    await first.release()
    await waiting
    await second.release()


# ---- a release that does not come to its end


def hold_next(cluster: WatchedCluster) -> tuple[asyncio.Event, asyncio.Event]:
    """Have the next write wait at the node, and be refused for now; return what tells that it is there, and
    what lets it go on.
    """
    arrived, release = asyncio.Event(), asyncio.Event()
    cluster.faults.append(hold(arrived, release, refuse(common_pb2.ERROR_CODE_NO_LEADER)))
    return arrived, release


async def cancelled_release(cluster: WatchedCluster, lock: AsyncLock) -> asyncio.Event:
    """Cancel a release that the node has received; return what lets that go on."""
    arrived, release = hold_next(cluster)
    releasing = asyncio.create_task(lock.release())
    await arrived.wait()
    releasing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await releasing
    return release


async def test_a_release_that_was_cancelled_goes_on_and_the_next_one_waits_for_it(
    cluster: WatchedCluster, store: raftstate.AsyncClient
) -> None:
    lock = store.lock("l", ttl=60)
    await lock.acquire()
    release = await cancelled_release(cluster, lock)
    with pytest.raises(LockLostError):
        lock.check()
    again = [asyncio.create_task(lock.release()) for _ in range(2)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in again)
    release.set()
    await asyncio.gather(*again)
    assert cluster.keys() == []
    assert len({command.serial for command in cluster.commands("lease_revoke")}) == 1
    with pytest.raises(FailedPreconditionError, match="not held"):
        await lock.release()


async def test_a_release_that_was_cancelled_before_it_was_sent_is_done_and_the_lock_can_be_had_again(
    cluster: WatchedCluster, store: raftstate.AsyncClient
) -> None:
    lock = store.lock("l", ttl=60)
    await lock.acquire()
    releasing = asyncio.create_task(lock.release())
    await asyncio.sleep(0)
    releasing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await releasing
    await until(lambda: cluster.keys() == [])
    await until(lambda: lock._claim is not None and lock._claim.is_returned)
    with pytest.raises(FailedPreconditionError, match="not held"):
        lock.check()
    async with lock:
        assert cluster.keys() == [lock.key]
    assert cluster.keys() == []


async def test_an_end_of_with_that_is_cancelled_gives_the_lock_back(
    cluster: WatchedCluster, store: raftstate.AsyncClient
) -> None:
    leave = asyncio.Event()

    async def work() -> None:
        async with store.lock("l", ttl=60):
            await leave.wait()

    task = asyncio.create_task(work())
    await until(cluster.keys)
    arrived, release = hold_next(cluster)
    leave.set()
    await arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    release.set()
    await until(lambda: cluster.keys() == [])


async def test_a_release_that_was_cancelled_is_not_cut_off_by_the_end_of_the_client(
    cluster: WatchedCluster,
) -> None:
    store = cluster.connect()
    lock = store.lock("l", ttl=60)
    await lock.acquire()
    release = await cancelled_release(cluster, lock)
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    release.set()
    await closing
    assert cluster.keys() == []


async def test_a_release_that_failed_can_be_tried_again(
    cluster: WatchedCluster, store: raftstate.AsyncClient
) -> None:
    lock = store.lock("l", ttl=60)
    await lock.acquire()
    leader = cluster.leader
    cluster.faults.append(lose_leader)
    with pytest.raises(NoLeaderError):
        await lock.release(timeout=0.2)
    assert cluster.keys() != []
    cluster.move_leader(leader)
    await lock.release()
    assert cluster.keys() == []
    with pytest.raises(FailedPreconditionError, match="not held"):
        await lock.release()


# ---- threads


@pytest.fixture
def face(cluster: WatchedCluster) -> Iterator[raftstate.Client]:
    store = raftstate.connect(cluster.url)
    yield store
    store.close()


async def test_threads_take_turns(cluster: WatchedCluster, face: raftstate.Client) -> None:
    count = 0

    def work() -> None:
        nonlocal count
        for _ in range(5):
            with face.lock("l", timeout=20) as lock:
                lock.check()
                seen = count
                assert face.txn().when(lock.held()).then(raftstate.Put("k", b"")).commit().succeeded
                count = seen + 1

    await asyncio.gather(*(asyncio.to_thread(work) for _ in range(4)))
    assert count == 20
    await asyncio.to_thread(face.close)
    assert cluster.keys() == [b"k"]


async def test_a_thread_learns_of_the_loss_by_check_and_at_the_end_of_with(
    cluster: WatchedCluster, face: raftstate.Client
) -> None:
    def work() -> None:
        with pytest.raises(LockLostError), face.lock("l") as lock:
            face.delete(lock.key)
        lock = face.lock("l")
        lock.acquire()
        face.delete(lock.key)
        lost = threading.Event()
        for _ in range(1_000):
            try:
                lock.check()
            except LockLostError:
                lost.set()
                break
            lost.wait(0.01)
        assert lost.is_set()
        with pytest.raises(LockLostError):
            lock.release()
        with pytest.raises(ZeroDivisionError), face.lock("l") as lock:  # noqa: PT012 - its end raises
            face.delete(lock.key)
            raise ZeroDivisionError

    await asyncio.to_thread(work)


async def test_a_thread_waits_no_longer_than_it_wants_to(
    cluster: WatchedCluster, face: raftstate.Client
) -> None:
    def work() -> None:
        with face.lock("l"), pytest.raises(DeadlineError):
            face.lock("l").acquire(timeout=0.1)

    await asyncio.to_thread(work)
    assert cluster.keys() == []
