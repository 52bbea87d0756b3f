"""The log copied into new files: nothing that was removed is left, and a crash leaves the old or the new."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from raftstate.core.types import HardState
from raftstate.errors import ClosedError, DataLossError, StorageError
from raftstate.store import log_copy
from raftstate.store.directory import read_eio
from raftstate.store.files import is_full
from raftstate.store.log import LogStore
from tests.store.log_helpers import NO_LIMIT, content, entry, new_log, put, reopen, run
from tests.store.test_log_writer import Loop

MARK = b"7Yq-secret"


def files_with(directory: Path, wanted: bytes = MARK) -> list[str]:
    return [path.name for path in directory.rglob("*") if path.is_file() and wanted in path.read_bytes()]


def cut_log(path: Path) -> LogStore:
    """A log of 1 to 40, of which 1 to 30, that hold the mark, are removed."""
    log = new_log(path)
    marked = [entry(index, data=MARK * (1 + 700 * (index % 3))) for index in range(1, 31)]
    put(log, [*marked, *run(31, 40)], HardState(1, 1, 35))
    while (write := log.compact(30, 7)) is not None:
        log.publish(write)
    return log


def test_what_was_removed_is_in_no_file_and_the_rest_is_as_it_was(tmp_path: Path) -> None:
    log = cut_log(tmp_path / "log")
    before = content(log)
    assert files_with(tmp_path) == ["data.mdb"]
    log.publish(log.rewrite())
    assert content(log) == before
    assert files_with(tmp_path) == []
    assert sorted(os.listdir(tmp_path)) == ["log"]
    put(log, run(41, 42), HardState(2, 2, 36))
    log.publish(log.rewrite())
    put(log, run(43, 44, term=2), HardState(2, 2, 40))
    expected = content(log)
    log.close()
    again = reopen(tmp_path / "log")
    assert content(again) == expected
    assert again.term(30) == 1
    again.close()


def test_entries_before_the_window_are_read_from_the_new_file(tmp_path: Path) -> None:
    cut_log(tmp_path / "log").close()
    log = reopen(tmp_path / "log", window_bytes=1)
    log.publish(log.rewrite())
    assert log.entries(31, 41, NO_LIMIT) == run(31, 40)
    log.close()


def test_an_empty_log_is_copied_too(tmp_path: Path) -> None:
    log = new_log(tmp_path / "log")
    log.publish(log.rewrite())
    put(log, run(1, 3), HardState(1, 1, 1))
    log.close()
    again = reopen(tmp_path / "log")
    assert content(again) == (HardState(1, 1, 1), 1, run(1, 3))
    again.close()


def test_more_than_a_transaction_holds_is_copied_in_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_copy, "_TRANSACTION_BYTES", 1_000)
    monkeypatch.setattr(log_copy, "_ROWS_AT_ONCE", 7)
    log = new_log(tmp_path / "log")
    put(log, run(1, 500), HardState(1, 1, 1))
    write = log.rewrite()
    assert write.meta.transaction_id > 5
    log.publish(write)
    log.close()
    again = reopen(tmp_path / "log")
    assert content(again)[2] == run(1, 500)
    again.close()


def test_a_damaged_record_is_not_copied_and_the_log_stays_as_it_is(tmp_path: Path) -> None:
    log = cut_log(tmp_path / "log")
    with log._environment.begin(write=True) as txn:
        txn.put((35).to_bytes(8, "big"), b"rot")
    with pytest.raises(DataLossError, match="log entry 35 is damaged"):
        log.rewrite()
    assert sorted(os.listdir(tmp_path)) == ["log"]
    assert log.entries(31, 35, NO_LIMIT) == run(31, 34)
    log.close()


@pytest.mark.parametrize("step", range(5))
def test_a_crash_at_each_step_leaves_the_old_log_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    data, image = tmp_path / "data", tmp_path / "image"
    data.mkdir()
    log = cut_log(data / "log")
    before = content(log)
    calls = 0

    def dying(real: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            nonlocal calls
            if calls == step:
                shutil.copytree(data, image)
            calls += 1
            real(*arguments)

        return call

    real_copy = log_copy.copy_log

    def copy_then_watch(*arguments: object) -> log_copy.LogCopy:
        copied = real_copy(*arguments)  # type: ignore[arg-type]
        monkeypatch.setattr(log_copy.os, "replace", dying(os.replace))
        monkeypatch.setattr(log_copy, "fsync_directory", dying(log_copy.fsync_directory))
        monkeypatch.setattr(Path, "rmdir", dying(Path.rmdir))
        return copied

    monkeypatch.setattr("raftstate.store.log.copy_log", copy_then_watch)
    log.publish(log.rewrite())
    monkeypatch.undo()
    log.close()
    assert calls == 5
    (image / "log" / "lock.mdb").unlink(missing_ok=True)  # nobody has it open after a crash
    again = reopen(image / "log")
    assert content(again) == before
    assert (files_with(image / "log") == []) == (step > 0)
    again.publish(again.rewrite())
    put(again, run(41, 41))
    again.close()
    assert files_with(image) == []
    assert sorted(os.listdir(image)) == ["log"]


@pytest.mark.case(53)
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_log_whose_new_files_may_not_be_durable_takes_no_more_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    log = cut_log(tmp_path / "log")

    def fail(path: Path) -> None:
        raise StorageError("no", detail={"errno": number})

    def put_in_place(copy: log_copy.LogCopy, path: Path) -> None:
        monkeypatch.setattr(log_copy, "fsync_directory", fail)
        real(copy, path)

    real = log_copy.LogCopy.put_in_place
    monkeypatch.setattr(log_copy.LogCopy, "put_in_place", put_in_place)
    with pytest.raises(StorageError, match="no"):
        log.rewrite()
    # Not even once the disk has room again: it is not known which files a power cut would leave.
    with pytest.raises(StorageError, match="takes no more writes") as refused:
        log.write(None, run(41, 41))
    assert not is_full(refused.value)
    assert refused.value.detail["distrust"] == "log"
    assert read_eio(tmp_path) is not None, "the next start begins another file, and syncs its name anew"
    assert log.entries(31, 41, NO_LIMIT) == run(31, 40)
    log.close()


def test_reads_go_on_on_another_thread(tmp_path: Path) -> None:
    cut_log(tmp_path / "log").close()
    log = reopen(tmp_path / "log", window_bytes=1)
    stop = threading.Event()
    failures: list[BaseException] = []
    reads = 0

    def read() -> None:
        nonlocal reads
        try:
            while not stop.is_set():
                assert log.entries(31, 40, NO_LIMIT) == run(31, 39)
                assert log.size_bytes() > 0
                reads += 1
        except BaseException as error:  # noqa: BLE001 - told to the test
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(10):
            log.publish(log.rewrite())
    finally:
        stop.set()
        reader.join()
    assert failures == []
    assert reads
    log.close()


# -- the thread


def test_the_writer_rewrites_after_the_cut_and_writes_on(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "log")
    loop.append("first", [entry(1, data=MARK), *run(2, 9)], HardState(1, 1, 5))
    loop.writer.compact(5, loop.report("cut"))
    loop.writer.rewrite(loop.report("rewritten"))
    loop.append("second", run(10, 12))
    reports = loop.run_until(4)
    assert dict(reports) == dict.fromkeys(("first", "cut", "rewritten", "second"))
    names = [name for name, _ in reports]
    assert names.index("cut") < names.index("rewritten")
    loop.append("third", run(13, 14))
    loop.run_until(5)
    assert content(loop.log)[1:] == (6, run(6, 14))
    assert files_with(tmp_path) == []
    loop.close()


def test_a_rewrite_that_failed_is_told_and_the_writer_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop(tmp_path / "log")

    def fail() -> None:
        raise StorageError("no space", detail={"errno": 28})

    monkeypatch.setattr(loop.log, "rewrite", fail)
    loop.writer.rewrite(loop.report("rewritten"))
    loop.append("next", run(1, 2), HardState(1, 1, 0))
    reports = dict(loop.run_until(2))
    assert isinstance(reports["rewritten"], StorageError)
    assert reports["next"] is None
    loop.close()


def test_a_rewrite_that_waits_when_the_writer_is_closed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop(tmp_path / "log")
    held = loop.hold_commits(monkeypatch)
    loop.append("first", run(1, 2), HardState(1, 1, 0))
    held.wait_for_one()
    loop.writer.rewrite(loop.report("rewritten"))
    held.let_go(9)
    loop.close()
    reports = dict(loop.reports)
    assert isinstance(reports["rewritten"], ClosedError)
    with pytest.raises(ClosedError):
        loop.writer.rewrite(loop.report("late"))
