"""A node of ours, asked over gRPC with nothing but the generated stubs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from raftstate.pb.v1 import (
    common_pb2,
    kv_pb2,
    kv_pb2_grpc,
    lease_pb2,
    lease_pb2_grpc,
    txn_pb2,
    watch_pb2,
    watch_pb2_grpc,
)
from tests.differential.operations import (
    Compact,
    CompactAnswer,
    Compare,
    Delete,
    DeleteAnswer,
    Event,
    Grant,
    KeyValue,
    LeaseAnswer,
    Leases,
    LeasesAnswer,
    Put,
    PutAnswer,
    Range,
    RangeAnswer,
    Renew,
    Reply,
    Request,
    Revoke,
    TimeToLive,
    Txn,
    TxnAnswer,
    Watch,
)
from tests.differential.store import Call, News, StreamWatch, ask

_RESULTS = {
    "=": txn_pb2.Compare.RESULT_EQUAL,
    "!=": txn_pb2.Compare.RESULT_NOT_EQUAL,
    ">": txn_pb2.Compare.RESULT_GREATER,
    "<": txn_pb2.Compare.RESULT_LESS,
}
_ORDERS = {
    "none": txn_pb2.SORT_ORDER_NONE,
    "ascend": txn_pb2.SORT_ORDER_ASCEND,
    "descend": txn_pb2.SORT_ORDER_DESCEND,
}
_SORT_TARGETS = {
    "key": txn_pb2.SORT_TARGET_KEY,
    "version": txn_pb2.SORT_TARGET_VERSION,
    "create_revision": txn_pb2.SORT_TARGET_CREATE_REVISION,
    "mod_revision": txn_pb2.SORT_TARGET_MOD_REVISION,
    "value": txn_pb2.SORT_TARGET_VALUE,
}
_WATCH_ID = 7


class OurNode:
    """Asks a node. Close it when done."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._thread = ThreadPoolExecutor(1, "asks raftstate")
        self._kv = kv_pb2_grpc.KVStub(self._channel)
        self._lease = lease_pb2_grpc.LeaseStub(self._channel)
        self._watch = watch_pb2_grpc.WatchStub(self._channel)

    def begin(self, request: Request) -> Callable[[], Reply]:
        """Send a request without references; what is returned waits for its reply."""
        # Half the work of the call's own `future`, which starts a thread each time.
        return self._thread.submit(ask, self._call(request)).result

    def watch(self, watch: Watch, start: int) -> StreamWatch:
        """Open a watch from `start` on, and wait until it stands."""
        create = watch_pb2.WatchCreate(
            watch_id=_WATCH_ID,
            key=watch.key,
            range_end=watch.range_end,
            start_revision=start,
            prev_kv=watch.prev_kv,
            no_put=watch.no_put,
            no_delete=watch.no_delete,
        )
        return StreamWatch(self._watch.Watch, watch_pb2.WatchRequest(create=create), _news)

    def close(self) -> None:
        """Drop the connection."""
        self._thread.shutdown()
        self._channel.close()

    def _call(self, request: Request) -> Call:
        match request:
            case Put(key, value, lease, prev_kv):
                asked = kv_pb2.PutRequest(key=key, value=value, lease=lease, prev_kv=prev_kv)
                return Call(self._kv.Put, asked, lambda got: _reply(got, _put_answer(got)))
            case Delete(key, range_end, prev_kv):
                asked = kv_pb2.DeleteRequest(key=key, range_end=range_end, prev_kv=prev_kv)
                return Call(self._kv.Delete, asked, lambda got: _reply(got, delete_answer(got)))
            case Range():
                return self._read(request)
            case Txn():
                asked = kv_pb2.TxnRequest(txn=txn_command(request))
                return Call(self._kv.Txn, asked, lambda got: _reply(got, txn_answer(got.result)))
            case Compact(revision):
                asked = kv_pb2.CompactRequest(revision=revision)
                return Call(self._kv.Compact, asked, lambda got: _reply(got, CompactAnswer()))
            case Grant(lease, ttl_s):
                asked = lease_pb2.LeaseGrantRequest(id=lease, ttl_ms=ttl_s * 1_000)
                return Call(self._lease.Grant, asked, _lease_reply)
            case Revoke(lease):
                asked = lease_pb2.LeaseRevokeRequest(id=lease)
                return Call(self._lease.Revoke, asked, lambda got: _reply(got, LeaseAnswer(lease, 0, [])))
            case Renew(lease):
                return Call(self._lease.Renew, lease_pb2.LeaseRenewRequest(id=lease), _lease_reply)
            case TimeToLive(lease, keys):
                asked = lease_pb2.LeaseTimeToLiveRequest(id=lease, keys=keys)
                return Call(self._lease.TimeToLive, asked, _time_to_live)
            case Leases():
                return Call(
                    self._lease.List,
                    lease_pb2.LeaseListRequest(),
                    lambda got: _reply(got, LeasesAnswer([lease.id for lease in got.leases])),
                )
        raise AssertionError(f"{request} is not a request")

    def _read(self, asked: Range) -> Call:
        # The plainest range is what Get answers.
        if asked == Range(asked.key, revision=asked.revision):
            get = kv_pb2.GetRequest(key=asked.key, revision=asked.revision)
            return Call(self._kv.Get, get, lambda got: _reply(got, _get_answer(got)))
        read = kv_pb2.RangeRequest(
            key=asked.key,
            range_end=asked.range_end,
            limit=asked.limit,
            revision=asked.revision,
            keys_only=asked.keys_only,
            count_only=asked.count_only,
            sort_order=_ORDERS[asked.order],
            sort_target=_SORT_TARGETS[asked.target],
        )
        return Call(self._kv.Range, read, lambda got: _reply(got, _range_answer(got)))


