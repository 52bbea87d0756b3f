"""Programs, answers and differences as text for people."""

from __future__ import annotations

import dataclasses
import difflib

from tests.differential.operations import Operation, RangeAnswer, Reply, TxnAnswer, WatchAnswer
from tests.differential.runner import Difference


def shown(thing: object) -> str:
    """Return the expression that makes an operation or an answer, without what is as it is by default."""
    if isinstance(thing, bytes) and len(thing) > 8 and len(set(thing)) == 1:
        return f"{thing[:1]!r} * {len(thing)}"
    if isinstance(thing, bytes) and len(thing) > 8 and thing == bytes(range(len(thing))):
        return f"bytes(range({len(thing)}))"
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        parts = [
            f"{field.name}={shown(value)}"
            for field in dataclasses.fields(thing)
            if (value := getattr(thing, field.name)) != field.default
        ]
        return f"{type(thing).__name__}({', '.join(parts)})"
    if isinstance(thing, tuple) and hasattr(thing, "_fields"):
        parts = [f"{name}={shown(value)}" for name, value in zip(thing._fields, thing, strict=True)]
        return f"{type(thing).__name__}({', '.join(parts)})"
    if isinstance(thing, tuple):
        return f"({''.join(shown(item) + ', ' for item in thing)})"
    if isinstance(thing, list):
        return f"[{', '.join(map(shown, thing))}]"
    return repr(thing)


def shown_program(operations: list[Operation]) -> str:
    """Return operations as the list that makes them, one a line."""
    return "\n".join(["[", *(f"    {shown(operation)}," for operation in operations), "]"])


def shown_difference(difference: Difference) -> str:
    """Return what was asked, and both answers beside each other: - etcd's, + ours."""
    both = difflib.ndiff(_lines(difference.etcd), _lines(difference.ours))
    answers = "\n".join(line.rstrip() for line in both if not line.startswith("?"))
    return f"asked: {shown(difference.asked)}\nanswered (- etcd, + raftstate):\n{answers}"


def _lines(reply: Reply) -> list[str]:
    answer = reply.answer
    lines = [f"revision {reply.revision}"]
    match answer:
        case RangeAnswer(kvs=items) | TxnAnswer(responses=items) | WatchAnswer(events=items):
            rest = [
                f"{name}={shown(value)}"
                for name, value in zip(answer._fields, answer, strict=True)
                if value is not items
            ]
            lines += [f"{type(answer).__name__}, {', '.join(rest)}", *(f"  {shown(item)}" for item in items)]
        case _:
            lines.append(shown(answer))
    return lines
