"""Our own transcripts: each documents one behaviour of the core, and the core behaves so.

`python -m tests.transcripts --rewrite tests/transcripts/ours` writes their outputs anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from raftstate.core.log import RaftLog
from tests.transcripts.runner import find_files, judge

OURS = Path(__file__).resolve().parent / "ours"
_FILES = [pytest.param(path, id=str(path.relative_to(OURS).with_suffix(""))) for path in find_files([OURS])]


@pytest.mark.parametrize("path", _FILES)
def test_the_core_behaves_as_documented(path: Path) -> None:
    failure = judge(path)
    assert failure is None, f"{path}: {failure}\n{failure.diff()}"


@pytest.mark.parametrize("path", _FILES)
def test_a_transcript_opens_with_the_behaviour_that_it_documents(path: Path) -> None:
    opening = path.read_text(encoding="utf-8").split("\n\n", 1)[0]
    assert all(line.startswith("# ") for line in opening.split("\n")), f"{path} has to say what it documents"
    assert ": " in opening, f"{path} opens with `# Topic: behaviour`"


def test_a_core_that_commits_entries_of_earlier_terms_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def maybe_commit(log: RaftLog, index: int, term: int) -> bool:
        moved = log.committed < index <= log.last_index()
        log.commit_to(index if moved else 0)
        return moved

    monkeypatch.setattr(RaftLog, "maybe_commit", maybe_commit)
    failure = judge(OURS / "commit_own_term.txt")
    assert failure is not None
    assert "+HardState Term:2 Vote:1 Commit:12" in failure.diff()
