"""Transactions: what they compare, read and write, in which order, and that a refused one leaves no trace."""

from __future__ import annotations

import pytest

from raftstate.machine import batch as batch_module
from raftstate.machine import budget, leases
from raftstate.machine.budget import answer_bytes
from raftstate.machine.digest import recount
from raftstate.machine.layout import change_key, read_change, read_sums
from raftstate.machine.tables import Table
from raftstate.machine.types import (
    Answer,
    Code,
    DeleteDone,
    Fault,
    KeyValue,
    LongApply,
    OperationDone,
    PutDone,
    RangeDone,
    TxnDone,
)
from raftstate.pb.v1.pipeline_pb2 import Command
from raftstate.pb.v1.txn_pb2 import Compare, RequestOp
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


def of_three() -> Rig:
    """a at revision 2 and 5 (version 2), b at 3, c at 4 with lease 7. The revision is 5."""
    rig = Rig()
    rig.write(
        grant(1, 7), put(2, b"a", b"1"), put(3, b"b", b"2"), put(4, b"c", b"3", lease=7), put(5, b"a", b"4")
    )
    return rig


def run(rig: Rig, command: Command) -> TxnDone:
    answer = rig.write(command)[command.serial]
    assert answer.txn is not None, answer
    assert answer.revision == rig.machine.revision
    return answer.txn


def responses(rig: Rig, *operations: RequestOp) -> list[OperationDone]:
    done = run(rig, txn(9, (), operations))
    assert done.succeeded
    return done.responses


def fault_of(rig: Rig, command: Command) -> Fault:
    fault = rig.write(command)[command.serial].fault
    assert fault is not None
    return fault


# ---- compares

HOLDS = [
    compare(b"a", version=2),
    compare(b"a", "!=", version=1),
    compare(b"a", ">", version=1),
    compare(b"a", "<", version=3),
    compare(b"a", create_revision=2),
    compare(b"a", mod_revision=5),
    compare(b"a", value=b"4"),
    compare(b"a", "<", value=b"40"),
    compare(b"c", lease=7),
    compare(b"a", lease=0),
    # A key that is not there is all zero.
    compare(b"x", version=0),
    compare(b"x", create_revision=0),
    compare(b"x", "<", mod_revision=1),
    compare(b"x", lease=0),
    # For all keys of a range; an empty one counts as one key that is not there.
    compare(b"b", range_end=b"d", version=1),
    compare(b"a", ">", range_end=b"\x00", mod_revision=2),
    compare(b"x", range_end=b"y", version=0),
    compare(b"b", "!=", range_end=b"d", value=b"4"),
]
FAILS = [
    compare(b"a", version=1),
    compare(b"a", "!=", version=2),
    compare(b"a", ">", version=2),
    compare(b"a", "<", version=2),
    compare(b"a", value=b""),
    compare(b"x", value=b""),
    compare(b"x", "!=", value=b"1"),
    compare(b"x", ">", value=b""),
    compare(b"x", "<", value=b"1"),
    compare(b"x", version=1),
    compare(b"a", range_end=b"d", version=1),
    compare(b"x", "!=", range_end=b"y", value=b"1"),
    compare(b"a", range_end=b"d", lease=7),
]


@pytest.mark.parametrize("one", HOLDS, ids=range(len(HOLDS)))
def test_a_compare_that_holds_runs_the_first_branch(one: Compare) -> None:
    assert run(of_three(), txn(9, [one], [op_put(b"z")])) == TxnDone(True, [PutDone()])


@pytest.mark.parametrize("one", FAILS, ids=range(len(FAILS)))
def test_a_compare_that_fails_runs_the_second_branch(one: Compare) -> None:
    rig = of_three()
    assert run(rig, txn(9, [HOLDS[0], one], [op_put(b"z")])) == TxnDone(False, [])
    assert rig.machine.revision == 5
    assert run(rig, txn(9, [one], [], [op_put(b"z")])) == TxnDone(False, [PutDone()])
    assert rig.machine.revision == 6


def test_without_compares_the_first_branch_runs() -> None:
    rig = Rig()
    assert run(rig, txn(1)) == TxnDone(True, [])
    assert rig.machine.revision == 1


