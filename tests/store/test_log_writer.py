"""The log's thread: group commit, order, failures, compaction between appends."""

from __future__ import annotations

import errno
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest

from raftstate.core.types import Entry, HardState
from raftstate.errors import ClosedError, InvariantError, StorageError
from raftstate.store import log_writer
from raftstate.store.files import is_full
from raftstate.store.log import LogStore
from raftstate.store.log_writer import COMPACTION_SLICE_ENTRIES, LogWriter, merge_entries
from tests.store.log_helpers import content, entry, new_log, put, reopen, run


class Loop:
    """A log with its writer, and the loop thread's part, which the test runs by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log: LogStore = new_log(path)
        self.posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.now_ns = 0
        self.reserves = 0
        """How often there is reserved space to let go of."""
        self.writer = LogWriter(self.log, self.posted.put, clock_ns=lambda: self.now_ns, release=self.release)
        self.reports: list[tuple[str, BaseException | None]] = []

    def release(self) -> bool:
        self.reserves -= 1
        return self.reserves >= 0

    def append(self, name: str, entries: list[Entry], hard_state: HardState | None = None) -> None:
        self.writer.append(hard_state, entries, self.report(name))

    def report(self, name: str) -> Callable[[BaseException | None], None]:
        return lambda error: self.reports.append((name, error))

    def run_until(self, reports: int) -> list[tuple[str, BaseException | None]]:
        """Run what was posted until there are so many reports."""
        while len(self.reports) < reports:
            self.posted.get(timeout=30)()
        return self.reports

    def hold_commits(self, monkeypatch: pytest.MonkeyPatch) -> HeldCommits:
        return HeldCommits(monkeypatch, self.log)

    def close(self) -> None:
        self.writer.close()
        while not self.posted.empty():
            self.posted.get()()
        self.log.close()


class HeldCommits:
    """Makes the log's commits wait until the test lets them go, or fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, log: LogStore) -> None:
        self.started = threading.Semaphore(0)
        self.released = threading.Semaphore(0)
        self.error: Exception | None = None
        self.commits = 0
        monkeypatch.setattr(log, "_commit", self._commit)

    def _commit(self, txn: lmdb.Transaction[memoryview]) -> None:
        self.started.release()
        assert self.released.acquire(timeout=30)
        if self.error is not None:
            txn.abort()
            raise self.error
        txn.commit()
        self.commits += 1

    def wait_for_one(self) -> None:
        assert self.started.acquire(timeout=30)

    def let_go(self, count: int = 1) -> None:
        self.released.release(count)


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    made = Loop(tmp_path / "log")
    yield made
    made.close()


def transaction_id(log: LogStore) -> int:
    return int(log._environment.info()["last_txnid"])


def test_an_append_is_published_before_it_is_reported(loop: Loop) -> None:
    seen = []
    loop.writer.append(HardState(1, 1, 0), run(1, 2), lambda error: seen.append((error, content(loop.log))))
    loop.posted.get(timeout=30)()
    assert seen == [(None, (HardState(1, 1, 0), 1, run(1, 2)))]


