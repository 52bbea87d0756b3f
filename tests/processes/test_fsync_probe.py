"""Shown from outside, with strace: an acknowledgement waits for the disks of a majority."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from raftstate import connect_async
from raftstate.supervisor import LocalCluster

DELAY_S = 0.15
"""Far above any fdatasync here, and below the 0.4 s after which a leader gives up a log write that hangs."""

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(
        shutil.which("strace") is None and "CI" not in os.environ, reason="strace is not installed"
    ),
]


@asynccontextmanager
async def slow_disks(cluster: LocalCluster, names: Sequence[str]) -> AsyncIterator[None]:
    """Delay each fdatasync of these nodes, before it begins."""
    tracers = []
    for name in names:
        pid = cluster.node(name).pid
        assert pid is not None
        command = [
            "strace",
            "-f",
            "-e",
            "trace=fdatasync",
            "-e",
            f"inject=fdatasync:delay_enter={int(DELAY_S * 1e6)}",
        ]
        tracers.append(
            subprocess.Popen(  # noqa: ASYNC220 - it returns at once
                [*command, "-p", str(pid)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
            )
        )
    try:
        for tracer in tracers:
            # "Process N attached": from then on each call is delayed.
            assert tracer.stderr is not None
            line = await asyncio.to_thread(tracer.stderr.readline)
            assert "attached" in line, line
        yield
    finally:
        for tracer in tracers:
            tracer.terminate()
            await asyncio.to_thread(tracer.communicate)


async def put_times(cluster: LocalCluster, rounds: int = 5) -> list[float]:
    """Return the seconds that each of some puts took, sorted."""
    async with connect_async(cluster.url, timeout=30) as client:
        await client.put("warm", b"up")
        times = []
        for number in range(rounds):
            began = time.perf_counter()
            await client.put(f"k{number}", b"v")
            times.append(time.perf_counter() - began)
        return sorted(times)


async def leadership(cluster: LocalCluster) -> tuple[str, int]:
    """Return who leads, and in which term."""
    await asyncio.to_thread(cluster.wait_for_leader)
    async with connect_async(cluster.url, timeout=30) as client:
        leaders = [node for node in await client.status() if node.role == "leader"]
    newest = max(leaders, key=lambda node: node.term)
    return newest.name, newest.term


async def fastest_put_s(cluster: LocalCluster, slow: Callable[[str], list[str]]) -> float:
    """Return how long the fastest of some puts took while the disks of the nodes that `slow` names, given the
    leader, were slow. Of a leader that led all the while: on a loaded machine a slow one may be taken for one
    that hangs, and hands over."""
    for _ in range(10):
        led = await leadership(cluster)
        async with slow_disks(cluster, slow(led[0])):
            times = await put_times(cluster)
            if await leadership(cluster) == led:
                return times[0]
    raise AssertionError("the leader changed in each of ten attempts")


async def test_a_put_waits_for_the_disk_of_the_leader(cluster: LocalCluster) -> None:
    assert await fastest_put_s(cluster, lambda leader: [leader]) >= DELAY_S


async def test_a_put_waits_for_the_disk_of_a_follower(cluster: LocalCluster) -> None:
    names = [node.name for node in cluster.nodes]
    assert await fastest_put_s(cluster, lambda leader: [n for n in names if n != leader]) >= DELAY_S


async def test_a_put_does_not_wait_for_the_slower_follower(cluster: LocalCluster) -> None:
    """The control: with one slow disk in the minority the same probe sees no wait."""
    names = [node.name for node in cluster.nodes]
    assert await fastest_put_s(cluster, lambda leader: [n for n in names if n != leader][:1]) < DELAY_S