def test_all_compares_look_at_the_state_before_the_transaction_and_at_earlier_commands() -> None:
    rig = Rig()
    found = rig.write(
        put(1, b"a"),
        txn(2, [compare(b"a", version=1)], [op_put(b"a"), op_put(b"b")], [op_put(b"x")]),
        txn(3, [compare(b"a", range_end=b"c", mod_revision=3)], [op_delete(b"a")]),
    )
    assert [found[serial].txn for serial in (2, 3)] == [
        TxnDone(True, [PutDone(), PutDone()]),
        TxnDone(True, [DeleteDone(1)]),
    ]
    assert [found[serial].revision for serial in (1, 2, 3)] == [2, 3, 4]


# ---- operations


def test_a_transaction_is_one_revision_and_sub_numbers_its_changes_in_order() -> None:
    rig = of_three()
    responses(rig, op_put(b"z", b"9"), op_delete(b"b", b"d"), op_put(b"a", b"5"))
    assert rig.machine.revision == 6
    changes = [read_change(key, row) for key, row in rig.tables.scan(Table.CHANGES, change_key(6, 0))]
    assert [(change.kind.name, change.key, change.version) for change in changes] == [
        ("PUT", b"z", 1),
        ("DELETE", b"b", 0),
        ("DELETE", b"c", 0),
        ("PUT", b"a", 3),
    ]
    assert rig.reader.get(b"a") == KeyValue(b"a", b"5", 2, 6, 3)
    assert recount(rig.tables) == read_sums(rig.tables)


def test_operations_see_what_those_before_them_wrote() -> None:
    rig = of_three()
    everything = op_range(b"a", b"\x00")
    put_b, deleted, found_b, found, nothing = responses(
        rig,
        op_put(b"bb", b"new", prev_kv=True),
        op_delete(b"a", b"b", prev_kv=True),
        op_range(b"bb"),
        everything,
        op_range(b"a"),
    )
    assert (put_b, deleted) == (PutDone(), DeleteDone(1, [KeyValue(b"a", b"4", 2, 5, 2)]))
    new = KeyValue(b"bb", b"new", 6, 6, 1)
    assert found_b == RangeDone([new], False, 1)
    assert found == RangeDone(
        [KeyValue(b"b", b"2", 3, 3, 1), new, KeyValue(b"c", b"3", 4, 4, 1, 7)], False, 3
    )
    assert nothing == RangeDone([], False, 0)


def test_a_range_merges_all_that_was_written_in_whatever_order() -> None:
    rig = of_three()
    found = responses(
        rig,
        op_put(b"x"),
        op_delete(b"b", b"d"),
        op_put(b"e"),
        op_put(b"Z"),
        op_range(b"A", b"\x00", keys_only=True),
    )[-1]
    assert isinstance(found, RangeDone)
    assert [pair.key for pair in found.kvs] == [b"Z", b"a", b"e", b"x"]


def test_a_put_and_a_delete_of_one_transaction_return_the_pairs_of_before() -> None:
    rig = of_three()
    assert responses(
        rig, op_put(b"a", prev_kv=True), op_delete(b"b", prev_kv=True), op_delete(b"b", b"c", prev_kv=True)
    ) == [
        PutDone(KeyValue(b"a", b"4", 2, 5, 2)),
        DeleteDone(1, [KeyValue(b"b", b"2", 3, 3, 1)]),
        DeleteDone(0),
    ]


def test_a_range_is_limited_counted_and_sorted() -> None:
    rig = of_three()
    a, b, c = KeyValue(b"a", b"4", 2, 5, 2), KeyValue(b"b", b"2", 3, 3, 1), KeyValue(b"c", b"3", 4, 4, 1, 7)
    bare = [KeyValue(b"a", b"", 2, 5, 2), KeyValue(b"b", b"", 3, 3, 1)]
    assert responses(
        rig,
        op_range(b"a", b"\x00", limit=2),
        op_range(b"a", b"\x00", limit=3),
        op_range(b"a", b"\x00", count_only=True, limit=1),
        op_range(b"a", b"c", keys_only=True),
        op_range(b"a", b"\x00", sort_order=2),
        op_range(b"a", b"\x00", sort_order=2, sort_target=1, limit=1),
        op_range(b"a", b"\x00", sort_target=3),
        op_range(b"a", b"\x00", sort_order=1, sort_target=4, limit=2),
        op_range(b"a", b"\x00", sort_order=1),
    ) == [
        RangeDone([a, b], True, 3),
        RangeDone([a, b, c], False, 3),
        RangeDone([], False, 3),
        RangeDone(bare, False, 2),
        RangeDone([c, b, a], False, 3),
        RangeDone([a], True, 3),
        RangeDone([b, c, a], False, 3),
        RangeDone([b, c], True, 3),
        RangeDone([a, b, c], False, 3),
    ]


