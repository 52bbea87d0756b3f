"""What a node does with little room: the limits, the gate, and those who are told."""

from __future__ import annotations

import os

import pytest

from raftstate.machine.types import Answer, Batch, BatchResult, Close, Code, Fault, SessionId
from raftstate.node.disk import (
    OLD_READER_NS,
    DiskSettings,
    Judge,
    Limits,
    Measured,
    OldReaders,
    Verdict,
    reserve_bytes_for,
)
from raftstate.node.environment import Executed, Outcome, Rejected
from raftstate.node.room import Admitted, Gate, Writes
from raftstate.pb.v1.pipeline_pb2 import CommandBatch
from raftstate.store.space import FileSystem, Reader, Space

MB = 1 << 20
GB = 1 << 30
LOG, STATE = Space(MB, 0, 16 * GB), Space(MB, 0, 64 * GB)


def seen(
    free: int,
    *,
    total: int = 100 * GB,
    log: Space = LOG,
    state: Space = STATE,
) -> Measured:
    return Measured(FileSystem(total, free), log, state)


def writes(found: dict[str, Verdict]) -> dict[str, Writes]:
    return {name: verdict.writes for name, verdict in found.items()}


def test_limits_follow_the_sizes_of_disk_and_maps_unless_they_are_given() -> None:
    disk, small = FileSystem(100 * GB, GB), FileSystem(100 * MB, 50 * MB)
    assert Limits.of(DiskSettings(), disk, 64 * GB, 16 * GB) == Limits(
        GB, GB // 4, 63 * GB, 16 * GB - GB // 4
    )
    assert Limits.of(DiskSettings(), small, 16 * MB, 16 * MB) == Limits(20 * MB, 10 * MB, 14 * MB, 14 * MB)
    told = DiskSettings(0, 0, 5 * MB)
    assert Limits.of(told, disk, 64 * GB, 16 * GB) == Limits(0, 0, 5 * MB, 16 * GB - GB // 4)
    # One that is given alone must not turn the order of the two around.
    assert Limits.of(DiskSettings(soft_floor_bytes=MB), disk, GB, GB).hard_floor_bytes == MB
    assert Limits.of(DiskSettings(hard_floor_bytes=2 * GB), disk, GB, GB).soft_floor_bytes == 2 * GB
    assert (reserve_bytes_for(None, disk), reserve_bytes_for(None, small)) == (16 * MB, MB)
    assert reserve_bytes_for(0, disk) == 0


@pytest.mark.case(51)
def test_floors_hold_below_them_and_end_a_quarter_above() -> None:
    judge = Judge(DiskSettings(soft_floor_bytes=1000 * MB, hard_floor_bytes=100 * MB))
    assert judge.judge(seen(1000 * MB)) == {}
    assert writes(judge.judge(seen(1000 * MB - 1))) == {"disk": Writes.FREEING}
    assert writes(judge.judge(seen(1249 * MB))) == {"disk": Writes.FREEING}
    assert judge.judge(seen(1250 * MB)) == {}
    assert judge.judge(seen(1249 * MB)) == {}
    hard = judge.judge(seen(100 * MB - 1))["disk"]
    assert (hard.writes, hard.may_lead) == (Writes.NONE, False)
    assert writes(judge.judge(seen(124 * MB))) == {"disk": Writes.NONE}
    soft = judge.judge(seen(125 * MB))["disk"]
    assert (soft.writes, soft.may_lead) == (Writes.FREEING, True)
    assert soft.reason == (
        "125.0 MiB of room are left, the soft floor is 1000.0 MiB: no puts and no new leases are taken; "
        "reads, deletions, compaction, renewals and ends of leases go on. Delete keys and compact, or free "
        "or add disk space"
    )


def test_free_pages_count_as_far_as_both_files_have_them() -> None:
    judge = Judge(DiskSettings(soft_floor_bytes=100 * MB, hard_floor_bytes=0))
    log, state = Space(MB, 60 * MB, 16 * GB), Space(MB, 90 * MB, 64 * GB)
    assert judge.judge(seen(40 * MB, log=log, state=state)) == {}
    assert judge.judge(seen(39 * MB, log=log, state=state)) != {}
    stuck = Measured(FileSystem(GB, 99 * MB), log, state, old_reader="process 5 reads")
    judge = Judge(DiskSettings(soft_floor_bytes=100 * MB, hard_floor_bytes=0))
    assert judge.judge(stuck) != {}


def test_a_floor_of_nothing_never_holds() -> None:
    judge = Judge(DiskSettings(soft_floor_bytes=0, hard_floor_bytes=0))
    assert judge.judge(seen(0)) == {}


def test_the_quota_is_of_the_states_rows_alone() -> None:
    judge = Judge(DiskSettings(0, 0, quota_bytes=320 * MB))
    assert judge.judge(seen(GB, state=Space(320 * MB - 1, GB, 64 * GB))) == {}
    over = judge.judge(seen(GB, state=Space(320 * MB, 0, 64 * GB)))
    assert writes(over) == {"quota": Writes.FREEING}
    assert over["quota"].reason.startswith("the state takes 320.0 MiB, its quota is 320.0 MiB: no puts")
    assert "quota" in judge.judge(seen(GB, state=Space(311 * MB, GB, 64 * GB)))
    assert judge.judge(seen(GB, state=Space(309 * MB, GB, 64 * GB))) == {}


def test_puts_are_refused_before_the_map_of_state_or_log_is_full() -> None:
    judge = Judge(DiskSettings(0, 0))
    map_bytes = 64 * MB
    most = map_bytes - map_bytes // 8
    full = judge.judge(seen(GB, log=Space(most, 0, map_bytes), state=Space(most, 0, map_bytes)))
    assert writes(full) == {"quota": Writes.FREEING, "log": Writes.FREEING}
    assert "larger log_map_bytes" in full["log"].reason
    larger = judge.judge(seen(GB, log=Space(most, 0, 2 * map_bytes), state=Space(most, 0, 2 * map_bytes)))
    assert larger == {}


@pytest.mark.case(52)
@pytest.mark.parametrize("full", [("the log", None), (None, "the state")])
def test_a_write_that_found_no_room_leaves_reads_alone(full: tuple[str | None, str | None]) -> None:
    judge = Judge(DiskSettings(0, 0))
    found = judge.judge(Measured(FileSystem(GB, GB), Space(0, 0, GB), Space(0, 0, GB), *full))
    assert found["disk"].writes is Writes.NONE
    assert not found["disk"].may_lead
    assert str(full[0] or full[1]) in found["disk"].reason


def batch_of(*kinds: str) -> Batch:
    batch = CommandBatch()
    for serial, kind in enumerate(kinds, 1):
        getattr(batch.commands.add(serial=serial), kind).key = b"k"
    return Batch(batch.SerializeToString())


def gate_at(writes: Writes) -> Gate:
    gate = Gate()
    gate.set(writes, "no room", 0)
    return gate


def test_an_open_gate_passes_all_on_unread() -> None:
    gate = gate_at(Writes.ALL)
    garbage = Batch(b"\xff")
    assert gate.is_open
    assert gate.admit(garbage) == Admitted(garbage)


def test_a_gate_looks_once_enough_was_proposed() -> None:
    gate = Gate()
    looks = []

    def look() -> None:
        looks.append(gate.left_bytes)
        gate.set(Writes.FREEING, "no room", 100)

    gate.look = look
    gate.left_bytes = 1
    assert gate.is_open
    gate.left_bytes -= 10
    assert not gate.is_open
    assert not gate.is_open
    assert looks == [-9]


def test_a_half_open_gate_refuses_what_takes_room_and_answers_for_it() -> None:
    gate = gate_at(Writes.FREEING)
    fault = Fault(Code.RESOURCE_EXHAUSTED, "no room")
    assert gate.admit(batch_of("put", "put")) == fault
    deletes = batch_of("delete", "delete")
    assert gate.admit(deletes) == Admitted(deletes)
    close = Close(SessionId(1, 2))
    assert gate.admit(close) == Admitted(close)
    admitted = gate.admit(batch_of("put", "delete", "put"))
    assert isinstance(admitted, Admitted)
    assert admitted.commands == 1
    told: list[Outcome] = []
    reply = admitted.reply_through(told.append)
    reply(Executed(9, 4, BatchResult([2], [4], [])))
    assert told == [Executed(9, 4, BatchResult([2], [4], [Answer(1, 0, fault), Answer(3, 0, fault)]))]
    unknown = Rejected(Fault(Code.UNKNOWN_OUTCOME, "who knows"), applied_never=False)
    reply(unknown)
    assert told[1] is unknown


def test_a_closed_gate_refuses_everything() -> None:
    gate = gate_at(Writes.NONE)
    fault = Fault(Code.RESOURCE_EXHAUSTED, "no room")
    for item in (batch_of("delete"), Close(SessionId(1, 2))):
        assert gate.admit(item) == fault


@pytest.mark.case(55)
@pytest.mark.case(57)
def test_a_reader_of_another_process_that_stands_still_is_named_after_a_while() -> None:
    now_ns = 0
    readers = OldReaders(lambda: now_ns)
    own, other = Reader(os.getpid(), "a", 5), Reader(1, "b", 5)
    assert readers.look([own, other], 9) == ""
    now_ns = OLD_READER_NS - 1
    assert readers.look([own, other], 9) == ""
    now_ns += 1
    assert readers.look([own, other], 9).startswith("process 1 has been reading")
    # It went on, or there is nothing newer than what it reads.
    assert readers.look([own, Reader(1, "b", 8)], 9) == ""
    now_ns *= 3
    assert readers.look([own, Reader(1, "b", 9)], 9) == ""
