"""A pass over a state that goes on being written to: it finds nothing where nothing is wrong, and every kind
of damage wherever the writes went meanwhile."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import pytest

from raftstate.errors import DataLossError
from raftstate.machine import leases
from raftstate.machine import scrub as scrub_module
from raftstate.machine.digest import SumChanges
from raftstate.machine.layout import attachment_key, change_key, milestone_key, read_index
from raftstate.machine.scrub import Scrub, VanishedError
from raftstate.machine.tables import Table
from tests.machine.rig import (
    Rig,
    batch,
    compact,
    delete,
    entry,
    erase,
    grant,
    op_delete,
    op_put,
    put,
    revoke,
    txn,
)

LEASE_KEYS = 7


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LEASE_KEYS_MAX", LEASE_KEYS)
    monkeypatch.setattr(scrub_module, "SLICE_WORK", 5 * scrub_module.ROW_WORK)


class Pass:
    """A pass over a rig's state. Each slice sees the state as it was before what `meanwhile` writes."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.changes = SumChanges()
        self.scrub = Scrub(self.begin_sums)

    def begin_sums(self) -> SumChanges:
        self.rig.machine.record_sum_changes(self.changes)
        return self.changes

    def step(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        if self.scrub.wants_sums:
            self.begin_sums()  # between two transactions, before the slice's own begins
        seen = copy.deepcopy(self.rig.tables)
        meanwhile()
        self.scrub.step(seen)

    def run(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        while not self.scrub.is_done:
            self.step(meanwhile)


def filled(keys: int = 40) -> Rig:
    rig = Rig()
    rig.write(grant(1, 5))
    for n in range(keys):
        rig.write(put(1, b"k%03d" % n, b"v", lease=5 if n % 7 == 0 else 0))
    for _ in range(20):
        rig.write(put(1, b"k003", b"again"), put(2, b"k004", b"again"))
    rig.write(delete(1, b"k005"))
    rig.register()
    return rig


def abort_a_write(rig: Rig, key: bytes) -> None:
    """Apply an entry in a transaction that does not commit, as when the disk is full."""
    aborted = entry(rig.machine.applied_index + 1, batch(put(1, key), put(2, b"k001")))
    try:
        with rig.tables.write() as tables:
            rig.machine.apply(tables, [aborted])
            raise ZeroDivisionError
    except ZeroDivisionError:
        rig.reload()


def write_something(rig: Rig, rng: random.Random) -> None:
    key = b"k%03d" % rng.randrange(60)
    match rng.randrange(10):
        case 0:
            rig.write(delete(1, key))
        case 1:
            rig.write(delete(1, key, b"k%03d" % rng.randrange(60)))
        case 2:
            rig.write(put(1, key, b"x", lease=5))
        case 3:
            rig.write(txn(1, (), (op_put(key), op_delete(b"k%03d" % rng.randrange(60)))))
        case 4:
            rig.write(compact(1, max(1, rig.machine.revision - rng.randrange(10))))
        case 5:
            with rig.tables.write() as tables:
                rig.machine.sweep(tables, rng.randrange(1, 20))
        case 6:
            abort_a_write(rig, key)
        case 7:
            rig.write(erase(1, key))
        case 8:  # fails at its second put, since the lease is full, and takes back its first
            rig.write(txn(1, (), (op_put(key), op_put(b"m%d" % rig.machine.revision, lease=5))))
        case _:
            rig.write(*(put(n, b"k%03d" % rng.randrange(60)) for n in range(4)))
    if rng.randrange(50) == 0:
        rig.write(revoke(1, 5), grant(2, 5))


@pytest.mark.parametrize("seed", range(40))
def test_a_sound_state_passes_whatever_is_written_meanwhile(seed: int) -> None:
    rng = random.Random(seed)
    rig = filled()
    passing = Pass(rig)
    passing.run(lambda: [write_something(rig, rng) for _ in range(rng.randrange(4))])
    assert passing.scrub.is_done


@pytest.mark.case(76)
@pytest.mark.parametrize("key", [b"k000", b"k020", b"k039"])
@pytest.mark.parametrize("seed", range(8))
def test_a_key_that_vanished_is_found_whatever_is_written_meanwhile(key: bytes, seed: int) -> None:
    rng = random.Random(seed)
    rig = filled()
    passing = Pass(rig)

    def write() -> None:
        rig.write(
            *(put(n, b"l%03d" % rng.randrange(60)) for n in range(2)), put(7, b"a%03d" % rng.randrange(60))
        )

    for _ in range(rng.randrange(4)):
        passing.step(write)
    # Its row, and its change, as when they stand on one damaged page each.
    row = rig.tables.get(Table.INDEX, key)
    assert row is not None
    rig.tables.delete(Table.INDEX, key)
    with pytest.raises(VanishedError, match="keys have vanished"):
        passing.run(write)


def test_a_key_that_vanishes_behind_the_cursor_is_found_by_the_next_pass() -> None:
    rig = filled()
    first = Pass(rig)
    while not first.scrub.wants_sums:
        first.step()
    first.step()
    rig.tables.delete(Table.INDEX, b"k001")
    first.run()
    with pytest.raises(VanishedError, match="keys have vanished"):
        Pass(rig).run()


def change_of(rig: Rig, key: bytes) -> bytes:
    row = rig.tables.get(Table.INDEX, key)
    assert row is not None
    return change_key(*read_index(key, row)[:2])


DAMAGE: dict[str, tuple[Callable[[Rig], tuple[Table, bytes]], str]] = {
    "a live change": (lambda rig: (Table.CHANGES, change_of(rig, b"k010")), "no change was found"),
    "the last change": (
        lambda rig: (Table.CHANGES, change_key(rig.machine.revision, 0)),
        "no change was found",
    ),
    "a change of the past": (lambda _: (Table.CHANGES, change_key(5, 0)), "no change was found"),
    "a milestone": (
        lambda rig: (Table.MILESTONES, next(key for key, _ in rig.tables.scan(Table.MILESTONES))),
        "has lost its milestone",
    ),
    "a key of a lease": (lambda _: (Table.HOT, attachment_key(5, b"k007")), "lease 5"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_missing_row_is_found(what: str) -> None:
    rig = filled()
    where, message = DAMAGE[what]
    table, key = where(rig)
    assert rig.tables.delete(table, key)
    with pytest.raises(VanishedError, match=message):
        Pass(rig).run()


@pytest.mark.case(56)
@pytest.mark.parametrize("table", Table)
def test_a_flipped_bit_in_any_row_is_found(table: Table) -> None:
    sound = filled(12)
    sound.write(put(1, b"s"), session=sound.register(9))
    for key, row in list(sound.tables.scan(table)):
        rig = Rig()
        rig.tables = copy.deepcopy(sound.tables)
        rig.tables.put(table, key, row[:-1] + bytes([row[-1] ^ 0x10]))
        with pytest.raises(DataLossError):
            Pass(rig).run()


def test_a_milestone_without_its_change_is_found() -> None:
    rig = filled()
    key, row = next(rig.tables.scan(Table.MILESTONES))
    rig.tables.put(Table.MILESTONES, milestone_key(b"k003", 3), row)
    assert key
    with pytest.raises(DataLossError):
        Pass(rig).run()


def test_more_changes_than_are_kept_have_the_pass_end_without_a_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SumChanges, "KEYS_MAX", 3)
    rig = filled()
    passing = Pass(rig)
    passing.run(lambda: rig.write(*(put(n, b"k%03d" % n) for n in range(6))))
    assert passing.scrub.is_lost


def test_a_state_that_is_replaced_during_a_pass_is_not_taken_for_damaged() -> None:
    rig = filled()
    passing = Pass(rig)
    while not passing.scrub.wants_sums:
        passing.step()
    passing.step()
    # Other files with the same rows: what is changed from here on nobody records.
    rig.machine.adopt(rig.tables)
    passing.run(lambda: rig.write(put(1, b"k000", b"other")))
    assert passing.scrub.is_lost


def test_no_message_names_a_key() -> None:
    """They go to logs, which no erase reaches."""
    for table in (Table.INDEX, Table.MILESTONES, Table.CHANGES):
        rig = filled()
        for row_key, row in list(rig.tables.scan(table)):
            damaged = copy.deepcopy(rig)
            with damaged.tables.write() as tables:
                tables.put(table, row_key, row[:-1] + bytes([row[-1] ^ 1]))
            passing = Pass(damaged)
            with pytest.raises(DataLossError) as raised:
                passing.run()
            assert "k0" not in str(raised.value)
            assert b"k0".hex() not in str(raised.value)
    rig = filled()
    with rig.tables.write() as tables:
        tables.delete(Table.INDEX, b"k000")
        row = tables.get(Table.CHANGES, change_key(rig.machine.revision, 0))
        assert row is not None
        tables.delete(Table.CHANGES, change_key(rig.machine.revision, 0))
    with pytest.raises(DataLossError) as raised:
        Pass(rig).run()
    assert "k0" not in str(raised.value)
