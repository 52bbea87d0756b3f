"""Reads: one unary call each, asked again elsewhere until the deadline, since a read changes nothing."""

from __future__ import annotations

import asyncio
from typing import Protocol, TypeVar

import grpc

from raftstate.client.faults import RpcFailure, passes
from raftstate.client.leader import LeaderTracker, backoff_s
from raftstate.client.transport import Method, Transport
from raftstate.errors import DeadlineError, NoLeaderError
from raftstate.pb.v1 import common_pb2

_ATTEMPT_S_MIN = 1.0
_ATTEMPTS = 5
"""A node that says nothing gets a fifth of the time, at least 1 s; then another is asked, with twice as much.
"""


_DAMAGE_ATTEMPTS = 8
"""How many nodes are asked, some again, when each says that its copy is damaged: within a second a leader has
handed over."""


class _Asked(Protocol):
    @property
    def consistency(self) -> int: ...


class _Answered(Protocol):
    @property
    def header(self) -> common_pb2.ResponseHeader: ...


ReadRequest = TypeVar("ReadRequest", bound=_Asked)
ReadReply = TypeVar("ReadReply", bound=_Answered)


async def read(
    transport: Transport,
    tracker: LeaderTracker,
    method: Method[ReadRequest, ReadReply],
    request: ReadRequest,
    timeout_s: float,
) -> ReadReply:
    """Return the reply to a read.

    A linearizable read goes to the leader; others to one node, the same while it answers.
    Raises `NoLeaderError` and `DeadlineError` when `timeout_s` has passed, and whatever else a node answers
    at once.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    linearizable = request.consistency == common_pb2.CONSISTENCY_LINEARIZABLE
    attempt_s = max(_ATTEMPT_S_MIN, timeout_s / _ATTEMPTS)
    attempt = 0
    last: RpcFailure | None = None
    while True:
        address = tracker.home
        if linearizable:
            address = tracker.leader or await _find(tracker, deadline, timeout_s, last)
        left_s = deadline - loop.time()
        try:
            reply = await transport.unary(address, method, request, min(left_s, attempt_s))
        except RpcFailure as failure:
            if not _worth_another(failure) and not (_is_damage(failure) and attempt < _DAMAGE_ATTEMPTS):
                raise failure.as_error(write=False) from failure
            last = failure
            tracker.note_failure(address, failure.text)
            tracker.forget(address)
            pause_s = backoff_s(attempt)
            if loop.time() + pause_s >= deadline:
                raise _late(tracker, failure, timeout_s) from failure
        else:
            tracker.observe(reply.header)
            return reply
        await asyncio.sleep(pause_s)
        attempt += 1
        attempt_s *= 2


async def _find(tracker: LeaderTracker, deadline: float, timeout_s: float, last: RpcFailure | None) -> str:
    """Find the leader. Time that runs out after a node was asked is told by what that met."""
    try:
        return await tracker.find(deadline, timeout_s)
    except NoLeaderError as error:
        if last is None:
            raise
        raise _late(tracker, last, timeout_s) from error


def _worth_another(failure: RpcFailure) -> bool:
    if failure.error is not None:
        return passes(failure.error)
    return failure.status in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
    )


def _is_damage(failure: RpcFailure) -> bool:
    """Whether the node's own copy is damaged: the others have theirs."""
    return failure.error is not None and failure.error.code == common_pb2.ERROR_CODE_DATA_LOSS


def _late(tracker: LeaderTracker, failure: RpcFailure, timeout_s: float) -> Exception:
    """Return the error for a read that ran out of time, by what its last attempt met."""
    if _is_damage(failure):
        return failure.as_error(write=False)
    if failure.status is grpc.StatusCode.UNAVAILABLE:
        return tracker.no_leader(timeout_s, "nothing was read")
    return DeadlineError(
        f"the read was not answered within {timeout_s:g} s; {failure.address} was asked last: {failure.text}"
    )
