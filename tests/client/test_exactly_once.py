"""Retries, lost answers and refusals: a write is applied once, and what its caller is told is true."""

from __future__ import annotations

import asyncio
import re

import pytest

import raftstate
from raftstate.client.channels import Channels
from raftstate.client.leader import LeaderTracker
from raftstate.errors import (
    IndefiniteError,
    InvalidArgumentError,
    NoLeaderError,
    RaftstateError,
    ResourceExhaustedError,
    WrongClusterError,
)
from raftstate.pb.v1 import common_pb2
from tests.client.fake_cluster import (
    FakeCluster,
    Fault,
    apply_and_break,
    apply_twice,
    break_stream,
    hold,
    lose_leader,
    never_answer,
    refuse,
)

NO_LEADER = common_pb2.ERROR_CODE_NO_LEADER
UNKNOWN = common_pb2.ERROR_CODE_UNKNOWN_OUTCOME
EXPIRED = common_pb2.ERROR_CODE_SESSION_EXPIRED
EXHAUSTED = common_pb2.ERROR_CODE_RESOURCE_EXHAUSTED
MAYBE = common_pb2.OUTCOME_UNKNOWN

# Far below any timeout of these tests' harness, far above what a loopback round takes.
BRIEFLY_S = 1


@pytest.mark.case(36)
@pytest.mark.parametrize(
    "faults",
    [
        [apply_and_break],
        [break_stream],
        [apply_twice],
        [apply_and_break, break_stream, apply_and_break],
        [refuse(NO_LEADER), apply_and_break, refuse(UNKNOWN, MAYBE)],
        [refuse(NO_LEADER, then_move_to=2), apply_and_break, refuse(NO_LEADER, then_move_to=1)],
        [refuse(common_pb2.ERROR_CODE_WINDOW), apply_and_break],
    ],
)
async def test_a_write_is_applied_once_and_gets_its_first_answer_whatever_is_retried(
    cluster: FakeCluster, store: raftstate.AsyncClient, faults: list[Fault]
) -> None:
    await store.put("before", b"0")
    cluster.faults.extend(faults)
    result = await store.put("k", b"1")
    assert cluster.executed == [(b"before", b"0"), (b"k", b"1")]
    assert result == raftstate.PutResult(revision=3)
    assert not cluster.faults


