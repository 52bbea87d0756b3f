"""Serves the table of methods by gRPC.

Requests arrive here as bytes: left to grpc, bytes that can't be parsed would be answered UNKNOWN, which is
what a client is told of a write that may have been applied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message

from raftstate.node.service import TIMEOUT_S_DEFAULT
from raftstate.rpc.meter import CallKind, Meter
from raftstate.rpc.methods import PACKAGE, Method, StreamMethod, UnaryMethod, call, serve
from raftstate.rpc.status import TRAILER, Refusal, RefusedError, status_text

MARGIN_PART = 0.1
MARGIN_S_MAX = 0.25
"""The part of a client's time, and the most of it, that is kept for the answer's way back: a long round trip
between continents."""


def generic_handlers(methods: dict[str, Method], meter: Meter) -> list[grpc.GenericRpcHandler]:
    """Return what a gRPC server needs to serve these methods, and count their calls in `meter`. A call that
    its client cancels is cancelled inside the handler, too."""
    services: dict[str, dict[str, grpc.RpcMethodHandler[bytes, Message]]] = {}
    for method in methods.values():
        service, name = method.name.split("/")
        unary = isinstance(method, UnaryMethod)
        kind = CallKind(f"{PACKAGE}.{service}", name, "unary" if unary else "bidi_stream")
        meter.add(kind)
        services.setdefault(kind.service, {})[name] = (
            _unary(method, kind, meter)
            if isinstance(method, UnaryMethod)
            else _streaming(method, kind, meter)
        )
    return [grpc.method_handlers_generic_handler(name, table) for name, table in services.items()]


def time_to_answer_s(remaining_s: float | None) -> float:
    """Return how long the node may take when its client waits for `remaining_s` more (None: it did not say),
    in seconds.

    That is a margin less: what the node knows (no leader, for how long, not applied) arrives before the
    client's own deadline, at which the client knows nothing.
    """
    if remaining_s is None:
        return TIMEOUT_S_DEFAULT
    return remaining_s - min(MARGIN_S_MAX, remaining_s * MARGIN_PART)


def _unary(method: UnaryMethod, kind: CallKind, meter: Meter) -> grpc.RpcMethodHandler[bytes, Message]:
    async def run(raw: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Message:
        meter.received_bytes += len(raw)
        began_ns, status = meter.began(kind), grpc.StatusCode.UNKNOWN
        try:
            message = await call(method, raw, time_to_answer_s(context.time_remaining()))
            status = grpc.StatusCode.OK
            return message
        except RefusedError as error:
            refusal, status = error.refusal, error.refusal.status
        except asyncio.CancelledError:
            status = grpc.StatusCode.CANCELLED
            raise
        finally:
            meter.ended(kind, status.name, began_ns)
        return await _refuse(context, refusal)

    return grpc.unary_unary_rpc_method_handler(run, response_serializer=_serializer(meter))


def _streaming(method: StreamMethod, kind: CallKind, meter: Meter) -> grpc.RpcMethodHandler[bytes, Message]:
    async def run(_requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        began_ns, status = meter.began(kind), grpc.StatusCode.UNKNOWN
        try:
            await serve(method, _ContextStream(context, meter))
            status = grpc.StatusCode.OK
            return
        except RefusedError as error:
            refusal, status = error.refusal, error.refusal.status
        except asyncio.CancelledError:
            status = grpc.StatusCode.CANCELLED
            raise
        finally:
            meter.ended(kind, status.name, began_ns)
        await _refuse(context, refusal)

    return grpc.stream_stream_rpc_method_handler(run, response_serializer=_serializer(meter))


class _ContextStream:
    """A gRPC call as a `Stream`. What grpc raises goes back to grpc, which knows it by its class."""

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any], meter: Meter) -> None:
        self._context = context
        self._meter = meter

    async def read(self) -> bytes | None:
        raw: Any = await self._context.read()
        if raw is grpc.aio.EOF:
            return None
        self._meter.received_bytes += len(raw)
        return raw  # type: ignore[no-any-return]

    async def write(self, message: Message) -> None:
        await self._context.write(message)


async def _refuse(context: grpc.aio.ServicerContext[Any, Any], refusal: Refusal) -> NoReturn:
    """End a call with this refusal."""
    await context.abort(
        refusal.status, status_text(refusal.error), ((TRAILER, refusal.error.SerializeToString()),)
    )
    raise AssertionError("unreachable: abort raises")


def _serializer(meter: Meter) -> Callable[[Message], bytes]:
    def serialize(message: Message) -> bytes:
        raw: bytes = message.SerializeToString()
        meter.sent_bytes += len(raw)
        return raw

    return serialize
