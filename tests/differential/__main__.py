"""Our node beside a real etcd: a random program on both, every answer compared.

    python -m tests.differential [--operations N] [--seed N] [--batch N] [--json FILE|-] [--plant NAME]

Exit code 0: all operations were done, and none was answered differently; 1: there was a difference, which is
told with its seed and a shrunk program, or a store did not start; 2: usage, or no etcd here.
"""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from raftstate.errors import RaftstateError
from tests.differential.etcd import EtcdFailedError, EtcdMissingError
from tests.differential.generator import program
from tests.differential.plants import PLANTS
from tests.differential.report import shown, shown_difference, shown_program
from tests.differential.runner import SHRINKING_S, Arena, Outcome, run, shrink

SHOWN_OPERATIONS = 20
BATCH_MAX = 100
"""A batch may have 1 MiB, and a transaction here some 50 KB."""


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    # The `with` blocks below end the processes, whoever ends this one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    told = Console(stderr=options.json == "-", soft_wrap=True, highlight=False, markup=False)
    told.print(f"seed {options.seed}, {options.operations:,} operations, batches of {options.batch}")
    try:
        with Arena(options.plant, options.batch) as arena:
            outcome = _run(arena, options.seed, options.operations)
            report: dict[str, object] = {
                "seed": options.seed,
                "operations": options.operations,
                "batch": options.batch,
                "done": outcome.done,
                "differences": int(outcome.difference is not None),
                "plant": options.plant,
                "outcomes": {f"{kind} {end}": count for (kind, end), count in sorted(outcome.counts.items())},
                "revision": outcome.revision,
                "compacted_revision": outcome.compacted,
                "seconds": round(outcome.seconds, 1),
                "etcd": arena.etcd_version,
            }
            told.print(_table(outcome, arena.etcd_version))
            if outcome.difference is not None:
                report["difference"] = _tell_difference(told.print, arena, options.seed, outcome)
    except EtcdMissingError as error:
        print(error, file=sys.stderr)
        return 2
    except (EtcdFailedError, RaftstateError) as error:
        print(f"a store could not be started: {error}", file=sys.stderr)
        return 1
    if options.json == "-":
        print(json.dumps(report, indent=2))
    elif options.json is not None:
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if outcome.difference is None and outcome.done == options.operations else 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.differential",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--operations", type=int, default=10_000, help="how many to do (10,000)")
    parser.add_argument("--seed", type=int, help="of the program; without it, a random one")
    parser.add_argument("--batch", type=int, default=1, help="so many writes at a time, pipelined (1)")
    parser.add_argument("--json", metavar="FILE|-", help="write the outcome as JSON; -: to stdout, alone")
    parser.add_argument("--plant", choices=PLANTS, help="a wrong behaviour of ours, which must be found")
    options = parser.parse_args(arguments)
    if options.operations < 1:
        parser.error(f"--operations is {options.operations}; at least 1 is needed")
    if not 1 <= options.batch <= BATCH_MAX:
        parser.error(f"--batch is {options.batch}; it is from 1 to {BATCH_MAX}")
    if options.seed is None:
        options.seed = secrets.randbits(32)
    return options


def _run(arena: Arena, seed: int, operations: int) -> Outcome:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("operations", total=operations)
        return run(
            arena.contest(), program(seed), operations, lambda done: progress.update(task, completed=done)
        )


def _table(outcome: Outcome, etcd_version: str) -> Table:
    kinds: dict[str, Counter[str]] = {}
    for (kind, end), count in outcome.counts.items():
        kinds.setdefault(kind, Counter())[end] += count
    table = Table(
        title=f"{outcome.done:,} operations in {outcome.seconds:.1f} s, up to revision {outcome.revision:,},"
        f" compacted to {outcome.compacted:,}; {etcd_version}",
        title_justify="left",
    )
    table.add_column("operation")
    table.add_column("times", justify="right")
    table.add_column("outcomes")
    for kind, ends in sorted(kinds.items()):
        table.add_row(
            kind, f"{ends.total():,}", ", ".join(f"{end} {count:,}" for end, count in ends.most_common())
        )
    return table


def _tell_difference(
    tell: Callable[[str], None], arena: Arena, seed: int, outcome: Outcome
) -> dict[str, object]:
    """Print an outcome's difference, and a shorter program that has one; return the same for JSON."""
    assert outcome.difference is not None
    number = outcome.done + 1
    tell(f"DIFFERENCE at operation {number} of seed {seed}, or within the batch that ends there")
    before = outcome.last[-SHOWN_OPERATIONS:-1]
    for earlier, operation in enumerate(before, number - len(before)):
        tell(f"  {earlier}: {shown(operation)}")
    tell(f"  {number}: {shown(outcome.difference.operation)}")
    told = shown_difference(outcome.difference)
    tell(told)
    tell(f"looking for a shorter program, for {SHRINKING_S:g} s at most ...")
    shortest = shrink(arena, outcome.last)
    if shortest is None:
        tell("none of the shorter programs showed it again")
    else:
        tell(f"this shows a difference on fresh stores:\n{shown_program(shortest)}")
    return {
        "operation": number,
        "told": told,
        "shrunk": None if shortest is None else [shown(operation) for operation in shortest],
    }


if __name__ == "__main__":
    sys.exit(main())
