"""A log that begins anew behind an installed state."""

from __future__ import annotations

import errno
from pathlib import Path
from random import Random

import lmdb
import pytest

from raftstate.core.errors import Compacted, Unavailable
from raftstate.core.types import HardState
from raftstate.errors import DataLossError, InvariantError, StorageError
from raftstate.store.log import LogStore
from raftstate.store.log_format import entry_key
from tests.store.log_helpers import content, entry, new_log, put, reopen, run


def reset(log: LogStore, hard_state: HardState, index: int, term: int) -> None:
    log.publish(log.reset(hard_state, index, term))


def a_log(path: Path, **options: int) -> LogStore:
    """Entries 1 to 20 of term 3, of which 5 are committed and 2 are cut off."""
    log = new_log(path, **options)
    put(log, run(1, 20, term=3), HardState(3, 1, 5))
    compacted = log.compact(2, 10)
    assert compacted is not None
    log.publish(compacted)
    return log


@pytest.mark.case(39)
@pytest.mark.parametrize(
    ("index", "term", "hard_state"),
    [(100, 4, HardState(4, 2, 100)), (21, 3, HardState(3, 1, 21)), (20, 4, HardState(9, 0, 20))],
)
def test_a_reset_log_is_empty_behind_its_boundary_and_goes_on_from_there(
    tmp_path: Path, index: int, term: int, hard_state: HardState
) -> None:
    log = a_log(tmp_path / "log")
    reset(log, hard_state, index, term)
    for each in (log, None):
        if each is None:
            log.close()
            each = log = reopen(tmp_path / "log")
        assert content(each) == (hard_state, index + 1, [])
        assert (each.first_index(), each.last_index(), each.term(index)) == (index + 1, index, term)
        with pytest.raises(Compacted):
            each.term(index - 1)
        with pytest.raises(Unavailable):
            each.term(index + 1)
    put(log, run(index + 1, index + 3, term=9), HardState(9, hard_state.vote, index + 1))
    expected = (HardState(9, hard_state.vote, index + 1), index + 1, run(index + 1, index + 3, term=9))
    assert content(log) == expected
    log.close()
    log = reopen(tmp_path / "log")
    assert content(log) == expected
    log.close()


@pytest.mark.case(83)
def test_a_longer_log_that_conflicts_is_reset_to_an_index_before_its_end(tmp_path: Path) -> None:
    log = a_log(tmp_path / "log")
    reset(log, HardState(5, 0, 12), 12, 4)
    assert content(log) == (HardState(5, 0, 12), 13, [])
    with pytest.raises(Unavailable):
        log.entries(13, 14, 1 << 20)
    put(log, run(13, 14, term=5))
    assert content(log)[2] == run(13, 14, term=5)
    log.close()


def test_readers_see_the_old_log_until_the_reset_is_published(tmp_path: Path) -> None:
    log = a_log(tmp_path / "log")
    before = content(log)
    write = log.reset(HardState(4, 2, 100), 100, 4)
    assert content(log) == before
    log.publish(write)
    assert content(log) == (HardState(4, 2, 100), 101, [])
    log.close()


def test_old_entries_that_are_read_from_disk_after_a_reset_are_compacted(tmp_path: Path) -> None:
    """The log's thread is ahead of the reading side: what it removed is no damage."""
    log = a_log(tmp_path / "log", window_bytes=1)
    log.reset(HardState(4, 2, 100), 100, 4)
    with pytest.raises(Compacted):
        log.entries(3, 5, 1 << 20)
    assert log.first_damaged_index is None
    log.close()


@pytest.mark.case(61)
@pytest.mark.parametrize(
    ("index", "term", "hard_state", "says"),
    [
        (12, 3, HardState(3, 1, 12), "the log holds entry 12 of term 3, up to 20"),
        (20, 3, HardState(3, 1, 20), "the log holds entry 20 of term 3, up to 20"),
        (4, 4, HardState(4, 0, 4), "the commit index went back from 5 to 4"),
        (2, 3, HardState(3, 1, 2), "the commit index went back from 5 to 2"),
        (100, 2, HardState(2, 0, 100), "the term went back from 3 to 2"),
        (100, 3, HardState(3, 2, 100), "the vote in term 3 changed from 1 to 2"),
        (100, 3, HardState(3, 1, 99), "to entry 100 of term 3 with commit index 99"),
        (100, 3, HardState(3, 1, 101), "to entry 100 of term 3 with commit index 101"),
        (100, 4, HardState(3, 1, 100), "to entry 100 of term 4 with commit index 100 in term 3"),
    ],
)
def test_what_would_take_back_something_is_refused_and_changes_nothing(
    tmp_path: Path, index: int, term: int, hard_state: HardState, says: str
) -> None:
    log = a_log(tmp_path / "log")
    before = content(log)
    with pytest.raises(InvariantError, match=says):
        log.reset(hard_state, index, term)
    assert content(log) == before
    put(log, run(21, 21, term=3))
    log.close()
    log = reopen(tmp_path / "log")
    assert content(log) == (before[0], before[1], [*before[2], entry(21, term=3)])
    log.close()


