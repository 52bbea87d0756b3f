"""Serves the table of methods by gRPC.

Requests arrive here as bytes: left to grpc, bytes that can't be parsed would be answered UNKNOWN, which is
what a client is told of a write that may have been applied.
"""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message

from raftstate.node.service import TIMEOUT_S_DEFAULT
from raftstate.rpc.methods import PACKAGE, Method, StreamMethod, UnaryMethod, call, serve
from raftstate.rpc.status import TRAILER, Refusal, RefusedError, status_text

MARGIN_PART = 0.1
MARGIN_S_MAX = 0.25
"""The part of a client's time, and the most of it, that is kept for the answer's way back: a long round trip
between continents."""


def generic_handlers(methods: dict[str, Method]) -> list[grpc.GenericRpcHandler]:
    """Return what a gRPC server needs to serve these methods. A call that its client cancels is cancelled
    inside the handler, too."""
    services: dict[str, dict[str, grpc.RpcMethodHandler[bytes, Message]]] = {}
    for method in methods.values():
        service, name = method.name.split("/")
        services.setdefault(f"{PACKAGE}.{service}", {})[name] = (
            _unary(method) if isinstance(method, UnaryMethod) else _streaming(method)
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


def _unary(method: UnaryMethod) -> grpc.RpcMethodHandler[bytes, Message]:
    async def run(raw: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Message:
        try:
            return await call(method, raw, time_to_answer_s(context.time_remaining()))
        except RefusedError as error:
            return await _refuse(context, error.refusal)

    return grpc.unary_unary_rpc_method_handler(run, response_serializer=_serialize)


def _streaming(method: StreamMethod) -> grpc.RpcMethodHandler[bytes, Message]:
    async def run(_requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        try:
            await serve(method, _ContextStream(context))
        except RefusedError as error:
            await _refuse(context, error.refusal)

    return grpc.stream_stream_rpc_method_handler(run, response_serializer=_serialize)


class _ContextStream:
    """A gRPC call as a `Stream`. What grpc raises goes back to grpc, which knows it by its class."""

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._context = context

    async def read(self) -> bytes | None:
        raw: Any = await self._context.read()
        return None if raw is grpc.aio.EOF else raw

    async def write(self, message: Message) -> None:
        await self._context.write(message)


async def _refuse(context: grpc.aio.ServicerContext[Any, Any], refusal: Refusal) -> NoReturn:
    """End a call with this refusal."""
    await context.abort(
        refusal.status, status_text(refusal.error), ((TRAILER, refusal.error.SerializeToString()),)
    )
    raise AssertionError("unreachable: abort raises")


def _serialize(message: Message) -> bytes:
    raw: bytes = message.SerializeToString()
    return raw
