"""The server around the services: where it listens, what it says of its health, what it shows of itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from raftstate.errors import ConfigError
from raftstate.pb.v1 import kv_pb2, kv_pb2_grpc
from raftstate.rpc.meter import CallKind
from raftstate.rpc.server import build_server, check_listen_host
from tests.rpc.conftest import Served
from tests.rpc.fake_node import FakeNode, Gate, take

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
PUBLIC = tuple(f"raftstate.v1.{name}" for name in ("KV", "Pipeline", "Session", "Lease", "Watch", "Cluster"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
def test_loopback_needs_no_permission(host: str) -> None:
    check_listen_host(host, insecure=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.7", "example.org", "localhost.example.org"])
def test_beyond_loopback_is_refused_unless_it_is_meant(host: str) -> None:
    with pytest.raises(
        ConfigError, match=r"refusing to listen on .*; listen on 127.0.0.1 .* give --insecure"
    ):
        check_listen_host(host, insecure=False)
    check_listen_host(host, insecure=True)


async def test_a_server_beyond_loopback_is_not_even_bound() -> None:
    with pytest.raises(ConfigError, match=r"refusing to listen on '0\.0\.0\.0'"):
        build_server(FakeNode(), host="0.0.0.0", port=0)


async def test_a_port_that_is_taken_is_refused_by_name(served: Served) -> None:
    with pytest.raises(ConfigError, match=f"can't listen on 127.0.0.1:{served.server.port}"):
        build_server(FakeNode(), host="127.0.0.1", port=served.server.port)


async def statuses(channel: grpc.aio.Channel) -> dict[str, int]:
    stub = health_pb2_grpc.HealthStub(channel)
    names = ("", *PUBLIC)
    return {name: (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status for name in names}


CLUSTER = "raftstate.v1.Cluster"


def watched(channel: grpc.aio.Channel, service: str) -> AsyncIterator[int]:
    """Return what the health service says of a service, each time that it changes."""
    stub = health_pb2_grpc.HealthStub(channel)

    async def follow() -> AsyncIterator[int]:
        async for said in stub.Watch(health_pb2.HealthCheckRequest(service=service), timeout=20):
            yield said.status

    return follow()


async def test_a_service_without_the_leader_that_it_needs_says_so_and_cluster_serves_on(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftstate.rpc.server.LEADERLESS_S", 0.05)
    assert await statuses(served.channel) == dict.fromkeys(("", *PUBLIC), SERVING)
    kv, whole = watched(served.channel, "raftstate.v1.KV"), watched(served.channel, "")
    assert (await anext(kv), await anext(whole)) == (SERVING, SERVING)
    served.node.leader_id = 0
    served.server.health_changed()
    assert (await anext(kv), await anext(whole)) == (NOT_SERVING, NOT_SERVING)
    assert await statuses(served.channel) == {**dict.fromkeys(("", *PUBLIC), NOT_SERVING), CLUSTER: SERVING}
    served.node.leader_id = 1
    served.server.health_changed()
    assert (await anext(kv), await anext(whole)) == (SERVING, SERVING)


async def test_an_election_that_takes_a_moment_is_not_told(served: Served) -> None:
    kv = watched(served.channel, "raftstate.v1.KV")
    assert await anext(kv) == SERVING
    for leader in (0, 1):
        served.node.leader_id = leader
        served.server.health_changed()
        assert (await statuses(served.channel))["raftstate.v1.KV"] == SERVING
    # What is told next is not the loss, though that came first.
    served.node.may_read = False
    served.server.health_changed()
    assert await anext(kv) == NOT_SERVING


async def test_a_node_that_may_show_nothing_still_takes_writes(served: Served) -> None:
    served.node.may_read = False
    kv = watched(served.channel, "raftstate.v1.KV")
    assert await anext(kv) == SERVING
    served.server.health_changed()
    assert await anext(kv) == NOT_SERVING
    assert await statuses(served.channel) == {
        "": NOT_SERVING,
        **dict.fromkeys(PUBLIC, SERVING),
        **{f"raftstate.v1.{name}": NOT_SERVING for name in ("KV", "Lease", "Watch")},
    }


async def test_a_node_that_stops_serves_nothing_and_watchers_are_told(served: Served) -> None:
    cluster = watched(served.channel, CLUSTER)
    assert await anext(cluster) == SERVING
    await served.server.stop_serving()
    assert await anext(cluster) == NOT_SERVING
    assert await statuses(served.channel) == dict.fromkeys(("", *PUBLIC), NOT_SERVING)


async def test_calls_are_counted_by_method_and_status(served: Served) -> None:
    await served.kv.Put(kv_pb2.PutRequest(key=b"a"))
    with pytest.raises(grpc.aio.AioRpcError):
        await served.kv.Put(kv_pb2.PutRequest())
    meter = served.server.meter
    put = CallKind("raftstate.v1.KV", "Put", "unary")
    assert {status: count for (kind, status), count in meter.handled.items() if kind == put} == {
        "OK": 1,
        "INVALID_ARGUMENT": 1,
    }
    assert (meter.started[put], meter.under_way[put], sum(meter.seconds[put].snapshot().counts)) == (2, 0, 2)
    assert meter.received_bytes == len(kv_pb2.PutRequest(key=b"a").SerializeToString())
    assert meter.sent_bytes > 0


async def test_a_node_that_can_not_serve_yet_says_so_from_the_start() -> None:
    node = FakeNode()
    node.is_serving = False
    server = build_server(node, host="127.0.0.1", port=0)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            assert await statuses(channel) == dict.fromkeys(("", *PUBLIC), NOT_SERVING)
    finally:
        await server.stop(0)


async def reflected(channel: grpc.aio.Channel) -> reflection_pb2.ServerReflectionResponse:
    async def ask() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    async for response in reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(ask()):
        return response
    raise AssertionError("no answer")


async def test_reflection_lists_the_services(served: Served) -> None:
    response = await reflected(served.channel)
    listed = {service.name for service in response.list_services_response.service}
    assert listed == {*PUBLIC, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


async def test_stop_lets_calls_under_way_end_within_the_grace() -> None:
    node = FakeNode()
    node.on_write = gate = Gate()
    server = build_server(node, host="127.0.0.1", port=0)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = kv_pb2_grpc.KVStub(channel).Put(kv_pb2.PutRequest(key=b"a"))
        await take(gate.entered, 1)
        stopping = asyncio.ensure_future(server.stop(10))
        gate.open()
        assert (await call).header.revision == 2
        await stopping
