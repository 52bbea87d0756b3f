"""The Session service: the scopes of exactly-once."""

from __future__ import annotations

from raftstate.errors import InvalidArgumentError
from raftstate.machine.command import check_ttl
from raftstate.machine.types import Cancel, Cancelled, Close, Closed, Register, Registered
from raftstate.node.service import NodeService
from raftstate.pb.v1 import session_pb2
from raftstate.rpc.conversion import answer_message, session_id, session_message, write_header
from raftstate.rpc.status import RefusedError, refusal_of_fault
from raftstate.rpc.validation import check_cluster
from raftstate.rpc.writing import apply_item


class SessionHandlers:
    """Answers for one node."""

    def __init__(self, service: NodeService) -> None:
        self._service = service

    async def register(
        self, request: session_pb2.RegisterRequest, timeout_s: float
    ) -> session_pb2.RegisterResponse:
        """Open a session."""
        fault = check_ttl(request.ttl_ms)
        if fault is not None:
            raise RefusedError(refusal_of_fault(fault))
        check_cluster(request.cluster_id, self._service.cluster_id)
        item = Register(request.nonce, request.ttl_ms, request.cluster_id)
        index, revision, registered = await apply_item(self._service, item, Registered, timeout_s=timeout_s)
        return session_pb2.RegisterResponse(
            header=write_header(self._service, index=index, revision=revision),
            session=session_message(registered.session),
            ttl_ms=registered.ttl_ms,
        )

    async def cancel(
        self, request: session_pb2.CancelRequest, timeout_s: float
    ) -> session_pb2.CancelResponse:
        """Give up one serial: return its answer if it was run, else make sure that it never will be."""
        _check_session(request)
        if request.serial == 0:
            raise InvalidArgumentError("serial must be 1 or more, got 0", field="serial")
        check_cluster(request.cluster_id, self._service.cluster_id)
        item = Cancel(session_id(request.session), request.serial, request.cluster_id)
        index, revision, cancelled = await apply_item(self._service, item, Cancelled, timeout_s=timeout_s)
        head = write_header(self._service, index=index, revision=revision)
        answer = None if cancelled.answer is None else answer_message(cancelled.answer)
        return session_pb2.CancelResponse(header=head, answer=answer)

    async def close(self, request: session_pb2.CloseRequest, timeout_s: float) -> session_pb2.CloseResponse:
        """End a session."""
        _check_session(request)
        check_cluster(request.cluster_id, self._service.cluster_id)
        item = Close(session_id(request.session), request.cluster_id)
        index, revision, _ = await apply_item(self._service, item, Closed, timeout_s=timeout_s)
        return session_pb2.CloseResponse(header=write_header(self._service, index=index, revision=revision))


def _check_session(request: session_pb2.CancelRequest | session_pb2.CloseRequest) -> None:
    if not request.HasField("session"):
        raise InvalidArgumentError("session is missing; give the one that Register returned", field="session")
