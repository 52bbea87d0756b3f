"""What a register's history is while it is judged: small integers, one record an operation.

What may live here: the record, when it counts as open, and in which order events stand. No search.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import msgspec

from chaos.history import HistoryError, Operation

NEVER = 1 << 62
"""The end of what never ended: after every event."""
INITIAL = 0
"""The value that nobody wrote: null."""
UNSEEN = 1
"""Stands for all values whose presence nothing can tell from another such one's."""
FIRST_VALUE = 2


class Kind(IntEnum):
    """What an operation does to a register."""

    READ = 0
    """Holds where the register has `old`."""
    WRITE = 1
    """Holds anywhere; the register has `new` then."""
    CAS = 2
    """Holds where the register has `old`; it has `new` then."""
    CAS_FAILED = 3
    """Holds where the register has not `old`."""


class Op(msgspec.Struct, gc=False):
    """An operation on one register, with its values numbered."""

    kind: Kind
    old: int
    """-1 where the kind has none."""
    new: int
    """-1 where the kind has none."""
    invoke: int
    """Places of its events among those of the key; only their order means anything."""
    end: int
    """`NEVER` of one that is optional: it may happen at any time from its invoke on, or never."""
    operation: Operation | None
    """Where it comes from; None of one that was made up (`shrink`)."""

    @property
    def required(self) -> bool:
        """Whether it certainly happened."""
        return self.end != NEVER

    @property
    def writes(self) -> bool:
        """Whether it leaves a value of its own behind."""
        return self.kind in (Kind.WRITE, Kind.CAS)

    def holds_at(self, value: int) -> bool:
        """Return whether only a register that has this value, or one of several with it, lets it happen."""
        if self.kind is Kind.CAS_FAILED:
            return value != self.old
        return self.kind is not Kind.WRITE and value == self.old


def identity(value: Any) -> Any:
    """Return something hashable that is equal for equal JSON values only: in Python, True is 1."""
    kind = type(value)
    if kind is str or kind is int or value is None:
        return value
    if kind is bool:
        return ("bool", value)
    if isinstance(value, list | tuple):
        return ("list", *map(identity, value))
    if isinstance(value, dict):
        return ("object", frozenset((key, identity(item)) for key, item in value.items()))
    return value


def places(operations: Sequence[Operation]) -> list[tuple[int, int]]:
    """Return for each operation the places of its invoke and its end (`NEVER` if it has none that counts).

    The orders that the history came with, if all have one; else the times, where what touches at the same
    time is concurrent: all invokes of a time are placed before all ends of it.
    """
    if all(
        operation.invoke_order and (operation.end_order or is_open(operation)) for operation in operations
    ):
        return [
            (operation.invoke_order, NEVER if is_open(operation) else operation.end_order)
            for operation in operations
        ]
    return [
        (2 * operation.invoke_ns, NEVER if is_open(operation) else 2 * _end_ns(operation) + 1)
        for operation in operations
    ]


def is_open(operation: Operation) -> bool:
    """Return whether the outcome of an operation is unknown."""
    return operation.outcome == "info"


def _end_ns(operation: Operation) -> int:
    if operation.end_ns is None or operation.end_ns < operation.invoke_ns:
        raise HistoryError(
            operation.invoke_order,
            f"a {operation.f} of process {operation.process} is {operation.outcome}, but ends at"
            f" {operation.end_ns}, begun at {operation.invoke_ns}",
        )
    return operation.end_ns
