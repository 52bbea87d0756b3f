"""The Pipeline service: batches in, answers out, over one stream. Most writes of a busy cluster come this
way.

    read ──> check ──> node.write ──┐   one task a batch, IN_FLIGHT_BATCHES_MAX at a time
    read ──> check ──> node.write ──┼──> ready ──> one writer: all that is ready becomes one message
    ...                             ┘

A batch's bytes go into the log as they came; only commands that fail their check make it be encoded again,
without them. A batch counts as in flight until its answers are written: a client that sends without reading,
or faster than the cluster commits, is held back by the stream's flow control and not by this node's memory.
The refusal of a batch is an answer to each of its commands. Bytes that are no batch, or more of one than its
limits allow, end the stream, once everything before them is answered: answers to each command of such a
message could take far more than the message did.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from raftstate.errors import ResourceExhaustedError
from raftstate.machine.command import check_batch, parse_batch
from raftstate.machine.types import Batch, BatchResult, Fault
from raftstate.node.service import TIMEOUT_S_DEFAULT, NodeService
from raftstate.pb.v1 import common_pb2, pipeline_pb2
from raftstate.rpc.conversion import answer_message, pair_count, write_header
from raftstate.rpc.pace import Pace
from raftstate.rpc.status import RefusedError, refusal_of_error, refusal_of_fault
from raftstate.rpc.stream import Stream
from raftstate.rpc.validation import check_cluster
from raftstate.rpc.writing import apply_item

STREAMS_MAX = 1_024
"""A process needs one stream, however many threads it has; the server's other calls are for unary ones."""
IN_FLIGHT_BATCHES_MAX = 64
IN_FLIGHT_BYTES_MAX = 64 << 20
"""Reading stops at either; one batch may exceed the bytes. The batches are eight times as many full ones as a
session's window takes, the bytes as many as a node holds for all that waits (`requests.HELD_BYTES_MAX`)."""
REPLY_BYTES_MAX = 3 << 20
"""Answers go into one message up to here (but at least one answer), so that it passes a client's 4 MiB
default."""


_FEW_PAIRS = 3
"""Of a single command: a full batch of such answers takes no longer than a turn may."""


class PipelineHandlers:
    """Answers for one node."""

    def __init__(self, service: NodeService, pace: Pace) -> None:
        self._service = service
        self._pace = pace
        self._streams = 0

    async def write(self, stream: Stream) -> None:
        """Serve one stream to its end.

        Raises `ResourceExhaustedError` at the limit of streams, `RefusedError` when what came was no batch.
        """
        if self._streams >= STREAMS_MAX:
            raise ResourceExhaustedError(
                f"this node serves {self._streams} pipeline streams, its limit; share one, or use"
                " another node"
            )
        self._streams += 1
        try:
            await _Pipeline(self._service, self._pace, stream).serve()
        finally:
            self._streams -= 1


class _Window:
    """What a stream has in flight. One task waits on it at a time."""

    def __init__(self) -> None:
        self._batches = 0
        self._size_bytes = 0
        self._changed = asyncio.Event()

    def enter(self, size_bytes: int) -> None:
        self._batches += 1
        self._size_bytes += size_bytes

    def leave(self, batches: int, size_bytes: int) -> None:
        self._batches -= batches
        self._size_bytes -= size_bytes
        self._changed.set()

    async def wait_open(self) -> None:
        while self._batches >= IN_FLIGHT_BATCHES_MAX or self._size_bytes >= IN_FLIGHT_BYTES_MAX:
            self._changed.clear()
            await self._changed.wait()

    async def wait_empty(self) -> None:
        while self._batches:
            self._changed.clear()
            await self._changed.wait()


class _Done(NamedTuple):
    """The answers to one batch, on their way to the writer. `entry_index`: of its log entry, 0 for none."""

    size_bytes: int
    entry_index: int
    revision: int
    serials: Sequence[int]
    revisions: Sequence[int]
    answers: Sequence[pipeline_pb2.Answer]


