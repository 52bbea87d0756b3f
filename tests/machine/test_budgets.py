"""What transactions may look at and answer: the past, what they deleted themselves, and pairs by number."""

from __future__ import annotations

import pytest

from raftstate.machine import batch as batch_module
from raftstate.machine import budget, leases
from raftstate.machine.sessions import Session
from raftstate.machine.tables import Table
from raftstate.machine.types import (
    BATCH_PAIRS_MAX,
    COMMAND_PAIRS_MAX,
    Answer,
    Code,
    LongApply,
    MoveTo,
    SessionId,
)
from raftstate.pb.v1.pipeline_pb2 import Command
from raftstate.pb.v1.txn_pb2 import RequestOp
from tests.machine.rig import (
    Rig,
    answers,
    batch,
    codes,
    compact,
    compare,
    delete,
    entry,
    grant,
    op_delete,
    op_put,
    op_range,
    put,
    txn,
)
from tests.machine.test_version_1 import rig_of_version_1

EXHAUSTED = Code.RESOURCE_EXHAUSTED


def rig_of_keys(count: int) -> Rig:
    rig = Rig()
    for start in range(0, count, 500):
        rig.write(*(put(n, b"k%05d" % n, b"") for n in range(start, min(count, start + 500))))
    return rig


def is_long(rig: Rig, keys_at_once_max: int, *items: object) -> bool:
    """Apply an entry; return whether it was given up for being long. Nothing stays of it then."""
    made = entry(rig.machine.applied_index + 1, *items)  # type: ignore[arg-type]
    try:
        with rig.tables.write() as tables:
            rig.machine.apply(tables, [made], keys_at_once_max=keys_at_once_max)
    except LongApply:
        rig.reload()
        return True
    return False


# ---- the past


