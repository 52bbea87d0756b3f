"""Real nodes on disks that are full, fail or hang."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from raftstate import (
    AsyncClient,
    IndefiniteError,
    Put,
    RaftstateError,
    ResourceExhaustedError,
    connect_async,
)
from raftstate.supervisor import LocalCluster
from tests.processes.load import Ledger, Load, check
from tests.small_disk import SmallDisk, small_disk

VALUE = b"x" * (64 << 10)

pytestmark = pytest.mark.processes

with_strace = pytest.mark.skipif(
    shutil.which("strace") is None and "CI" not in os.environ, reason="strace is not installed"
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path, 192 << 20) as disk:
        yield disk


def log_of(cluster: LocalCluster, name: str) -> str:
    return cluster.node(name).log.read_text()


async def fill(client: AsyncClient, prefix: str, values_max: int = 4_000) -> tuple[list[str], RaftstateError]:
    """Put large values, some at a time, until one is refused; return the keys of those that were not."""
    stored: list[str] = []
    for number in range(0, values_max, 8):
        keys = [f"{prefix}/{each:06d}" for each in range(number, number + 8)]
        results = await asyncio.gather(
            *(client.put(key, VALUE, timeout=30) for key in keys), return_exceptions=True
        )
        stored += [
            key for key, result in zip(keys, results, strict=True) if not isinstance(result, BaseException)
        ]
        for result in results:
            if isinstance(result, RaftstateError):
                return stored, result
            if isinstance(result, BaseException):
                raise result
    raise AssertionError(f"{values_max} values of {len(VALUE)} bytes were taken")


async def until_taken(client: AsyncClient, key: str, seconds: float = 30) -> None:
    """Put a value as soon as the cluster takes one."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            await client.put(key, VALUE, timeout=10)
        except (ResourceExhaustedError, IndefiniteError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)
        else:
            return


async def missing(client: AsyncClient, keys: list[str]) -> list[str]:
    """Return which of the keys don't hold their value."""
    lost = []
    for key in keys:
        pair = await client.get(key, timeout=20)
        if pair is None or pair.value != VALUE:
            lost.append(key)
    return lost


