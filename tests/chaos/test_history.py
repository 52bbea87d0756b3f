"""The history format: what is read from it, and how a line that may not stand there is named."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from chaos.history import HistoryError, Operation, Recorder, read_events, read_history, write_history
from tests.chaos.good import Store


def event(process: int, kind: str, f: str, value: Any, time: int, **more: Any) -> dict[str, Any]:
    return {"process": process, "type": kind, "f": f, "key": "x", "value": value, "time": time, **more}


def read(*events: dict[str, Any] | bytes) -> list[Operation]:
    return list(read_events([e if isinstance(e, bytes) else json.dumps(e).encode() for e in events]))


def test_an_operation_is_yielded_when_it_ends_and_the_open_ones_last() -> None:
    operations = read(
        event(0, "invoke", "write", 1, 10),
        event(1, "invoke", "read", None, 11),
        event(1, "ok", "read", [1, "a"], 12, node="n1", bound_ns=5, revision=7),
        event(2, "invoke", "cas", [1, 2], 13),
        event(2, "fail", "cas", [1, 2], 14),
        event(2, "invoke", "append", 9, 15),
    )
    assert operations == [
        Operation(1, "read", "x", [1, "a"], 11, 12, "ok", "linearizable", "n1", 5, 7, 2, 3),
        Operation(2, "cas", "x", [1, 2], 13, 14, "fail", invoke_order=4, end_order=5),
        Operation(0, "write", "x", 1, 10, invoke_order=1),
        Operation(2, "append", "x", 9, 15, invoke_order=6),
    ]


def test_a_process_goes_on_after_an_unknown_outcome() -> None:
    operations = read(
        event(0, "invoke", "write", 1, 10),
        event(0, "info", "write", 1, 11),
        event(0, "invoke", "read", None, 12),
        event(0, "ok", "read", None, 13),
    )
    assert [(operation.f, operation.outcome) for operation in operations] == [
        ("write", "info"),
        ("read", "ok"),
    ]


def test_consistency_may_stand_at_either_end_of_a_read() -> None:
    at_invoke = read(
        event(0, "invoke", "read", None, 1, consistency="local"), event(0, "ok", "read", None, 2)
    )
    at_end = read(event(0, "invoke", "read", None, 1), event(0, "ok", "read", None, 2, consistency="bounded"))
    assert [at_invoke[0].consistency, at_end[0].consistency] == ["local", "bounded"]


def test_what_the_format_does_not_name_and_empty_lines_are_passed_over() -> None:
    assert (
        len(read(event(0, "invoke", "write", 1, 1, comment="why"), b"\n", event(0, "ok", "write", 1, 2))) == 1
    )


WRITE = event(0, "invoke", "write", 1, 10)
READ = event(0, "invoke", "read", None, 10)


@pytest.mark.parametrize(
    ("events", "line", "reason"),
    [
        ([b"{"], 1, "not an event of a history"),
        ([b"\xff\xfe"], 1, "not an event of a history"),
        ([b"[]"], 1, "not an event of a history"),
        ([b'{"process": 0, "type": "invoke", "f": "read", "key": "x"}'], 1, "missing required field `time`"),
        ([{**WRITE, "process": "a"}], 1, "Expected `int`, got `str`"),
        ([{**WRITE, "key": 5}], 1, "Expected `str`, got `int`"),
        ([{**WRITE, "time": 1.5}], 1, "Expected `int`, got `float`"),
        ([{**WRITE, "f": "delete"}], 1, "Invalid enum value 'delete'"),
        ([{**WRITE, "type": "end"}], 1, "Invalid enum value 'end'"),
        ([WRITE, {**WRITE, "process": 1, "time": 9}], 2, '"time" is 9, after 10 above it'),
        ([WRITE, {**READ, "time": 11}], 2, "process 0 begins a read while its write of line 1 is open"),
        ([{**WRITE, "type": "ok"}], 1, "process 0 has no open operation for this ok to end"),
        ([WRITE, event(0, "ok", "read", 1, 11)], 2, "has a write of 'x' open, from line 1"),
        ([WRITE, {**WRITE, "type": "ok", "key": "y"}], 2, "ends a write of 'y'"),
        ([WRITE, event(0, "ok", "write", 2, 11)], 2, '"value" is 2, but 1 at the invoke, line 1'),
        ([{**READ, "value": 1}], 1, "null at invoke"),
        ([READ, {k: v for k, v in {**READ, "type": "ok"}.items() if k != "value"}], 2, 'has no "value"'),
        ([{k: v for k, v in WRITE.items() if k != "value"}], 1, 'a write has no "value"'),
        ([event(0, "invoke", "cas", 1, 1)], 1, "[old, new]"),
        ([event(0, "invoke", "cas", [1, 2, 3], 1)], 1, "[old, new]"),
        ([{**WRITE, "consistency": "local"}], 1, '"consistency" is for reads'),
        ([WRITE, {**WRITE, "type": "ok", "consistency": "local"}], 2, '"consistency" is for reads'),
    ],
)
def test_a_line_that_may_not_stand_there_is_named_with_its_reason(
    events: list[Any], line: int, reason: str
) -> None:
    with pytest.raises(HistoryError) as caught:
        read(*events)
    assert caught.value.line == line
    assert reason in caught.value.reason
    assert str(caught.value) == f"line {line}: {caught.value.reason}"


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    operations = Store(1, cas=0.2, unknown=0.2, failed=0.1, keys=3, processes=7).run(500)
    write_history(tmp_path / "history.jsonl", operations)
    again = sorted(read_history(tmp_path / "history.jsonl"), key=lambda operation: operation.invoke_order)
    assert again == operations


def test_a_recorder_writes_while_things_happen() -> None:
    out = io.BytesIO()
    recorder = Recorder(out)
    first = recorder.invoke(0, "write", "x", 5, 100)
    second = recorder.invoke(1, "read", "x", None, 100, "bounded")
    recorder.end(first, "info", 101)
    recorder.end(second, "ok", 101, 5)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert lines == [
        event(0, "invoke", "write", 5, 100),
        event(1, "invoke", "read", None, 100, consistency="bounded"),
        event(0, "info", "write", 5, 101),
        event(1, "ok", "read", 5, 101, consistency="bounded"),
    ]
    assert len(list(read_events(out.getvalue().splitlines()))) == 2


def test_operations_with_times_alone_are_written_so_that_touching_ones_stay_concurrent(
    tmp_path: Path,
) -> None:
    operations = [
        Operation(0, "write", "x", 1, 10, 20, "ok"),
        Operation(1, "read", "x", None, 20, 30, "ok"),
        Operation(2, "write", "x", 2, 20, None, "info"),
        Operation(2, "read", "x", 1, 40, 50, "ok"),
    ]
    write_history(tmp_path / "history.jsonl", operations)
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [(line["process"], line["type"], line["time"]) for line in lines] == [
        (0, "invoke", 10),
        (1, "invoke", 20),
        (2, "invoke", 20),
        (0, "ok", 20),
        (1, "ok", 30),
        (2, "info", 40),
        (2, "invoke", 40),
        (2, "ok", 50),
    ]
