"""A whole state checked: intact ones pass, and nothing is missing from one, or wrong in it, unnoticed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import msgspec
import pytest

from chaos.sim.memory_tables import MemoryTables
from raftstate.errors import DataLossError
from raftstate.machine.digest import recount
from raftstate.machine.layout import (
    META_KEY,
    SUMS_KEY,
    SWEEP_KEY,
    change_key,
    index_row,
    lease_key,
    lease_row,
    meta_row,
    milestone_key,
    milestone_row,
    name_key,
    name_row,
    read_index,
    read_lease,
    read_links,
    read_meta,
    read_milestone_whole,
    read_session_key,
    seal,
    sums_row,
)
from raftstate.machine.machine import Machine
from raftstate.machine.tables import Table
from raftstate.machine.types import CompactTo
from raftstate.machine.verify import check_state
from tests.machine.rig import CLUSTER, MEMBERS, Rig, delete, grant, put
from tests.machine.test_apply import CONF_STATES, PROGRAM

COMPACTED = 30


def a_state() -> Rig:
    """Some history behind and before a compaction that is swept; sessions, answers, leases, milestones."""
    rig = Rig()
    session = rig.register()
    rig.write(*(put(n, b"k%d" % (n % 3), b"%d" % n) for n in range(1, 60)), session=session)
    rig.write(put(60, b"gone"), delete(61, b"gone"), delete(62, b"k1"), session=session)
    rig.write(grant(1, 7), put(2, b"l1", lease=7), put(3, b"l2", lease=7), grant(4, 8))
    rig.run(CompactTo(COMPACTED))
    while rig.machine.sweep_pending:
        with rig.tables.write() as tables:
            rig.machine.sweep(tables, 100)
    rig.write(*(put(n, b"m%d" % n) for n in range(3)))
    return rig


class Counted:
    """Tables that have as many rows as they had when they were whole: a damaged page hides rows so."""

    def __init__(self, tables: MemoryTables) -> None:
        self.get, self.scan = tables.get, tables.scan
        self._counts = {table: tables.count(table) for table in Table}

    def count(self, table: Table) -> int:
        return self._counts[table]


def all_rows(tables: MemoryTables) -> Iterator[tuple[Table, bytes]]:
    for table in Table:
        for key, _ in list(tables.scan(table)):
            yield table, key


def is_noticed(tables: MemoryTables) -> bool:
    try:
        check_state(tables)
    except DataLossError:
        return True
    return False


def test_a_whole_state_passes_and_tells_what_it_is() -> None:
    rig = a_state()
    meta = check_state(rig.tables)
    assert meta == read_meta(rig.tables)
    assert (meta.applied_index, meta.compacted_revision) == (rig.machine.applied_index, COMPACTED)


def test_first_states_pass() -> None:
    for write in (
        lambda tables: Machine.bootstrap(tables, CLUSTER, MEMBERS),
        lambda tables: Machine.blank(tables, CLUSTER),
    ):
        tables = MemoryTables()
        write(tables)
        check_state(tables)


@pytest.mark.parametrize("entries", range(len(PROGRAM) + 1))
def test_the_state_after_each_entry_of_a_program_passes(entries: int) -> None:
    rig = Rig()
    with rig.tables.write() as tables:
        rig.machine.apply(tables, PROGRAM[:entries], CONF_STATES)
    check_state(rig.tables)


@pytest.mark.case(56)
def test_every_flipped_bit_of_every_row_is_noticed_and_the_row_named() -> None:
    tables = a_state().tables
    for number, (table, key) in enumerate(all_rows(tables)):
        row = tables.get(table, key)
        assert row is not None
        for at in (0, 7, 8 + number % max(1, len(row) - 8), len(row) - 1):
            damaged = bytearray(row)
            damaged[min(at, len(row) - 1)] ^= 1 << number % 8
            tables.put(table, key, bytes(damaged))
            with pytest.raises(
                DataLossError, match=rf"row {name_row(table, key)} of table {table.name} is damaged"
            ):
                check_state(tables)
        tables.put(table, key, row)
    check_state(tables)


@pytest.mark.case(76)
@pytest.mark.case(82)
def test_every_row_that_is_missing_is_noticed_but_of_those_that_only_the_count_knows() -> None:
    tables = a_state().tables
    unnoticed = []
    for table, key in all_rows(tables):
        row = tables.get(table, key)
        assert row is not None
        hidden = Counted(tables)
        tables.delete(table, key)
        with pytest.raises(DataLossError):
            check_state(hidden)
        if not is_noticed(tables):
            unnoticed.append((table, key[:1]))
        tables.put(table, key, row)
    # Answers, a lease without keys, and where the sweep stands, which begins anew without.
    assert set(unnoticed) == {(Table.HOT, b"A"), (Table.HOT, b"L"), (Table.HOT, b"P")}


@pytest.mark.parametrize("table", [Table.CHANGES, Table.INDEX, Table.MILESTONES])
def test_every_row_that_stands_under_the_key_of_another_is_noticed(table: Table) -> None:
    tables = a_state().tables
    rows = list(tables.scan(table))
    for (key, row), (_, other) in pairwise(rows):
        tables.put(table, key, other)
        assert is_noticed(tables)
        tables.put(table, key, row)


def test_a_key_that_came_back_is_noticed_by_the_bucket_sums() -> None:
    rig = a_state()
    rig.write(put(1, b"short", b"lived"))
    row = rig.tables.get(Table.INDEX, b"short")
    assert row is not None
    rig.write(delete(1, b"short"))
    rig.tables.put(Table.INDEX, b"short", row)
    with pytest.raises(DataLossError, match=r"keys have vanished, or came back: in 1 of 256 buckets"):
        check_state(rig.tables)


def test_an_old_version_of_an_index_row_is_noticed() -> None:
    rig = a_state()
    old = rig.tables.get(Table.INDEX, b"m1")
    assert old is not None
    rig.write(put(1, b"m1", b"new"))
    rig.tables.put(Table.INDEX, b"m1", old)
    with pytest.raises(DataLossError, match="keys have vanished, or came back"):
        check_state(rig.tables)


Change = Callable[[MemoryTables], None]


def live(tables: MemoryTables, key: bytes) -> tuple[int, int, int, int, int, int]:
    row = tables.get(Table.INDEX, key)
    assert row is not None
    return read_index(key, row)


def wrong_lease_in_index(tables: MemoryTables) -> None:
    row = live(tables, b"l1")
    tables.put(Table.INDEX, b"l1", index_row(b"l1", (*row[:4], 8, row[5])))


def wrong_version_in_index(tables: MemoryTables) -> None:
    row = live(tables, b"m1")
    tables.put(Table.INDEX, b"m1", index_row(b"m1", (*row[:3], row[3] + 1, *row[4:])))


def wrong_count_of_a_lease(tables: MemoryTables) -> None:
    key = lease_key(7)
    row = tables.get(Table.HOT, key)
    assert row is not None
    renewed, ttl, count = read_lease(key, row)
    tables.put(Table.HOT, key, lease_row(key, renewed, ttl, count + 1))


def a_milestone_too_many(tables: MemoryTables) -> None:
    revision, sub, _, version, _, _ = live(tables, b"m1")
    key = milestone_key(b"m1", revision)
    _, kind, _ = next(read_milestone_whole(*row) for row in tables.scan(Table.MILESTONES))
    tables.put(Table.MILESTONES, key, milestone_row(key, sub, kind, version))


def a_change_beyond_the_latest(tables: MemoryTables) -> None:
    meta = read_meta(tables)
    tables.put(Table.HOT, META_KEY, meta_row(msgspec.structs.replace(meta, revision=meta.revision - 1)))


def a_revision_without_changes(tables: MemoryTables) -> None:
    meta = read_meta(tables)
    tables.put(Table.HOT, META_KEY, meta_row(msgspec.structs.replace(meta, revision=meta.revision + 1)))


def compacted_in_the_future(tables: MemoryTables) -> None:
    meta = read_meta(tables)
    tables.put(
        Table.HOT, META_KEY, meta_row(msgspec.structs.replace(meta, compacted_revision=meta.revision + 1))
    )


def a_row_of_no_kind(tables: MemoryTables) -> None:
    tables.put(Table.HOT, b"Z", seal(b"Z", b""))


def meta_of_other_bytes(tables: MemoryTables) -> None:
    tables.put(Table.HOT, META_KEY, seal(META_KEY, b"\xc1"))


def short_sums(tables: MemoryTables) -> None:
    tables.put(Table.HOT, SUMS_KEY, seal(SUMS_KEY, b"short"))


def empty_answers(tables: MemoryTables) -> None:
    key = next(key for key, _ in tables.scan(Table.HOT, b"A", b"B"))
    tables.put(Table.HOT, key, seal(key, b"\x93\x90\x90\x90"))


def a_session_of_the_future(tables: MemoryTables) -> None:
    key, row = next(iter(tables.scan(Table.HOT, b"S", b"T")))
    later = b"S" + (10_000).to_bytes(8, "big") + key[9:]
    assert read_session_key(later).index == 10_000
    tables.put(Table.HOT, later, seal(later, row[8:]))


def a_key_of_a_lease_that_is_none(tables: MemoryTables) -> None:
    tables.delete(Table.HOT, lease_key(7))


def other_sums(tables: MemoryTables) -> None:
    sums = recount(tables)
    sums[0] ^= 1
    tables.put(Table.HOT, SUMS_KEY, sums_row(sums))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (wrong_lease_in_index, rf"the index says that {name_key(b'l1')} .* its versions or lease differ"),
        (wrong_version_in_index, rf"the index says that {name_key(b'm1')} .* its versions or lease differ"),
        (wrong_count_of_a_lease, r"lease 7 has 3 keys by its own row, 2 by theirs, and 2 by the index"),
        (a_milestone_too_many, rf"{name_key(b'm1')} has a milestone at revision \d+\.0, but no such change"),
        (a_change_beyond_the_latest, r"there is a change at revision \d+, and the latest one is \d+"),
        (a_revision_without_changes, r"no change was found from \d+\.1 to before \d+\.0"),
        (compacted_in_the_future, r"compacted at revision \d+, and its latest one is \d+"),
        (a_row_of_no_kind, r"a row 5a of no known kind"),
        (meta_of_other_bytes, r"own rows can't be read, though its checksum matches"),
        (short_sums, r"own rows can't be read, though its checksum matches"),
        (empty_answers, r"holds no answers"),
        (a_session_of_the_future, r"session 10000 was opened after the applied index"),
        (a_key_of_a_lease_that_is_none, r"attached to lease 7, and there is none"),
        (other_sums, r"in 1 of 256 buckets, the first being 0"),
    ],
)
def test_what_contradicts_itself_is_noticed_and_named(change: Change, says: str) -> None:
    tables = a_state().tables
    change(tables)
    with pytest.raises(DataLossError, match=says):
        check_state(tables)


def test_a_replaced_change_that_is_missing_or_another_is_noticed() -> None:
    rig = a_state()
    rig.write(put(1, b"m1", b"2"), put(2, b"m1", b"3"))
    at = live(rig.tables, b"m1")
    row = rig.tables.get(Table.CHANGES, change_key(*at[:2]))
    assert row is not None
    before = change_key(*read_links(change_key(*at[:2]), row)[3:])
    rig.tables.delete(Table.CHANGES, before)
    with pytest.raises(DataLossError, match=r"no change was found from"):
        check_state(rig.tables)


def test_pauses_come_with_the_work_and_may_give_it_up() -> None:
    rig = Rig()
    rig.write(*(put(n, b"key-%04d" % n, b"v" * 2_000) for n in range(1, 500)))
    pauses = 0

    def pause() -> None:
        nonlocal pauses
        pauses += 1

    check_state(rig.tables, pause)
    assert pauses == pytest.approx((500 * (2_000 + 1_024) + 500 * 1_100) / (512 << 10), abs=3)

    def give_up() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        check_state(rig.tables, give_up)


def test_the_sweeps_own_row_is_checked() -> None:
    tables = a_state().tables
    assert tables.get(Table.HOT, SWEEP_KEY) is not None
    tables.put(Table.HOT, SWEEP_KEY, b"damaged")
    with pytest.raises(DataLossError, match=rf"row {SWEEP_KEY.hex()} of table HOT is damaged"):
        check_state(tables)
