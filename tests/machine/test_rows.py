"""Damage to a row is found when it is read, and said by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from raftstate.errors import DataLossError
from raftstate.machine.digest import recount
from raftstate.machine.layout import (
    META_KEY,
    SUMS_KEY,
    change_key,
    index_row,
    name_key,
    name_row,
    read_index,
    read_sums,
)
from raftstate.machine.machine import Machine
from raftstate.machine.tables import Table
from tests.machine.rig import Rig, delete, put


def filled() -> Rig:
    rig = Rig()
    sid = rig.register()
    rig.write(put(1, b"a", b"one"), put(2, b"b", b"two"), session=sid)
    return rig


def reads_key(rig: Rig) -> object:
    return rig.reader.get(b"a")


def reads_range(rig: Rig) -> object:
    return rig.reader.range(b"a", b"c")


def counts(rig: Rig) -> object:
    return rig.reader.range(b"a", b"c", count_only=True)


def overwrites(rig: Rig) -> object:
    return rig.write(put(9, b"a"))


def deletes(rig: Rig) -> object:
    return rig.write(delete(9, b"a", b"b"))


def wants_previous(rig: Rig) -> object:
    return rig.write(put(9, b"a", prev_kv=True))


def adds_up(rig: Rig) -> object:
    return recount(rig.tables)


def loads(rig: Rig) -> object:
    return Machine(rig.tables)


A_CHANGE = change_key(2, 0)
DAMAGE = [
    (Table.INDEX, b"a", [reads_key, reads_range, counts, overwrites, deletes, wants_previous, adds_up]),
    (Table.CHANGES, A_CHANGE, [reads_key, reads_range, wants_previous, adds_up]),
    (Table.HOT, META_KEY, [reads_key, loads]),
    (Table.HOT, SUMS_KEY, [loads]),
    (Table.HOT, b"S", [loads]),
    (Table.HOT, b"A", [loads]),
]
CASES = [(table, key, read) for table, key, reads in DAMAGE for read in reads]


def flipped(row: bytes) -> bytes:
    return row[:-1] + bytes((row[-1] ^ 1,))


@pytest.mark.case(56)
@pytest.mark.parametrize(
    "harm", [flipped, lambda row: row[:5], lambda row: row + b"\x00"], ids=["flip", "cut", "more"]
)
@pytest.mark.parametrize(
    ("table", "start", "read"), CASES, ids=[f"{t.name}-{r.__name__}" for t, _, r in CASES]
)
def test_a_damaged_row_is_found_by_every_read_of_it(
    table: Table, start: bytes, read: Callable[[Rig], object], harm: Callable[[bytes], bytes]
) -> None:
    rig = filled()
    read(rig)
    rig = filled()
    key, row = next(iter(rig.tables.scan(table, start)))
    rig.tables.put(table, key, harm(row))
    with pytest.raises(DataLossError) as caught:
        read(rig)
    assert f"row {name_row(table, key)} of table {table.name} is damaged" in caught.value.message


def test_an_intact_row_under_another_key_is_damage() -> None:
    rig = filled()
    row = rig.tables.get(Table.INDEX, b"b")
    assert row is not None
    rig.tables.put(Table.INDEX, b"a", row)
    with pytest.raises(DataLossError, match=f"row {name_row(Table.INDEX, b'a')} of table INDEX"):
        rig.reader.get(b"a")


def test_an_index_row_must_agree_with_the_change_that_it_names() -> None:
    rig = filled()
    row = rig.tables.get(Table.INDEX, b"a")
    assert row is not None
    revision, *rest = read_index(b"a", row)
    rig.tables.put(Table.INDEX, b"a", index_row(b"a", (revision + 1, *rest)))  # type: ignore[arg-type]
    with pytest.raises(DataLossError, match=f"that change is of {name_key(b'b')}"):
        rig.reader.get(b"a")
    rig.tables.put(Table.INDEX, b"a", row)
    rig.tables.delete(Table.CHANGES, A_CHANGE)
    with pytest.raises(DataLossError, match="there is no such change"):
        rig.reader.get(b"a")


@pytest.mark.case(76)
def test_a_key_that_vanished_from_the_index_shows_in_the_bucket_sums() -> None:
    rig = filled()
    rig.tables.delete(Table.INDEX, b"a")
    assert rig.reader.get(b"a") is None
    assert recount(rig.tables) != read_sums(rig.tables)


@pytest.mark.parametrize("key", [META_KEY, SUMS_KEY])
def test_a_state_without_its_own_rows_does_not_load(key: bytes) -> None:
    rig = filled()
    rig.tables.delete(Table.HOT, key)
    with pytest.raises(DataLossError, match="never bootstrapped"):
        Machine(rig.tables)


def test_answers_of_no_session_are_damage() -> None:
    rig = filled()
    [session] = rig.hot_keys(b"S")
    rig.tables.delete(Table.HOT, session)
    with pytest.raises(DataLossError, match="there is no such session"):
        Machine(rig.tables)
