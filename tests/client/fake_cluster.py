"""A cluster of gRPC nodes over one machine, with faults on demand.

Each node is a real server on a loopback port; what they share stands in `FakeCluster`: one machine, which
applies what arrives as it arrives. A test queues `faults`: the next batches of commands meet them, one each,
and those after are served. A node that is frozen serves reads of the state as it was then.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self, cast

import grpc
import grpc.aio

from chaos.sim.memory_tables import MemoryTables
from raftstate.machine.layout import Change, ChangeKind, read_change
from raftstate.machine.reader import Reader
from raftstate.machine.tables import Table
from raftstate.machine.types import (
    Batch,
    BatchResult,
    Close,
    ExpireLease,
    ItemResult,
    Refused,
    Register,
    Registered,
    SessionId,
)
from raftstate.node.service import NodeReader, NodeService, ReadConsistency
from raftstate.pb.v1 import (
    cluster_pb2,
    cluster_pb2_grpc,
    common_pb2,
    pipeline_pb2,
    pipeline_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
)
from raftstate.rpc.conversion import answer_message
from raftstate.rpc.methods import UnaryMethod, call, methods_of
from raftstate.rpc.status import TRAILER, RefusedError, refusal_of_fault
from tests.machine.rig import CLUSTER, Rig
from tests.rpc.fake_node import FakeReader

TIMES = cluster_pb2.ClusterTimes(heartbeat_ms=15, election_timeout_ms=400, history_retention_s=60)
READS = ("KV/Get", "KV/Range", "Lease/TimeToLive", "Lease/List")
"""Served as real nodes do."""

Reply = pipeline_pb2.BatchReply
Fault = Callable[["FakeNode", pipeline_pb2.CommandBatch], Awaitable[Reply | None]]
"""Answers a batch in the server's place; None breaks the stream."""


@dataclass
class FakeCluster:
    """`batches`, `batch_nodes`: all that arrived, and where. `reads`: the nodes that were asked to read.

    `clock_ms`: the lease clock; `advance` moves it and ends what is due. `member_requests`: (node, request)
    of all that was asked about members; `member_faults` are met by the next ones.
    """

    size: int = 3
    cluster_id: int = CLUSTER
    leader: int | None = 0
    term: int = 1
    clock_ms: int = 0
    rig: Rig = field(default_factory=Rig)
    sessions: list[SessionId] = field(default_factory=list)
    batches: list[pipeline_pb2.CommandBatch] = field(default_factory=list)
    batch_nodes: list[int] = field(default_factory=list)
    faults: deque[Fault] = field(default_factory=deque)
    read_faults: deque[tuple[grpc.StatusCode, common_pb2.Error | None]] = field(default_factory=deque)
    reads: list[int] = field(default_factory=list)
    member_requests: list[tuple[int, Any]] = field(default_factory=list)
    member_faults: deque[tuple[grpc.StatusCode, common_pb2.Error | None]] = field(default_factory=deque)
    present: set[int] | None = None
    nodes: list[FakeNode] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        self.nodes = [FakeNode(self, number) for number in range(self.size)]
        for node in self.nodes:
            await node.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(node.stop() for node in self.nodes))

    @property
    def url(self) -> str:
        return ",".join(node.address for node in self.nodes)

    def members(self) -> list[cluster_pb2.Member]:
        """The nodes, or those of them that are `present`."""
        return [
            cluster_pb2.Member(
                id=node.number + 1,
                name=f"n{node.number + 1}",
                client_address=node.address,
                incarnation=1,
                peer_address=f"p{node.number + 1}:1",
            )
            for node in self.nodes
            if self.present is None or node.number in self.present
        ]

    def move_leader(self, to: int | None) -> None:
        self.leader = to
        self.term += 1

    def serials(self) -> list[list[int]]:
        """The serials of each batch received."""
        return [[command.serial for command in batch.commands] for batch in self.batches]

    def commands(self, kind: str) -> list[pipeline_pb2.Command]:
        """The commands received of one kind, for example "lease_renew"."""
        return [command for batch in self.batches for command in batch.commands if command.HasField(kind)]

    # ---- the machine

    @property
    def executed(self) -> list[tuple[bytes, bytes | None]]:
        """The (key, value) of every change made, in order; None stands for the value of a deletion."""
        changes = [read_change(*row) for row in self.rig.tables.scan(Table.CHANGES)]
        return [(change.key, _value(change)) for change in changes]

    def register(self, nonce: int) -> SessionId:
        [result] = self._run(Register(nonce, 0))
        assert isinstance(result, Registered)
        self.sessions.append(result.session)
        return result.session

    def close_session(self, session: SessionId) -> None:
        self._run(Close(session))
        self.sessions = [each for each in self.sessions if each != session]

    def end_sessions(self) -> None:
        """What a long silence does."""
        for session in list(self.sessions):
            self.close_session(session)

    def apply(self, batch: pipeline_pb2.CommandBatch) -> Reply:
        [result] = self._run(Batch(batch.SerializeToString()))
        reply = Reply(header=self.header(self.leader or 0))
        if isinstance(result, Refused):
            error = refusal_of_fault(result.fault).error
            reply.answers.extend(
                pipeline_pb2.Answer(serial=each.serial, error=error) for each in batch.commands
            )
            return reply
        assert isinstance(result, BatchResult)
        reply.serials.extend(result.serials)
        reply.revisions.extend(result.revisions)
        reply.answers.extend(answer_message(answer) for answer in result.answers)
        return reply

    def advance(self, by_ms: int) -> None:
        """Let time pass, and end the leases that are due then."""
        self.clock_ms += by_ms
        for lease in self.rig.machine.expired_leases(self.clock_ms):
            self._run(ExpireLease(lease, self.clock_ms))

    def _run(self, item: Any) -> list[ItemResult]:
        return self.rig.run(item, lease_ms=self.clock_ms)

    def header(self, node: int) -> common_pb2.ResponseHeader:
        return common_pb2.ResponseHeader(
            cluster_id=self.cluster_id,
            node_id=node + 1,
            revision=self.rig.machine.revision,
            applied_index=self.rig.machine.applied_index,
            term=self.term,
        )


