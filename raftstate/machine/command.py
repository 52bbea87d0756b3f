"""What a batch may hold: pure checks, run by the node that takes it and again wherever it is applied.

They depend on nothing but the command and the machine version, so that a command refused here is refused
alike everywhere, and stays refused. Fields that this code does not know are refused, not ignored: a newer
node might obey them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from raftstate.machine.types import (
    BATCH_BYTES_MAX,
    BATCH_COMMANDS_MAX,
    BATCH_HEAD_BYTES_MAX,
    BATCH_OPERATIONS_MAX,
    KEY_BYTES_MAX,
    LEASE_TTL_MS_MAX,
    LEASE_TTL_MS_MIN,
    SESSION_TTL_MS_MAX,
    SESSION_TTL_MS_MIN,
    SESSION_WINDOW,
    TXN_OPERATIONS_MAX,
    VALUE_BYTES_MAX,
    Code,
    Fault,
    covers,
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
from raftstate.pb.v1.txn_pb2 import (
    Compare,
    DeleteCommand,
    PutCommand,
    RangeOp,
    RequestOp,
    SortOrder,
    SortTarget,
    TxnCommand,
)

_OPERATION_SINCE = {
    "put": 1,
    "delete": 1,
    "txn": 2,
    "compact": 2,
    "lease_grant": 2,
    "lease_revoke": 2,
    "lease_renew": 2,
    "erase": 3,
}
"""The machine version that brought each operation."""
_PUT_LEASE_SINCE = 2


class BatchCheck(msgspec.Struct, frozen=True):
    """What the checks found. `fault` refuses the batch as a whole, `faults` single commands, by position."""

    fault: Fault | None
    faults: dict[int, Fault] = {}


def parse_batch(raw: bytes) -> CommandBatch | Fault:
    """Parse a serialized raftstate.v1.CommandBatch.

    Returns an INVALID fault when it is none, or is over the limits of size or number. Those are looked at
    before anything is made of its commands: 8 MiB can hold four million of them.
    """
    fault = _check_size(raw) if len(raw) > BATCH_BYTES_MAX else None
    if fault is not None:
        return fault
    try:
        batch = CommandBatch.FromString(raw)
    except DecodeError:
        return _no_batch(raw)
    if len(batch.commands) > BATCH_COMMANDS_MAX:
        return _invalid(
            f"a batch may hold {BATCH_COMMANDS_MAX} commands, got {len(batch.commands)}; send more batches",
            "commands",
        )
    return batch


def check(command: Command, machine_version: int) -> Fault | None:
    """Return what is wrong with a command, as far as that can be known without the state, or None."""
    return _check_unknown(command) or _check_operation(command, machine_version)


def check_batch(
    batch: CommandBatch, machine_version: int, count_operations: Callable[[int], None] | None = None
) -> BatchCheck:
    """Check a batch and each of its commands, as `check` does.

    Args:
        batch: as `parse_batch` returned it.
        machine_version: the rules to go by.
        count_operations: told how many compares and operations there are in all transactions, if any, before
            these are checked. What it raises ends the check.
    """
    fault = _check_given_up(batch) or _check_serials(batch)
    faults: dict[int, Fault] = {}
    if fault is None and _has_unknown(batch):
        fault = _check_unknown_outside_commands(batch)
        found = ((position, _check_unknown(command)) for position, command in enumerate(batch.commands))
        faults = {position: each for position, each in found if each is not None}
        if fault is None and not faults:
            fault = _invalid("the batch holds a field that is not known to this version", "commands")
    if fault is not None:
        return BatchCheck(fault)
    has_leases = machine_version >= _PUT_LEASE_SINCE
    operations = 0
    others: list[int] = []
    for position, command in enumerate(batch.commands):
        # Nearly all are puts in order, known since the first machine version: they need no call each.
        if command.HasField("put"):
            put = command.put
            if (
                0 < len(put.key) <= KEY_BYTES_MAX
                and len(put.value) <= VALUE_BYTES_MAX
                and (has_leases or not put.lease)
            ):
                continue
        elif command.HasField("txn"):
            txn = command.txn
            operations += len(txn.compares) + len(txn.success) + len(txn.failure)
        others.append(position)
    if operations > BATCH_OPERATIONS_MAX:
        return BatchCheck(
            _invalid(
                f"the transactions of a batch may hold {BATCH_OPERATIONS_MAX} compares and operations"
                " in all, these hold more; send more batches",
                "commands",
            )
        )
    if operations and count_operations is not None:
        count_operations(operations)
    for position in others:
        wrong = _check_operation(batch.commands[position], machine_version)
        if wrong is not None:
            faults.setdefault(position, wrong)
    return BatchCheck(None, faults)


def check_ttl(ttl_ms: int) -> Fault | None:
    """Check a session's time to live as asked for; 0 means the default."""
    if ttl_ms == 0 or SESSION_TTL_MS_MIN <= ttl_ms <= SESSION_TTL_MS_MAX:
        return None
    return _invalid(
        f"ttl_ms must be 0 (the default) or {SESSION_TTL_MS_MIN} to {SESSION_TTL_MS_MAX}, got {ttl_ms}",
        "ttl_ms",
    )


