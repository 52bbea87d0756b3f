from __future__ import annotations

import pytest

from raftstate.core.errors import Compacted, SnapshotOutOfDate, Unavailable
from raftstate.core.log import EntryId, RaftLog
from raftstate.core.storage import NO_LIMIT, MemoryStorage, entry_bytes, limit_entries
from raftstate.core.types import ConfState, Entry, Snapshot, SnapshotMetadata
from raftstate.core.unstable import Unstable
from raftstate.errors import InvariantError
from tests.core.nodes import entry, stored


def snapshot(index: int, term: int) -> Snapshot:
    return Snapshot(metadata=SnapshotMetadata(ConfState(voters=(1,)), index, term))


def half_stable() -> RaftLog:
    """Boundary 2 of term 1; entries 3 and 4 stable, 5 and 6 not; terms 2 2 3 3."""
    storage = MemoryStorage()
    storage.apply_snapshot(snapshot(2, 1))
    storage.append([entry(3, 2), entry(4, 2)])
    log = RaftLog(storage)
    log.append([entry(5, 3), entry(6, 3)])
    return log


def indexes(entries: list[Entry]) -> list[int]:
    return [found.index for found in entries]


def test_stable_and_unstable_entries_are_one_log() -> None:
    log = half_stable()
    assert (log.first_index(), log.last_index(), log.last_entry_id()) == (3, 6, EntryId(6, 3))
    assert [log.term(index) for index in range(2, 7)] == [1, 2, 2, 3, 3]
    assert indexes(log.slice(3, 7, NO_LIMIT)) == [3, 4, 5, 6]
    assert indexes(log.entries_from(4, NO_LIMIT)) == [4, 5, 6]
    assert log.entries_from(7, NO_LIMIT) == []


def test_what_lies_outside_of_the_log_is_named_so() -> None:
    log = half_stable()
    with pytest.raises(Compacted, match="entry 1 is compacted; the first index is 3"):
        log.term(1)
    with pytest.raises(Unavailable, match="entry 7 is not in the log; the last index is 6"):
        log.term(7)
    with pytest.raises(Compacted):
        log.slice(2, 4, NO_LIMIT)
    with pytest.raises(InvariantError, match="last index is 6"):
        log.slice(3, 8, NO_LIMIT)
    assert (log.term_or_zero(1), log.term_or_zero(7), log.match_term(7, 3)) == (0, 0, False)


@pytest.mark.parametrize(
    ("room", "expected"),
    [(0, [3]), (1, [3]), (2, [3, 4]), (3, [3, 4, 5]), (4, [3, 4, 5, 6]), (9, [3, 4, 5, 6])],
)
def test_a_slice_is_cut_at_its_size_across_the_two_parts(room: int, expected: list[int]) -> None:
    size = entry_bytes(entry(3, 2))
    assert indexes(half_stable().slice(3, 7, room * size)) == expected
    assert indexes(half_stable().slice(3, 7, room * size + 1)) == expected


def test_a_slice_belongs_to_whoever_asked_for_it() -> None:
    log = half_stable()
    for lo in (3, 5):
        log.slice(lo, 7, NO_LIMIT).clear()
    assert indexes(log.slice(3, 7, NO_LIMIT)) == [3, 4, 5, 6]


@pytest.mark.parametrize(
    ("index", "term", "entries", "last", "terms"),
    [
        (6, 3, [], 6, [2, 2, 3, 3]),
        (6, 3, [(7, 4)], 7, [2, 2, 3, 3, 4]),
        (4, 2, [(5, 3)], 5, [2, 2, 3, 3]),
        (4, 2, [(5, 4)], 5, [2, 2, 4]),
        (3, 2, [(4, 3)], 4, [2, 3]),
        (3, 2, [(4, 2), (5, 3), (6, 4), (7, 4)], 7, [2, 2, 3, 4, 4]),
        (2, 1, [(3, 2)], 3, [2, 2, 3, 3]),
        (6, 4, [(7, 4)], None, [2, 2, 3, 3]),
        (7, 3, [(8, 4)], None, [2, 2, 3, 3]),
    ],
)
def test_an_append_replaces_only_what_conflicts(
    index: int, term: int, entries: list[tuple[int, int]], last: int | None, terms: list[int]
) -> None:
    log = half_stable()
    assert log.maybe_append(index, term, [entry(*id_) for id_ in entries], 0) == last
    assert [found.term for found in log.slice(3, log.last_index() + 1, NO_LIMIT)] == terms


