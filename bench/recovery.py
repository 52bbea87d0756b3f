"""How soon a node is of use again after a kill -9, or after a power cut, with a state of some size.

    python -m bench recovery --megabytes 1024
    python -m bench recovery --megabytes 1024 --power-cut       root only: an ext4 image of its own, cut off

Three nodes are filled, checkpoints and the log's margin as they come. Then one follower is killed under
writes and started again; then all three at once. After a power cut, which all three share, one is started
alone at first, and can answer local reads only. Times count from the start of the process: until a local
read is answered, and until a linearizable one is; `leader` is when a leader answered for the first time.
Every write that was acknowledged is looked for afterwards: `lost` must be 0.

The nodes run from bytecode, as an installed package does, even if the environment has Python write none.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.options import positive_int
from bench.power import PowerCutDisk
from bench.processes import anonymous_bytes
from raftstate import AsyncClient, IndefiniteError, RaftstateError, connect_async
from raftstate.address import split_address
from raftstate.supervisor import LocalCluster

HELP = "restart nodes that hold much, after kill -9 or a power cut"
VALUE_BYTES = 10_000
WRITERS = 16
SEED = 9
_PATIENCE_S = 120
_COLUMNS = ("local_s", "linearizable_s", "leader_s")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this measurement."""
    parser.add_argument("--megabytes", type=positive_int, default=1024, help="values that each node holds")
    parser.add_argument("--power-cut", action="store_true", help="cut the disk of all nodes off, as root")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with _folder(args.power_cut, args.megabytes) as (folder, disk):
        cluster = LocalCluster(folder / "cluster", nodes=3, port=0)
        with contextlib.ExitStack() as stack:
            cluster.start()
            stack.callback(cluster.stop)
            cluster.wait_for_leader()
            return asyncio.run(_measure(cluster, args.megabytes, disk))


@contextlib.contextmanager
def _folder(power_cut: bool, megabytes: int) -> Iterator[tuple[Path, PowerCutDisk | None]]:
    with tempfile.TemporaryDirectory(prefix="raftstate-recovery-") as scratch:
        if not power_cut:
            yield Path(scratch), None
            return
        with PowerCutDisk(Path(scratch), megabytes=megabytes * 12 + 4096) as disk:
            yield disk.folder, disk


