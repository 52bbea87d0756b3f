"""The table of methods, called as a node within the caller's process is: without a socket."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterable

import grpc
import pytest
from google.protobuf.message import Message

from raftstate.errors import NoLeaderError
from raftstate.machine.types import Item
from raftstate.pb.v1 import (
    cluster_pb2,
    common_pb2,
    kv_pb2,
    lease_pb2,
    pipeline_pb2,
    session_pb2,
    txn_pb2,
    watch_pb2,
)
from raftstate.rpc import pipeline
from raftstate.rpc.methods import StreamMethod, UnaryMethod, call, methods_of, serve
from raftstate.rpc.status import RefusedError
from tests.rpc.conftest import Served
from tests.rpc.errors import refusal
from tests.rpc.fake_node import CLUSTER_ID, FakeNode

FILES = (cluster_pb2, kv_pb2, lease_pb2, pipeline_pb2, session_pb2, watch_pb2)


class FakeStream:
    """Implements `Stream`: says what it was given, and notes what is written."""

    def __init__(self, raws: Iterable[bytes], *, failure: Exception | None = None) -> None:
        self._raws = list(raws)
        self._failure = failure
        self.written: list[Message] = []

    async def read(self) -> bytes | None:
        if self._raws:
            return self._raws.pop(0)
        if self._failure is not None:
            raise self._failure
        return None

    async def write(self, message: Message) -> None:
        self.written.append(message)


def unary(node: FakeNode, name: str) -> UnaryMethod:
    method = methods_of(node)[name]
    assert isinstance(method, UnaryMethod)
    return method


def streaming(node: FakeNode, name: str) -> StreamMethod:
    method = methods_of(node)[name]
    assert isinstance(method, StreamMethod)
    return method


def batch(*commands: pipeline_pb2.Command) -> bytes:
    return pipeline_pb2.CommandBatch(commands=commands).SerializeToString()


def put(serial: int) -> pipeline_pb2.Command:
    return pipeline_pb2.Command(serial=serial, put=txn_pb2.PutCommand(key=b"k"))


def test_the_table_holds_every_method_of_the_wire_contract_with_its_request() -> None:
    published = {
        f"{service.name}/{method.name}": None if method.client_streaming else method.input_type.full_name
        for file in FILES
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    methods = methods_of(FakeNode())
    assert {
        name: method.request.DESCRIPTOR.full_name if isinstance(method, UnaryMethod) else None
        for name, method in methods.items()
    } == published
    assert all(name == method.name for name, method in methods.items())


def test_the_table_can_be_had_without_what_only_a_server_needs() -> None:
    program = "import sys, raftstate.rpc.methods; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    servers_only = {"grpc_health.v1", "grpc_reflection.v1alpha", "lmdb"}
    assert not servers_only & set(loaded.stdout.split())


async def test_a_request_may_be_a_message_or_its_bytes() -> None:
    node = FakeNode()
    request = kv_pb2.PutRequest(key=b"a", value=b"1")
    first = await call(unary(node, "KV/Put"), request, 1.5)
    second = await call(unary(node, "KV/Put"), request.SerializeToString(), 2.5)
    assert isinstance(first, kv_pb2.PutResponse)
    assert isinstance(second, kv_pb2.PutResponse)
    assert (first.header.revision, second.header.revision) == (2, 3)
    assert node.timeouts_s == [1.5, 2.5]
    assert request == kv_pb2.PutRequest(key=b"a", value=b"1")


@pytest.mark.parametrize(
    ("name", "request_", "error"),
    [
        ("KV/Put", kv_pb2.PutRequest(), None),
        ("KV/Put", kv_pb2.PutRequest(key=b"a"), NoLeaderError("nobody leads", detail={"term": 7})),
        ("KV/Put", kv_pb2.PutRequest(key=b"a"), ZeroDivisionError("a defect")),
        ("KV/Put", kv_pb2.PutRequest(key=b"a", context=kv_pb2.WriteContext(cluster_id=0xBAD)), None),
        ("Lease/Renew", lease_pb2.LeaseRenewRequest(id=7), None),
    ],
    ids=["invalid", "no leader", "defect", "wrong cluster", "no such lease"],
)
async def test_a_call_within_the_process_is_told_what_one_by_grpc_is(
    served: Served, name: str, request_: Message, error: Exception | None
) -> None:
    async def fail(_item: Item) -> None:
        if error is not None:
            raise error

    served.node.on_write = fail
    with pytest.raises(RefusedError) as caught:
        await call(unary(served.node, name), request_, 1)
    told = await refusal(served.channel.unary_unary(f"/raftstate.v1.{name}")(request_.SerializeToString()))
    assert caught.value.refusal == (told.status, told.error)


async def test_a_pipeline_within_the_process_answers_and_ends_well() -> None:
    node = FakeNode()
    stream = FakeStream([batch(put(1), put(2))])
    await serve(streaming(node, "Pipeline/Write"), stream)
    header = common_pb2.ResponseHeader(cluster_id=CLUSTER_ID, node_id=2, revision=3, applied_index=1, term=7)
    assert stream.written == [pipeline_pb2.BatchReply(header=header, serials=[1, 2], revisions=[2, 3])]


async def test_garbage_on_a_stream_within_the_process_refuses_it_after_all_before_it_is_answered() -> None:
    stream = FakeStream([batch(put(1)), b"\xff"])
    with pytest.raises(RefusedError) as caught:
        await serve(streaming(FakeNode(), "Pipeline/Write"), stream)
    status, error = caught.value.refusal
    assert (status, error.outcome) == (grpc.StatusCode.INVALID_ARGUMENT, common_pb2.OUTCOME_NOT_APPLIED)
    assert len(stream.written) == 1


@pytest.mark.parametrize("name", ["Pipeline/Write", "Watch/Watch"])
async def test_the_failure_of_a_stream_itself_passes_as_it_is(name: str) -> None:
    failure = ConnectionResetError("the client is gone")
    with pytest.raises(ConnectionResetError) as caught:
        await serve(streaming(FakeNode(), name), FakeStream([], failure=failure))
    assert caught.value is failure


@pytest.mark.parametrize(
    ("name", "outcome"),
    [("Pipeline/Write", common_pb2.OUTCOME_UNKNOWN), ("Watch/Watch", common_pb2.OUTCOME_NOT_APPLIED)],
)
async def test_a_defect_ends_a_stream_of_writes_with_an_unknown_outcome(
    monkeypatch: pytest.MonkeyPatch, name: str, outcome: int
) -> None:
    node = FakeNode()
    node.watches_error = ZeroDivisionError("a defect")
    monkeypatch.setattr(pipeline, "parse_batch", lambda _raw: 1 / 0)
    with pytest.raises(RefusedError) as caught:
        await serve(streaming(node, name), FakeStream([batch(put(1))]))
    assert (caught.value.refusal.status, caught.value.refusal.error.outcome) == (
        grpc.StatusCode.INTERNAL,
        outcome,
    )


async def test_a_stream_that_is_cancelled_is_cancelled_inside() -> None:
    reading = asyncio.Event()

    class Silent(FakeStream):
        async def read(self) -> bytes | None:
            reading.set()
            return await asyncio.get_running_loop().create_future()

    node = FakeNode()
    serving = asyncio.ensure_future(serve(streaming(node, "Watch/Watch"), Silent([])))
    await reading.wait()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert node.streams[0].is_closed
