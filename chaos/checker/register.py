"""The model `register`: read, write and cas of one value, null at first."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from chaos.checker.groups import decide_unique
from chaos.checker.operations import INITIAL, NEVER, UNSEEN, Kind, Op, identity, places
from chaos.checker.search import Limits, Outcome, Search
from chaos.checker.shrink import shrink
from chaos.checker.verdict import Decision, Taken, Window
from chaos.checker.versions import split_values
from chaos.history import HistoryError, Operation


class RegisterHistory:
    """What happened to one key."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._operations: list[Operation] = []

    def add(self, operation: Operation) -> None:
        """Take one more operation.

        Raises:
            HistoryError: a register has no such operation.
        """
        if operation.f == "append":
            raise HistoryError(
                operation.invoke_order,
                "a register has no append: judge this history with --model append",
            )
        if operation.outcome != "fail" or operation.f == "cas":
            self._operations.append(operation)

    def decide(self, limits: Limits) -> Decision:
        """Judge the history of the key."""
        outcome, configurations = decide(numbered(self._operations)[0], limits)
        return Decision(outcome, configurations)

    def explain(self, decision: Decision, limits: Limits, seconds: float | None) -> Window:
        """Return the smallest bad window of a history that was judged to be a violation.

        Args:
            decision: what `decide` returned.
            limits: of each search.
            seconds: how long to try to make it smaller; None for as long as it takes.
        """
        ops, values = numbered(self._operations)
        until = None if seconds is None else time.monotonic() + seconds
        limits = Limits(limits.configurations, until)
        rest = shrink(ops, lambda some: decide(some, limits)[0] is Outcome.VIOLATION, until)
        rest.ops.sort(key=lambda op: op.invoke)
        return Window(
            f"no order of these operations is one that a register, which holds null at first, could have"
            f" gone through. The history of this key is legal up to {_before(rest.last)}",
            [op.operation for op in rest.ops if op.operation is not None],
            [Taken("write", values[op.new]) for op in rest.ops if op.operation is None],
        )


def _before(operation: Operation | None) -> str:
    if operation is None:
        return "its last event"
    where = f", line {operation.end_order}" if operation.end_order else f", {operation.end_ns} ns"
    return f"the end of the {operation.f} of process {operation.process}{where}"


def decide(ops: Sequence[Op], limits: Limits) -> tuple[Outcome, int]:
    """Judge operations of a register; return the outcome, and how many configurations were visited.

    If that takes too long, it is tried again without the cas that failed, which makes it much easier. What is
    illegal without them is so with them.
    """
    outcome, configurations = _decide(ops, limits)
    if outcome is Outcome.UNKNOWN:
        fewer = [op for op in ops if op.kind is not Kind.CAS_FAILED]
        if len(fewer) < len(ops) and _decide(fewer, limits)[0] is Outcome.VIOLATION:
            outcome = Outcome.VIOLATION
    return outcome, configurations


def _decide(ops: Sequence[Op], limits: Limits) -> tuple[Outcome, int]:
    ops = relevant(ops)
    if not ops:
        return Outcome.VALID, 0
    known = decide_unique(ops)
    if known is None:
        ops = relevant(split_values(ops))
        known = decide_unique(ops)
    if known is not None:
        return (Outcome.VALID if known else Outcome.VIOLATION), 0
    search = Search(ops, INITIAL)
    outcome = search.run(limits)
    return outcome, search.configurations


def numbered(operations: Sequence[Operation]) -> tuple[list[Op], list[Any]]:
    """Return operations with their values numbered, and the value of each number.

    Reads that did not end are left out: whatever they saw would do. So are optional cas of a value for
    itself; required ones are reads, and failed ones are what a failed cas is.
    """
    numbers: dict[Any, int] = {None: INITIAL}
    values: list[Any] = [None, "?"]

    def number(value: Any) -> int:
        which = numbers.setdefault(identity(value), len(values))
        if which == len(values):
            values.append(value)
        return which

    ops = []
    for operation, (invoke, end) in zip(operations, places(operations), strict=True):
        if operation.f == "read":
            if end != NEVER:
                ops.append(Op(Kind.READ, number(operation.value), -1, invoke, end, operation))
        elif operation.f == "write":
            ops.append(Op(Kind.WRITE, -1, number(operation.value), invoke, end, operation))
        else:
            old, new = map(number, operation.value)
            if operation.outcome == "fail":
                ops.append(Op(Kind.CAS_FAILED, old, -1, invoke, end, operation))
            elif old != new:
                ops.append(Op(Kind.CAS, old, new, invoke, end, operation))
            elif end != NEVER:
                ops.append(Op(Kind.READ, old, -1, invoke, end, operation))
    return ops, values


def relevant(ops: Iterable[Op]) -> list[Op]:
    """Return the operations that decide: optional ones that nothing can need are left out.

    A value is *seen* if a read returned it, or a cas (also one that is optional, but kept) or a failed cas
    compared with it. Values that plain writes leave and nobody sees become one, `UNSEEN`. An optional write
    or cas of an unseen value can be left out of any legal order: whatever stands directly behind it holds at
    any such value, so it is a write or a failed cas. Where no cas failed, what is left is legal: it is left
    out. Else it is kept, since a failed cas may need it. Leaving out a cas can make what it compared with
    unseen, so this is done until nothing changes.
    """
    kept = list(ops)
    any_failed = any(op.kind is Kind.CAS_FAILED for op in kept)
    while True:
        seen = {op.old for op in kept} | {INITIAL}
        if any_failed:
            break
        fewer = [op for op in kept if op.required or op.new in seen]
        if len(fewer) == len(kept):
            break
        kept = fewer
    return [
        Op(op.kind, op.old, UNSEEN, op.invoke, op.end, op.operation)
        if op.kind is Kind.WRITE and op.new not in seen
        else op
        for op in kept
    ]
