"""A node of ours whose writes go in batches, over the stream and in the session that the client library uses.

Some batches are sent twice, as after a broken connection: both answers must be the same, and nothing is done
twice.
"""

from __future__ import annotations

import queue
import secrets
import threading
from collections.abc import Callable
from typing import Any

import grpc

from raftstate.pb.v1 import common_pb2, pipeline_pb2, pipeline_pb2_grpc, session_pb2, session_pb2_grpc
from tests.differential.operations import (
    WRITES,
    Answer,
    Compact,
    CompactAnswer,
    Delete,
    Grant,
    LeaseAnswer,
    Put,
    PutAnswer,
    Refusal,
    Renew,
    Reply,
    Request,
    Revoke,
    Txn,
)
from tests.differential.ours import OurNode, delete_answer, operation_of, pair, txn_answer, txn_command
from tests.differential.store import REQUEST_TIMEOUT_S, refused

_SENT_TWICE_EVERY = 3
_STATUS = {
    "ERROR_CODE_INVALID": "INVALID_ARGUMENT",
    "ERROR_CODE_OUT_OF_RANGE": "OUT_OF_RANGE",
    "ERROR_CODE_LEASE_NOT_FOUND": "NOT_FOUND",
    "ERROR_CODE_FAILED_PRECONDITION": "FAILED_PRECONDITION",
}


class OurPipelinedNode(OurNode):
    """Asks a node. Writes wait for others; a batch of them leaves when the reply to one is waited for, so
    whoever reads must have waited for all writes before. Close it when done."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        sessions = session_pb2_grpc.SessionStub(self._channel)
        asked = session_pb2.RegisterRequest(nonce=secrets.randbits(64))
        self._session = sessions.Register(asked, timeout=REQUEST_TIMEOUT_S).session
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stream = pipeline_pb2_grpc.PipelineStub(self._channel).Write(iter(self._outbox.get, None))
        self._serial = 0
        self._batches = 0
        self._unsent: list[tuple[int, Request]] = []
        self._replies: dict[int, Reply] = {}

    def begin(self, request: Request) -> Callable[[], Reply]:
        """Put a write into the open batch, or send a read; what is returned waits for the reply."""
        if not isinstance(request, WRITES):
            return super().begin(request)
        self._serial += 1
        serial = self._serial
        self._unsent.append((serial, request))
        return lambda: self._reply_to(serial)

    def close(self) -> None:
        """Drop the connection."""
        self._outbox.put(None)
        self._stream.cancel()
        super().close()

    def _reply_to(self, serial: int) -> Reply:
        if serial not in self._replies:
            self._send()
        return self._replies.pop(serial)

    def _send(self) -> None:
        """Send the open batch and take in all answers to it."""
        batch = pipeline_pb2.CommandBatch(
            session=self._session,
            floor=self._unsent[0][0],
            commands=[_command(serial, request) for serial, request in self._unsent],
        )
        asked, self._unsent = dict(self._unsent), []
        self._batches += 1
        times = 2 if self._batches % _SENT_TWICE_EVERY == 0 else 1
        for _ in range(times):
            self._outbox.put(batch)
        late = threading.Timer(REQUEST_TIMEOUT_S, self._stream.cancel)
        late.start()
        try:
            answers: list[tuple[int, Reply]] = []
            while len(answers) < times * len(asked):
                answers += _answers(next(self._stream), asked)
        except grpc.RpcError as error:
            answers = [(serial, refused(error)) for serial in asked]
        finally:
            late.cancel()
        for serial, reply in answers:
            first = self._replies.setdefault(serial, reply)
            if reply != first:
                self._replies[serial] = Reply(None, Refusal("ANSWERED_TWICE", f"{first}, then {reply}"))


def _command(serial: int, request: Request) -> Any:
    match request:
        case Put() | Delete():
            operation = operation_of(request)
            kind = operation.WhichOneof("op")
            return pipeline_pb2.Command(serial=serial, **{kind: getattr(operation, kind)})
        case Txn():
            return pipeline_pb2.Command(serial=serial, txn=txn_command(request))
        case Compact(revision):
            return pipeline_pb2.Command(serial=serial, compact=pipeline_pb2.CompactCommand(revision=revision))
        case Grant(lease, ttl_s):
            grant = pipeline_pb2.LeaseGrantCommand(id=lease, ttl_ms=ttl_s * 1_000)
            return pipeline_pb2.Command(serial=serial, lease_grant=grant)
        case Revoke(lease):
            revoke = pipeline_pb2.LeaseRevokeCommand(id=lease)
            return pipeline_pb2.Command(serial=serial, lease_revoke=revoke)
        case Renew(lease):
            return pipeline_pb2.Command(serial=serial, lease_renew=pipeline_pb2.LeaseRenewCommand(id=lease))
    raise AssertionError(f"{request} is not a write")


def _answers(got: Any, asked: dict[int, Request]) -> list[tuple[int, Reply]]:
    # Those with nothing to say but their revision are as if they had said nothing of all that they could.
    silent = [
        pipeline_pb2.Answer(serial=serial, revision=revision)
        for serial, revision in zip(got.serials, got.revisions, strict=True)
    ]
    return [(answer.serial, _reply(asked[answer.serial], answer)) for answer in (*silent, *got.answers)]


def _reply(request: Request, got: Any) -> Reply:
    if got.HasField("error"):
        code = common_pb2.ErrorCode.Name(got.error.code)
        return Reply(None, Refusal(_STATUS.get(code, code), got.error.message))
    return Reply(got.revision, _answer(request, got))


def _answer(request: Request, got: Any) -> Answer:
    match request:
        case Put():
            return PutAnswer(pair(got.prev_kvs[0]) if got.prev_kvs else None)
        case Delete():
            return delete_answer(got)
        case Txn():
            return txn_answer(got.txn)
        case Compact():
            return CompactAnswer()
        case Revoke(lease):
            return LeaseAnswer(lease, 0, [])
    return LeaseAnswer(got.lease.id, got.lease.ttl_ms // 1_000, [])
