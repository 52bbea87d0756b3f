"""etcd's transcripts, one test a file, where they are at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.transcripts.runner import default_paths, find_files, judge

_FILES = [
    pytest.param(path, id="/".join(path.parts[-2:]))
    for path in find_files(path for path in default_paths() if path.exists())
]
_SEARCHED = ", ".join(map(str, default_paths()))
_ABSENT = pytest.param(
    None,
    id="absent",
    marks=pytest.mark.skip(
        f"no transcripts in {_SEARCHED}; RAFTSTATE_TRANSCRIPTS may name a folder that has some"
    ),
)


@pytest.mark.parametrize("path", _FILES or [_ABSENT])
def test_transcript_gives_the_recorded_outputs(path: Path) -> None:
    failure = judge(path)
    assert failure is None, f"{path}: {failure}\n{failure.diff()}"
