"""How room is measured, and kept."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from raftstate.core.types import HardState
from raftstate.errors import StorageError
from raftstate.machine.tables import Table
from raftstate.store.reserve import Reserve
from raftstate.store.space import Reader, file_system, parse_readers
from raftstate.store.state import StateStore
from tests.store.log_helpers import MAP_BYTES, entry, new_log, put


def test_pages_that_a_compaction_frees_are_free_within_the_log(tmp_path: Path) -> None:
    log = new_log(tmp_path / "log")
    put(log, [entry(index, data=b"x" * 100_000) for index in range(1, 11)], HardState(1, 1, 10))
    full = log.space()
    log.compact(10, 100)
    cut = log.space()
    log.close()
    assert full.map_bytes == cut.map_bytes == MAP_BYTES
    assert full.used_bytes > 1_000_000 > 50_000 > full.free_bytes
    assert cut.free_bytes > 1_000_000 > 50_000 > cut.used_bytes
    file_bytes = (tmp_path / "log" / "data.mdb").stat().st_size
    assert 0.98 * file_bytes < cut.used_bytes + cut.free_bytes <= file_bytes


def test_pages_of_deleted_rows_are_free_within_the_state(tmp_path: Path) -> None:
    store = StateStore.create(tmp_path, 1 << 28)
    keys = [b"%04d" % number for number in range(100)]
    with store.write() as tables:
        tables.put_many(Table.CHANGES, [(key, bytes(10_000)) for key in keys])
    full = store.space()
    with store.write() as tables:
        for key in keys:
            tables.delete(Table.CHANGES, key)
    emptied = store.space()
    store.close(clean=False)
    assert full.used_bytes > 1_000_000 > emptied.used_bytes
    assert emptied.free_bytes > 1_000_000 > full.free_bytes
    assert full.map_bytes == 1 << 28


def test_a_reader_is_listed_with_its_process_and_commit(tmp_path: Path) -> None:
    store = StateStore.create(tmp_path, 1 << 28)
    pinned, newest = store.readers()
    with store.read() as tables:
        reading, _ = store.readers()
        assert len(reading) == len(pinned) + 1
        assert {each.pid for each in reading} == {os.getpid()}
        assert newest == tables.transaction_id == max(each.transaction_id for each in reading)
    assert len(store.readers()[0]) == len(pinned)
    store.close(clean=False)


def test_idle_slots_are_nobodys() -> None:
    table = "    pid     thread     txnid\n     21604 7fc2683c0b80 3\n     21605 7fc2683c0b81 -\n"
    assert parse_readers(table) == [Reader(21604, "7fc2683c0b80", 3)]
    assert parse_readers("(no active readers)\n") == []


def test_the_reserve_takes_its_room_and_gives_it_back(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path, 1 << 20)
    assert not reserve.held
    assert not reserve.release()
    assert reserve.make()
    assert reserve.held
    assert (tmp_path / "reserve").stat().st_blocks * 512 >= 1 << 20
    assert reserve.make()
    assert reserve.release()
    assert not reserve.held
    assert list(tmp_path.iterdir()) == []


def test_a_reserve_of_nothing_takes_away_what_an_earlier_run_kept(tmp_path: Path) -> None:
    assert Reserve(tmp_path, 1 << 16).make()
    assert not Reserve(tmp_path, 0).make()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_reserve_that_there_is_no_room_for_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", fail)
    reserve = Reserve(tmp_path, 1 << 16)
    assert not reserve.make()
    assert not reserve.held
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_not_there_is_said_not_to_be(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="failed while looking for free space"):
        file_system(tmp_path / "nowhere")
    total, free = file_system(tmp_path)
    assert total > free > 0
