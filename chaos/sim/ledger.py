"""The ledger of recorded simulations: a line a run, which add up. Seeds are never recorded twice: a run goes
on behind the last one that the ledger knows."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

FIRST_SEED = 10_000_000
"""Far from those that tests and people run by hand."""


class Totals(NamedTuple):
    """What the runs of a ledger come to."""

    runs: int
    seeds: int
    hours: float
    operations: int
    faults: int
    violations: int
    unknown: int


def read(path: Path) -> list[dict[str, Any]]:
    """Return the runs of a ledger; none if there is no such file.

    Raises:
        ValueError: a line is none of ours.
    """
    if not path.exists():
        return []
    runs = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            run = json.loads(line)
            int(run["seed_base"]), int(run["seeds"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}, is no recorded run: {error!r}") from error
        runs.append(run)
    return runs


def next_seed(path: Path) -> int:
    """Return the first seed that no run of a ledger has had."""
    return max((run["seed_base"] + run["seeds"] for run in read(path)), default=FIRST_SEED)


def totals(path: Path) -> Totals:
    """Add the runs of a ledger up."""
    runs = read(path)
    return Totals(
        len(runs),
        sum(run["seeds"] for run in runs),
        sum(run["hours"] for run in runs),
        sum(run["operations"] for run in runs),
        sum(sum(run["faults"].values()) for run in runs),
        sum(run["violations"] for run in runs),
        sum(run["unknown"] for run in runs),
    )


def append(path: Path, seed_base: int, figures: dict[str, Any]) -> None:
    """Add a run, with date, commit and machine."""
    line = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": _commit(),
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "seed_base": seed_base,
        **figures,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def _commit() -> str:
    """Return the commit that ran, with a + if something was changed since."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"
