"""Tells apart values that are written more than once, as far as time allows.

An operation can have found what W wrote only if it did not end before W began, and if no write stood between
them for certain: one that began after W ended, and ended before it began. In any legal order whatever an
operation finds comes from such a W. So a value is split: writes of it that no operation could both have found
become writes of different values, and each operation looks for the one that it could have found. What is
legal before is legal afterwards, and the other way round. A history whose values repeat seldom has unique
ones then (`groups`).

A failed cas is told apart in the same way: it must not find any of those that it could have found.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

from chaos.checker.operations import FIRST_VALUE, INITIAL, NEVER, UNSEEN, Kind, Op

THE_BEGINNING = -1
"""Stands for what wrote the initial value."""


def split_values(ops: Sequence[Op]) -> list[Op]:
    """Return the operations with values split; `INITIAL` and `UNSEEN` keep their numbers."""
    found_by, joined = _possible_writers(ops)

    def root(writer: int) -> int:
        while joined[writer] != writer:
            joined[writer] = joined[joined[writer]]
            writer = joined[writer]
        return writer

    numbers = {root(THE_BEGINNING): INITIAL}

    def number(writer: int) -> int:
        return numbers.setdefault(root(writer), FIRST_VALUE + len(numbers))

    split = []
    for at, op in enumerate(ops):
        old, new = op.old, op.new
        if op.writes and new != UNSEEN:
            new = number(at)
        if op.kind is not Kind.WRITE:
            # What nothing can have written is a value of its own.
            old = number(found_by[at]) if at in found_by else FIRST_VALUE + len(ops) + 1 + at
        split.append(Op(op.kind, old, new, op.invoke, op.end, op.operation))
    return split


def _possible_writers(ops: Sequence[Op]) -> tuple[dict[int, int], dict[int, int]]:
    """Return operation -> one writer that it can have found, and writer -> another that is the same value."""
    writers = [at for at, op in enumerate(ops) if op.writes]
    joined = {at: at for at in (THE_BEGINNING, *writers)}
    latest_before = _LatestInvoke([ops[at] for at in writers])
    begun: dict[int, list[tuple[int, int]]] = {INITIAL: [(-1, THE_BEGINNING)]}
    found_by: dict[int, int] = {}
    events = [(ops[at].invoke, 0, at) for at in writers]
    events += [(op.end, 1, at) for at, op in enumerate(ops) if op.kind is not Kind.WRITE]
    for _, is_end, at in sorted(events):
        op = ops[at]
        if not is_end:
            insort(begun.setdefault(op.new, []), (op.end, at))
            continue
        same = begun.get(op.old, [])
        possible = same[bisect_left(same, (latest_before(op.invoke), -1)) :]
        others = [writer for _, writer in possible if writer != at]
        if others:
            found_by[at] = others[0]
            _join(joined, others)
            _forget_doubles(same)
    return found_by, joined


def _join(joined: dict[int, int], writers: Sequence[int]) -> None:
    """Make writers the same value."""
    roots = set()
    for writer in writers:
        while joined[writer] != writer:
            writer = joined[writer]
        roots.add(writer)
    first = min(roots)
    for other in roots:
        joined[other] = first


def _forget_doubles(same: list[tuple[int, int]]) -> None:
    """Keep one of the writers without an end, which all that ends later can have found, so that few are
    looked at.

    All of them were just made the same value.
    """
    while len(same) > 1 and same[-2][0] == NEVER:
        same.pop()


class _LatestInvoke:
    """The latest invoke among the writes that had ended at a place."""

    def __init__(self, writers: Sequence[Op]) -> None:
        self._ends: list[int] = []
        self._invokes: list[int] = []
        latest = -1
        for op in sorted(writers, key=lambda op: op.end):
            latest = max(latest, op.invoke)
            self._ends.append(op.end)
            self._invokes.append(latest)

    def __call__(self, place: int) -> int:
        """Return it; -1 if none had ended."""
        at = bisect_left(self._ends, place)
        return self._invokes[at - 1] if at else -1
