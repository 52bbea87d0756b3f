"""Erase: a key and its past, gone from every row; what else goes with them, and what stays."""

from __future__ import annotations

import pytest

from chaos.sim.memory_tables import MemoryTables
from raftstate.errors import DataLossError, OutOfRangeError
from raftstate.machine.command import check
from raftstate.machine.digest import recount
from raftstate.machine.history import changes_from
from raftstate.machine.layout import ChangeKind, change_key, change_row, read_sums
from raftstate.machine.machine import Machine
from raftstate.machine.tables import Table
from raftstate.machine.types import Answer, Cancel, Code, LongApply, SessionId
from raftstate.machine.verify import check_state
from tests.machine.rig import (
    CLUSTER,
    MEMBERS,
    Rig,
    batch,
    compact,
    delete,
    entry,
    erase,
    grant,
    op_delete,
    op_put,
    op_range,
    put,
    txn,
)

MARK = b"7Yq-secret-"
KEY = MARK + b"key"
LONG_KEY = MARK * 10
"""Over three groups of a milestone's key, which splits it."""


def sweep_all(rig: Rig) -> None:
    while rig.machine.sweep_pending:
        with rig.tables.write() as tables:
            rig.machine.sweep(tables, 100)


def rows_with(tables: MemoryTables, wanted: bytes = MARK) -> list[tuple[str, bytes]]:
    """Rows that hold these bytes, in their key or their value."""
    return [
        (table.name, key)
        for table in Table
        for key, row in tables.scan(table)
        if wanted in key or wanted in row
    ]


def test_no_row_holds_the_key_or_its_values_once_it_is_swept() -> None:
    rig = Rig()
    session = rig.register()
    rig.write(grant(1, 5))
    for key in (KEY, LONG_KEY):
        for round in range(40):
            rig.write(put(1, key, MARK + b"value %d" % round, lease=5), put(2, b"other", b"kept"))
        rig.write(delete(1, key))
        rig.write(put(1, key, MARK, lease=5))
    rig.write(
        put(1, KEY, MARK * 500, prev_kv=True),
        txn(2, [], [op_range(b"\x00", b"\x00"), op_put(b"other", b"kept", prev_kv=True)]),
        txn(3, [], [op_delete(LONG_KEY, prev_kv=True)]),
        session=session,
    )
    assert {name for name, _ in rows_with(rig.tables)} == {"CHANGES", "INDEX", "MILESTONES", "HOT"}
    rig.write(erase(1, KEY), erase(2, LONG_KEY))
    sweep_all(rig)
    assert rows_with(rig.tables) == []
    assert rig.reader.lease_keys(5, 1_000) == []
    assert rig.machine.lease_key_count(5) == 0
    assert [pair.key for pair in rig.reader.range(b"\x00", None).kvs] == [b"other"]
    assert recount(rig.tables) == read_sums(rig.tables)


def test_the_answer_says_whether_the_key_was_there_and_to_where_the_history_is_forgotten() -> None:
    rig = Rig()
    rig.write(put(1, KEY), put(2, b"other"))  # 2, 3
    assert rig.write(erase(1, KEY)) == {1: Answer(1, 5, deleted=1)}
    assert (rig.machine.revision, rig.machine.compacted_revision) == (5, 5)
    assert rig.write(erase(1, KEY)) == {1: Answer(1, 6)}
    assert rig.machine.compacted_revision == 6


def test_its_past_and_that_of_all_others_is_out_of_range_at_once() -> None:
    rig = Rig()
    rig.write(put(1, KEY), put(2, b"other"), erase(3, KEY))
    for revision in (1, 2, 4):
        with pytest.raises(OutOfRangeError):
            rig.reader.get(KEY, revision=revision)
    assert rig.reader.get(KEY, revision=5) is None
    assert rig.reader.get(b"other", revision=5) == rig.reader.get(b"other")


def test_a_key_that_was_deleted_before_is_erased_with_its_deletion() -> None:
    rig = Rig()
    rig.write(put(1, KEY, MARK), delete(2, KEY))
    assert rig.write(erase(1, KEY))[1].deleted == 0
    sweep_all(rig)
    assert rows_with(rig.tables) == []


def test_it_may_be_put_again_and_begins_anew() -> None:
    rig = Rig()
    rig.write(put(1, KEY, b"old"), erase(2, KEY), put(3, KEY, b"new"))
    sweep_all(rig)
    pair = rig.reader.get(KEY)
    assert pair is not None
    assert (pair.value, pair.version, pair.create_revision) == (b"new", 1, 5)


def test_the_revision_behind_it_holds_no_key_and_goes_with_the_next_compaction() -> None:
    rig = Rig()
    rig.write(put(1, KEY), erase(2, KEY), put(3, b"a"), put(4, b"b"))
    sweep_all(rig)
    changes = [(at, change.kind, change.key) for at, _, change in changes_from(rig.tables, 4)]
    assert changes == [(4, ChangeKind.NOTHING, b""), (5, ChangeKind.PUT, b"a"), (6, ChangeKind.PUT, b"b")]
    rig.write(compact(1, 5))
    sweep_all(rig)
    assert [at for at, _, _ in changes_from(rig.tables, 5)] == [5, 6]
    assert rig.tables.count(Table.CHANGES) == 2


