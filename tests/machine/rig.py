"""One machine over tables in memory, and short ways to write down batches and entries."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from chaos.sim.memory_tables import MemoryTables
from raftstate.core.types import Entry
from raftstate.machine.machine import Machine
from raftstate.machine.reader import Reader
from raftstate.machine.tables import Table
from raftstate.machine.types import (
    Answer,
    Batch,
    BatchResult,
    Code,
    EntryResult,
    Envelope,
    Item,
    ItemResult,
    Member,
    Refused,
    Register,
    Registered,
    SessionId,
)
from raftstate.pb.v1.pipeline_pb2 import (
    Command,
    CommandBatch,
    CompactCommand,
    EraseCommand,
    LeaseGrantCommand,
    LeaseRenewCommand,
    LeaseRevokeCommand,
)
from raftstate.pb.v1.txn_pb2 import Compare, RangeOp, RequestOp, TxnCommand

CLUSTER = 0xC1
MEMBERS = [Member(n, 1, f"n{n}", f"127.0.0.1:{7100 + n}", f"127.0.0.1:{7000 + n}") for n in (1, 2, 3)]


def put(serial: int, key: bytes, value: bytes = b"v", *, prev_kv: bool = False, lease: int = 0) -> Command:
    command = Command(serial=serial)
    command.put.key, command.put.value, command.put.prev_kv = key, value, prev_kv
    command.put.lease = lease
    return command


def delete(serial: int, key: bytes, range_end: bytes = b"", *, prev_kv: bool = False) -> Command:
    command = Command(serial=serial)
    command.delete.key, command.delete.range_end, command.delete.prev_kv = key, range_end, prev_kv
    return command


def txn(
    serial: int,
    when: Sequence[Compare] = (),
    then: Sequence[RequestOp] = (),
    otherwise: Sequence[RequestOp] = (),
) -> Command:
    return Command(serial=serial, txn=TxnCommand(compares=when, success=then, failure=otherwise))


def compare(key: bytes, sign: str = "==", range_end: bytes = b"", **target: int | bytes) -> Compare:
    """`target`: one of version, create_revision, mod_revision, value, lease."""
    result = ("==", "!=", ">", "<").index(sign)
    return Compare(key=key, range_end=range_end, result=result, **target)  # type: ignore[arg-type]


def op_put(key: bytes, value: bytes = b"v", *, prev_kv: bool = False, lease: int = 0) -> RequestOp:
    return RequestOp(put=put(0, key, value, prev_kv=prev_kv, lease=lease).put)


def op_delete(key: bytes, range_end: bytes = b"", *, prev_kv: bool = False) -> RequestOp:
    return RequestOp(delete=delete(0, key, range_end, prev_kv=prev_kv).delete)


def op_range(key: bytes, range_end: bytes = b"", **fields: int) -> RequestOp:
    return RequestOp(range=RangeOp(key=key, range_end=range_end, **fields))  # type: ignore[arg-type]


def compact(serial: int, revision: int) -> Command:
    return Command(serial=serial, compact=CompactCommand(revision=revision))


def erase(serial: int, key: bytes) -> Command:
    return Command(serial=serial, erase=EraseCommand(key=key))


def grant(serial: int, id: int = 0, ttl_ms: int = 10_000) -> Command:
    return Command(serial=serial, lease_grant=LeaseGrantCommand(id=id, ttl_ms=ttl_ms))


def revoke(serial: int, id: int) -> Command:
    return Command(serial=serial, lease_revoke=LeaseRevokeCommand(id=id))


def renew(serial: int, id: int) -> Command:
    return Command(serial=serial, lease_renew=LeaseRenewCommand(id=id))


def batch(
    *commands: Command,
    session: SessionId | None = None,
    floor: int = 0,
    given_up: Sequence[int] = (),
    cluster_id: int = 0,
) -> Batch:
    message = CommandBatch(cluster_id=cluster_id, floor=floor, given_up=given_up, commands=commands)
    if session is not None:
        message.session.index, message.session.nonce = session.index, session.nonce
    return Batch(message.SerializeToString())


def entry(index: int, *items: Item, lease_ms: int = 0, wall_ms: int = 0, term: int = 1) -> Entry:
    return Entry(index, term, data=msgspec.msgpack.encode(Envelope(lease_ms, wall_ms, list(items))))


class Rig:
    """A bootstrapped machine. Each `run` is an entry and a transaction of its own."""

    def __init__(self) -> None:
        self.tables = MemoryTables()
        Machine.bootstrap(self.tables, CLUSTER, MEMBERS)
        self.machine = Machine(self.tables)
        self.log: list[Entry] = []

    def apply(self, *entries: Entry) -> list[EntryResult]:
        self.log += entries
        with self.tables.write() as tables:
            return self.machine.apply(tables, entries)

    def run(self, *items: Item, lease_ms: int = 0, wall_ms: int = 0) -> list[ItemResult]:
        [result] = self.apply(
            entry(self.machine.applied_index + 1, *items, lease_ms=lease_ms, wall_ms=wall_ms)
        )
        assert result.index == self.machine.applied_index
        return result.items

    def write(
        self,
        *commands: Command,
        session: SessionId | None = None,
        floor: int = 0,
        given_up: Sequence[int] = (),
        lease_ms: int = 0,
    ) -> dict[int, Answer]:
        """Run one batch; return the answers by serial, the short ones spelled out."""
        [result] = self.run(
            batch(*commands, session=session, floor=floor, given_up=given_up), lease_ms=lease_ms
        )
        return answers(result)

    def register(self, nonce: int = 7, ttl_ms: int = 0, *, lease_ms: int = 0) -> SessionId:
        [result] = self.run(Register(nonce, ttl_ms), lease_ms=lease_ms)
        assert isinstance(result, Registered)
        return result.session

    def reload(self) -> None:
        self.machine.load(self.tables)

    @property
    def reader(self) -> Reader:
        return Reader(self.tables)

    def hot_keys(self, start: bytes) -> list[bytes]:
        return [key for key, _ in self.tables.scan(Table.HOT, start, start[:-1] + bytes([start[-1] + 1]))]


def answers(result: ItemResult) -> dict[int, Answer]:
    assert isinstance(result, BatchResult), result
    spelled = [Answer(s, r) for s, r in zip(result.serials, result.revisions, strict=True)]
    found = {answer.serial: answer for answer in spelled + result.answers}
    assert len(found) == len(spelled) + len(result.answers)
    return found


def refusal(result: ItemResult) -> tuple[Code, str]:
    """Return code and field of the fault that refused an item as a whole."""
    assert isinstance(result, Refused), result
    return result.fault.code, result.fault.field


def codes(found: dict[int, Answer]) -> dict[int, Code | None]:
    return {serial: answer.fault.code if answer.fault else None for serial, answer in found.items()}
