"""Builds a node's gRPC server: all services, health and reflection on one port."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from raftstate.address import is_loopback
from raftstate.errors import ConfigError
from raftstate.node.service import NodeService
from raftstate.rpc.meter import Meter
from raftstate.rpc.methods import methods_of, service_names
from raftstate.rpc.serving import generic_handlers

RECEIVE_BYTES_MAX = 20 << 20
"""A batch of one command with the longest key and value, with room; one of many commands has 1 MiB."""
CONCURRENT_CALLS_MAX = 8_192
"""Calls beyond it are answered RESOURCE_EXHAUSTED; a pipeline stream is one. It bounds
the memory of calls that wait, far above what the loop can answer within a client's patience."""
KEEPALIVE_INTERVAL_MS = 10_000
"""A client that vanished without a FIN holds its streams no longer than this and the next one together."""
KEEPALIVE_TIMEOUT_MS = 5_000
CLIENT_PING_INTERVAL_MS_MIN = 5_000
"""gRPC's default of 5 minutes would end the connections of clients that ping as often as this server does."""

_OPTIONS = (
    ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
    ("grpc.max_send_message_length", -1),
    # With it a second node on the same port would be given half of the connections instead of an error.
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", KEEPALIVE_INTERVAL_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", CLIENT_PING_INTERVAL_MS_MIN),
)


class RpcServer:
    """A node's gRPC server, bound to its port. Made by `build_server`, on the running event loop."""

    def __init__(
        self,
        server: grpc.aio.Server,
        port: int,
        services: Sequence[str],
        meter: Meter,
        *,
        is_serving: bool,
    ) -> None:
        self.meter = meter
        """What became of the calls."""
        self._server = server
        self._port = port
        self._services = services
        self._health = health.aio.HealthServicer()
        self._is_serving = is_serving
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)

    @property
    def port(self) -> int:
        """The port that it is bound to, also when 0 was asked for."""
        return self._port

    async def start(self) -> None:
        """Begin to answer.

        Until `set_serving` says otherwise health is what the node said when the server was built.
        """
        await self.set_serving(self._is_serving)
        await self._server.start()

    async def set_serving(self, is_serving: bool) -> None:
        """Say by the health service, for each service and for the whole, whether the node can answer
        requests."""
        self._is_serving = is_serving
        statuses = health_pb2.HealthCheckResponse
        status = statuses.SERVING if is_serving else statuses.NOT_SERVING
        for name in (health.OVERALL_HEALTH, *self._services):
            await self._health.set(name, status)

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, wait up to `grace_s` seconds for those under way, and cancel the rest."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)


def build_server(service: NodeService, *, host: str, port: int, insecure: bool = False) -> RpcServer:
    """Return a server for a node, bound but not started.

    Args:
        service: the node.
        host: the address or name to listen on.
        port: 0 lets the system choose.
        insecure: whether listening beyond loopback, without encryption or authentication, is meant.

    Raises:
        ConfigError: the address is beyond loopback and `insecure` was not given, or can't be bound.
    """
    check_listen_host(host, insecure=insecure)
    server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=CONCURRENT_CALLS_MAX)
    methods = methods_of(service)
    services = service_names(methods)
    meter = Meter()
    server.add_generic_rpc_handlers(generic_handlers(methods, meter))
    reflection.enable_server_reflection((*services, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound_port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigError(
            f"can't listen on {address}: {error}; another process may be there, or the address not be this"
            " machine's",
            field="listen_client",
        ) from error
    return RpcServer(server, bound_port, services, meter, is_serving=service.is_serving)


def check_listen_host(host: str, *, insecure: bool) -> None:
    """Raise `ConfigError` when `host` is reachable from other machines and that was not said to be meant."""
    if not insecure and not is_loopback(host):
        raise ConfigError(
            f"refusing to listen on {host!r}: beyond loopback anyone could read and write, since there is no"
            " encryption or authentication yet; listen on 127.0.0.1 or ::1, or give --insecure if all of the"
            " network is trusted",
            field="listen_client",
        )
