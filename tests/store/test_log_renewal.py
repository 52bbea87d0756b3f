"""A log whose disk failed a write goes on in another file."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from raftstate.core.types import HardState
from raftstate.errors import DataLossError, StorageError
from raftstate.store import log_renewal
from raftstate.store.directory import mark_eio, read_eio
from raftstate.store.files import is_full
from raftstate.store.log_renewal import must_copy, renew_log
from raftstate.store.space import FileSystem
from tests.store.log_helpers import MAP_BYTES, content, new_log, put, reopen, run

HARD_STATE = HardState(3, 2, 4)


@pytest.fixture
def failed(tmp_path: Path) -> Path:
    """The directory of a log whose disk failed a write."""
    log = new_log(tmp_path / "log")
    put(log, run(1, 6, term=2), HARD_STATE)
    log.close()
    mark_eio(tmp_path, "failed while writing the log")
    return tmp_path / "log"


def inode(path: Path) -> int:
    return (path / "data.mdb").stat().st_ino


@pytest.mark.case(53)
def test_it_goes_on_in_another_file_with_all_that_could_be_read(failed: Path) -> None:
    before = inode(failed)
    assert must_copy(failed.parent)
    renew_log(failed, map_bytes=MAP_BYTES)
    assert inode(failed) != before
    assert not must_copy(failed.parent)
    assert sorted(path.name for path in failed.parent.iterdir()) == ["log"]
    log = reopen(failed)
    assert content(log) == (HARD_STATE, 1, run(1, 6, term=2))
    put(log, run(7, 7, term=3), HardState(3, 2, 7))
    log.close()
    again = reopen(failed)
    assert again.last_index() == 7
    again.close()


@pytest.mark.case(53)
def test_the_copy_is_synced_before_it_takes_the_place_of_the_old_file(
    failed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def traced_fsync(descriptor: int) -> None:
        steps.append("sync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def traced_replace(source: Path, target: Path) -> None:
        steps.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "replace", traced_replace)
    renew_log(failed, map_bytes=MAP_BYTES)
    assert steps.index("sync data.mdb") < steps.index("replace")
    assert "sync log" in steps[steps.index("replace") :]


@pytest.mark.parametrize("step", ["_copy", "fsync_directory", "clear_eio"])
def test_after_a_crash_in_the_middle_it_is_done_again(
    failed: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def crash(*_: object) -> None:
        raise InterruptedError

    with monkeypatch.context() as interrupted:
        interrupted.setattr(log_renewal, step, crash)
        with pytest.raises((InterruptedError, StorageError)):
            renew_log(failed, map_bytes=MAP_BYTES)
    assert must_copy(failed.parent)
    renew_log(failed, map_bytes=MAP_BYTES)
    assert not must_copy(failed.parent)
    log = reopen(failed)
    assert content(log) == (HARD_STATE, 1, run(1, 6, term=2))
    log.close()


@pytest.mark.case(52)
def test_without_room_for_a_copy_the_log_stays_as_it_is(
    failed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = inode(failed)
    monkeypatch.setattr(log_renewal, "file_system", lambda _path: FileSystem(1 << 30, 5_000))
    with pytest.raises(
        StorageError, match=r"5000 bytes are free, .* are needed; free or add space"
    ) as raised:
        renew_log(failed, map_bytes=MAP_BYTES)
    assert is_full(raised.value)
    assert inode(failed) == before
    assert read_eio(failed.parent) == "failed while writing the log"


def test_a_damaged_record_is_copied_as_it_is_and_found_at_the_next_opening(failed: Path) -> None:
    data = bytearray((failed / "data.mdb").read_bytes())
    data[data.index(b"3/2")] ^= 1
    (failed / "data.mdb").write_bytes(data)
    renew_log(failed, map_bytes=MAP_BYTES)
    log = reopen(failed)
    assert log.first_damaged_index == 3
    log.close()


def test_what_is_no_log_any_more_is_refused_and_stays(failed: Path) -> None:
    data = bytearray((failed / "data.mdb").read_bytes())
    data[: 2 * 4096] = bytes(2 * 4096)
    (failed / "data.mdb").write_bytes(data)
    before = inode(failed)
    with pytest.raises(DataLossError):
        renew_log(failed, map_bytes=MAP_BYTES)
    assert inode(failed) == before
    assert must_copy(failed.parent)
    shutil.rmtree(failed)
    with pytest.raises(DataLossError, match="is missing"):
        renew_log(failed, map_bytes=MAP_BYTES)


def test_a_disk_that_fails_again_is_said_to(failed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="failed while copying the log"):
        renew_log(failed, map_bytes=MAP_BYTES)
    assert must_copy(failed.parent)


@pytest.mark.case(53)
@pytest.mark.parametrize("is_readable", [True, False])
def test_a_log_that_the_disk_can_not_give_back_is_lost_and_one_that_it_can_not_take_is_not(
    failed: Path, monkeypatch: pytest.MonkeyPatch, is_readable: bool
) -> None:
    """Otherwise a node with a bad sector would try to copy it for ever, instead of being replaced."""

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(log_renewal, "copy_bytes", fail)
    if not is_readable:
        monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(StorageError if is_readable else DataLossError, match="Input/output error"):
        renew_log(failed, map_bytes=MAP_BYTES)
    assert must_copy(failed.parent)
