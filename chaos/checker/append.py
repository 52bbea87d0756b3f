"""The model `append`: each operation adds one unique element to a list, or reads all of it.

Decided without a search, in time proportional to what was read. Reads name their place: two of them are legal
only if one is a prefix of the other, so with the longest read, `longest`, all that was seen stands in one
order:

    reads of nothing; append of longest[0]; reads of one element; append of longest[1]; ...; reads of all of
    it; appends of what nobody read

The last group is last because a read after one of its appends would have held its element. So a history is
linearizable if and only if
1. every read is a prefix of `longest`, which names no element twice and only such as an append that may have
   happened was to add;
2. nothing ended before something of an earlier group began (`groups.first_inversion`). Operations of one
   group may stand in any order, so in that of their invokes.

An append whose outcome is unknown has happened if its element was read; one that nobody read has no end, so
that it breaks no rule in the last group. One that failed never happened.

Each part of a rule that is broken is shown by at most three operations, so there is nothing to shrink.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from chaos.checker.groups import first_inversion
from chaos.checker.operations import Kind, Op, places
from chaos.checker.search import Limits, Outcome
from chaos.checker.verdict import Decision, Window
from chaos.history import HistoryError, Operation

ELEMENT_TYPES = {int, str}


class AppendHistory:
    """What happened to one key.

    Of a read its length is kept as long as it agrees with the longest one so far, since all of them together
    are as large as the square of the history.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._longest: list[Any] = []
        self._longest_read: Operation | None = None
        self._reads: list[Operation] = []
        """In place of its value each has its length."""
        self._appends: dict[Any, Operation] = {}
        self._failed: dict[Any, Operation] = {}
        self._bad: Window | None = None
        """What was found while operations came in."""

    def add(self, operation: Operation) -> None:
        """Take one more operation.

        Raises:
            HistoryError: a list has no such operation, or not with such a value.
        """
        if operation.f == "append":
            self._add_append(operation)
        elif operation.f == "read":
            if operation.outcome == "ok":
                self._add_read(operation)
        else:
            raise HistoryError(
                operation.invoke_order,
                f"a list has no {operation.f}: judge this history with --model register",
            )

    def _add_append(self, operation: Operation) -> None:
        element = operation.value
        if type(element) not in ELEMENT_TYPES:
            raise HistoryError(
                operation.invoke_order, f"an appended element is an integer or a string, and was {element!r}"
            )
        if operation.outcome == "fail":
            self._failed[element] = operation
            return
        first = self._appends.setdefault(element, operation)
        if first is not operation:
            raise HistoryError(
                operation.invoke_order,
                f"{element!r} is appended to {self._key!r} twice, first by process {first.process}"
                f" (line {first.invoke_order}): elements must be unique, else reads don't tell appends apart",
            )

    def _add_read(self, operation: Operation) -> None:
        value = [] if operation.value is None else operation.value
        if not isinstance(value, list | tuple):
            raise HistoryError(
                operation.end_order, f"a read of a list returns all of it, or null, and was {value!r}"
            )
        value = list(value)
        length = len(value)
        common = min(length, len(self._longest))
        if self._bad is None and value[:common] != self._longest[:common]:
            assert self._longest_read is not None
            at = next(place for place in range(common) if value[place] != self._longest[place])
            self._bad = Window(
                f"these reads saw two lists of which neither is a prefix of the other: element {at + 1} was"
                f" {self._longest[at]!r} and {value[at]!r}",
                sorted([self._longest_read, operation], key=_order),
            )
        if self._bad is None and not set(map(type, value)) <= ELEMENT_TYPES:
            self._bad = Window("this read returned something that is never appended", [operation])
        if self._longest_read is None or length > len(self._longest):
            self._longest, self._longest_read = value, operation
        self._reads.append(msgspec.structs.replace(operation, value=length))

    def decide(self, limits: Limits) -> Decision:
        """Judge the history of the key. No limit matters, as it takes no search."""
        window = self._bad or self._bad_elements() or self._bad_order()
        return Decision(Outcome.VIOLATION if window else Outcome.VALID, 0, window)

    def explain(self, decision: Decision, limits: Limits, seconds: float | None) -> Window:
        """Return the window that `decide` has found."""
        window: Window = decision.found
        return window

    def _bad_elements(self) -> Window | None:
        """Return a read of something that is there twice, or that nobody can have appended."""
        seen: set[Any] = set()
        for place, element in enumerate(self._longest):
            if element in seen:
                reads = [self._shortest_read_of(place + 1)]
                if element in self._appends:
                    reads.append(self._appends[element])
                return Window(f"{element!r} was appended once, and read twice in one list", _sorted(reads))
            seen.add(element)
            if element not in self._appends:
                read = self._shortest_read_of(place + 1)
                if element in self._failed:
                    return Window(
                        f"{element!r} was read, but its append failed, which means that it never happened",
                        _sorted([self._failed[element], read]),
                    )
                return Window(f"{element!r} was read, but never appended", [read])
        return None

    def _bad_order(self) -> Window | None:
        """Return operations that can't stand in the order that the reads give."""
        place = {element: number for number, element in enumerate(self._longest)}
        groups: list[list[Op]] = [[] for _ in range(2 * len(self._longest) + 2)]
        appends = list(self._appends.values())
        operations = [*self._reads, *appends]
        for operation, (invoke, end) in zip(operations, places(operations), strict=True):
            if operation.f == "read":
                groups[2 * operation.value].append(Op(Kind.READ, -1, -1, invoke, end, operation))
                continue
            number = place.get(operation.value)
            if number is not None:
                groups[2 * number + 1].append(Op(Kind.WRITE, -1, -1, invoke, end, operation))
            else:
                groups[-1].append(Op(Kind.WRITE, -1, -1, invoke, end, operation))
        inversion = first_inversion(groups)
        if inversion is None:
            return None
        earlier, later = (op.operation for op in inversion)
        assert earlier is not None
        assert later is not None
        return self._window_of(earlier, later, place)

    def _window_of(self, earlier: Operation, later: Operation, place: dict[Any, int]) -> Window:
        """Return why `earlier` must stand before `later`, which had ended before `earlier` began."""
        first, second = self._restored(earlier), self._restored(later)
        if earlier.f == "read":
            what = "an element that had been appended" if later.f == "append" else "what a read had returned"
            return Window(f"{what} before this read began is missing in it", _sorted([first, second]))
        if later.f == "read":
            return Window(f"{earlier.value!r} was read before its append began", _sorted([first, second]))
        if later.value in place:
            witness = self._shortest_read_of(place[later.value] + 1)
            reason = f"{earlier.value!r} stands before {later.value!r} in the list, but was appended after it"
        else:
            witness = self._shortest_read_of(place[earlier.value] + 1)
            reason = f"{later.value!r} was appended before {earlier.value!r}, but was not there with it"
        return Window(reason, _sorted([first, second, witness]))

    def _shortest_read_of(self, length: int) -> Operation:
        """Return the shortest read of at least so many elements."""
        reads = [read for read in self._reads if read.value >= length]
        return self._restored(min(reads, key=lambda read: read.value))

    def _restored(self, operation: Operation) -> Operation:
        if operation.f != "read":
            return operation
        return msgspec.structs.replace(operation, value=self._longest[: operation.value])


def _order(operation: Operation) -> tuple[int, int]:
    return operation.invoke_order, operation.invoke_ns


def _sorted(operations: Sequence[Operation]) -> list[Operation]:
    return sorted(operations, key=_order)