def _value(change: Change) -> bytes | None:
    return None if change.kind is ChangeKind.DELETE else change.value


class FakeNode:
    """One node: all its services, and its server."""

    def __init__(self, cluster: FakeCluster, number: int) -> None:
        self.cluster = cluster
        self.number = number
        self.address = "127.0.0.1:0"
        self.streams = 0
        self.erased_index = 0
        self.defragmented = 0
        self.frozen: MemoryTables | None = None
        self.behind = asyncio.Event()
        """A read came that has to wait for this node to thaw."""
        self.on_read: Callable[[int, int], None] | None = None
        """Called with the consistency and the least applied index of each read."""
        self._thawed = asyncio.Event()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        server = self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        server.add_generic_rpc_handlers(_reads(self))
        pipeline_pb2_grpc.add_PipelineServicer_to_server(_Pipeline(self), server)
        session_pb2_grpc.add_SessionServicer_to_server(_Session(self), server)
        cluster_pb2_grpc.add_ClusterServicer_to_server(_Cluster(self), server)
        port = server.add_insecure_port(self.address)
        self.address = f"127.0.0.1:{port}"
        await server.start()

    async def stop(self) -> None:
        """Go away as a killed process does: its connections end."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(None)

    def freeze(self) -> None:
        """Apply nothing more, until `thaw`."""
        self.frozen = copy.deepcopy(self.cluster.rig.tables)
        self._thawed.clear()

    def thaw(self) -> None:
        self.frozen = None
        self._thawed.set()

    # ---- as much of a `NodeService` as reads need

    @property
    def cluster_id(self) -> int:
        return self.cluster.cluster_id

    @property
    def node_id(self) -> int:
        return self.number + 1

    @property
    def term(self) -> int:
        return self.cluster.term

    def reader(
        self,
        consistency: ReadConsistency,
        *,
        max_staleness_ms: int,
        timeout_s: float,
        min_applied_index: int = 0,
    ) -> AbstractAsyncContextManager[NodeReader]:
        return self._open_reader(consistency, min_applied_index)

    @asynccontextmanager
    async def _open_reader(
        self, consistency: ReadConsistency, min_applied_index: int
    ) -> AsyncIterator[NodeReader]:
        if self.on_read is not None:
            self.on_read(consistency, min_applied_index)
        frozen = self.frozen
        if frozen is not None and (
            consistency is not ReadConsistency.LOCAL or Reader(frozen).applied_index < min_applied_index
        ):
            self.behind.set()
            await self._thawed.wait()
        yield FakeReader(Reader(self.frozen or self.cluster.rig.tables), None, self.cluster.clock_ms)


class _Service:
    def __init__(self, node: FakeNode) -> None:
        self.node = node
        self.cluster = node.cluster


def _reads(node: FakeNode) -> list[grpc.GenericRpcHandler]:
    services: dict[str, dict[str, Any]] = {}
    for path in READS:
        service, name = path.split("/")
        method = cast(UnaryMethod, methods_of(cast(NodeService, node))[path])
        services.setdefault(f"raftstate.v1.{service}", {})[name] = grpc.unary_unary_rpc_method_handler(
            _read(node, method), response_serializer=lambda reply: reply.SerializeToString()
        )
    return [grpc.method_handlers_generic_handler(name, table) for name, table in services.items()]


def _read(node: FakeNode, method: UnaryMethod) -> Callable[[bytes, Any], Awaitable[Any]]:
    async def serve(raw: bytes, context: Any) -> Any:
        node.cluster.reads.append(node.number)
        if node.cluster.read_faults:
            status, error = node.cluster.read_faults.popleft()
            await context.abort(status, "refused on demand", _trailers(error))
        try:
            return await call(method, raw, 5.0)
        except RefusedError as refused:
            refusal = refused.refusal
            await context.abort(refusal.status, refusal.error.message, _trailers(refusal.error))

    return serve


def _trailers(error: common_pb2.Error | None) -> tuple[tuple[str, bytes], ...]:
    return () if error is None else ((TRAILER, error.SerializeToString()),)


class _Pipeline(_Service, pipeline_pb2_grpc.PipelineServicer):
    async def Write(self, requests: Any, context: Any) -> None:  # noqa: N802
        self.node.streams += 1
        async for batch in requests:
            self.cluster.batches.append(batch)
            self.cluster.batch_nodes.append(self.node.number)
            serve = self.cluster.faults.popleft() if self.cluster.faults else _serve
            reply = await serve(self.node, batch)
            if reply is None:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the node went away")
            await context.write(reply)


class _Session(_Service, session_pb2_grpc.SessionServicer):
    async def Register(self, request: Any, context: Any) -> session_pb2.RegisterResponse:  # noqa: N802
        session = self.cluster.register(request.nonce)
        return session_pb2.RegisterResponse(
            header=self.cluster.header(self.node.number),
            session=common_pb2.SessionId(index=session.index, nonce=session.nonce),
            ttl_ms=600_000,
        )

    async def Close(self, request: Any, context: Any) -> session_pb2.CloseResponse:  # noqa: N802
        self.cluster.close_session(SessionId(request.session.index, request.session.nonce))
        return session_pb2.CloseResponse(header=self.cluster.header(self.node.number))


class _Cluster(_Service, cluster_pb2_grpc.ClusterServicer):
    async def Status(self, request: Any, context: Any) -> cluster_pb2.StatusResponse:  # noqa: N802
        cluster = self.cluster
        leads = cluster.leader == self.node.number
        return cluster_pb2.StatusResponse(
            header=cluster.header(self.node.number),
            name=f"n{self.node.number + 1}",
            role=cluster_pb2.ROLE_LEADER if leads else cluster_pb2.ROLE_FOLLOWER,
            leader_id=0 if cluster.leader is None else cluster.leader + 1,
            last_erase_index=cluster.rig.machine.last_erase_index,
            erased_index=self.node.erased_index,
            members=cluster.members(),
        )

    async def Defragment(self, request: Any, context: Any) -> cluster_pb2.DefragmentResponse:  # noqa: N802
        self.node.defragmented += 1
        return cluster_pb2.DefragmentResponse(header=self.cluster.header(self.node.number), state_bytes=77)

    async def TransferLeader(self, request: Any, context: Any) -> cluster_pb2.TransferLeaderResponse:  # noqa: N802
        self.cluster.move_leader(request.target_id - 1)
        return cluster_pb2.TransferLeaderResponse(
            header=self.cluster.header(self.node.number), leader_id=request.target_id
        )

    async def MemberList(self, request: Any, context: Any) -> cluster_pb2.MemberListResponse:  # noqa: N802
        await self._asked(request, context)
        return cluster_pb2.MemberListResponse(
            header=self._header(), members=self.cluster.members(), leader_id=1, commit_index=9
        )

    async def MemberAdd(self, request: Any, context: Any) -> cluster_pb2.MemberAddResponse:  # noqa: N802
        await self._asked(request, context)
        member = cluster_pb2.Member(
            id=9,
            name=request.name,
            incarnation=1,
            peer_address=request.peer_address,
            client_address=request.client_address,
            learner=True,
            promote=not request.learner,
        )
        return cluster_pb2.MemberAddResponse(
            header=self._header(), member=member, members=[*self.cluster.members(), member], times=TIMES
        )

    async def MemberPromote(self, request: Any, context: Any) -> cluster_pb2.MemberPromoteResponse:  # noqa: N802
        await self._asked(request, context)
        return cluster_pb2.MemberPromoteResponse(header=self._header(), members=self.cluster.members())

    async def MemberRemove(self, request: Any, context: Any) -> cluster_pb2.MemberRemoveResponse:  # noqa: N802
        await self._asked(request, context)
        return cluster_pb2.MemberRemoveResponse(header=self._header(), members=self.cluster.members())

    async def MemberReplace(self, request: Any, context: Any) -> cluster_pb2.MemberReplaceResponse:  # noqa: N802
        await self._asked(request, context)
        member = self.cluster.members()[0]
        member.incarnation = 2
        return cluster_pb2.MemberReplaceResponse(
            header=self._header(), member=member, members=self.cluster.members(), times=TIMES
        )

    async def _asked(self, request: Any, context: Any) -> None:
        self.cluster.member_requests.append((self.node.number, request))
        if self.cluster.member_faults:
            status, error = self.cluster.member_faults.popleft()
            await context.abort(status, "refused on demand", _trailers(error))

    def _header(self) -> common_pb2.ResponseHeader:
        return self.cluster.header(self.node.number)


async def _serve(node: FakeNode, batch: pipeline_pb2.CommandBatch) -> Reply:
    return node.cluster.apply(batch)


# ---- faults


async def apply_and_break(node: FakeNode, batch: pipeline_pb2.CommandBatch) -> Reply | None:
    """The answer is lost."""
    node.cluster.apply(batch)
    return None


async def break_stream(node: FakeNode, batch: pipeline_pb2.CommandBatch) -> Reply | None:
    """The batch is lost."""
    return None


async def apply_twice(node: FakeNode, batch: pipeline_pb2.CommandBatch) -> Reply:
    """A forwarder's copy arrives too."""
    node.cluster.apply(batch)
    return node.cluster.apply(batch)


