"""The one table of all methods of all services, and how one is called.

Handlers know nothing of gRPC, beyond the names of its statuses: `serving` puts these methods on a port, and a
node within the caller's process is reached through the same ones, without a socket. Whatever a handler raises
becomes a `RefusedError` here, so that both tell their clients the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from google.protobuf.message import Message

from raftstate.node.service import NodeService
from raftstate.pb.v1 import cluster_pb2, kv_pb2, lease_pb2, session_pb2
from raftstate.rpc.cluster import ClusterHandlers
from raftstate.rpc.kv import KVHandlers
from raftstate.rpc.lease import LeaseHandlers
from raftstate.rpc.pace import Pace
from raftstate.rpc.pipeline import PipelineHandlers
from raftstate.rpc.session import SessionHandlers
from raftstate.rpc.status import RefusedError, refusal_of_error
from raftstate.rpc.stream import Stream
from raftstate.rpc.validation import parse
from raftstate.rpc.watch import WatchHandlers

PACKAGE = "raftstate.v1"


class UnaryMethod(NamedTuple):
    """A method with one request and one response."""

    name: str
    """Of its service and its own, for example "KV/Put"."""
    request: type[Message]
    handler: Callable[[Any, float], Awaitable[Message]]
    """Takes (request, seconds it may take); returns the response or raises."""
    write: bool
    """Whether it may change something, so that an unforeseen failure leaves its outcome unknown."""


class StreamMethod(NamedTuple):
    """A method with any number of messages either way."""

    name: str
    handler: Callable[[Stream], Awaitable[None]]
    """Serves a stream to its end; returns when that is a good one, or raises."""
    write: bool


Method = UnaryMethod | StreamMethod


def methods_of(service: NodeService) -> dict[str, Method]:
    """Return the methods of a node by their names, service by service."""
    pace = Pace()
    kv, session, cluster = KVHandlers(service, pace), SessionHandlers(service), ClusterHandlers(service)
    lease = LeaseHandlers(service)
    methods: tuple[Method, ...] = (
        UnaryMethod("KV/Put", kv_pb2.PutRequest, kv.put, write=True),
        UnaryMethod("KV/Get", kv_pb2.GetRequest, kv.get, write=False),
        UnaryMethod("KV/Delete", kv_pb2.DeleteRequest, kv.delete, write=True),
        UnaryMethod("KV/Range", kv_pb2.RangeRequest, kv.range, write=False),
        UnaryMethod("KV/Txn", kv_pb2.TxnRequest, kv.txn, write=True),
        UnaryMethod("KV/Compact", kv_pb2.CompactRequest, kv.compact, write=True),
        UnaryMethod("KV/Erase", kv_pb2.EraseRequest, kv.erase, write=True),
        StreamMethod("Pipeline/Write", PipelineHandlers(service, pace).write, write=True),
        UnaryMethod("Session/Register", session_pb2.RegisterRequest, session.register, write=True),
        UnaryMethod("Session/Cancel", session_pb2.CancelRequest, session.cancel, write=True),
        UnaryMethod("Session/Close", session_pb2.CloseRequest, session.close, write=True),
        UnaryMethod("Lease/Grant", lease_pb2.LeaseGrantRequest, lease.grant, write=True),
        UnaryMethod("Lease/Revoke", lease_pb2.LeaseRevokeRequest, lease.revoke, write=True),
        UnaryMethod("Lease/Renew", lease_pb2.LeaseRenewRequest, lease.renew, write=True),
        UnaryMethod("Lease/TimeToLive", lease_pb2.LeaseTimeToLiveRequest, lease.time_to_live, write=False),
        UnaryMethod("Lease/List", lease_pb2.LeaseListRequest, lease.list, write=False),
        StreamMethod("Watch/Watch", WatchHandlers(service).watch, write=False),
        UnaryMethod("Cluster/Status", cluster_pb2.StatusRequest, cluster.status, write=False),
        UnaryMethod(
            "Cluster/TransferLeader", cluster_pb2.TransferLeaderRequest, cluster.transfer_leader, write=True
        ),
        UnaryMethod("Cluster/MemberList", cluster_pb2.MemberListRequest, cluster.member_list, write=False),
        UnaryMethod("Cluster/MemberAdd", cluster_pb2.MemberAddRequest, cluster.member_add, write=True),
        UnaryMethod(
            "Cluster/MemberPromote", cluster_pb2.MemberPromoteRequest, cluster.member_promote, write=True
        ),
        UnaryMethod(
            "Cluster/MemberRemove", cluster_pb2.MemberRemoveRequest, cluster.member_remove, write=True
        ),
        UnaryMethod(
            "Cluster/MemberReplace", cluster_pb2.MemberReplaceRequest, cluster.member_replace, write=True
        ),
        UnaryMethod("Cluster/Defragment", cluster_pb2.DefragmentRequest, cluster.defragment, write=True),
    )
    return {method.name: method for method in methods}


def service_names(methods: dict[str, Method]) -> tuple[str, ...]:
    """Return the full names of the services of these methods, each once, in their order."""
    return tuple(dict.fromkeys(f"{PACKAGE}.{name.partition('/')[0]}" for name in methods))


async def call(method: UnaryMethod, request: bytes | Message, timeout_s: float) -> Message:
    """Call a method.

    Args:
        method: of a node.
        request: serialized, or a message of the method's type, which is not changed.
        timeout_s: how long the node may take, in seconds.

    Returns:
        The response.

    Raises:
        RefusedError: the call was refused, or failed; whatever the handler raised.
    """
    try:
        message = parse(method.request, request) if isinstance(request, bytes) else request
        return await method.handler(message, timeout_s)
    except Exception as error:
        raise RefusedError(refusal_of_error(error, write=method.write)) from error


async def serve(method: StreamMethod, stream: Stream) -> None:
    """Serve a stream to its end.

    Raises `RefusedError` where the node ends it for a reason. What the stream itself raises passes unchanged.
    """
    watched = _WatchedStream(stream)
    try:
        await method.handler(watched)
    except Exception as error:
        if error is watched.failure:
            raise
        raise RefusedError(refusal_of_error(error, write=method.write)) from error


class _WatchedStream:
    """A stream that remembers its own failure, so that it can be told from the node's."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.failure: Exception | None = None

    async def read(self) -> bytes | None:
        try:
            return await self._stream.read()
        except Exception as error:
            self.failure = error
            raise

    async def write(self, message: Message) -> None:
        try:
            await self._stream.write(message)
        except Exception as error:
            self.failure = error
            raise
