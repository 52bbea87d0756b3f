"""Real nodes that catch up by snapshot: the log does not reach back to what they miss."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from raftstate import AsyncClient, NodeStatus, connect_async
from raftstate.supervisor import LocalCluster
from tests.processes.load import Load, check

pytestmark = pytest.mark.processes

MARGIN = 40


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    cluster = LocalCluster(tmp_path / "cluster", nodes=3, port=0)
    for node in cluster.nodes:
        file = node.data / "node.toml"
        file.write_text(f"log_margin_entries = {MARGIN}\nlog_margin_bytes = 1048576\n" + file.read_text())
    with cluster:
        cluster.wait_for_leader()
        yield cluster


@asynccontextmanager
async def load_on(client: AsyncClient) -> AsyncIterator[Load]:
    load = Load(client, writers=32, prefix="load")
    try:
        yield load
    finally:
        await load.stop()


def logged(cluster: LocalCluster, name: str) -> str:
    return cluster.node(name).log.read_text("utf-8", errors="replace")


async def statuses(client: AsyncClient) -> list[NodeStatus]:
    """Those of the nodes that answer."""
    return [status for status in await client.status(timeout=2) if not status.error]


async def follower_behind(cluster: LocalCluster, client: AsyncClient, load: Load) -> str:
    """Kill a follower, and wait until the others' logs no longer reach back to what it has."""
    leader = await asyncio.to_thread(cluster.wait_for_leader)
    name = next(node.name for node in cluster.nodes if node.name != leader)
    await load.until(load.total + 500)
    await asyncio.to_thread(cluster.kill, name)
    last = next(status.applied_index for status in await statuses(client) if status.name == leader)
    async with asyncio.timeout(60):
        while True:
            await load.until(load.total + 500)
            if all(status.first_log_index > last + 1 for status in await statuses(client)):
                return name


async def until_caught_up(client: AsyncClient, name: str) -> None:
    async with asyncio.timeout(60):
        while True:
            nodes = {status.name: status for status in await statuses(client)}
            if name in nodes and len(nodes) == 3:
                ahead = max(status.commit_index for status in nodes.values())
                if nodes[name].applied_index >= ahead - MARGIN:
                    return
            await asyncio.sleep(0.1)  # what another process does is looked at again and again


async def until_equal(client: AsyncClient) -> None:
    async with asyncio.timeout(60):
        while True:
            nodes = await statuses(client)
            if len(nodes) == 3 and len({(node.applied_index, node.digest) for node in nodes}) == 1:
                return
            await asyncio.sleep(0.1)


async def test_a_follower_that_was_down_catches_up_by_snapshot_under_load(cluster: LocalCluster) -> None:
    async with connect_async(cluster.url, timeout=30) as client:
        async with load_on(client) as load:
            name = await follower_behind(cluster, client, load)
            await asyncio.to_thread(cluster.restart, name)
            await until_caught_up(client, name)
        assert "snapshot installed" in logged(cluster, name)
        await check(client, load.ledger, "load")
        await until_equal(client)
    assert cluster.deaths() == []


def log_of_this_run(cluster: LocalCluster, name: str) -> str:
    return logged(cluster, name).rpartition("serving")[2]


async def until_logged(cluster: LocalCluster, name: str, what: str) -> None:
    async with asyncio.timeout(60):
        while what not in log_of_this_run(cluster, name):  # noqa: ASYNC110 - another process's doing
            await asyncio.sleep(0.002)


@pytest.mark.case(40)
async def test_a_follower_killed_while_it_installs_is_sent_what_it_needs_at_its_next_start(
    cluster: LocalCluster,
) -> None:
    draw = random.Random(1)
    async with connect_async(cluster.url, timeout=30) as client:
        async with load_on(client) as load:
            name = await follower_behind(cluster, client, load)
            for _ in range(2):
                await asyncio.to_thread(cluster.restart, name)
                await until_logged(cluster, name, "snapshot begins")
                await asyncio.sleep(draw.uniform(0, 0.4))  # whatever moment of the install that is
                await asyncio.to_thread(cluster.kill, name)
                last = max(status.applied_index for status in await statuses(client))
                async with asyncio.timeout(60):
                    while any(status.first_log_index <= last for status in await statuses(client)):
                        await load.until(load.total + 500)
            await asyncio.to_thread(cluster.restart, name)
            await until_caught_up(client, name)
        await check(client, load.ledger, "load")
        await until_equal(client)
    assert cluster.deaths() == []
