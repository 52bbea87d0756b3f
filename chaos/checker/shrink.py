"""Makes a violation small enough to be understood: the smallest bad window of a register's history.

Not every part of a bad history that is illegal explains anything: without a write, each read of it is. So
only such steps are taken that keep every legal history legal. What is illegal after them is so in the whole
history:

- *Cut.* All after an instant is forgotten; what was open then is open for ever, or not there, if it only
  looked. An open cas may have waited for a write that began later.
- *Leave out.* Operations, together with all that hold where one of them left its value. What remains stands
  in a legal order behind the same write as before.
- *Take for granted.* A cas that wrote becomes a write that may happen at any time, or never. So a long chain
  of cas needs no beginning.

What may live here: the steps and in which order to try them. Who judges is an argument.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

from chaos.checker.operations import NEVER, Kind, Op
from chaos.history import Operation

ALWAYS = -1
"""The invoke of what is taken for granted: before every event."""


class Rest(msgspec.Struct):
    """What is left of a bad history."""

    ops: list[Op]
    last: Operation | None
    """The operation whose end makes the history illegal."""


def shrink(ops: Sequence[Op], is_bad: Callable[[Sequence[Op]], bool], until: float | None = None) -> Rest:
    """Return a part of a bad history that is bad, too, and of which nothing can be left out.

    Args:
        ops: operations of one register that no order makes legal.
        is_bad: whether there is no legal order; False also where that is not known.
        until: when to stop, in `time.monotonic()` seconds; then it may be larger than it need be.
    """

    def bad_in_time(some: Sequence[Op]) -> bool:
        return (until is None or time.monotonic() < until) and is_bad(some)

    rest = _shortest_prefix(ops, bad_in_time)
    rest.ops = _taken_for_granted(_left_out(rest.ops, bad_in_time), bad_in_time)
    # With the ends that the cut took away still less may be needed.
    whole = {id(op.operation): op for op in ops}
    rest.ops = _left_out([whole.get(id(op.operation), op) for op in rest.ops], bad_in_time)
    return rest


def _shortest_prefix(ops: Sequence[Op], is_bad: Callable[[Sequence[Op]], bool]) -> Rest:
    """Cut behind the first end that makes the history bad: from there on every longer one is."""
    by_end = sorted((op for op in ops if op.required), key=lambda op: op.end)
    low, high = 0, len(by_end) - 1
    while low < high:
        middle = (low + high) // 2
        if is_bad(_cut(ops, by_end[middle].end)):
            high = middle
        else:
            low = middle + 1
    shortest = _cut(ops, by_end[high].end)
    if is_bad(shortest):
        return Rest(shortest, by_end[high].operation)
    return Rest(list(ops), None)


def _cut(ops: Sequence[Op], instant: int) -> list[Op]:
    """Return what was known of the operations at an instant."""
    known = []
    for op in ops:
        if op.end <= instant:
            known.append(op)
        elif op.writes and op.invoke < instant:
            known.append(Op(op.kind, op.old, op.new, op.invoke, NEVER, op.operation))
    return known


def _left_out(ops: list[Op], is_bad: Callable[[Sequence[Op]], bool]) -> list[Op]:
    """Leave out all that can be, in halves, quarters and so on, and at last one by one until nothing can."""
    size = max(1, len(ops) // 2)
    while True:
        at, before = 0, len(ops)
        while at < len(ops):
            fewer = _without(ops, ops[at : at + size])
            if is_bad(fewer):
                ops = fewer
            else:
                at += size
        if size > 1:
            size //= 2
        elif len(ops) == before:
            return ops


def _without(ops: Sequence[Op], unwanted: Sequence[Op]) -> list[Op]:
    """Return the operations without some, and without all that hold where one of these left its value."""
    gone = {id(op) for op in unwanted}
    todo = {op.new for op in unwanted if op.writes}
    done: set[int] = set()
    while todo:
        value = todo.pop()
        done.add(value)
        for op in ops:
            if id(op) not in gone and op.holds_at(value):
                gone.add(id(op))
                if op.writes and op.new not in done:
                    todo.add(op.new)
    return [op for op in ops if id(op) not in gone]


def _taken_for_granted(ops: list[Op], is_bad: Callable[[Sequence[Op]], bool]) -> list[Op]:
    """Take each cas for granted that can be, the last first, and leave out what was only there for it."""
    for op in sorted(ops, key=lambda op: -op.invoke):
        if op.kind is Kind.CAS and any(other is op for other in ops):
            granted = Op(Kind.WRITE, -1, op.new, ALWAYS, NEVER, None)
            relaxed = [granted if other is op else other for other in ops]
            if is_bad(relaxed):
                ops = _left_out(relaxed, is_bad)
    return ops
