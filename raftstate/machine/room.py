"""Which commands take room, for leaders that have little left.

No result depends on this: what is refused by it was never in the log.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from raftstate.machine.command import parse_batch
from raftstate.machine.types import Fault
from raftstate.pb.v1.pipeline_pb2 import Command, CommandBatch
from raftstate.pb.v1.txn_pb2 import RequestOp


class Parted(NamedTuple):
    """A batch in two parts."""

    taking: list[int]
    """The serials of the commands that take room."""
    rest: bytes
    """A batch of the others; the very same bytes if none takes room."""
    rest_commands: int
    """How many they are."""


def part(raw: bytes) -> Parted:
    """Part a serialized raftstate.v1.CommandBatch by what takes room. One that can't be parsed takes none."""
    batch = parse_batch(raw)
    if isinstance(batch, Fault):
        return Parted([], raw, 0)
    taking = [command.serial for command in batch.commands if takes_room(command)]
    if not taking:
        return Parted([], raw, len(batch.commands))
    rest = CommandBatch()
    rest.CopyFrom(batch)
    del rest.commands[:]
    rest.commands.extend(command for command in batch.commands if not takes_room(command))
    return Parted(taking, rest.SerializeToString(), len(rest.commands))


def takes_room(command: Command) -> bool:
    """Whether a command may leave more behind than it finds: a put, alone or in a branch of a transaction, or
    a new lease."""
    kind = command.WhichOneof("op")
    if kind == "txn":
        return _puts(command.txn.success) or _puts(command.txn.failure)
    return kind in ("put", "lease_grant")


def _puts(operations: Iterable[RequestOp]) -> bool:
    return any(operation.WhichOneof("op") == "put" for operation in operations)