def test_a_boundary_is_not_reset_to_itself(tmp_path: Path) -> None:
    log = a_log(tmp_path / "log")
    reset(log, HardState(4, 2, 100), 100, 4)
    with pytest.raises(InvariantError, match="the log holds entry 100 of term 4, up to 100"):
        log.reset(HardState(4, 2, 100), 100, 4)
    log.close()


def damaged_log(path: Path, index: int) -> LogStore:
    """A log with a damaged record, found by a read."""
    a_log(path, window_bytes=1).close()
    log = LogStore.open(path, map_bytes=1 << 30, window_bytes=1)
    with log._environment.begin(write=True, buffers=True) as transaction:
        value = bytes(transaction.get(entry_key(index)) or b"")
        transaction.put(entry_key(index), value[:-1] + bytes((value[-1] ^ 1,)))
    with pytest.raises(DataLossError):
        log.entries(index, index + 1, 1 << 20)
    return log


@pytest.mark.case(85)
def test_a_damaged_record_is_gone_with_the_others(tmp_path: Path) -> None:
    log = damaged_log(tmp_path / "log", 9)
    assert log.first_damaged_index == 9
    write = log.reset(HardState(4, 2, 100), 100, 4)
    log.write(None, run(101, 101, term=4))  # the log's thread need not wait for the reading side
    log.publish(write)
    assert log.first_damaged_index is None
    log.close()


def test_damage_that_tells_whether_to_reset_at_all_is_raised(tmp_path: Path) -> None:
    log = damaged_log(tmp_path / "log", 9)
    with pytest.raises(DataLossError, match="log entry 9 is damaged"):
        log.reset(HardState(4, 0, 9), 9, 4)
    log.close()


def test_a_failed_reset_is_the_last_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = a_log(tmp_path / "log")
    before = content(log)

    def failing(txn: lmdb.Transaction[memoryview]) -> None:
        txn.abort()
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(log, "_commit", failing)
    with pytest.raises(StorageError, match="Input/output error"):
        log.reset(HardState(4, 2, 100), 100, 4)
    monkeypatch.undo()
    with pytest.raises(StorageError, match="takes no more writes after an earlier failure"):
        log.write(None, run(21, 21, term=3))
    assert content(log) == before
    log.close()
    log = reopen(tmp_path / "log")
    assert content(log) == before
    log.close()


def test_a_large_log_is_reset_in_one_transaction_and_its_pages_are_used_again(tmp_path: Path) -> None:
    log = new_log(tmp_path / "log")
    random = Random(1)
    for first in range(1, 2_000, 100):
        put(log, [entry(n, 1, random.randbytes(6_000)) for n in range(first, first + 100)])
    size = (tmp_path / "log/data.mdb").stat().st_size
    reset(log, HardState(2, 0, 5_000), 5_000, 2)
    assert log.size_bytes() < 20_000
    for first in range(5_001, 6_500, 100):
        put(log, [entry(n, 2, random.randbytes(6_000)) for n in range(first, first + 100)])
    assert (tmp_path / "log/data.mdb").stat().st_size <= size + (1 << 20)
    log.close()
    log = reopen(tmp_path / "log")
    assert (log.first_index(), log.last_index(), log.first_damaged_index) == (5_001, 6_500, None)
    log.close()


@pytest.mark.case(40)
@pytest.mark.parametrize("seed", range(30))
def test_a_power_cut_within_a_reset_leaves_the_old_log_or_the_new_one(tmp_path: Path, seed: int) -> None:
    random, path = Random(seed), tmp_path / "log"
    (tmp_path / "image").mkdir()
    log = a_log(path)
    put(log, [entry(n, 3, random.randbytes(5_000)) for n in range(21, 60)])
    old, before = content(log), (path / "data.mdb").read_bytes()
    reset(log, HardState(4, 2, 100), 100, 4)
    new, after = content(log), (path / "data.mdb").read_bytes()
    log.close()
    # The data pages are synced before the meta page is written: any of them may be there, and it not.
    image = bytearray(before.ljust(len(after), b"\0"))
    for at in range(2 * 4096, len(after), 4096):
        if random.random() < 0.5:
            image[at : at + 4096] = after[at : at + 4096]
    for data, expected in ((bytes(image), old), (after, new)):
        (tmp_path / "image/data.mdb").write_bytes(data)
        again = reopen(tmp_path / "image")
        assert (content(again), again.first_damaged_index) == (expected, None)
        again.close()
