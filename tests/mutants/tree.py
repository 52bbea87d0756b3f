"""Copies of the source tree, and the checks that are run in them.

Each check is a process of its own, in a group of its own, with a limit on its time; what it and its children
took of the processors is told with its outcome.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
_NOT_COPIED = (".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "build", "dist", "*.egg-info")

_FAULT_FREE_LIMIT_S = 180
_TESTS_LIMIT_S = 600
_BASE_LIMIT_S = 3_600
"""All the tests that mutants name, one after the other."""
_SIM_LIMIT_S = 600
_OUTPUT_TAIL_LINES = 12

SIM_SEEDS = 60


class Verdict(Enum):
    """What came of a mutant, or of a check in its tree."""

    CAUGHT = "caught"
    SURVIVED = "survived"
    CRASHED = "crashed"
    """Something broke, or took too long; no check *found* anything. This is not caught."""
    DOES_NOT_APPLY = "does not apply"
    FAULT_FREE_FAILED = "fault-free failed"
    NO_MUTANT = "has no mutant"


class Outcome(NamedTuple):
    """A verdict, why, and the processor time it took, in seconds."""

    verdict: Verdict
    detail: str = ""
    cpu_s: float = 0.0


class _Ended(NamedTuple):
    status: int | None  # None: over its limit of time
    output: str
    cpu_s: float


def copy_tree(source: Path, target: Path) -> Path:
    """Copy a source tree, without what is not part of it; return `target`."""
    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns(*_NOT_COPIED))
    return target


def has_sim(tree: Path) -> bool:
    """Whether the tree has a simulator: `python -m chaos sim`."""
    code = "import sys; from chaos.__main__ import COMMANDS; sys.exit('sim' not in COMMANDS)"
    return _run(tree, [sys.executable, "-c", code], _FAULT_FREE_LIMIT_S).status == 0


def fault_free(tree: Path) -> Outcome:
    """Run the operations without faults: SURVIVED if all went well."""
    ended = _run(tree, [sys.executable, "-m", "tests.mutants.fault_free"], _FAULT_FREE_LIMIT_S)
    if ended.status == 0:
        return Outcome(Verdict.SURVIVED, cpu_s=ended.cpu_s)
    return Outcome(Verdict.FAULT_FREE_FAILED, _why(ended), ended.cpu_s)


def run_tests(tree: Path, chosen: Sequence[str], scratch: Path, *, mutated: bool = True) -> Outcome:
    """Run tests up to the first that fails; those marked slow are left out.

    Args:
        tree: where they and the product stand.
        chosen: pytest node ids or files.
        scratch: a directory for what they write; made anew.
        mutated: whether they are those of one mutant, not of all.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    report = scratch / "failures.json"
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider"]
    command += ["-p", "tests.mutants.failures", "--failures", str(report)]
    command += ["-m", "not slow", "--basetemp", str(scratch / "tmp"), *chosen]
    ended = _run(tree, command, _TESTS_LIMIT_S if mutated else _BASE_LIMIT_S)
    failures = json.loads(report.read_text("utf-8")) if report.exists() else []
    for failure in failures:
        if failure["proof"]:
            return Outcome(Verdict.CAUGHT, _tell(failure), ended.cpu_s)
    if ended.status == 0:
        return Outcome(Verdict.SURVIVED, "all of its tests passed", ended.cpu_s)
    return Outcome(Verdict.CRASHED, _tell(failures[0]) if failures else _why(ended), ended.cpu_s)


def sim(tree: Path, scratch: Path) -> Outcome:
    """Run the simulator's first seeds, none chosen for this mutant, up to the first violation."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    report = scratch / "sim.json"
    command = [sys.executable, "-m", "chaos", "sim", "--seeds", str(SIM_SEEDS), "--seed-base", "1"]
    ended = _run(tree, [*command, "--stop-at-first", "--no-shrink", "--json", str(report)], _SIM_LIMIT_S)
    if not report.exists():
        return Outcome(Verdict.CRASHED, _why(ended), ended.cpu_s)
    figures = json.loads(report.read_text("utf-8"))
    found = f"{figures['violations']} violations in {figures['seeds']} seeds of the simulator"
    if figures["violations"] > figures["broken"]:
        return Outcome(Verdict.CAUGHT, found, ended.cpu_s)
    if figures["broken"]:
        return Outcome(Verdict.CRASHED, f"{found}, by exceptions only: {_why(ended)}", ended.cpu_s)
    if ended.status == 0:
        return Outcome(Verdict.SURVIVED, f"no violation in {SIM_SEEDS} seeds of the simulator", ended.cpu_s)
    return Outcome(Verdict.CRASHED, _why(ended), ended.cpu_s)


def _tell(failure: dict[str, str]) -> str:
    return f"{failure['test']}: {failure['type']}: {failure['message']}"


def _why(ended: _Ended) -> str:
    if ended.status is None:
        return "over its limit of time"
    tail = "\n".join(ended.output.strip().splitlines()[-_OUTPUT_TAIL_LINES:])
    return f"exit code {ended.status}: {tail}"


def _run(tree: Path, command: Sequence[str], limit_s: float) -> _Ended:
    """Run a command in the tree, whose modules come before any installed ones."""
    # Beside the tree, so that what a killed command leaves goes with it.
    temporary = tree.parent / "tmp"
    temporary.mkdir(exist_ok=True)
    before = _children_cpu_s()
    process = subprocess.Popen(
        command,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "TMPDIR": str(temporary)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit_s)
        status: int | None = process.returncode
    except subprocess.TimeoutExpired:
        output, status = "", None
    finally:
        # What it left behind, too, and all of it if this process was interrupted. Nodes in groups of their
        # own end by themselves, with whoever started them.
        _kill_group(process)
    return _Ended(status, output, _children_cpu_s() - before)


def _kill_group(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