def test_a_sort_sees_the_values_that_the_transaction_wrote() -> None:
    rig = of_three()
    _, found = responses(rig, op_put(b"b", b"9"), op_range(b"a", b"d", sort_order=2, sort_target=4, limit=2))
    assert isinstance(found, RangeDone)
    assert [(pair.key, pair.value) for pair in found.kvs] == [(b"b", b"9"), (b"a", b"4")]


def test_a_range_of_the_past_sees_nothing_of_the_transaction_but_all_of_the_batch() -> None:
    rig = of_three()
    found = rig.write(
        put(1, b"a", b"5"),
        txn(2, (), [op_delete(b"a", b"\x00"), op_range(b"a", b"c", revision=6), op_range(b"a", revision=2)]),
    )[2].txn
    assert found is not None
    assert found.responses[1:] == [
        RangeDone([KeyValue(b"a", b"5", 2, 6, 3), KeyValue(b"b", b"2", 3, 3, 1)], False, 2),
        RangeDone([KeyValue(b"a", b"1", 2, 2, 1)], False, 1),
    ]


def test_a_transaction_that_only_reads_or_deletes_nothing_makes_no_revision() -> None:
    rig = of_three()
    changes = rig.tables.count(Table.CHANGES)
    assert responses(rig, op_range(b"a", count_only=True), op_delete(b"x", b"y"), op_delete(b"x")) == [
        RangeDone([], False, 1),
        DeleteDone(0),
        DeleteDone(0),
    ]
    assert (rig.machine.revision, rig.tables.count(Table.CHANGES)) == (5, changes)


def test_a_put_in_a_transaction_moves_a_key_between_leases() -> None:
    rig = of_three()
    rig.write(grant(1, 8))
    responses(rig, op_put(b"a", lease=7), op_put(b"c", lease=8), op_put(b"b"))
    reader = rig.reader
    assert (reader.lease_keys(7, 100), reader.lease_keys(8, 100)) == ([b"a"], [b"c"])
    responses(rig, op_delete(b"a"), op_put(b"c"))
    assert rig.hot_keys(b"K") == []


# ---- refusals


def refused(rig: Rig, command: Command) -> Fault:
    """Run one command that is refused, among others in its batch; nothing of it may be left."""
    twin = Rig()
    twin.apply(*rig.log)
    others = [put(101, b"o1"), put(102, b"a", b"other"), put(103, b"c", lease=7), delete(104, b"b")]
    others += [put(105, b"o1", b"again")]
    found = rig.write(*others, command, put(106, b"o2"))
    fault = found[command.serial].fault
    assert fault is not None
    assert found[command.serial] == Answer(command.serial, found[105].revision, fault)
    twin.write(*others, put(106, b"o2"))
    mine, other = rig.tables.dump(), twin.tables.dump()
    # The digest tells them apart: the answers do. Nothing else may.
    assert mine["HOT"].pop(b"M") != other["HOT"].pop(b"M")
    assert mine == other
    assert rig.machine.revision == twin.machine.revision
    assert recount(rig.tables) == read_sums(rig.tables)
    rig.reload()
    assert rig.machine.lease_count == twin.machine.lease_count
    return fault


def test_a_put_with_an_unknown_lease_refuses_the_transaction_before_anything_is_done() -> None:
    rig = of_three()
    command = txn(9, (), [op_put(b"z"), op_range(b"a", revision=99), op_put(b"y", lease=9)])
    fault = refused(rig, command)
    assert (fault.code, fault.field) == (Code.LEASE_NOT_FOUND, "lease")


def test_a_range_at_a_revision_that_is_not_there_refuses_the_transaction() -> None:
    rig = of_three()
    rig.write(compact(1, 3))
    for revision, valid in ((99, False), (2, False), (3, True), (5, True)):
        command = txn(9, (), [op_range(b"a", b"\x00", revision=revision)])
        found = rig.write(command)[9]
        assert (found.fault is None) == valid
        if found.fault is not None:
            assert (found.fault.code, found.fault.field) == (Code.OUT_OF_RANGE, "revision")
            refused(rig, txn(9, (), [op_put(b"a"), op_delete(b"b"), op_range(b"a", revision=revision)]))


