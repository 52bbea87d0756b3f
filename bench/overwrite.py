"""Whether files level off: keys overwritten for minutes at a share of the highest rate, and sizes as they go.

    python -m bench overwrite --seconds 600

Three nodes that keep their history for half a minute (an hour is the default, and would only take longer to
level off). The highest rate is measured first, with 64 writers that wait for their answers; then writes are
sent at 80 % of it, whether or not answers come in time. `growth`: the largest size within the last third over
the largest within the third before; about 1 means that a file is as large as it gets.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.load import VALUE_BYTES, Keys
from bench.options import positive, positive_int
from raftstate import AsyncClient, RaftstateError, connect_async
from raftstate.supervisor import LocalCluster

HELP = "overwrite keys for minutes, and watch the sizes of files"
RETENTION_S = 30
SEED = 5
WRITERS = 64
IN_FLIGHT_MAX = 4096
_SAMPLE_S = 5.0
_PROBE_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this measurement."""
    parser.add_argument("--seconds", type=positive, default=600.0)
    parser.add_argument("--keys", type=positive_int, default=10_000)
    parser.add_argument("--share", type=positive, default=0.8, help="of the highest rate")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure."""
    with tempfile.TemporaryDirectory(prefix="raftstate-overwrite-") as scratch:
        cluster = LocalCluster(Path(scratch) / "cluster", nodes=3, port=0)
        for node in cluster.nodes:
            file = node.data / "node.toml"
            text = file.read_text()
            file.write_text(
                text.replace("history_retention_s = 3600", f"history_retention_s = {RETENTION_S}")
            )
        with cluster:
            cluster.wait_for_leader()
            return asyncio.run(_measure(cluster, args))


async def _measure(cluster: LocalCluster, args: argparse.Namespace) -> dict[str, Any]:
    keys = Keys(f"uniform:{args.keys}").stream(SEED)
    async with connect_async(cluster.url, timeout=30) as client:
        highest = await _highest_rate(client, keys)
        samples = asyncio.create_task(_sample(client, args.seconds))
        acknowledged, refused = await _write(client, keys, highest * args.share, args.seconds)
        rows = await samples
    return {
        "highest_per_s": round(highest),
        "acknowledged": acknowledged,
        "refused": refused,
        "samples": rows,
        "growth": {kind: _growth(rows, kind) for kind in ("log_mb", "state_mb", "log_entries")},
    }


async def _highest_rate(client: AsyncClient, keys: Any) -> float:
    done = 0
    end = time.perf_counter() + _PROBE_S

    async def work() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await client.put(next(keys), bytes(VALUE_BYTES))
            done += 1

    await asyncio.gather(*(work() for _ in range(WRITERS)))
    return done / _PROBE_S


async def _write(client: AsyncClient, keys: Any, per_s: float, seconds: float) -> tuple[int, int]:
    """Send writes at a rate. Returns how many were acknowledged, and how many not."""
    acknowledged = refused = 0
    under_way: set[asyncio.Task[None]] = set()

    async def put() -> None:
        nonlocal acknowledged, refused
        try:
            await client.put(next(keys), bytes(VALUE_BYTES))
            acknowledged += 1
        except RaftstateError:
            refused += 1

    began = time.perf_counter()
    sent = 0
    while (now := time.perf_counter() - began) < seconds:
        while sent < now * per_s:
            sent += 1
            if len(under_way) >= IN_FLIGHT_MAX:
                refused += 1
                continue
            task = asyncio.create_task(put())
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.sleep(0.005)
    await asyncio.gather(*under_way)
    return acknowledged, refused


async def _sample(client: AsyncClient, seconds: float) -> list[dict[str, float]]:
    """Return the largest sizes of any node, every few seconds."""
    rows = []
    began = time.perf_counter()
    while (now := time.perf_counter() - began) < seconds:
        nodes = [node for node in await client.status() if not node.error]
        rows.append(
            {
                "second": round(now),
                "log_mb": max(node.log_bytes for node in nodes) / 1e6,
                "log_entries": max(node.last_log_index - node.first_log_index + 1 for node in nodes),
                "state_mb": max(node.state_bytes for node in nodes) / 1e6,
                "revision": max(node.revision for node in nodes),
                "compacted": min(node.compacted_revision for node in nodes),
            }
        )
        await asyncio.sleep(_SAMPLE_S)
    return rows


def _growth(rows: list[dict[str, float]], kind: str) -> float:
    third = max(1, len(rows) // 3)
    before = max(row[kind] for row in rows[-2 * third : -third] or rows)
    return round(max(row[kind] for row in rows[-third:]) / before, 3) if before else 0.0


def print_figures(console: Console, args: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Print what was measured for people."""
    table = Table(
        title=f"overwriting {args.keys:,} keys at {args.share:.0%} of {figures['highest_per_s']:,}/s"
    )
    for column in ("second", "log MB", "log entries", "state MB", "revision"):
        table.add_column(column, justify="right")
    rows = figures["samples"]
    for row in rows[:: max(1, len(rows) // 12)]:
        table.add_row(
            f"{row['second']:.0f}",
            f"{row['log_mb']:,.1f}",
            f"{row['log_entries']:,.0f}",
            f"{row['state_mb']:,.1f}",
            f"{row['revision']:,.0f}",
        )
    console.print(table)
    console.print(
        f"{figures['acknowledged']:,} acknowledged, {figures['refused']:,} not; growth from the second third"
        f" to the last: {figures['growth']}"
    )
