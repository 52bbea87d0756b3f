"""Run mutants: `python -m tests.mutants [--only N,M] [--by unit|sim|any] [--json FILE|-]`.

For each chosen case the product is copied, its bug is put back, and then a run without faults must pass and
a check must fail: by an assertion or an invariant. The checks themselves are run first on the product as it
is, and must be green. Whatever else may end a check (another exception, a crash, a limit of time) is not
taken for a catch.

    --only N,M    these cases only; all 86 otherwise
    --by          unit: the tests that the mutant names; sim: the simulator, which is told nothing;
                  any: the tests, and for what they did not catch the simulator, if there is one
    --json        also write the results there; -: to stdout, and the lines for people to stderr

The last line is `N/M caught`. Exit 0: all were caught; 1: not all; 2: nothing could be said.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from tests.mutants import CASES, MUTANTS, tree
from tests.mutants.mutant import DoesNotApply, Mutant, apply
from tests.mutants.tree import Outcome, Verdict

_DETAIL_CHARACTERS = 160


class Result(NamedTuple):
    """What came of one case. `cpu_s`: processor time of all of its checks, in seconds."""

    case: int
    what: str
    verdict: Verdict
    detail: str
    cpu_s: float


def main(arguments: list[str]) -> int:
    """Run as the module's docstring says."""
    options = _parse(arguments)
    lines = sys.stderr if options.json == "-" else sys.stdout
    with tempfile.TemporaryDirectory(prefix="raftstate-mutants-") as folder:
        work = Path(folder)
        base = tree.copy_tree(tree.ROOT, work / "base")
        simulates = options.by != "unit" and tree.has_sim(base)
        if options.by == "sim" and not simulates:
            print("there is no `python -m chaos sim` in this tree yet: use --by unit", file=sys.stderr)
            return 2
        by_case = {mutant.case: mutant for mutant in MUTANTS}
        chosen = [by_case[case] for case in options.only if case in by_case]
        problem = _check_base(base, chosen, work, unit=options.by != "sim", sim=simulates)
        if problem:
            print(f"the checks are not green before any mutant: {problem}", file=sys.stderr)
            return 2
        print("the checks are green without a mutant", file=lines, flush=True)
        results = []
        for case in options.only:
            results.append(_judge(case, by_case.get(case), base, work, options.by, simulates=simulates))
            _print(results[-1], lines)
    return _report(results, options.json, lines)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", type=_cases, default=list(range(1, CASES + 1)), metavar="N,M")
    parser.add_argument("--by", choices=("unit", "sim", "any"), default="any")
    parser.add_argument("--json", metavar="FILE|-")
    return parser.parse_args(arguments)


def _cases(text: str) -> list[int]:
    try:
        cases = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise argparse.ArgumentTypeError(f"numbers with commas between, like 7,8; got {text!r}") from None
    if not all(1 <= case <= CASES for case in cases):
        raise argparse.ArgumentTypeError(f"the cases are 1 to {CASES}; got {text!r}")
    return cases


def _check_base(base: Path, chosen: Sequence[Mutant], work: Path, *, unit: bool, sim: bool) -> str:
    """Run the checks of the chosen mutants on the product as it is; return what is wrong, or nothing.

    It also leaves the compiled modules that every copy starts from.
    """
    outcomes = [tree.fault_free(base)]
    union = sorted({test for mutant in chosen for test in mutant.caught_by})
    if unit and union:
        outcomes.append(tree.run_tests(base, union, work / "scratch", mutated=False))
    if sim:
        outcomes.append(tree.sim(base, work / "scratch"))
    return "; ".join(outcome.detail for outcome in outcomes if outcome.verdict is not Verdict.SURVIVED)


def _judge(case: int, mutant: Mutant | None, base: Path, work: Path, by: str, *, simulates: bool) -> Result:
    if mutant is None:
        return Result(case, "", Verdict.NO_MUTANT, "write one in tests/mutants", 0.0)
    mutated = work / "mutated"
    shutil.copytree(base, mutated, symlinks=True)
    try:
        apply(mutant, mutated)
        outcomes = _run_checks(mutant, mutated, work / "scratch", by, simulates=simulates)
    except DoesNotApply as error:
        outcomes = [Outcome(Verdict.DOES_NOT_APPLY, str(error))]
    finally:
        shutil.rmtree(mutated)
    last = outcomes[-1]
    return Result(case, mutant.what, last.verdict, last.detail, sum(each.cpu_s for each in outcomes))


def _run_checks(mutant: Mutant, mutated: Path, scratch: Path, by: str, *, simulates: bool) -> list[Outcome]:
    """Run the checks in turn, up to the one that decides; return what came of each."""
    outcomes = [tree.fault_free(mutated)]
    if outcomes[-1].verdict is Verdict.FAULT_FREE_FAILED:
        return outcomes
    if by != "sim":
        outcomes.append(tree.run_tests(mutated, mutant.caught_by, scratch))
    if simulates and outcomes[-1].verdict is not Verdict.CAUGHT:
        outcomes.append(tree.sim(mutated, scratch))
    return outcomes


def _print(result: Result, lines: TextIO) -> None:
    head = f"case {result.case:2}  {result.verdict.value:<17} {result.cpu_s:6.1f} CPU s"
    print(f"{head}  {result.what}", file=lines)
    detail = result.detail if result.verdict is not Verdict.CAUGHT else result.detail[:_DETAIL_CHARACTERS]
    for line in detail.splitlines():
        print(f"         {line}", file=lines)
    lines.flush()


def _report(results: Sequence[Result], file: str | None, lines: TextIO) -> int:
    caught = sum(result.verdict is Verdict.CAUGHT for result in results)
    times = [result.cpu_s for result in results if result.cpu_s]
    median_s = statistics.median(times) if times else 0.0
    if file is not None:
        report = {
            "caught": caught,
            "of": len(results),
            "cpu_s": {"median": round(median_s, 1), "sum": round(sum(times), 1)},
            "mutants": [
                {**result._asdict(), "verdict": result.verdict.value, "cpu_s": round(result.cpu_s, 1)}
                for result in results
            ],
        }
        text = json.dumps(report, indent=2) + "\n"
        if file == "-":
            sys.stdout.write(text)
        else:
            Path(file).write_text(text, "utf-8")
    print(f"CPU seconds: {median_s:.1f} median, {sum(times):.0f} in all", file=lines)
    print(f"{caught}/{len(results)} caught", file=lines)
    return 0 if caught == len(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
