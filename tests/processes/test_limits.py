"""Every limit and its answer, on real nodes: at the leader and at a follower, over plain gRPC and through the
client. What takes a broken disk, or a node that was replaced, stands with those tests."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.message import Message

import raftstate
from raftstate import Delete, Get, Put, where
from raftstate.errors import (
    InvalidArgumentError,
    NoLeaderError,
    OutOfRangeError,
    RaftstateError,
    ResourceExhaustedError,
    SessionExpiredError,
    WrongClusterError,
)
from raftstate.pb.v1 import common_pb2, kv_pb2, lease_pb2, session_pb2, txn_pb2, watch_pb2
from raftstate.supervisor import SERVE_COMMAND, LocalCluster
from tests.rpc.errors import refusal

pytestmark = pytest.mark.processes

INVALID = grpc.StatusCode.INVALID_ARGUMENT


class Nodes(NamedTuple):
    leader: str
    follower: str


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("cluster") / "data", nodes=3, port=0) as cluster:
        cluster.wait_for_leader()
        yield cluster


@pytest.fixture
def nodes(cluster: LocalCluster) -> Nodes:
    leader = cluster.node(cluster.wait_for_leader()).endpoint
    return Nodes(leader, next(endpoint for endpoint in cluster.endpoints if endpoint != leader))


@pytest.fixture(params=["leader", "follower"])
def endpoint(request: pytest.FixtureRequest, nodes: Nodes) -> str:
    address: str = getattr(nodes, request.param)
    return address


@pytest.fixture
async def channel(endpoint: str) -> AsyncIterator[grpc.aio.Channel]:
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(endpoint, options=options) as channel:
        yield channel


async def call(
    channel: grpc.aio.Channel, method: str, request: Message, response: type[Message], timeout: float = 10
) -> Any:
    return await channel.unary_unary(
        f"/raftstate.v1.{method}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=response.FromString,
    )(request, timeout=timeout)


def unknown_field(request: Message) -> Message:
    """A request with field 200, a number that nothing has."""
    made = type(request)()
    made.ParseFromString(request.SerializeToString() + b"\xc0\x0c\x01")
    return made


def txn(*success: txn_pb2.RequestOp) -> kv_pb2.TxnRequest:
    return kv_pb2.TxnRequest(txn=txn_pb2.TxnCommand(success=success))


def op_put(key: bytes) -> txn_pb2.RequestOp:
    return txn_pb2.RequestOp(put=txn_pb2.PutCommand(key=key, value=b"v"))


MALFORMED: dict[str, tuple[str, Message, type[Message], str, str]] = {
    "empty key": ("KV/Put", kv_pb2.PutRequest(), kv_pb2.PutResponse, "key", "1 to 480 bytes, got 0"),
    "long key": (
        "KV/Put",
        kv_pb2.PutRequest(key=b"k" * 481),
        kv_pb2.PutResponse,
        "key",
        "480 bytes, got 481",
    ),
    "large value": (
        "KV/Put",
        kv_pb2.PutRequest(key=b"k", value=bytes((8 << 20) + 1)),
        kv_pb2.PutResponse,
        "value",
        "at most 8388608 bytes, got 8388609",
    ),
    "many operations": (
        "KV/Txn",
        txn(*(op_put(b"%d" % number) for number in range(1_025))),
        kv_pb2.TxnResponse,
        "txn",
        "1024",
    ),
    "overlapping writes": ("KV/Txn", txn(op_put(b"k"), op_put(b"k")), kv_pb2.TxnResponse, "success", "k"),
    "bad enum": (
        "KV/Get",
        kv_pb2.GetRequest(key=b"k", consistency=9),  # type: ignore[arg-type]
        kv_pb2.GetResponse,
        "consistency",
        "got 9",
    ),
    "unknown field": (
        "KV/Put",
        unknown_field(kv_pb2.PutRequest(key=b"k", value=b"v")),
        kv_pb2.PutResponse,
        "",
        "200",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_what_is_malformed_is_refused_with_field_and_limit(
    channel: grpc.aio.Channel, name: str
) -> None:
    method, request, response, field, says = MALFORMED[name]
    told = await refusal(call(channel, method, request, response))
    assert told.status is INVALID
    assert says in told.text
    assert field in told.error.field
    assert told.error.outcome == common_pb2.OUTCOME_NOT_APPLIED
    assert (await call(channel, "KV/Get", kv_pb2.GetRequest(key=b"k"), kv_pb2.GetResponse)).HasField(
        "kv"
    ) is False


async def test_the_client_refuses_the_same_and_says_so_alike(endpoint: str) -> None:
    async with raftstate.connect_async(endpoint) as store:
        for wrong in (
            lambda: store.put("", b""),
            lambda: store.put("k" * 481, b""),
            lambda: store.put("k", bytes((8 << 20) + 1)),
            lambda: store.get("k", consistency="eventual"),  # type: ignore[arg-type]
            lambda: store.txn().then(*(Put(f"{number}", b"") for number in range(1_025))).commit(),
            lambda: store.txn().then(Put("k", b""), Delete("k")).commit(),
        ):
            with pytest.raises(InvalidArgumentError) as caught:
                await wrong()
            assert caught.value.field
            assert caught.value.definite
        assert await store.get("k") is None


async def test_a_message_over_20_mib_is_refused_and_the_next_one_served(channel: grpc.aio.Channel) -> None:
    request = kv_pb2.PutRequest(key=b"k", value=bytes(21 << 20))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, "KV/Put", request, kv_pb2.PutResponse)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await call(channel, "KV/Get", kv_pb2.GetRequest(key=b"k"), kv_pb2.GetResponse)


async def test_a_session_that_nobody_opened_is_told_so(channel: grpc.aio.Channel) -> None:
    context = kv_pb2.WriteContext(session=common_pb2.SessionId(index=1, nonce=2), serial=1)
    told = await refusal(
        call(channel, "KV/Put", kv_pb2.PutRequest(key=b"k", value=b"v", context=context), kv_pb2.PutResponse)
    )
    assert told.status is grpc.StatusCode.FAILED_PRECONDITION
    assert told.error.code == common_pb2.ERROR_CODE_SESSION_EXPIRED
    assert not issubclass(SessionExpiredError, raftstate.IndefiniteError)


async def test_revisions_that_are_compacted_or_in_the_future_name_the_valid_ones(
    endpoint: str, channel: grpc.aio.Channel
) -> None:
    async with raftstate.connect_async(endpoint) as store:
        first = (await store.put("past", b"1")).revision
        last = (await store.put("past", b"2")).revision
        await store.compact(last)
        for revision in (first, last + 1_000):
            request = kv_pb2.GetRequest(key=b"past", revision=revision)
            told = await refusal(call(channel, "KV/Get", request, kv_pb2.GetResponse))
            assert told.status is grpc.StatusCode.OUT_OF_RANGE
            assert str(last) in told.text
            with pytest.raises(OutOfRangeError, match=str(last)):
                await store.get("past", revision=revision)
        assert (await store.get("past", revision=last)).value == b"2"  # type: ignore[union-attr]


async def test_a_watch_of_the_past_that_is_compacted_ends_and_one_of_the_future_waits(
    endpoint: str, channel: grpc.aio.Channel
) -> None:
    async with raftstate.connect_async(endpoint) as store:
        await store.put("watched", b"0")
        last = (await store.put("watched", b"1")).revision
        await store.compact(last)
        watching = channel.stream_stream(
            "/raftstate.v1.Watch/Watch",
            request_serializer=watch_pb2.WatchRequest.SerializeToString,
            response_deserializer=watch_pb2.WatchResponse.FromString,
        )(timeout=20)
        for number, start in ((1, 1), (2, last + 2)):
            create = watch_pb2.WatchCreate(watch_id=number, key=b"watched", start_revision=start)
            await watching.write(watch_pb2.WatchRequest(create=create))
        ended: dict[int, int] = {}
        events: list[int] = []
        await store.put("watched", b"2")
        while not events:
            news = await watching.read()
            ended.update({end.watch_id: end.compacted_revision for end in news.canceled})
            events += [event.kv.mod_revision for told in news.events for event in told.events]
            if ended and not events:
                await store.put("watched", b"3")
        assert ended.keys() == {1}
        assert 1 < ended[1] <= last  # a follower may not have applied the compaction yet
        assert min(events) >= last + 2
        watching.cancel()


async def test_a_compare_that_failed_is_an_answer_and_no_error(endpoint: str) -> None:
    async with raftstate.connect_async(endpoint) as store:
        result = (
            await store.txn().when(where("nothing").exists()).then(Put("x", b"")).otherwise(Get("x")).commit()
        )
        assert result.succeeded is False
        assert result.responses == (None,)


async def test_a_lease_that_is_not_there_is_told_so(channel: grpc.aio.Channel) -> None:
    told = await refusal(
        call(channel, "Lease/Renew", lease_pb2.LeaseRenewRequest(id=404), lease_pb2.LeaseRenewResponse)
    )
    assert told.error.code == common_pb2.ERROR_CODE_LEASE_NOT_FOUND


async def test_a_write_meant_for_another_cluster_is_refused(channel: grpc.aio.Channel) -> None:
    request = session_pb2.RegisterRequest(nonce=1, cluster_id=0xBAD)
    told = await refusal(call(channel, "Session/Register", request, session_pb2.RegisterResponse))
    assert told.status is grpc.StatusCode.FAILED_PRECONDITION
    assert told.error.code == common_pb2.ERROR_CODE_WRONG_CLUSTER


async def test_a_client_that_meets_two_clusters_says_so(nodes: Nodes, tmp_path: Path) -> None:
    other = LocalCluster(tmp_path / "other", nodes=1, port=0)
    with other:
        other.wait_for_leader()
        async with raftstate.connect_async(f"{nodes.leader},{other.endpoints[0]}") as store:
            with pytest.raises(WrongClusterError):
                await store.status()


async def test_without_a_leader_a_write_is_refused_in_time_and_says_what_the_node_knows(
    tmp_path: Path,
) -> None:
    with LocalCluster(tmp_path / "cluster", nodes=3, port=0) as alone:
        leader = alone.wait_for_leader()
        for node in alone.nodes:
            if node.name != leader:
                alone.kill(node.name)
        left = alone.node(leader).endpoint
        await asyncio.to_thread(_deposed, left)
        async with grpc.aio.insecure_channel(left) as channel:
            began = asyncio.get_running_loop().time()
            request = kv_pb2.PutRequest(key=b"k", value=b"v")
            told = await refusal(call(channel, "KV/Put", request, kv_pb2.PutResponse, timeout=8))
            assert asyncio.get_running_loop().time() - began < 8
        assert told.status is grpc.StatusCode.UNAVAILABLE
        assert told.error.outcome == common_pb2.OUTCOME_NOT_APPLIED
        assert told.error.term > 0
        assert told.error.leader_silent_ms > 0
        async with raftstate.connect_async(left) as store:
            with pytest.raises(NoLeaderError) as caught:
                await store.put("k", b"v", timeout=3)
            assert caught.value.definite


def _deposed(endpoint: str) -> None:
    """Wait until a leader without followers has noticed it."""
    with raftstate.connect(endpoint, timeout=5) as client:
        while any(node.role == "leader" for node in client.status()):
            pass


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SERVE_COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_node_refuses_a_port_beyond_loopback_a_foreign_directory_and_a_newer_format(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    refused = serve("--data", str(tmp_path / "new"), "--listen", "0.0.0.0:7999")
    assert refused.returncode != 0
    assert "--insecure" in refused.stderr
    running = cluster.nodes[0].data
    refused = serve("--data", str(running))
    assert refused.returncode != 0
    assert "in use" in refused.stderr
    folder = tmp_path / "node"
    with LocalCluster(folder, nodes=1, port=0):
        pass
    settings = folder / "n1" / "node.toml"
    kept = settings.read_text()
    settings.write_text(kept.replace("cluster_id = ", "cluster_id = 1"))
    refused = serve("--data", str(folder / "n1"))
    assert refused.returncode != 0
    assert "cluster" in refused.stderr
    settings.write_text(kept)
    identity = folder / "n1" / "data" / "identity"
    _write_newer_format(identity)
    refused = serve("--data", str(folder / "n1"))
    assert refused.returncode != 0
    assert "newer raftstate" in refused.stderr


def _write_newer_format(identity: Path) -> None:
    program = (
        "import json, sys, xxhash; path = sys.argv[1]; held = json.load(open(path))['identity'];"
        "held['format_version'] = 99; body = json.dumps(held, separators=(',', ':'));"
        "seal = xxhash.xxh3_64_hexdigest(body.encode());"
        'open(path, "w").write(\'{"identity":\' + body + \',"checksum":"\' + seal + \'"}\')'
    )
    subprocess.run([sys.executable, "-c", program, str(identity)], check=True)
    assert json.loads(identity.read_text())["identity"]["format_version"] == 99


async def test_errors_of_the_client_are_all_of_one_tree(endpoint: str) -> None:
    async with raftstate.connect_async(endpoint) as store:
        for wrong in (store.get(""), store.get("k", revision=10**9), store.put("k", b"", lease=404)):
            with pytest.raises(RaftstateError):
                await wrong
    assert issubclass(ResourceExhaustedError, RaftstateError)
