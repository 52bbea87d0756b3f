"""`python -m chaos sim`: many seeds on all cores, figures, and for the first that fails its shortest plan."""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.sim import ledger
from chaos.sim.shrink import shrink
from chaos.sim.simulation import Run, Simulation

HELP = "simulate clusters under faults, deterministically"
SECONDS = 57.6
"""Simulated for each seed, without its heal phase: a thousand seeds are sixteen hours."""
TOLD_EVERY_S = 10.0
TRACE_LINES = 80


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument("--seeds", type=int, default=50, help="how many")
    parser.add_argument("--seed-base", type=int, help="the first one (default: 1, or the ledger's next)")
    parser.add_argument("--minutes", type=float, help="begin no further seed after so many")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="simulated for each seed")
    parser.add_argument("--no-faults", action="store_true", help="let nothing go wrong")
    parser.add_argument("--no-shrink", action="store_true", help="leave a failing plan as long as it is")
    parser.add_argument("--stop-at-first", action="store_true", help="end at the first seed that fails")
    parser.add_argument("--trace", metavar="FILE|-", help="write the whole timeline of the first seed")
    parser.add_argument(
        "--ledger", metavar="FILE", type=Path, help="record the run there, behind the seeds that it has"
    )
    parser.add_argument("--json", metavar="FILE|-", help="write the figures as JSON")


@dataclass
class Figures:
    """What came of all seeds."""

    seeds: int = 0
    hours: float = 0.0
    """Simulated, heal phases not counted."""
    operations: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    violations: int = 0
    broken: int = 0
    """Of the violations: those that are exceptions, and none of an invariant."""
    unknown: int = 0
    failed_seeds: list[int] = field(default_factory=list)
    speed: float = 0.0

    def add(self, run: Run) -> None:
        """Count a run."""
        self.seeds += 1
        self.hours += run.seconds / 3600
        self.operations += run.operations
        self.faults.update(run.installed)
        self.skipped.update(run.skipped)
        self.violations += bool(run.violation)
        self.broken += run.broke
        self.unknown += bool(run.unknown and not run.violation)
        if run.violation or run.unknown:
            self.failed_seeds.append(run.seed)

    def fields(self) -> dict[str, Any]:
        """Return them as a JSON object."""
        return {
            "seeds": self.seeds,
            "hours": round(self.hours, 4),
            "operations": self.operations,
            "faults": dict(sorted(self.faults.items())),
            "skipped": dict(sorted(self.skipped.items())),
            "violations": self.violations,
            "broken": self.broken,
            "unknown": self.unknown,
            "failed_seeds": self.failed_seeds,
            "speed": round(self.speed, 1),
        }


def run(args: argparse.Namespace) -> int:
    """Run the command. Exit 0: no violation and nothing unknown; 1: there was one."""
    logging.disable(logging.CRITICAL)  # nodes tell a lot, and what matters stands in the timeline
    if args.seeds < 1:
        print("--seeds: at least 1", file=sys.stderr)
        return 2
    if args.seed_base is None:
        args.seed_base = 1 if args.ledger is None else ledger.next_seed(args.ledger)
    if args.trace is not None:
        return _trace(args)
    figures, began = Figures(), time.monotonic()
    told = began
    first: Run | None = None
    for done in _runs(args, began):
        figures.add(done)
        figures.speed = figures.hours * 3600 / (time.monotonic() - began)
        if (done.violation or done.unknown) and first is None:
            first = done
            print(f"seed {done.seed}: {done.violation or done.unknown}", file=sys.stderr, flush=True)
        if time.monotonic() - told > TOLD_EVERY_S:
            told = time.monotonic()
            print(
                f"{figures.seeds} of {args.seeds} seeds, {figures.hours:.2f} simulated hours, "
                f"{figures.violations} violations, {figures.speed:.0f}x real time",
                file=sys.stderr,
                flush=True,
            )
        if first is not None and args.stop_at_first:
            break
    _print(args, figures)
    if args.ledger is not None and figures.seeds:
        ledger.append(args.ledger, args.seed_base, figures.fields())
        print(f"{args.ledger}: {_describe(ledger.totals(args.ledger))}")
    if first is not None:
        _explain(first, args)
    return 1 if figures.violations or figures.unknown or not figures.seeds else 0


