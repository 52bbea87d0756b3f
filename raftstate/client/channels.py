"""gRPC channels, one an address, and unary calls that fail in one way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from raftstate.client import fork
from raftstate.client.faults import RpcFailure
from raftstate.client.limits import MESSAGE_BYTES_MAX
from raftstate.errors import ClosedError

_OPTIONS = (
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX + (1 << 20)),
    # gRPC's defaults are made for the open internet: up to 120 s between attempts to reach a node that has
    # come back long ago.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    # A store in the next rack is not reached through the proxy that leads to the web.
    ("grpc.enable_http_proxy", 0),
    # Channels of one client share nothing with those of another: to close one breaks no other.
    ("grpc.use_local_subchannel_pool", 1),
)

Stub = Callable[[grpc.aio.Channel], Any]


class Channels:
    """Channels made at first use and kept. Belongs to one event loop."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._closed = False

    def __getitem__(self, address: str) -> grpc.aio.Channel:
        if self._closed:
            raise ClosedError("the client was closed")
        channel = self._channels.get(address)
        if channel is None:
            fork.about_to_open_channel()
            channel = self._channels[address] = grpc.aio.insecure_channel(address, options=_OPTIONS)
        return channel

    async def unary(self, address: str, stub: Stub, method: str, request: Any, timeout_s: float) -> Any:
        """Call `method` of the service at an address and return its reply.

        Raises `RpcFailure`, `ClosedError`, and `FailedPreconditionError` in a child of a process that had
        channels.
        """
        call = getattr(stub(self[address]), method)(request, timeout=timeout_s)
        try:
            return await call
        except grpc.aio.AioRpcError as failure:
            raise RpcFailure.of(address, failure) from failure
        except asyncio.CancelledError:
            # A node that stops cancels its calls, and gRPC tells this in the way that a cancelled task is
            # told.
            task = asyncio.current_task()
            if task is None or task.cancelling() or not call.cancelled():
                raise
        raise RpcFailure(address, grpc.StatusCode.CANCELLED, "the node cancelled the call", None)

    async def close(self) -> None:
        """Close every channel, for good; calls under way on them end."""
        self._closed = True
        for channel in self._channels.values():
            await channel.close()
