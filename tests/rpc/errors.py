"""What a failed call told its client."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, NamedTuple

import grpc
import pytest

from raftstate.pb.v1 import common_pb2


class Told(NamedTuple):
    status: grpc.StatusCode
    text: str
    error: common_pb2.Error


async def refusal(call: Awaitable[Any]) -> Told:
    """Await a call that must fail; return its status, text and decoded trailer."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return told_by(caught.value)


def told_by(failure: grpc.aio.AioRpcError) -> Told:
    trailers = dict(failure.trailing_metadata() or ())
    error = common_pb2.Error.FromString(trailers["raftstate-error-bin"])
    return Told(failure.code(), failure.details() or "", error)
