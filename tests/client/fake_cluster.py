"""A cluster of gRPC nodes over one dict, with the server's exactly-once rule and faults on demand.

Each node is a real server on a loopback port; what they share stands in `FakeCluster`, applied as it arrives.
A test queues `faults`: the next batches of commands meet them, one each, and those after are served.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
import grpc.aio

from raftstate.pb.v1 import (
    cluster_pb2,
    cluster_pb2_grpc,
    common_pb2,
    kv_pb2,
    kv_pb2_grpc,
    pipeline_pb2,
    pipeline_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
)

CLUSTER_ID = 0xC1
WINDOW = 4_096

Reply = pipeline_pb2.BatchReply
Fault = Callable[["FakeNode", pipeline_pb2.CommandBatch], Awaitable[Reply | None]]
"""Answers a batch in the server's place; None breaks the stream."""


@dataclass
class FakeSession:
    floor: int = 1
    results: dict[int, pipeline_pb2.Answer] = field(default_factory=dict)


@dataclass
class FakeCluster:
    """`executed`: the (key, value) of every command run, in order; None stands for the value of a delete."""

    size: int = 3
    cluster_id: int = CLUSTER_ID
    leader: int | None = 0
    term: int = 1
    revision: int = 1
    index: int = 10
    data: dict[bytes, common_pb2.KeyValue] = field(default_factory=dict)
    sessions: dict[tuple[int, int], FakeSession] = field(default_factory=dict)
    executed: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    batches: list[pipeline_pb2.CommandBatch] = field(default_factory=list)
    batch_nodes: list[int] = field(default_factory=list)
    faults: deque[Fault] = field(default_factory=deque)
    read_faults: deque[tuple[grpc.StatusCode, common_pb2.Error | None]] = field(default_factory=deque)
    reads: list[int] = field(default_factory=list)
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

    def move_leader(self, to: int | None) -> None:
        self.leader = to
        self.term += 1

    def serials(self) -> list[list[int]]:
        """The serials of each batch received."""
        return [[command.serial for command in batch.commands] for batch in self.batches]

    # ---- the machine

    def register(self, nonce: int) -> common_pb2.SessionId:
        self.index += 1
        self.sessions[self.index, nonce] = FakeSession()
        return common_pb2.SessionId(index=self.index, nonce=nonce)

    def apply(self, batch: pipeline_pb2.CommandBatch) -> Reply:
        self.index += 1
        session = self.sessions.get((batch.session.index, batch.session.nonce))
        reply = Reply()
        if session is None:
            for command in batch.commands:
                reply.answers.append(refusal(command.serial, common_pb2.ERROR_CODE_SESSION_EXPIRED))
        else:
            self._apply_in(session, batch, reply)
        reply.header.CopyFrom(self.header(self.leader or 0))
        return reply

    def _apply_in(self, session: FakeSession, batch: pipeline_pb2.CommandBatch, reply: Reply) -> None:
        session.floor = max(session.floor, batch.floor)
        session.results = {serial: a for serial, a in session.results.items() if serial >= session.floor}
        for serial in batch.given_up:
            if serial >= session.floor:
                session.results.setdefault(serial, refusal(serial, common_pb2.ERROR_CODE_CANCELLED))
        for command in batch.commands:
            answer = self._run_once(session, command)
            if answer.HasField("error") or answer.deleted or answer.prev_kvs:
                reply.answers.append(answer)
            else:
                reply.serials.append(answer.serial)
                reply.revisions.append(answer.revision)

    def _run_once(self, session: FakeSession, command: pipeline_pb2.Command) -> pipeline_pb2.Answer:
        serial = command.serial
        if serial < session.floor:
            return refusal(serial, common_pb2.ERROR_CODE_STALE)
        if serial in session.results:
            return session.results[serial]
        if serial >= session.floor + WINDOW:
            return refusal(serial, common_pb2.ERROR_CODE_WINDOW)
        answer = session.results[serial] = self._run(command)
        return answer

    def _run(self, command: pipeline_pb2.Command) -> pipeline_pb2.Answer:
        answer = pipeline_pb2.Answer(serial=command.serial)
        if command.HasField("put"):
            put = command.put
            self.revision += 1
            self.executed.append((put.key, put.value))
            before = self.data.get(put.key)
            if before is not None and put.prev_kv:
                answer.prev_kvs.append(before)
            self.data[put.key] = common_pb2.KeyValue(
                key=put.key,
                value=put.value,
                create_revision=before.create_revision if before else self.revision,
                mod_revision=self.revision,
                version=before.version + 1 if before else 1,
            )
        else:
            delete = command.delete
            found = list(self.within(delete.key, delete.range_end))
            self.revision += bool(found)
            self.executed.append((delete.key, None))
            answer.deleted = len(found)
            answer.prev_kvs.extend(found if delete.prev_kv else [])
            for kv in found:
                del self.data[kv.key]
        answer.revision = self.revision
        return answer

    def within(self, key: bytes, range_end: bytes) -> Iterator[common_pb2.KeyValue]:
        for each in sorted(self.data):
            if each == key if not range_end else each >= key and (range_end == b"\x00" or each < range_end):
                yield self.data[each]

    def header(self, node: int) -> common_pb2.ResponseHeader:
        return common_pb2.ResponseHeader(
            cluster_id=self.cluster_id,
            node_id=node + 1,
            revision=self.revision,
            applied_index=self.index,
            term=self.term,
        )


