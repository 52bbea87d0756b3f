"""Builds a node's gRPC server: all services, health and reflection on one port."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from raftstate.address import is_loopback
from raftstate.core.types import NONE
from raftstate.errors import ConfigError
from raftstate.node.service import NodeService
from raftstate.rpc.meter import Meter
from raftstate.rpc.methods import PACKAGE, methods_of, service_names
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

LEADERLESS_S = 1.0
"""How long a node says that it serves although it lost its leader: requests are held for the next one for
somewhat longer (`requests.HOLD_NS_MAX`), and an election takes less."""
NEEDS_NO_LEADER = frozenset({f"{PACKAGE}.Cluster"})
SHOWS_STATE = frozenset({f"{PACKAGE}.KV", f"{PACKAGE}.Lease", f"{PACKAGE}.Watch"})

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
        service: NodeService,
    ) -> None:
        self.meter = meter
        """What became of the calls."""
        self._server = server
        self._port = port
        self._services = services
        self._health = health.aio.HealthServicer()
        self._service = service
        self._stopping = False
        self._led = False
        self._leader_lost_s: float | None = None
        self._said: dict[str, bool] = {}
        self._changed = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)

    @property
    def port(self) -> int:
        """The port that it is bound to, also when 0 was asked for."""
        return self._port

    async def start(self) -> None:
        """Begin to answer, and to say by the health service what the node can do."""
        await self._say_health()
        self._following = asyncio.create_task(self._follow_health())
        await self._server.start()

    def health_changed(self) -> None:
        """Look again at what the node can do: a leader was lost or found, or something came to keep it from
        its work, or was mended."""
        self._changed.set()

    async def stop_serving(self) -> None:
        """Say by the health service that nothing is served any more."""
        self._stopping = True
        await self._say_health()

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, wait up to `grace_s` seconds for those under way, and cancel the rest."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)

    async def _follow_health(self) -> None:
        """Say what has changed, when it has."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._grace_s()):
                    await self._changed.wait()
            self._changed.clear()
            await self._say_health()

    def _grace_s(self) -> float | None:
        """Return for how long a lost leader goes on to count, in seconds; None: none was lost."""
        if self._leader_lost_s is None or not self._led:
            return None
        return max(0.0, self._leader_lost_s + LEADERLESS_S - asyncio.get_running_loop().time())

    def _is_led(self) -> bool:
        """Return whether there is a leader, or will be soon: requests that come meanwhile wait for it, and
        clients that turned away would only come back."""
        if self._service.leader()[0] != NONE:
            self._led, self._leader_lost_s = True, None
        elif self._led:
            if self._leader_lost_s is None:
                self._leader_lost_s = asyncio.get_running_loop().time()
            self._led = self._grace_s() != 0
        return self._led

    def _health_now(self) -> Mapping[str, bool]:
        """Return which services can do their work; under the empty name whether all can.

        Cluster needs a running node only: it is what tells the rest. All others need a leader, and those that
        show what the node holds need that it may be shown.
        """
        node = self._service
        running = node.is_serving and not self._stopping
        led = self._is_led()
        able = {
            name: running
            and (name in NEEDS_NO_LEADER or (led and (name not in SHOWS_STATE or node.may_read)))
            for name in self._services
        }
        return {health.OVERALL_HEALTH: all(able.values()), **able}

    async def _say_health(self) -> None:
        statuses = health_pb2.HealthCheckResponse
        for name, can in self._health_now().items():
            if self._said.get(name) is not can:
                self._said[name] = can
                await self._health.set(name, statuses.SERVING if can else statuses.NOT_SERVING)


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
    return RpcServer(server, bound_port, services, meter, service)


def check_listen_host(host: str, *, insecure: bool) -> None:
    """Raise `ConfigError` when `host` is reachable from other machines and that was not said to be meant."""
    if not insecure and not is_loopback(host):
        raise ConfigError(
            f"refusing to listen on {host!r}: beyond loopback anyone could read and write, since there is no"
            " encryption or authentication yet; listen on 127.0.0.1 or ::1, or give --insecure if all of the"
            " network is trusted",
            field="listen_client",
        )
