"""How a refusal reaches a client: as a gRPC status, its text, and a binary trailer that programs read.

The text is for people and ends in what is known: `...; outcome=not_applied, term=7, leader_id=2`. The trailer
`raftstate-error-bin` holds the same as a serialized raftstate.v1.Error; pipeline answers carry that message
themselves. `ROWS` is the one table of the mapping.

An outcome is said to be "not applied" only where the error's class promises it. Anything that was not
foreseen, or that the node ran into while it handled a write, is "unknown": to call a write that stands in a
log "failed" would be a lie.
"""

from __future__ import annotations

from typing import NamedTuple

import grpc

from raftstate.errors import (
    ClosedError,
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
from raftstate.logs import get_logger
from raftstate.machine.types import Code, Fault
from raftstate.pb.v1 import common_pb2

logger = get_logger(__name__)

TRAILER = "raftstate-error-bin"

MESSAGE_CHARACTERS_MAX = 1_000
"""Text and trailer travel as HTTP/2 headers, of which a peer takes 8 KiB in all."""


class Row(NamedTuple):
    """One kind of refusal. `error` None: only the machine says so.

    `code` 0: nothing that a client could tell apart by code.
    """

    code: int
    error: type[RaftstateError] | None
    status: grpc.StatusCode


ROWS = (
    Row(Code.INVALID, InvalidArgumentError, grpc.StatusCode.INVALID_ARGUMENT),
    Row(Code.RESOURCE_EXHAUSTED, ResourceExhaustedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    Row(Code.OUT_OF_RANGE, OutOfRangeError, grpc.StatusCode.OUT_OF_RANGE),
    Row(Code.CONFLICT, ConflictError, grpc.StatusCode.FAILED_PRECONDITION),
    Row(Code.NO_LEADER, NoLeaderError, grpc.StatusCode.UNAVAILABLE),
    Row(Code.UNKNOWN_OUTCOME, IndefiniteError, grpc.StatusCode.UNKNOWN),
    Row(Code.SESSION_EXPIRED, SessionExpiredError, grpc.StatusCode.FAILED_PRECONDITION),
    Row(Code.STALE, None, grpc.StatusCode.FAILED_PRECONDITION),
    Row(Code.WINDOW, None, grpc.StatusCode.FAILED_PRECONDITION),
    Row(Code.CANCELLED, None, grpc.StatusCode.CANCELLED),
    Row(Code.WRONG_CLUSTER, WrongClusterError, grpc.StatusCode.FAILED_PRECONDITION),
    Row(Code.DATA_LOSS, DataLossError, grpc.StatusCode.DATA_LOSS),
    Row(Code.UNIMPLEMENTED, UnimplementedError, grpc.StatusCode.UNIMPLEMENTED),
    Row(Code.FAILED_PRECONDITION, FailedPreconditionError, grpc.StatusCode.FAILED_PRECONDITION),
    Row(Code.LEASE_NOT_FOUND, LeaseNotFoundError, grpc.StatusCode.NOT_FOUND),
    # To a client a node that stops is one that has no leader: nothing was appended, another node may take it.
    Row(Code.NO_LEADER, ClosedError, grpc.StatusCode.UNAVAILABLE),
    Row(0, DeadlineError, grpc.StatusCode.DEADLINE_EXCEEDED),
)

_STATUS_OF_CODE = {row.code: row.status for row in reversed(ROWS) if row.code}
_ROW_OF_ERROR = {row.error: row for row in ROWS if row.error is not None}

# A node meets damaged bytes in the middle of applying, too, when the write stands in the log already.
_DEFINITE_ON_WRITES = frozenset(_ROW_OF_ERROR) - {DataLossError, IndefiniteError}


class Refusal(NamedTuple):
    """What a client is told in place of an answer."""

    status: grpc.StatusCode
    error: common_pb2.Error


class RefusedError(RaftstateError):
    """A request was refused, and this is what its client is told."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.error.message, field=refusal.error.field)
        self.refusal = refusal


def refusal_of_fault(fault: Fault) -> Refusal:
    """Return the refusal that says what the machine said.

    The command it answers was not run by this transmission.
    """
    outcome = (
        common_pb2.OUTCOME_UNKNOWN if fault.code == Code.UNKNOWN_OUTCOME else common_pb2.OUTCOME_NOT_APPLIED
    )
    error = common_pb2.Error(
        code=common_pb2.ErrorCode.Name(fault.code),
        outcome=outcome,
        message=_shortened(fault.message),
        field=fault.field,
    )
    return Refusal(_STATUS_OF_CODE[fault.code], error)


def refusal_of_error(error: Exception, *, write: bool) -> Refusal:
    """Return the refusal for an exception out of the node, known or not.

    `write`: the request may have changed something.
    """
    if isinstance(error, RefusedError):
        return error.refusal
    row = next((_ROW_OF_ERROR[kind] for kind in type(error).__mro__ if kind in _ROW_OF_ERROR), None)
    if row is None or not isinstance(error, RaftstateError):
        return _unforeseen(error, write=write)
    definite = row.error in _DEFINITE_ON_WRITES if write else row.error is not IndefiniteError
    detail = error.detail
    told = common_pb2.Error(
        code=common_pb2.ErrorCode.Name(row.code),
        outcome=common_pb2.OUTCOME_NOT_APPLIED if definite else common_pb2.OUTCOME_UNKNOWN,
        message=_shortened(error.message),
        field=error.field,
        term=_number(detail, "term"),
        leader_id=_number(detail, "leader_id"),
        leader_address=str(detail.get("leader_address") or ""),
        leader_silent_ms=_number(detail, "leader_silent_ms"),
        compacted_revision=_number(detail, "compacted_revision"),
    )
    return Refusal(row.status, told)


def status_text(error: common_pb2.Error) -> str:
    """Return the text of the gRPC status: the message, then the outcome and what the node knows, as
    key=value."""
    known = [f"outcome={'unknown' if error.outcome == common_pb2.OUTCOME_UNKNOWN else 'not_applied'}"]
    known += [
        f"{name}={value}"
        for name in ("field", "term", "leader_id", "leader_address", "leader_silent_ms")
        if (value := getattr(error, name))
    ]
    return f"{error.message}; {', '.join(known)}"


def _unforeseen(error: Exception, *, write: bool) -> Refusal:
    """Log what no row stands for, with its traceback, and tell the client no more than that it happened."""
    logger.error("a request failed in a way that was not foreseen", write=write, exc_info=error)
    message = f"the node failed inside ({type(error).__name__}); its log says more"
    outcome = common_pb2.OUTCOME_UNKNOWN if write else common_pb2.OUTCOME_NOT_APPLIED
    return Refusal(grpc.StatusCode.INTERNAL, common_pb2.Error(outcome=outcome, message=message))


def _shortened(message: str) -> str:
    if len(message) <= MESSAGE_CHARACTERS_MAX:
        return message
    return message[: MESSAGE_CHARACTERS_MAX - 3] + "..."


def _number(detail: dict[str, object], name: str) -> int:
    value = detail.get(name)
    return value if isinstance(value, int) else 0
