"""Which commands take room."""

from __future__ import annotations

from raftstate.machine.room import part
from raftstate.pb.v1.pipeline_pb2 import CommandBatch


def mixed() -> CommandBatch:
    batch = CommandBatch(cluster_id=7, floor=3, timeout_ms=900)
    batch.session.index = 5
    commands = batch.commands
    commands.add(serial=1).put.key = b"a"
    commands.add(serial=2).delete.key = b"a"
    commands.add(serial=3).txn.success.add().put.key = b"a"
    commands.add(serial=4).txn.failure.add().put.key = b"a"
    reading = commands.add(serial=5).txn
    reading.success.add().range.key = b"a"
    reading.failure.add().delete.key = b"a"
    commands.add(serial=6).lease_grant.ttl_ms = 1_000
    commands.add(serial=7).lease_renew.id = 1
    commands.add(serial=8).lease_revoke.id = 1
    commands.add(serial=9).compact.revision = 4
    return batch


def test_puts_and_new_leases_take_room_and_all_else_stays_as_it_was() -> None:
    batch = mixed()
    taking, raw, commands = part(batch.SerializeToString())
    assert taking == [1, 3, 4, 6]
    rest = CommandBatch.FromString(raw)
    kept = [command for command in batch.commands if command.serial not in taking]
    assert list(rest.commands) == kept
    assert [command.serial for command in rest.commands] == [2, 5, 7, 8, 9]
    assert commands == 5
    del batch.commands[:], rest.commands[:]
    assert rest == batch


def test_a_batch_that_takes_none_keeps_its_very_bytes() -> None:
    batch = mixed()
    del batch.commands[5:6], batch.commands[2:4], batch.commands[0:1]
    raw = batch.SerializeToString()
    taking, rest, commands = part(raw)
    assert (taking, commands) == ([], 5)
    assert rest is raw


def test_what_is_no_batch_takes_none() -> None:
    assert part(b"\xff\xff") == ([], b"\xff\xff", 0)
