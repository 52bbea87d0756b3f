"""Leases against the real machine: granted, kept alive, ended, and what their holders are told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import pytest

import raftstate
from raftstate.client.lease import AsyncLease, boot_s
from raftstate.errors import (
    ClosedError,
    FailedPreconditionError,
    InvalidArgumentError,
    LeaseNotFoundError,
    NoLeaderError,
    RaftstateError,
)
from raftstate.pb.v1 import common_pb2
from tests.client.fake_cluster import FakeCluster, apply_and_break, hold, refuse

NO_LEADER = refuse(common_pb2.ERROR_CODE_NO_LEADER)


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def leases_of(cluster: FakeCluster) -> int:
    return cluster.rig.machine.lease_count


async def test_keys_go_away_with_the_lease_that_they_are_attached_to(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    async with store.lease(10) as lease:
        assert lease.ttl_s == 10
        await store.put("a", b"1", lease=lease)
        await store.put("b", b"2", lease=lease.id)
        await store.txn().then(raftstate.Put("c", b"3", lease=lease)).commit()
        await store.put("b", b"stays")
        assert [pair.lease for pair in await store.range()] == [lease.id, 0, lease.id]
        held = await store.txn().when(raftstate.where("a").lease == lease).commit()
        assert held.succeeded
    assert [pair.key for pair in await store.range()] == [b"b"]
    assert leases_of(cluster) == 0


async def test_what_is_left_of_a_lease_and_all_leases(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    lease = await store.lease(10).grant()
    other = await store.lease(2.5, id=42).grant()
    await store.put("b", b"", lease=lease)
    await store.put("a", b"", lease=lease)
    cluster.advance(2_000)
    assert await lease.time_to_live() == raftstate.LeaseStatus(lease.id, 10, 8, 2)
    assert (await lease.time_to_live(keys=True)).keys == (b"a", b"b")
    assert await store.leases() == [
        raftstate.LeaseStatus(42, 2.5, 0.5, 0),
        raftstate.LeaseStatus(lease.id, 10, 8, 2),
    ]
    await lease.renew()
    assert (await lease.time_to_live()).remaining_s == 10
    assert await lease.revoke() == 2
    assert await store.leases() == [raftstate.LeaseStatus(other.id, 2.5, 0.5, 0)]


async def test_leases_are_listed_from_page_to_page(
    cluster: FakeCluster, store: raftstate.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftstate.rpc.lease.LEASES_PAGE_MAX", 2)
    for number in range(5, 0, -1):
        await store.lease(10, id=number).grant()
    assert [status.id for status in await store.leases()] == [1, 2, 3, 4, 5]
    assert len(cluster.reads) == 3


async def test_a_lease_that_exists_is_taken_up_by_its_id(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    granted = await store.lease(10).grant()
    found = store.lease(id=granted.id)
    assert found.ttl_s is None
    found.check()
    async with found:
        assert found.ttl_s == 10
        await store.put("k", b"", lease=found)
    assert leases_of(cluster) == 0
    with pytest.raises(LeaseNotFoundError):
        async with store.lease(id=granted.id):
            raise AssertionError("entered")


async def test_a_grant_whose_answer_is_lost_grants_one_lease(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    cluster.faults.extend([apply_and_break, apply_and_break])
    lease = await store.lease(10).grant()
    assert [status.id for status in await store.leases()] == [lease.id]


async def test_a_lease_is_granted_once(store: raftstate.AsyncClient) -> None:
    lease = store.lease(10)
    for early in (lambda: lease.id, lease.check, lease.keep_alive):
        with pytest.raises(FailedPreconditionError, match="is not granted yet"):
            early()
    await lease.close()
    assert await lease.grant() is lease
    lease.check()
    with pytest.raises(FailedPreconditionError, match="grant another"):
        await lease.grant()
    with pytest.raises(FailedPreconditionError):
        await store.lease(10, id=lease.id).grant()
    with pytest.raises(FailedPreconditionError, match="not granted yet"):
        await store.put("k", b"", lease=store.lease(10))


# ---- kept alive


async def test_a_lease_that_is_entered_is_renewed_when_a_third_of_it_has_passed(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    async with store.lease(1) as lease:
        for _ in range(2):
            arrived, release = asyncio.Event(), asyncio.Event()
            release.set()
            cluster.faults.append(hold(arrived, release))
            await arrived.wait()
        lease.check()
        assert {command.lease_renew.id for command in cluster.commands("lease_renew")} == {lease.id}


async def test_renewals_go_on_through_refusals_and_lost_answers(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    async with store.lease(1) as lease:
        arrived, release = asyncio.Event(), asyncio.Event()
        release.set()
        cluster.faults.extend([NO_LEADER, apply_and_break, NO_LEADER, hold(arrived, release)])
        await arrived.wait()
        lease.check()


async def test_a_renewal_goes_before_the_writes_that_wait(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    lease = await store.lease(10).grant()
    releases = [asyncio.Event(), asyncio.Event()]
    arrivals = [asyncio.Event(), asyncio.Event()]
    cluster.faults.extend(map(hold, arrivals, releases))
    writes = asyncio.create_task(store.put_many((f"k{number}", b"") for number in range(6_000)))
    await arrivals[0].wait()
    renewal = asyncio.create_task(lease.renew())
    await asyncio.sleep(0)
    for release in releases:
        release.set()
    await asyncio.gather(renewal, writes)
    kinds = [[command.WhichOneof("op") for command in batch.commands] for batch in cluster.batches]
    [place] = [number for number, batch in enumerate(kinds) if "lease_renew" in batch]
    assert kinds[place][0] == "lease_renew"
    assert place < len(kinds) - 1


async def test_a_renewal_has_as_long_as_the_lease_lives(
    cluster: FakeCluster, store: raftstate.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    lease = AsyncLease(store, 9_000, 0, clock)
    await lease.grant()
    given: list[float | None] = []
    execute = store._execute

    async def noted(operation: object, timeout: float | None, **options: bool) -> object:
        given.append(timeout)
        clock.now_s += 1
        return await execute(operation, timeout, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "_execute", noted)
    clock.now_s += 3
    lease.keep_alive()
    arrived, release = asyncio.Event(), asyncio.Event()
    release.set()
    cluster.faults.append(hold(arrived, release))
    await arrived.wait()
    await lease.revoke()
    assert given[0] == pytest.approx(6, abs=0.1)


async def test_a_lease_that_was_not_renewed_in_time_may_have_ended(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    clock = Clock()
    lease = AsyncLease(store, 10_000, 0, clock)
    await lease.grant()
    clock.now_s += 9.9
    lease.check()
    clock.now_s += 0.09
    with pytest.raises(
        LeaseNotFoundError, match="may have ended: it was not renewed for its time to live of 10 s"
    ):
        lease.check()
    await lease.renew()
    lease.check()
    await lease.revoke()


async def test_what_a_lease_lives_from_is_when_its_renewal_was_sent_not_answered(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    clock = Clock()
    lease = AsyncLease(store, 10_000, 0, clock)
    await lease.grant()
    arrived, release = asyncio.Event(), asyncio.Event()
    cluster.faults.append(hold(arrived, release))
    renewal = asyncio.create_task(lease.renew())
    await arrived.wait()
    clock.now_s += 9
    release.set()
    await renewal
    clock.now_s += 0.98
    lease.check()
    clock.now_s += 0.1
    with pytest.raises(LeaseNotFoundError):
        lease.check()


async def test_renewing_is_given_up_when_the_lease_may_have_ended_and_not_before(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    clock = Clock()
    lease = AsyncLease(store, 1_000, 0, clock)
    await lease.grant()
    clock.now_s += 0.9
    lease.keep_alive()
    arrived, release = asyncio.Event(), asyncio.Event()
    cluster.faults.extend([NO_LEADER] * 10 + [hold(arrived, release, NO_LEADER)] + [NO_LEADER] * 10_000)
    await arrived.wait()
    lease.check()
    clock.now_s += 0.1
    release.set()
    error = await lease.wait_ended()
    assert "may have ended" in error.message
    with pytest.raises(LeaseNotFoundError, match="may have ended"):
        await lease.renew()
    with pytest.raises(LeaseNotFoundError, match="may have ended"):
        lease.keep_alive()
    with pytest.raises(LeaseNotFoundError, match="may have ended"):
        await lease.close()


async def test_a_lease_that_ended_at_the_cluster_is_told_of(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    lease = store.lease(1)
    await lease.__aenter__()
    await store.put("k", b"", lease=lease)
    cluster.advance(1_000)
    lease.check()
    error = await lease.wait_ended()
    assert str(lease.id) in error.message
    assert await store.get("k") is None
    with pytest.raises(LeaseNotFoundError):
        lease.check()
    with pytest.raises(LeaseNotFoundError):
        await lease.__aexit__(None, None, None)


@pytest.mark.parametrize(
    "ask",
    [lambda lease: lease.renew(), lambda lease: lease.revoke(), lambda lease: lease.time_to_live()],
)
async def test_whoever_asks_learns_that_a_lease_has_ended(
    cluster: FakeCluster, store: raftstate.AsyncClient, ask: Callable[[AsyncLease], Awaitable[object]]
) -> None:
    lease = await store.lease(10).grant()
    lease.keep_alive()
    cluster.advance(10_000)
    lease.check()
    with pytest.raises(LeaseNotFoundError):
        await ask(lease)
    with pytest.raises(LeaseNotFoundError):
        lease.check()
    with pytest.raises(LeaseNotFoundError):
        await store.put("k", b"", lease=lease)
    with pytest.raises(LeaseNotFoundError):
        await lease.close()
    await asyncio.sleep(0)
    assert not _keepers()


# ---- left


async def test_what_ended_the_body_is_raised_not_what_became_of_the_lease(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    async def fail_over_a_lease_that_ended() -> None:
        async with store.lease(10):
            cluster.advance(10_000)
            raise KeyError

    with pytest.raises(KeyError):
        await fail_over_a_lease_that_ended()


async def test_a_lease_that_its_body_revoked_is_left_quietly(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    async with store.lease(10) as lease:
        await lease.revoke()
        with pytest.raises(LeaseNotFoundError, match="was revoked"):
            lease.check()
    assert len(cluster.commands("lease_revoke")) == 1


async def test_a_lease_whose_revoke_was_cancelled_is_not_relied_on_until_it_is_renewed(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    lease = await store.lease(10).grant()
    arrived, release = asyncio.Event(), asyncio.Event()
    cluster.faults.append(hold(arrived, release, NO_LEADER))
    revoking = asyncio.create_task(lease.revoke())
    await arrived.wait()
    with pytest.raises(LeaseNotFoundError, match="may have ended: it was asked to"):
        lease.check()
    revoking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await revoking
    with pytest.raises(LeaseNotFoundError, match="may have ended: it was asked to"):
        lease.check()
    release.set()
    await lease.renew()
    lease.check()
    await lease.close()
    assert leases_of(cluster) == 0


async def test_a_renewal_from_before_a_revoke_says_nothing_of_what_is_after_it(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    lease = await store.lease(10).grant()
    arrived, release = asyncio.Event(), asyncio.Event()
    cluster.faults.append(hold(arrived, release))
    renewal = asyncio.create_task(lease.renew())
    await arrived.wait()
    cluster.faults.append(NO_LEADER)
    revoking = asyncio.create_task(lease.revoke())
    await asyncio.sleep(0)
    revoking.cancel()
    release.set()
    await renewal
    with pytest.raises(LeaseNotFoundError, match="may have ended"):
        lease.check()


async def test_a_cancelled_body_still_revokes_its_lease(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    entered = asyncio.Event()

    async def work() -> None:
        async with store.lease(10):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await entered.wait()
    assert leases_of(cluster) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert leases_of(cluster) == 0
    assert not _keepers()


async def test_a_grant_that_is_cancelled_leaves_nothing_that_renews(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    arrived, release = asyncio.Event(), asyncio.Event()
    cluster.faults.append(hold(arrived, release))
    lease = store.lease(10)
    entering = asyncio.create_task(lease.__aenter__())
    await arrived.wait()
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    release.set()
    assert not _keepers()
    await store.put("k", b"")
    cluster.advance(10_000)
    assert leases_of(cluster) == 0


async def test_closing_the_client_ends_renewals_and_says_so(cluster: FakeCluster) -> None:
    store = raftstate.connect_async(cluster.url)
    lease = await store.lease(10).grant()
    lease.keep_alive()
    lease.keep_alive()
    assert len(_keepers()) == 1
    await store.close()
    assert not _keepers()
    assert "the client was closed" in (await lease.wait_ended()).message
    with pytest.raises(LeaseNotFoundError):
        lease.check()
    with pytest.raises(ClosedError):
        await store.lease(10).grant()
    assert leases_of(cluster) == 1


async def test_a_revoke_that_can_not_be_done_says_so_unless_the_body_failed(
    cluster: FakeCluster,
) -> None:
    async with raftstate.connect_async(cluster.url, timeout=0.5) as store:

        async def lose_the_leader(error: Exception | None) -> None:
            async with store.lease(10):
                cluster.faults.extend([NO_LEADER] * 1_000)
                if error is not None:
                    raise error

        with pytest.raises(NoLeaderError):
            await lose_the_leader(None)
        cluster.faults.clear()
        with pytest.raises(KeyError):
            await lose_the_leader(KeyError())


def _keepers() -> list[asyncio.Task[None]]:
    return [task for task in asyncio.all_tasks() if task.get_name().startswith("raftstate-lease")]


# ---- arguments, errors, threads


@pytest.mark.parametrize(
    ("arguments", "field", "says"),
    [
        ({}, "ttl", "give a ttl in seconds for a new lease, or the id of one that exists; got neither"),
        ({"ttl": 0.9}, "ttl", "ttl must be a number of seconds from 1 to 86400 (a day), got 0.9"),
        ({"ttl": 86_401}, "ttl", "got 86401"),
        ({"ttl": float("nan")}, "ttl", "got nan"),
        ({"ttl": "10"}, "ttl", "got '10'"),
        ({"ttl": True}, "ttl", "got True"),
        ({"ttl": 10, "id": 0}, "id", "id must be a whole number from 1"),
        ({"id": -1}, "id", "id must be a whole number from 1"),
    ],
)
def test_a_bad_lease_is_refused_where_it_is_asked_for(
    arguments: dict[str, float], field: str, says: str
) -> None:
    for store in (raftstate.connect_async("127.0.0.1:1"), raftstate.connect("127.0.0.1:1")):
        with pytest.raises(InvalidArgumentError) as caught:
            store.lease(**arguments)  # type: ignore[arg-type]
        assert says in caught.value.message
        assert caught.value.field == field


async def test_a_read_that_names_no_lease_without_a_word_from_the_node_is_still_an_error(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    lease = await store.lease(10).grant()
    cluster.read_faults.append((grpc.StatusCode.NOT_FOUND, None))
    with pytest.raises(RaftstateError):
        await lease.time_to_live()
    with pytest.raises(InvalidArgumentError, match="keys must be True or False"):
        await lease.time_to_live(keys="all")  # type: ignore[arg-type]
    lease.check()


def test_the_clock_of_leases_goes_on() -> None:
    assert boot_s() <= boot_s()


async def test_threads_have_leases_too(cluster: FakeCluster) -> None:
    def use() -> None:
        with raftstate.connect(cluster.url) as store:
            with store.lease(1) as lease:
                store.put("k", b"", lease=lease)
                assert lease.ttl_s == 1
                assert lease.time_to_live(keys=True).keys == (b"k",)
                assert [status.id for status in store.leases()] == [lease.id]
                lease.check()
            assert store.get("k") is None
            with pytest.raises(LeaseNotFoundError):
                lease.check()
            kept = store.lease(1)
            kept.grant().keep_alive()
            kept.renew()
            kept.close()
            assert store.lease(10).grant().revoke() == 0

    await asyncio.to_thread(use)
    assert leases_of(cluster) == 0


async def test_others_get_their_turn_while_very_many_writes_are_handed_over(
    cluster: FakeCluster, store: raftstate.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    pipeline = store._connected().pipeline
    submit = pipeline.submit
    submitted_at: list[int] = []

    def noted(*arguments: object, **options: object) -> object:
        submitted_at.append(turns)
        return submit(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "submit", noted)
    counting = asyncio.create_task(count_turns())
    await store.put_many((f"k/{number}", b"v") for number in range(10_000))
    counting.cancel()
    assert submitted_at[-1] - submitted_at[0] >= 4