def test_faults_of_the_branch_that_does_not_run_do_not_matter() -> None:
    rig = of_three()
    bad = [op_put(b"z", lease=99), op_range(b"a", revision=99)]
    assert run(rig, txn(9, [], [op_range(b"x")], bad)) == TxnDone(True, [RangeDone([], False, 0)])
    assert run(rig, txn(9, [compare(b"x", version=1)], bad, [])) == TxnDone(False, [])


WRITES = [
    op_put(b"a", b"new", lease=7),
    op_put(b"new"),
    op_delete(b"c"),
    op_delete(b"b"),
    op_put(b"o1", lease=7),
]


def test_a_lease_that_is_full_undoes_the_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LEASE_KEYS_MAX", 2)
    fault = refused(of_three(), txn(9, (), [*WRITES[:2], op_put(b"b"), op_put(b"more", lease=7)]))
    assert (fault.code, fault.field) == (Code.RESOURCE_EXHAUSTED, "lease")
    assert fault.message == "lease 7 holds 2 keys, limit 2; use another one for more keys"


def test_what_a_refused_transaction_wrote_is_not_in_the_digest() -> None:
    digests = []
    for value in (b"one", b"other"):
        rig = of_three()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(leases, "LEASE_KEYS_MAX", 1)
            assert fault_of(rig, txn(9, (), [op_put(b"a", value), op_put(b"x", lease=7)])).field == "lease"
        digests.append(rig.machine.digest)
    assert digests[0] == digests[1]


@pytest.mark.parametrize("looks_at_tables", [False, True])
def test_pairs_that_are_too_large_undo_the_transaction(
    monkeypatch: pytest.MonkeyPatch, looks_at_tables: bool
) -> None:
    monkeypatch.setattr(budget, "ANSWERS_BYTES_MAX", 1_400)
    rig = of_three()
    rig.write(put(1, b"large", b"." * 900))
    range_end = b"m" if looks_at_tables else b""
    for last in (op_put(b"large", prev_kv=True), op_delete(b"large", range_end, prev_kv=True)):
        fault = refused(rig, txn(9, (), [*WRITES, op_range(b"large"), last]))
        assert (fault.code, fault.field) == (Code.RESOURCE_EXHAUSTED, "prev_kv")
    for last in (op_range(b"large", range_end), op_range(b"a", b"\x00")):
        fault = refused(rig, txn(9, (), [*WRITES, op_range(b"large"), last]))
        assert (fault.code, fault.field) == (Code.RESOURCE_EXHAUSTED, "range")


def test_ranges_that_hold_too_many_keys_undo_the_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "RANGE_DELETE_KEYS_MAX", 3)
    monkeypatch.setattr(budget, "TXN_READ_KEYS_MAX", 3)
    rig = of_three()
    rig.write(put(1, b"k1"), put(2, b"k2"), put(3, b"k3"), put(4, b"k4"))
    for last in (op_delete(b"k", b"l"), op_range(b"k", b"l", limit=1), op_range(b"k", b"l", revision=9)):
        fault = refused(rig, txn(9, (), [*WRITES, last]))
        assert (fault.code, fault.field) == (Code.RESOURCE_EXHAUSTED, "range_end")
    assert fault_of(rig, txn(9, [compare(b"k", ">", range_end=b"l", version=0)])).field == "range_end"


def test_all_transactions_of_a_batch_share_one_allowance_of_keys_to_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(budget, "TXN_READ_KEYS_MAX", 3)
    rig = of_three()
    found = rig.write(
        txn(1, [compare(b"a", ">", range_end=b"c", version=0)]),
        txn(2, (), [op_range(b"a"), op_range(b"b"), op_range(b"c")]),
        txn(3, (), [op_range(b"a", b"c", count_only=True)]),
    )
    # Single keys don't count, and what was refused does.
    assert codes(found) == {1: None, 2: None, 3: Code.RESOURCE_EXHAUSTED}
    assert found[3].fault == Fault(
        Code.RESOURCE_EXHAUSTED,
        "the ranges that the transactions of a batch read or compare may look at 3 keys, and this one "
        "looks at more than the 1 left; read it outside of a transaction, or in parts",
        "range_end",
    )
    everything = batch(txn(1, (), [op_range(b"a", b"\x00")]))
    assert [codes(answers(result)) for result in rig.run(everything, everything)] == [{1: None}] * 2


