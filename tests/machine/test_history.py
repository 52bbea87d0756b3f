"""Reads of the past, against a list of all that was done."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.sim.memory_tables import MemoryTables
from raftstate.errors import DataLossError
from raftstate.machine.history import (
    changes_from,
    check_revision,
    find_at,
    key_value,
    previous_pair,
    rows_at,
    scan_at,
)
from raftstate.machine.layout import (
    ChangeKind,
    change_key,
    change_row,
    index_row,
    milestone_key,
    milestone_row,
    milestones_start,
    name_key,
    name_row,
    read_milestone,
    read_milestone_key,
)
from raftstate.machine.tables import Table
from raftstate.machine.types import Code, KeyValue
from tests.machine.chronicle import AWKWARD_KEYS, Chronicle


def found_at(tables: MemoryTables, key: bytes, revision: int) -> KeyValue | None:
    found = find_at(tables, key, revision)
    return None if found is None else key_value(found[1], found[0])


def scanned_at(
    tables: MemoryTables, revision: int, start: bytes = b"", end: bytes | None = None
) -> list[KeyValue]:
    return [key_value(change, own) for own, change in scan_at(tables, start, end, revision)]


def check_all_pasts(chronicle: Chronicle, keys: list[bytes]) -> None:
    tables = chronicle.rig.tables
    for revision in range(max(1, chronicle.compacted), chronicle.revision + 1):
        expected = chronicle.as_of(revision)
        assert scanned_at(tables, revision) == list(expected.values())
        assert {key: found_at(tables, key, revision) for key in keys} == {
            key: expected.get(key) for key in keys
        }


class CountingTables(MemoryTables):
    """Counts the rows that were read."""

    def __init__(self, tables: MemoryTables) -> None:
        self.__dict__.update(tables.__dict__)
        self.read = dict.fromkeys(Table, 0)

    def get(self, table: Table, key: bytes) -> bytes | None:
        self.read[table] += 1
        return super().get(table, key)

    def scan(self, table, start=b"", end=None):  # type: ignore[no-untyped-def]
        for row in super().scan(table, start, end):
            self.read[table] += 1
            yield row


# -- which revisions


@pytest.mark.parametrize(
    ("revision", "compacted", "current", "message"),
    [
        (0, 7, 9, None),
        (7, 7, 9, None),
        (9, 7, 9, None),
        (1, 0, 1, None),
        (6, 7, 9, "revision 6 is compacted; valid are 7 to 9; leave it out for the latest"),
        (10, 7, 9, "revision 10 lies in the future; valid are 7 to 9; leave it out for the latest"),
        (2, 0, 1, "revision 2 lies in the future; valid are 1 to 1; leave it out for the latest"),
    ],
)
def test_valid_revisions_are_those_from_the_compacted_to_the_latest(
    revision: int, compacted: int, current: int, message: str | None
) -> None:
    fault = check_revision(revision, compacted, current)
    if message is None:
        assert fault is None
    else:
        assert fault is not None
        assert (fault.code, fault.message, fault.field) == (Code.OUT_OF_RANGE, message, "revision")


# -- one key


def test_a_key_is_what_it_was_at_each_revision_of_a_long_history() -> None:
    chronicle = Chronicle()
    chronicle.put(b"k", b"v", 70)
    chronicle.delete(b"k")
    chronicle.put(b"other", b"v", 3)
    chronicle.put(b"k", b"again", 20)
    check_all_pasts(chronicle, [b"k", b"other", b"never"])


def test_a_key_that_was_deleted_or_never_written_was_not_there() -> None:
    chronicle = Chronicle()
    chronicle.put(b"k", b"v")  # 2
    chronicle.delete(b"k")  # 3
    chronicle.put(b"l", b"v")  # 4
    chronicle.put(b"k", b"w")  # 5
    tables = chronicle.rig.tables
    assert [found_at(tables, b"k", revision) for revision in range(1, 6)] == [
        None,
        KeyValue(b"k", b"v", 2, 2, 1),
        None,
        None,
        KeyValue(b"k", b"w", 5, 5, 1),
    ]


@pytest.mark.parametrize("versions", [2, 16, 17, 1000])
def test_a_read_of_the_past_takes_at_most_sixteen_steps_back(versions: int) -> None:
    chronicle = Chronicle()
    for _ in range(0, versions, 500):
        chronicle.put(b"k", b"v", min(versions, 500))
    tables = CountingTables(chronicle.rig.tables)
    for revision in range(2, chronicle.revision + 1, 1 if versions < 100 else 7):
        tables.read = dict.fromkeys(Table, 0)
        assert found_at(tables, b"k", revision) is not None
        assert tables.read[Table.CHANGES] <= 17
        assert tables.read[Table.MILESTONES] <= 1


# -- ranges


def test_a_range_in_the_past_has_the_keys_that_are_gone_and_not_those_that_came() -> None:
    chronicle = Chronicle()
    for key in (b"a", b"b", b"c", b"d"):
        chronicle.put(key, b"v")  # 2 to 5
    chronicle.delete(b"b", b"d")  # 6
    chronicle.put(b"bb", b"v")  # 7
    chronicle.put(b"c", b"w")  # 8
    tables = chronicle.rig.tables
    assert [[pair.key for pair in scanned_at(tables, at)] for at in (5, 6, 7, 8)] == [
        [b"a", b"b", b"c", b"d"],
        [b"a", b"d"],
        [b"a", b"bb", b"d"],
        [b"a", b"bb", b"c", b"d"],
    ]
    assert [pair.key for pair in scanned_at(tables, 5, b"b", b"d")] == [b"b", b"c"]
    assert scanned_at(tables, 5, b"c", b"c") == scanned_at(tables, 5, b"d", b"b") == []


def test_a_range_passes_over_the_milestones_of_a_hot_key() -> None:
    chronicle = Chronicle()
    for key in (b"a", b"z"):
        chronicle.put(key, b"v")
    for _ in range(8):
        chronicle.put(b"hot", b"v", 400)
    chronicle.delete(b"a", b"\x00")
    tables = CountingTables(chronicle.rig.tables)
    assert tables.count(Table.MILESTONES) == 203
    for revision in (3, 4, 1000, 1603, 3202, 3203, 3204):
        tables.read = dict.fromkeys(Table, 0)
        expected = list(chronicle.as_of(revision).values())
        assert scanned_at(tables, revision) == expected
        assert tables.read[Table.MILESTONES] <= 24 + 2
        assert tables.read[Table.CHANGES] <= 2 + 2 + 17


def test_a_range_reads_no_value_of_a_key_that_has_not_changed_since() -> None:
    chronicle = Chronicle()
    for n in range(50):
        chronicle.put(b"k%02d" % n, b"v")
    chronicle.put(b"k07", b"w")
    tables = CountingTables(chronicle.rig.tables)
    assert sum(1 for _ in rows_at(tables, b"", None, chronicle.revision - 1)) == 50
    assert tables.read == {Table.CHANGES: 2, Table.INDEX: 50, Table.MILESTONES: 0, Table.HOT: 0}


def test_a_range_in_the_past_may_begin_and_end_at_more_than_a_key() -> None:
    chronicle = Chronicle()
    longest = b"k" * 480
    for key in (longest[:-1], longest, b"l"):
        chronicle.put(key, b"v")
    chronicle.delete(b"k", b"m")
    for at, gone in ((4, False), (5, True)):
        for start, end, expected in [
            (longest + b"\x00", None, [b"l"]),
            (longest[:-1] + b"j" * 100, None, [longest, b"l"]),
            (b"k", longest + b"\x00" * 100, [longest[:-1], longest]),
            (longest[:-1], longest, [longest[:-1]]),
        ]:
            keys = [pair.key for pair in scanned_at(chronicle.rig.tables, at, start, end)]
            assert keys == ([] if gone else expected)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=70) | st.sampled_from(AWKWARD_KEYS), min_size=2, max_size=2))
def test_milestones_are_in_the_order_of_keys_then_of_revisions(keys: list[bytes]) -> None:
    a, b = keys
    for revision in (0, 1, 255, 256, (1 << 64) - 1):
        assert (milestone_key(a, revision) < milestone_key(b, 256)) == ((a, revision) < (b, 256))
        assert (milestones_start(a) <= milestone_key(b, revision)) == (a <= b)
        assert (milestones_start(b"k" * 480 + a) <= milestone_key(b, revision)) == (b"k" * 480 + a <= b)
        assert len(milestone_key(a, revision)) <= 503


@pytest.mark.parametrize("key", AWKWARD_KEYS)
def test_a_milestone_says_of_which_key_it_is(key: bytes) -> None:
    chronicle = Chronicle()
    chronicle.put(key, b"v")
    chronicle.delete(key)
    [row] = chronicle.rig.tables.scan(Table.MILESTONES)
    assert (read_milestone_key(row[0]), *read_milestone(*row)) == (key, 3, 0)


# -- the changes themselves


def test_changes_come_from_any_of_them_on_in_order() -> None:
    chronicle = Chronicle()
    for key in (b"a", b"b", b"c"):
        chronicle.put(key, b"v")  # 2 to 4
    chronicle.delete(b"a", b"d")  # 5
    chronicle.put(b"a", b"w")  # 6
    tables = chronicle.rig.tables

    def numbers(revision: int, sub: int = 0) -> list[tuple[int, int]]:
        return [(own, at) for own, at, _ in changes_from(tables, revision, sub)]

    everything = [(2, 0), (3, 0), (4, 0), (5, 0), (5, 1), (5, 2), (6, 0)]
    assert numbers(0) == numbers(1) == numbers(2) == everything
    assert numbers(5, 1) == [(5, 1), (5, 2), (6, 0)]
    assert numbers(5, 3) == numbers(6) == [(6, 0)]
    assert numbers(6, 1) == numbers(7) == numbers(9) == []
    assert [(change.kind, change.key) for _, _, change in changes_from(tables, 5)] == [
        (ChangeKind.DELETE, b"a"),
        (ChangeKind.DELETE, b"b"),
        (ChangeKind.DELETE, b"c"),
        (ChangeKind.PUT, b"a"),
    ]


@pytest.mark.parametrize(
    ("missing", "named"),
    [((2, 0), "2.0 to before 3.0"), ((3, 0), "2.1 to before 4.0"), ((5, 1), "5.1 to before 5.2")],
)
def test_a_missing_change_is_not_passed_over(missing: tuple[int, int], named: str) -> None:
    chronicle = Chronicle()
    chronicle.put(b"a", b"v")
    chronicle.put(b"b", b"v")
    chronicle.put(b"c", b"v")
    chronicle.delete(b"a", b"\x00")
    tables = chronicle.rig.tables
    tables.delete(Table.CHANGES, change_key(*missing))
    with pytest.raises(DataLossError, match=f"no change was found from {named}"):
        list(changes_from(tables, 2))


def test_the_pair_before_a_change_is_there_unless_it_is_compacted() -> None:
    chronicle = Chronicle()
    chronicle.put(b"k", b"v", 2)  # 2, 3
    chronicle.delete(b"k")  # 4
    chronicle.put(b"k", b"w", 2)  # 5, 6
    tables = chronicle.rig.tables

    def before(compacted: int) -> list[int | None]:
        pairs = [
            previous_pair(tables, own, change, compacted)
            for own, _, change in changes_from(tables, max(2, compacted))
        ]
        assert all(pair is None or pair == chronicle.as_of(pair.mod_revision)[b"k"] for pair in pairs)
        return [pair and pair.mod_revision for pair in pairs]

    assert before(0) == [None, 2, 3, None, 5]
    assert before(3) == [None, 3, None, 5]  # 2 is still in its row, and must not show
    chronicle.compact(3)
    chronicle.sweep_all()
    assert before(3) == [None, 3, None, 5]
    chronicle.compact(5)
    chronicle.sweep_all()
    assert before(5) == [None, 5]


# -- damage


def long_history() -> Chronicle:
    chronicle = Chronicle()
    chronicle.put(b"j", b"v")  # 2
    chronicle.put(b"k", b"v", 40)  # 3 to 42
    chronicle.put(b"gone", b"v")  # 43
    chronicle.delete(b"gone")  # 44
    return chronicle


def finds(tables: MemoryTables, revision: int) -> object:
    return [find_at(tables, key, revision) for key in (b"gone", b"j", b"k")]


def scans(tables: MemoryTables, revision: int) -> object:
    return list(scan_at(tables, b"", None, revision))


def lists_rows(tables: MemoryTables, revision: int) -> object:
    return list(rows_at(tables, b"", None, revision))


READS = [finds, scans, lists_rows]


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize(
    ("table", "key", "revision"),
    [
        (Table.INDEX, b"k", 5),
        (Table.CHANGES, change_key(5, 0), 5),  # what was looked for
        (Table.CHANGES, change_key(10, 0), 5),  # on the way to it
        (Table.CHANGES, change_key(18, 0), 5),  # where the way began
        (Table.CHANGES, change_key(44, 0), 43),
        (Table.MILESTONES, milestone_key(b"k", 18), 5),
        (Table.MILESTONES, milestone_key(b"gone", 44), 43),
    ],
)
def test_damage_on_the_way_to_the_past_is_found(
    table: Table, key: bytes, revision: int, read: Callable[[MemoryTables, int], object]
) -> None:
    tables = long_history().rig.tables
    read(tables, revision)
    row = tables.get(table, key)
    assert row is not None
    tables.put(table, key, row[:-1] + bytes((row[-1] ^ 1,)))
    with pytest.raises(DataLossError, match=f"row {name_row(table, key)} of table {table.name} is damaged"):
        read(tables, revision)


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize(
    ("at", "revision", "key"),
    [(5, 5, b"k"), (10, 5, b"k"), (18, 5, b"k"), (42, 41, b"k"), (44, 43, b"gone"), (43, 43, b"gone")],
)
def test_a_change_that_is_missing_is_not_taken_for_a_key_that_was_not_there(
    at: int, revision: int, key: bytes, read: Callable[[MemoryTables, int], object]
) -> None:
    tables = long_history().rig.tables
    tables.delete(Table.CHANGES, change_key(at, 0))
    with pytest.raises(DataLossError, match=rf"change {at}\.0 of {name_key(key)} is missing"):
        read(tables, revision)


@pytest.mark.parametrize("read", READS)
def test_a_missing_milestone_is_found_by_the_length_of_the_way(
    read: Callable[[MemoryTables, int], object],
) -> None:
    tables = long_history().rig.tables
    tables.delete(Table.MILESTONES, milestone_key(b"k", 18))
    read(tables, 18)
    with pytest.raises(DataLossError, match=r"more than 16 changes from 34\.0 back to revision 17"):
        read(tables, 17)


@pytest.mark.parametrize("read", READS)
def test_a_deletion_that_a_later_change_names_is_no_pair(read: Callable[[MemoryTables, int], object]) -> None:
    chronicle = Chronicle()
    chronicle.put(b"k", b"v")  # 2
    chronicle.delete(b"k")  # 3
    chronicle.put(b"k", b"w")  # 4
    tables = chronicle.rig.tables
    row_key = change_key(4, 0)
    row, own = change_row(row_key, ChangeKind.PUT, b"k", b"w", (4, 2, 0), (3, 0))
    tables.put(Table.CHANGES, row_key, row)
    tables.put(Table.INDEX, b"k", index_row(b"k", (4, 0, 4, 2, 0, own)))
    assert read(tables, 3) in ([None, None, None], [])


@pytest.mark.parametrize("read", READS)
def test_a_pointer_to_a_change_of_another_key_is_damage(read: Callable[[MemoryTables, int], object]) -> None:
    tables = long_history().rig.tables
    milestone = milestone_key(b"gone", 44)
    tables.delete(Table.MILESTONES, milestone)
    moved = milestone_key(b"gone", 18)
    tables.put(Table.MILESTONES, moved, milestone_row(moved, 0, ChangeKind.PUT, 16))
    with pytest.raises(
        DataLossError, match=rf"change 18\.0 should be of {name_key(b'gone')}, and is of {name_key(b'k')}"
    ):
        read(tables, 5)


@pytest.mark.parametrize("read", [scans, lists_rows])
def test_an_index_row_older_than_a_milestone_of_its_key_is_damage(
    read: Callable[[MemoryTables, int], object],
) -> None:
    chronicle = Chronicle()
    chronicle.put(b"k", b"v")
    stale = chronicle.rig.tables.get(Table.INDEX, b"k")
    assert stale is not None
    chronicle.put(b"k", b"v", 20)
    chronicle.rig.tables.put(Table.INDEX, b"k", stale)
    with pytest.raises(
        DataLossError, match=f"{name_key(b'k')} is at revision 2, but it has a milestone at revision 17"
    ):
        read(chronicle.rig.tables, 5)


# -- all together

keys = st.sampled_from(AWKWARD_KEYS)
steps = st.one_of(
    st.tuples(st.just("put"), keys, st.binary(max_size=3), st.sampled_from([1, 1, 2, 15, 16, 33])),
    st.tuples(st.just("delete"), keys, st.just(b"")),
    st.tuples(st.just("delete"), keys, keys | st.just(b"\x00")),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, max_size=20), st.lists(keys, min_size=2, max_size=2))
def test_random_histories_can_be_read_at_every_revision(
    program: list[tuple],
    bounds: list[bytes],  # type: ignore[type-arg]
) -> None:
    chronicle = Chronicle()
    for kind, *values in program:
        getattr(chronicle, kind)(*values)
    check_all_pasts(chronicle, AWKWARD_KEYS)
    start, end = sorted(bounds)
    tables = chronicle.rig.tables
    for revision in range(1, chronicle.revision + 1):
        expected = [pair for key, pair in chronicle.as_of(revision).items() if start <= key < end]
        assert scanned_at(tables, revision, start, end) == expected
        assert [
            (key, live[0], live[2], live[3]) for key, live, _ in rows_at(tables, start, end, revision)
        ] == [(pair.key, pair.mod_revision, pair.create_revision, pair.version) for pair in expected]
    every = [(own, sub, change.kind, change.key) for own, sub, change in changes_from(tables, 1)]
    assert every == [(each.revision, each.sub, each.kind, each.key) for each in chronicle.done]
    before: dict[bytes, KeyValue] = {}
    for own, _, change in changes_from(tables, 1):
        assert previous_pair(tables, own, change, 0) == before.get(change.key)
        if change.kind is ChangeKind.DELETE:
            del before[change.key]
        else:
            before[change.key] = key_value(change, own)
