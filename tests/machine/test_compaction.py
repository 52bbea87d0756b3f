"""What compaction leaves, and that nobody sees how far it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.sim.memory_tables import MemoryTables
from raftstate.errors import DataLossError
from raftstate.machine import compaction
from raftstate.machine.compaction import Sweeper, pending
from raftstate.machine.history import changes_from, find_at, key_value, previous_pair, scan_at
from raftstate.machine.layout import SWEEP_KEY, change_key, milestone_key, read_change_key
from raftstate.machine.tables import ReadTables, Table
from raftstate.machine.types import KeyValue
from raftstate.store.state import StateStore
from tests.machine.chronicle import AWKWARD_KEYS, Chronicle


def change_revisions(tables: ReadTables) -> list[int]:
    return [read_change_key(row_key)[0] for row_key, _ in tables.scan(Table.CHANGES)]


def milestone_count(tables: ReadTables) -> int:
    return tables.count(Table.MILESTONES)


def seen_from(tables: ReadTables, compacted: int, current: int) -> object:
    """All that reads and watches can see from the compacted revision on."""
    return (
        [
            [(own, key_value(change, own)) for own, change in scan_at(tables, b"", None, revision)]
            for revision in range(max(1, compacted), current + 1)
        ],
        [
            [find_at(tables, key, revision) for revision in range(max(1, compacted), current + 1)]
            for key in AWKWARD_KEYS[:4]
        ],
        [
            (own, sub, change, previous_pair(tables, own, change, compacted))
            for own, sub, change in changes_from(tables, compacted)
        ],
    )


def test_what_was_replaced_goes_and_what_stood_at_the_compaction_stays() -> None:
    chronicle = Chronicle()
    chronicle.put(b"still", b"v")  # 2
    chronicle.put(b"k", b"v", 3)  # 3, 4, 5
    chronicle.put(b"gone", b"v")  # 6
    chronicle.delete(b"gone")  # 7
    chronicle.put(b"k", b"w")  # 8
    chronicle.compact(7)
    assert pending(chronicle.rig.tables, 7)
    chronicle.sweep_all()
    assert change_revisions(chronicle.rig.tables) == [2, 5, 7, 8]
    assert not pending(chronicle.rig.tables, 7)


def test_a_deletion_at_the_compaction_goes_with_the_next_one() -> None:
    chronicle = Chronicle()
    for key in (b"a", b"b", b"c"):
        chronicle.put(key, b"v")  # 2 to 4
    chronicle.delete(b"a", b"c")  # 5
    chronicle.put(b"d", b"v")  # 6
    chronicle.compact(5)
    chronicle.sweep_all(1)
    tables = chronicle.rig.tables
    assert (change_revisions(tables), milestone_count(tables)) == ([4, 5, 5, 6], 2)
    chronicle.compact(6)
    assert pending(tables, 6)
    chronicle.sweep_all(1)
    assert (change_revisions(tables), milestone_count(tables)) == ([4, 6], 0)


@pytest.mark.parametrize("slices", range(7))
def test_a_compaction_during_the_walk_of_another_extends_it(slices: int) -> None:
    chronicle = Chronicle()
    for key in (b"a", b"b", b"c"):
        chronicle.put(key, b"v")  # 2 to 4
    chronicle.delete(b"a", b"c")  # 5: two changes, and the walk may stand between them
    chronicle.put(b"c", b"w")  # 6
    chronicle.put(b"c", b"x")  # 7
    chronicle.compact(5)
    for _ in range(slices):
        chronicle.sweep(1)
    chronicle.compact(6)
    chronicle.sweep_all(1)
    assert change_revisions(chronicle.rig.tables) == [6, 7]
    assert milestone_count(chronicle.rig.tables) == 0


def test_milestones_go_with_their_changes() -> None:
    chronicle = Chronicle()
    chronicle.put(b"k", b"v", 40)  # 2 to 41; milestones at 17 and 33
    chronicle.delete(b"k")  # 42
    chronicle.put(b"k", b"v", 33)  # 43 to 75; milestones at 58 and 74
    for compacted, expected in [(17, [17, 33, 42]), (18, [33, 42]), (42, [42]), (43, []), (74, [74])]:
        chronicle.compact(compacted)
        chronicle.sweep_all()
        left = {milestone_key(b"k", revision) for revision in [*expected, 58, 74]} - (
            {milestone_key(b"k", 58)} if compacted > 58 else set()
        )
        assert chronicle.rows()[1] == left
        assert chronicle.rows() == chronicle.rows_left()


def test_a_slice_walks_as_many_changes_as_it_may_and_says_so() -> None:
    chronicle = Chronicle()
    chronicle.put(b"k", b"v", 10)  # 2 to 11
    chronicle.compact(9)
    # 8 changes to walk, from 2 to 9, and 7 to delete, from 2 to 8.
    assert [chronicle.sweep(3) for _ in range(7)] == [3, 3, 3, 3, 3, 0, 0]
    assert change_revisions(chronicle.rig.tables) == [9, 10, 11]


def test_rows_go_in_their_order_once_a_window_is_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "SWEEP_WINDOW_CHANGES", 6)
    chronicle = Chronicle()
    for turn in range(4):
        for key in (b"c", b"a", b"b"):
            chronicle.put(key, b"%d" % turn)  # 2 to 13
    chronicle.compact(13)
    left = [change_revisions(chronicle.rig.tables)]
    while chronicle.sweep(2):
        if change_revisions(chronicle.rig.tables) != left[-1]:
            left.append(change_revisions(chronicle.rig.tables))
    every = list(range(2, 14))
    assert left == [every, every[2:], every[3:], every[5:], every[7:], every[9:]]


@pytest.mark.parametrize("window", [1, 3, 7, 100])
def test_a_crash_between_any_two_slices_costs_nothing_but_the_walk(
    window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "SWEEP_WINDOW_CHANGES", window)
    for slices in range(40):
        chronicle = Chronicle()
        for turn in range(3):
            chronicle.put(b"k", b"v", 5)
            chronicle.put(b"l%d" % turn, b"v")
            chronicle.delete(b"k")
        chronicle.compact(chronicle.revision - 4)
        for _ in range(slices):
            chronicle.sweep(2)
        chronicle.restart()
        chronicle.sweep_all(2)
        assert chronicle.rows() == chronicle.rows_left()


def test_a_slice_ends_early_after_large_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "SWEEP_BYTES_MAX", 1000)
    chronicle = Chronicle()
    for n in range(4):
        chronicle.put(b"k%d" % n, b"." * 600)
    chronicle.put(b"l", b"." * 5000)
    chronicle.compact(6)
    assert [chronicle.sweep(100) for _ in range(4)] == [2, 2, 1, 0]


def test_nothing_is_done_without_a_compaction_or_twice_for_one() -> None:
    chronicle = Chronicle()
    chronicle.put(b"k", b"v", 5)
    tables = chronicle.rig.tables
    assert not pending(tables, 0)
    assert chronicle.sweep(10) == 0
    assert tables.get(Table.HOT, SWEEP_KEY) is None
    chronicle.compact(4)
    chronicle.sweep_all()
    before = tables.dump()
    assert chronicle.sweep(10) == 0
    assert tables.dump() == before


@pytest.mark.parametrize("compacted", [1, 2])
def test_a_compaction_at_the_very_beginning_takes_nothing(compacted: int) -> None:
    chronicle = Chronicle()
    chronicle.put(b"k", b"v", 2)
    chronicle.compact(compacted)
    assert pending(chronicle.rig.tables, compacted)
    chronicle.sweep_all()
    assert not pending(chronicle.rig.tables, compacted)
    assert change_revisions(chronicle.rig.tables) == [2, 3]


def test_a_compaction_of_everything_leaves_what_is_live_and_the_last_change() -> None:
    chronicle = Chronicle()
    chronicle.put(b"k", b"v", 5)
    chronicle.delete(b"k")  # 7
    chronicle.compact(7)
    chronicle.sweep_all()
    assert change_revisions(chronicle.rig.tables) == [7]
    chronicle.put(b"k", b"w")  # 8
    chronicle.compact(8)
    chronicle.sweep_all()
    assert change_revisions(chronicle.rig.tables) == [8]
    assert chronicle.rows() == chronicle.rows_left()


def test_a_slice_that_does_not_commit_is_done_again() -> None:
    chronicle = Chronicle()
    chronicle.put(b"k", b"v", 40)
    chronicle.delete(b"k")
    chronicle.compact(chronicle.revision)
    tables = chronicle.rig.tables
    for _ in range(5):
        chronicle.sweep(7)
        before = tables.dump()
        with pytest.raises(ZeroDivisionError), tables.write():
            chronicle.sweeper.sweep(tables, chronicle.compacted, 7) / 0
        assert tables.dump() == before
        chronicle.restart()
        chronicle.sweep_all(7)
    assert chronicle.rows() == chronicle.rows_left()


# -- damage


def test_a_damaged_change_stops_the_walk_before_anything_is_deleted_for_it() -> None:
    chronicle = Chronicle()
    chronicle.put(b"k", b"v", 5)
    chronicle.compact(6)
    tables = chronicle.rig.tables
    row = tables.get(Table.CHANGES, change_key(4, 0))
    assert row is not None
    tables.put(Table.CHANGES, change_key(4, 0), row[:-1] + b"!")
    before = tables.dump()
    with pytest.raises(DataLossError, match="of table CHANGES is damaged"):
        chronicle.sweep(10)
    assert tables.dump() == before


@pytest.mark.parametrize(
    ("missing", "named"), [(2, "2.0 to before 3.0"), (4, "3.1 to before 5.0"), (6, "5.1 to before 7.0")]
)
def test_a_missing_change_stops_the_walk(missing: int, named: str) -> None:
    chronicle = Chronicle()
    chronicle.put(b"k", b"v", 5)  # 2 to 6
    chronicle.compact(6)
    chronicle.rig.tables.delete(Table.CHANGES, change_key(missing, 0))
    with pytest.raises(DataLossError, match=f"no change was found from {named}"):
        chronicle.sweep(10)


def test_a_walk_that_does_not_get_as_far_as_the_compaction_is_not_done() -> None:
    chronicle = Chronicle()
    chronicle.put(b"k", b"v")
    chronicle.compact(2)
    chronicle.rig.tables.delete(Table.CHANGES, change_key(2, 0))
    with pytest.raises(DataLossError, match=r"no change was found from 2\.0 to before 3\.0"):
        chronicle.sweep(10)
    assert pending(chronicle.rig.tables, 2)


def test_a_damaged_progress_row_is_not_taken_for_the_beginning() -> None:
    chronicle = Chronicle()
    chronicle.put(b"k", b"v", 5)
    chronicle.compact(6)
    chronicle.sweep(6)  # all five are walked, and one deleted
    chronicle.restart()
    row = chronicle.rig.tables.get(Table.HOT, SWEEP_KEY)
    assert row is not None
    chronicle.rig.tables.put(Table.HOT, SWEEP_KEY, row[:-1] + b"!")
    with pytest.raises(DataLossError, match="row 50 of table HOT is damaged"):
        chronicle.sweep(2)
    with pytest.raises(DataLossError, match="row 50 of table HOT is damaged"):
        pending(chronicle.rig.tables, 6)


# -- all together

keys = st.sampled_from(AWKWARD_KEYS)
steps = st.one_of(
    st.tuples(st.just("put"), keys, st.binary(max_size=3), st.sampled_from([1, 1, 2, 16, 33])),
    st.tuples(st.just("delete"), keys, st.just(b"")),
    st.tuples(st.just("delete"), keys, keys | st.just(b"\x00")),
    st.tuples(st.just("compact"), st.floats(0, 1)),
    st.tuples(st.just("sweep"), st.integers(1, 20)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, max_size=25), st.integers(0, 10), st.sampled_from([1, 4, 1_000]))
def test_random_histories_look_the_same_before_during_and_after_a_sweep(
    program: list[tuple],  # type: ignore[type-arg]
    restarts: int,
    window: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compaction, "SWEEP_WINDOW_CHANGES", window)
        check_random_history(program, restarts)


def check_random_history(program: list[tuple], restarts: int) -> None:  # type: ignore[type-arg]
    chronicle = Chronicle()
    tables = chronicle.rig.tables
    for kind, *values in program:
        if kind == "compact":
            at = chronicle.compacted + round(values[0] * (chronicle.revision - chronicle.compacted))
            if at > chronicle.compacted:
                chronicle.compact(at)
        else:
            getattr(chronicle, kind)(*values)
    before = seen_from(tables, chronicle.compacted, chronicle.revision)
    expected = [
        list(chronicle.as_of(revision).items())
        for revision in range(max(1, chronicle.compacted), chronicle.revision + 1)
    ]
    left = chronicle.rows_left()
    while True:
        seen = seen_from(tables, chronicle.compacted, chronicle.revision)
        assert seen == before
        assert [[(pair.key, pair) for _, pair in at] for at in seen[0]] == expected  # type: ignore[index]
        assert all(have >= want for have, want in zip(chronicle.rows(), left, strict=True))
        if restarts:
            chronicle.restart()
            restarts -= 1
        if not chronicle.sweep(5):
            break
    assert chronicle.rows() == left
    assert not pending(tables, chronicle.compacted)


# -- over LMDB


def copied(memory: MemoryTables, directory: Path) -> StateStore:
    store = StateStore.create(directory, 64 << 20)
    with store.write() as tables:
        for table in Table:
            tables.put_many(table, list(memory.scan(table)))
    return store


def test_over_lmdb_every_slice_leaves_what_it_does_in_memory(tmp_path: Path) -> None:
    chronicle = Chronicle()
    for n, key in enumerate(AWKWARD_KEYS):
        chronicle.put(key, b"v", 3 * n + 1)
    chronicle.delete(b"a", b"\x00")
    for key in AWKWARD_KEYS[4:]:
        chronicle.put(key, b"w" * 5000, 18)
    chronicle.delete(b"a" * 32, b"b")
    chronicle.put(b"z", b"v")
    chronicle.compact(chronicle.revision - 20)
    store = copied(chronicle.rig.tables, tmp_path)
    sweeper = Sweeper()
    walked = -1
    while walked:
        with store.write() as tables:
            walked = sweeper.sweep(tables, chronicle.compacted, 50)
        assert chronicle.sweep(50) == walked
        with store.read() as rows:
            assert {table.name: dict(rows.scan(table)) for table in Table} == chronicle.rig.tables.dump()
            assert [
                [key_value(change, own) for own, change in scan_at(rows, b"", None, revision)]
                for revision in (chronicle.compacted, chronicle.revision - 1)
            ] == [
                list(chronicle.as_of(revision).values())
                for revision in (chronicle.compacted, chronicle.revision - 1)
            ]
    assert chronicle.rows() == chronicle.rows_left()
    store.close(clean=False)


def test_a_read_that_began_before_a_slice_sees_all_of_the_past(tmp_path: Path) -> None:
    chronicle = Chronicle()
    chronicle.put(b"k", b"v", 100)
    store = copied(chronicle.rig.tables, tmp_path)
    with store.read() as rows:
        found: list[KeyValue | None] = []
        sweeper = Sweeper()
        for revision in range(2, 102):
            if revision % 10 == 0:
                with store.write() as tables:
                    sweeper.sweep(tables, 101, 15)
            at = find_at(rows, b"k", revision)
            found.append(at and key_value(at[1], at[0]))
        assert found == [chronicle.as_of(revision)[b"k"] for revision in range(2, 102)]
    store.close(clean=False)
