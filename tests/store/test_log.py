"""The log: what is written, published, read, truncated and compacted, and what is refused."""

from __future__ import annotations

import errno
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pytest

from raftstate.core.errors import Compacted, SnapshotTemporarilyUnavailable, Unavailable
from raftstate.core.types import ConfState, Entry, EntryType, HardState
from raftstate.errors import DataLossError, FailedPreconditionError, InvariantError, StorageError
from raftstate.store.directory import read_eio
from raftstate.store.files import is_full
from raftstate.store.log import LogStore
from tests.store.log_helpers import MAP_BYTES, NO_LIMIT, content, entry, new_log, put, reopen, run


def test_a_new_log_is_empty(tmp_path: Path) -> None:
    log = new_log(tmp_path / "log")
    assert log.initial_state() == (HardState(), ConfState())
    assert (log.first_index(), log.last_index(), log.term(0)) == (1, 0, 0)
    with pytest.raises(Unavailable):
        log.term(1)
    with pytest.raises(Unavailable):
        log.entries(1, 2, NO_LIMIT)
    with pytest.raises(SnapshotTemporarilyUnavailable):
        log.snapshot()
    log.close()


@pytest.mark.case(1)
@pytest.mark.case(2)
def test_entries_and_hard_state_of_one_write_are_there_after_a_restart(tmp_path: Path) -> None:
    log = new_log(tmp_path / "log")
    entries = [
        Entry(index=1, term=1),
        Entry(index=2, term=3, type=EntryType.CONF_CHANGE_V2, data=b"\x00" * 100_000),
        Entry(index=3, term=3, data=b"x"),
    ]
    put(log, entries, HardState(term=3, vote=2, commit=1))
    log.close()
    again = reopen(tmp_path / "log")
    assert content(again) == (HardState(term=3, vote=2, commit=1), 1, entries)
    assert [again.term(index) for index in (1, 2, 3)] == [1, 3, 3]
    assert again.first_damaged_index is None
    again.close()


@pytest.mark.case(6)
def test_what_is_written_shows_only_once_it_is_published(tmp_path: Path) -> None:
    log = new_log(tmp_path / "log")
    put(log, run(1, 2), HardState(1, 1, 0))
    write = log.write(HardState(2, 3, 1), run(2, 4, term=2))
    assert content(log) == (HardState(1, 1, 0), 1, run(1, 2))
    log.publish(write)
    assert content(log) == (HardState(2, 3, 1), 1, run(1, 1) + run(2, 4, term=2))
    with pytest.raises(InvariantError, match=r"transaction 3 was published after 3"):
        log.publish(write)
    log.close()


def test_a_write_of_the_hard_state_alone_keeps_the_entries(tmp_path: Path) -> None:
    log = new_log(tmp_path / "log")
    put(log, run(1, 3))
    put(log, [], HardState(4, 2, 3))
    log.close()
    again = reopen(tmp_path / "log")
    assert content(again) == (HardState(4, 2, 3), 1, run(1, 3))
    again.close()


def test_appending_removes_what_stood_at_and_after_the_first_index(tmp_path: Path) -> None:
    log = new_log(tmp_path / "log")
    put(log, run(1, 9))
    put(log, run(4, 5, term=2))
    expected = (HardState(), 1, run(1, 3) + run(4, 5, term=2))
    assert content(log) == expected
    with pytest.raises(Unavailable):
        log.term(6)
    log.close()
    again = reopen(tmp_path / "log")
    assert content(again) == expected
    again.close()


@pytest.mark.parametrize("window_bytes", [1, 1000, 1 << 20])
def test_entries_are_the_same_from_memory_and_from_disk(tmp_path: Path, window_bytes: int) -> None:
    log = new_log(tmp_path / "log", window_bytes=window_bytes)
    entries = run(1, 50)
    for one in entries:
        put(log, [one])
    put(log, run(30, 40, term=2))
    entries[29:] = run(30, 40, term=2)
    assert log.entries(1, 41, NO_LIMIT) == entries
    assert log.entries(7, 39, NO_LIMIT) == entries[6:38]
    assert [log.term(index) for index in range(1, 41)] == [one.term for one in entries]
    log.close()


