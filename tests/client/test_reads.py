from __future__ import annotations

import grpc
import pytest

import raftstate
from raftstate.errors import (
    DataLossError,
    DeadlineError,
    NoLeaderError,
    OutOfRangeError,
    RaftstateError,
    ResourceExhaustedError,
)
from raftstate.pb.v1 import common_pb2
from tests.client.fake_cluster import FakeCluster


def told(code: int, message: str = "told") -> common_pb2.Error:
    return common_pb2.Error(
        code=code, outcome=common_pb2.OUTCOME_NOT_APPLIED, message=message, term=7, leader_address="n9:9"
    )


async def test_get_returns_the_pair_or_none(store: raftstate.AsyncClient) -> None:
    await store.put("k", b"v")
    assert await store.get(b"k") == raftstate.KeyValue(b"k", b"v", 2, 2, 1, 0)
    assert await store.get("absent") is None


@pytest.mark.parametrize("prefix", ["k", ""])
async def test_a_range_is_read_to_its_end_from_page_to_page(
    cluster: FakeCluster, store: raftstate.AsyncClient, prefix: str
) -> None:
    await store.put_many([(f"k{number}", b"v") for number in range(5)])
    found: list[bytes] = []
    sizes: list[int] = []
    start: bytes | None = None
    while True:
        page = await store.range(start, prefix=prefix, limit=2)
        found += [pair.key for pair in page]
        sizes.append(len(page))
        start = page.next_start
        if start is None:
            break
    assert found == [b"k0", b"k1", b"k2", b"k3", b"k4"]
    assert sizes == [2, 2, 1]


async def test_range_takes_ends_prefix_limit_and_count(store: raftstate.AsyncClient) -> None:
    await store.put_many([(key, b"") for key in ("a", "b1", "b2", "b\xff", "c")])

    async def keys(*ends: str, **options: str) -> list[bytes]:
        return [kv.key for kv in await store.range(*ends, **options)]  # type: ignore[arg-type]

    every = [b"a", b"b1", b"b2", "b\xff".encode(), b"c"]
    assert await keys() == await keys(prefix="") == every
    assert await keys("b2") == every[2:]
    assert await keys("a", "b2") == every[:2]
    assert await keys(end="b2") == every[:2]
    assert await keys(prefix="b") == every[1:4]
    limited = await store.range(limit=2)
    assert (len(limited), limited.more, limited.count, limited.revision) == (2, True, 5, 6)
    counted = await store.range(count_only=True)
    assert (list(counted), counted.count) == ([], 5)


@pytest.mark.parametrize(
    ("prefix", "inside", "outside"),
    [(b"a\xff", b"a\xff\xff", b"b"), (b"\xff\xff", b"\xff\xff\x00", b"\xff"), (b"a", b"a\xff\xff", b"b")],
)
async def test_a_prefix_ends_where_its_successor_begins(
    store: raftstate.AsyncClient, prefix: bytes, inside: bytes, outside: bytes
) -> None:
    await store.put_many([(prefix, b""), (inside, b""), (outside, b"")])
    assert [kv.key for kv in await store.range(prefix=prefix)] == [prefix, inside]