def test_sweeps_that_began_before_it_remove_its_rows_as_well() -> None:
    rig = Rig()
    for round in range(20):
        rig.write(put(1, KEY, MARK + b"%d" % round), put(2, b"other"))
    rig.write(compact(1, 30))
    with rig.tables.write() as tables:
        rig.machine.sweep(tables, 5)
    rig.write(erase(1, KEY))
    with rig.tables.write() as tables:
        rig.machine.sweep(tables, 5)
    rig.reload()
    sweep_all(rig)
    assert rows_with(rig.tables) == []


# -- stored answers


def stale(answer: Answer) -> bool:
    return answer.fault is not None and answer.fault.code is Code.STALE and not answer.prev_kvs


def test_answers_that_hold_its_pairs_are_forgotten_and_all_others_kept() -> None:
    rig = Rig()
    session = rig.register()
    rig.write(put(1, KEY, b"a"), put(2, b"other", b"a"))
    commands = (
        put(1, KEY, b"b", prev_kv=True),
        put(2, b"other", b"b", prev_kv=True),
        txn(3, [], [op_range(b"other")]),
        txn(4, [], [op_range(b"\x00", b"\x00")]),
        txn(5, [], [op_put(KEY, b"c", prev_kv=True)]),
        delete(6, KEY, b"\xff", prev_kv=True),
        put(7, KEY, b"d"),
    )
    first = rig.write(*commands, session=session)
    rig.write(erase(1, KEY))
    for _ in range(2):
        again = rig.write(*commands, session=session)
        assert {serial for serial, answer in again.items() if stale(answer)} == {1, 4, 5, 6}
        assert {serial: again[serial] for serial in (2, 3, 7)} == {n: first[n] for n in (2, 3, 7)}
        rig.reload()
    assert rig.reader.get(KEY) is None  # none of them ran again


def test_answers_of_its_own_batch_and_entry_are_forgotten_too() -> None:
    rig = Rig()
    session = rig.register()
    commands = (put(1, KEY, MARK), put(2, KEY, MARK, prev_kv=True), erase(3, KEY), put(4, KEY, b"new"))
    found = rig.write(*commands, session=session)
    assert found[2].prev_kvs[0].value == MARK  # as it was, this once
    sweep_all(rig)
    assert [key for table, key in rows_with(rig.tables, KEY) if table == "HOT"] == []
    again = rig.write(*commands, session=session)
    assert stale(again[2])
    assert {**again, 2: found[2]} == found
    other = rig.register(8)
    before = batch(put(1, KEY, b"x", prev_kv=True), session=other)
    rig.run(before, batch(erase(1, KEY)))
    assert [key for table, key in rows_with(rig.tables, KEY) if table == "HOT"] == []
    rig.reload()
    assert stale(rig.write(put(1, KEY, b"x", prev_kv=True), session=other)[1])


def test_answers_below_the_floor_that_share_a_row_with_one_above_are_forgotten_too() -> None:
    rig = Rig()
    session = rig.register()
    rig.write(put(1, KEY, MARK))
    rig.write(put(1, KEY, b"x", prev_kv=True), put(2, b"other"), session=session)
    rig.write(put(3, b"other"), session=session, floor=2)
    assert MARK in b"".join(row for _, row in rig.tables.scan(Table.HOT))
    rig.write(erase(1, KEY))
    assert MARK not in b"".join(row for _, row in rig.tables.scan(Table.HOT))
    assert rig.write(put(2, b"other"), session=session, floor=2)[2].fault is None


def test_what_a_session_holds_counts_the_same_after_a_restart() -> None:
    rig = Rig()
    session = rig.register()
    rig.write(put(1, KEY, b"v" * 10_000))
    rig.write(put(1, KEY, b"x", prev_kv=True), txn(2, [], [op_range(KEY)]), session=session)
    rig.write(erase(1, KEY))
    counted = held(rig, session)
    rig.reload()
    assert held(rig, session) == counted
    assert counted[0] < 1_000


def held(rig: Rig, id: SessionId) -> tuple[int, list[tuple[int, bytes, int]], set[bytes]]:
    session = rig.machine._sessions.find(id)
    assert session is not None
    return session.stored_bytes, sorted(session.rows), session.rows_with_pairs


def test_a_cancel_of_an_answer_that_is_forgotten_says_so() -> None:
    rig = Rig()
    session = rig.register()
    rig.write(put(1, KEY))
    rig.write(put(1, KEY, b"x", prev_kv=True), session=session)
    rig.write(erase(1, KEY))
    [result] = rig.run(Cancel(session, 1))
    assert stale(result.answer)  # type: ignore[union-attr, arg-type]


# -- on all nodes alike


