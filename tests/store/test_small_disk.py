"""Log and state on a real disk that is full."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from raftstate.core.types import HardState
from raftstate.errors import StorageError
from raftstate.machine.tables import Table
from raftstate.store.directory import read_eio
from raftstate.store.files import is_full
from raftstate.store.log_renewal import renew_log
from raftstate.store.state import StateStore
from tests.small_disk import SmallDisk, small_disk
from tests.store.log_helpers import content, entry, new_log, put, reopen, run

DISK_BYTES = 24 << 20
MAP_BYTES = 1 << 30


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path, DISK_BYTES) as disk:
        yield disk


def refused(write: Callable[[int], None]) -> StorageError:
    """Write again and again, by number, until it fails; return why."""
    for number in count():
        try:
            write(number)
        except StorageError as error:
            return error
    raise AssertionError


@pytest.mark.case(51)
@pytest.mark.case(52)
def test_a_log_on_a_full_disk_keeps_what_it_has_and_goes_on_when_there_is_room(disk: SmallDisk) -> None:
    log = new_log(disk.path / "log")
    put(log, run(1, 3), HardState(1, 1, 3))
    disk.fill()
    error = refused(lambda number: put(log, [entry(4 + number, data=b"x" * 3_000)]))
    assert is_full(error), error
    written = log.last_index()
    assert read_eio(disk.path) is None
    before = content(log)
    assert before[2][:3] == run(1, 3)
    for _ in range(3):
        error = refused(lambda _number: put(log, [entry(written + 1, data=b"y" * 100_000)]))
        assert is_full(error), error
        assert content(log) == before
    disk.free()
    put(log, [entry(written + 1, data=b"y" * 100_000)])
    after = content(log)
    log.close()
    again = reopen(disk.path / "log")
    assert content(again) == after == (*before[:2], [*before[2], entry(written + 1, data=b"y" * 100_000)])
    again.close()


@pytest.mark.case(52)
@pytest.mark.case(53)
def test_a_log_that_was_written_in_part_is_copied_once_there_is_room(disk: SmallDisk) -> None:
    """The other face of a full disk: part of a large value fits, and LMDB says EIO."""
    log = new_log(disk.path / "log")
    put(log, run(1, 3), HardState(1, 1, 3))
    disk.fill(but_bytes=300_000)
    error = refused(lambda number: put(log, [entry(4 + number, data=bytes([number]) * (1 << 20))]))
    before = content(log)
    log.close()
    assert not is_full(error), "this disk's fullness has no second face"
    disk.fill()
    with pytest.raises(StorageError) as no_room:
        renew_log(disk.path / "log", map_bytes=MAP_BYTES)
    assert is_full(no_room.value)
    disk.free()
    if read_eio(disk.path) is None:
        # There was no room for the marker, either: the process that saw it fail remembers it.
        assert error.__notes__
    renew_log(disk.path / "log", map_bytes=MAP_BYTES)
    again = reopen(disk.path / "log")
    assert content(again) == before
    put(again, [entry(before[2][-1].index + 1, data=b"z" * (1 << 20))])
    again.close()


@pytest.mark.case(51)
@pytest.mark.case(52)
@pytest.mark.parametrize("value_bytes", [2_000, 2 << 20], ids=["small rows", "large rows"])
def test_a_state_on_a_full_disk_goes_on_when_there_is_room(disk: SmallDisk, value_bytes: int) -> None:
    store = StateStore.create(disk.path, MAP_BYTES)
    with store.write() as tables:
        tables.put(Table.CHANGES, b"first", b"row")
    store.checkpoint(1)
    disk.fill(but_bytes=value_bytes // 2)

    def write(number: int) -> None:
        with store.write() as tables:
            tables.put(Table.CHANGES, b"%d" % number, bytes(value_bytes))

    error = refused(write)
    assert is_full(error), error
    assert store.failure is None
    with store.read() as tables:
        kept = list(tables.scan(Table.CHANGES))
        assert (b"first", b"row") in kept
    disk.free()
    with store.write() as tables:
        tables.put(Table.CHANGES, b"last", bytes(value_bytes))
    store.checkpoint(2)
    store.close(clean=True)
    again = StateStore.open(disk.path)
    with again.read() as tables:
        assert list(tables.scan(Table.CHANGES)) == sorted([*kept, (b"last", bytes(value_bytes))])
    again.close(clean=False)