def find_unknown(message: Message) -> tuple[str, int] | None:
    """Return (path of the submessage, field number) of the first field not known to this code, or None."""
    return _find_unknown(message, "")


def _invalid(message: str, field: str) -> Fault:
    return Fault(Code.INVALID, message, field)


# ---- one command


def _check_unknown(command: Command) -> Fault | None:
    found = find_unknown(command)
    return None if found is None else _unknown_fault(*found)


def _check_operation(command: Command, machine_version: int) -> Fault | None:
    operation = command.WhichOneof("op")
    if operation is None:
        return _invalid("a command must hold an operation, got none", "op")
    if machine_version < _OPERATION_SINCE[operation]:
        return _newer_fault(operation, operation, _OPERATION_SINCE[operation], machine_version)
    if operation == "put" and command.put.lease and machine_version < _PUT_LEASE_SINCE:
        return _newer_fault("a put with a lease", "lease", _PUT_LEASE_SINCE, machine_version)
    return _OPERATION_CHECKS[operation](getattr(command, operation))


def _newer_fault(what: str, field: str, since: int, machine_version: int) -> Fault:
    return Fault(
        Code.UNIMPLEMENTED,
        f"{what} needs machine version {since}, and the cluster is at {machine_version}: a client newer than "
        "the cluster",
        field,
    )


def _check_put(put: PutCommand) -> Fault | None:
    if not 0 < len(put.key) <= KEY_BYTES_MAX:
        return _key_fault(put.key)
    if len(put.value) > VALUE_BYTES_MAX:
        return _invalid(f"value must have at most {VALUE_BYTES_MAX} bytes, got {len(put.value)}", "value")
    return None


def _check_delete(delete: DeleteCommand) -> Fault | None:
    return _check_interval(delete.key, delete.range_end)


def _check_compact(compact: CompactCommand) -> Fault | None:
    return None if compact.revision else _invalid("revision must be at least 1, got 0", "revision")


def _check_erase(erase: EraseCommand) -> Fault | None:
    return None if 0 < len(erase.key) <= KEY_BYTES_MAX else _key_fault(erase.key)


def _check_grant(grant: LeaseGrantCommand) -> Fault | None:
    if LEASE_TTL_MS_MIN <= grant.ttl_ms <= LEASE_TTL_MS_MAX:
        return None
    return _invalid(f"ttl_ms must be {LEASE_TTL_MS_MIN} to {LEASE_TTL_MS_MAX}, got {grant.ttl_ms}", "ttl_ms")


def _check_lease_id(command: LeaseRevokeCommand | LeaseRenewCommand) -> Fault | None:
    return None if command.id else _invalid("id must be that of a lease, got 0", "id")


# ---- transactions

_RESULTS = Compare.Result.values()
_SORT_ORDERS, _SORT_TARGETS = SortOrder.values(), SortTarget.values()


def _check_txn(txn: TxnCommand) -> Fault | None:
    count = len(txn.compares) + len(txn.success) + len(txn.failure)
    if count > TXN_OPERATIONS_MAX:
        return _invalid(
            f"a transaction may hold {TXN_OPERATIONS_MAX} compares and operations in all, got {count}", "txn"
        )
    return (
        _check_each("compares", txn.compares, _check_compare)
        or _check_each("success", txn.success, _check_request)
        or _check_each("failure", txn.failure, _check_request)
        or _check_overlap("success", txn.success)
        or _check_overlap("failure", txn.failure)
    )


def _check_each(name: str, parts: Iterable[Any], check_one: Callable[[Any], Fault | None]) -> Fault | None:
    """Check the parts of a transaction; the fault of one says where it stands."""
    for position, part in enumerate(parts):
        fault = check_one(part)
        if fault is not None:
            where = f"{name}[{position}]"
            return _invalid(f"{where}: {fault.message}", f"{where}.{fault.field}")
    return None


