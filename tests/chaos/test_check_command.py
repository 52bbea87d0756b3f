"""`python -m chaos check`: exit codes, what is printed, and the verdict as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from chaos.__main__ import main
from chaos.history import Operation, write_history
from tests.chaos.good import Store
from tests.chaos.oracle import Shape, at

STALE = [at(Shape("write", 1), 0, 1, 2), at(Shape("write", 2), 1, 3, 4), at(Shape("read", 1), 2, 5, 6)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "history.jsonl"


def check(file: Path, operations: list[Operation], *options: str, model: str = "register") -> int:
    write_history(file, operations)
    return main(["check", str(file), "--model", model, *options])


@pytest.mark.parametrize("model", ["register", "append"])
def test_a_good_history_is_exit_0(file: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(file, Store(1, model, unknown=0.1).run(200), model=model) == 0
    assert capsys.readouterr().out.startswith(f"valid: 200 operations on 1 key ({model}), judged in ")


def test_a_violation_is_exit_1_and_its_window_is_drawn(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = [msgspec.structs.replace(op, key="y", process=op.process + 9) for op in STALE]
    shifted = [
        msgspec.structs.replace(
            op,
            invoke_order=op.invoke_order + 6,
            end_order=op.end_order + 6,
            invoke_ns=op.invoke_ns + 6,
            end_ns=(op.end_ns or 0) + 6,
        )
        for op in other
    ]
    assert check(file, STALE + shifted) == 1
    out = capsys.readouterr().out
    assert out.startswith("violation: 6 operations on 2 keys (register)")
    assert "key 'x' is not linearizable: 3 of its 3 operations\n" in out
    assert "       6       0.000005                        ┴ ok: 1\n" in out
    assert "not linearizable either: 'y'" in out


def test_a_budget_that_is_used_up_is_exit_2(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hard = Store(5, values=3, cas=0.3, unknown=0.1).run(400)
    assert check(file, hard, "--budget-configurations", "20") == 2
    out = capsys.readouterr().out
    assert out.startswith("unknown: ")
    assert "not decided within the budget: 'k0'. Raise --budget-s" in out
    assert check(file, hard, "--budget-s", "0.000001") == 2
    assert check(file, hard) == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no operation in it is to be judged, of 0"),
        ('{"process": 0, "type": "invoke", "f": "write", "key"', "line 1: not an event of a history"),
        (
            '{"process": 0, "type": "invoke", "f": "append", "key": "x", "value": 1, "time": 1}\n',
            "line 1: a register has no append: judge this history with --model append",
        ),
    ],
    ids=["empty", "cut off", "another model"],
)
def test_what_cannot_be_judged_is_exit_2_with_line_and_reason(
    file: Path, text: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(text)
    assert main(["check", str(file), "--model", "register", "--json", "-"]) == 2
    captured = capsys.readouterr()
    assert f"unusable: {file}: {reason}" in captured.err
    verdict = json.loads(captured.out)
    assert (verdict["verdict"], verdict["valid"]) == ("unusable", False)
    assert reason.removeprefix("line 1: ") in verdict["error"]


def test_a_file_that_is_not_there_is_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "none"), "--model", "register"]) == 2
    assert "No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--model", "queue"],
        ["--model", "register", "--budget-s", "0"],
        ["--model", "register", "--budget-configurations", "-1"],
    ],
)
def test_wrong_usage_is_exit_2(file: Path, options: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["check", str(file), *options])
    assert caught.value.code == 2


def test_the_verdict_as_json(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    local = msgspec.structs.replace(
        at(Shape("read", None), 3, 7, 8), consistency="local", node="n2", bound_ns=1, revision=4
    )
    assert check(file, [*STALE, local], "--json", "-") == 1
    captured = capsys.readouterr()
    verdict = json.loads(captured.out)
    assert captured.err.startswith("violation: ")
    assert "not judged: 1 reads with consistency 'local'" in captured.err
    (violation,) = verdict.pop("violations")
    assert verdict.pop("seconds") >= 0
    assert verdict == {
        "verdict": "violation",
        "valid": False,
        "model": "register",
        "operations": 4,
        "judged": 3,
        "not_judged": {"local": 1},
        "keys": 1,
        "configurations": 0,
        "unknown": [],
    }
    assert violation["key"] == "x"
    assert violation["window"][2] == {
        "process": 2,
        "f": "read",
        "key": "x",
        "value": 1,
        "invoke_ns": 5,
        "end_ns": 6,
        "outcome": "ok",
        "invoke_line": 5,
        "end_line": 6,
    }
    assert len(violation["drawing"]) == 8
    assert check(file, STALE, "--json", str(tmp_path / "verdict.json")) == 1
    assert json.loads((tmp_path / "verdict.json").read_text())["verdict"] == "violation"


def test_it_runs_as_a_module(file: Path) -> None:
    write_history(file, STALE)
    command = [sys.executable, "-m", "chaos", "check", str(file), "--model", "register"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["register", "append"])
def test_a_hundred_thousand_operations_take_ten_seconds_at_most(file: Path, model: str) -> None:
    write_history(file, Store(1, model, processes=30, keys=100, unknown=0.02, cas=0.1).run(100_000))
    started = time.process_time()
    assert main(["check", str(file), "--model", model]) == 0
    assert time.process_time() - started < 10
