"""Entries as a whole: applied index, clocks, digest, what does not decode, and transactions that fail."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from chaos.sim.memory_tables import MemoryTables
from raftstate.core.types import ConfState, Entry, EntryType
from raftstate.errors import FailedPreconditionError, InvariantError, StorageError
from raftstate.machine.digest import recount
from raftstate.machine.layout import read_meta, read_sums
from raftstate.machine.machine import Machine
from raftstate.machine.tables import Table
from raftstate.machine.types import (
    MACHINE_VERSION,
    Answer,
    Batch,
    BatchResult,
    Cancel,
    Close,
    CompactTo,
    EntryResult,
    Expire,
    ExpireLease,
    MoveTo,
    Register,
    Registered,
    SessionId,
)
from tests.machine.rig import (
    CLUSTER,
    MEMBERS,
    Rig,
    batch,
    compact,
    compare,
    delete,
    entry,
    grant,
    op_delete,
    op_put,
    op_range,
    put,
    renew,
    txn,
)

SESSION = SessionId(1, 7)
TXNS = [
    txn(
        1, [compare(b"k1", version=1)], [op_put(b"k1", prev_kv=True), op_range(b"k", b"l"), op_delete(b"l1")]
    ),
    txn(2, [compare(b"k", ">", b"l", version=9)], [], [op_delete(b"k2", b"k4", prev_kv=True), op_put(b"l3")]),
    # Refused after it has written.
    txn(3, (), [op_put(b"l3", b"gone", lease=7), op_range(b"k", b"z", revision=99), op_put(b"l9")]),
    txn(4, (), [op_range(b"k", b"z", revision=40)]),
    txn(5, (), [op_put(b"l3", b"more", lease=7)]),
]
PROGRAM = [
    entry(1, Register(7, 10_000), lease_ms=100, wall_ms=900),
    entry(2, batch(*(put(n, b"k%d" % (n % 5), b"%d" % n) for n in range(1, 60)), session=SESSION)),
    entry(3, batch(delete(60, b"k1", b"k3", prev_kv=True), put(61, b"k1"), session=SESSION, floor=20)),
    entry(4, batch(put(61, b"k1"), put(5, b"k1"), put(62, b""), session=SESSION, floor=61), term=2),
    Entry(5, 2),
    entry(6, lease_ms=5_000, wall_ms=800, term=2),
    Entry(7, 3, EntryType.CONF_CHANGE, b"change"),
    entry(
        8, Cancel(SESSION, 70), batch(put(70, b"late"), put(71, b"k4", prev_kv=True), session=SESSION), term=3
    ),
    Entry(9, 3, data=b"\xc1 no envelope"),
    entry(10, Register(9, 0), batch(put(1, b"no session"), delete(2, b"k4"), put(3, b"k0")), term=3),
    entry(11, Close(SessionId(10, 9)), Expire(SESSION, 1), Batch(b"\xff"), lease_ms=6_000, term=3),
    entry(12, Expire(SESSION, 1 << 40), batch(put(80, b"k1"), session=SESSION), term=3),
    entry(
        13,
        Register(8, 0),
        batch(grant(1, 7), grant(2), put(3, b"l1", lease=7), put(4, b"k1", lease=7), put(5, b"l2", lease=7)),
        term=3,
    ),
    entry(14, batch(*TXNS, session=SessionId(13, 8)), MoveTo(MACHINE_VERSION), term=3),
    entry(15, CompactTo(20), batch(renew(1, 7), compact(2, 30), delete(3, b"l", b"m")), term=3),
    entry(16, batch(txn(9, (), [op_put(b"l3", lease=7)]), session=SessionId(13, 8)), lease_ms=7_000, term=3),
    entry(
        17,
        ExpireLease(7, 8_000),
        ExpireLease(7, 17_000),
        batch(put(1, b"m"), put(2, b"n")),
        lease_ms=17_000,
        term=3,
    ),
]
CONF_STATES = {7: ConfState(voters=(1, 2, 3), learners=(4,))}


def fresh() -> tuple[MemoryTables, Machine]:
    tables = MemoryTables()
    Machine.bootstrap(tables, CLUSTER, MEMBERS)
    return tables, Machine(tables)


def apply_in_parts(cuts: Sequence[int], *, reload: bool = False) -> tuple[MemoryTables, list[EntryResult]]:
    tables, machine = fresh()
    results: list[EntryResult] = []
    for start, end in zip((0, *cuts), (*cuts, len(PROGRAM)), strict=True):
        if reload:
            machine = Machine(tables)
        with tables.write() as transaction:
            results += machine.apply(transaction, PROGRAM[start:end], CONF_STATES)
    return tables, results


@pytest.mark.parametrize("cuts", [(), (4,), (1, 2, 9), tuple(range(1, len(PROGRAM)))])
@pytest.mark.parametrize("reload", [False, True])
def test_however_entries_are_split_into_transactions_rows_digests_and_results_are_the_same(
    cuts: tuple[int, ...], reload: bool
) -> None:
    whole_tables, whole = apply_in_parts(())
    tables, results = apply_in_parts(cuts, reload=reload)
    assert results == whole
    assert tables.dump() == whole_tables.dump()
    assert [result.index for result in results] == list(range(1, len(PROGRAM) + 1))
    assert len({result.digest for result in results}) == len(PROGRAM)


def raise_after(results: list[EntryResult]) -> None:
    assert len(results) == len(PROGRAM)
    raise StorageError("the commit failed")


@pytest.mark.case(46)
def test_the_applied_index_is_in_the_transaction_that_applied_it() -> None:
    tables, machine = fresh()
    with pytest.raises(StorageError, match="the commit failed"), tables.write() as transaction:
        raise_after(machine.apply(transaction, PROGRAM, CONF_STATES))
    assert read_meta(tables).applied_index == 0
    assert tables.count(Table.CHANGES) == 0
    machine.load(tables)
    with tables.write() as transaction:
        machine.apply(transaction, PROGRAM[:4])
    assert read_meta(tables).applied_index == machine.applied_index == 4


class FailingTables(MemoryTables):
    """Fails at the write number `fail_at`."""

    def __init__(self) -> None:
        super().__init__()
        self.fail_at = 1 << 60

    def _set(self, table: Table, key: bytes, value: bytes | None) -> None:
        super()._set(table, key, value)
        if self.writes >= self.fail_at:
            self.fail_at = 1 << 60
            raise StorageError("a write failed")


def failing() -> tuple[FailingTables, Machine, list[EntryResult]]:
    """A machine that has applied the first three entries."""
    tables = FailingTables()
    Machine.bootstrap(tables, CLUSTER, MEMBERS)
    machine = Machine(tables)
    return tables, machine, machine.apply(tables, PROGRAM[:3])


@pytest.mark.case(46)
@pytest.mark.case(65)
def test_after_an_abort_at_any_write_the_same_entries_give_the_same_again() -> None:
    whole_tables, whole = apply_in_parts(())
    tables, machine, _ = failing()
    start = tables.writes
    machine.apply(tables, PROGRAM[3:], CONF_STATES)
    writes = tables.writes - start
    assert writes > 10
    for step in range(writes):
        tables, machine, results = failing()
        before = tables.dump()
        tables.fail_at = tables.writes + step
        with pytest.raises(StorageError), tables.write() as transaction:
            machine.apply(transaction, PROGRAM[3:], CONF_STATES)
        assert tables.dump() == before
        with pytest.raises(InvariantError):
            machine.apply(tables, PROGRAM[3:], CONF_STATES)
        machine.load(tables)
        results += machine.apply(tables, PROGRAM[3:], CONF_STATES)
        assert (results, tables.dump()) == (whole, whole_tables.dump())


def test_entries_at_or_below_the_applied_index_are_passed_over() -> None:
    tables, machine = fresh()
    machine.apply(tables, PROGRAM[:4])
    before = tables.dump()
    assert machine.apply(tables, PROGRAM[:4]) == []
    assert machine.apply(tables, []) == []
    assert tables.dump() == before
    assert [result.index for result in machine.apply(tables, PROGRAM[2:6])] == [5, 6]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Entry(6, 2), "entry 6 of term 2 can't follow applied index 4 of term 2"),
        (Entry(5, 1), "entry 5 of term 1 can't follow applied index 4 of term 2"),
        (
            Entry(5, 2, EntryType.CONF_CHANGE_V2),
            "entry 5 changes the membership, and no conf state was given for it",
        ),
    ],
)
def test_what_no_log_can_hold_stops_the_machine(bad: Entry, message: str) -> None:
    tables, machine = fresh()
    machine.apply(tables, PROGRAM[:4])
    with pytest.raises(InvariantError) as caught:
        machine.apply(tables, [bad])
    assert caught.value.message == message


def test_clocks_never_go_back() -> None:
    rig = Rig()
    stamps = []
    for lease_ms, wall_ms in ((5, 50), (3, 60), (9, 40)):
        rig.run(lease_ms=lease_ms, wall_ms=wall_ms)
        stamps.append((rig.machine.lease_clock_ms, rig.machine.wall_clock_ms))
    assert stamps == [(5, 50), (5, 60), (9, 60)]
    rig.reload()
    assert (rig.machine.lease_clock_ms, rig.machine.wall_clock_ms) == (9, 60)


def test_a_membership_change_is_in_the_state_and_in_the_digest() -> None:
    conf_states = [ConfState(voters=(1, 2, 3)), ConfState(voters=(1, 2, 3), learners=(4,))]
    digests = set()
    for conf_state in conf_states:
        tables, machine = fresh()
        assert machine.conf_state() == ConfState(voters=(1, 2, 3))
        [result] = machine.apply(tables, [Entry(1, 1, EntryType.CONF_CHANGE_V2)], {1: conf_state})
        digests.add(result.digest)
        assert Machine(tables).conf_state() == machine.conf_state() == conf_state
        assert result.items == []
    assert len(digests) == 2


NO_ENVELOPES = [
    b"\xc1",
    b"{}",
    msgspec.msgpack.encode([1, 2, [[99, b"x"]]]),
    msgspec.msgpack.encode([1, 2, [[1, b"x", "more"]]]),
    msgspec.msgpack.encode([1, 2, [], "more"]),
    msgspec.msgpack.encode([-1, 2, []]),
    msgspec.msgpack.encode([1, 2, [[2, -1, 0]]]),
    msgspec.msgpack.encode([1, 2, [[4, [1, 2, 3]]]]),
    msgspec.msgpack.encode([1, 2, []]) + b"\x00",
]


@pytest.mark.case(66)
@pytest.mark.case(75)
@pytest.mark.parametrize("data", NO_ENVELOPES, ids=range(len(NO_ENVELOPES)))
def test_an_entry_that_is_no_envelope_moves_the_index_and_does_nothing_else(data: bytes) -> None:
    rig = Rig()
    rig.write(put(1, b"k"))
    [result] = rig.apply(Entry(2, 1, data=data))
    assert (result.index, result.revision, result.items) == (2, 2, [])
    assert (rig.machine.lease_clock_ms, rig.machine.applied_index) == (0, 2)
    assert rig.write(put(1, b"k")) == {1: Answer(1, 3)}


@pytest.mark.case(66)
def test_a_poison_command_gives_the_same_refusal_however_often_it_is_applied() -> None:
    poison = entry(1, batch(put(1, b""), delete(2, b"k", b"\xff" * 999), put(3, b"k")), Batch(b"\xff" * 999))
    found = []
    for _ in range(2):
        tables, machine = fresh()
        found.append((machine.apply(tables, [poison]), tables.dump()))
    assert found[0] == found[1]
    assert found[0][0][0].revision == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # The same answer and the same session, another value.
        (batch(put(1, b"a", b"1"), session=SESSION), batch(put(1, b"a", b"2"), session=SESSION)),
        # Nothing is written, and the answers differ.
        (batch(put(1, b"")), batch(delete(1, b"a"))),
        # The same (empty) answer, and another floor.
        (batch(session=SESSION, floor=2), batch(session=SESSION, floor=3)),
    ],
    ids=["changes", "results", "sessions"],
)
def test_the_digest_covers_changes_results_and_sessions(one: Batch, other: Batch) -> None:
    digests = []
    for item in (one, other, other):
        tables, machine = fresh()
        machine.apply(tables, [entry(1, Register(7, 0)), entry(2, item)])
        digests.append(machine.digest)
    assert digests[0] != digests[1] == digests[2]


def test_bucket_sums_are_those_of_the_live_rows() -> None:
    tables, _ = apply_in_parts((2, 5))
    assert tables.count(Table.INDEX) > 3
    assert read_sums(tables) == recount(tables)
    tables, machine = fresh()
    assert recount(tables) == read_sums(tables) == [0] * 256
    machine.apply(tables, [entry(1, batch(put(1, b"a"), put(2, b"a"), delete(3, b"a")))])
    assert recount(tables) == read_sums(tables) == [0] * 256


def test_a_state_is_bootstrapped_once() -> None:
    tables, machine = fresh()
    with pytest.raises(FailedPreconditionError):
        Machine.bootstrap(tables, CLUSTER + 1, MEMBERS)
    assert machine.members == MEMBERS
    assert (machine.cluster_id, machine.revision, machine.applied_index, machine.digest) == (CLUSTER, 1, 0, 0)


def test_a_result_says_the_revision_as_of_its_entry() -> None:
    rig = Rig()
    results = rig.apply(
        entry(1, batch(put(1, b"a"))), entry(2, Register(1, 0)), entry(3, batch(put(2, b"b"), put(3, b"c")))
    )
    assert [result.revision for result in results] == [2, 2, 4]
    assert results[0].items == [BatchResult([1], [2], [])]
    assert isinstance(results[1].items[0], Registered)
