"""Histories: what clients asked for and were told, as JSON Lines, one event a line.

    {"process": 3, "type": "invoke", "f": "write", "key": "x", "value": 5, "time": 1000}
    {"process": 3, "type": "ok", "f": "write", "key": "x", "value": 5, "time": 2500}

A process has one open operation. `ok` and `fail` end it. After `info` its outcome is unknown for ever: it may
happen at any time from its invoke on, or never; the process may begin another one. An invoke without an end
is the same. Lines stand in the order in which things happened, so one operation precedes another where its
end stands above the other's invoke, at equal times too. Times are in ns and don't decrease.

What may live here: the format, and its rules that hold whatever is judged by it. What values mean to a
register or a list is the checker's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec
from msgspec import UNSET, UnsetType

Function = Literal["read", "write", "cas", "append"]
Outcome = Literal["ok", "fail", "info"]
LINEARIZABLE = "linearizable"
CAS_PARTS = 2


class HistoryError(Exception):
    """A history that can't be judged: what is wrong, and where.

    Attributes:
        line: the line of the event at fault, from 1; 0 when it did not come from a file.
        reason: what is wrong with it, and what would be right.
    """

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}" if line else reason)
        self.line = line
        self.reason = reason


class Event(msgspec.Struct, omit_defaults=True, gc=False):
    """A line. Fields that are not named here are left alone."""

    process: int
    type: Literal["invoke", "ok", "fail", "info"]
    f: Function
    key: str
    time: int
    """In ns."""
    value: Any = UNSET
    consistency: str | None = None
    node: str | int | None = None
    bound_ns: int | None = None
    revision: int | None = None


class Operation(msgspec.Struct, gc=False):
    """An operation from its invoke to its end."""

    process: int
    f: Function
    key: str
    value: Any
    """What is written or appended; `[old, new]` of a cas; what an `ok` read returned, else None."""
    invoke_ns: int
    end_ns: int | None = None
    """None if it never ended. That of an `info` says when it was given up, and constrains nothing."""
    outcome: Outcome = "info"
    consistency: str = LINEARIZABLE
    node: str | int | None = None
    bound_ns: int | None = None
    revision: int | None = None
    invoke_order: int = 0
    """Place of its invoke among all events, from 1: in a file, the line. 0: only times are known, and then
    operations that touch at the same time count as concurrent."""
    end_order: int = 0
    """Place of its end, under the same rule."""


class Recorder:
    """Keeps a history while it happens, in memory or in a file, in the order of the calls.

    Args:
        out: where lines are written as they happen; None keeps the operations in `operations` instead.
    """

    def __init__(self, out: BinaryIO | None = None) -> None:
        self.operations: list[Operation] = []
        self._out = out
        self._order = 0
        self._encoder = msgspec.json.Encoder()

    def invoke(
        self, process: int, f: Function, key: str, value: Any, time_ns: int, consistency: str = LINEARIZABLE
    ) -> Operation:
        """Note that a process begins an operation; return it, for `end`."""
        self._order += 1
        operation = Operation(
            process, f, key, value, time_ns, consistency=consistency, invoke_order=self._order
        )
        if self._out is None:
            self.operations.append(operation)
        else:
            self._write(operation, "invoke", value, time_ns)
        return operation

    def end(self, operation: Operation, outcome: Outcome, time_ns: int, value: Any = None) -> None:
        """Note how an operation ended; `value` is what a read that is `ok` returned."""
        self._order += 1
        operation.outcome, operation.end_ns, operation.end_order = outcome, time_ns, self._order
        if operation.f == "read":
            operation.value = value
        if self._out is not None:
            self._write(operation, outcome, operation.value, time_ns)

    def _write(self, operation: Operation, kind: str, value: Any, time_ns: int) -> None:
        assert self._out is not None
        self._out.write(encode_event(self._encoder, operation, kind, value, time_ns))


def encode_event(
    encoder: msgspec.json.Encoder, operation: Operation, kind: str, value: Any, time_ns: int
) -> bytes:
    """Return the line of one end of an operation, newline included."""
    event = Event(operation.process, kind, operation.f, operation.key, time_ns, value)  # type: ignore[arg-type]
    if operation.consistency != LINEARIZABLE:
        event.consistency = operation.consistency
    if kind != "invoke":
        event.node, event.bound_ns, event.revision = operation.node, operation.bound_ns, operation.revision
    return encoder.encode(event) + b"\n"


def write_history(path: Path | str, operations: Iterable[Operation]) -> None:
    """Write operations as a history.

    Where one of them has no order, all are put in that of their times; at equal times invokes come first,
    since what is not known to have been in sequence must not be told as if it had been. Within a process the
    sequence holds in any case: what is still open when the next one begins is ended there.
    """
    kept = list(operations)
    ordered = all(operation.invoke_order for operation in kept)
    events: list[tuple[int, int, int]] = []
    for number, operation in enumerate(kept):
        events.append((operation.invoke_order if ordered else operation.invoke_ns, 0, number))
        if operation.end_ns is not None:
            events.append((operation.end_order if ordered else operation.end_ns, 1, number))
    encoder = msgspec.json.Encoder()
    still_open: dict[int, int] = {}
    with Path(path).open("wb") as out:
        for _, is_end, number in sorted(events):
            operation = kept[number]
            if is_end:
                if still_open.get(operation.process) == number:
                    del still_open[operation.process]
                    out.write(_end_line(encoder, operation, operation.end_ns))
                continue
            before = still_open.get(operation.process)
            if before is not None:
                out.write(_end_line(encoder, kept[before], operation.invoke_ns))
            still_open[operation.process] = number
            value = None if operation.f == "read" else operation.value
            out.write(encode_event(encoder, operation, "invoke", value, operation.invoke_ns))


def _end_line(encoder: msgspec.json.Encoder, operation: Operation, time_ns: int | None) -> bytes:
    assert time_ns is not None
    return encode_event(encoder, operation, operation.outcome, operation.value, time_ns)


def read_history(path: Path | str) -> Iterator[Operation]:
    """Yield the operations of a history, each when it ends, and last those that never do.

    Nothing but the open operations is kept, so that a history may be larger than memory.

    Raises:
        HistoryError: a line is not an event, or not one that may stand there.
        OSError: the file can't be read.
    """
    with Path(path).open("rb") as file:
        yield from read_events(file)


def read_events(lines: Iterable[bytes]) -> Iterator[Operation]:
    """Yield the operations of the lines of a history, as `read_history` does."""
    decode = msgspec.json.Decoder(Event).decode
    still_open: dict[int, Operation] = {}
    now = None
    for line, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            event = decode(text)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise HistoryError(line, f"not an event of a history: {error}. Got {_shown(text)}") from None
        if now is not None and event.time < now:
            raise HistoryError(
                line, f'"time" is {event.time}, after {now} above it: events stand in order, in ns'
            )
        now = event.time
        operation = still_open.get(event.process)
        if event.type == "invoke":
            still_open[event.process] = _begun(line, event, operation)
        else:
            yield _ended(line, event, operation)
            del still_open[event.process]
    yield from still_open.values()


def _begun(line: int, event: Event, open_one: Operation | None) -> Operation:
    if open_one is not None:
        raise HistoryError(
            line,
            f"process {event.process} begins a {event.f} while its {open_one.f} of line"
            f" {open_one.invoke_order} is open: end that first, with info if its outcome is unknown",
        )
    value = event.value
    if event.f == "read":
        if value is not UNSET and value is not None:
            raise HistoryError(line, f'"value" of a read is null at invoke, and was {value!r}')
        value = None
    elif value is UNSET:
        raise HistoryError(line, f'a {event.f} has no "value"')
    elif event.f == "cas" and not (isinstance(value, list) and len(value) == CAS_PARTS):
        raise HistoryError(line, f'"value" of a cas is [old, new], and was {value!r}')
    elif event.consistency not in (None, LINEARIZABLE):
        raise HistoryError(line, f'"consistency" is for reads; a {event.f} has none but "{LINEARIZABLE}"')
    operation = Operation(event.process, event.f, event.key, value, event.time, invoke_order=line)
    if event.consistency is not None:
        operation.consistency = event.consistency
    return operation


def _ended(line: int, event: Event, operation: Operation | None) -> Operation:
    if operation is None:
        raise HistoryError(
            line, f"process {event.process} has no open operation for this {event.type} to end"
        )
    if (event.f, event.key) != (operation.f, operation.key):
        raise HistoryError(
            line,
            f"ends a {event.f} of {event.key!r}, but process {event.process} has a {operation.f} of"
            f" {operation.key!r} open, from line {operation.invoke_order}",
        )
    value: Any | UnsetType = event.value
    if operation.f == "read" and event.type == "ok":
        if value is UNSET:
            raise HistoryError(line, 'an ok read has no "value": what was read, null if nothing was there')
        operation.value = value
    elif value is not UNSET and value is not None and value != operation.value:
        raise HistoryError(
            line,
            f'"value" is {value!r}, but {operation.value!r} at the invoke, line {operation.invoke_order}',
        )
    operation.outcome = event.type  # type: ignore[assignment]
    operation.end_ns, operation.end_order = event.time, line
    if event.consistency is not None:
        if operation.f != "read" and event.consistency != LINEARIZABLE:
            raise HistoryError(line, f'"consistency" is for reads, and this is a {event.f}')
        operation.consistency = event.consistency
    operation.node, operation.bound_ns, operation.revision = event.node, event.bound_ns, event.revision
    return operation


def _shown(text: bytes) -> str:
    start = text.strip()[:60].decode("utf-8", "replace")
    return repr(start) + ("..." if len(text.strip()) > len(start) else "")