async def test_linearizable_reads_go_to_the_leader_and_others_stay_with_one_node(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    cluster.leader = 1
    for _ in range(3):
        await store.get("k")
    assert cluster.reads == [1, 1, 1]
    cluster.reads.clear()
    for _ in range(3):
        await store.get("k", consistency="bounded")
        await store.range(consistency="local")
    assert len(set(cluster.reads)) == 1


@pytest.mark.parametrize(
    "fault",
    [
        (grpc.StatusCode.UNAVAILABLE, None),
        (grpc.StatusCode.CANCELLED, None),
        (grpc.StatusCode.UNAVAILABLE, told(common_pb2.ERROR_CODE_NO_LEADER)),
    ],
)
@pytest.mark.parametrize("consistency", ["linearizable", "local"])
async def test_a_read_is_asked_again_when_a_node_can_not_answer_now(
    cluster: FakeCluster,
    store: raftstate.AsyncClient,
    fault: tuple[grpc.StatusCode, common_pb2.Error | None],
    consistency: raftstate.Consistency,
) -> None:
    await store.put("k", b"v")
    cluster.read_faults.extend([fault] * 3)
    assert (await store.get("k", consistency=consistency)) == raftstate.KeyValue(b"k", b"v", 2, 2, 1, 0)
    assert len(cluster.reads) == 4
    assert (len(set(cluster.reads)) > 1) is (consistency == "local")


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (grpc.StatusCode.OUT_OF_RANGE, common_pb2.ERROR_CODE_OUT_OF_RANGE, OutOfRangeError),
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            common_pb2.ERROR_CODE_RESOURCE_EXHAUSTED,
            ResourceExhaustedError,
        ),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, None, ResourceExhaustedError),
        (grpc.StatusCode.INTERNAL, None, RaftstateError),
    ],
)
async def test_what_no_other_node_would_answer_is_raised_at_once(
    cluster: FakeCluster,
    store: raftstate.AsyncClient,
    status: grpc.StatusCode,
    code: int | None,
    error: type[RaftstateError],
) -> None:
    cluster.read_faults.append((status, None if code is None else told(code)))
    with pytest.raises(RaftstateError) as caught:
        await store.get("k")
    assert type(caught.value) is error
    assert len(cluster.reads) == 1
    if code is not None:
        name = common_pb2.ErrorCode.Name(code).removeprefix("ERROR_CODE_")
        assert caught.value.message == "told"
        assert caught.value.detail == {"code": name, "term": 7, "leader_address": "n9:9"}


@pytest.mark.case(56)
@pytest.mark.parametrize("consistency", ["linearizable", "local"])
async def test_a_read_whose_copy_is_damaged_is_asked_again_elsewhere(
    cluster: FakeCluster, store: raftstate.AsyncClient, consistency: raftstate.Consistency
) -> None:
    await store.put("k", b"v")
    damaged = (grpc.StatusCode.DATA_LOSS, told(common_pb2.ERROR_CODE_DATA_LOSS))
    cluster.read_faults.extend([damaged] * 3)
    assert (await store.get("k", consistency=consistency)) == raftstate.KeyValue(b"k", b"v", 2, 2, 1, 0)
    assert len(cluster.reads) == 4


async def test_a_read_whose_copies_are_all_damaged_says_so_within_a_few_attempts(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    damaged = (grpc.StatusCode.DATA_LOSS, told(common_pb2.ERROR_CODE_DATA_LOSS))
    cluster.read_faults.extend([damaged] * 10_000)
    with pytest.raises(DataLossError, match="told"):
        await store.get("k")
    assert len(cluster.reads) == 9


async def test_a_read_that_no_node_answers_in_time_says_what_was_tried(cluster: FakeCluster) -> None:
    # Long enough for the address to be tried, also on a busy machine; how it failed is the system's to say.
    async with raftstate.connect_async("127.0.0.1:1", timeout=3) as store:
        with pytest.raises(NoLeaderError, match=r"nothing was (sent|read); tried 127.0.0.1:1 \(.+\)"):
            await store.get("k")
        with pytest.raises(NoLeaderError, match=r"nothing was (sent|read); tried 127.0.0.1:1 \(.+\)"):
            await store.get("k", consistency="local")


async def test_a_node_that_stays_silent_is_a_deadline_error(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    await store.get("k")  # finds the leader, so that all of the time below is for its answer
    cluster.read_faults.extend([(grpc.StatusCode.DEADLINE_EXCEEDED, None)] * 10_000)
    with pytest.raises(DeadlineError, match=r"was not answered within 0\.5 s"):
        await store.get("k", timeout=0.5)


async def test_a_read_that_waits_when_the_client_is_closed_says_so(cluster: FakeCluster) -> None:
    store = raftstate.connect_async(cluster.url)
    await store.close()
    with pytest.raises(raftstate.ClosedError):
        await store.get("k")
