"""Serves a handler as a unary gRPC method.

A handler takes (request, seconds it may take) and returns the response or raises; it knows nothing of gRPC,
so that a node within the caller's process can be reached through the same handlers. Requests arrive here as
bytes: left to grpc, bytes that can't be parsed would be answered UNKNOWN, which is what a client is told of a
write that may have been applied.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from raftstate.node.service import TIMEOUT_S_DEFAULT
from raftstate.rpc.status import refusal_of_error, refuse
from raftstate.rpc.validation import parse

MARGIN_PART = 0.1
MARGIN_S_MAX = 0.25
"""The part of a client's time, and the most of it, that is kept for the answer's way back: a long round trip
between continents."""

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


def unary_method(
    kind: type[Request], handler: Callable[[Request, float], Awaitable[Response]], *, write: bool
) -> grpc.RpcMethodHandler[bytes, Response]:
    """Return the method that parses a `kind`, runs the handler, and answers what it raises as a status.

    `write`: the request may change something, so that an unforeseen failure leaves its outcome unknown. A
    call that its client cancels is cancelled inside the handler, too.
    """

    async def call(raw: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Response:
        try:
            return await handler(parse(kind, raw), time_to_answer_s(context.time_remaining()))
        except Exception as error:  # noqa: BLE001 - becomes the answer; the unforeseen is logged there
            refusal = refusal_of_error(error, write=write)
        return await refuse(context, refusal)

    return grpc.unary_unary_rpc_method_handler(call, response_serializer=_serialize)


def time_to_answer_s(remaining_s: float | None) -> float:
    """Return how long the node may take when its client waits for `remaining_s` more (None: it did not say),
    in seconds.

    That is a margin less: what the node knows (no leader, for how long, not applied) arrives before the
    client's own deadline, at which the client knows nothing.
    """
    if remaining_s is None:
        return TIMEOUT_S_DEFAULT
    return remaining_s - min(MARGIN_S_MAX, remaining_s * MARGIN_PART)


def _serialize(message: Message) -> bytes:
    raw: bytes = message.SerializeToString()
    return raw
