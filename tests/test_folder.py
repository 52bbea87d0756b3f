"""What is done to a node's folder before its store is loaded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raftstate import folder
from raftstate.folder import read_ahead, settings_alone


def test_reading_ahead_asks_for_the_log_piece_by_piece_and_minds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int, int]] = []

    def advise(file: int, offset: int, length: int, advice: int) -> None:
        assert advice == 3
        asked.append((os.fstat(file).st_ino, offset, length))

    monkeypatch.setattr(os, "posix_fadvise", advise, raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_WILLNEED", 3, raising=False)
    settings = settings_alone(tmp_path, {})
    read_ahead(settings).join()
    assert asked == []
    file = settings.data_path / "log" / "data.mdb"
    file.parent.mkdir(parents=True)
    piece = folder._READ_AHEAD_BYTES
    file.write_bytes(bytes(2 * piece + 1))
    read_ahead(settings).join()
    inode = file.stat().st_ino
    assert asked == [(inode, 0, piece), (inode, piece, piece), (inode, 2 * piece, piece)]
    asked.clear()
    monkeypatch.setattr(folder, "_READ_AHEAD_BYTES_MAX", piece)
    read_ahead(settings).join()
    assert asked == [(inode, 0, piece)]
    monkeypatch.delattr(os, "posix_fadvise")
    read_ahead(settings).join()
    assert len(asked) == 1
