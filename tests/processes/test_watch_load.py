"""Many watches of real nodes: each sees every event once and in order, whatever is killed, and none that is
not read costs its node memory."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import grpc
import pytest

from bench.processes import anonymous_bytes
from bench.watch_load import WatchProcess, Writer, judge, prefix_of
from raftstate import connect_async
from raftstate.pb.v1 import cluster_pb2, cluster_pb2_grpc, watch_pb2, watch_pb2_grpc
from raftstate.supervisor import LocalCluster

pytestmark = pytest.mark.processes

UNREAD = 100
"""Watches of one raw stream that is never read."""
FLAT_BYTES = 20 << 20
"""What a node's own memory may grow by within a minute; events that were kept would take 2 MB a second."""
WRITES = 60_000
"""A minute of them."""
SAMPLE_WRITES = 500
VALUE_BYTES = 2_000
WARM_UP = 40_000
"""After so many writes a node has in memory as much of the recent end of its log as it keeps there (64 MiB):
that must not count as growth. By then, too, what is not read has filled what there is for it."""


@contextmanager
def watching(
    cluster: LocalCluster, folder: Path, *, watches: int, prefixes: int, unread: int = 0
) -> Iterator[WatchProcess]:
    process = WatchProcess(cluster.url, folder, watches=watches, prefixes=prefixes, unread=unread)
    try:
        process.wait_ready()
        yield process
    finally:
        process.close()


async def watched_node(cluster: LocalCluster, watches: int) -> str:
    """Wait until one node has so many watches, and return its name."""
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        stubs = {}
        for node in cluster.nodes:
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(node.endpoint))
            stubs[node.name] = cluster_pb2_grpc.ClusterStub(channel)
        while True:
            for name, stub in stubs.items():
                status = await stub.Status(cluster_pb2.StatusRequest(), timeout=20, wait_for_ready=True)
                if status.watches == watches:
                    return name


async def kill(cluster: LocalCluster, name: str) -> None:
    """Kill a node and start it again."""
    await asyncio.to_thread(cluster.kill, name)
    await asyncio.to_thread(cluster.restart, name)


async def see_all(
    cluster: LocalCluster, folder: Path, *, watches: int, prefixes: int, per_s: float, step: int
) -> None:
    """Have each watch see every event, across a kill of the leader and then one of the watched node."""
    with watching(cluster, folder, watches=watches, prefixes=prefixes) as process:
        async with connect_async(cluster.url, timeout=30) as client:
            writer = Writer(client, per_s=per_s, prefixes=prefixes)
            await writer.until(step)
            await kill(cluster, await asyncio.to_thread(cluster.wait_for_leader))
            await writer.until(writer.total + step)
            watched = await watched_node(cluster, watches)
            await kill(cluster, watched)
            await writer.until(writer.total + step)
            assert await watched_node(cluster, watches) != watched
            written = await writer.finish()
        verdict = judge(await asyncio.to_thread(process.records), written)
        assert verdict.is_sound, verdict
        assert verdict.delivered >= 3 * step * watches // prefixes


async def test_each_watch_sees_every_event_once_across_kills_of_leader_and_watched_node(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    await see_all(cluster, tmp_path, watches=100, prefixes=10, per_s=300, step=200)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_each_of_a_thousand_watches_sees_every_event_once_across_kills(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    await see_all(cluster, tmp_path, watches=1_000, prefixes=100, per_s=1_000, step=20_000)


@asynccontextmanager
async def unread_stream(address: str, prefixes: int) -> AsyncIterator[None]:
    """Hold a stream of watches open at a node, of which nothing is ever read."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = watch_pb2_grpc.WatchStub(channel).Watch()
        for number in range(UNREAD):
            prefix = prefix_of(number % prefixes)
            create = watch_pb2.WatchCreate(watch_id=number + 1, key=prefix, range_end=prefix[:-1] + b"0")
            await call.write(watch_pb2.WatchRequest(create=create))
        yield
        call.cancel()


async def growth_bytes(cluster: LocalCluster, writer: Writer, writes: int) -> dict[str, int]:
    """Return by how much each node's own memory grows at most while so many writes are made."""
    pids = {node.name: node.pid or 0 for node in cluster.nodes}
    before = {name: anonymous_bytes(pid) for name, pid in pids.items()}
    grown = dict.fromkeys(pids, 0)
    end = writer.total + writes
    while writer.total < end:
        await writer.until(writer.total + SAMPLE_WRITES)
        for name, pid in pids.items():
            grown[name] = max(grown[name], anonymous_bytes(pid) - before[name])
    return grown


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_watches_that_are_never_read_cost_a_node_no_memory(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    """100 of a client with 1,000, and another 100 of a stream that nobody reads, at the same node."""
    prefixes = 100
    with watching(cluster, tmp_path, watches=900, prefixes=prefixes, unread=100) as process:
        watched = await watched_node(cluster, 1_000)
        async with (
            unread_stream(cluster.node(watched).endpoint, prefixes),
            connect_async(cluster.url, timeout=30) as client,
        ):
            writer = Writer(client, per_s=1_000, prefixes=prefixes, value_bytes=VALUE_BYTES)
            await writer.until(WARM_UP, timeout_s=300)
            grown = await growth_bytes(cluster, writer, WRITES)
            written = await writer.finish()
        verdict = judge(await asyncio.to_thread(process.records), written)
        assert verdict.is_sound, verdict
        assert max(grown.values()) < FLAT_BYTES, grown


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_client_that_is_stopped_costs_its_node_no_memory_and_misses_nothing(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    prefixes = 100
    with watching(cluster, tmp_path, watches=1_000, prefixes=prefixes) as process:
        async with connect_async(cluster.url, timeout=30) as client:
            writer = Writer(client, per_s=1_000, prefixes=prefixes, value_bytes=VALUE_BYTES)
            await writer.until(WARM_UP, timeout_s=300)
            process.send_signal(signal.SIGSTOP)
            grown = await growth_bytes(cluster, writer, WRITES)
            process.send_signal(signal.SIGCONT)
            written = await writer.finish()
        verdict = judge(await asyncio.to_thread(process.records), written)
        assert verdict.is_sound, verdict
        assert max(grown.values()) < FLAT_BYTES, grown
