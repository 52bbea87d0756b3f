"""The pipeline: answers, refusals, garbage, backpressure, and streams that end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import grpc
import pytest

from raftstate.errors import IndefiniteError, NoLeaderError
from raftstate.machine.types import Batch, Item
from raftstate.pb.v1 import common_pb2, kv_pb2, pipeline_pb2, session_pb2, txn_pb2
from raftstate.rpc import pipeline
from tests.rpc.conftest import Served
from tests.rpc.errors import told_by
from tests.rpc.fake_node import CLUSTER_ID, NODE_ID, TERM, Gate, take

Stream = grpc.aio.StreamStreamCall[pipeline_pb2.CommandBatch, pipeline_pb2.BatchReply]


def put(
    serial: int, key: bytes = b"k", value: bytes = b"v", *, prev_kv: bool = False
) -> pipeline_pb2.Command:
    return pipeline_pb2.Command(serial=serial, put=txn_pb2.PutCommand(key=key, value=value, prev_kv=prev_kv))


def batch(commands: Iterable[pipeline_pb2.Command], **fields: int) -> pipeline_pb2.CommandBatch:
    return pipeline_pb2.CommandBatch(commands=commands, **fields)


async def read(stream: Stream) -> pipeline_pb2.BatchReply:
    async with asyncio.timeout(10):
        reply = await stream.read()
    assert isinstance(reply, pipeline_pb2.BatchReply), "the stream ended"
    return reply


async def read_answers(stream: Stream, count: int) -> dict[int, int | pipeline_pb2.Answer]:
    """Read until `count` commands are answered; return serial -> revision, or the answer that says more."""
    answers: dict[int, int | pipeline_pb2.Answer] = {}
    while len(answers) < count:
        reply = await read(stream)
        got = [
            *zip(reply.serials, reply.revisions, strict=True),
            *((each.serial, each) for each in reply.answers),
        ]
        assert not answers.keys() & {serial for serial, _ in got}, "a serial was answered twice"
        answers.update(got)
    return answers


async def exchange(
    stream: Stream, message: pipeline_pb2.CommandBatch
) -> dict[int, int | pipeline_pb2.Answer]:
    await stream.write(message)
    return await read_answers(stream, len(message.commands))


def errors_of(answers: dict[int, int | pipeline_pb2.Answer]) -> dict[int, tuple[int, int, str]]:
    """Return serial -> (code, outcome, field) of those that were refused."""
    return {
        serial: (answer.error.code, answer.error.outcome, answer.error.field)
        for serial, answer in answers.items()
        if isinstance(answer, pipeline_pb2.Answer) and answer.HasField("error")
    }


async def assert_goes_on(stream: Stream) -> None:
    answers = await exchange(stream, batch([put(999)]))
    assert isinstance(answers[999], int)


async def test_a_batch_of_puts_is_answered_in_one_message_by_serial_and_revision(served: Served) -> None:
    stream = served.pipeline.Write()
    await stream.write(batch([put(7, b"a"), put(3, b"b")]))
    assert await read(stream) == pipeline_pb2.BatchReply(
        header=common_pb2.ResponseHeader(
            cluster_id=CLUSTER_ID, node_id=NODE_ID, revision=3, applied_index=1, term=TERM
        ),
        serials=[7, 3],
        revisions=[2, 3],
    )


async def test_through_a_node_that_lags_the_header_holds_the_writes_own_log_position(served: Served) -> None:
    served.node.applied_lag = 10
    stream = served.pipeline.Write()
    await stream.write(batch([put(1)]))
    reply = await read(stream)
    assert (reply.header.revision, reply.header.applied_index) == (2, 1)


async def test_the_bytes_of_a_good_batch_go_into_the_log_untouched(served: Served) -> None:
    # Fields in an order that no protobuf encoder would choose: a batch encoded anew would differ.
    command = put(1).SerializeToString()
    raw = b"\x32" + bytes([len(command)]) + command + b"\x28\xe8\x07"
    stream = served.channel.stream_stream("/raftstate.v1.Pipeline/Write")()
    await stream.write(raw)
    assert pipeline_pb2.BatchReply.FromString(await stream.read()).serials == [1]
    assert served.node.items == [Batch(raw)]
    assert served.node.timeouts_s == [1.0]


async def test_what_has_more_to_say_comes_as_an_answer(served: Served) -> None:
    stream = served.pipeline.Write()
    delete = pipeline_pb2.Command(serial=3, delete=txn_pb2.DeleteCommand(key=b"k"))
    answers = await exchange(stream, batch([put(1), put(2, value=b"w", prev_kv=True), delete]))
    previous = common_pb2.KeyValue(key=b"k", value=b"v", create_revision=2, mod_revision=2, version=1)
    assert answers == {
        1: 2,
        2: pipeline_pb2.Answer(serial=2, revision=3, prev_kvs=[previous]),
        3: pipeline_pb2.Answer(serial=3, revision=4, deleted=1),
    }


async def test_a_fast_batch_overtakes_a_slow_one(served: Served) -> None:
    gate = Gate()
    slow = batch([put(1)])

    async def hold_slow(item: Item) -> None:
        if item == Batch(slow.SerializeToString()):
            await gate(item)

    served.node.on_write = hold_slow
    stream = served.pipeline.Write()
    await stream.write(slow)
    await take(gate.entered, 1)
    assert await exchange(stream, batch([put(2)])) == {2: 2}
    gate.open()
    assert await read_answers(stream, 1) == {1: 3}


async def test_results_that_are_ready_together_share_a_message(served: Served) -> None:
    gate = Gate()
    served.node.on_write = gate
    stream = served.pipeline.Write()
    for serial in range(1, 11):
        await stream.write(batch([put(serial)]))
    await take(gate.entered, 10)
    gate.open()
    reply = await read(stream)
    assert (list(reply.serials), list(reply.revisions)) == ([*range(1, 11)], [*range(2, 12)])
    assert (reply.header.revision, reply.header.applied_index) == (11, 10)


async def test_answers_too_large_for_one_message_come_in_several(served: Served) -> None:
    value = bytes(1 << 20)
    stream = served.pipeline.Write()
    keys = [b"%d" % number for number in range(5)]
    for serial, key in enumerate(keys):
        assert len(await exchange(stream, batch([put(serial, key, value)]))) == 1
    await stream.write(batch([put(serial, key, prev_kv=True) for serial, key in enumerate(keys)]))
    replies = [await read(stream) for _ in range(3)]
    assert [[answer.serial for answer in reply.answers] for reply in replies] == [[0, 1], [2, 3], [4]]
    assert all(answer.prev_kvs[0].value == value for reply in replies for answer in reply.answers)


async def test_a_bad_command_is_refused_and_the_rest_of_its_batch_is_run(served: Served) -> None:
    stream = served.pipeline.Write()
    commands = [put(1, b"a"), put(2, b""), put(3, b"c" * 481), put(4, b"d"), pipeline_pb2.Command(serial=5)]
    answers = await exchange(stream, batch(commands, cluster_id=CLUSTER_ID, timeout_ms=700))
    invalid = (common_pb2.ERROR_CODE_INVALID, common_pb2.OUTCOME_NOT_APPLIED)
    assert errors_of(answers) == {2: (*invalid, "key"), 3: (*invalid, "key"), 5: (*invalid, "op")}
    assert (answers[1], answers[4]) == (2, 3)
    kept = batch([commands[0], commands[3]], cluster_id=CLUSTER_ID, timeout_ms=700)
    assert (served.node.items, served.node.commands) == ([Batch(kept.SerializeToString())], [2])


async def test_a_batch_of_nothing_but_bad_commands_leaves_no_log_entry(served: Served) -> None:
    stream = served.pipeline.Write()
    answers = await exchange(stream, batch([put(1, b""), put(2, b"")]))
    assert errors_of(answers).keys() == {1, 2}
    assert served.node.items == []
    await assert_goes_on(stream)


@pytest.mark.parametrize(
    ("message", "code", "field"),
    [
        (batch([put(1), put(2)], cluster_id=0xBAD), common_pb2.ERROR_CODE_WRONG_CLUSTER, "cluster_id"),
        (batch([put(1), put(2)], given_up=[7]), common_pb2.ERROR_CODE_INVALID, "given_up"),  # type: ignore[arg-type]
        (
            batch([put(1), put(2)], session=common_pb2.SessionId(index=5, nonce=5)),  # type: ignore[arg-type]
            common_pb2.ERROR_CODE_SESSION_EXPIRED,
            "session",
        ),
    ],
    ids=["wrong cluster", "given up without a session", "no such session"],
)
async def test_a_refused_batch_is_answered_command_by_command_and_the_stream_goes_on(
    served: Served, message: pipeline_pb2.CommandBatch, code: int, field: str
) -> None:
    stream = served.pipeline.Write()
    answers = await exchange(stream, message)
    expected = {command.serial: (code, common_pb2.OUTCOME_NOT_APPLIED, field) for command in message.commands}
    assert errors_of(answers) == expected
    await assert_goes_on(stream)


@pytest.mark.case(59)
async def test_a_batch_for_another_cluster_never_reaches_the_log(served: Served) -> None:
    stream = served.pipeline.Write()
    await exchange(stream, batch([put(1)], cluster_id=0xBAD))
    assert served.node.items == []


@pytest.mark.case(75)
async def test_an_unknown_field_refuses_its_command_or_outside_of_commands_the_batch(served: Served) -> None:
    stream = served.channel.stream_stream(
        "/raftstate.v1.Pipeline/Write", response_deserializer=pipeline_pb2.BatchReply.FromString
    )()
    unknown = b"\x9a\x06\x01x"  # field 99, one byte
    command = put(1).SerializeToString() + unknown
    await stream.write(b"\x32" + bytes([len(command)]) + command + batch([put(2)]).SerializeToString())
    answers = await read_answers(stream, 2)
    invalid = (common_pb2.ERROR_CODE_INVALID, common_pb2.OUTCOME_NOT_APPLIED, "99")
    assert (errors_of(answers), answers[2]) == ({1: invalid}, 2)
    await stream.write(batch([put(3), put(4)]).SerializeToString() + unknown)
    assert errors_of(await read_answers(stream, 2)) == {3: invalid, 4: invalid}
    assert served.node.items == [Batch(batch([put(2)]).SerializeToString())]


async def test_without_a_leader_each_command_is_told_so_and_the_stream_goes_on(served: Served) -> None:
    async def no_leader(_item: Item) -> None:
        raise NoLeaderError("no leader took the write in time", detail={"term": 7, "leader_silent_ms": 900})

    served.node.on_write = no_leader
    stream = served.pipeline.Write()
    answers = await exchange(stream, batch([put(1), put(2)]))
    error = common_pb2.Error(
        code=common_pb2.ERROR_CODE_NO_LEADER,
        outcome=common_pb2.OUTCOME_NOT_APPLIED,
        message="no leader took the write in time",
        term=7,
        leader_silent_ms=900,
    )
    assert answers == {serial: pipeline_pb2.Answer(serial=serial, error=error) for serial in (1, 2)}
    served.node.on_write = None
    await assert_goes_on(stream)


@pytest.mark.parametrize("error", [IndefiniteError("the link was lost"), ZeroDivisionError("a defect")])
async def test_what_may_have_been_appended_is_answered_unknown(served: Served, error: Exception) -> None:
    async def fail(_item: Item) -> None:
        raise error

    served.node.on_write = fail
    stream = served.pipeline.Write()
    answers = await exchange(stream, batch([put(1), put(2, b"")]))
    assert {serial: outcome for serial, (_, outcome, _) in errors_of(answers).items()} == {
        1: common_pb2.OUTCOME_UNKNOWN,
        2: common_pb2.OUTCOME_NOT_APPLIED,
    }


async def test_in_a_session_a_batch_sent_again_on_another_stream_is_run_once(served: Served) -> None:
    session = (await served.session.Register(session_pb2.RegisterRequest(nonce=9))).session
    message = pipeline_pb2.CommandBatch(session=session, floor=1, commands=[put(1), put(2)])
    first = await exchange(served.pipeline.Write(), message)
    again = await exchange(served.pipeline.Write(), message)
    assert first == again == {1: 2, 2: 3}
    assert served.node.revision == 3


@pytest.mark.case(71)
async def test_serials_given_up_by_a_batch_without_commands_never_run(served: Served) -> None:
    session = (await served.session.Register(session_pb2.RegisterRequest(nonce=9))).session
    stream = served.pipeline.Write()
    await stream.write(pipeline_pb2.CommandBatch(session=session, floor=1, given_up=[1]))
    late = pipeline_pb2.CommandBatch(session=session, floor=1, commands=[put(1), put(2)])
    answers = await exchange(stream, late)
    assert errors_of(answers) == {
        1: (common_pb2.ERROR_CODE_CANCELLED, common_pb2.OUTCOME_NOT_APPLIED, "serial")
    }
    assert answers[2] == 2


async def test_garbage_ends_its_stream_once_all_before_it_is_answered_and_no_other(served: Served) -> None:
    gate = Gate()
    served.node.on_write = gate
    other = served.pipeline.Write()
    stream = served.channel.stream_stream(
        "/raftstate.v1.Pipeline/Write", response_deserializer=pipeline_pb2.BatchReply.FromString
    )()
    await stream.write(batch([put(1)]).SerializeToString())
    await stream.write(b"\xff\xff\xff")
    await take(gate.entered, 1)
    gate.open()
    assert await read_answers(stream, 1) == {1: 2}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    told = told_by(caught.value)
    assert (told.status, told.error.code) == (grpc.StatusCode.INVALID_ARGUMENT, common_pb2.ERROR_CODE_INVALID)
    assert "3 bytes are no raftstate.v1.CommandBatch" in told.text
    await assert_goes_on(other)


@pytest.mark.case(66)
@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\x32\x00" * (2 << 20), "a batch may have 1048576 bytes unless it holds a single command"),
        (b"\x32\x00" * (512 << 10), "a batch may hold 512 commands, got 524288"),
        (batch(put(serial) for serial in range(513)).SerializeToString(), "may hold 512 commands, got 513"),
        (
            batch([put(1, value=bytes(1 << 20)), put(2)]).SerializeToString(),
            "a batch may have 1048576 bytes unless it holds a single command",
        ),
        (batch([put(1, value=bytes(9 << 20))]).SerializeToString(), "a batch may have at most 8454144 bytes"),
    ],
    ids=["4 MiB of commands", "1 MiB of commands", "513 commands", "over 1 MiB", "over 8 MiB"],
)
async def test_a_batch_over_its_limits_ends_its_stream_with_no_answer_to_any_command(
    served: Served, raw: bytes, text: str
) -> None:
    stream = served.channel.stream_stream(
        "/raftstate.v1.Pipeline/Write", response_deserializer=pipeline_pb2.BatchReply.FromString
    )()
    await stream.write(batch([put(1)]).SerializeToString())
    assert await read_answers(stream, 1) == {1: 2}
    await stream.write(raw)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    told = told_by(caught.value)
    assert (told.status, told.error.code, told.error.field, told.error.outcome) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        common_pb2.ERROR_CODE_INVALID,
        "commands",
        common_pb2.OUTCOME_NOT_APPLIED,
    )
    assert text in told.text
    assert len(served.node.items) == 1


async def test_an_oversized_message_ends_its_stream_and_no_other(served: Served) -> None:
    other = served.pipeline.Write()
    stream = served.channel.stream_stream("/raftstate.v1.Pipeline/Write")()
    await stream.write(bytes((20 << 20) + 1))
    assert await stream.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await assert_goes_on(other)


async def test_a_half_closed_stream_is_answered_in_full_and_ends_well(served: Served) -> None:
    gate = Gate()
    served.node.on_write = gate
    stream = served.pipeline.Write()
    await stream.write(batch([put(1)]))
    await stream.done_writing()
    await take(gate.entered, 1)
    gate.open()
    assert await read_answers(stream, 1) == {1: 2}
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() is grpc.StatusCode.OK


async def write_all(stream: Stream, messages: Sequence[pipeline_pb2.CommandBatch]) -> None:
    for message in messages:
        await stream.write(message)


@pytest.mark.parametrize(
    ("limit", "value_bytes", "in_flight"),
    [("IN_FLIGHT_BATCHES_MAX", 1, 4), ("IN_FLIGHT_BYTES_MAX", 1_000, 4)],
)
async def test_a_stream_has_a_bounded_number_of_batches_and_bytes_in_flight(
    served: Served, monkeypatch: pytest.MonkeyPatch, limit: str, value_bytes: int, in_flight: int
) -> None:
    monkeypatch.setattr(pipeline, limit, 4 if limit == "IN_FLIGHT_BATCHES_MAX" else 4_000)
    gate = Gate()
    served.node.on_write = gate
    stream = served.pipeline.Write()
    messages = [batch([put(serial, value=bytes(value_bytes))]) for serial in range(1, 21)]
    writing = asyncio.ensure_future(write_all(stream, messages))
    await take(gate.entered, in_flight)
    # Reads go to the node and back on the same connection: what the stream would still take, it has by then.
    for _ in range(20):
        await served.kv.Get(kv_pb2.GetRequest(key=b"k"))
    assert gate.entered.qsize() == 0
    gate.open()
    assert await read_answers(stream, 20) == {serial: serial + 1 for serial in range(1, 21)}
    await writing


async def test_a_client_that_does_not_read_its_answers_is_not_read_from_either(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "IN_FLIGHT_BATCHES_MAX", 2)
    # Each answer holds the value before it: more than flow control lets pass to a client that does not read.
    value = bytes(512 << 10)
    messages = [batch([put(serial, value=value, prev_kv=True)]) for serial in range(1, 41)]
    stream = served.pipeline.Write()
    writing = asyncio.ensure_future(write_all(stream, messages))
    for _ in range(100):
        await served.kv.Get(kv_pb2.GetRequest(key=b"absent"))
    assert len(served.node.items) < 40
    assert len(await read_answers(stream, 40)) == 40
    await writing


async def test_a_cancelled_stream_ends_its_waiting_and_nothing_else(served: Served) -> None:
    gate = Gate()
    served.node.on_write = gate
    stream, other = served.pipeline.Write(), served.pipeline.Write()
    await stream.write(batch([put(1)]))
    await stream.write(batch([put(2)]))
    await other.write(batch([put(3)]))
    await take(gate.entered, 3)
    stream.cancel()
    await take(gate.left, 2)
    gate.open()
    assert await read_answers(other, 1) == {3: 2}


async def test_streams_beyond_the_limit_are_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "STREAMS_MAX", 1)
    first = served.pipeline.Write()
    await assert_goes_on(first)
    second = served.pipeline.Write()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await second.read()
    told = told_by(caught.value)
    assert (told.status, told.error.outcome) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        common_pb2.OUTCOME_NOT_APPLIED,
    )
    await first.done_writing()
    assert await first.code() is grpc.StatusCode.OK
    await assert_goes_on(served.pipeline.Write())
