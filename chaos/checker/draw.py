"""Draws a window as text: time runs downwards, a lane a process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from chaos.checker.verdict import Window
from chaos.history import Operation

VALUE_LENGTH_MAX = 28
"""Characters; of what is longer the end is shown, since that is where lists differ."""
OPERATIONS_MAX = 40
"""A window has a handful, unless there was no time to make it small; then its end is drawn."""
NS_PER_MS = 1_000_000


class _Event(msgspec.Struct):
    place: tuple[int, int]
    time_ns: int
    line: int
    lane: int
    text: str
    opens: bool


def draw(window: Window) -> str:
    """Return the drawing of a window, several lines, without a newline at the end.

    Each operation is a stroke from its invoke to its end. One whose outcome is unknown has a lane for itself
    and no end, for the process went on without it.
    """
    titles, events = _lay_out(window.operations[-OPERATIONS_MAX:])
    width = max([len(title) for title in titles] + [len(event.text) + 2 for event in events])
    lines_shown = all(event.line for event in events)
    start = events[0].time_ns
    rows = [_row("line" if lines_shown else "", "ms", titles, width)]
    open_lanes: set[int] = set()
    for event in events:
        cells = ["│" if lane in open_lanes else "" for lane in range(len(titles))]
        cells[event.lane] = f"{'┬' if event.opens else '┴'} {event.text}"
        (open_lanes.add if event.opens else open_lanes.discard)(event.lane)
        time_ms = f"{(event.time_ns - start) / NS_PER_MS:.6f}"
        rows.append(_row(str(event.line) if lines_shown else "", time_ms, cells, width))
    if open_lanes:
        rows.append(_row("", "", ["┆" if lane in open_lanes else "" for lane in range(len(titles))], width))
    rows.append(f"times in ms since {start} ns")
    if len(window.operations) > OPERATIONS_MAX:
        rows.append(f"not drawn: {len(window.operations) - OPERATIONS_MAX} operations before these")
    rows += [
        f"taken for granted: a {taken.f} of {show(taken.value)}, at any time, once or not at all"
        for taken in window.taken_for_granted
    ]
    return "\n".join(rows)


def show(value: Any) -> str:
    """Return a value as JSON, the end of it where it is long."""
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= VALUE_LENGTH_MAX else "..." + text[3 - VALUE_LENGTH_MAX :]


def describe(operation: Operation) -> str:
    """Return what an operation asks for."""
    if operation.f == "read":
        return "read"
    if operation.f == "cas":
        old, new = operation.value
        return f"cas {show(old)} to {show(new)}"
    return f"{operation.f} {show(operation.value)}"


def _lay_out(operations: Sequence[Operation]) -> tuple[list[str], list[_Event]]:
    """Return the titles of the lanes, and all events in order."""
    lanes = sorted({_lane(operation, number) for number, operation in enumerate(operations)})
    events = []
    for number, operation in enumerate(operations):
        lane = lanes.index(_lane(operation, number))
        order = operation.invoke_order
        place = (order or operation.invoke_ns, 0)
        events.append(_Event(place, operation.invoke_ns, order, lane, describe(operation), True))
        if operation.outcome == "info" or operation.end_ns is None:
            continue
        seen = f": {show(operation.value)}" if operation.f == "read" else ""
        text = f"{operation.outcome}{seen}"
        order = operation.end_order
        events.append(_Event((order or operation.end_ns, 1), operation.end_ns, order, lane, text, False))
    events.sort(key=lambda event: event.place)
    titles = [f"process {process}" + (", unknown" if number >= 0 else "") for process, number in lanes]
    return titles, events


def _lane(operation: Operation, number: int) -> tuple[int, int]:
    """Return (process, -1), or the number of one whose outcome is unknown in place of -1."""
    return operation.process, number if operation.outcome == "info" else -1


def _row(line: str, time_ms: str, cells: Sequence[str], width: int) -> str:
    return f"{line:>8} {time_ms:>14}  {'  '.join(f'{cell:<{width}}' for cell in cells)}".rstrip()
