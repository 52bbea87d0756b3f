"""The KV service: one request at a time.

A write is a batch of one command, and goes the way of all batches.
"""

from __future__ import annotations

from raftstate.errors import InvalidArgumentError, InvariantError
from raftstate.machine.command import check_batch
from raftstate.machine.types import Answer, Batch, BatchResult, covers
from raftstate.node.service import STALENESS_MS_DEFAULT, NodeReader, NodeService
from raftstate.pb.v1 import common_pb2, kv_pb2, pipeline_pb2, txn_pb2
from raftstate.rpc.conversion import header, kv_message, kv_messages, write_header
from raftstate.rpc.status import RefusedError
from raftstate.rpc.validation import check_cluster, check_get, check_range
from raftstate.rpc.writing import apply_item

RANGE_BYTES_MAX = 3 << 20
"""What one Range reply holds at most (but at least one pair): less than the 4 MiB that a gRPC client takes
when it was told nothing. The rest of a range is a matter of further requests."""
RANGE_PAIRS_MAX = 10_000
"""At about 1 us each on the event loop: a reply of small pairs must not hold up heartbeats."""

SERIAL_WITHOUT_SESSION = 1


class KVHandlers:
    """Answers for one node."""

    def __init__(self, service: NodeService) -> None:
        self._service = service

    async def put(self, request: kv_pb2.PutRequest, timeout_s: float) -> kv_pb2.PutResponse:
        """Store a value under a key."""
        command = txn_pb2.PutCommand(key=request.key, value=request.value, prev_kv=request.prev_kv)
        index, answer = await self._write(pipeline_pb2.Command(put=command), request.context, timeout_s)
        return kv_pb2.PutResponse(
            header=write_header(self._service, index=index, revision=answer.revision),
            prev_kv=kv_message(answer.prev_kvs[0]) if answer.prev_kvs else None,
        )

    async def delete(self, request: kv_pb2.DeleteRequest, timeout_s: float) -> kv_pb2.DeleteResponse:
        """Delete a key, or a range of them."""
        command = txn_pb2.DeleteCommand(key=request.key, range_end=request.range_end, prev_kv=request.prev_kv)
        index, answer = await self._write(pipeline_pb2.Command(delete=command), request.context, timeout_s)
        return kv_pb2.DeleteResponse(
            header=write_header(self._service, index=index, revision=answer.revision),
            deleted=answer.deleted,
            prev_kvs=kv_messages(answer.prev_kvs),
        )

    async def get(self, request: kv_pb2.GetRequest, timeout_s: float) -> kv_pb2.GetResponse:
        """Return the pair under a key."""
        consistency = check_get(request)
        max_staleness_ms = request.max_staleness_ms or STALENESS_MS_DEFAULT
        async with self._service.reader(
            consistency, max_staleness_ms=max_staleness_ms, timeout_s=timeout_s
        ) as reader:
            kv = await reader.get(request.key)
            head = self._read_header(reader)
        return kv_pb2.GetResponse(header=head, kv=None if kv is None else kv_message(kv))

    async def range(self, request: kv_pb2.RangeRequest, timeout_s: float) -> kv_pb2.RangeResponse:
        """Return the pairs of a range of keys, in order."""
        consistency = check_range(request)
        max_staleness_ms = request.max_staleness_ms or STALENESS_MS_DEFAULT
        start, end = covers(request.key, request.range_end)
        async with self._service.reader(
            consistency, max_staleness_ms=max_staleness_ms, timeout_s=timeout_s
        ) as reader:
            found = await reader.range(
                start,
                end,
                limit=min(request.limit or RANGE_PAIRS_MAX, RANGE_PAIRS_MAX),
                keys_only=request.keys_only,
                count_only=request.count_only,
                bytes_max=RANGE_BYTES_MAX,
            )
            head = self._read_header(reader)
        return kv_pb2.RangeResponse(
            header=head, kvs=kv_messages(found.kvs), more=found.more, count=found.count
        )

    async def _write(
        self, command: pipeline_pb2.Command, context: kv_pb2.WriteContext, timeout_s: float
    ) -> tuple[int, Answer]:
        """Have one command applied; return (index of its log entry, answer).

        Raises `RefusedError` where the answer is a fault.
        """
        check_cluster(context.cluster_id, self._service.cluster_id)
        batch = pipeline_pb2.CommandBatch(
            cluster_id=context.cluster_id, floor=context.floor, commands=[command]
        )
        in_session = context.HasField("session")
        if in_session:
            batch.session.CopyFrom(context.session)
        elif context.serial or context.floor:
            raise InvalidArgumentError(
                "context.serial and context.floor count within a session, and there is none: got serial"
                f" {context.serial}, floor {context.floor}; register a session, or leave them out",
                field="context.session",
            )
        batch.commands[0].serial = context.serial if in_session else SERIAL_WITHOUT_SESSION
        raw = batch.SerializeToString()
        check = check_batch(batch, self._service.machine_version)
        fault = check.fault or check.faults.get(0)
        if fault is not None:
            raise RefusedError(fault)
        index, _, result = await apply_item(self._service, Batch(raw), BatchResult, timeout_s=timeout_s)
        return index, _only_answer(result)

    def _read_header(self, reader: NodeReader) -> common_pb2.ResponseHeader:
        return header(
            self._service,
            revision=reader.revision,
            applied_index=reader.applied_index,
            staleness_bound_us=reader.staleness_bound_us,
        )


def _only_answer(result: BatchResult) -> Answer:
    """Return the answer to a batch of one command. Raises `RefusedError` where it is a fault."""
    count = len(result.serials) + len(result.answers)
    if count != 1:
        raise InvariantError(f"a batch of 1 command got {count} answers")
    if result.serials:
        return Answer(result.serials[0], result.revisions[0])
    answer = result.answers[0]
    if answer.fault is not None:
        raise RefusedError(answer.fault)
    return answer