class FakeNode:
    """One node: all its services, and its server."""

    def __init__(self, cluster: FakeCluster, number: int) -> None:
        self.cluster = cluster
        self.number = number
        self.address = "127.0.0.1:0"
        self.streams = 0
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        server = self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        kv_pb2_grpc.add_KVServicer_to_server(_KV(self), server)
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


class _Service:
    def __init__(self, node: FakeNode) -> None:
        self.node = node
        self.cluster = node.cluster


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
        header = self.cluster.header(self.node.number)
        return session_pb2.RegisterResponse(header=header, session=session, ttl_ms=600_000)

    async def Close(self, request: Any, context: Any) -> session_pb2.CloseResponse:  # noqa: N802
        self.cluster.sessions.pop((request.session.index, request.session.nonce), None)
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
            members=[
                cluster_pb2.Member(
                    id=node.number + 1, name=f"n{node.number + 1}", client_address=node.address
                )
                for node in cluster.nodes
            ],
        )

    async def TransferLeader(self, request: Any, context: Any) -> cluster_pb2.TransferLeaderResponse:  # noqa: N802
        self.cluster.move_leader(request.target_id - 1)
        return cluster_pb2.TransferLeaderResponse(
            header=self.cluster.header(self.node.number), leader_id=request.target_id
        )


class _KV(_Service, kv_pb2_grpc.KVServicer):
    async def Get(self, request: Any, context: Any) -> kv_pb2.GetResponse:  # noqa: N802
        await self._fault(context)
        header = self.cluster.header(self.node.number)
        return kv_pb2.GetResponse(header=header, kv=self.cluster.data.get(request.key))

    async def Range(self, request: Any, context: Any) -> kv_pb2.RangeResponse:  # noqa: N802
        await self._fault(context)
        kvs = list(self.cluster.within(request.key, request.range_end))
        shown = [] if request.count_only else kvs[: request.limit or None]
        return kv_pb2.RangeResponse(
            header=self.cluster.header(self.node.number),
            kvs=shown,
            count=len(kvs),
            more=len(shown) < len(kvs),
        )

    async def _fault(self, context: Any) -> None:
        self.cluster.reads.append(self.node.number)
        if self.cluster.read_faults:
            status, error = self.cluster.read_faults.popleft()
            trailers = () if error is None else (("raftstate-error-bin", error.SerializeToString()),)
            await context.abort(status, "refused on demand", trailers)


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