def reads_of(rig: Rig, operation: RequestOp, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how much of a batch's allowance of reads an operation takes."""
    for count in range(2_000):
        monkeypatch.setattr(budget, "TXN_READ_KEYS_MAX", count)
        answer = rig.write(txn(1, (), [operation]))[1]
        if answer.fault is None:
            return count
        assert (answer.fault.code, answer.fault.field) == (EXHAUSTED, "range_end")
    raise AssertionError("it takes more than was tried")


def test_a_range_of_the_past_counts_what_it_passes_and_does_not_find(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "PAST_RANGE_KEYS", 7)
    rig = rig_of_keys(20)
    # Of each key that was made later: its row of the index, and the change that made it.
    assert reads_of(rig, op_range(b"k", b"l", revision=1), monkeypatch) == 7 + 20 * 2
    assert reads_of(rig, op_range(b"k", b"l", revision=21), monkeypatch) == 7 + 20
    assert reads_of(rig, op_range(b"k00003", revision=1), monkeypatch) == 2
    assert reads_of(rig, op_range(b"none", revision=1), monkeypatch) == 0
    # Each step back from a later change, and each milestone.
    rig.write(*(put(n, b"k00003") for n in range(40)))
    assert reads_of(rig, op_range(b"k00003", revision=10), monkeypatch) == 1 + 1 + 16
    # Deleted keys have milestones alone, and those before the revision count as well: once each.
    rig.write(delete(1, b"k", b"l"))
    now = rig.machine.revision
    rig.write(put(1, b"z"))
    assert reads_of(rig, op_range(b"k", b"l", revision=now), monkeypatch) == 7 + 20
    # From there back to the change before, which is as of then.
    assert reads_of(rig, op_range(b"k", b"l", revision=now - 1), monkeypatch) == 7 + 20 * 3


def test_ranges_of_the_past_that_look_at_too_much_are_refused_and_the_batch_goes_on() -> None:
    rig = rig_of_keys(100)
    nothing = op_range(b"k", b"l", revision=1)
    found = rig.write(txn(1, (), [nothing] * 83), txn(2, (), [nothing]), put(3, b"z"))
    assert codes(found) == {1: None, 2: EXHAUSTED, 3: None}
    assert found[2].fault is not None
    assert found[2].fault.message == (
        "the ranges that the transactions of a batch read may look at 100000 keys and, for earlier "
        "revisions, later changes of keys; each range there counts 1000 more; this one looks at more than "
        "were left; read it outside of a transaction, or in parts"
    )


@pytest.mark.parametrize("past_deletes", [False, True])
def test_a_sweep_does_not_show_in_what_the_past_counts(
    monkeypatch: pytest.MonkeyPatch, past_deletes: bool
) -> None:
    monkeypatch.setattr(budget, "PAST_RANGE_KEYS", 0)
    rig, swept = Rig(), Rig()
    for each in (rig, swept):
        # Many milestones of each key before the compaction, and few or many after it.
        for key in (b"a", b"b", b"c", b"d"):
            each.write(*(put(n, key) for n in range(330)))
        for key, again in ((b"a", 20), (b"b", 300), (b"c", 0)):
            each.write(*(delete(2 * n, key) if n % 2 else put(2 * n, key) for n in range(again)))
        if past_deletes:
            each.write(delete(1, b"c"), put(2, b"e"), delete(3, b"e"))
        each.write(put(1, b"x"))
        each.write(compact(1, each.machine.revision - 200), *(put(2 + n, b"d") for n in range(99)))
    while swept.machine.sweep_pending:
        with swept.tables.write() as tables:
            swept.machine.sweep(tables, 1_000)
    assert swept.tables.count(Table.MILESTONES) < rig.tables.count(Table.MILESTONES)
    last, first = rig.machine.revision, rig.machine.compacted_revision
    for revision in (first, first + 1, first + 90, last - 100, last - 99, last - 1):
        operation = op_range(b"a", b"z", revision=revision)
        assert reads_of(rig, operation, monkeypatch) == reads_of(swept, operation, monkeypatch)


def test_a_range_of_the_past_makes_an_apply_long() -> None:
    rig = rig_of_keys(20)
    assert is_long(rig, 39, batch(txn(1, (), [op_range(b"k", b"l", revision=1)])))
    assert not is_long(rig, 41, batch(txn(1, (), [op_range(b"k", b"l", revision=1)])))


def test_many_small_values_that_are_only_looked_at_make_an_apply_long() -> None:
    rig = Rig()
    rig.write(put(1, b"a", b"." * 4_000))
    compares = txn(1, [compare(b"a", value=b"." * 4_000)] * 100)
    assert is_long(rig, 25 + 97, batch(compares))
    assert not is_long(rig, 25 + 98, batch(compares))


# ---- what the transaction itself deleted


@pytest.mark.parametrize("again", [op_range(b"k", b"l"), op_delete(b"k", b"l")], ids=["range", "delete"])
def test_keys_that_the_transaction_has_deleted_count_when_a_range_meets_them_again(
    monkeypatch: pytest.MonkeyPatch, again: RequestOp
) -> None:
    monkeypatch.setattr(budget, "TXN_READ_KEYS_MAX", 40)
    monkeypatch.setattr(budget, "RANGE_DELETE_KEYS_MAX", 60)
    rig = rig_of_keys(20)
    gone = op_delete(b"k", b"l")
    assert codes(rig.write(txn(1, (), [gone, *[again] * 3]))) == {1: EXHAUSTED}
    assert is_long(rig, 59, batch(txn(1, (), [gone, *[again] * 2])))
    answer = rig.write(txn(1, (), [gone, *[again] * 2]))[1]
    assert answer.txn is not None
    assert answer.txn.responses[0].deleted == 20  # type: ignore[union-attr]


def test_ranges_see_each_key_once_however_writes_and_deletes_lie_between() -> None:
    rig = rig_of_keys(9)
    operations = [
        op_put(b"k00004", b"new"),
        op_put(b"k000045", b"new"),
        op_delete(b"k00006"),
        op_delete(b"k00001", b"k00004"),
        op_delete(b"k00005", b"k00008"),
        op_delete(b"k00000", b"k00004"),
        op_put(b"a"),
        op_range(b"a", b"z", keys_only=True),
        op_range(b"k00002", b"k00008", keys_only=True),
        op_range(b"k00004", b"k00005", count_only=True),
    ]
    answer = rig.write(txn(1, (), operations))[1]
    assert answer.txn is not None
    everything, part, count = answer.txn.responses[-3:]
    assert [kv.key for kv in everything.kvs] == [b"a", b"k00004", b"k000045", b"k00008"]  # type: ignore[union-attr]
    assert [kv.key for kv in part.kvs] == [b"k00004", b"k000045"]  # type: ignore[union-attr]
    assert count.count == 2  # type: ignore[union-attr]


# ---- operations


def failing(serial: int, operations: int) -> Command:
    return txn(serial, [compare(b"none", version=9)], [op_put(b"%d" % n) for n in range(operations - 1)])


@pytest.mark.parametrize("together", [True, False])
def test_operations_count_though_a_compare_fails_and_before_any_is_checked(
    monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    rig = Rig()
    items = [batch(*(failing(n, 40) for n in range(5)))] if together else [batch(failing(1, 40))] * 5
    assert is_long(rig, 49, *items)
    assert not is_long(rig, 50, *items)
    monkeypatch.setattr("raftstate.machine.command._check_txn", lambda txn: pytest.fail("checked"))
    assert is_long(rig, 9, *items)


def test_transactions_of_few_operations_add_up() -> None:
    rig = Rig()
    few = batch(*(txn(n, (), [op_put(b"%d" % n)]) for n in range(400)))
    assert is_long(rig, 99, few)
    assert not is_long(rig, 100, few)
    assert not is_long(rig, 0, batch(*(put(n, b"a") for n in range(500))))


# ---- pairs


def test_a_transaction_answers_ten_thousand_pairs_and_counts_more() -> None:
    assert (COMMAND_PAIRS_MAX, BATCH_PAIRS_MAX) == (10_000, 20_000)
    rig = rig_of_keys(10_001)
    everything = op_range(b"k", b"l", keys_only=True)
    part = op_range(b"k", b"k10000", keys_only=True)
    found = rig.write(
        txn(1, [compare(b"k", range_end=b"l", lease=0)], [op_range(b"k", b"l", count_only=True)]),
        txn(2, (), [everything]),
        txn(3, (), [part]),
    )
    assert codes(found) == {1: None, 2: EXHAUSTED, 3: Code.RESOURCE_EXHAUSTED}
    assert found[2].fault is not None
    assert found[2].fault.message == (
        "a transaction may answer 10000 pairs, with this range it has more; read it outside of the "
        "transaction, in parts, or with a limit or count_only"
    )
    for fits in ([part], [op_range(b"k", b"l", keys_only=True, limit=5_000)] * 2):
        assert codes(rig.write(txn(1, (), fits))) == {1: None}
    assert codes(rig.write(txn(1, (), [part, op_range(b"k00001")]))) == {1: EXHAUSTED}


@pytest.fixture
def of_few_pairs(monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(budget, "COMMAND_PAIRS_MAX", 10)
    monkeypatch.setattr(budget, "BATCH_PAIRS_MAX", 20)
    monkeypatch.setattr(batch_module, "BATCH_PAIRS_MAX", 20)
    return rig_of_keys(30)


def test_previous_pairs_and_ranges_of_a_transaction_share_one_number(of_few_pairs: Rig) -> None:
    rig = of_few_pairs
    ten = [
        op_delete(b"k", b"k00005", prev_kv=True),
        op_range(b"k00005", b"k00009"),
        op_put(b"k00020", prev_kv=True),
    ]
    assert codes(rig.write(txn(1, (), [*ten, op_range(b"k00021")]))) == {1: EXHAUSTED}
    assert codes(rig.write(txn(1, (), [*ten, op_put(b"k00021", prev_kv=True)]))) == {1: EXHAUSTED}
    assert codes(rig.write(txn(1, (), [*ten, op_delete(b"k00021"), op_range(b"none")]))) == {1: None}


def test_a_delete_answers_so_many_previous_pairs_since_version_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "COMMAND_PAIRS_MAX", 10)
    rig = rig_of_version_1()
    puts = [put(n, b"k%02d" % n) for n in range(11)]
    rig.write(*puts)
    assert rig.write(delete(1, b"k", b"l", prev_kv=True))[1].deleted == 11
    rig.write(*puts)
    _, deleted = rig.run(MoveTo(2), batch(delete(1, b"k", b"l", prev_kv=True)))
    fault = answers(deleted)[1].fault
    assert fault is not None
    assert (fault.code, fault.field) == (EXHAUSTED, "prev_kv")
    assert fault.message == (
        "one command may answer 10 pairs, with these previous pairs it has more; delete without prev_kv, "
        "or in parts"
    )
    assert rig.write(delete(1, b"k", b"k10", prev_kv=True))[1].deleted == 10


def test_once_half_of_the_pairs_of_a_batch_are_read_no_other_command_runs(of_few_pairs: Rig) -> None:
    rig = of_few_pairs
    sid = rig.register()
    commands = [
        txn(1, (), [op_range(b"k", b"k00010")]),
        txn(2, (), [op_range(b"k", b"k00010")]),
        put(3, b"z"),
    ]
    assert codes(rig.write(*commands)) == {1: None, 2: None, 3: EXHAUSTED}
    found = rig.write(*commands, session=sid)
    assert codes(found) == {1: None, 2: None, 3: Code.WINDOW}
    assert found[3].fault is not None
    assert found[3].fault.message == (
        "the pairs read or repeated for this batch are more than 10; not run; send it first in a batch"
    )
    # Repeated ones count, and what has an answer always gets it.
    assert rig.write(*commands, session=sid) == found
    assert codes(rig.write(commands[2], session=sid)) == {3: None}


def test_previous_pairs_of_puts_count_among_those_of_a_batch(of_few_pairs: Rig) -> None:
    rig = of_few_pairs
    puts = [put(2 + n, b"k%05d" % n, prev_kv=True) for n in range(3)]
    found = rig.write(txn(1, (), [op_range(b"k", b"k00009")]), *puts, delete(5, b"z"))
    assert codes(found) == {1: None, 2: None, 3: None, 4: EXHAUSTED, 5: EXHAUSTED}


def test_at_version_1_a_batch_has_no_number_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "BATCH_PAIRS_MAX", 2)
    rig = rig_of_version_1()
    rig.write(put(1, b"a"), put(2, b"b"))
    commands = delete(1, b"a", b"z", prev_kv=True), put(2, b"a")
    [result] = rig.run(batch(*commands))
    assert codes(answers(result)) == {1: None, 2: None}


# ---- memory


def session_of(rig: Rig, sid: SessionId) -> Session:
    session = rig.machine._sessions.find(sid)
    assert session is not None
    return session


def test_answers_of_transactions_count_in_a_session_as_what_they_take_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch_module, "SESSION_BYTES_MAX", 300_000)
    rig = Rig()
    sid = rig.register()
    small = [op_range(b"none")] * 1_000
    assert codes(rig.write(txn(1, (), small), session=sid)) == {1: None}
    rows = [row for key, row in rig.tables.scan(Table.HOT, b"A", b"B")]
    assert session_of(rig, sid).stored_bytes == len(rows[0]) + 128_000
    # As a rule, an answer of 1,000 responses takes 6 kB in a row.
    assert codes(rig.write(txn(2, (), small), txn(3, (), small), session=sid)) == {2: None, 3: None}
    assert codes(rig.write(txn(4, (), small), session=sid)) == {4: Code.WINDOW}
    stored = session_of(rig, sid).stored_bytes
    rig.reload()
    assert session_of(rig, sid).stored_bytes == stored
    assert rig.write(put(5, b"a"), session=sid, floor=5) == {5: Answer(5, 2)}
    assert session_of(rig, sid).stored_bytes < 100


# ---- leases


def test_leases_that_were_renewed_are_passed_over_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_LOOKED_AT_ONCE_MAX", 10)
    rig = Rig()
    rig.write(*(grant(n, id=n, ttl_ms=1_000) for n in range(1, 41)))
    table = rig.machine._leases
    for id in range(1, 40):
        lease = table.find(id)
        assert isinstance(lease, leases.Lease)
        table.renew(lease, 5_000)
    assert [table.due(1_000) for _ in range(4)] == [[], [], [], [40]]
    assert table.due(1_000) == [40]
    assert len(table.due(6_000)) == 10
