"""A follower that was down catches up by a snapshot, while others write: how long single puts take meanwhile.

Three nodes, whose logs keep little behind their checkpoints. A follower is killed; then so many entries of so
many bytes in all are written to new keys. It is started again while writers put a key at a time each, and the
time is taken until it has applied what the leader had committed a moment before. At last everything that was
acknowledged is looked for. A witness (`bench.stalls`) notes when the host itself stood still.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import statistics
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import uvloop
from rich.console import Console

from bench.load import VALUE_BYTES
from bench.options import positive, positive_int
from bench.processes import anonymous_bytes
from bench.stalls import STALL_MS, Stall, StallProbe, long, overlapping
from raftstate import AsyncClient, NodeStatus, connect_async
from raftstate.supervisor import LocalCluster

HELP = "measure single puts while a follower that was down catches up by a snapshot"
MARGIN_ENTRIES = 1_000
MARGIN_BYTES = 16 << 20
CLOSE_ENTRIES = 100
"""The follower has caught up once it is no further behind than this."""
SAMPLE_S = 0.05
TIMEOUT_S = 3_600.0
INSTALLED = re.compile(r"snapshot installed.*\bseconds=([0-9.]+)")
SEED = 20_250_101


class Put(NamedTuple):
    """A put: when it was sent and when answered, in monotonic ns."""

    start_ns: int
    end_ns: int

    @property
    def ms(self) -> float:
        """How long it took, in ms."""
        return (self.end_ns - self.start_ns) / 1e6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument("--entries", type=positive_int, default=100_000, help="that the follower lacks")
    parser.add_argument("--megabytes", type=positive_int, default=1_000, help="that they have together")
    parser.add_argument("--writers", type=positive_int, default=64)
    parser.add_argument("--seconds", type=positive, default=10.0, help="of puts before the start, and after")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Start everything afresh, measure, and return the figures."""
    with tempfile.TemporaryDirectory(prefix="raftstate-bench-") as scratch, ExitStack() as stack:
        cluster = LocalCluster(Path(scratch) / "raftstate", nodes=3, port=0)
        for node in cluster.nodes:
            file = node.data / "node.toml"
            margins = f"log_margin_entries = {MARGIN_ENTRIES}\nlog_margin_bytes = {MARGIN_BYTES}\n"
            file.write_text(margins + file.read_text())
        stack.enter_context(cluster)
        leader = cluster.wait_for_leader()
        return uvloop.run(_Measurement(args, cluster, leader, Path(scratch)).run())