@pytest.mark.case(51)
@pytest.mark.case(52)
async def test_a_node_that_fills_its_disk_refuses_puts_in_time_and_recovers_by_deletions(
    disk: SmallDisk,
) -> None:
    cluster = LocalCluster(disk.path / "cluster", nodes=1, port=0)
    with cluster:
        name = await asyncio.to_thread(cluster.wait_for_leader)
        pid = cluster.node(name).pid
        async with connect_async(cluster.url) as client:
            stored, refusal = await fill(client, "v")
            assert isinstance(refusal, ResourceExhaustedError), refusal
            assert re.search(r"of room are left, the soft floor is .* Delete keys and compact", str(refusal))
            assert disk.free_bytes() > 8 << 20
            assert await missing(client, stored[::20]) == []
            deleted = stored[: len(stored) // 2]
            for start in range(0, len(deleted), 16):
                await asyncio.gather(*(client.delete(key) for key in deleted[start : start + 16]))
            with pytest.raises(ResourceExhaustedError):
                await client.txn().then(Put("t", VALUE)).commit()
            await client.compact((await client.range("v", "w", limit=1)).revision)
            await until_taken(client, "again")
            assert await missing(client, [*stored[len(deleted) :], "again"]) == []
        assert cluster.node(name).pid == pid
        assert "no room for" not in log_of(cluster, name)


@pytest.mark.case(51)
@pytest.mark.case(52)
async def test_a_disk_that_others_fill_stops_no_node_and_loses_nothing_and_writes_go_on_with_the_room(
    disk: SmallDisk, tmp_path: Path
) -> None:
    cluster = LocalCluster(disk.path / "cluster", nodes=3, port=0)
    with cluster:
        leader = await asyncio.to_thread(cluster.wait_for_leader)
        pids = {node.name: node.pid for node in cluster.nodes}
        async with connect_async(cluster.url) as client:
            load = Load(client, writers=8, prefix="load")
            await load.until(200)
            # All at once, so that no floor can help: writes of all three find no room.
            disk.fill()
            stored, refusal = await fill(client, "v")
            assert isinstance(refusal, ResourceExhaustedError | IndefiniteError), refusal
            pair = await client.get("load/0/000000", consistency="local")
            assert pair is not None
            disk.free()
            await until_taken(client, "again")
            before = load.total
            await load.until(before + 200)
            ledger = await load.stop()
            await check(client, ledger, "load")
            assert await missing(client, [*stored, "again"]) == []
        assert {node.name: node.pid for node in cluster.nodes} == pids
        assert leader in pids


@asynccontextmanager
async def traced(pid: int | None, *inject: str) -> AsyncIterator[None]:
    """Have system calls of a process fail, or hang, as strace's `inject` says."""
    arguments = [part for each in inject for part in ("-e", f"inject={each}")]
    calls = ",".join(sorted({each.split(":")[0] for each in inject}))
    tracer = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
        ["strace", "-f", "-e", f"trace={calls}", *arguments, "-p", str(pid)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert tracer.stderr is not None
        line = await asyncio.to_thread(tracer.stderr.readline)
        assert "attached" in line, line
        yield
    finally:
        tracer.terminate()
        await asyncio.to_thread(tracer.communicate)


@with_strace
@pytest.mark.case(53)
async def test_after_eio_from_a_sync_of_the_log_a_node_copies_it_and_serves_again(
    cluster: LocalCluster,
) -> None:
    leader = await asyncio.to_thread(cluster.wait_for_leader)
    node = cluster.node(leader)
    pid = node.pid
    async with connect_async(cluster.url) as client:
        load = Load(client, writers=8, prefix="load")
        await load.until(100)
        async with traced(pid, "fdatasync:error=EIO:when=1"):
            before = load.total
            await load.until(before + 300)
            async with asyncio.timeout(30):
                while "copying the log" not in log_of(cluster, leader):  # noqa: ASYNC110 - a file tells nobody
                    await asyncio.sleep(0.05)
        before = load.total
        await load.until(before + 200)
        ledger = await load.stop()
        await check(client, ledger, "load")
        async with asyncio.timeout(30):
            while not await serves(node.endpoint, ledger):  # noqa: ASYNC110 - it tells nobody that it does
                await asyncio.sleep(0.1)
    assert node.pid == pid
    assert "Input/output error" in log_of(cluster, leader)


async def serves(endpoint: str, ledger: Ledger) -> bool:
    """Whether one node by itself shows the write that was acknowledged last."""
    async with connect_async(endpoint) as alone:
        last = max(ledger.acknowledged, key=lambda key: ledger.acknowledged[key])
        try:
            return await alone.get(last, consistency="local", timeout=2) is not None
        except RaftstateError:
            return False


@with_strace
@pytest.mark.case(3)
@pytest.mark.case(53)
@pytest.mark.case(54)
@pytest.mark.parametrize("call", ["fdatasync", "pwrite64"], ids=["a sync", "a page, meta pages among them"])
async def test_a_single_node_acknowledges_nothing_that_its_disk_failed_to_write(
    tmp_path: Path, call: str
) -> None:
    cluster = LocalCluster(tmp_path / "one", nodes=1, port=0)
    with cluster:
        name = await asyncio.to_thread(cluster.wait_for_leader)
        async with connect_async(cluster.url) as client:
            await client.put("before", b"1")
            async with traced(cluster.node(name).pid, f"{call}:error=EIO"):
                with pytest.raises((IndefiniteError, RaftstateError)):
                    await client.put("during", b"1", timeout=3)
            await client.put("after", b"1", timeout=30)
            assert (await client.get("before")) is not None


@with_strace
@pytest.mark.case(68)
async def test_a_leader_whose_sync_hangs_is_replaced_and_comes_back(cluster: LocalCluster) -> None:
    leader = await asyncio.to_thread(cluster.wait_for_leader)
    async with connect_async(cluster.url) as client:
        await client.put("before", b"1")
        async with traced(cluster.node(leader).pid, "fdatasync:delay_enter=6000000:when=1"):
            hung = asyncio.ensure_future(client.put("hung", b"1", timeout=20))
            began = time.monotonic()
            await client.put("other", b"1", timeout=20)
            assert time.monotonic() - began < 5
            await hung
        async with connect_async(cluster.node(leader).endpoint) as alone:
            async with asyncio.timeout(30):
                while await alone.get("other", consistency="local", timeout=20) is None:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
