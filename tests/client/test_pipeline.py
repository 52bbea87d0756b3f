"""The pipeline against real streams: batches, and the way to the leader."""

from __future__ import annotations

import asyncio

import pytest

import raftstate
from raftstate.client import pipeline
from raftstate.client.channels import Channels
from raftstate.client.leader import LeaderTracker
from raftstate.errors import InvariantError
from raftstate.pb.v1 import common_pb2
from tests.client.fake_cluster import FakeCluster, hold, never_answer, refuse

NO_LEADER = common_pb2.ERROR_CODE_NO_LEADER


async def test_writes_of_one_turn_share_batches(cluster: FakeCluster, store: raftstate.AsyncClient) -> None:
    results = await asyncio.gather(*(store.put(f"k{number}", b"v") for number in range(1_000)))
    assert [len(serials) for serials in cluster.serials()] == [512, 488]
    assert [result.revision for result in results] == list(range(2, 1_002))


async def test_256_writers_make_batches_of_about_as_many(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    async def writer(number: int) -> None:
        for _ in range(8):
            await store.put(f"k{number}", b"v")

    await asyncio.gather(*(writer(number) for number in range(256)))
    assert len(cluster.executed) == 256 * 8
    assert len(cluster.batches) <= 24


async def test_put_many_returns_results_in_the_order_given(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    results = await store.put_many((f"k{number:04}", b"v") for number in range(600))
    assert [result.revision for result in results] == list(range(2, 602))
    assert [key for key, _ in cluster.executed] == [f"k{number:04}".encode() for number in range(600)]


async def test_put_many_raises_what_is_unknown_before_what_is_definite(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    cluster.faults.append(refuse(common_pb2.ERROR_CODE_STALE))
    cluster.faults.append(refuse(common_pb2.ERROR_CODE_RESOURCE_EXHAUSTED))
    with pytest.raises(raftstate.IndefiniteError):
        await store.put_many([(f"k{number}", b"v") for number in range(600)])


async def test_a_cancelled_put_many_gives_all_of_it_up(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    arrived, release = asyncio.Event(), asyncio.Event()
    cluster.faults.append(hold(arrived, release))
    many = asyncio.create_task(store.put_many([("a", b"1"), ("b", b"2")]))
    await arrived.wait()
    many.cancel()
    with pytest.raises(asyncio.CancelledError):
        await many
    release.set()
    await store.put("c", b"3")
    assert cluster.batches[-1].floor == 3


async def test_previous_pairs_and_deletes_come_back(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    await store.put_many([("a/1", b"1"), ("a/2", b"2"), ("b", b"3")])
    one = raftstate.KeyValue(b"a/1", b"1", 2, 2, 1)
    two = raftstate.KeyValue(b"a/2", b"2", 3, 3, 1)
    assert await store.put("a/1", b"x", prev_kv=True) == raftstate.PutResult(5, one)
    assert await store.put("c", b"", prev_kv=True) == raftstate.PutResult(6, None)
    assert await store.delete("absent") == raftstate.DeleteResult(6, 0)
    assert await store.delete("a/2", prev_kv=True) == raftstate.DeleteResult(7, 1, (two,))
    assert await store.delete("a/", prefix=True) == raftstate.DeleteResult(8, 1)
    assert await store.delete("b", range_end="d") == raftstate.DeleteResult(9, 2)
    assert not await store.range()


async def test_writes_go_to_the_leader_and_follow_it(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    cluster.leader = 1
    await store.put("k", b"1")
    cluster.move_leader(2)
    # The old leader forwards this one; its answer tells of the new term.
    await store.put("k", b"2")
    await store.put("k", b"3")
    assert cluster.batch_nodes == [1, 1, 2]
    assert len(cluster.executed) == 3


async def test_one_endpoint_is_enough_to_find_a_leader_elsewhere(cluster: FakeCluster) -> None:
    cluster.leader = 2
    async with raftstate.connect_async(cluster.nodes[0].address) as store:
        await store.put("k", b"1")
    assert cluster.batch_nodes == [2]


async def test_a_leader_that_can_not_be_reached_is_written_to_through_another_node(
    cluster: FakeCluster,
) -> None:
    cluster.leader = 2
    await cluster.nodes[2].stop()
    async with raftstate.connect_async(cluster.url) as store:
        await store.put("k", b"1")
    assert cluster.batch_nodes in ([0], [1])


async def test_a_deposed_leader_that_has_not_noticed_is_not_believed(cluster: FakeCluster) -> None:
    channels = Channels()
    tracker = LeaderTracker((cluster.nodes[0].address,), channels)
    newer = common_pb2.ResponseHeader(cluster_id=cluster.cluster_id, term=cluster.term + 1)
    tracker.observe(newer)
    assert await tracker.locate() is None
    cluster.term += 1
    assert await tracker.locate() == cluster.nodes[0].address
    await channels.close()


async def test_a_killed_leader_costs_no_write(cluster: FakeCluster, store: raftstate.AsyncClient) -> None:
    arrived = asyncio.Event()
    cluster.faults.append(hold(arrived, asyncio.Event()))
    writes = asyncio.gather(*(store.put(f"k{number}", b"v") for number in range(50)))
    await arrived.wait()
    cluster.move_leader(1)
    await cluster.nodes[0].stop()
    await writes
    assert len(cluster.executed) == 50
    assert cluster.batch_nodes == [0, 1]


async def test_a_silent_leader_is_left_when_another_node_leads(
    cluster: FakeCluster, store: raftstate.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "STALL_S", 0.05)
    arrived = asyncio.Event()

    async def fall_silent(node: object, batch: object) -> None:
        arrived.set()
        cluster.move_leader(1)
        await never_answer(node, batch)  # type: ignore[arg-type]

    cluster.faults.append(fall_silent)
    await store.put("k", b"1")
    assert cluster.batch_nodes == [0, 1]
    assert cluster.executed == [(b"k", b"1")]


async def test_a_slow_leader_is_not_left(
    cluster: FakeCluster, store: raftstate.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put("k", b"1")
    links = store._links
    assert links is not None
    locate, looked = links.tracker.locate, asyncio.Semaphore(0)

    async def counted() -> str | None:
        looked.release()
        return await locate()

    monkeypatch.setattr(links.tracker, "locate", counted)
    monkeypatch.setattr(pipeline, "STALL_S", 0.01)
    arrived, release = asyncio.Event(), asyncio.Event()
    cluster.faults.append(hold(arrived, release))
    write = asyncio.create_task(store.put("k", b"2"))

    async def looked_into_three_times() -> None:
        for _ in range(3):
            await looked.acquire()

    third_look = asyncio.create_task(looked_into_three_times())
    done, _ = await asyncio.wait({write, third_look}, return_when=asyncio.FIRST_COMPLETED)
    assert done == {third_look}
    release.set()
    await write
    assert cluster.batch_nodes == [0, 0]


async def test_nodes_of_two_clusters_are_refused(cluster: FakeCluster) -> None:
    async with (
        FakeCluster(size=1, cluster_id=0xC2, leader=None) as other,
        raftstate.connect_async(f"{cluster.url},{other.url}") as store,
    ):
        with pytest.raises(raftstate.WrongClusterError, match=r"of cluster 00000000000000c[12] answered"):
            await store.status()


async def test_a_bug_in_the_pipeline_is_told_at_once_and_not_waited_for(
    cluster: FakeCluster, store: raftstate.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context["message"]))
    with monkeypatch.context() as broken:
        broken.setattr(pipeline, "backoff_s", None)
        broken.setattr(pipeline, "WRITE", None)
        with pytest.raises(InvariantError, match="this is a bug"):
            await store.put("k", b"1")
    await store.put("k", b"2")
    assert heard == ["raftstate: the pipeline failed; this is a bug"]
    assert cluster.executed == [(b"k", b"2")]


def test_a_client_of_another_loop_is_refused() -> None:
    store = raftstate.connect_async("127.0.0.1:1", timeout=0.05)

    async def use() -> None:
        with pytest.raises(raftstate.NoLeaderError):
            await store.get("k")

    async def use_elsewhere() -> None:
        with pytest.raises(raftstate.FailedPreconditionError, match="belongs to another event loop"):
            await store.get("k")

    first = asyncio.new_event_loop()
    first.run_until_complete(use())
    asyncio.run(use_elsewhere())
    first.run_until_complete(store.close())
    first.close()
