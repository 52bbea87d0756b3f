"""A node's data are made anew in place: a crash at any step leaves the old ones or the new."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from raftstate.errors import DataLossError
from raftstate.store import replacement
from raftstate.store.directory import DataDirectory, Identity
from raftstate.store.files import durable_write

OLD = Identity(cluster_id=7, node_id=2, incarnation=4, name="n2")


class Crash(BaseException):
    """The machine goes down."""


def old_data(path: Path) -> None:
    DataDirectory.create(path, OLD, lambda fresh: durable_write(fresh / "state", b"old")).close()
    (path / "log").mkdir()
    (path / "log" / "data.mdb").write_bytes(b"old")
    (path / "state-3").mkdir()


def blank(path: Path) -> None:
    (path / "log").mkdir()
    durable_write(path / "log" / "data.mdb", b"new")
    durable_write(path / "state", b"new")


def content(path: Path) -> dict[str, bytes]:
    return {
        str(each.relative_to(path)): each.read_bytes()
        for each in sorted(path.rglob("*"))
        if each.is_file() and each.name not in ("lock", "identity")
    }


NEW_CONTENT = {"log/data.mdb": b"new", "state": b"new"}
OLD_CONTENT = {"log/data.mdb": b"old", "state": b"old"}


def test_data_are_made_anew_under_the_new_incarnation(tmp_path: Path) -> None:
    old_data(tmp_path / "data")
    directory = DataDirectory.open(tmp_path / "data", OLD)
    assert not replacement.finish(directory, blank)
    assert content(tmp_path / "data") == OLD_CONTENT
    replacement.begin(directory, 5)
    assert replacement.finish(directory, blank)
    assert directory.identity.incarnation == 5
    directory.close()
    assert content(tmp_path / "data") == NEW_CONTENT
    # The settings may still say the old incarnation; the directory knows better.
    directory = DataDirectory.open(tmp_path / "data", OLD)
    assert directory.identity.incarnation == 5
    assert not replacement.finish(directory, blank)
    directory.close()


@pytest.mark.case(19)
@pytest.mark.parametrize("step", range(30))
def test_a_crash_at_any_step_leaves_the_old_or_the_new(
    tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data"
    old_data(path)
    left = step

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def step_or_crash(*args: object, **kwargs: object) -> object:
            nonlocal left
            if left == 0:
                raise Crash
            left -= 1
            return real(*args, **kwargs)

        return step_or_crash

    directory = DataDirectory.open(path, OLD)
    for name in ("replace", "fsync", "unlink", "mkdir"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    monkeypatch.setattr(shutil, "rmtree", counted(shutil.rmtree))
    crashed = False
    try:
        replacement.begin(directory, 5)
        replacement.finish(directory, blank)
    except Crash:
        crashed = True
    monkeypatch.undo()
    directory.close()
    directory = DataDirectory.open(path, OLD)
    finished = replacement.finish(directory, blank)
    if directory.identity.incarnation == 4:
        assert crashed
        assert not finished
        assert content(path) in (
            OLD_CONTENT,
            OLD_CONTENT | {"replacing.new": content(path).get("replacing.new", b"")},
        )
    else:
        assert directory.identity.incarnation == 5
        assert content(path) == NEW_CONTENT
    directory.close()
    assert crashed or step > 12


def test_a_damaged_marker_is_no_identity(tmp_path: Path) -> None:
    old_data(tmp_path / "data")
    directory = DataDirectory.open(tmp_path / "data", OLD)
    replacement.begin(directory, 5)
    marker = tmp_path / "data" / "replacing"
    marker.write_bytes(marker.read_bytes().replace(b"5", b"6", 1))
    with pytest.raises(DataLossError):
        replacement.finish(directory, blank)
    directory.close()
