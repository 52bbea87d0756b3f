"""Writing the outputs of transcripts anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.transcripts.__main__ import main
from tests.transcripts.runner import Failure, judge, rewrite
from tests.transcripts.test_ours import OURS

OUTDATED = """\
# what is no output stays

add-nodes 1 voters=(1) index=10
----
----
an output with

a blank line
----
----

# a comment between \\
# two
raft-state
----
nonsense
of two lines

subtest group

propose-conf-change 1
u1 u2
----

raft-log 1
----
ok"""
CURRENT = """\
# what is no output stays

add-nodes 1 voters=(1) index=10
----
ok

# a comment between \\
# two
raft-state
----
1: StateFollower (Voter) Term:0 Lead:0

subtest group

propose-conf-change 1
u1 u2
----
raft proposal dropped

raft-log 1
----
log is empty: first index=11, last index=10
"""


def test_each_output_is_replaced_by_what_is_given_now(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text(OUTDATED)
    assert judge(path) is not None
    assert rewrite(path) is None
    assert path.read_text() == CURRENT
    assert judge(path) is None


def test_an_output_with_blank_lines_stands_between_doubled_separators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.txt"
    path.write_text("vote\n----\nVoteLost\n\n# the end\n")
    monkeypatch.setattr("tests.transcripts.quorum.Environment.handle", lambda *_: "one\n\nthree\n")
    assert rewrite(path) is None
    assert path.read_text() == "vote\n----\n----\none\n\nthree\n----\n----\n\n# the end\n"
    assert judge(path) is None


def test_a_file_that_is_as_it_should_be_stays_as_it_is(tmp_path: Path) -> None:
    for source in OURS.rglob("*.txt"):
        path = tmp_path / source.name
        path.write_bytes(source.read_bytes())
        assert rewrite(path) is None
        assert path.read_bytes() == source.read_bytes(), source


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("# nothing\n", Failure(0, "FormatError: no directives", "a transcript")),
        (
            "vote\n----\nold\n\nvote cfg=(x)\n----\n",
            Failure(5, "ValueError: invalid literal for int() with base 10: 'x'", "an output to write"),
        ),
    ],
)
def test_a_file_that_can_not_be_run_is_left_alone(tmp_path: Path, text: str, failure: Failure) -> None:
    path = tmp_path / "file.txt"
    path.write_text(text)
    assert rewrite(path) == failure
    assert path.read_text() == text


def test_the_flag_rewrites_the_named_files_and_judges_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outdated, broken = tmp_path / "a.txt", tmp_path / "b.txt"
    outdated.write_text("vote\n----\nold\n")
    broken.write_text("vote cfg=(x)\n----\nold\n")
    assert main(["--rewrite", str(tmp_path)]) == 1
    assert outdated.read_text() == "vote\n----\nVoteWon\n"
    printed = capsys.readouterr().out
    assert printed.startswith(f"ok   {outdated}\nFAIL {broken}: line 1: got ")
    assert printed.endswith("1 passed, 1 failed\n")


def test_the_flag_needs_the_files_to_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--rewrite"])
    assert stopped.value.code == 2
    assert "name them: for instance tests/transcripts/ours" in capsys.readouterr().err