# ---- requests


def txn_command(txn: Txn) -> Any:
    return txn_pb2.TxnCommand(
        compares=map(_compare, txn.compares),
        success=map(operation_of, txn.success),
        failure=map(operation_of, txn.failure),
    )


def _compare(compare: Compare) -> Any:
    made = txn_pb2.Compare(key=compare.key, range_end=compare.range_end, result=_RESULTS[compare.result])
    setattr(made, compare.target, compare.operand)
    return made


def operation_of(operation: Put | Delete | Range) -> Any:
    match operation:
        case Put(key, value, lease, prev_kv):
            put = txn_pb2.PutCommand(key=key, value=value, lease=lease, prev_kv=prev_kv)
            return txn_pb2.RequestOp(put=put)
        case Delete(key, range_end, prev_kv):
            delete = txn_pb2.DeleteCommand(key=key, range_end=range_end, prev_kv=prev_kv)
            return txn_pb2.RequestOp(delete=delete)
        case Range(key, range_end):
            read = txn_pb2.RangeOp(
                key=key,
                range_end=range_end,
                limit=operation.limit,
                revision=operation.revision,
                keys_only=operation.keys_only,
                count_only=operation.count_only,
                sort_order=_ORDERS[operation.order],
                sort_target=_SORT_TARGETS[operation.target],
            )
            return txn_pb2.RequestOp(range=read)


# ---- answers


def _reply(got: Any, answer: Any) -> Reply:
    return Reply(got.header.revision, answer)


def pair(kv: common_pb2.KeyValue) -> KeyValue:
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def _put_answer(got: Any) -> PutAnswer:
    return PutAnswer(pair(got.prev_kv) if got.HasField("prev_kv") else None)


def delete_answer(got: Any) -> DeleteAnswer:
    return DeleteAnswer(got.deleted, list(map(pair, got.prev_kvs)))


def _get_answer(got: Any) -> RangeAnswer:
    kvs = [pair(got.kv)] if got.HasField("kv") else []
    return RangeAnswer(kvs, more=False, count=len(kvs))


def _range_answer(got: Any) -> RangeAnswer:
    return RangeAnswer(list(map(pair, got.kvs)), got.more, got.count)


def txn_answer(got: Any) -> TxnAnswer:
    return TxnAnswer(got.succeeded, list(map(_response, got.responses)))


def _response(got: Any) -> PutAnswer | DeleteAnswer | RangeAnswer:
    match got.WhichOneof("op"):
        case "put":
            return _put_answer(got.put)
        case "delete":
            return delete_answer(got.delete)
        case _:
            return _range_answer(got.range)


def _lease_reply(got: Any) -> Reply:
    return _reply(got, LeaseAnswer(got.id, got.ttl_ms // 1_000, []))


def _time_to_live(got: Any) -> Reply:
    return _reply(got, LeaseAnswer(got.id, got.ttl_ms // 1_000, list(got.keys)))


def _news(got: Any) -> News:
    events = [
        Event(
            "delete" if event.kind == watch_pb2.Event.KIND_DELETE else "put",
            pair(event.kv),
            pair(event.prev_kv) if event.HasField("prev_kv") else None,
        )
        for block in got.events
        for event in block.events
    ]
    endings = [
        f"compacted {ended.compacted_revision}" if ended.compacted_revision else ended.error.message
        for ended in got.canceled
    ]
    return News(bool(got.created), events, "".join(endings))
