"""A log is rewritten when little is left of it: appends wait for as long as that takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest

from raftstate.errors import ClosedError, StorageError
from raftstate.node.defragment import Defragmenter
from raftstate.node.driver import Driver
from raftstate.node.erase_files import COPY_BYTES, NodeFiles
from raftstate.store.log import LogStore
from raftstate.store.log_writer import LogWriter
from raftstate.store.state import StateStore

Done = Callable[[BaseException | None], None]


class Log:
    """Stands for a log and its writer."""

    def __init__(self) -> None:
        self.bytes = COPY_BYTES
        self.first = 10
        self.cut_error: BaseException | None = None
        self.is_closed = False
        self.asked: list[str] = []

    def size_bytes(self) -> int:
        return self.bytes

    def first_index(self) -> int:
        return self.first

    def compact(self, to_index: int, done: Done) -> None:
        self.asked.append(f"cut to {to_index}")
        done(self.cut_error)

    def rewrite(self, done: Done) -> None:
        if self.is_closed:
            raise ClosedError("closed")
        self.asked.append("rewrite")
        done(None)


@pytest.fixture
def log() -> Log:
    return Log()


def rewrite(log: Log, cut_index: int) -> list[BaseException | None]:
    files = NodeFiles(
        cast(Driver, None),
        cast(StateStore, None),
        cast(LogStore, log),
        cast(LogWriter, log),
        cast(Defragmenter, None),
        lambda: cut_index,
    )
    done: list[BaseException | None] = []
    files.rewrite_log(done.append)
    files.close()
    return done


def test_a_small_log_is_copied_as_it_is(log: Log) -> None:
    assert rewrite(log, 1_000) == [None]
    assert log.asked == ["rewrite"]


def test_a_large_one_is_cut_closely_first(log: Log) -> None:
    log.bytes += 1
    assert rewrite(log, 1_000) == [None]
    assert log.asked == ["cut to 1000", "rewrite"]


def test_one_that_can_not_be_cut_is_copied_nevertheless(log: Log) -> None:
    log.bytes += 1
    assert rewrite(log, 9) == [None]
    assert log.asked == ["rewrite"]


def test_a_cut_that_failed_is_told(log: Log) -> None:
    log.bytes += 1
    log.cut_error = StorageError("no room")
    assert rewrite(log, 1_000) == [log.cut_error]
    assert log.asked == ["cut to 1000"]


def test_a_writer_that_was_closed_meanwhile_is_told(log: Log) -> None:
    log.bytes += 1
    log.is_closed = True
    [error] = rewrite(log, 1_000)
    assert isinstance(error, ClosedError)