def _runs(args: argparse.Namespace, began: float) -> Iterator[Run]:
    seeds = iter(range(args.seed_base, args.seed_base + args.seeds))
    deadline = None if args.minutes is None else began + args.minutes * 60
    workers = min(os.cpu_count() or 1, args.seeds)
    with concurrent.futures.ProcessPoolExecutor(workers, initializer=_begin_worker) as pool:
        waiting: set[concurrent.futures.Future[Run]] = set()
        try:
            while True:
                while len(waiting) < workers and (deadline is None or time.monotonic() < deadline):
                    seed = next(seeds, None)
                    if seed is None:
                        break
                    waiting.add(pool.submit(one, seed, args.seconds, args.no_faults))
                if not waiting:
                    return
                done, waiting = concurrent.futures.wait(
                    waiting, return_when=concurrent.futures.FIRST_COMPLETED
                )
                for each in done:
                    yield each.result()
        finally:
            for each in waiting:
                each.cancel()


def _begin_worker() -> None:
    logging.disable(logging.CRITICAL)


def one(seed: int, seconds: float, no_faults: bool) -> Run:
    """Run one seed, and keep only what is needed of it."""
    done = Simulation(seed, seconds, [] if no_faults else None).go()
    if not done.violation and not done.unknown:
        done.trace = []
    done.events = []
    return done


def _trace(args: argparse.Namespace) -> int:
    done = Simulation(args.seed_base, args.seconds, [] if args.no_faults else None).go()
    text = "\n".join([*done.trace, f"digest {done.digest}", ""])
    if args.trace == "-":
        sys.stdout.write(text)
    else:
        Path(args.trace).write_text(text)
    return 1 if done.violation or done.unknown else 0


def _print(args: argparse.Namespace, figures: Figures) -> None:
    text = json.dumps(figures.fields())
    if args.json == "-":
        print(text)
        return
    if args.json is not None:
        Path(args.json).write_text(text + "\n")
    print(
        f"{figures.seeds} seeds, {figures.hours:.2f} simulated hours, {figures.operations:,} operations, "
        f"{sum(figures.faults.values()):,} faults ({sum(figures.skipped.values()):,} skipped); "
        f"{figures.violations} violations, {figures.unknown} unknown; {figures.speed:.0f}x real time"
    )


def _describe(totals: ledger.Totals) -> str:
    return (
        f"{totals.runs} runs, {totals.seeds:,} seeds, {totals.hours:.1f} simulated hours, "
        f"{totals.operations:,} operations, {totals.faults:,} faults; {totals.violations} violations, "
        f"{totals.unknown} unknown"
    )


def _explain(failed: Run, args: argparse.Namespace) -> None:
    """Print how a failing seed can be repeated, the shortest plan that fails, and its timeline."""
    out = sys.stderr
    print(f"\nseed {failed.seed} failed: {failed.violation or failed.unknown}", file=out)
    print(
        f"repeat it: python -m chaos sim --seeds 1 --seed-base {failed.seed} --seconds {args.seconds:g}",
        file=out,
    )
    shortest = failed if args.no_shrink else shrink(failed)
    print(f"\n{len(shortest.faults)} of {len(failed.faults)} faults are enough:", file=out)
    for fault in shortest.faults:
        print(f"  {fault}", file=out)
    _print_timeline(shortest.trace, out)


def _print_timeline(trace: Sequence[str], out: Any) -> None:
    print(f"\nthe last {min(TRACE_LINES, len(trace))} of {len(trace)} events:", file=out)
    for line in trace[-TRACE_LINES:]:
        print(f"  {line}", file=out)