async def never_answer(node: FakeNode, batch: pipeline_pb2.CommandBatch) -> Reply:
    """The node takes the batch and says nothing until the stream is cancelled."""
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


def refuse(
    code: int,
    outcome: int = common_pb2.OUTCOME_NOT_APPLIED,
    *,
    message: str = "",
    then_move_to: int | None = None,
) -> Fault:
    """Every command is refused, and not applied."""

    async def fault(node: FakeNode, batch: pipeline_pb2.CommandBatch) -> Reply:
        if then_move_to is not None:
            node.cluster.move_leader(then_move_to)
        answers = [refusal(command.serial, code, outcome, message) for command in batch.commands]
        return Reply(header=node.cluster.header(node.number), answers=answers)

    return fault


async def lose_leader(node: FakeNode, batch: pipeline_pb2.CommandBatch) -> Reply:
    """Every command is refused, and the cluster has no leader from now on."""
    node.cluster.move_leader(None)
    return await refuse(common_pb2.ERROR_CODE_NO_LEADER)(node, batch) or Reply()


def hold(arrived: asyncio.Event, release: asyncio.Event, then: Fault = _serve) -> Fault:
    """The batch meets `then` when `release` is set."""

    async def fault(node: FakeNode, batch: pipeline_pb2.CommandBatch) -> Reply | None:
        arrived.set()
        await release.wait()
        return await then(node, batch)

    return fault


def refusal(
    serial: int, code: int, outcome: int = common_pb2.OUTCOME_NOT_APPLIED, message: str = ""
) -> pipeline_pb2.Answer:
    name = common_pb2.ErrorCode.Name(code)
    error = common_pb2.Error(code=code, outcome=outcome, message=message or f"refused with {name}")
    return pipeline_pb2.Answer(serial=serial, error=error)