def test_each_command_has_its_own_allowance_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "ANSWERS_BYTES_MAX", 1_000)
    monkeypatch.setattr(batch_module, "BATCH_ANSWERS_BYTES_MAX", 1_000)
    rig = of_three()
    rig.write(put(1, b"large", b"." * 800))
    found = rig.write(txn(1, (), [op_range(b"large")]), txn(2, (), [op_range(b"large")]), put(3, b"z"))
    assert codes(found) == {1: None, 2: None, 3: Code.RESOURCE_EXHAUSTED}


def test_an_operation_counts_for_the_answers_even_if_it_finds_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch_module, "BATCH_ANSWERS_BYTES_MAX", 500)
    found = Rig().write(txn(1, (), [op_range(b"x")] * 20), put(2, b"z"))
    assert codes(found) == {1: None, 2: Code.RESOURCE_EXHAUSTED}


def test_what_transactions_read_counts_for_the_answers_of_their_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch_module, "BATCH_ANSWERS_BYTES_MAX", 500)
    rig = of_three()
    sid = rig.register()
    rig.write(put(1, b"large", b"." * 500))
    reads = txn(1, (), [op_range(b"large")])
    assert codes(rig.write(reads, put(2, b"z"), session=sid)) == {1: None, 2: Code.WINDOW}
    # Repeated, they count again.
    again = rig.write(reads, put(2, b"z"), session=sid)
    assert codes(again) == {1: None, 2: Code.WINDOW}
    assert answer_bytes(again[1]) > 500
    assert codes(rig.write(put(2, b"z"), session=sid)) == {2: None}


@pytest.mark.parametrize("keys_at_once_max", [0, 3, 7, 8, 9])
def test_transactions_that_look_at_many_keys_are_given_up_and_end_the_same(keys_at_once_max: int) -> None:
    rig, twin = of_three(), of_three()
    commands = [
        txn(1, [compare(b"a", ">", range_end=b"\x00", version=0)], [op_put(b"d"), op_range(b"a", b"c")]),
        txn(2, (), [op_delete(b"c", b"\x00")]),
    ]
    long = entry(2, batch(*commands))
    before = rig.tables.dump()
    # Seven keys; four compares and operations, which count like one; the bytes of two values.
    if keys_at_once_max < 9:
        with pytest.raises(LongApply), rig.tables.write() as tables:
            rig.machine.apply(tables, [long], keys_at_once_max=keys_at_once_max)
        assert rig.tables.dump() == before
        rig.reload()
        results = rig.apply(long)
    else:
        with rig.tables.write() as tables:
            results = rig.machine.apply(tables, [long], keys_at_once_max=keys_at_once_max)
    assert results == twin.apply(long)
    assert rig.tables.dump() == twin.tables.dump()


@pytest.mark.parametrize(
    "looks",
    [
        txn(1, [compare(b"large", value=b"x")]),
        txn(1, (), [op_range(b"large", b"m", sort_target=4, keys_only=True)]),
        txn(1, (), [op_range(b"large", b"m", keys_only=True, revision=6)]),
    ],
    ids=["compared", "sorted", "past"],
)
def test_large_values_that_are_only_looked_at_make_an_apply_long(looks: Command) -> None:
    rig = of_three()
    rig.write(put(1, b"large", b"." * 20_000))
    rig.write(put(1, b"large", b"later"), put(2, b"large", b"." * 20_000))
    long = entry(4, batch(looks))
    with pytest.raises(LongApply), rig.tables.write() as tables:
        rig.machine.apply(tables, [long], keys_at_once_max=3)
    rig.reload()
    with rig.tables.write() as tables:
        rig.machine.apply(tables, [long], keys_at_once_max=20)


def test_a_transaction_is_answered_again_from_the_session() -> None:
    rig = of_three()
    sid = rig.register()
    command = txn(
        1,
        [compare(b"a", version=2)],
        [op_put(b"a", prev_kv=True), op_delete(b"b", b"d", prev_kv=True), op_range(b"a")],
    )
    found = rig.write(command, session=sid)
    assert rig.write(command, session=sid) == found
    rig.reload()
    assert rig.write(command, txn(2, (), [op_put(b"z", lease=99)]), session=sid)[1] == found[1]
    assert codes(rig.write(txn(2, (), [op_put(b"z")]), session=sid)) == {2: Code.LEASE_NOT_FOUND}
