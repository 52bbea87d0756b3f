"""Watches under load: what is delivered, how late, and what it costs the node and the client.

Three nodes, one writer at a given rate, and client processes with watches spread over prefixes: each event
goes to (watches / prefixes) of them. All the watches of one process are at one node.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.options import count, positive, positive_int
from bench.processes import anonymous_bytes, cpu_s
from bench.stalls import StallProbe, long
from bench.watch_load import WatchProcess, Writer, judge, lags_ms
from raftstate import connect_async
from raftstate.supervisor import LocalCluster

HELP = "measure many watches under a steady load of writes"
FILLER_VALUE = bytes(64 << 10)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument("--watches", type=positive_int, default=1_000, help="in all, over all processes")
    parser.add_argument("--prefixes", type=positive_int, default=100)
    parser.add_argument(
        "--processes", type=positive_int, default=1, help="client processes that share the watches"
    )
    parser.add_argument("--unread", type=count, default=0, help="more watches, of each process, never read")
    parser.add_argument("--writes-per-s", type=positive, default=1_000)
    parser.add_argument("--value-bytes", type=positive_int, default=256)
    parser.add_argument(
        "--filler-mib",
        type=count,
        default=96,
        help="written first: more than a node keeps in memory of the recent end of its log, so that its\n"
        "filling up does not count as growth",
    )
    parser.add_argument("--seconds", type=positive, default=30.0)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Start everything afresh, measure, and return the figures."""
    with tempfile.TemporaryDirectory(prefix="raftstate-bench-") as scratch, ExitStack() as stack:
        folder = Path(scratch)
        cluster = stack.enter_context(LocalCluster(folder / "raftstate", nodes=3, port=0))
        leader = cluster.wait_for_leader()
        share = -(-args.watches // args.processes)
        processes = []
        for _ in range(args.processes):
            process = WatchProcess(
                cluster.url, folder, watches=share, prefixes=args.prefixes, unread=args.unread
            )
            stack.callback(process.close)
            processes.append(process)
        for process in processes:
            process.wait_ready()
        probe = StallProbe(folder)
        figures = asyncio.run(_measure(args, cluster, processes))
        stalls = probe.stop()
        figures["leader"] = leader
        figures["host_stalls"] = [{"kind": stall.kind, "ms": round(stall.ms, 1)} for stall in long(stalls)]
        return figures


async def _measure(
    args: argparse.Namespace, cluster: LocalCluster, processes: list[WatchProcess]
) -> dict[str, Any]:
    nodes = {node.name: node.pid or 0 for node in cluster.nodes}
    clients = {f"client {number}": process.pid for number, process in enumerate(processes, 1)}
    pids = nodes | clients
    async with connect_async(cluster.url, timeout=30) as client:
        for _ in range((args.filler_mib << 20) // len(FILLER_VALUE)):
            await client.put("filler", FILLER_VALUE)
        writer = Writer(client, per_s=args.writes_per_s, prefixes=args.prefixes, value_bytes=args.value_bytes)
        # A second of warm-up.
        await writer.until(int(args.writes_per_s), timeout_s=60)
        began, began_ns = time.perf_counter(), time.monotonic_ns()
        cpu_before = {name: cpu_s(pid) for name, pid in pids.items()}
        memory_before = {name: anonymous_bytes(pid) for name, pid in pids.items()}
        await asyncio.sleep(args.seconds)
        elapsed_s, ended_ns = time.perf_counter() - began, time.monotonic_ns()
        cpu = {name: (cpu_s(pid) - cpu_before[name]) / elapsed_s for name, pid in pids.items()}
        memory = {name: (memory_before[name], anonymous_bytes(pid)) for name, pid in pids.items()}
        written = await writer.finish()
    records = [await asyncio.to_thread(process.records) for process in processes]
    verdicts = [judge(each, written) for each in records]
    within = [each.between(began_ns, ended_ns) for each in records]
    delivered = sum(1 for each in within for _ in each)
    lags = sorted(lag for each in within for lag in lags_ms(each, written))
    acknowledged = sum(began_ns <= at_ns < ended_ns for _, at_ns in written.acknowledged.values())
    return {
        "writes_per_s": round(acknowledged / elapsed_s, 1),
        "delivered_per_s": round(delivered / elapsed_s, 1),
        "lag_p50_ms": round(lags[len(lags) // 2], 3),
        "lag_p99_ms": round(lags[int(len(lags) * 0.99)], 3),
        "lag_max_ms": round(lags[-1], 3),
        "verdicts": [asdict(verdict) for verdict in verdicts],
        "processes": {
            name: {
                "cpu": round(cpu[name], 3),
                "anonymous_mib_at_start": round(memory[name][0] / 2**20, 1),
                "anonymous_mib_at_end": round(memory[name][1] / 2**20, 1),
            }
            for name in pids
        },
    }


def print_figures(console: Console, args: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Print the figures for people."""
    console.print(
        f"{args.watches} watches of {args.processes} process(es) over {args.prefixes} prefixes,"
        f" {args.writes_per_s:g} writes/s of {args.value_bytes} bytes, {args.seconds:g} s; leader"
        f" {figures['leader']}"
    )
    console.print(
        f"{figures['writes_per_s']:,.0f} writes/s acknowledged, {figures['delivered_per_s']:,.0f} events/s"
        f" delivered; from acknowledgement to delivery p50 {figures['lag_p50_ms']:.2f} ms,"
        f" p99 {figures['lag_p99_ms']:.2f} ms, max {figures['lag_max_ms']:.1f} ms"
    )
    wrong = {
        name: sum(verdict[name] for verdict in figures["verdicts"])
        for name in ("missing", "disordered", "foreign")
    }
    console.print("events " + ", ".join(f"{name}: {count}" for name, count in wrong.items()))
    table = Table()
    for column in ("process", "CPU cores", "own memory at start MiB", "at end MiB"):
        table.add_column(column, justify="left" if column == "process" else "right")
    for name, cost in figures["processes"].items():
        table.add_row(
            name,
            f"{cost['cpu']:.2f}",
            f"{cost['anonymous_mib_at_start']:.1f}",
            f"{cost['anonymous_mib_at_end']:.1f}",
        )
    console.print(table)
    longest = max((stall["ms"] for stall in figures["host_stalls"]), default=0.0)
    console.print(
        f"stalls of the host of 100 ms or more: {len(figures['host_stalls'])}, longest {longest:g} ms"
    )
