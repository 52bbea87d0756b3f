"""What is done to a node's folder before its store is loaded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raftstate.folder import read_ahead, settings_alone


def test_reading_ahead_asks_for_all_of_the_log_and_minds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int, int]] = []

    def advise(file: int, offset: int, length: int, advice: int) -> None:
        asked.append((os.fstat(file).st_ino, offset, advice))

    monkeypatch.setattr(os, "posix_fadvise", advise, raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_WILLNEED", 3, raising=False)
    settings = settings_alone(tmp_path, {})
    read_ahead(settings)
    assert asked == []
    file = settings.data_path / "log" / "data.mdb"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    read_ahead(settings)
    assert asked == [(file.stat().st_ino, 0, 3)]
    monkeypatch.delattr(os, "posix_fadvise")
    read_ahead(settings)
