"""Scans see one revision, whoever answers and whatever is written; session reads never move back."""

from __future__ import annotations

import asyncio

import grpc
import pytest

import raftstate
from raftstate.errors import DeadlineError, InvalidArgumentError, OutOfRangeError
from raftstate.pb.v1 import common_pb2
from tests.client.fake_cluster import FakeCluster

KEYS = [f"k{number}".encode() for number in range(7)]


@pytest.fixture
async def filled(store: raftstate.AsyncClient) -> raftstate.AsyncClient:
    await store.put_many([(key, b"old") for key in KEYS])
    return store


@pytest.mark.parametrize("page_size", [1, 3, 7, 10_000])
async def test_a_scan_sees_one_revision_whatever_is_written_meanwhile(
    cluster: FakeCluster, filled: raftstate.AsyncClient, page_size: int
) -> None:
    scan = filled.scan(prefix="k", page_size=page_size)
    assert scan.revision is None
    found = []
    async for pair in scan:
        found.append(pair)
        await filled.put(f"k{len(found)}", b"new")
        await filled.put(f"k{len(found)}x", b"new")
        await filled.delete(pair.key)
    assert [pair.key for pair in found] == KEYS
    assert {pair.value for pair in found} == {b"old"}
    assert scan.revision == 8
    assert len(cluster.reads) == -(-7 // page_size)


async def test_a_scan_takes_an_interval_a_revision_and_keys_alone(filled: raftstate.AsyncClient) -> None:
    await filled.delete("k", prefix=True)
    scan = filled.scan("k2", "k5", revision=5, keys_only=True, page_size=2)
    assert scan.revision == 5
    assert [(pair.key, pair.value) async for pair in scan] == [(b"k2", b""), (b"k3", b"")]
    assert [pair async for pair in filled.scan()] == []


async def test_only_the_first_page_needs_the_leader(
    cluster: FakeCluster, filled: raftstate.AsyncClient
) -> None:
    asked = []
    for node in cluster.nodes:
        node.on_read = lambda *freshness: asked.append(freshness)
    cluster.leader = 1
    index = cluster.rig.machine.applied_index
    assert len([pair async for pair in filled.scan(page_size=3)]) == 7
    linearizable, local = common_pb2.CONSISTENCY_LINEARIZABLE, common_pb2.CONSISTENCY_LOCAL
    assert asked == [(linearizable, 0), (local, index), (local, index)]
    assert len(set(cluster.reads[1:])) == 1


async def test_a_later_page_from_a_node_that_is_behind_waits_for_it(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    for node in cluster.nodes[1:]:
        node.freeze()
    await store.put_many([(key, b"") for key in KEYS])
    scan = store.scan(page_size=4)
    first = [await anext(scan) for _ in range(4)]
    rest = asyncio.create_task(_rest(scan))
    waiting = [asyncio.create_task(node.behind.wait()) for node in cluster.nodes[1:]]
    await asyncio.wait([rest, *waiting], return_when=asyncio.FIRST_COMPLETED)
    for node in cluster.nodes[1:]:
        node.thaw()
    for each in waiting:
        each.cancel()
    assert [pair.key for pair in first + await rest] == KEYS


async def _rest(scan: raftstate.AsyncScan) -> list[raftstate.KeyValue]:
    return [pair async for pair in scan]


async def test_a_page_that_failed_or_was_cancelled_is_read_again(
    cluster: FakeCluster, filled: raftstate.AsyncClient
) -> None:
    scan = filled.scan(page_size=3)
    found = [await anext(scan) for _ in range(3)]
    cluster.read_faults.append((grpc.StatusCode.DATA_LOSS, None))
    with pytest.raises(raftstate.DataLossError):
        await anext(scan)
    asleep = asyncio.create_task(scan.__anext__())
    await asyncio.sleep(0)
    asleep.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asleep
    assert [pair.key for pair in found + await _rest(scan)] == KEYS
    with pytest.raises(StopAsyncIteration):
        await anext(scan)


async def test_a_scan_whose_revision_is_compacted_on_the_way_says_so(filled: raftstate.AsyncClient) -> None:
    scan = filled.scan(page_size=3)
    found = [await anext(scan) for _ in range(3)]
    await filled.put("k", b"")
    await filled.compact(9)
    with pytest.raises(OutOfRangeError, match="revision 8 is compacted"):
        await anext(scan)
    assert len(found) == 3


async def test_threads_scan_too_and_go_on_after_an_error(cluster: FakeCluster) -> None:
    def use() -> None:
        with raftstate.connect(cluster.url) as store:
            store.put_many([(key, b"") for key in KEYS])
            scan = store.scan(prefix="k", page_size=3)
            assert scan.revision is None
            found = [next(scan) for _ in range(3)]
            assert scan.revision == 8
            cluster.read_faults.append((grpc.StatusCode.DATA_LOSS, None))
            with pytest.raises(raftstate.DataLossError):
                next(scan)
            assert [pair.key for pair in [*found, *scan]] == KEYS
            assert list(scan) == []
            abandoned = store.scan(page_size=1)
            next(abandoned)

    await asyncio.to_thread(use)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"page_size": 0}, "page_size must be a whole number from 1 to 10000, got 0"),
        ({"page_size": 10_001}, "page_size must be"),
        ({"revision": 0}, "revision must be a whole number from 1"),
        ({"prefix": "a", "end": "b"}, "not end and prefix"),
        ({"keys_only": None}, "keys_only must be True or False"),
        ({"timeout": 0}, "timeout must be"),
    ],
)
def test_a_bad_scan_is_refused_where_it_is_asked_for(arguments: dict[str, object], says: str) -> None:
    store = raftstate.connect_async("127.0.0.1:1")
    with pytest.raises(InvalidArgumentError, match=says):
        store.scan(**arguments)  # type: ignore[arg-type]


# ---- sessions


async def test_a_session_read_sees_its_own_writes_and_never_moves_back(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    await store.put("k", b"1")
    for node in cluster.nodes:
        node.freeze()
    await store.put("k", b"2")
    local = await store.get("k", consistency="local")
    assert local is not None
    assert local.value == b"1"
    with pytest.raises(DeadlineError):
        await store.get("k", consistency="session", timeout=0.2)
    read = asyncio.create_task(store.get("k", consistency="session"))
    waiting = [asyncio.create_task(node.behind.wait()) for node in cluster.nodes]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for node in cluster.nodes:
        node.thaw()
    for each in waiting:
        each.cancel()
    found = await read
    assert found is not None
    assert found.value == b"2"


async def test_what_one_node_showed_no_other_shows_the_past_of(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    """Another client's write, seen at one node, is seen at the next, too."""
    async with raftstate.connect_async(cluster.url) as other:
        await other.put("k", b"1")
        for node in cluster.nodes:
            node.freeze()
        await other.put("k", b"2")
    asked = []
    for node in cluster.nodes:
        node.on_read = lambda *freshness: asked.append(freshness)
        node.thaw()
    seen = await store.range(consistency="session")
    assert [pair.value for pair in seen] == [b"2"]
    index = cluster.rig.machine.applied_index
    await store.get("k", consistency="session")
    await store.range(consistency="session")
    await store.get("k", consistency="local")
    local = common_pb2.CONSISTENCY_LOCAL
    assert asked == [(local, 0), (local, index), (local, index), (local, 0)]