def _check_compare(compare: Compare) -> Fault | None:
    if compare.WhichOneof("target") is None:
        return _invalid("a compare must hold what it compares with, got none", "target")
    return _check_interval(compare.key, compare.range_end) or _check_enum("result", compare.result, _RESULTS)


def _check_request(request: RequestOp) -> Fault | None:
    operation = request.WhichOneof("op")
    if operation is None:
        return _invalid("must hold an operation, got none", "op")
    fault = _REQUEST_CHECKS[operation](getattr(request, operation))
    return None if fault is None else _invalid(fault.message, f"{operation}.{fault.field}")


def _check_range(operation: RangeOp) -> Fault | None:
    return (
        _check_interval(operation.key, operation.range_end)
        or _check_enum("sort_order", operation.sort_order, _SORT_ORDERS)
        or _check_enum("sort_target", operation.sort_target, _SORT_TARGETS)
    )


def _check_enum(field: str, got: int, known: Sequence[int]) -> Fault | None:
    if got in known:
        return None
    return _invalid(f"{field} must be {min(known)} to {max(known)}, got {got}", field)


_REQUEST_CHECKS: dict[str, Callable[[Any], Fault | None]] = {
    "range": _check_range,
    "put": _check_put,
    "delete": _check_delete,
}
"""By the name of the field in `RequestOp.op`; a test sees that none is missing."""


def _check_overlap(name: str, operations: Sequence[RequestOp]) -> Fault | None:
    """Refuse two writes of one key in a branch, which is one revision. Deletes may overlap, as in etcd."""
    if len(operations) < 2:
        return None
    puts = [(position, each.put.key) for position, each in enumerate(operations) if each.HasField("put")]
    seen: dict[bytes, int] = {}
    for position, key in puts:
        if key in seen:
            return _overlap_fault(name, position, f"puts the key that {name}[{seen[key]}] puts")
        seen[key] = position
    deletes = [
        (*covers(each.delete.key, each.delete.range_end), position)
        for position, each in enumerate(operations)
        if each.HasField("delete")
    ]
    if not puts or not deletes:
        return None
    deletes.sort(key=lambda interval: interval[0])
    starts = [start for start, _, _ in deletes]
    # By start: which delete of those up to here reaches furthest.
    furthest = [deletes[0]]
    for interval in deletes[1:]:
        furthest.append(interval if _reaches_further(interval[1], furthest[-1][1]) else furthest[-1])
    for position, key in puts:
        at = bisect_right(starts, key)
        if at:
            _, end, delete_position = furthest[at - 1]
            if end is None or key < end:
                return _overlap_fault(name, position, f"puts a key that {name}[{delete_position}] deletes")
    return None


def _reaches_further(end: bytes | None, other: bytes | None) -> bool:
    return other is not None and (end is None or end > other)


def _overlap_fault(name: str, position: int, what: str) -> Fault:
    return _invalid(
        f"{name}[{position}] {what}: a transaction may write a key once; leave one of them out",
        f"{name}[{position}].put.key",
    )


_OPERATION_CHECKS: dict[str, Callable[[Any], Fault | None]] = {
    "put": _check_put,
    "delete": _check_delete,
    "txn": _check_txn,
    "compact": _check_compact,
    "lease_grant": _check_grant,
    "lease_revoke": _check_lease_id,
    "lease_renew": _check_lease_id,
    "erase": _check_erase,
}
"""By the name of the field in `Command.op`; a test sees that none is missing."""


def _check_interval(key: bytes, range_end: bytes) -> Fault | None:
    if not range_end:
        return None if 0 < len(key) <= KEY_BYTES_MAX else _key_fault(key)
    return _check_bound("key", key) or _check_bound("range_end", range_end)


def _key_fault(key: bytes) -> Fault:
    return _invalid(f"key must have 1 to {KEY_BYTES_MAX} bytes, got {len(key)}", "key")


def _check_bound(field: str, bound: bytes) -> Fault | None:
    # What follows the longest key immediately is that key and a zero byte: a range must be able to begin or
    # end there.
    bytes_max = KEY_BYTES_MAX + bound.endswith(b"\x00")
    if 0 < len(bound) <= bytes_max:
        return None
    return _invalid(f"{field} must have 1 to {bytes_max} bytes, got {len(bound)}", field)


