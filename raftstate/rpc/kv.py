"""The KV service: one request at a time.

A write is a batch of one command, and goes the way of all batches.
"""

from __future__ import annotations

from raftstate.errors import InvalidArgumentError
from raftstate.machine.types import covers
from raftstate.node.service import STALENESS_MS_DEFAULT, NodeService
from raftstate.pb.v1 import kv_pb2, pipeline_pb2, txn_pb2
from raftstate.rpc.conversion import fill_kv, fill_kvs, fill_txn, pair_count, read_header, write_header
from raftstate.rpc.pace import Pace
from raftstate.rpc.validation import check_get, check_range, check_sort
from raftstate.rpc.writing import apply_command, outcome

RANGE_BYTES_MAX = 3 << 20
"""What one Range reply holds at most (but at least one pair): less than the 4 MiB that a gRPC client takes
when it was told nothing. The rest of a range is a matter of further requests."""
RANGE_PAIRS_MAX = 10_000
"""At about 1 us each on the event loop: a reply of small pairs must not hold up heartbeats."""


class KVHandlers:
    """Answers for one node."""

    def __init__(self, service: NodeService, pace: Pace) -> None:
        self._service = service
        self._pace = pace

    async def put(self, request: kv_pb2.PutRequest, timeout_s: float) -> kv_pb2.PutResponse:
        """Store a value under a key."""
        command = pipeline_pb2.Command(
            put=txn_pb2.PutCommand(
                key=request.key, value=request.value, prev_kv=request.prev_kv, lease=request.lease
            )
        )
        index, answer = await apply_command(self._service, command, request.context, timeout_s)
        response = kv_pb2.PutResponse(
            header=write_header(self._service, index=index, revision=answer.revision)
        )
        if answer.prev_kvs:
            fill_kv(response.prev_kv, answer.prev_kvs[0])
        return response

    async def delete(self, request: kv_pb2.DeleteRequest, timeout_s: float) -> kv_pb2.DeleteResponse:
        """Delete a key, or a range of them."""
        command = pipeline_pb2.Command(
            delete=txn_pb2.DeleteCommand(
                key=request.key, range_end=request.range_end, prev_kv=request.prev_kv
            )
        )
        index, answer = await apply_command(self._service, command, request.context, timeout_s)
        response = kv_pb2.DeleteResponse(
            header=write_header(self._service, index=index, revision=answer.revision),
            deleted=answer.deleted,
        )
        await self._pace.spend(len(answer.prev_kvs))
        fill_kvs(response.prev_kvs, answer.prev_kvs)
        return response

    async def txn(self, request: kv_pb2.TxnRequest, timeout_s: float) -> kv_pb2.TxnResponse:
        """Compare, then run one of two lists of operations, in one step."""
        if not request.HasField("txn"):
            raise InvalidArgumentError(
                "txn is missing; give one, if need be without compares or operations", field="txn"
            )
        command = pipeline_pb2.Command(txn=request.txn)
        index, answer = await apply_command(self._service, command, request.context, timeout_s)
        done = outcome(answer.txn)
        response = kv_pb2.TxnResponse(
            header=write_header(self._service, index=index, revision=answer.revision)
        )
        await self._pace.spend(pair_count(done))
        fill_txn(response.result, done)
        return response

    async def compact(self, request: kv_pb2.CompactRequest, timeout_s: float) -> kv_pb2.CompactResponse:
        """Forget the history before a revision."""
        command = pipeline_pb2.Command(compact=pipeline_pb2.CompactCommand(revision=request.revision))
        index, answer = await apply_command(self._service, command, request.context, timeout_s)
        return kv_pb2.CompactResponse(
            header=write_header(self._service, index=index, revision=answer.revision)
        )

    async def erase(self, request: kv_pb2.EraseRequest, timeout_s: float) -> kv_pb2.EraseResponse:
        """Delete a key together with its history."""
        command = pipeline_pb2.Command(erase=pipeline_pb2.EraseCommand(key=request.key))
        index, answer = await apply_command(self._service, command, request.context, timeout_s)
        return kv_pb2.EraseResponse(
            header=write_header(self._service, index=index, revision=answer.revision), deleted=answer.deleted
        )

    async def get(self, request: kv_pb2.GetRequest, timeout_s: float) -> kv_pb2.GetResponse:
        """Return the pair under a key."""
        consistency = check_get(request)
        async with self._service.reader(
            consistency,
            max_staleness_ms=request.max_staleness_ms or STALENESS_MS_DEFAULT,
            timeout_s=timeout_s,
            min_applied_index=request.min_applied_index,
        ) as reader:
            kv = await reader.get(request.key, revision=request.revision)
            response = kv_pb2.GetResponse(header=read_header(self._service, reader))
        if kv is not None:
            fill_kv(response.kv, kv)
        return response

    async def range(self, request: kv_pb2.RangeRequest, timeout_s: float) -> kv_pb2.RangeResponse:
        """Return the pairs of a range of keys, in the order asked for."""
        consistency = check_range(request)
        sort = check_sort(request.sort_order, request.sort_target)
        start, end = covers(request.key, request.range_end)
        async with self._service.reader(
            consistency,
            max_staleness_ms=request.max_staleness_ms or STALENESS_MS_DEFAULT,
            timeout_s=timeout_s,
            min_applied_index=request.min_applied_index,
        ) as reader:
            found = await reader.range(
                start,
                end,
                limit=min(request.limit or RANGE_PAIRS_MAX, RANGE_PAIRS_MAX),
                keys_only=request.keys_only,
                count_only=request.count_only,
                bytes_max=RANGE_BYTES_MAX,
                revision=request.revision,
                sort=sort,
                skip_count=request.skip_count,
            )
            head = read_header(self._service, reader)
        response = kv_pb2.RangeResponse(header=head, more=found.more, count=found.count)
        await self._pace.spend(len(found.kvs))
        fill_kvs(response.kvs, found.kvs)
        return response
