"""Watches and locks over real nodes, whose own node is killed: nothing is missed, nothing comes twice."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from raftstate import AsyncClient, connect_async
from raftstate.client.watch_stream import Watcher
from raftstate.supervisor import LocalCluster

pytestmark = pytest.mark.processes


def serving(client: AsyncClient, cluster: LocalCluster) -> str:
    """The name of the node that serves the client's watches."""
    watcher: Watcher = client._connected().watcher
    return next(node.name for node in cluster.nodes if node.endpoint == watcher._serving)


async def test_watches_go_on_when_their_node_is_killed_under_load(cluster: LocalCluster) -> None:
    async with (
        connect_async(cluster.url, timeout=30) as client,
        connect_async(cluster.url, timeout=30) as writer,
        client.watch(prefix="k/") as every,
        client.watch("k/3") as one,
    ):
        written: list[tuple[int, bytes]] = []

        async def write(number: int) -> None:
            for value in range(150):
                result = await writer.put(f"k/{number}", b"%d" % value)
                written.append((result.revision, b"%d" % value))

        writing = [asyncio.create_task(write(number)) for number in range(8)]
        got = [await every.next(30)]
        for _ in range(2):
            got += [await every.next(30) for _ in range(200)]
            name = serving(client, cluster)
            await asyncio.to_thread(cluster.kill, name)
            await asyncio.to_thread(cluster.restart, name)
        await asyncio.gather(*writing)
        while len(got) < len(written):
            got.append(await every.next(30))
        assert [(event.revision, event.value) for event in got] == sorted(written)
        own = [await one.next(30) for _ in range(150)]
        assert [event.value for event in own] == [b"%d" % value for value in range(150)]
        # The whole past, too, from a node that was killed in between.
        async with writer.watch(prefix="k/", start_revision=1) as past:
            again = [await past.next(30) for _ in got]
        assert again == got


@pytest.mark.slow
async def test_watches_leave_a_node_that_is_stopped_without_its_connections_ending(
    cluster: LocalCluster,
) -> None:
    async with connect_async(cluster.url, timeout=30) as client, client.watch("k") as watch:
        name = serving(client, cluster)
        [pid] = [node.pid for node in cluster.nodes if node.name == name]
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            others = ",".join(node.endpoint for node in cluster.nodes if node.name != name)
            async with connect_async(others, timeout=30) as writer:
                result = await writer.put("k", b"1")
                assert (await watch.next(30)).revision == result.revision
            assert serving(client, cluster) != name
        finally:
            os.kill(pid, signal.SIGCONT)


async def test_a_lock_is_handed_on_while_the_leader_is_killed(cluster: LocalCluster) -> None:
    async with (
        connect_async(cluster.url, timeout=30) as one,
        connect_async(cluster.url, timeout=30) as two,
    ):
        first = await one.lock("l").acquire()
        waiting = asyncio.create_task(two.lock("l").acquire())
        while len(await one.range(prefix="l/")) < 2:  # noqa: ASYNC110 - there is nothing else to wait for
            await asyncio.sleep(0.01)
        leader = await asyncio.to_thread(cluster.wait_for_leader)
        await asyncio.to_thread(cluster.kill, leader)
        first.check()
        await first.release()
        second = await waiting
        second.check()
        assert second.token > 1
        await asyncio.to_thread(cluster.restart, leader)
        await second.release()
        assert len(await one.range(prefix="l/")) == 0
