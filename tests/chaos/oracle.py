"""A judge that is too simple to be wrong: it tries every order. And histories to judge."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import permutations, product
from typing import Any, NamedTuple

from chaos.history import Operation


class Shape(NamedTuple):
    """An operation without its times: f, value, outcome."""

    f: str
    value: Any
    outcome: str = "ok"


def is_linearizable(operations: Sequence[Operation], model: str) -> bool:
    """Return whether some order of the operations, any subset of the unknown ones among them, is legal."""
    happened = [
        operation
        for operation in operations
        if operation.outcome != "fail" or operation.f == "cas"
        if not (operation.f == "read" and operation.outcome != "ok")
    ]
    return _some_order(happened, () if model == "append" else None, model, set())


def _some_order(left: list[Operation], state: Any, model: str, failed: set[Any]) -> bool:
    if all(operation.outcome == "info" for operation in left):
        return True
    here = (tuple(map(id, left)), state)
    if here in failed:
        return False
    failed.add(here)
    for number, operation in enumerate(left):
        others = left[:number] + left[number + 1 :]
        if any(other.outcome != "info" and other.end_order < operation.invoke_order for other in others):
            continue
        legal, after = (_list_step if model == "append" else _register_step)(operation, state)
        if legal and _some_order(others, after, model, failed):
            return True
    return False


def _register_step(operation: Operation, state: Any) -> tuple[bool, Any]:
    if operation.f == "read":
        return operation.value == state, state
    if operation.f == "write":
        return True, operation.value
    old, new = operation.value
    if operation.outcome == "fail":
        return state != old, state
    return state == old, new


def _list_step(operation: Operation, state: Any) -> tuple[bool, Any]:
    if operation.f == "read":
        return tuple(operation.value or ()) == state, state
    return True, (*state, operation.value)


def pairings(count: int) -> Iterator[list[tuple[int, int]]]:
    """Yield all ways in which so many operations, in order of their invokes, can overlap: (invoke, end)."""

    def place(points: list[int]) -> Iterator[list[tuple[int, int]]]:
        if not points:
            yield []
            return
        for at in range(1, len(points)):
            for rest in place(points[1:at] + points[at + 1 :]):
                yield [(points[0], points[at]), *rest]

    yield from place(list(range(1, 2 * count + 1)))


def at(shape: Shape, process: int, invoke: int, end: int) -> Operation:
    """Return an operation of the key "x" between two places, which are its times, too."""
    return Operation(
        process,
        shape.f,  # type: ignore[arg-type]
        "x",
        shape.value,
        invoke,
        end,
        shape.outcome,  # type: ignore[arg-type]
        invoke_order=invoke,
        end_order=end,
    )


def all_histories(shapes: Sequence[Shape], count: int) -> Iterator[list[Operation]]:
    """Yield each history of so many operations of these shapes."""
    for spans in pairings(count):
        for chosen in product(shapes, repeat=count):
            yield [at(shape, number, *spans[number]) for number, shape in enumerate(chosen)]


def all_lists(elements: Sequence[int]) -> list[tuple[int, ...]]:
    """Return every list without repetition of some of the elements."""
    return [order for size in range(len(elements) + 1) for order in permutations(elements, size)]


def random_history(
    rng: random.Random, shapes: Sequence[Shape], count: int, processes: int
) -> list[Operation]:
    """Return operations of random shapes, mostly illegal together."""
    free = list(range(processes))
    still_open: list[Operation] = []
    operations: list[Operation] = []
    place = 0
    while len(operations) < count or still_open:
        place += 1
        if still_open and (not free or len(operations) == count or rng.random() < 0.5):
            operation = still_open.pop(rng.randrange(len(still_open)))
            operation.end_ns = operation.end_order = place
            free.append(operation.process)
        else:
            operation = at(rng.choice(shapes), free.pop(rng.randrange(len(free))), place, place)
            still_open.append(operation)
            operations.append(operation)
    return operations