def test_all_that_waits_is_written_in_one_transaction_and_reported_in_order(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = loop.hold_commits(monkeypatch)
    loop.append("first", run(1, 1), HardState(1, 1, 0))
    held.wait_for_one()
    before = transaction_id(loop.log)
    for index in range(2, 102):
        loop.append(str(index), run(index, index))
    held.let_go(2)
    assert loop.run_until(101) == [("first", None)] + [(str(index), None) for index in range(2, 102)]
    assert held.commits == 2
    assert transaction_id(loop.log) == before + 2
    assert content(loop.log) == (HardState(1, 1, 0), 1, run(1, 101))


@pytest.mark.case(8)
def test_later_truncations_of_a_group_apply_over_earlier_entries(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = loop.hold_commits(monkeypatch)
    loop.append("hold", run(1, 3), HardState(1, 1, 0))
    held.wait_for_one()
    loop.append("a", run(4, 9), HardState(2, 0, 1))
    loop.append("b", run(7, 8, term=3), HardState(3, 2, 1))
    loop.append("c", [])
    loop.append("d", run(9, 9, term=3), HardState(3, 2, 2))
    held.let_go(2)
    assert loop.run_until(5) == [(name, None) for name in ("hold", "a", "b", "c", "d")]
    assert held.commits == 2
    expected = (HardState(3, 2, 2), 1, run(1, 6) + run(7, 9, term=3))
    assert content(loop.log) == expected
    loop.close()
    again = reopen(loop.path)
    assert content(again) == expected
    again.close()


@pytest.mark.parametrize(
    ("waiting", "more", "merged"),
    [
        ([], run(5, 6), run(5, 6)),
        (run(5, 6), run(7, 8), run(5, 8)),
        (run(5, 9), run(7, 7, term=2), run(5, 6) + run(7, 7, term=2)),
        (run(5, 9), run(5, 5, term=2), run(5, 5, term=2)),
        (run(5, 9), run(3, 4, term=2), run(3, 4, term=2)),
    ],
)
def test_merged_appends_are_what_writing_one_after_the_other_would_leave(
    waiting: list[Entry], more: list[Entry], merged: list[Entry]
) -> None:
    merge_entries(waiting, more)
    assert waiting == merged


def test_appends_with_a_gap_between_them_are_refused() -> None:
    with pytest.raises(InvariantError, match="entries from 8 on leave a gap after 6"):
        merge_entries(run(5, 6), run(8, 8))


def test_a_commit_index_alone_waits_for_the_next_write(loop: Loop) -> None:
    loop.append("entries", run(1, 5), HardState(1, 1, 0))
    loop.run_until(1)
    before = transaction_id(loop.log)
    loop.append("commit", [], HardState(1, 1, 3))
    assert loop.run_until(2)[1] == ("commit", None)
    assert (transaction_id(loop.log), loop.log.last_hard_state) == (before, HardState(1, 1, 0))
    loop.append("more", run(6, 6))
    loop.run_until(3)
    assert (transaction_id(loop.log), loop.log.last_hard_state) == (before + 1, HardState(1, 1, 3))


def test_a_commit_index_that_waits_is_written_at_the_end(loop: Loop) -> None:
    loop.append("entries", run(1, 5), HardState(1, 1, 0))
    loop.run_until(1)
    loop.append("commit", [], HardState(1, 1, 3))
    loop.run_until(2)
    assert loop.log.last_hard_state == HardState(1, 1, 0)
    loop.close()
    again = reopen(loop.path)
    assert again.last_hard_state == HardState(1, 1, 3)
    again.close()


@pytest.mark.case(1)
def test_a_vote_or_term_alone_is_written_at_once(loop: Loop) -> None:
    for hard_state in (HardState(1, 0, 0), HardState(1, 2, 0), HardState(2, 2, 0)):
        before = transaction_id(loop.log)
        loop.append("vote", [], hard_state)
        loop.run_until(len(loop.reports) + 1)
        assert (transaction_id(loop.log), loop.log.last_hard_state) == (before + 1, hard_state)


@pytest.mark.case(6)
@pytest.mark.case(53)
def test_a_failed_write_fails_all_that_wait_and_all_that_come(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.append("good", run(1, 2), HardState(1, 1, 0))
    loop.run_until(1)
    held = loop.hold_commits(monkeypatch)
    held.error = OSError(errno.EIO, "Input/output error")
    loop.append("failing", run(3, 3))
    held.wait_for_one()
    loop.append("waiting", run(4, 4))
    loop.append("commit", [], HardState(1, 1, 1))
    held.let_go()
    loop.run_until(4)
    held.error = None
    held.let_go(10)
    loop.append("later", run(3, 3))
    reports = loop.run_until(5)
    assert [name for name, _ in reports] == ["good", "failing", "waiting", "commit", "later"]
    assert [type(error) for _, error in reports] == [type(None)] + [StorageError] * 4
    assert all("Input/output error" in str(error) for _, error in reports[1:])
    assert content(loop.log) == (HardState(1, 1, 0), 1, run(1, 2))
    assert held.commits == 0


def full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "FULL_RETRY_S", 0.01)


@pytest.mark.case(6)
@pytest.mark.case(51)
@pytest.mark.case(52)
@pytest.mark.usefixtures("impatient")
def test_on_a_full_disk_the_same_group_is_tried_until_there_is_room_and_nothing_before_it(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = loop.hold_commits(monkeypatch)
    held.error = full()
    loop.now_ns = 1_000
    loop.append("first", run(1, 2), HardState(1, 1, 0))
    loop.now_ns = 2_000
    for number in range(3):
        held.wait_for_one()
        if number == 1:
            loop.append("second", run(3, 3), HardState(2, 2, 1))
            assert "No space left on device" in (loop.writer.full or "")
        held.let_go()
    held.wait_for_one()
    assert loop.posted.empty()
    assert loop.reports == []
    assert loop.writer.outstanding_since_ns == 1_000
    held.error = None
    held.let_go(2)
    assert loop.run_until(2) == [("first", None), ("second", None)]
    assert held.commits == 2
    assert loop.writer.full is None
    assert content(loop.log) == (HardState(2, 2, 1), 1, run(1, 3))


@pytest.mark.case(51)
@pytest.mark.usefixtures("impatient")
def test_what_a_full_disk_put_off_is_on_it_once_it_is_reported(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.reserves = 1
    commit = loop.log._commit
    refusals = [full(), full(), full()]

    def full_at_first(txn: lmdb.Transaction[memoryview]) -> None:
        if refusals:
            txn.abort()
            raise refusals.pop()
        commit(txn)

    monkeypatch.setattr(loop.log, "_commit", full_at_first)
    loop.append("first", run(1, 2), HardState(1, 1, 0))
    loop.append("second", run(3, 3), HardState(1, 1, 2))
    assert loop.run_until(2) == [("first", None), ("second", None)]
    loop.close()
    again = reopen(loop.path)
    assert content(again) == (HardState(1, 1, 2), 1, run(1, 3))
    again.close()


@pytest.mark.usefixtures("impatient")
def test_reserved_space_is_let_go_of_before_anything_waits(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "FULL_RETRY_S", 1_000)
    loop.reserves = 1
    held = loop.hold_commits(monkeypatch)
    held.error = full()
    loop.append("vote", [], HardState(1, 1, 0))
    held.wait_for_one()
    held.let_go()
    held.wait_for_one()
    held.error = None
    held.let_go()
    assert loop.run_until(1) == [("vote", None)]
    assert loop.log.last_hard_state == HardState(1, 1, 0)


@pytest.mark.usefixtures("impatient")
def test_a_compaction_may_make_the_room_that_a_group_waits_for(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.append("entries", run(1, 9), HardState(1, 1, 5))
    loop.run_until(1)
    held = loop.hold_commits(monkeypatch)
    held.error = full()
    loop.append("waiting", run(10, 10), HardState(1, 1, 6))
    held.wait_for_one()
    # Compacted is what is applied: further than the commit index that travels with what waits.
    loop.writer.compact(8, loop.report("compacted"))
    held.let_go()
    held.wait_for_one()  # of the compaction, which comes before the next attempt
    held.error = None
    held.let_go(2)
    assert loop.run_until(3)[1:] == [("compacted", None), ("waiting", None)]
    assert content(loop.log) == (HardState(1, 1, 8), 9, run(9, 10))


@pytest.mark.usefixtures("impatient")
def test_a_compaction_that_finds_the_disk_full_is_told_and_leaves_the_writer_usable(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.append("entries", run(1, 9), HardState(1, 1, 9))
    loop.run_until(1)
    held = loop.hold_commits(monkeypatch)
    held.error = full()
    held.let_go()
    loop.writer.compact(5, loop.report("compacted"))
    _, error = loop.run_until(2)[1]
    assert isinstance(error, StorageError)
    assert is_full(error)
    held.error = None
    held.let_go()
    loop.append("more", run(10, 10))
    assert loop.run_until(3)[2] == ("more", None)


@pytest.mark.usefixtures("impatient")
def test_what_waits_for_room_is_given_up_when_the_writer_is_closed(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = loop.hold_commits(monkeypatch)
    held.error = full()
    held.let_go(1_000)
    loop.append("first", run(1, 1))
    held.wait_for_one()
    loop.append("second", run(2, 2))
    loop.writer.close()
    reports = loop.run_until(2)
    assert [name for name, _ in reports] == ["first", "second"]
    assert all("No space left" in str(error) for _, error in reports)
    assert content(loop.log) == (HardState(), 1, [])


def test_a_write_that_breaks_an_invariant_stops_the_writer(loop: Loop) -> None:
    loop.append("good", run(1, 2), HardState(5, 1, 2))
    loop.run_until(1)
    loop.append("backwards", run(3, 3), HardState(4, 1, 2))
    loop.run_until(2)
    loop.append("later", run(3, 3))
    reports = loop.run_until(3)
    assert isinstance(reports[1][1], InvariantError)
    assert isinstance(reports[2][1], StorageError)
    assert "the term went back from 5 to 4" in str(reports[2][1])
    assert content(loop.log) == (HardState(5, 1, 2), 1, run(1, 2))


def test_the_oldest_outstanding_append_is_known(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loop.writer.outstanding_since_ns is None
    held = loop.hold_commits(monkeypatch)
    loop.now_ns = 1_000
    loop.append("a", run(1, 1))
    held.wait_for_one()
    loop.now_ns = 2_000
    loop.append("b", run(2, 2))
    assert loop.writer.outstanding_since_ns == 1_000
    held.let_go()
    loop.run_until(1)
    assert loop.writer.outstanding_since_ns == 2_000
    held.let_go()
    loop.run_until(2)
    assert loop.writer.outstanding_since_ns is None


def test_compaction_takes_slices_and_lets_appends_between_them(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = 2 * COMPACTION_SLICE_ENTRIES + 10
    loop.append("entries", run(1, last), HardState(1, 1, last))
    loop.run_until(1)
    held = loop.hold_commits(monkeypatch)
    loop.writer.compact(last - 5, loop.report("compacted"))
    held.wait_for_one()
    loop.append("between", run(last + 1, last + 1))
    held.let_go(4)
    assert loop.run_until(3)[1:] == [("between", None), ("compacted", None)]
    assert held.commits == 4
    assert content(loop.log) == (HardState(1, 1, last), last - 4, run(last - 4, last + 1))
    loop.writer.compact(10, loop.report("compacted before"))
    assert loop.run_until(4)[3] == ("compacted before", None)


def test_a_compaction_that_is_refused_leaves_the_writer_usable(loop: Loop) -> None:
    loop.writer.compact(7, loop.report("compacted"))
    loop.run_until(1)
    loop.append("entries", run(1, 1))
    (_, refused), written = loop.run_until(2)
    assert isinstance(refused, InvariantError)
    assert written == ("entries", None)


def test_a_commit_index_that_waits_survives_a_compaction(loop: Loop) -> None:
    loop.append("entries", run(1, 9), HardState(1, 1, 0))
    loop.run_until(1)
    loop.append("commit", [], HardState(1, 1, 8))
    loop.writer.compact(6, loop.report("compacted"))
    loop.run_until(3)
    assert loop.log.last_hard_state == HardState(1, 1, 6)
    loop.append("more", run(10, 10))
    loop.run_until(4)
    assert loop.log.last_hard_state == HardState(1, 1, 8)


def test_closing_writes_what_waits_and_then_refuses(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    held = loop.hold_commits(monkeypatch)
    loop.append("a", run(1, 1))
    held.wait_for_one()
    loop.append("b", run(2, 2))
    held.let_go(2)
    loop.writer.close()
    assert loop.reports == []
    assert loop.run_until(2) == [("a", None), ("b", None)]
    with pytest.raises(ClosedError):
        loop.append("c", run(3, 3))
    with pytest.raises(ClosedError):
        loop.writer.compact(1, loop.report("compacted"))
    loop.writer.close()


def test_a_last_write_that_fails_is_told_to_the_one_who_closes(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.append("entries", run(1, 5), HardState(1, 1, 0))
    loop.run_until(1)
    loop.append("commit", [], HardState(1, 1, 3))
    loop.run_until(2)
    held = loop.hold_commits(monkeypatch)
    held.error = OSError(errno.ENOSPC, "No space left on device")
    held.let_go()
    with pytest.raises(StorageError, match="No space left on device"):
        loop.writer.close()
    loop.writer.close()


def test_a_writer_over_a_log_with_a_past_goes_on_from_it(tmp_path: Path) -> None:
    log = new_log(tmp_path / "log")
    put(log, [entry(1, term=3)], HardState(3, 1, 0))
    posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    writer = LogWriter(log, posted.put, clock_ns=lambda: 0)
    reports: list[BaseException | None] = []
    writer.append(HardState(2, 1, 0), [], reports.append)
    posted.get(timeout=30)()
    assert isinstance(reports[0], InvariantError)
    writer.close()
    log.close()