class _Pipeline:
    """One stream: a reader, a task for each batch, a writer."""

    def __init__(self, service: NodeService, pace: Pace, stream: Stream) -> None:
        self._service = service
        self._pace = pace
        self._stream = stream
        self._window = _Window()
        self._ready: list[_Done] = []
        self._any_ready = asyncio.Event()

    async def serve(self) -> None:
        """Read until the client has no more to say; return when all is answered."""
        try:
            async with asyncio.TaskGroup() as tasks:
                writer = tasks.create_task(self._write_replies())
                garbage = await self._read_batches(tasks)
                await self._window.wait_empty()
                writer.cancel()
        except ExceptionGroup as group:
            # The first failure (as a rule: of the stream, the client being gone) cancelled all others.
            raise group.exceptions[0] from None
        if garbage is not None:
            raise RefusedError(refusal_of_fault(garbage))

    async def _read_batches(self, tasks: asyncio.TaskGroup) -> Fault | None:
        """Start a task for each batch that arrives.

        Return None at the end of the stream, or what is wrong with bytes that are no batch.
        """
        while True:
            await self._window.wait_open()
            raw = await self._stream.read()
            if raw is None:
                return None
            batch = parse_batch(raw)
            if isinstance(batch, Fault):
                return batch
            self._window.enter(len(raw))
            tasks.create_task(self._run(raw, batch))

    async def _write_replies(self) -> None:
        while True:
            await self._any_ready.wait()
            self._any_ready.clear()
            ready, self._ready = self._ready, []
            for reply in self._replies(ready):
                await self._stream.write(reply)
            self._window.leave(len(ready), sum(done.size_bytes for done in ready))

    async def _run(self, raw: bytes, batch: pipeline_pb2.CommandBatch) -> None:
        done = await self._answer(raw, batch)
        self._ready.append(done)
        self._any_ready.set()

    async def _answer(self, raw: bytes, batch: pipeline_pb2.CommandBatch) -> _Done:
        """Check a batch, have it applied, and return its answers, whatever happens."""
        size_bytes = len(raw)
        refused: list[pipeline_pb2.Answer] = []
        try:
            check_cluster(batch.cluster_id, self._service.cluster_id)
            check = check_batch(batch, self._service.machine_version)
            if check.fault is not None:
                raise RefusedError(refusal_of_fault(check.fault))
            if check.faults:
                refused = _take_out(batch, check.faults)
                raw = batch.SerializeToString()
            index, revision, result = await self._write(raw, batch)
        except Exception as error:  # noqa: BLE001 - each command gets an answer; the unforeseen is logged
            told = refusal_of_error(error, write=True).error
            refused += _refuse_all(batch, told)
            return _Done(size_bytes, 0, self._service.revision, (), (), refused)
        answers = refused
        for answer in result.answers:
            pairs = len(answer.prev_kvs) + (0 if answer.txn is None else pair_count(answer.txn))
            if pairs > _FEW_PAIRS:
                await self._pace.spend(pairs)
            answers.append(answer_message(answer))
        return _Done(size_bytes, index, revision, result.serials, result.revisions, answers)

    async def _write(self, raw: bytes, batch: pipeline_pb2.CommandBatch) -> tuple[int, int, BatchResult]:
        """Have a checked batch applied; return (index of its log entry, revision, result)."""
        if not batch.commands and not batch.HasField("session"):
            return 0, self._service.revision, BatchResult([], [], [])
        timeout_s = batch.timeout_ms / 1_000 if batch.timeout_ms else TIMEOUT_S_DEFAULT
        return await apply_item(
            self._service, Batch(raw), BatchResult, commands=len(batch.commands), timeout_s=timeout_s
        )

    def _replies(self, ready: Iterable[_Done]) -> Iterator[pipeline_pb2.BatchReply]:
        """Yield messages that hold all these answers, as few as their size allows."""
        reply = pipeline_pb2.BatchReply()
        index = revision = size_bytes = 0
        for done in ready:
            index, revision = max(index, done.entry_index), max(revision, done.revision)
            reply.serials.extend(done.serials)
            reply.revisions.extend(done.revisions)
            for answer in done.answers:
                answer_bytes = answer.ByteSize()
                if size_bytes and size_bytes + answer_bytes > REPLY_BYTES_MAX:
                    yield self._headed(reply, index, revision)
                    reply = pipeline_pb2.BatchReply()
                    size_bytes = 0
                reply.answers.append(answer)
                size_bytes += answer_bytes
        if reply.serials or reply.answers:
            yield self._headed(reply, index, revision)

    def _headed(self, reply: pipeline_pb2.BatchReply, index: int, revision: int) -> pipeline_pb2.BatchReply:
        reply.header.CopyFrom(write_header(self._service, index=index, revision=revision))
        return reply


def _take_out(batch: pipeline_pb2.CommandBatch, faults: dict[int, Fault]) -> list[pipeline_pb2.Answer]:
    """Remove the commands at fault, by position, from a batch, and return the answers to them."""
    answers = [
        pipeline_pb2.Answer(serial=batch.commands[position].serial, error=refusal_of_fault(fault).error)
        for position, fault in sorted(faults.items())
    ]
    kept = [command for position, command in enumerate(batch.commands) if position not in faults]
    del batch.commands[:]
    batch.commands.extend(kept)
    return answers


def _refuse_all(batch: pipeline_pb2.CommandBatch, error: common_pb2.Error) -> list[pipeline_pb2.Answer]:
    return [pipeline_pb2.Answer(serial=command.serial, error=error) for command in batch.commands]