def test_a_conflict_with_a_committed_entry_is_a_broken_invariant() -> None:
    log = half_stable()
    log.commit_to(5)
    with pytest.raises(InvariantError, match="entry 5 conflicts with a committed one: committed is 5"):
        log.maybe_append(4, 2, [entry(5, 4)], 0)
    with pytest.raises(InvariantError, match="entry 5 would replace a committed one"):
        log.append([entry(5, 4)])


@pytest.mark.parametrize(
    ("index", "term", "found"),
    [
        (6, 3, EntryId(6, 3)),
        (6, 2, EntryId(4, 2)),
        (6, 1, EntryId(2, 1)),
        (6, 0, EntryId(1, 0)),
        (3, 9, EntryId(3, 2)),
        (9, 2, EntryId(9, 0)),
        (0, 2, EntryId(0, 0)),
    ],
)
def test_the_hint_skips_terms_that_the_other_log_cannot_have(index: int, term: int, found: EntryId) -> None:
    assert half_stable().find_conflict_by_term(index, term) == found


def test_only_an_entry_of_the_given_term_commits() -> None:
    log = half_stable()
    assert [log.maybe_commit(6, 2), log.maybe_commit(7, 3), log.maybe_commit(6, 0)] == [False] * 3
    assert (log.maybe_commit(6, 3), log.committed) == (True, 6)
    assert log.maybe_commit(5, 3) is False


def test_only_durable_entries_are_applied_unless_told_otherwise() -> None:
    log = half_stable()
    log.commit_to(6)
    assert indexes(log.next_committed(allow_unstable=False)) == [3, 4]
    assert indexes(log.next_committed(allow_unstable=True)) == [3, 4, 5, 6]


def test_applied_moves_between_its_old_value_and_the_commit_index() -> None:
    log = half_stable()
    log.commit_to(4)
    log.applied_to(4, [])
    for index in (3, 5):
        with pytest.raises(InvariantError, match=f"applied {index} is out of range: applied was 4"):
            log.applied_to(index, [])


def test_a_scan_reads_page_by_page() -> None:
    log = RaftLog(stored((1, 1, 1)), max_applying_bytes=1)
    assert [found.index for found in log.scan(1, 4)] == [1, 2, 3]


def test_a_scan_does_not_ask_again_for_what_the_storage_holds_back() -> None:
    class Hesitant(MemoryStorage):
        asked = 0

        def entries(self, lo: int, hi: int, max_bytes: int) -> list[Entry]:
            self.asked += 1
            return [] if self.asked == 1 else super().entries(lo, hi, max_bytes)

    storage = Hesitant()
    storage.append([entry(1, 1), entry(2, 1)])
    with pytest.raises(InvariantError, match=r"none of the entries \[1, 3\)"):
        list(RaftLog(storage).scan(1, 3))


def test_a_slice_of_nothing_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    log = half_stable()
    monkeypatch.delattr(MemoryStorage, "entries")
    assert log.slice(4, 4, NO_LIMIT) == []


def test_what_is_not_committed_is_not_applied() -> None:
    log = half_stable()
    with pytest.raises(InvariantError, match="applying 3, but only 2 is committed"):
        log.accept_applying([entry(3, 2)], allow_unstable=False)


def test_a_window_for_applying_that_is_full_but_not_closed_is_a_broken_invariant() -> None:
    log = RaftLog(stored((1, 1)), max_applying_bytes=10)
    log.commit_to(2)
    log._applying_bytes = 10
    with pytest.raises(InvariantError, match="10 bytes are being applied, the limit is 10"):
        log.next_committed(allow_unstable=False)


# -- the unstable tail


def unstable(*terms: int, offset: int = 5) -> Unstable:
    tail = Unstable(offset)
    if terms:
        tail.truncate_and_append([entry(index, term) for index, term in enumerate(terms, offset)])
    return tail


@pytest.mark.parametrize(
    ("first", "terms", "offset", "in_progress"),
    [
        (7, [1, 1, 2], 5, 7),
        (6, [1, 2], 5, 6),
        (5, [2], 5, 5),
        (3, [2], 3, 3),
    ],
)
def test_what_is_replaced_has_to_be_written_again(
    first: int, terms: list[int], offset: int, in_progress: int
) -> None:
    tail = unstable(1, 1)
    tail.accept_in_progress()
    tail.truncate_and_append([entry(first, 2)])
    assert [found.term for found in tail.entries] == terms
    assert (tail.offset, tail.offset_in_progress) == (offset, in_progress)


