from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.transcripts.__main__ import main
from tests.transcripts.runner import Failure, default_paths, judge

GOOD = "vote cfg=(1,2,3) votes=(y,y,_)\n----\nINFO decided\nVoteWon\n"
WRONG = """\
# the second one is wrong
simple
v1
----
voters=(1)
1: StateProbe match=0 next=1

simple
v2
----
voters=(2)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a transcript that holds, and below it one that does not, and a file that is none."""
    (tmp_path / "misleading" / "quorum").mkdir(parents=True)
    (tmp_path / "good.txt").write_text(GOOD)
    (tmp_path / "misleading" / "quorum" / "wrong.txt").write_text(WRONG)
    (tmp_path / "README.md").write_text("not a transcript")
    return tmp_path


def test_a_file_is_judged_up_to_its_first_difference(folder: Path) -> None:
    assert judge(folder / "good.txt") is None
    failure = judge(folder / "misleading" / "quorum" / "wrong.txt")
    assert failure == Failure(
        line=8,
        got="voters=(1 2)\n1: StateProbe match=0 next=1\n2: StateProbe match=0 next=1",
        expected="voters=(2)",
    )
    assert failure.diff() == (
        "--- expected\n+++ got\n@@ -1 +1,3 @@\n-voters=(2)\n"
        "+voters=(1 2)\n+1: StateProbe match=0 next=1\n+2: StateProbe match=0 next=1"
    )


@pytest.mark.parametrize(
    ("text", "line", "got"),
    [
        ("# nothing\n", 0, "FormatError: no directives"),
        ("campaign 1\n", 0, "FormatError: line 1: the directive has no ---- line before the end of the file"),
        ("vote\n----\n\nsimple\n----\n", 0, "FormatError: two formats: ['vote'] and ['simple']"),
        ("\nvote cfg=(x)\n----\nVoteWon\n", 2, "ValueError: invalid literal for int() with base 10: 'x'"),
    ],
)
def test_a_file_that_can_not_be_run_is_a_failure(tmp_path: Path, text: str, line: int, got: str) -> None:
    path = tmp_path / "file.txt"
    path.write_text(text)
    failure = judge(path)
    assert failure is not None
    assert (failure.line, failure.got) == (line, got)


def test_a_line_is_printed_for_each_file_and_a_failure_is_shown(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = folder / "misleading" / "quorum" / "wrong.txt"
    failure = judge(wrong)
    assert failure is not None
    assert main([str(folder)]) == 1
    assert capsys.readouterr().out == (
        f"ok   {folder / 'good.txt'}\n"
        f"FAIL {wrong}: line 8: got {failure.got!r}, expected 'voters=(2)'\n{failure.diff()}\n"
        "1 passed, 1 failed\n"
    )


def test_the_exit_code_is_zero_only_if_something_passed_and_nothing_failed(folder: Path) -> None:
    (folder / "empty").mkdir()
    assert main([str(folder / "good.txt")]) == 0
    assert main([str(folder / "good.txt"), str(folder / "misleading")]) == 1
    assert main([str(folder / "empty")]) == 1


def test_a_path_that_does_not_exist_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "absent")])
    assert stopped.value.code == 2
    assert f"{tmp_path / 'absent'} does not exist" in capsys.readouterr().err


def test_json_goes_to_stdout_alone_or_to_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = folder / "misleading" / "quorum" / "wrong.txt"
    failure = judge(wrong)
    assert failure is not None
    verdict = {
        "passed": 1,
        "failed": 1,
        "files": [
            {"path": str(folder / "good.txt"), "ok": True},
            {"path": str(wrong), "ok": False, "line": 8, "got": failure.got, "expected": "voters=(2)"},
        ],
    }
    assert main([str(folder), "--json", "-"]) == 1
    assert json.loads(capsys.readouterr().out) == verdict
    assert main([str(folder), "--json", str(folder / "out.json")]) == 1
    assert capsys.readouterr().out.endswith("1 passed, 1 failed\n")
    assert json.loads((folder / "out.json").read_text()) == verdict


def test_the_environment_names_the_default_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAFTSTATE_TRANSCRIPTS", "/here:/there")
    assert default_paths() == [Path("/here"), Path("/there")]
    monkeypatch.delenv("RAFTSTATE_TRANSCRIPTS")
    checkout = Path(__file__).resolve().parents[2]
    assert default_paths() == [checkout.parent / "shared" / "etcd-raft-testdata"]
