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


async def test_health_follows_the_node_for_the_whole_and_each_service(served: Served) -> None:
    assert await statuses(served.channel) == dict.fromkeys(("", *PUBLIC), SERVING)
    await served.server.set_serving(False)
    assert await statuses(served.channel) == dict.fromkeys(("", *PUBLIC), NOT_SERVING)
    await served.server.set_serving(True)
    assert await statuses(served.channel) == dict.fromkeys(("", *PUBLIC), SERVING)


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