def test_entries_that_would_leave_a_gap_are_refused() -> None:
    with pytest.raises(InvariantError, match="entry 8 would leave a gap: the last index is 6"):
        unstable(1, 1).truncate_and_append([entry(8, 1)])
    with pytest.raises(InvariantError, match="2 entries can't span the indexes 7 to 9"):
        unstable(1, 1).truncate_and_append([entry(7, 1), entry(9, 1)])


@pytest.mark.parametrize(
    ("index", "term", "left"), [(5, 1, [6]), (6, 1, []), (6, 2, [5, 6]), (4, 1, [5, 6]), (7, 1, [5, 6])]
)
def test_entries_become_stable_by_index_and_term(index: int, term: int, left: list[int]) -> None:
    tail = unstable(1, 1)
    tail.stable_to(index, term)
    assert indexes(tail.entries) == left


def test_a_snapshot_is_handed_out_once_and_kept_until_it_is_durable() -> None:
    tail = unstable(1, 1)
    tail.restore(snapshot(9, 2))
    assert (tail.next_snapshot(), tail.entries, tail.last_index(), tail.term(9)) == (snapshot(9, 2), [], 9, 2)
    tail.accept_in_progress()
    assert (tail.next_snapshot(), tail.snapshot) == (None, snapshot(9, 2))
    tail.stable_snapshot_to(8)
    assert tail.snapshot is not None
    tail.stable_snapshot_to(9)
    assert tail.snapshot is None


def test_a_slice_holds_only_what_is_unstable() -> None:
    tail = unstable(1, 1)
    assert [found.index for found in tail.slice(5, 7)] == [5, 6]
    for lo, hi in ((4, 6), (5, 8), (7, 6)):
        with pytest.raises(InvariantError, match=r"are not all among the unstable ones \[5, 7\)"):
            tail.slice(lo, hi)


# -- the memory storage


def test_an_append_replaces_the_tail_and_leaves_out_what_is_compacted() -> None:
    storage = stored((1, 1, 1))
    storage.compact(2)
    storage.append([entry(2, 9), entry(3, 2)])
    assert (storage.first_index(), storage.term(2), storage.entries(3, 4, NO_LIMIT)) == (3, 1, [entry(3, 2)])
    with pytest.raises(InvariantError, match="entry 5 would leave a gap: the last index is 3"):
        storage.append([entry(5, 2)])


def test_compaction_keeps_the_term_of_the_boundary() -> None:
    storage = stored((1, 2, 2))
    storage.compact(2)
    assert (storage.first_index(), storage.last_index(), storage.term(2)) == (3, 3, 2)
    with pytest.raises(Compacted):
        storage.term(1)
    with pytest.raises(Compacted):
        storage.entries(2, 3, NO_LIMIT)
    with pytest.raises(Compacted):
        storage.compact(2)
    with pytest.raises(Unavailable):
        storage.compact(4)


def test_snapshots_only_get_newer() -> None:
    storage = stored((1, 2))
    made = storage.create_snapshot(1, None, b"one")
    assert (made.data, made.metadata) == (b"one", SnapshotMetadata(ConfState(voters=(1, 2, 3)), 1, 1))
    with pytest.raises(SnapshotOutOfDate):
        storage.create_snapshot(1, None, b"again")
    with pytest.raises(SnapshotOutOfDate):
        storage.apply_snapshot(snapshot(1, 1))
    storage.apply_snapshot(snapshot(7, 3))
    assert (storage.first_index(), storage.last_index(), storage.term(7)) == (8, 7, 3)


def test_a_limit_never_leaves_nothing() -> None:
    entries = [entry(1, 1, b"x" * 100), entry(2, 1)]
    assert limit_entries(entries, 0) == entries[:1]
    assert limit_entries(entries, 10_000) == entries
    assert limit_entries([], 0) == []


@pytest.mark.parametrize(
    ("sized", "size"),
    [(entry(1, 1), 4), (entry(127, 127, b"x"), 7), (entry(128, 300, b"x" * 128), 137)],
)
def test_an_entry_weighs_what_etcd_encodes_it_to(sized: Entry, size: int) -> None:
    assert entry_bytes(sized) == size


def test_what_lies_outside_of_the_storage_is_named_so() -> None:
    storage = stored((1, 2))
    with pytest.raises(Unavailable, match="entry 3 is not in the log; the last index is 2"):
        storage.entries(1, 4, NO_LIMIT)
    with pytest.raises(Unavailable, match="entry 3 is not in the log; the last index is 2"):
        storage.term(3)
