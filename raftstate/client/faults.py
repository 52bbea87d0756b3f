"""From what the wire says to the errors of `raftstate.errors`.

An answer is *not applied* only when it says so. What came back without raftstate's own error beside it says
nothing of the outcome of a write.
"""

from __future__ import annotations

import grpc
import grpc.aio

from raftstate.errors import (
    ConflictError,
    DataLossError,
    DeadlineError,
    FailedPreconditionError,
    IndefiniteError,
    InvalidArgumentError,
    LeaseNotFoundError,
    NoLeaderError,
    OutOfRangeError,
    RaftstateError,
    ResourceExhaustedError,
    SessionExpiredError,
    UnimplementedError,
    WrongClusterError,
)
from raftstate.pb.v1 import common_pb2

TRAILER = "raftstate-error-bin"

_NO_CLIENT_PORT = ("HTTP/2", "Connection reset", "Socket closed", "Received http2 header with status")
"""What gRPC says of a peer that takes the connection and does not speak its protocol."""
_HINT = "; this may not be a client port"

_CLASS_OF_CODE: dict[int, type[RaftstateError]] = {
    common_pb2.ERROR_CODE_INVALID: InvalidArgumentError,
    common_pb2.ERROR_CODE_RESOURCE_EXHAUSTED: ResourceExhaustedError,
    common_pb2.ERROR_CODE_OUT_OF_RANGE: OutOfRangeError,
    common_pb2.ERROR_CODE_CONFLICT: ConflictError,
    common_pb2.ERROR_CODE_NO_LEADER: NoLeaderError,
    common_pb2.ERROR_CODE_UNKNOWN_OUTCOME: IndefiniteError,
    common_pb2.ERROR_CODE_SESSION_EXPIRED: SessionExpiredError,
    common_pb2.ERROR_CODE_WRONG_CLUSTER: WrongClusterError,
    common_pb2.ERROR_CODE_DATA_LOSS: DataLossError,
    common_pb2.ERROR_CODE_UNIMPLEMENTED: UnimplementedError,
    common_pb2.ERROR_CODE_LEASE_NOT_FOUND: LeaseNotFoundError,
}

_CLASS_OF_STATUS: dict[grpc.StatusCode, type[RaftstateError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.OUT_OF_RANGE: OutOfRangeError,
    grpc.StatusCode.UNAVAILABLE: NoLeaderError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
    grpc.StatusCode.DATA_LOSS: DataLossError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.CANCELLED: NoLeaderError,
}


class RpcFailure(Exception):  # noqa: N818  # not for users: it becomes one of their errors
    """A unary call that failed: its gRPC status, what gRPC said, and raftstate's own error where the node
    sent one.
    """

    def __init__(
        self, address: str, status: grpc.StatusCode, text: str, error: common_pb2.Error | None
    ) -> None:
        super().__init__(f"{address}: {text}")
        self.address = address
        self.status = status
        self.text = text
        self.error = error

    @classmethod
    def of(cls, address: str, failure: grpc.aio.AioRpcError) -> RpcFailure:
        """Return the failure that gRPC reports, with the trailer read."""
        error = None
        for name, value in failure.trailing_metadata() or ():
            if name == TRAILER:
                error = common_pb2.Error.FromString(value)
        return cls(address, failure.code(), _brief(failure), error)

    def as_error(self, *, write: bool) -> RaftstateError:
        """Return the error to raise.

        `write`: without a word from the node, what became of the request is unknown.
        """
        if self.error is not None:
            return as_error(self.error)
        message = f"{self.address} answered {self.status.name}: {self.text}"
        if write:
            return IndefiniteError(f"{message}; whether it was done is unknown")
        return _CLASS_OF_STATUS.get(self.status, RaftstateError)(message)


def as_error(error: common_pb2.Error) -> RaftstateError:
    """Return the error that a node's answer stands for."""
    kind = _CLASS_OF_CODE.get(error.code, FailedPreconditionError)
    if not refuses(error):
        kind = IndefiniteError
    return kind(error.message, field=error.field, detail=detail_of(error))


def as_indefinite(error: common_pb2.Error) -> IndefiniteError:
    """Return the error for a refusal of one copy of a write while the fate of another copy is not known."""
    return IndefiniteError(
        "the write was sent more than once; the last copy was refused, but an earlier one may have been"
        f" applied (the refusal: {error.message})",
        field=error.field,
        detail=detail_of(error),
    )


def refuses(error: common_pb2.Error) -> bool:
    """Whether it is certain that the transmission so answered was not applied and never will be."""
    return error.outcome == common_pb2.OUTCOME_NOT_APPLIED


def passes(error: common_pb2.Error) -> bool:
    """Whether the same request may succeed later or elsewhere, and is safe to send again in its session."""
    # No code: the node failed in a way that it has no word for, or ran out of the time it was given.
    return not refuses(error) or error.code in (
        common_pb2.ERROR_CODE_NO_LEADER,
        common_pb2.ERROR_CODE_UNSPECIFIED,
    )


def detail_of(error: common_pb2.Error) -> dict[str, object]:
    """Return what the answering node knew, without what it didn't."""
    known = {
        "code": common_pb2.ErrorCode.Name(error.code).removeprefix("ERROR_CODE_"),
        "term": error.term,
        "leader_id": error.leader_id,
        "leader_address": error.leader_address,
        "leader_silent_ms": error.leader_silent_ms,
        "compacted_revision": error.compacted_revision,
    }
    return {name: value for name, value in known.items() if value}


def _brief(failure: grpc.aio.AioRpcError) -> str:
    """Return gRPC's text without the layers it wraps around the operating system's: "Connection refused
    (111)".
    """
    text: str = failure.details() or failure.code().name
    hint = _HINT if any(sign in text for sign in _NO_CLIENT_PORT) else ""
    if failure.code() is grpc.StatusCode.UNAVAILABLE and "last error: " in text:
        text = text.rpartition(": ")[2]
    return text + hint
