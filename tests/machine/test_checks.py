"""What is refused, by `check` and alike where it is applied."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace

import pytest

from raftstate.machine import command as command_module
from raftstate.machine.command import check, check_batch, find_unknown, parse_batch
from raftstate.machine.types import (
    BATCH_BYTES_MAX,
    BATCH_COMMANDS_MAX,
    KEY_BYTES_MAX,
    LEASE_TTL_MS_MAX,
    LEASE_TTL_MS_MIN,
    MACHINE_VERSION,
    SESSION_WINDOW,
    TXN_OPERATIONS_MAX,
    VALUE_BYTES_MAX,
    Answer,
    Batch,
    Code,
    Fault,
    Refused,
    SessionId,
)
from raftstate.pb.v1 import cluster_pb2
from raftstate.pb.v1.pipeline_pb2 import Command, CommandBatch
from raftstate.pb.v1.txn_pb2 import Compare, RequestOp, TxnCommand
from tests.machine.rig import (
    Rig,
    batch,
    compact,
    compare,
    delete,
    grant,
    op_delete,
    op_put,
    op_range,
    put,
    refusal,
    renew,
    revoke,
    txn,
)

LONGEST = b"k" * KEY_BYTES_MAX
UNKNOWN = b"\xfa\x01\x01x"
"""Field 31, one byte long: known to no message."""


def with_unknown(command: Command, where: str = "") -> Command:
    raw = command.SerializeToString()
    if not where:
        return Command.FromString(raw + UNKNOWN)
    getattr(command, where).MergeFromString(UNKNOWN)
    return command


GOOD = [
    put(1, LONGEST, b""),
    put(0, b"\x00", b"." * VALUE_BYTES_MAX),
    delete(1, LONGEST),
    delete(1, LONGEST + b"\x00", b"l"),
    delete(1, b"a", LONGEST + b"\x00"),
    delete(1, b"b", b"a"),
    put(1, b"k", lease=1),
    txn(1),
    txn(1, [compare(b"k", version=0)] * 1_000, [op_put(b"k")] + [op_range(b"k")] * 22, [op_put(b"k")]),
    txn(
        1,
        [compare(LONGEST + b"\x00", "<", b"\x00", lease=1)],
        [op_range(b"b", b"a", sort_order=2, sort_target=4)],
    ),
    # Deletes may overlap, and so may what is read and what is written.
    txn(1, (), [op_delete(b"a", b"c"), op_delete(b"b"), op_delete(b"b", b"\x00"), op_range(b"b")]),
    txn(1, (), [op_delete(b"a", b"c"), op_put(b"c"), op_delete(b"d"), op_put(b"d\x00"), op_put(b"Z")]),
    txn(1, (), [op_delete(b"c", b"a"), op_put(b"b")]),
    compact(1, 1),
    grant(1, 0, LEASE_TTL_MS_MIN),
    grant(1, 5, LEASE_TTL_MS_MAX),
    revoke(1, 1),
    renew(1, (1 << 64) - 1),
]
BAD = [
    (put(1, b""), "key", "key must have 1 to 480 bytes, got 0"),
    (put(1, LONGEST + b"k"), "key", "key must have 1 to 480 bytes, got 481"),
    (
        put(1, b"k", b"." * (VALUE_BYTES_MAX + 1)),
        "value",
        "value must have at most 8388608 bytes, got 8388609",
    ),
    (delete(1, b""), "key", "key must have 1 to 480 bytes, got 0"),
    (delete(1, LONGEST + b"\x00"), "key", "key must have 1 to 480 bytes, got 481"),
    (delete(1, b"", b"z"), "key", "key must have 1 to 480 bytes, got 0"),
    (delete(1, LONGEST + b"k", b"z"), "key", "key must have 1 to 480 bytes, got 481"),
    (delete(1, b"a", LONGEST + b"\x00\x00"), "range_end", "range_end must have 1 to 481 bytes, got 482"),
    (compact(1, 0), "revision", "revision must be at least 1, got 0"),
    (grant(1, 7, 999), "ttl_ms", "ttl_ms must be 1000 to 86400000, got 999"),
    (grant(1, 7, 86_400_001), "ttl_ms", "ttl_ms must be 1000 to 86400000, got 86400001"),
    (revoke(1, 0), "id", "id must be that of a lease, got 0"),
    (renew(1, 0), "id", "id must be that of a lease, got 0"),
    (
        txn(1, [compare(b"k", version=0)] * 1_000, [op_range(b"k")] * 20, [op_range(b"k")] * 5),
        "txn",
        "a transaction may hold 1024 compares and operations in all, got 1025",
    ),
    (
        txn(1, [compare(b"k", version=0), compare(b"k")]),
        "compares[1].target",
        "compares[1]: a compare must hold what it compares with, got none",
    ),
    (
        txn(1, [compare(b"", version=0)]),
        "compares[0].key",
        "compares[0]: key must have 1 to 480 bytes, got 0",
    ),
    (
        txn(1, [compare(b"a", range_end=LONGEST + b"kk", version=0)]),
        "compares[0].range_end",
        "compares[0]: range_end must have 1 to 480 bytes, got 482",
    ),
    (
        txn(1, [Compare(key=b"k", result=4, version=0)]),  # type: ignore[arg-type]
        "compares[0].result",
        "compares[0]: result must be 0 to 3, got 4",
    ),
    (txn(1, (), [RequestOp()]), "success[0].op", "success[0]: must hold an operation, got none"),
    (
        txn(1, (), [], [op_range(b"k"), op_range(LONGEST + b"k")]),
        "failure[1].range.key",
        "failure[1]: key must have 1 to 480 bytes, got 481",
    ),
    (
        txn(1, (), [op_range(b"k", sort_order=3)]),
        "success[0].range.sort_order",
        "success[0]: sort_order must be 0 to 2, got 3",
    ),
    (
        txn(1, (), [op_range(b"k", sort_target=-1)]),
        "success[0].range.sort_target",
        "success[0]: sort_target must be 0 to 4, got -1",
    ),
    (
        txn(1, (), [op_put(b"k", b"." * (VALUE_BYTES_MAX + 1))]),
        "success[0].put.value",
        "success[0]: value must have at most 8388608 bytes, got 8388609",
    ),
    (
        txn(1, (), [], [op_delete(b"", b"z")]),
        "failure[0].delete.key",
        "failure[0]: key must have 1 to 480 bytes, got 0",
    ),
    *[
        (
            txn(1, *branches),
            f"{name}[{at}].put.key",
            f"{name}[{at}] {what}: a transaction may write a key once; leave one of them out",
        )
        for branches, name, at, what in [
            (
                ((), [op_put(b"a"), op_put(b"b"), op_put(b"a")]),
                "success",
                2,
                "puts the key that success[0] puts",
            ),
            (((), [], [op_put(b"a"), op_delete(b"a")]), "failure", 0, "puts a key that failure[1] deletes"),
            (((), [op_delete(b"a"), op_put(b"a")]), "success", 1, "puts a key that success[0] deletes"),
            (((), [op_put(b"b"), op_delete(b"a", b"c")]), "success", 0, "puts a key that success[1] deletes"),
            (
                ((), [op_delete(b"a", b"\x00"), op_put(b"z")]),
                "success",
                1,
                "puts a key that success[0] deletes",
            ),
            (
                ((), [op_delete(b"a", b"m"), op_delete(b"b", b"c"), op_delete(b"d"), op_put(b"e")]),
                "success",
                3,
                "puts a key that success[0] deletes",
            ),
        ]
    ],
    (Command(serial=1), "op", "a command must hold an operation, got none"),
    (
        with_unknown(put(1, b"k")),
        "31",
        "field number 31 is not known to this version; upgrade the nodes, or leave it out",
    ),
    (
        with_unknown(put(1, b"k"), "put"),
        "put.31",
        "field number 31 of put is not known to this version; upgrade the nodes, or leave it out",
    ),
    (
        with_unknown(txn(1, (), [op_put(b"k")]), "txn"),
        "txn.31",
        "field number 31 of txn is not known to this version; upgrade the nodes, or leave it out",
    ),
    (
        Command(serial=1, txn=TxnCommand(success=[RequestOp.FromString(UNKNOWN)])),
        "txn.success.31",
        "field number 31 of txn.success is not known to this version; upgrade the nodes, or leave it out",
    ),
    (
        with_unknown(Command(serial=1)),
        "31",
        "field number 31 is not known to this version; upgrade the nodes, or leave it out",
    ),
]


@pytest.mark.parametrize("command", GOOD, ids=range(len(GOOD)))
def test_what_lies_within_the_limits_passes(command: Command) -> None:
    assert check(command, MACHINE_VERSION) is None
    assert check_batch(CommandBatch(commands=[command]), MACHINE_VERSION).faults == {}


@pytest.mark.parametrize(("command", "field", "message"), BAD, ids=range(len(BAD)))
def test_a_command_out_of_bounds_is_refused_by_name_and_limit(
    command: Command, field: str, message: str
) -> None:
    fault = Fault(Code.INVALID, message, field)
    assert check(command, MACHINE_VERSION) == fault
    found = check_batch(CommandBatch(commands=[put(7, b"k"), command]), MACHINE_VERSION)
    assert (found.fault, found.faults) == (None, {1: fault})


@pytest.mark.case(66)
@pytest.mark.case(75)
@pytest.mark.parametrize(("command", "field", "message"), BAD, ids=range(len(BAD)))
def test_a_refused_command_is_an_answer_and_the_rest_of_its_batch_runs(
    command: Command, field: str, message: str
) -> None:
    rig = Rig()
    sid = rig.register()
    refused = Answer(1, 1, Fault(Code.INVALID, message, field))
    if command.ByteSize() > BATCH_BYTES_MAX:
        assert rig.write(command, session=sid) == {1: refused}
    else:
        assert rig.write(command, put(2, b"k"), session=sid) == {1: refused, 2: Answer(2, 2)}
    # It is stored as any answer: the serial is used up.
    rig.reload()
    assert rig.write(put(1, b"k"), session=sid) == {1: refused}
    assert rig.machine.applied_index == len(rig.log)


def batch_of(**fields: object) -> CommandBatch:
    return CommandBatch(commands=[put(1, b"k"), put(2, b"k")], **fields)  # type: ignore[arg-type]


def in_session(*commands: Command) -> CommandBatch:
    message = CommandBatch(commands=commands)
    message.session.index = 1
    return message


BAD_BATCHES = [
    (CommandBatch(commands=[put(1, b"k"), put(1, b"l")]), "serial"),
    (in_session(put(0, b"k")), "serial"),
    (batch_of(given_up=[5]), "given_up"),
    (batch_of(given_up=range(SESSION_WINDOW + 1)), "given_up"),
    (CommandBatch.FromString(batch_of().SerializeToString() + UNKNOWN), "31"),
    (CommandBatch.FromString(b"\x12\x04" + UNKNOWN), "session.31"),
]


@pytest.mark.case(66)
@pytest.mark.parametrize(("message", "field"), BAD_BATCHES, ids=range(len(BAD_BATCHES)))
def test_a_batch_out_of_bounds_is_refused_as_a_whole(message: CommandBatch, field: str) -> None:
    fault = check_batch(message, MACHINE_VERSION).fault
    assert fault is not None
    assert (fault.code, fault.field) == (Code.INVALID, field)
    rig = Rig()
    [result] = rig.run(Batch(message.SerializeToString()))
    assert refusal(result) == (Code.INVALID, field)
    assert (rig.machine.applied_index, rig.machine.revision) == (1, 1)


MEGABYTE = bytes(BATCH_BYTES_MAX)
NO_BATCHES = {
    "garbage": (b"garbage", "the batch's 7 bytes are no raftstate.v1.CommandBatch"),
    "cut off": (b"\x12\x05a", "the batch's 3 bytes are no raftstate.v1.CommandBatch"),
    "large garbage": (b"\xff" * (1 << 21), "the batch's 2097152 bytes are no raftstate.v1.CommandBatch"),
    "large and cut off": (
        b"\x32\x80\x80\x80\x01" + MEGABYTE,
        "the batch's 1048581 bytes are no raftstate.v1.CommandBatch",
    ),
    "a group": (b"\x0b" + MEGABYTE, "the batch's 1048577 bytes are no raftstate.v1.CommandBatch"),
    "one command too many": (
        CommandBatch(commands=[put(n, b"k") for n in range(BATCH_COMMANDS_MAX + 1)]).SerializeToString(),
        "a batch may hold 512 commands, got 513; send more batches",
    ),
    "a small batch of nothing but commands": (
        b"\x32\x00" * 1_000,
        "a batch may hold 512 commands, got 1000; send more batches",
    ),
    "two large commands": (
        CommandBatch(commands=[put(n, b"k", MEGABYTE[:600_000]) for n in (1, 2)]).SerializeToString(),
        "a batch may have 1048576 bytes unless it holds a single command, and beside that at most 65536; got "
        "1200034 bytes; send more batches",
    ),
    "four million commands": (
        b"\x32\x00" * (4 << 20),
        "a batch may have 1048576 bytes unless it holds a single command, and beside that at most 65536; got "
        "8388608 bytes; send more batches",
    ),
    "no command": (
        b"\x7a\x80\x80\x40" + MEGABYTE,
        "a batch may have 1048576 bytes unless it holds a single command, and beside that at most 65536; got "
        "1048580 bytes; send more batches",
    ),
    "too much beside the command": (
        CommandBatch(commands=[put(1, b"k", MEGABYTE)]).SerializeToString() + b"\x28\x01" * 32_769,
        "a batch may have 1048576 bytes unless it holds a single command, and beside that at most 65536; got "
        "1114131 bytes; send more batches",
    ),
    "too large for any value": (
        batch(put(1, b"k", bytes(VALUE_BYTES_MAX + (64 << 10)))).raw,
        "a batch may have at most 8454144 bytes, got 8454164",
    ),
}


@pytest.mark.case(66)
@pytest.mark.parametrize(("raw", "message"), NO_BATCHES.values(), ids=NO_BATCHES)
def test_bytes_that_are_no_batch_or_over_its_limits_are_refused(raw: bytes, message: str) -> None:
    assert parse_batch(raw) == Fault(Code.INVALID, message, "commands")
    rig = Rig()
    assert rig.run(Batch(raw)) == [Refused(Fault(Code.INVALID, message, "commands"))]
    assert (rig.machine.applied_index, rig.machine.revision) == (1, 1)


def test_what_is_refused_for_its_size_is_never_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    # It has no FromString: parsing fails.
    monkeypatch.setattr(command_module, "CommandBatch", SimpleNamespace(COMMANDS_FIELD_NUMBER=6))
    assert isinstance(parse_batch(b"\x32\x00" * (4 << 20)), Fault)
    with pytest.raises(AttributeError):
        parse_batch(b"")


def test_a_second_command_ends_the_look_at_a_large_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    read_field = command_module._read_field

    def record(raw: bytes, at: int) -> tuple[int, int] | None:
        seen.append(at)
        return read_field(raw, at)

    monkeypatch.setattr(command_module, "_read_field", record)
    assert isinstance(parse_batch(b"\x28\x05" + b"\x32\x00" * (1 << 20)), Fault)
    assert seen == [0, 2, 4]


def test_a_large_batch_may_hold_its_command_anywhere_among_every_kind_of_field() -> None:
    large = CommandBatch(cluster_id=9, floor=3, timeout_ms=7, commands=[put(5, b"k", MEGABYTE)])
    large.session.index = 1
    head = CommandBatch(cluster_id=9, given_up=range(1 << 60, (1 << 60) + SESSION_WINDOW))
    fixed32 = b"\x7d\x01\x02\x03\x04"
    raw = head.SerializeToString() + fixed32 + large.SerializeToString() + b"\x20\x01"
    parsed = parse_batch(raw)
    assert isinstance(parsed, CommandBatch)
    assert parsed == CommandBatch.FromString(raw)
    assert (len(parsed.commands), len(parsed.given_up)) == (1, SESSION_WINDOW + 1)


def test_a_single_command_may_be_larger_than_a_batch() -> None:
    rig = Rig()
    assert rig.write(put(1, b"k", b"." * VALUE_BYTES_MAX)) == {1: Answer(1, 2)}


@pytest.mark.case(75)
def test_a_batch_keeps_its_unknown_fields_while_it_is_checked() -> None:
    message = CommandBatch(commands=[with_unknown(put(1, b"k"), "put")])
    raw = message.SerializeToString()
    check_batch(message, MACHINE_VERSION)
    assert message.SerializeToString() == raw
    assert find_unknown(message.commands[0]) == ("put", 31)


def test_an_operation_newer_than_the_machine_version_is_unimplemented() -> None:
    fault = check(put(1, b"k"), 0)
    assert fault == Fault(
        Code.UNIMPLEMENTED,
        "put needs machine version 1, and the cluster is at 0: a client newer than the cluster",
        "put",
    )


def test_a_put_with_a_lease_is_newer_than_a_put_without() -> None:
    command = put(1, b"k", lease=5)
    fault = Fault(
        Code.UNIMPLEMENTED,
        "a put with a lease needs machine version 2, and the cluster is at 1: a client newer than the "
        "cluster",
        "lease",
    )
    assert check(command, 1) == fault
    assert check_batch(CommandBatch(commands=[put(2, b"k"), command]), 1).faults == {1: fault}
    assert check(put(1, b"k"), 1) is None


def test_overlaps_are_found_as_a_look_at_every_pair_finds_them() -> None:
    random = Random(1)
    keys = [b"a", b"b", b"c", b"d", b"e"]
    found = 0
    for _ in range(2_000):
        puts = random.sample(keys, random.choice([1, 2]))
        deletes = [
            (random.choice(keys), random.choice([b"", b"", b"\x00", *keys]))
            for _ in range(random.choice([1, 3]))
        ]
        operations = [op_put(key) for key in puts] + [op_delete(*interval) for interval in deletes]
        random.shuffle(operations)
        overlap = any(
            key == start if not end else start <= key and (end == b"\x00" or key < end)
            for key in puts
            for start, end in deletes
        )
        assert (check(txn(1, (), operations), MACHINE_VERSION) is not None) == overlap
        found += overlap
    assert 500 < found < 1_500


def test_a_session_that_is_all_zero_is_unknown() -> None:
    rig = Rig()
    [result] = rig.run(batch(put(1, b"k"), session=SessionId(0, 0)))
    assert refusal(result) == (Code.SESSION_EXPIRED, "session")


def test_every_operation_of_the_wire_has_a_check_and_a_machine_version() -> None:
    operations = {field.name for field in Command.DESCRIPTOR.oneofs_by_name["op"].fields}
    assert set(command_module._OPERATION_CHECKS) == operations
    assert set(command_module._OPERATION_SINCE) == operations
    requests = {field.name for field in RequestOp.DESCRIPTOR.oneofs_by_name["op"].fields}
    assert set(command_module._REQUEST_CHECKS) == requests


def test_an_unknown_field_in_a_repeated_message_is_found() -> None:
    member = cluster_pb2.Member(id=1).SerializeToString() + b"\xf8\x07\x01"
    status = cluster_pb2.StatusResponse.FromString(b"\x7a" + bytes((len(member),)) + member)
    assert find_unknown(status) == ("members", 127)


def test_the_transactions_of_a_batch_hold_a_bounded_number_of_operations_together() -> None:
    def transactions(count: int, operations: int) -> CommandBatch:
        command = Command()
        for _ in range(operations):
            command.txn.compares.add(key=b"k", version=0)
        return CommandBatch(commands=[Command(serial=n, txn=command.txn) for n in range(count)])

    assert check_batch(transactions(16, TXN_OPERATIONS_MAX), MACHINE_VERSION).fault is None
    refused = check_batch(transactions(17, TXN_OPERATIONS_MAX), MACHINE_VERSION).fault
    assert refused is not None
    assert (refused.code, refused.field) == (Code.INVALID, "commands")
    assert "16384 compares and operations" in refused.message
