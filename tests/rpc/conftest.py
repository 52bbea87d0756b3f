from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import pytest_asyncio

from raftstate.pb.v1 import (
    cluster_pb2_grpc,
    kv_pb2_grpc,
    lease_pb2_grpc,
    pipeline_pb2_grpc,
    session_pb2_grpc,
    watch_pb2_grpc,
)
from raftstate.rpc.server import RpcServer, build_server
from tests.rpc.fake_node import FakeNode


@dataclass(frozen=True)
class Served:
    """A node behind a real server on a free loopback port, with a channel and stubs to it."""

    node: FakeNode
    server: RpcServer
    channel: grpc.aio.Channel

    @property
    def kv(self) -> kv_pb2_grpc.KVStub:
        return kv_pb2_grpc.KVStub(self.channel)

    @property
    def pipeline(self) -> pipeline_pb2_grpc.PipelineStub:
        return pipeline_pb2_grpc.PipelineStub(self.channel)

    @property
    def session(self) -> session_pb2_grpc.SessionStub:
        return session_pb2_grpc.SessionStub(self.channel)

    @property
    def lease(self) -> lease_pb2_grpc.LeaseStub:
        return lease_pb2_grpc.LeaseStub(self.channel)

    @property
    def watch(self) -> watch_pb2_grpc.WatchStub:
        return watch_pb2_grpc.WatchStub(self.channel)

    @property
    def cluster(self) -> cluster_pb2_grpc.ClusterStub:
        return cluster_pb2_grpc.ClusterStub(self.channel)


@pytest_asyncio.fixture
async def served() -> AsyncIterator[Served]:
    node = FakeNode()
    server = build_server(node, host="127.0.0.1", port=0)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield Served(node, server, channel)
    finally:
        await server.stop(0)
