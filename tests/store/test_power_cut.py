"""What a real file system holds after its power was cut: all that was reported durable, and nothing else is
relied on.

The images of `test_log_crash` and `test_crash_images` lose pages as a power cut may. Here the kernel loses
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from raftstate.core.types import HardState
from raftstate.errors import DataLossError
from raftstate.machine.tables import Table
from raftstate.store.state import StateStore
from tests.small_disk import SmallDisk, small_disk
from tests.store.log_helpers import content, entry, new_log, put, reopen, run
from tests.store.state_model import rows_in

T = TypeVar("T")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path, 32 << 20, journal=True) as disk:
        yield disk


def after_power_cut(disk: SmallDisk, start: Callable[[], T]) -> T:
    """Start from what the disk has kept. That it can't be opened is a finding, not an accident."""
    disk.restore_power()
    try:
        return start()
    except DataLossError as error:
        pytest.fail(f"lost by a power cut: {error}")


def test_a_power_cut_loses_what_was_not_synced(disk: SmallDisk) -> None:
    """The control."""
    (disk.path / "file").write_bytes(b"x" * 10_000)
    disk.cut_power()
    disk.restore_power()
    assert not (disk.path / "file").exists() or not (disk.path / "file").read_bytes()


@pytest.mark.case(47)
def test_every_write_of_the_log_that_has_returned_survives(disk: SmallDisk) -> None:
    log = new_log(disk.path / "log")
    for cut in range(4):
        first = log.last_index() + 1
        put(log, run(first, first + cut, term=cut + 1), HardState(cut + 1, 1, first - 1))
        put(log, [entry(first + cut + 1, cut + 1, b"x" * 50_000)])
        put(log, [], HardState(cut + 1, 1, first))
        expected = content(log)
        disk.cut_power()
        log.close()
        log = after_power_cut(disk, lambda: reopen(disk.path / "log"))
        assert (content(log), log.damaged) == (expected, ())
    log.close()


@pytest.mark.case(48)
def test_the_state_goes_back_to_its_checkpoint(disk: SmallDisk) -> None:
    state = StateStore.create(disk.path, map_bytes=1 << 28)
    for cut in range(4):
        with state.write() as tables:
            for number in range(50):
                tables.put(Table.HOT, b"%d" % number, b"%d" % cut * 1_000)
        state.checkpoint(2 * cut + 1)
        expected = rows_in(state)
        with state.write() as tables:
            for number in range(25, 75):
                tables.put(Table.HOT, b"%d" % number, b"lost" * 500)
        disk.cut_power()
        state.close(clean=False)
        state = after_power_cut(disk, lambda: StateStore.open(disk.path))
        assert (rows_in(state), state.durable_applied_index) == (expected, 2 * cut + 1)
    state.close(clean=False)