async def test_every_retry_carries_the_same_session_and_serial(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    cluster.faults.extend([break_stream, refuse(NO_LEADER), apply_and_break])
    await store.put("k", b"1")
    assert cluster.serials() == [[1], [1], [1], [1]]
    assert len({batch.session.SerializeToString() for batch in cluster.batches}) == 1
    assert {batch.cluster_id for batch in cluster.batches} == {cluster.cluster_id}


@pytest.mark.case(37)
@pytest.mark.case(81)
@pytest.mark.parametrize(
    ("first", "forever", "error"),
    [
        pytest.param([refuse(NO_LEADER)], lose_leader, NoLeaderError, id="every copy refused"),
        pytest.param([], never_answer, IndefiniteError, id="no copy answered"),
        pytest.param([], refuse(UNKNOWN, MAYBE), IndefiniteError, id="outcome unknown to the node"),
        pytest.param([break_stream], lose_leader, IndefiniteError, id="a lost copy, then refusals"),
        pytest.param([apply_and_break], lose_leader, IndefiniteError, id="an applied copy, then refusals"),
        pytest.param([refuse(NO_LEADER)], never_answer, IndefiniteError, id="a refusal, then silence"),
        pytest.param([refuse(UNKNOWN, MAYBE)], lose_leader, IndefiniteError, id="unknown, then refusals"),
    ],
)
async def test_a_deadline_is_definite_only_when_every_copy_sent_was_refused(
    cluster: FakeCluster,
    store: raftstate.AsyncClient,
    first: list[Fault],
    forever: Fault,
    error: type[RaftstateError],
) -> None:
    cluster.faults.extend([*first, *[forever] * 1_000])
    with pytest.raises(RaftstateError) as caught:
        await store.put("k", b"1", timeout=BRIEFLY_S)
    assert type(caught.value) is error
    assert caught.value.definite is (error is NoLeaderError)


@pytest.mark.case(81)
@pytest.mark.parametrize(
    ("faults", "error"),
    [
        ([refuse(EXHAUSTED)], ResourceExhaustedError),
        ([refuse(NO_LEADER), refuse(EXHAUSTED)], ResourceExhaustedError),
        ([break_stream, refuse(EXHAUSTED)], IndefiniteError),
        ([refuse(UNKNOWN, MAYBE), refuse(EXHAUSTED)], IndefiniteError),
        ([refuse(common_pb2.ERROR_CODE_INVALID)], InvalidArgumentError),
        ([refuse(common_pb2.ERROR_CODE_WRONG_CLUSTER)], WrongClusterError),
        ([break_stream, refuse(common_pb2.ERROR_CODE_WRONG_CLUSTER)], IndefiniteError),
        ([refuse(common_pb2.ERROR_CODE_STALE)], IndefiniteError),
    ],
)
async def test_a_final_refusal_is_definite_only_when_no_earlier_copy_was_lost(
    cluster: FakeCluster, store: raftstate.AsyncClient, faults: list[Fault], error: type[RaftstateError]
) -> None:
    cluster.faults.extend(faults)
    with pytest.raises(RaftstateError) as caught:
        await store.put("k", b"1")
    assert type(caught.value) is error
    assert "refused with" in caught.value.message
    await store.put("k", b"2")
    assert cluster.executed == [(b"k", b"2")]


@pytest.mark.case(38)
async def test_a_session_that_expired_before_the_only_copy_is_replaced(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    await store.put("k", b"1")
    cluster.end_sessions()
    await store.put("k", b"2")
    assert cluster.executed == [(b"k", b"1"), (b"k", b"2")]
    assert cluster.serials() == [[1], [2], [3]]


@pytest.mark.case(38)
@pytest.mark.case(80)
async def test_a_session_that_expired_between_two_copies_makes_the_outcome_unknown(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    async def apply_and_break_and_expire(node: object, batch: object) -> None:
        await apply_and_break(node, batch)  # type: ignore[arg-type]
        cluster.end_sessions()

    cluster.faults.append(apply_and_break_and_expire)
    with pytest.raises(IndefiniteError):
        await store.put("k", b"1")
    await store.put("k", b"2")
    assert cluster.executed == [(b"k", b"1"), (b"k", b"2")]


@pytest.mark.case(71)
async def test_a_cancelled_write_that_arrives_late_is_not_applied_after_a_later_one(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    arrived, release = asyncio.Event(), asyncio.Event()
    cluster.faults.append(hold(arrived, release, break_stream))
    late = asyncio.create_task(store.put("k", b"cancelled"))
    await arrived.wait()
    late.cancel()
    with pytest.raises(asyncio.CancelledError):
        await late
    release.set()
    await store.put("k", b"later")
    cluster.apply(cluster.batches[0])
    assert cluster.executed == [(b"k", b"later")]


@pytest.mark.case(71)
async def test_what_was_given_up_above_the_floor_is_named_in_the_next_batch(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    arrived, release = asyncio.Event(), asyncio.Event()
    cluster.faults.append(hold(arrived, release))
    writes = [asyncio.create_task(store.put(f"k{number}", b"")) for number in range(3)]
    await arrived.wait()
    writes[1].cancel()
    await asyncio.wait([writes[1]])
    # The stream ends before the answers; the next batch asks for the two that are still waited for.
    await cluster.nodes[0].stop()
    cluster.move_leader(1)
    await asyncio.gather(writes[0], writes[2])
    last = cluster.batches[-1]
    assert [command.serial for command in last.commands] == [1, 3]
    assert (last.floor, list(last.given_up)) == (1, [2])
    assert [key for key, _ in cluster.executed] == [b"k0", b"k2"]


async def test_a_write_that_was_never_sent_fails_definitely_and_says_what_was_tried() -> None:
    # Long enough for both addresses to be tried, also on a busy machine.
    async with raftstate.connect_async("127.0.0.1:1,127.0.0.1:2", timeout=3) as store:
        with pytest.raises(NoLeaderError) as caught:
            await store.put("k", b"1")
    assert caught.value.definite
    # How each address failed is the system's to say, and on a busy machine may be that it did not yet.
    tried = r"tried 127\.0\.0\.1:1 \(.+\), 127\.0\.0\.1:2 \(.+\)"
    assert re.fullmatch(
        rf"no leader was found within 3 s; the write was not sent; {tried}", caught.value.message
    )


async def test_a_cluster_without_a_leader_is_sent_nothing(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    cluster.leader = None
    with pytest.raises(NoLeaderError, match="knows no leader, term 1"):
        await store.put("k", b"1", timeout=1)
    assert cluster.batches == []


async def test_what_nodes_said_is_told_also_while_they_are_asked_again(
    cluster: FakeCluster,
) -> None:
    tracker = LeaderTracker((cluster.nodes[0].address,), channels := Channels())
    cluster.leader = None
    assert await tracker.locate() is None
    again = asyncio.create_task(tracker.locate())
    for _ in range(3):  # the round has begun, and no answer can have come
        await asyncio.sleep(0)
    assert "knows no leader, term 1" in str(tracker.no_leader(1, "nothing was sent"))
    await again
    await channels.close()


async def test_a_cancelled_write_that_was_not_sent_is_never_sent(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    unsent = asyncio.create_task(store.put("k", b"1"))
    await asyncio.sleep(0)
    unsent.cancel()
    with pytest.raises(asyncio.CancelledError):
        await unsent
    await store.put("k", b"2")
    assert cluster.serials() == [[1]]
    assert cluster.executed == [(b"k", b"2")]


async def test_close_tells_writes_in_flight_that_their_outcome_is_unknown(cluster: FakeCluster) -> None:
    store = raftstate.connect_async(cluster.url)
    arrived = asyncio.Event()
    cluster.faults.append(hold(arrived, asyncio.Event()))
    write = asyncio.create_task(store.put("k", b"1"))
    await arrived.wait()
    await store.close()
    with pytest.raises(IndefiniteError, match="the client was closed"):
        await write
    with pytest.raises(raftstate.ClosedError):
        await store.put("k", b"2")


async def test_close_ends_the_session(cluster: FakeCluster) -> None:
    async with raftstate.connect_async(cluster.url) as store:
        await store.put("k", b"1")
        assert len(cluster.sessions) == 1
    assert cluster.sessions == []
