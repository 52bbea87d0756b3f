"""Shown from outside, with strace: an acknowledgement waits for the disks of a majority."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
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


async def test_a_put_waits_for_the_disk_of_the_leader(cluster: LocalCluster) -> None:
    leader = await asyncio.to_thread(cluster.wait_for_leader)
    async with slow_disks(cluster, [leader]):
        assert (await put_times(cluster))[0] >= DELAY_S


async def test_a_put_waits_for_the_disk_of_a_follower(cluster: LocalCluster) -> None:
    leader = await asyncio.to_thread(cluster.wait_for_leader)
    async with slow_disks(cluster, [node.name for node in cluster.nodes if node.name != leader]):
        assert (await put_times(cluster))[0] >= DELAY_S


async def test_a_put_does_not_wait_for_the_slower_follower(cluster: LocalCluster) -> None:
    """The control: with one slow disk in the minority the same probe sees no wait."""
    leader = await asyncio.to_thread(cluster.wait_for_leader)
    follower = next(node.name for node in cluster.nodes if node.name != leader)
    async with slow_disks(cluster, [follower]):
        assert (await put_times(cluster))[0] < DELAY_S