# ---- the batch around them


def _check_size(raw: bytes) -> Fault | None:
    """Check serialized bytes over BATCH_BYTES_MAX: they may hold a single command and little else."""
    bytes_max = VALUE_BYTES_MAX + BATCH_HEAD_BYTES_MAX
    if len(raw) > bytes_max:
        return _invalid(f"a batch may have at most {bytes_max} bytes, got {len(raw)}", "commands")
    commands = at = head_bytes = 0
    while at < len(raw) and commands < 2 and head_bytes <= BATCH_HEAD_BYTES_MAX:
        field = _read_field(raw, at)
        if field is None:
            return _no_batch(raw)
        number, end = field
        if number == CommandBatch.COMMANDS_FIELD_NUMBER:
            commands += 1
        else:
            head_bytes += end - at
        at = end
    if commands == 1 and head_bytes <= BATCH_HEAD_BYTES_MAX:
        return None
    return _invalid(
        f"a batch may have {BATCH_BYTES_MAX} bytes unless it holds a single command, and beside that at most "
        f"{BATCH_HEAD_BYTES_MAX}; got {len(raw)} bytes; send more batches",
        "commands",
    )


def _read_field(raw: bytes, at: int) -> tuple[int, int] | None:
    """Return (field number, end) of the field that starts at `at`, or None where the bytes are no field."""
    tag = _read_varint(raw, at)
    if tag is None:
        return None
    (key, at), end = tag, None
    match key & 7:
        case 0:
            value = _read_varint(raw, at)
            end = None if value is None else value[1]
        case 1:
            end = at + 8
        case 2:
            size = _read_varint(raw, at)
            end = None if size is None else size[0] + size[1]
        case 5:
            end = at + 4
    return None if end is None or end > len(raw) else (key >> 3, end)


def _read_varint(raw: bytes, at: int) -> tuple[int, int] | None:
    """Return (number, end) of the varint at `at`, or None when it does not end within ten bytes."""
    number = 0
    for shift, byte in enumerate(raw[at : at + 10]):
        number |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return number, at + shift + 1
    return None


def _no_batch(raw: bytes) -> Fault:
    return _invalid(f"the batch's {len(raw)} bytes are no raftstate.v1.CommandBatch", "commands")


def _check_given_up(batch: CommandBatch) -> Fault | None:
    if len(batch.given_up) > SESSION_WINDOW:
        return _invalid(f"given_up may hold {SESSION_WINDOW} serials, got {len(batch.given_up)}", "given_up")
    if batch.given_up and not batch.HasField("session"):
        return _invalid(
            f"given_up counts within a session, and there is none: got {len(batch.given_up)} serials",
            "given_up",
        )
    return None


def _check_serials(batch: CommandBatch) -> Fault | None:
    serials = {command.serial for command in batch.commands}
    if len(serials) != len(batch.commands):
        return _invalid(
            f"serials must differ in a batch, got {len(batch.commands)} commands, {len(serials)} serials",
            "serial",
        )
    if 0 in serials and batch.HasField("session"):
        return _invalid("serial must be at least 1 in a session, got 0", "serial")
    return None


# ---- unknown fields


def _has_unknown(batch: CommandBatch) -> bool:
    """Return whether there is an unknown field at any level."""
    # To look message by message would cost about as much as to apply them.
    known = CommandBatch()
    known.CopyFrom(batch)
    known.DiscardUnknownFields()
    return known.ByteSize() != batch.ByteSize()


def _check_unknown_outside_commands(batch: CommandBatch) -> Fault | None:
    outside = CommandBatch()
    outside.CopyFrom(batch)
    outside.ClearField("commands")
    found = find_unknown(outside)
    return None if found is None else _unknown_fault(*found)


def _find_unknown(message: Message, path: str) -> tuple[str, int] | None:
    unknown = UnknownFieldSet(message)
    if len(unknown):
        return path, unknown[0].field_number
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        below = f"{path}.{descriptor.name}" if path else descriptor.name
        for each in value if descriptor.is_repeated else (value,):
            found = _find_unknown(each, below)
            if found is not None:
                return found
    return None


def _unknown_fault(path: str, number: int) -> Fault:
    field = f"{path}.{number}" if path else str(number)
    return _invalid(
        f"field number {number}{' of ' + path if path else ''} is not known to this version; upgrade the "
        "nodes, or leave it out",
        field,
    )