class _Measurement:
    """One run."""

    def __init__(self, args: argparse.Namespace, cluster: LocalCluster, leader: str, folder: Path) -> None:
        self._args = args
        self._cluster = cluster
        self._behind = next(node.name for node in cluster.nodes if node.name != leader)
        self._folder = folder
        self._puts: list[Put] = []
        self._acknowledged: set[bytes] = set()
        self._errors = 0
        self._stopping = False
        self._anonymous: dict[str, int] = {}

    async def run(self) -> dict[str, Any]:
        """Measure, and return the figures."""
        args = self._args
        async with connect_async(self._cluster.url, timeout=60) as client:
            await asyncio.to_thread(self._cluster.kill, self._behind)
            began = time.perf_counter()
            entries = await self._fill(client)
            fill_s = time.perf_counter() - began
            probe = StallProbe(self._folder)
            sampling = asyncio.create_task(self._sample_memory())
            writers = [asyncio.create_task(self._write(client, number)) for number in range(args.writers)]
            await asyncio.sleep(args.seconds)
            started_ns = time.monotonic_ns()
            await asyncio.to_thread(self._cluster.restart, self._behind)
            serving_ns = time.monotonic_ns()
            await self._until_caught_up(client)
            caught_up_ns = time.monotonic_ns()
            await asyncio.sleep(args.seconds)
            self._stopping = True
            await asyncio.gather(*writers)
            sampling.cancel()
            stalls = await asyncio.to_thread(probe.stop)
            equal = await self._until_equal(client)
            lost = await self._lost(client)
        after = [put for put in self._puts if put.start_ns > caught_up_ns]
        during = [put for put in self._puts if put.end_ns >= started_ns and put.start_ns <= caught_up_ns]
        log = self._cluster.node(self._behind).log.read_text("utf-8", errors="replace")
        return {
            "entries": entries,
            "fill_s": round(fill_s, 1),
            "start_s": round((serving_ns - started_ns) / 1e9, 2),
            "catch_up_s": round((caught_up_ns - serving_ns) / 1e9, 2),
            "by_snapshot": log.count("snapshot installed"),
            "transfer_and_install_s": [float(seconds) for seconds in INSTALLED.findall(log)],
            "before": _figures([put for put in self._puts if put.end_ns < started_ns], stalls),
            "during": _figures(during, stalls),
            "after": _figures(after, stalls),
            "acknowledged": len(self._acknowledged),
            "lost": lost,
            "refused_or_unknown": self._errors,
            "equal_digests": equal,
            "anonymous_mb_max": {name: size >> 20 for name, size in sorted(self._anonymous.items())},
            "host_stalls": [{"kind": stall.kind, "ms": round(stall.ms, 1)} for stall in long(stalls)],
        }

    async def _fill(self, client: AsyncClient) -> int:
        """Write what the follower will lack; return how many entries that took."""
        first = await self._commit_index(client)
        size = max(1, self._args.megabytes * 1_000_000 // self._args.entries)
        draw = random.Random(SEED)
        entries = written = 0
        wanted = self._args.megabytes * 1_000_000
        while entries < self._args.entries or written < wanted:
            # Single puts, each an entry of its own but for those that meet at the leader.
            for _ in range(500):
                key = b"fill/%09d" % len(self._acknowledged)
                await client.put(key, draw.randbytes(size))
                self._acknowledged.add(key)
                written += size
            entries = await self._commit_index(client) - first
        return entries

    async def _commit_index(self, client: AsyncClient) -> int:
        return max(status.commit_index for status in await _answering(client))

    async def _write(self, client: AsyncClient, writer: int) -> None:
        draw = random.Random(SEED + writer)
        number = 0
        while not self._stopping:
            key = b"bench/%03d/%09d" % (writer, number)
            number += 1
            start_ns = time.monotonic_ns()
            try:
                await client.put(key, draw.randbytes(VALUE_BYTES))
            except Exception:  # noqa: BLE001 - counted, and shown
                self._errors += 1
                continue
            self._puts.append(Put(start_ns, time.monotonic_ns()))
            self._acknowledged.add(key)

    async def _sample_memory(self) -> None:
        while True:
            for node in self._cluster.nodes:
                if node.pid is not None:
                    try:
                        size = anonymous_bytes(node.pid)
                    except ProcessLookupError:
                        continue
                    self._anonymous[node.name] = max(size, self._anonymous.get(node.name, 0))
            await asyncio.sleep(SAMPLE_S)

    async def _until_caught_up(self, client: AsyncClient) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                nodes = {status.name: status for status in await _answering(client)}
                if self._behind in nodes:
                    ahead = max(status.commit_index for status in nodes.values())
                    if nodes[self._behind].applied_index >= ahead - CLOSE_ENTRIES:
                        return
                await asyncio.sleep(SAMPLE_S)

    async def _until_equal(self, client: AsyncClient) -> bool:
        for _ in range(200):
            nodes = await _answering(client)
            if len(nodes) == 3 and len({node.applied_index for node in nodes}) == 1:
                return len({node.digest for node in nodes}) == 1
            await asyncio.sleep(SAMPLE_S)
        return False

    async def _lost(self, client: AsyncClient) -> int:
        """Return how many of the acknowledged keys are not there."""
        missing = set(self._acknowledged)
        for prefix in (b"fill/", b"bench/"):
            async for pair in client.scan(prefix=prefix, keys_only=True):
                missing.discard(pair.key)
        return len(missing)


async def _answering(client: AsyncClient) -> list[NodeStatus]:
    return [status for status in await client.status(timeout=2) if not status.error]


def _figures(puts: Iterable[Put], stalls: list[Stall]) -> dict[str, Any]:
    puts = list(puts)
    took_ms = sorted(put.ms for put in puts)
    if len(took_ms) < 2:
        return {"puts": len(took_ms)}
    quantiles = statistics.quantiles(took_ms, n=1_000)
    slow = [put for put in puts if put.ms > STALL_MS]
    excused = [put for put in slow if overlapping(long(stalls), put.start_ns, put.end_ns)]
    elapsed_s = (max(put.end_ns for put in puts) - min(put.start_ns for put in puts)) / 1e9
    return {
        "puts": len(took_ms),
        "puts_per_s": round(len(took_ms) / elapsed_s),
        "p50_ms": round(quantiles[499], 2),
        "p99_ms": round(quantiles[989], 2),
        "p999_ms": round(quantiles[998], 2),
        "max_ms": round(took_ms[-1], 1),
        f"over_{STALL_MS}_ms": len(slow),
        "of_these_while_the_host_stood_still": len(excused),
    }


def print_figures(console: Console, args: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Print the figures for people."""
    console.print(
        f"{figures['entries']:,} entries and {args.megabytes:,} MB behind: caught up in "
        f"{figures['catch_up_s']:.1f} s after a start of {figures['start_s']:.1f} s "
        f"({figures['by_snapshot']} snapshot(s)), {args.writers} writers meanwhile"
    )
    for name in ("before", "during", "after"):
        console.print(f"  {name}: {figures[name]}")
    console.print(
        f"  lost: {figures['lost']} of {figures['acknowledged']:,}; equal: {figures['equal_digests']}; "
        f"anonymous memory, MB at most: {figures['anonymous_mb_max']}"
    )
    if figures["host_stalls"]:
        console.print(f"  the host stood still: {figures['host_stalls']}")
