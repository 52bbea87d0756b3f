"""Compaction, as far as it is in the log, and machine versions: who may propose what, and from when on."""

from __future__ import annotations

import msgspec
import pytest

from raftstate.errors import InvariantError
from raftstate.machine.layout import META_KEY, Meta, meta_row, read_meta, seal
from raftstate.machine.machine import Machine
from raftstate.machine.tables import Table
from raftstate.machine.types import (
    MACHINE_VERSION,
    Answer,
    Code,
    CompactTo,
    Done,
    Fault,
    MoveTo,
    Refused,
)
from tests.machine.rig import Rig, answers, batch, codes, compact, delete, grant, put, txn


def at_version(machine_version: int) -> Rig:
    rig = Rig()
    meta = msgspec.structs.replace(read_meta(rig.tables), machine_version=machine_version)
    rig.tables.put(Table.HOT, META_KEY, meta_row(meta))
    rig.reload()
    return rig


def test_a_compaction_makes_no_revision_and_is_there_after_a_load() -> None:
    rig = Rig()
    rig.write(*(put(n, b"a") for n in range(1, 5)))
    assert rig.write(compact(1, 3)) == {1: Answer(1, 5)}
    assert (rig.machine.compacted_revision, rig.reader.compacted_revision) == (3, 3)
    assert rig.machine.sweep_pending
    rig.reload()
    assert (rig.machine.compacted_revision, rig.machine.revision) == (3, 5)
    assert rig.machine.sweep_pending


@pytest.mark.parametrize(
    ("revision", "message"),
    [
        (1, "revision 1 is compacted already; nothing compacted; valid are 4 to 5"),
        (3, "revision 3 is compacted already; nothing compacted; valid are 4 to 5"),
        (6, "revision 6 lies in the future; nothing compacted; valid are 4 to 5"),
    ],
)
def test_only_what_lies_between_the_last_compaction_and_now_can_be_compacted(
    revision: int, message: str
) -> None:
    rig = Rig()
    rig.write(*(put(n, b"a") for n in range(1, 5)), compact(9, 3))
    fault = Fault(Code.OUT_OF_RANGE, message, "revision")
    assert rig.write(compact(1, revision)) == {1: Answer(1, 5, fault)}
    assert rig.machine.compacted_revision == 3
    assert rig.write(compact(1, 5)) == {1: Answer(1, 5)}
    answer = rig.write(compact(1, 5))[1]
    assert answer.fault is not None
    assert answer.fault.message.endswith("valid are none until the next write")


def test_a_leader_compacts_to_a_revision_and_never_back() -> None:
    rig = Rig()
    rig.write(*(put(n, b"a") for n in range(1, 5)))
    assert rig.run(CompactTo(3), CompactTo(3), CompactTo(2), CompactTo(0)) == [Done()] * 4
    assert rig.machine.compacted_revision == 3
    [refused] = rig.run(CompactTo(6))
    assert isinstance(refused, Refused)
    assert refused.fault.code == Code.OUT_OF_RANGE


def test_the_digest_covers_a_compaction() -> None:
    digests = []
    for revision in (2, 3, 3):
        rig = Rig()
        rig.write(*(put(n, b"a") for n in range(1, 5)))
        rig.run(CompactTo(revision))  # which is answered alike
        digests.append(rig.machine.digest)
    assert digests[0] != digests[1] == digests[2]


def test_a_sweep_goes_on_in_slices_until_nothing_is_left_and_shows_in_nothing_else() -> None:
    rig, twin = Rig(), Rig()
    for each in (rig, twin):
        assert not each.machine.sweep_pending
        each.write(*(put(n, b"a") for n in range(1, 11)), compact(11, 10))
    slices = 0
    while rig.machine.sweep_pending:
        with rig.tables.write() as tables:
            assert rig.machine.sweep(tables, 4) <= 4
        slices += 1
    assert slices > 1
    assert rig.tables.count(Table.CHANGES) == 2 < twin.tables.count(Table.CHANGES)
    assert rig.write(put(1, b"a", prev_kv=True)) == twin.write(put(1, b"a", prev_kv=True))
    assert rig.machine.digest == twin.machine.digest
    rig.reload()
    assert not rig.machine.sweep_pending


def test_after_a_sweep_that_failed_the_machine_must_be_loaded_again() -> None:
    rig = Rig()
    rig.write(*(put(n, b"a") for n in range(1, 11)), compact(11, 10))
    change = next(rig.tables.scan(Table.CHANGES))[0]
    row = rig.tables.get(Table.CHANGES, change)
    assert row is not None
    rig.tables.put(Table.CHANGES, change, b"")
    with pytest.raises(Exception, match="damaged"), rig.tables.write() as tables:
        rig.machine.sweep(tables, 100)
    rig.tables.put(Table.CHANGES, change, row)
    with pytest.raises(InvariantError, match="not loaded again"):
        rig.machine.sweep(rig.tables, 100)
    rig.reload()
    assert rig.machine.sweep(rig.tables, 100) == 9 + 8  # walked, and deleted


# ---- versions


NEW = [txn(1), compact(1, 1), grant(1), put(1, b"k", lease=1)]


@pytest.mark.parametrize("command", NEW, ids=["txn", "compact", "lease", "put"])
def test_what_the_cluster_does_not_know_yet_is_not_run_until_it_moves(command) -> None:  # type: ignore[no-untyped-def]
    rig = at_version(1)
    found = rig.write(command, put(2, b"k"), delete(3, b"k"))
    assert codes(found) == {1: Code.UNIMPLEMENTED, 2: None, 3: None}
    before, moved, after = rig.run(batch(command), MoveTo(2), batch(command))
    assert (codes(answers(before)), moved) == ({1: Code.UNIMPLEMENTED}, Done())
    assert codes(answers(after)) in ({1: None}, {1: Code.LEASE_NOT_FOUND})
    assert rig.machine.machine_version == 2


def test_a_cluster_moves_up_only_and_the_digest_says_so() -> None:
    rig = at_version(1)
    other = at_version(1)
    assert rig.run(MoveTo(1), MoveTo(0)) == other.run(MoveTo(1), MoveTo(2)) == [Done(), Done()]
    assert (rig.machine.machine_version, other.machine.machine_version) == (1, 2)
    assert rig.machine.digest != other.machine.digest
    other.reload()
    assert other.machine.machine_version == 2
    assert other.run(MoveTo(1)) == [Done()]
    assert other.machine.machine_version == 2


def test_a_version_that_this_code_does_not_know_stops_the_node() -> None:
    rig = Rig()
    with pytest.raises(InvariantError, match=f"machine version {MACHINE_VERSION + 1}"):
        rig.run(MoveTo(MACHINE_VERSION + 1))


def test_a_state_from_before_there_was_compaction_loads() -> None:
    rig = Rig()
    meta = read_meta(rig.tables)
    assert isinstance(meta, Meta)
    fields = msgspec.to_builtins(meta)[:-2]
    rig.tables.put(Table.HOT, META_KEY, seal(META_KEY, msgspec.msgpack.encode(fields)))
    machine = Machine(rig.tables)
    assert (machine.compacted_revision, machine.sweep_pending, machine.lease_count) == (0, False, 0)
