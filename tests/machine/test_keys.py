"""Puts and deletes: what they leave behind, and the revisions that they make."""

from __future__ import annotations

import pytest

from raftstate.machine import budget, types
from raftstate.machine.layout import (
    Change,
    ChangeKind,
    change_key,
    milestone_key,
    read_change,
)
from raftstate.machine.tables import Table
from raftstate.machine.types import Answer, Code, Fault, KeyValue
from tests.machine.rig import Rig, delete, put


def change_at(rig: Rig, revision: int, sub: int = 0) -> Change:
    row_key = change_key(revision, sub)
    row = rig.tables.get(Table.CHANGES, row_key)
    assert row is not None
    return read_change(row_key, row)


def test_the_first_put_is_revision_2_and_each_command_of_a_batch_has_its_own() -> None:
    rig = Rig()
    assert rig.machine.revision == 1
    assert rig.write(put(1, b"a"), put(2, b"b"), put(3, b"a")) == {
        1: Answer(1, 2),
        2: Answer(2, 3),
        3: Answer(3, 4),
    }
    assert rig.machine.revision == rig.reader.revision == 4


def test_versions_count_from_creation_and_the_create_revision_stays() -> None:
    rig = Rig()
    rig.write(put(1, b"a", b"1"))
    rig.write(put(2, b"a", b"2"), put(3, b"a", b"3"))
    assert rig.reader.get(b"a") == KeyValue(b"a", b"3", create_revision=2, mod_revision=4, version=3)


def test_a_key_that_was_deleted_begins_anew() -> None:
    rig = Rig()
    rig.write(put(1, b"a"), put(2, b"a"))
    assert rig.write(delete(3, b"a")) == {3: Answer(3, 4, deleted=1)}
    assert rig.reader.get(b"a") is None
    assert rig.tables.count(Table.INDEX) == 0
    rig.write(put(4, b"a", b"again"))
    assert rig.reader.get(b"a") == KeyValue(b"a", b"again", create_revision=5, mod_revision=5, version=1)


@pytest.mark.parametrize("range_end", [b"", b"b", b"a", b"0"])
def test_a_delete_that_finds_nothing_makes_no_revision(range_end: bytes) -> None:
    rig = Rig()
    rig.write(put(1, b"x"))
    assert rig.write(delete(2, b"a", range_end)) == {2: Answer(2, 2)}
    assert rig.machine.revision == 2


def test_a_range_delete_is_one_revision_and_sub_numbers_its_changes() -> None:
    rig = Rig()
    rig.write(*(put(n, key) for n, key in enumerate([b"a", b"b1", b"b2", b"c"], 1)))
    assert rig.write(delete(9, b"b", b"c")) == {9: Answer(9, 6, deleted=2)}
    assert [(change_at(rig, 6, sub).kind, change_at(rig, 6, sub).key) for sub in (0, 1)] == [
        (ChangeKind.DELETE, b"b1"),
        (ChangeKind.DELETE, b"b2"),
    ]
    assert [pair.key for pair in rig.reader.range(b"\x00", None).kvs] == [b"a", b"c"]


def test_a_range_end_of_one_zero_byte_means_all_keys_from_there() -> None:
    rig = Rig()
    rig.write(put(1, b"a"), put(2, b"b"), put(3, b"\xff\xff"))
    assert rig.write(delete(4, b"b", b"\x00")) == {4: Answer(4, 5, deleted=2)}
    assert rig.write(delete(5, b"\x00", b"\x00")) == {5: Answer(5, 6, deleted=1)}


def test_commands_of_a_batch_see_what_the_ones_before_them_did() -> None:
    rig = Rig()
    rig.write(put(1, b"k", b"old"))
    found = rig.write(
        put(2, b"k", b"new", prev_kv=True),
        put(3, b"k", b"newer", prev_kv=True),
        delete(4, b"k", b"l", prev_kv=True),
        put(5, b"k", b"fresh", prev_kv=True),
        delete(6, b"k", prev_kv=True),
        delete(7, b"k", prev_kv=True),
    )
    assert found == {
        2: Answer(2, 3, prev_kvs=[KeyValue(b"k", b"old", 2, 2, 1)]),
        3: Answer(3, 4, prev_kvs=[KeyValue(b"k", b"new", 2, 3, 2)]),
        4: Answer(4, 5, deleted=1, prev_kvs=[KeyValue(b"k", b"newer", 2, 4, 3)]),
        5: Answer(5, 6),
        6: Answer(6, 7, deleted=1, prev_kvs=[KeyValue(b"k", b"fresh", 6, 6, 1)]),
        7: Answer(7, 7),
    }


