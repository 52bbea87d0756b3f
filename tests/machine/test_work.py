"""How large the answers to a batch can get, and how much of the state it can have looked at."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftstate.errors import InvariantError
from raftstate.machine import batch as batch_module
from raftstate.machine import budget, step
from raftstate.machine.budget import pair_bytes
from raftstate.machine.tables import Table
from raftstate.machine.types import (
    ANSWERS_BYTES_MAX,
    BATCH_ANSWERS_BYTES_MAX,
    KEY_BYTES_MAX,
    RANGE_DELETE_KEYS_MAX,
    SESSION_BYTES_MAX,
    VALUE_BYTES_MAX,
    Answer,
    BatchResult,
    Code,
    ItemResult,
    KeyValue,
    LongApply,
    SessionId,
)
from raftstate.pb.v1.pipeline_pb2 import Command
from tests.machine.rig import (
    Rig,
    answers,
    batch,
    codes,
    delete,
    entry,
    op_delete,
    op_range,
    put,
    txn,
)

MIB = 1 << 20
RESULT_BYTES_MAX = 22 * MIB
"""What a frame between peers must have room for."""


def encoded_bytes(result: ItemResult) -> int:
    assert isinstance(result, BatchResult), result
    return len(msgspec.msgpack.encode(result))


def fill(rig: Rig, prefix: bytes, pairs_bytes: int) -> None:
    """Put keys under a prefix whose previous pairs together come to just under so many bytes."""
    number = 0
    while pairs_bytes > 1_000:
        value = bytes(min(MIB - 1_000, pairs_bytes - 1_000))
        key = b"%s/%02d" % (prefix, number)
        rig.write(put(1, key, value))
        pairs_bytes -= pair_bytes(KeyValue(key, value, 1, 1, 1))
        number += 1


def test_the_limits_leave_room_for_a_pair_of_the_largest_key_and_value() -> None:
    largest = KeyValue(bytes(KEY_BYTES_MAX), bytes(VALUE_BYTES_MAX), 1, 1, 1)
    assert pair_bytes(largest) <= ANSWERS_BYTES_MAX
    # Each limit may be overrun by one command; over that of a session, the one at the floor still runs.
    assert SESSION_BYTES_MAX + 2 * ANSWERS_BYTES_MAX < RESULT_BYTES_MAX
    assert BATCH_ANSWERS_BYTES_MAX + ANSWERS_BYTES_MAX < RESULT_BYTES_MAX


@pytest.mark.parametrize("key_bytes", [1, 31, 255, 256, KEY_BYTES_MAX])
@pytest.mark.parametrize("value_bytes", [0, 255, 65_536])
def test_a_pair_is_counted_with_all_that_its_encoding_adds(key_bytes: int, value_bytes: int) -> None:
    highest = (1 << 64) - 1
    pair = KeyValue(bytes(key_bytes), bytes(value_bytes), highest, highest, highest, highest)
    assert len(msgspec.msgpack.encode(pair)) <= pair_bytes(pair)


def test_of_two_range_deletes_with_large_pairs_the_second_is_not_run() -> None:
    rig = Rig()
    fill(rig, b"a", 9 * MIB)
    fill(rig, b"b", 9 * MIB)
    heavy = (delete(1, b"a", b"b", prev_kv=True), delete(2, b"b", b"c", prev_kv=True))
    [result] = rig.run(batch(*heavy))
    assert codes(answers(result)) == {1: None, 2: Code.RESOURCE_EXHAUSTED}
    assert 8 * MIB < encoded_bytes(result) < RESULT_BYTES_MAX
    assert rig.tables.count(Table.INDEX) == 10


def test_the_most_that_a_session_can_hold_comes_back_in_one_result() -> None:
    rig = Rig()
    sid = rig.register()
    fill(rig, b"a", 3 * MIB - 2_000)
    fill(rig, b"b", 9 * MIB)
    fill(rig, b"c", 9 * MIB)
    heavy = [
        delete(2, b"a", b"b", prev_kv=True),
        delete(3, b"b", b"c", prev_kv=True),
        delete(1, b"c", b"d", prev_kv=True),
    ]
    for command in heavy:
        assert codes(rig.write(command, session=sid)) == {command.serial: None}
    others = [put(serial, b"k") for serial in range(4, 500)]
    [result] = rig.run(batch(*heavy, *others, session=sid))
    found = codes(answers(result))
    assert {serial for serial, code in found.items() if code is None} == {1, 2, 3}
    assert set(found.values()) == {None, Code.WINDOW}
    assert 20 * MIB < encoded_bytes(result) < RESULT_BYTES_MAX


def test_many_tiny_pairs_are_counted_with_their_overhead() -> None:
    rig = Rig()
    keys = [b"%05d" % number for number in range(20_000)]
    for start in range(0, len(keys), 500):
        rig.write(*(put(n, key, b"") for n, key in enumerate(keys[start : start + 500], 1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "COMMAND_PAIRS_MAX", len(keys))
        patch.setattr(budget, "ANSWERS_BYTES_MAX", len(keys) * (5 + 64) - 1)
        assert codes(rig.write(delete(1, b"0", b"9", prev_kv=True))) == {1: Code.RESOURCE_EXHAUSTED}
        patch.setattr(budget, "ANSWERS_BYTES_MAX", ANSWERS_BYTES_MAX)
        [result] = rig.run(batch(delete(1, b"0", b"9", prev_kv=True)))
    assert answers(result)[1].deleted == len(keys)
    assert encoded_bytes(result) <= len(keys) * (5 + 64)


KEYS = [b"a", b"b", b"c" * 100, b"d" * KEY_BYTES_MAX]
serials = st.integers(1, 12)
puts = st.builds(
    put,
    serials,
    st.sampled_from(KEYS),
    (st.integers(0, 8 << 10) | st.just(8 << 10)).map(bytes),
    prev_kv=st.sampled_from([True, True, False]),
)
deletes = st.builds(
    delete, serials, st.sampled_from(KEYS), st.just(b"") | st.just(b"\x00"), prev_kv=st.just(True)
)
txns = st.builds(
    lambda serial, operations: txn(serial, (), operations),
    serials,
    st.lists(
        st.builds(op_range, st.sampled_from(KEYS), st.sampled_from([b"", b"\x00"]), limit=st.integers(0, 2))
        | st.just(op_delete(KEYS[0], b"\x00", prev_kv=True)),
        max_size=3,
    ),
)
batches = st.tuples(
    st.booleans(),
    st.lists(puts | puts | deletes | txns, max_size=12, unique_by=lambda command: command.serial),
    st.integers(0, 6),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(batches, max_size=12))
def test_no_program_makes_a_result_larger_than_a_frame_holds(
    program: list[tuple[bool, list[Command], int]],
) -> None:
    # All sizes are a 1024th of the real ones.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "ANSWERS_BYTES_MAX", ANSWERS_BYTES_MAX >> 10)
        patch.setattr(batch_module, "BATCH_ANSWERS_BYTES_MAX", BATCH_ANSWERS_BYTES_MAX >> 10)
        patch.setattr(batch_module, "SESSION_BYTES_MAX", SESSION_BYTES_MAX >> 10)
        rig = Rig()
        sid = rig.register()
        everything = [put(serial, b"a") for serial in range(1, 13)]
        for in_session, commands, floor in program:
            item = batch(*commands, session=sid if in_session else None, floor=floor if in_session else 0)
            for each in (item, batch(*everything, session=sid)) if in_session else (item,):
                [result] = rig.run(each)
                pairs = [(answer.prev_kvs, answer.txn) for answer in answers(result).values()]
                assert len(msgspec.msgpack.encode(pairs)) < RESULT_BYTES_MAX >> 10


# ---- how much is looked at


def rig_of_keys(count: int) -> Rig:
    rig = Rig()
    rig.write(*(put(n, b"k%02d" % n) for n in range(count)))
    return rig


def test_all_range_deletes_of_a_batch_share_one_allowance_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    assert RANGE_DELETE_KEYS_MAX == 100_000
    monkeypatch.setattr(budget, "RANGE_DELETE_KEYS_MAX", 10)
    rig = rig_of_keys(20)
    sid = rig.register()
    commands = (
        delete(1, b"k00", b"k04"),
        delete(2, b"k04", b"k11"),
        delete(3, b"k04", b"k05"),
        delete(4, b"x", b"y"),
        delete(5, b"k04"),
    )
    found = rig.write(*commands, session=sid)
    assert codes(found) == {
        1: None,
        2: Code.RESOURCE_EXHAUSTED,
        3: Code.RESOURCE_EXHAUSTED,
        4: None,
        5: None,
    }
    assert [found[serial].deleted for serial in range(1, 6)] == [4, 0, 0, 0, 1]
    # The refusals are stored; another batch has its own allowance.
    assert rig.write(*commands, session=sid) == found
    assert codes(rig.write(delete(6, b"k05", b"k15"), session=sid)) == {6: None}


@pytest.mark.parametrize("together", [True, False])
def test_each_batch_has_its_own_allowance_however_entries_are_grouped(
    monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    monkeypatch.setattr(budget, "RANGE_DELETE_KEYS_MAX", 10)
    monkeypatch.setattr(batch_module, "BATCH_ANSWERS_BYTES_MAX", 500)
    rig = rig_of_keys(20)
    entries = [
        entry(2 + number, batch(delete(1, b"k", b"k%02d" % (10 + 10 * number), prev_kv=True)))
        for number in range(2)
    ]
    results = rig.apply(*entries) if together else [rig.apply(each)[0] for each in entries]
    assert [answers(result.items[0])[1].deleted for result in results] == [10, 10]


def test_a_range_is_scanned_no_further_than_the_allowance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "RANGE_DELETE_KEYS_MAX", 10)
    rig = rig_of_keys(20)
    scanned = 0
    read = step.read_index

    def count(key: bytes, row: bytes) -> step.IndexRow:
        nonlocal scanned
        scanned += 1
        return read(key, row)

    monkeypatch.setattr(step, "read_index", count)
    rig.write(*(delete(n, b"k", b"l") for n in range(1, 101)))
    # One row more than is left each time: eleven, and then one for each of the others.
    assert scanned == 11 + 99


def test_pairs_that_were_read_for_a_refused_delete_count_for_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(budget, "ANSWERS_BYTES_MAX", 1_000)
    monkeypatch.setattr(batch_module, "BATCH_ANSWERS_BYTES_MAX", 900)
    rig = rig_of_keys(20)
    sid = rig.register()
    found = rig.write(delete(1, b"k", b"l", prev_kv=True), put(2, b"z"), session=sid)
    assert codes(found) == {1: Code.RESOURCE_EXHAUSTED, 2: Code.WINDOW}
    # The first is a stored answer; the second was not run.
    assert rig.write(delete(1, b"k", b"l", prev_kv=True), put(2, b"z"), session=sid) == {
        1: found[1],
        2: Answer(2, 22),
    }


def long_program(rig: Rig, sid: SessionId) -> list[tuple[Command, ...]]:
    return [
        (put(1, b"k00", b"again"), delete(2, b"k00", b"k05", prev_kv=True)),
        (delete(3, b"k05", b"k10"), put(4, b"k07")),
        (delete(5, b"k07"), delete(6, b"x", b"y")),
    ]


@pytest.mark.parametrize("keys_at_once_max", [0, 4, 5, 9])
def test_a_long_apply_is_given_up_and_ends_the_same_without_a_limit(keys_at_once_max: int) -> None:
    rig, other = rig_of_keys(20), rig_of_keys(20)
    sid = rig.register()
    assert other.register() == sid
    entries = [
        entry(3 + number, batch(*commands, session=sid))
        for number, commands in enumerate(long_program(rig, sid))
    ]
    before = rig.tables.dump()
    with pytest.raises(LongApply), rig.tables.write() as tables:
        rig.machine.apply(tables, entries, keys_at_once_max=keys_at_once_max)
    assert rig.tables.dump() == before
    with pytest.raises(InvariantError):
        rig.machine.apply(rig.tables, entries)
    rig.reload()
    assert rig.apply(*entries) == other.apply(*entries)
    assert rig.tables.dump() == other.tables.dump()


def test_within_its_limit_an_apply_gives_what_it_gives_without_one() -> None:
    rig, other = rig_of_keys(20), rig_of_keys(20)
    sid = rig.register()
    assert other.register() == sid
    entries = [
        entry(3 + number, batch(*commands, session=sid))
        for number, commands in enumerate(long_program(rig, sid))
    ]
    # Ten keys in all: the limit is on the call, however many ranges share them.
    with rig.tables.write() as tables:
        results = rig.machine.apply(tables, entries, keys_at_once_max=10)
    assert results == other.apply(*entries)
    assert rig.tables.dump() == other.tables.dump()
