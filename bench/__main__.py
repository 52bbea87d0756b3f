"""Command line of the benchmarks.

    python -m bench write --concurrency 1,64,256,1024 --seconds 5
    python -m bench compare --workload put --concurrency 256 --peers a,b --seconds 5 --json -
    python -m bench watch --watches 1000 --prefixes 100 --writes-per-s 1000 --seconds 30
    python -m bench history --versions 100000
    python -m bench compaction --changes 1000000 --keys 100000
    python -m bench recovery --megabytes 1024
    python -m bench overwrite --seconds 600
    python -m bench catch-up --entries 100000 --megabytes 1000 --writers 64

`write` is `compare --workload put` without peers. Each figure is of one run: repeat a command to see how far
they scatter, before anything is read into a difference. Exit 0: measured; 1: a named peer is not to be had
here; 2: usage.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from bench import catch_up, compaction, history, overwrite, recovery, watch
from bench.load import Keys, Measurement, UsageError, prefill, run_puts
from bench.systems import starters

OURS = "raftstate"
SEED = 20_250_101
ALONE = {
    "watch": watch,
    "history": history,
    "compaction": compaction,
    "catch-up": catch_up,
    "recovery": recovery,
    "overwrite": overwrite,
}
"""The measurements that know no other system."""


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Return the parsed command line; exits with 2 when it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    compare = commands.add_parser("compare", help="measure raftstate beside other systems")
    compare.add_argument("--workload", choices=["put"], default="put")
    compare.add_argument("--peers", default="", help="comma-separated names of other systems")
    write = commands.add_parser("write", help="measure puts on three durable local nodes")
    write.set_defaults(workload="put", peers="")
    for command in (compare, write):
        command.add_argument("--concurrency", default="256", help="one number, or a comma-separated list")
        command.add_argument("--seconds", type=float, default=5.0)
        command.add_argument("--keys", default="uniform:10000", help="uniform:N (prefilled) or sequential")
    for name, module in ALONE.items():
        module.add_arguments(commands.add_parser(name, help=module.HELP))
    for command in commands.choices.values():
        command.add_argument("--json", metavar="FILE|-", help="write the figures there")
    return parser.parse_args(arguments)


def describe_machine() -> str:
    """Return what the figures were taken on."""
    system = f"{platform.system()} {platform.release()}"
    return f"{os.cpu_count()} cores, {system}, Python {platform.python_version()}"


def commit() -> str:
    """Return the commit that is measured, or "unknown" outside of a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


async def measure_system(
    name: str, concurrencies: list[int], keys: Keys, seconds: float
) -> tuple[str, dict[int, Measurement]]:
    """Start a system afresh, prefill it, and run each concurrency. Returns (settings, results)."""
    results = {}
    with tempfile.TemporaryDirectory(prefix="raftstate-bench-") as scratch:
        async with starters()[name](Path(scratch)) as store:
            await prefill(store, keys, SEED)
            for concurrency in concurrencies:
                results[concurrency] = await run_puts(store, keys, concurrency, seconds, SEED)
            return store.settings, results


def report(
    args: argparse.Namespace, settings: dict[str, str], measured: dict[str, dict[int, Measurement]]
) -> list[dict[str, object]]:
    """Return the figures as dictionaries, one for each concurrency."""
    rows = []
    for concurrency in measured[OURS]:
        ours = measured[OURS][concurrency]
        systems = {
            name: {
                **{k: round(v, 3) for k, v in asdict(results[concurrency]).items()},
                "settings": settings[name],
            }
            for name, results in measured.items()
        }
        ratio = {
            name: {
                "ops_per_s": round(ours.ops_per_s / results[concurrency].ops_per_s, 3),
                "p50": round(ours.p50_ms / results[concurrency].p50_ms, 3),
            }
            for name, results in measured.items()
            if name != OURS
        }
        rows.append(
            {
                "workload": args.workload,
                "concurrency": concurrency,
                "keys": args.keys,
                "machine": describe_machine(),
                "commit": commit(),
                "systems": systems,
                "ratio": ratio,
            }
        )
    return rows


def print_table(
    console: Console, args: argparse.Namespace, measured: dict[str, dict[int, Measurement]]
) -> None:
    """Print the figures for people."""
    table = Table(title=f"{args.workload}, 256-byte values, keys {args.keys} ({describe_machine()})")
    for column in ("system", "concurrency", "puts/s", "p50 ms", "p99 ms", "max ms"):
        table.add_column(column, justify="left" if column == "system" else "right")
    for name, results in measured.items():
        for concurrency, result in results.items():
            table.add_row(
                name,
                str(concurrency),
                f"{result.ops_per_s:,.0f}",
                f"{result.p50_ms:.2f}",
                f"{result.p99_ms:.2f}",
                f"{result.max_ms:.1f}",
            )
    console.print(table)


def write_json(target: str, figures: object) -> None:
    """Write figures to a file, or "-"."""
    text = json.dumps(figures, indent=2)
    if target == "-":
        print(text)
    else:
        Path(target).write_text(text + "\n")


def measure_alone(console: Console, args: argparse.Namespace) -> None:
    """Run a measurement that knows no other system."""
    module = ALONE[args.command]
    with console.status(f"measuring {args.command}"):
        figures = module.run(args)
    module.print_figures(console, args, figures)
    if args.json:
        sizes = {name: value for name, value in vars(args).items() if name not in ("command", "json")}
        about = {"workload": args.command, **sizes, "machine": describe_machine(), "commit": commit()}
        write_json(args.json, {**about, **figures})


def main() -> int:
    """Run the command line; returns the exit code."""
    args = parse_arguments(sys.argv[1:])
    console = Console(stderr=args.json == "-")
    if args.command in ALONE:
        measure_alone(console, args)
        return 0
    try:
        keys = Keys(args.keys)
        concurrencies = [int(item) for item in args.concurrency.split(",")]
        if min(concurrencies) < 1:
            raise UsageError(f"--concurrency is {args.concurrency}; each number must be at least 1")
    except (UsageError, ValueError) as error:
        console.print(f"usage: {error}", style="red")
        return 2
    names = [OURS, *(name for name in args.peers.split(",") if name)]
    absent = [name for name in names if name not in starters()]
    if absent:
        console.print(f"not to be had here: {', '.join(absent)}; known: {', '.join(starters())}", style="red")
        return 1
    measured: dict[str, dict[int, Measurement]] = {}
    settings: dict[str, str] = {}
    for name in names:
        with console.status(f"measuring {name}, {len(concurrencies)} x {args.seconds:g} s"):
            settings[name], measured[name] = uvloop.run(
                measure_system(name, concurrencies, keys, args.seconds)
            )
    print_table(console, args, measured)
    if args.json:
        rows = report(args, settings, measured)
        write_json(args.json, rows if len(rows) > 1 else rows[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
