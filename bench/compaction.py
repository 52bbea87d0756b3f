"""A compaction under load: how long single puts take while the history is being deleted, and before.

Three nodes. The changes are written first, over keys drawn uniformly. Then a writer puts a key at a time, all
the time: for a while as things are, and, from the moment that the history up to then is compacted, until each
node has deleted it. A witness (`bench.stalls`) notes when the host itself stood still.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import uvloop
from rich.console import Console

from bench.load import VALUE_BYTES
from bench.options import positive, positive_int
from bench.stalls import STALL_MS, Stall, StallProbe, long, overlapping
from raftstate import AsyncClient, connect_async
from raftstate.supervisor import LocalCluster

HELP = "measure single puts while a large history is compacted"
PORTION = 5_000
SWEPT = re.compile(rb"history deleted.*\bcompacted_revision=(\d+)")
SWEEP_TIMEOUT_S = 3_600.0
SAMPLE_S = 0.25
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
    parser.add_argument("--changes", type=positive_int, default=1_000_000)
    parser.add_argument("--keys", type=positive_int, default=100_000)
    parser.add_argument("--seconds", type=positive, default=20.0, help="of single puts before the compaction")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Start everything afresh, measure, and return the figures."""
    with tempfile.TemporaryDirectory(prefix="raftstate-bench-") as scratch, ExitStack() as stack:
        cluster = stack.enter_context(LocalCluster(Path(scratch) / "raftstate", nodes=3, port=0))
        cluster.wait_for_leader()
        return uvloop.run(_measure(args, cluster, Path(scratch)))


async def _measure(args: argparse.Namespace, cluster: LocalCluster, folder: Path) -> dict[str, Any]:
    async with connect_async(cluster.url, timeout=60) as client:
        began = time.perf_counter()
        revision = await _fill(client, args.changes, args.keys)
        fill_s = time.perf_counter() - began
        probe = StallProbe(folder)
        puts: list[Put] = []
        writer = asyncio.create_task(_put_all_the_time(client, puts, args.keys))
        await asyncio.sleep(args.seconds)
        compacted_ns = time.monotonic_ns()
        await client.compact(revision)
        swept_s = await _swept(cluster, revision)
        writer.cancel()
        term = max(status.term for status in await client.status())
    stalls = await asyncio.to_thread(probe.stop)
    ended_ns = compacted_ns + int(max(swept_s.values()) * 1e9)
    return {
        "fill_changes_per_s": round(args.changes / fill_s),
        "sweep_s": {name: round(seconds, 2) for name, seconds in swept_s.items()},
        "before": _figures([put for put in puts if put.end_ns < compacted_ns], stalls),
        "during": _figures([put for put in puts if compacted_ns <= put.end_ns < ended_ns], stalls),
        "term": term,
        "host_stalls": [{"kind": stall.kind, "ms": round(stall.ms, 1)} for stall in long(stalls)],
    }


async def _fill(client: AsyncClient, changes: int, keys: int) -> int:
    """Write the history; return its last revision."""
    draw = random.Random(SEED)
    revision = 0
    for start in range(0, changes, PORTION):
        done = await client.put_many(
            (b"bench/%08d" % draw.randrange(keys), draw.randbytes(VALUE_BYTES))
            for _ in range(min(PORTION, changes - start))
        )
        revision = max(revision, *(result.revision for result in done))
    return revision


async def _put_all_the_time(client: AsyncClient, puts: list[Put], keys: int) -> None:
    draw = random.Random(SEED + 1)
    while True:
        key, value = b"bench/%08d" % draw.randrange(keys), draw.randbytes(VALUE_BYTES)
        start_ns = time.monotonic_ns()
        await client.put(key, value)
        puts.append(Put(start_ns, time.monotonic_ns()))


async def _swept(cluster: LocalCluster, revision: int) -> dict[str, float]:
    """Wait until each node has logged that the history up to `revision` is deleted; return after how many
    seconds it had."""
    began = time.perf_counter()
    logs = {node.name: node.log for node in cluster.nodes}
    seen: dict[str, float] = {}
    async with asyncio.timeout(SWEEP_TIMEOUT_S):
        while len(seen) < len(logs):
            await asyncio.sleep(SAMPLE_S)
            for name, log in logs.items():
                found = SWEPT.findall(log.read_bytes())
                if name not in seen and found and int(found[-1]) >= revision:
                    seen[name] = time.perf_counter() - began
    return seen


def _figures(puts: list[Put], stalls: list[Stall]) -> dict[str, Any]:
    took_ms = sorted(put.ms for put in puts)
    slow = [put for put in puts if put.ms > STALL_MS]
    of_host = {put for put in slow if overlapping(long(stalls), put.start_ns, put.end_ns)}
    own = [put.ms for put in puts if put not in of_host]
    return {
        "puts": len(puts),
        "p50_ms": round(statistics.median(took_ms), 3),
        "p99_ms": round(took_ms[int(len(took_ms) * 0.99)], 3),
        "max_ms": round(took_ms[-1], 3),
        "max_without_host_stalls_ms": round(max(own, default=0.0), 3),
        "over_100_ms": [_described(put, stalls) for put in slow if put not in of_host],
        "over_100_ms_in_host_stalls": [_described(put, stalls) for put in slow if put in of_host],
    }


def _described(put: Put, stalls: list[Stall]) -> dict[str, float]:
    met = overlapping(stalls, put.start_ns, put.end_ns)
    longest = {kind: max((s.ms for s in met if s.kind == kind), default=0.0) for kind in ("clock", "disk")}
    return {"ms": round(put.ms, 1), **{f"host_{kind}_ms": round(ms, 1) for kind, ms in longest.items()}}


def print_figures(console: Console, args: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Print the figures for people."""
    console.print(
        f"{args.changes:,} changes over {args.keys:,} keys, written at {figures['fill_changes_per_s']:,}/s;"
        " their history deleted after "
        + ", ".join(f"{name}: {seconds:g} s" for name, seconds in figures["sweep_s"].items())
    )
    for name in ("before", "during"):
        row = figures[name]
        console.print(
            f"puts {name}: {row['puts']:,}, p50 {row['p50_ms']:.2f} ms, p99 {row['p99_ms']:.2f} ms,"
            f" longest {row['max_ms']:.1f} ms ({row['max_without_host_stalls_ms']:.1f} ms without those that"
            f" met a stall of the host)"
        )
        for key, where in (("over_100_ms", ""), ("over_100_ms_in_host_stalls", ", in a stall of the host")):
            for put in row[key]:
                console.print(
                    f"  {put['ms']:g} ms{where}; meanwhile the witness was not run for"
                    f" {put['host_clock_ms']:g} ms, its disk did not sync for {put['host_disk_ms']:g} ms"
                )
    longest = max((stall["ms"] for stall in figures["host_stalls"]), default=0.0)
    console.print(
        f"stalls of the host of 100 ms or more: {len(figures['host_stalls'])}, longest {longest:g} ms"
    )
