"""What the commands of the store mean, as plain dictionaries: one of all keys for every revision."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from raftstate.machine.types import Code, KeyValue
from raftstate.pb.v1.pipeline_pb2 import Command
from raftstate.pb.v1.txn_pb2 import Compare, RangeOp, RequestOp, TxnCommand

Keys = dict[bytes, KeyValue]
ZERO = KeyValue(b"", b"", 0, 0, 0)


class Refusal(Exception):  # noqa: N818 - what a command is answered with
    def __init__(self, code: Code) -> None:
        super().__init__(code)
        self.code = code


class Outcome(NamedTuple):
    """An answer, with the code of its fault in place of the words."""

    revision: int
    fault: Code | None = None
    said: object = None


@dataclass
class StoreModel:
    clock: int = 0
    compacted: int = 0
    history: dict[int, Keys] = field(default_factory=lambda: {0: {}, 1: {}})
    leases: dict[int, tuple[int, int]] = field(default_factory=dict)
    """id -> (renewed, time to live)"""

    @property
    def revision(self) -> int:
        return max(self.history)

    @property
    def keys(self) -> Keys:
        return self.history[self.revision]

    def attached(self, lease: int) -> list[bytes]:
        return sorted(key for key, pair in self.keys.items() if pair.lease == lease)

    def run(self, command: Command) -> Outcome:
        try:
            said = getattr(self, str(command.WhichOneof("op")))(command)
        except Refusal as refusal:
            return Outcome(self.revision, refusal.code)
        return Outcome(self.revision, None, said)

    # -- commands, by their names on the wire

    def put(self, command: Command) -> object:
        keys = dict(self.keys)
        previous = self.write(keys, command.put)
        self.history[self.revision + 1] = keys
        return (0, [previous] if previous else [])

    def delete(self, command: Command) -> object:
        keys = dict(self.keys)
        deleted = self.bury(keys, command.delete)
        if deleted[0]:
            self.history[self.revision + 1] = keys
        return deleted

    def txn(self, command: Command) -> object:
        txn: TxnCommand = command.txn
        succeeded = all(map(self.holds, txn.compares))
        branch: Iterable[RequestOp] = txn.success if succeeded else txn.failure
        for operation in branch:
            if operation.put.lease and operation.put.lease not in self.leases:
                raise Refusal(Code.LEASE_NOT_FOUND)
        for operation in branch:
            if operation.range.revision and not self.compacted <= operation.range.revision <= self.revision:
                raise Refusal(Code.OUT_OF_RANGE)
        keys = dict(self.keys)
        found: list[object] = []
        for operation in branch:
            match operation.WhichOneof("op"):
                case "put":
                    found.append(self.write(keys, operation.put))
                case "delete":
                    found.append(self.bury(keys, operation.delete))
                case "range":
                    at = operation.range.revision
                    found.append(self.read(self.history[at] if at else keys, operation.range))
        if keys != self.keys:
            self.history[self.revision + 1] = keys
        return (succeeded, found)

    def compact(self, command: Command) -> object:
        if not self.compacted < command.compact.revision <= self.revision:
            raise Refusal(Code.OUT_OF_RANGE)
        self.compacted = command.compact.revision
        return (0, [])

    def erase(self, command: Command) -> object:
        there = command.erase.key in self.keys
        keys = {key: pair for key, pair in self.keys.items() if key != command.erase.key}
        if there:
            self.history[self.revision + 1] = keys
        self.compacted = self.revision + 1
        self.history[self.compacted] = keys
        return (int(there), [])

    def lease_grant(self, command: Command) -> object:
        if command.lease_grant.id in self.leases:
            raise Refusal(Code.FAILED_PRECONDITION)
        self.leases[command.lease_grant.id] = (self.clock, command.lease_grant.ttl_ms)
        return (command.lease_grant.id, command.lease_grant.ttl_ms)

    def lease_renew(self, command: Command) -> object:
        id = command.lease_renew.id
        if id not in self.leases:
            raise Refusal(Code.LEASE_NOT_FOUND)
        self.leases[id] = (self.clock, self.leases[id][1])
        return (id, self.leases[id][1])

    def lease_revoke(self, command: Command) -> object:
        if command.lease_revoke.id not in self.leases:
            raise Refusal(Code.LEASE_NOT_FOUND)
        return (self.end(command.lease_revoke.id), [])

    def end(self, lease: int) -> int:
        gone = self.attached(lease)
        del self.leases[lease]
        if gone:
            self.history[self.revision + 1] = {
                key: pair for key, pair in self.keys.items() if key not in gone
            }
        return len(gone)

    # -- parts

    def write(self, keys: Keys, put) -> KeyValue | None:  # type: ignore[no-untyped-def]
        if put.lease and put.lease not in self.leases:
            raise Refusal(Code.LEASE_NOT_FOUND)
        before, revision = keys.get(put.key), self.revision + 1
        created, version = (before.create_revision, before.version) if before else (revision, 0)
        keys[put.key] = KeyValue(put.key, put.value, created, revision, version + 1, put.lease)
        return before if put.prev_kv else None

    def bury(self, keys: Keys, delete) -> tuple[int, list[KeyValue]]:  # type: ignore[no-untyped-def]
        pairs = [keys.pop(pair.key) for pair in within(keys, delete.key, delete.range_end)]
        return len(pairs), pairs if delete.prev_kv else []

    def read(self, keys: Keys, read: RangeOp) -> tuple[list[KeyValue], bool, int]:
        pairs = within(keys, read.key, read.range_end)
        if read.count_only:
            return [], False, len(pairs)
        fields = ("key", "version", "create_revision", "mod_revision", "value")
        target = fields[read.sort_target]
        pairs.sort(key=lambda pair: getattr(pair, target), reverse=read.sort_order == 2)
        count = len(pairs)
        pairs = pairs[: read.limit or None]
        if read.keys_only:
            pairs = [
                KeyValue(p.key, b"", p.create_revision, p.mod_revision, p.version, p.lease) for p in pairs
            ]
        return pairs, count > len(pairs), count

    def holds(self, compare: Compare) -> bool:
        target = str(compare.WhichOneof("target"))
        want = getattr(compare, target)
        for pair in within(self.keys, compare.key, compare.range_end) or [ZERO]:
            if pair is ZERO and target == "value":
                return False
            have = getattr(pair, target)
            if not (have == want, have != want, have > want, have < want)[compare.result]:
                return False
        return True


def within(keys: Keys, key: bytes, range_end: bytes) -> list[KeyValue]:
    if not range_end:
        return [keys[key]] if key in keys else []
    return [keys[k] for k in sorted(keys) if key <= k and (range_end == b"\x00" or k < range_end)]