@pytest.mark.parametrize("window_bytes", [1, 300, 1 << 20])
def test_a_byte_limit_yields_a_prefix_and_at_least_one_entry(tmp_path: Path, window_bytes: int) -> None:
    log = new_log(tmp_path / "log", window_bytes=window_bytes)
    entries = [entry(index, data=b"x" * 100) for index in range(1, 6)]
    for one in entries:
        put(log, [one])
    assert log.entries(1, 6, 0) == entries[:1]
    assert log.entries(1, 6, 250) == entries[:2]
    assert log.entries(2, 6, 330) == entries[1:4]
    assert log.entries(1, 6, 10_000) == entries
    log.close()


def test_the_window_is_bounded_and_keeps_the_last_entries(tmp_path: Path) -> None:
    log = new_log(tmp_path / "log", window_bytes=50_000)
    for index in range(1, 41):
        put(log, [entry(index, data=b"x" * 10_000)])
        held = log._window.next_index - log._window.first_index
        assert 1 <= held <= 4
        assert log._window.next_index == index + 1
    log.close()


@pytest.mark.parametrize(
    ("first", "last", "message"),
    [
        (7, 8, r"entries from 7 on can't be appended: the log holds 3 to 5"),
        (2, 6, r"entries from 2 on can't be appended: the log holds 3 to 5"),
        (4, 6, r"entries from 4 on would replace committed ones: the commit index is 4"),
    ],
)
def test_entries_that_do_not_fit_the_log_are_refused(
    tmp_path: Path, first: int, last: int, message: str
) -> None:
    log = new_log(tmp_path / "log")
    put(log, run(1, 5), HardState(1, 1, 4))
    compacted = log.compact(2, 100)
    assert compacted is not None
    log.publish(compacted)
    with pytest.raises(InvariantError, match=message):
        log.write(None, run(first, last, term=2))
    assert content(log) == (HardState(1, 1, 4), 3, run(3, 5))
    put(log, run(5, 6, term=2))
    log.close()


def test_entries_with_a_gap_between_them_are_refused(tmp_path: Path) -> None:
    log = new_log(tmp_path / "log")
    with pytest.raises(InvariantError, match="not contiguous: got 3, expected 2"):
        log.write(None, [entry(1), entry(3)])
    assert content(log) == (HardState(), 1, [])
    log.close()


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (HardState(4, 2, 3), "the term went back from 5 to 4"),
        (HardState(5, 3, 3), "the vote in term 5 changed from 2 to 3"),
        (HardState(5, 0, 3), "the vote in term 5 changed from 2 to 0"),
        (HardState(6, 1, 2), "the commit index went back from 3 to 2"),
        (HardState(6, 1, 4), "commit index 4 exceeds the last index 3"),
    ],
)
def test_a_hard_state_that_forgets_is_refused(tmp_path: Path, new: HardState, message: str) -> None:
    log = new_log(tmp_path / "log")
    put(log, run(1, 3), HardState(5, 2, 3))
    with pytest.raises(InvariantError, match=message):
        log.write(new, [])
    log.close()
    again = reopen(tmp_path / "log")
    assert again.last_hard_state == HardState(5, 2, 3)
    again.close()


def test_a_vote_may_be_cast_late_in_its_term(tmp_path: Path) -> None:
    log = new_log(tmp_path / "log")
    put(log, [], HardState(5, 0, 0))
    put(log, [], HardState(5, 2, 0))
    assert log.last_hard_state == HardState(5, 2, 0)
    log.close()


