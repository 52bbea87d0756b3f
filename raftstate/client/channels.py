"""The transport over gRPC: channels, one an address, and calls that fail in one way."""

from __future__ import annotations

import asyncio
from typing import Any, Generic

import grpc
import grpc.aio

from raftstate.client import fork
from raftstate.client.faults import RpcFailure
from raftstate.client.limits import MESSAGE_BYTES_MAX
from raftstate.client.transport import Method, Request, Response, Stream
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

_CANCELLED = "the node cancelled the call"


class Channels:
    """Implements `transport.Transport`. Channels are made at first use and kept."""

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

    async def unary(
        self, address: str, method: Method[Request, Response], request: Request, timeout_s: float
    ) -> Response:
        """See `transport.Transport.unary`."""
        call: Any = self._multicallable("unary_unary", address, method)(request, timeout=timeout_s)
        try:
            response: Response = await call
            return response
        except grpc.aio.AioRpcError as failure:
            raise RpcFailure.of(address, failure) from failure
        except asyncio.CancelledError:
            # A node that stops cancels its calls, and gRPC tells this in the way that a cancelled task is
            # told.
            task = asyncio.current_task()
            if task is None or task.cancelling() or not call.cancelled():
                raise
        raise RpcFailure(address, grpc.StatusCode.CANCELLED, _CANCELLED, None)

    def stream(self, address: str, method: Method[Request, Response]) -> Stream[Request, Response]:
        """See `transport.Transport.stream`."""
        return _GrpcStream(address, self._multicallable("stream_stream", address, method)())

    def _multicallable(self, kind: str, address: str, method: Method[Request, Response]) -> Any:
        """Return what makes calls of a method: grpc keeps none, and a client makes few that matter."""
        request: Any = method.request  # messages, all of them
        response: Any = method.response
        return getattr(self[address], kind)(
            method.path,
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )

    async def close(self) -> None:
        """Close every channel, for good; calls under way on them end."""
        self._closed = True
        for channel in self._channels.values():
            await channel.close()


class _GrpcStream(Generic[Request, Response]):
    """Implements `transport.Stream`."""

    def __init__(self, address: str, call: grpc.aio.StreamStreamCall[Request, Response]) -> None:
        self._address = address
        self._call: Any = call

    async def write(self, message: Request) -> None:
        try:
            await self._call.write(message)
        except grpc.aio.AioRpcError as failure:
            raise RpcFailure.of(self._address, failure) from failure
        except asyncio.InvalidStateError as error:
            # It had ended before; `read` knows why.
            raise RpcFailure(self._address, grpc.StatusCode.UNAVAILABLE, "the stream ended", None) from error
        except asyncio.CancelledError:
            self._raise_cancelled()
            raise

    async def read(self) -> Response | None:
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as failure:
            raise RpcFailure.of(self._address, failure) from failure
        except asyncio.CancelledError:
            self._raise_cancelled()
            raise
        if message is grpc.aio.EOF:
            return None
        received: Response = message
        return received

    def cancel(self) -> None:
        self._call.cancel()

    def _raise_cancelled(self) -> None:
        """Raise `RpcFailure` if it was the node that cancelled the call, and not whoever waits for it."""
        task = asyncio.current_task()
        if task is not None and not task.cancelling() and self._call.cancelled():
            raise RpcFailure(self._address, grpc.StatusCode.CANCELLED, _CANCELLED, None) from None
