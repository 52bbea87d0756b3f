"""`python -m chaos check FILE --model register|append`."""

from __future__ import annotations

import argparse
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, TextIO

import msgspec

from chaos.checker.check import MODELS, Budget, check_history
from chaos.checker.draw import draw
from chaos.checker.search import Outcome
from chaos.checker.verdict import KeyVerdict, Verdict
from chaos.history import HistoryError, Operation, read_history

HELP = """Judge whether a history is linearizable. Exit 0: it is; 1: it is not, and the smallest bad window is
drawn; 2: unknown (a budget was used up), or the file can't be judged."""
EXIT = {Outcome.VALID: 0, Outcome.VIOLATION: 1, Outcome.UNKNOWN: 2}
UNUSABLE = 2
SECONDS = 60.0
CONFIGURATIONS = 1_000_000
NAMES_SHOWN = 10
COLUMNS = 110


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `check`."""
    parser.add_argument("file", metavar="FILE", help="a history, JSON Lines")
    parser.add_argument("--model", required=True, choices=sorted(MODELS), help="what every key is")
    parser.add_argument(
        "--budget-s", type=_positive_float, default=SECONDS, help="seconds to judge in (default: %(default)s)"
    )
    parser.add_argument(
        "--budget-configurations",
        type=_positive_int,
        default=CONFIGURATIONS,
        help="how many states the search for one key may remember, 200 bytes each (default: %(default)s)",
    )
    parser.add_argument("--json", metavar="FILE|-", help="write the verdict there")


def run(args: argparse.Namespace) -> int:
    """Judge a file, say what was found, and return the exit code."""
    out = sys.stderr if args.json == "-" else sys.stdout
    started = time.monotonic()
    budget = Budget(args.budget_configurations, args.budget_s, max(5.0, args.budget_s / 2))
    try:
        verdict = check_history(read_history(args.file), args.model, budget=budget)
        if not verdict.judged:
            raise HistoryError(0, f"no operation in it is to be judged, of {verdict.operations}")
    except (HistoryError, OSError) as error:
        reason = str(error) if isinstance(error, HistoryError) else (error.strerror or str(error))
        print(f"unusable: {args.file}: {reason}", file=sys.stderr)
        line = error.line if isinstance(error, HistoryError) else 0
        _write_json(args.json, {"verdict": "unusable", "valid": False, "line": line or None, "error": reason})
        return UNUSABLE
    seconds = time.monotonic() - started
    _print(verdict, seconds, out)
    _write_json(args.json, _as_json(verdict, seconds))
    return EXIT[verdict.outcome]


def _print(verdict: Verdict, seconds: float, out: TextIO) -> None:
    keys = f"{len(verdict.keys)} key{'' if len(verdict.keys) == 1 else 's'}"
    print(
        f"{verdict.outcome.value}: {verdict.judged} operations on {keys} ({verdict.model}),"
        f" judged in {seconds:.1f} s",
        file=out,
    )
    for consistency, count in sorted(verdict.not_judged.items()):
        print(f"not judged: {count} reads with consistency {consistency!r}", file=out)
    bad, unknown = verdict.of(Outcome.VIOLATION), verdict.of(Outcome.UNKNOWN)
    for key in bad:
        if key.window is not None:
            of = f"{len(key.window.operations)} of its {key.operations} operations"
            reason = textwrap.fill(f"{key.window.reason}.", COLUMNS)
            print(f"\nkey {key.key!r} is not linearizable: {of}\n{reason}\n\n{draw(key.window)}", file=out)
    others = [key for key in bad if key.window is None]
    if others:
        print(f"\nnot linearizable either: {_names(others)}", file=out)
    if unknown:
        print(
            f"\nnot decided within the budget: {_names(unknown)}. Raise --budget-s or"
            " --budget-configurations, or record with more keys, fewer processes or values that differ",
            file=out,
        )


def _names(keys: list[KeyVerdict]) -> str:
    names = ", ".join(repr(key.key) for key in keys[:NAMES_SHOWN])
    return names + (f" and {len(keys) - NAMES_SHOWN} more" if len(keys) > NAMES_SHOWN else "")


def _as_json(verdict: Verdict, seconds: float) -> dict[str, Any]:
    return {
        "verdict": verdict.outcome.value,
        "valid": verdict.outcome is Outcome.VALID,
        "model": verdict.model,
        "operations": verdict.operations,
        "judged": verdict.judged,
        "not_judged": verdict.not_judged,
        "keys": len(verdict.keys),
        "configurations": sum(key.configurations for key in verdict.keys.values()),
        "seconds": round(seconds, 3),
        "violations": [_violation(key) for key in verdict.of(Outcome.VIOLATION)],
        "unknown": [{"key": key.key, "operations": key.operations} for key in verdict.of(Outcome.UNKNOWN)],
    }


def _violation(key: KeyVerdict) -> dict[str, Any]:
    window = key.window
    if window is None:
        return {"key": key.key, "operations": key.operations, "window": None}
    return {
        "key": key.key,
        "operations": key.operations,
        "reason": window.reason,
        "window": [_operation(operation) for operation in window.operations],
        "taken_for_granted": msgspec.to_builtins(window.taken_for_granted),
        "drawing": draw(window).splitlines(),
    }


def _operation(operation: Operation) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(operation)
    return {
        name: plain[name] for name in ("process", "f", "key", "value", "invoke_ns", "end_ns", "outcome")
    } | {"invoke_line": operation.invoke_order or None, "end_line": operation.end_order or None}


def _write_json(target: str | None, figures: dict[str, Any]) -> None:
    if target is None:
        return
    text = msgspec.json.format(msgspec.json.encode(figures)).decode() + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        Path(target).write_text(text)


def _positive_float(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, and was {text}")
    return number


def _positive_int(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be above 0, and was {text}")
    return number