def test_compaction_goes_in_bounded_slices_and_keeps_the_boundarys_term(tmp_path: Path) -> None:
    log = new_log(tmp_path / "log")
    put(log, run(1, 4) + run(5, 12, term=2), HardState(2, 1, 6))
    boundaries = []
    while (slice_ := log.compact(10, 4)) is not None:
        log.publish(slice_)
        boundaries.append((log.first_index() - 1, log.term(log.first_index() - 1)))
    assert boundaries == [(4, 1), (8, 2), (10, 2)]
    # The saved commit index follows: a log that starts after its commit index would be refused.
    expected = (HardState(2, 1, 10), 11, run(11, 12, term=2))
    assert content(log) == expected
    with pytest.raises(Compacted):
        log.term(9)
    with pytest.raises(Compacted):
        log.entries(10, 12, NO_LIMIT)
    with pytest.raises(InvariantError, match="can't be compacted to 13: its last index is 12"):
        log.compact(13, 4)
    log.close()
    again = reopen(tmp_path / "log")
    assert content(again) == expected
    assert again.term(10) == 2
    again.close()


def test_a_log_that_is_compacted_whole_goes_on_from_its_boundary(tmp_path: Path) -> None:
    log = new_log(tmp_path / "log")
    put(log, run(1, 3), HardState(1, 1, 3))
    compacted = log.compact(3, 100)
    assert compacted is not None
    log.publish(compacted)
    assert (log.first_index(), log.last_index(), log.term(3)) == (4, 3, 1)
    put(log, run(4, 5))
    log.close()
    again = reopen(tmp_path / "log")
    assert content(again) == (HardState(1, 1, 3), 4, run(4, 5))
    again.close()


def test_a_cold_read_of_what_the_disk_no_longer_holds_is_not_taken_for_damage(tmp_path: Path) -> None:
    log = new_log(tmp_path / "log", window_bytes=1)
    put(log, run(1, 10), HardState(1, 1, 8))
    compacted = log.compact(5, 100)
    with pytest.raises(Compacted):
        log.entries(3, 8, NO_LIMIT)
    assert compacted is not None
    log.publish(compacted)
    shortened = log.write(None, run(9, 9, term=2))
    assert log.last_index() == 10
    assert log.first_damaged_index is None
    log.publish(shortened)
    log.close()


def test_a_log_is_made_once(tmp_path: Path) -> None:
    new_log(tmp_path / "log").close()
    with pytest.raises(FailedPreconditionError, match=r"a log at .* already"):
        new_log(tmp_path / "log")


def test_a_log_that_is_missing_is_never_made_up(tmp_path: Path) -> None:
    with pytest.raises(DataLossError, match=r"data file .* is missing"):
        reopen(tmp_path / "log")
    (tmp_path / "log").mkdir()
    with pytest.raises(DataLossError, match=r"data file .* is missing"):
        reopen(tmp_path / "log")


def test_making_a_log_starts_over_after_a_crash_in_the_middle_of_it(tmp_path: Path) -> None:
    # An environment without a single transaction: what a crash in the middle leaves, under the unfinished
    # name.
    lmdb.open(str(tmp_path / "log.new"), map_size=MAP_BYTES).close()
    log = new_log(tmp_path / "log")
    assert content(log) == (HardState(), 1, [])
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    log.close()