def test_a_repetition_in_its_session_gets_the_first_answer_and_erases_nothing() -> None:
    rig = Rig()
    session = rig.register()
    rig.write(put(1, KEY))
    first = rig.write(erase(1, KEY), session=session)
    index = rig.machine.last_erase_index
    rig.write(put(1, KEY, b"new"))
    rig.reload()
    assert rig.write(erase(1, KEY), session=session) == first
    assert rig.reader.get(KEY) is not None
    assert rig.machine.last_erase_index == index


def test_the_entry_of_the_last_one_is_kept() -> None:
    rig = Rig()
    assert rig.machine.last_erase_index == 0
    rig.write(put(1, KEY))
    rig.write(erase(1, b"not there"))
    index = rig.machine.applied_index
    rig.write(put(1, KEY))
    rig.reload()
    assert rig.machine.last_erase_index == index == 2


def test_the_digest_covers_what_became_of_stored_answers() -> None:
    digests = set()
    for prev_kv in (False, True):
        for key in (KEY, b"other"):
            rig = Rig()
            session = rig.register()
            rig.write(put(1, KEY), session=session)
            rig.write(put(2, KEY, prev_kv=prev_kv), session=session)
            rig.write(erase(1, key))
            digests.add(rig.machine.digest)
    assert len(digests) == 4


def test_it_needs_machine_version_3_and_a_key_within_bounds() -> None:
    assert check(erase(1, KEY), 3) is None
    for version in (1, 2):
        fault = check(erase(1, KEY), version)
        assert fault is not None
        assert (fault.code, fault.field) == (Code.UNIMPLEMENTED, "erase")
    for key in (b"", b"k" * 481):
        fault = check(erase(1, key), 3)
        assert fault is not None
        assert (fault.code, fault.field) == (Code.INVALID, "key")


def test_many_stored_answers_are_no_work_for_the_loop() -> None:
    rig = Rig()
    rig.write(put(1, KEY, b"v" * 100_000))
    for nonce in range(3):
        session = rig.register(nonce)
        rig.write(*(put(n, KEY, b"v" * 100_000, prev_kv=True) for n in range(1, 9)), session=session)
    last = entry(rig.machine.applied_index + 1, batch(erase(1, KEY)))
    before = rig.tables.dump()
    with pytest.raises(LongApply), rig.tables.write() as tables:
        rig.machine.apply(tables, [last], keys_at_once_max=200)
    assert rig.tables.dump() == before
    rig.reload()
    rig.apply(last)

    other = MemoryTables()
    Machine.bootstrap(other, CLUSTER, MEMBERS)
    machine = Machine(other)
    with other.write() as tables:
        machine.apply(tables, rig.log)
    assert (machine.digest, other.dump()) == (rig.machine.digest, rig.tables.dump())


def test_a_state_with_erasures_is_sound() -> None:
    rig = Rig()
    for round in range(40):
        rig.write(put(1, KEY, MARK + b"%d" % round), put(2, b"other"))
        if not round % 13:
            rig.write(erase(1, KEY))
            assert check_state(rig.tables).last_erase_index == rig.machine.last_erase_index
    sweep_all(rig)
    check_state(rig.tables)


@pytest.mark.parametrize("field", range(7))
def test_a_revision_that_changed_nothing_and_says_otherwise_is_damage(field: int) -> None:
    rig = Rig()
    rig.write(put(1, b"other"), erase(1 << 9, KEY))
    numbers = [0, 0, 0, 0, 0]  # create, version, lease, previous revision and sub
    key = b"k" if field == 5 else b""
    sub = 1 if field == 6 else 0
    if field < 4:
        numbers[field] = 1
    row_key = change_key(3, sub)
    row, _ = change_row(row_key, ChangeKind.NOTHING, key, b"", tuple(numbers[:3]), tuple(numbers[3:]))  # type: ignore[arg-type]
    rig.tables.put(Table.CHANGES, row_key, row)
    if field == 4:
        check_state(rig.tables)
    else:
        with pytest.raises(DataLossError, match=r"change 3\.\d can't be"):
            check_state(rig.tables)


def message_of(tables: MemoryTables) -> str:
    """What a check says of damage; nothing where it sees none."""
    try:
        check_state(tables)
    except DataLossError as error:
        return str(error)
    return ""


def test_no_message_names_a_key() -> None:
    rig = Rig()
    rig.write(grant(1, 5))
    rig.write(put(1, LONG_KEY, MARK), put(2, KEY, MARK, lease=5), delete(3, LONG_KEY))
    told = []
    for table in Table:
        for row_key, row in list(rig.tables.scan(table)):
            rig.tables.put(table, row_key, row[:-1] + bytes([row[-1] ^ 1]))
            told.append(message_of(rig.tables))
            rig.tables.delete(table, row_key)
            told.append(message_of(rig.tables))
            rig.tables.put(table, row_key, row)
    assert len(list(filter(None, told))) > 10
    assert not [each for each in told if MARK.decode() in each or MARK.hex() in each]