async def _measure(cluster: LocalCluster, megabytes: int, disk: PowerCutDisk | None) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    async with connect_async(cluster.url, timeout=60) as client:
        writer = _Writer(client)
        await writer.fill(megabytes * 1_000_000 // VALUE_BYTES)
        if disk is None:
            figures["follower"] = await _one_follower(cluster, writer)
        else:
            await writer.go_on(2.0)
            await writer.stop()
            figures["alone"] = await _alone(cluster, disk)
        await writer.go_on(2.0)
        await writer.stop()
        figures["all"] = await _all(cluster, disk)
    async with connect_async(cluster.url, timeout=60) as client:
        figures["lost"] = await writer.lost(client)
    figures["acknowledged"] = len(writer.acknowledged)
    figures["anonymous_mb"] = (
        max(anonymous_bytes(node.pid) for node in cluster.nodes if node.pid is not None) // 1_000_000
    )
    return figures


class _Writer:
    """Writes that are remembered once they are acknowledged: key -> number in its value."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._random = random.Random(SEED)
        self.acknowledged: dict[bytes, int] = {}
        self._unknown: set[bytes] = set()
        self._next = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    async def fill(self, keys: int) -> None:
        """Write `keys` new keys."""
        last = self._next + keys

        async def work() -> None:
            while self._next < last:
                await self._write()

        await asyncio.gather(*(work() for _ in range(WRITERS * 4)))

    async def go_on(self, seconds: float) -> None:
        """Write in the background from now on, and return after some time."""

        async def work() -> None:
            while not self._stopping:
                await self._write()

        self._tasks += [asyncio.create_task(work()) for _ in range(WRITERS)]
        await asyncio.sleep(seconds)

    async def stop(self) -> None:
        """End what goes on in the background."""
        self._stopping = True
        await asyncio.gather(*self._tasks)
        self._tasks, self._stopping = [], False

    async def _write(self) -> None:
        number = self._next
        self._next += 1
        key = b"recovery/%09d" % number
        value = number.to_bytes(8, "big") + self._random.randbytes(VALUE_BYTES - 8)
        try:
            await self._client.put(key, value)
        except IndefiniteError:
            self._unknown.add(key)
        else:
            self.acknowledged[key] = number

    async def lost(self, client: AsyncClient) -> int:
        """Return how many acknowledged writes are not there, or not as they were written."""
        found = set()
        async for pair in client.scan(prefix="recovery/"):
            if self.acknowledged.get(pair.key) == int.from_bytes(pair.value[:8], "big"):
                found.add(pair.key)
        return len(self.acknowledged.keys() - found)


async def _one_follower(cluster: LocalCluster, writer: _Writer) -> dict[str, float]:
    """Kill a follower under writes, start it, and see when it is of use."""
    leader = await asyncio.to_thread(cluster.wait_for_leader)
    await writer.go_on(1.5)
    victim = next(node for node in cluster.nodes if node.name != leader)
    cluster.kill(victim.name)
    await asyncio.sleep(1)
    began = time.perf_counter()
    starting = asyncio.create_task(asyncio.to_thread(cluster.restart, victim.name))
    local_s, linearizable_s = await asyncio.gather(
        _first_answer(victim.endpoint, "local", began), _first_answer(victim.endpoint, "linearizable", began)
    )
    await starting
    await writer.stop()
    return {"local_s": local_s, "linearizable_s": linearizable_s}


async def _alone(cluster: LocalCluster, disk: PowerCutDisk) -> dict[str, float]:
    """Cut the power of all nodes, and start one of them before the others."""
    _end_all(cluster, disk)
    first, *others = cluster.nodes
    began = time.perf_counter()
    starting = asyncio.create_task(asyncio.to_thread(cluster.restart, first.name))
    local_s = await _first_answer(first.endpoint, "local", began)
    await starting
    for node in others:
        await asyncio.to_thread(cluster.restart, node.name)
    await asyncio.to_thread(cluster.wait_for_leader)
    return {"local_s": local_s}


def _end_all(cluster: LocalCluster, disk: PowerCutDisk | None) -> None:
    if disk is not None:
        disk.cut()
    for node in cluster.nodes:
        cluster.kill(node.name)
    if disk is not None:
        cluster.stop()  # none runs; but the cluster's lock is on that disk, and would keep it busy
        disk.restore()


async def _all(cluster: LocalCluster, disk: PowerCutDisk | None) -> dict[str, float]:
    """End all nodes at one blow, start them, and see when each is of use: the slowest counts."""
    _end_all(cluster, disk)
    began = time.perf_counter()
    endpoints = [node.endpoint for node in cluster.nodes]
    starting = [asyncio.create_task(asyncio.to_thread(cluster.restart, node.name)) for node in cluster.nodes]
    local, linearizable, leader = await asyncio.gather(
        asyncio.gather(*(_first_answer(each, "local", began) for each in endpoints)),
        asyncio.gather(*(_first_answer(each, "linearizable", began) for each in endpoints)),
        _first_leader(endpoints, began),
    )
    await asyncio.gather(*starting)
    return {
        "local_s": max(local),
        "linearizable_s": max(linearizable),
        "leader_s": leader,
        "linearizable_after_leader_s": max(linearizable) - leader,
    }


async def _first_answer(endpoint: str, consistency: Any, began: float) -> float:
    """Return how long after `began` a node answers a read by itself."""
    await _listening(endpoint, began)
    async with connect_async(endpoint, timeout=0.2) as client:
        while time.perf_counter() - began < _PATIENCE_S:
            try:
                await client.get(b"recovery/000000000", consistency=consistency)
            except RaftstateError:
                await asyncio.sleep(0.01)
            else:
                return time.perf_counter() - began
    raise TimeoutError(f"{endpoint} answered no {consistency} read within {_PATIENCE_S} s")


async def _listening(endpoint: str, began: float) -> None:
    """Wait until somebody listens there. By the socket alone: a channel that was refused pauses before it
    tries again, and that would be measured, too."""
    host, port = split_address(endpoint)
    while time.perf_counter() - began < _PATIENCE_S:
        try:
            _, writer = await asyncio.open_connection(host, port)
        except OSError:
            await asyncio.sleep(0.01)
        else:
            writer.close()
            return
    raise TimeoutError(f"nobody listened on {endpoint} within {_PATIENCE_S} s")


async def _first_leader(endpoints: list[str], began: float) -> float:
    """Return how long after `began` one of some nodes says that it leads."""
    asked = [asyncio.ensure_future(_leads(each, began)) for each in endpoints]
    try:
        done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        return min(each.result() for each in done)
    finally:
        for each in asked:
            each.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


async def _leads(endpoint: str, began: float) -> float:
    await _listening(endpoint, began)
    async with connect_async(endpoint, timeout=0.2) as client:
        while time.perf_counter() - began < _PATIENCE_S:
            with contextlib.suppress(RaftstateError):
                if (await client.status(endpoint))[0].role == "leader":
                    return time.perf_counter() - began
            await asyncio.sleep(0.01)
    raise TimeoutError(f"{endpoint} did not lead within {_PATIENCE_S} s")


def print_figures(console: Console, args: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Print what was measured for people."""
    how = "a power cut" if args.power_cut else "kill -9"
    table = Table(title=f"restart after {how}, {args.megabytes:,} MB of values")
    for column in ("which", "local read s", "linearizable read s", "leader s"):
        table.add_column(column, justify="left" if column == "which" else "right")
    for which in ("follower", "alone", "all"):
        if which in figures:
            row = figures[which]
            cells = (f"{row[name]:.2f}" if name in row else "" for name in _COLUMNS)
            table.add_row(which, *cells)
    console.print(table)
    console.print(
        f"{figures['acknowledged']:,} writes acknowledged, {figures['lost']} lost;"
        f" anonymous memory of a node {figures['anonymous_mb']} MB at most"
    )