@contextmanager
def file_size_limit(limit_bytes: int) -> Iterator[None]:
    """In the block, writes past this size fail, and LMDB's commit says EIO, as it does on some full disks."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.case(6)
@pytest.mark.case(53)
def test_after_a_failed_commit_nothing_is_written_any_more(tmp_path: Path) -> None:
    log = new_log(tmp_path / "log")
    put(log, run(1, 2), HardState(1, 1, 1))
    with (
        file_size_limit(100_000),
        pytest.raises(StorageError, match="Input/output error; the disk failed") as raised,
    ):
        log.write(HardState(2, 2, 2), [entry(3, data=b"x" * 200_000)])
    assert raised.value.detail == {"errno": errno.EIO, "distrust": "log"}
    # The disk seems well again: it is not believed.
    with pytest.raises(StorageError, match="no more writes after an earlier failure"):
        log.write(None, run(3, 3))
    with pytest.raises(StorageError, match="no more writes after an earlier failure"):
        log.compact(1, 10)
    assert content(log) == (HardState(1, 1, 1), 1, run(1, 2))
    assert read_eio(tmp_path) == raised.value.message
    log.close()
    again = reopen(tmp_path / "log")
    assert content(again) == (HardState(1, 1, 1), 1, run(1, 2))
    again.close()


def fail_for_want_of_space(txn: lmdb.Transaction[memoryview]) -> None:
    txn.abort()
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.case(6)
def test_a_write_that_failed_is_not_gone_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = new_log(tmp_path / "log")
    put(log, run(1, 1), HardState(1, 1, 0))
    with monkeypatch.context() as full:
        full.setattr(log, "_commit", fail_for_want_of_space)
        with pytest.raises(StorageError, match="No space left on device"):
            log.write(HardState(2, 1, 0), run(2, 2))
    with pytest.raises(InvariantError, match="entries from 3 on can't be appended: the log holds 1 to 1"):
        log.write(None, run(3, 3))
    put(log, run(2, 2), HardState(1, 1, 1))  # no step back: term 2 was not written
    assert content(log) == (HardState(1, 1, 1), 1, run(1, 2))
    log.close()


@pytest.mark.case(52)
def test_a_full_disk_is_said_to_be_full_and_the_log_goes_on_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = new_log(tmp_path / "log")
    with monkeypatch.context() as full:
        full.setattr(log, "_commit", fail_for_want_of_space)
        with pytest.raises(StorageError, match="free or add space, and the node goes on") as raised:
            log.write(HardState(1, 1, 0), run(1, 1))
    assert is_full(raised.value)
    assert read_eio(tmp_path) is None
    assert content(log) == (HardState(), 1, [])
    put(log, run(1, 1), HardState(1, 1, 0))
    assert content(log) == (HardState(1, 1, 0), 1, run(1, 1))
    log.close()


@pytest.mark.case(54)
def test_a_log_whose_meta_page_could_not_be_written_says_so_and_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = new_log(tmp_path / "log")

    def commit(txn: lmdb.Transaction[memoryview]) -> None:
        txn.abort()
        error = lmdb.PanicError("mdb_txn_begin: MDB_PANIC")
        error.code = -30795  # type: ignore[attr-defined]
        raise error

    monkeypatch.setattr(log, "_commit", commit)
    with pytest.raises(StorageError, match="could not write its meta page, and takes no more writes"):
        log.write(None, run(1, 1))
    assert "meta page" in (read_eio(tmp_path) or "")
    with pytest.raises(StorageError, match="no more writes after an earlier failure"):
        log.write(None, run(1, 1))
    log.close()


def test_a_full_map_fails_the_write_and_keeps_the_log(tmp_path: Path) -> None:
    log = LogStore.open(tmp_path / "log", map_bytes=256 << 10, create=True)
    put(log, run(1, 2))
    with pytest.raises(StorageError, match="start the node again with a larger map"):
        log.write(None, [entry(3, data=b"x" * (1 << 20))])
    assert content(log) == (HardState(), 1, run(1, 2))
    log.close()
    again = LogStore.open(tmp_path / "log", map_bytes=8 << 20)
    put(again, [entry(3, data=b"x" * (1 << 20))])
    assert again.last_index() == 3
    again.close()


def test_the_size_follows_the_log(tmp_path: Path) -> None:
    log = new_log(tmp_path / "log")
    put(log, [entry(index, data=b"x" * 100_000) for index in range(1, 11)], HardState(1, 1, 10))
    assert 1_000_000 < log.size_bytes() < 1_100_000
    log.compact(10, 100)
    assert log.size_bytes() < 10_000
    log.close()