def test_a_change_names_the_one_before_it_and_a_deletion_ends_the_chain() -> None:
    rig = Rig()
    rig.write(put(1, b"a", b"1"), put(2, b"b"), put(3, b"a", b"2"))
    rig.write(delete(4, b"a", b"c"), put(5, b"a", b"3"))
    chain = [
        change_at(rig, 2),
        change_at(rig, 4),
        change_at(rig, 5, 0),
        change_at(rig, 5, 1),
        change_at(rig, 6),
    ]
    assert [change._replace(checksum=0) for change in chain] == [
        Change(ChangeKind.PUT, b"a", b"1", 2, 1, 0, 0, 0, 0),
        Change(ChangeKind.PUT, b"a", b"2", 2, 2, 0, 2, 0, 0),
        Change(ChangeKind.DELETE, b"a", b"", 0, 0, 0, 4, 0, 0),
        Change(ChangeKind.DELETE, b"b", b"", 0, 0, 0, 3, 0, 0),
        Change(ChangeKind.PUT, b"a", b"3", 6, 1, 0, 0, 0, 0),
    ]


def test_every_16th_version_and_each_deletion_is_a_milestone() -> None:
    rig = Rig()
    rig.write(*(put(n, b"k") for n in range(1, 41)))
    rig.write(delete(50, b"k"))
    keys = [key for key, _ in rig.tables.scan(Table.MILESTONES)]
    assert keys == [milestone_key(b"k", revision) for revision in (17, 33, 42)]


def test_a_range_delete_beyond_the_limit_is_refused_and_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert types.RANGE_DELETE_KEYS_MAX == 100_000
    monkeypatch.setattr(budget, "RANGE_DELETE_KEYS_MAX", 3)
    rig = Rig()
    rig.write(*(put(n, b"k%d" % n) for n in range(1, 5)))
    [answer] = rig.write(delete(9, b"k", b"l")).values()
    assert answer == Answer(
        9,
        5,
        Fault(
            Code.RESOURCE_EXHAUSTED,
            "the range deletes of a batch may meet 3 keys, and this range holds more than the 3 left; delete "
            "it in parts, each in a batch of its own",
            "range_end",
        ),
    )
    assert rig.tables.count(Table.INDEX) == 4
    assert rig.write(delete(10, b"k", b"k4")) == {10: Answer(10, 6, deleted=3)}


def test_previous_pairs_beyond_the_limit_are_refused_and_nothing_is_deleted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(budget, "ANSWERS_BYTES_MAX", 400)
    rig = Rig()
    rig.write(*(put(n, b"k%d" % n, b"." * 100) for n in (1, 2, 3)))
    [answer] = rig.write(delete(9, b"k", b"l", prev_kv=True)).values()
    assert answer.fault is not None
    assert (answer.fault.code, answer.fault.field, answer.deleted) == (Code.RESOURCE_EXHAUSTED, "prev_kv", 0)
    assert rig.write(delete(10, b"k", b"l")) == {10: Answer(10, 5, deleted=3)}


def test_milestone_keys_are_in_order_of_key_then_revision_and_fit() -> None:
    keys = [
        b"\x00",
        b"a",
        b"a\x00",
        b"a" * 31,
        b"a" * 32,
        b"a" * 32 + b"\x00",
        b"a" * 33,
        b"b",
        b"\xff" * 480,
    ]
    ordered = sorted((key, revision) for key in keys for revision in (1, 255, 256, 1 << 40))
    rows = [milestone_key(key, revision) for key, revision in ordered]
    assert rows == sorted(rows)
    assert len(set(rows)) == len(rows)
    assert max(map(len, rows)) == 503
