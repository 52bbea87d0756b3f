"""Reads of the past: what a get of a key with very many versions costs at an old revision, and at the latest.

Both kinds take turns in the same run, one at a time, so that what disturbs one disturbs the other. The
revisions of old are drawn from the key's whole history.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from bench.load import VALUE_BYTES
from bench.options import positive_int
from raftstate import connect_async
from raftstate.supervisor import LocalCluster

HELP = "measure gets at past revisions of a key with many versions"
KEY = b"bench/history"
PORTION = 5_000
SEED = 20_250_101


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument("--versions", type=positive_int, default=100_000)
    parser.add_argument("--reads", type=positive_int, default=10_000, help="of each kind")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure a node as a process, over gRPC, and one within this process; return the figures."""
    figures = {}
    with tempfile.TemporaryDirectory(prefix="raftstate-bench-") as scratch, ExitStack() as stack:
        cluster = stack.enter_context(LocalCluster(Path(scratch) / "node", nodes=1, port=0))
        cluster.wait_for_leader()
        for name, url in (("gRPC", cluster.url), ("embedded", f"embedded:{scratch}/embedded")):
            figures[name] = uvloop.run(_measure(url, args.versions, args.reads))
    return figures


async def _measure(url: str, versions: int, reads: int) -> dict[str, float]:
    draw = random.Random(SEED)
    async with connect_async(url, timeout=60) as client:
        revisions: list[int] = []
        while len(revisions) < versions:
            count = min(PORTION, versions - len(revisions))
            done = await client.put_many((KEY, draw.randbytes(VALUE_BYTES)) for _ in range(count))
            revisions += (result.revision for result in done)
        latest: list[float] = []
        past: list[float] = []
        now = time.perf_counter
        for revision in draw.choices(revisions, k=reads):
            began = now()
            await client.get(KEY)
            between = now()
            found = await client.get(KEY, revision=revision)
            past.append(now() - between)
            latest.append(between - began)
            if found is None or found.mod_revision != revision:
                raise RuntimeError(f"at revision {revision} stood {found}, not what that revision put")
            # Whatever the last call left to be done must not count for the next one.
            await asyncio.sleep(0)
    return {
        "latest_p50_ms": round(statistics.median(latest) * 1e3, 4),
        "past_p50_ms": round(statistics.median(past) * 1e3, 4),
        "latest_p99_ms": round(_p99(latest) * 1e3, 4),
        "past_p99_ms": round(_p99(past) * 1e3, 4),
        "ratio_p50": round(statistics.median(past) / statistics.median(latest), 3),
    }


def _p99(latencies: list[float]) -> float:
    return sorted(latencies)[int(len(latencies) * 0.99)]


def print_figures(console: Console, args: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Print the figures for people."""
    table = Table(
        title=f"get of a key with {args.versions:,} versions, {args.reads:,} of each kind, by turns"
    )
    for column in ("", "latest p50 ms", "past p50 ms", "past / latest", "latest p99 ms", "past p99 ms"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in figures.items():
        table.add_row(
            name,
            f"{row['latest_p50_ms']:.3f}",
            f"{row['past_p50_ms']:.3f}",
            f"{row['ratio_p50']:.2f}",
            f"{row['latest_p99_ms']:.3f}",
            f"{row['past_p99_ms']:.3f}",
        )
    console.print(table)
