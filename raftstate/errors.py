"""Every exception that raftstate raises.

    RaftstateError
    ├── definite: the request was not applied, and never will be
    │   ├── InvalidArgumentError        malformed, or over a limit; `field` says where
    │   ├── ResourceExhaustedError      a limit, rate or floor was reached; try later
    │   ├── OutOfRangeError             a revision that is compacted or lies in the future
    │   ├── ConflictError               a condition of the request did not hold
    │   ├── NoLeaderError               no leader within the deadline
    │   ├── SessionExpiredError         the client session is gone
    │   ├── LeaseNotFoundError          there is no such lease: never granted, revoked or expired
    │   ├── LockLostError               a lock, or a leadership, is not held any more
    │   ├── WrongClusterError           the node belongs to another cluster
    │   ├── FailedPreconditionError     the cluster, or a directory, is not in a state to do this
    │   ├── UnimplementedError          the cluster's machine version does not know this command yet
    │   ├── DataLossError               damaged bytes were found (and not served)
    │   ├── DeadlineError               a read, or a request that never left, ran out of time
    │   └── ClosedError                 the client, or the node, was closed
    ├── IndefiniteError                 a write was sent, and whether it was applied can't be known
    └── for those who run nodes
        ├── ConfigError                 a setting is wrong
        ├── StorageError                a disk, file or LMDB operation failed; nobody may go on as if not
        └── InvariantError              something that must always hold did not: our bug, the node stops

`outcome` of an instance is "not_applied" or "unknown". Imports nothing of ours.
"""

from __future__ import annotations


class RaftstateError(Exception):
    """The base of all.

    `field`: the request's field at fault, or empty. `detail`: what the answering node knew (term, leader_id,
    ...).
    """

    outcome: str = "not_applied"

    def __init__(self, message: str, *, field: str = "", detail: dict[str, object] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.detail = detail or {}

    @property
    def definite(self) -> bool:
        """Whether it is certain that the request was not applied."""
        return self.outcome == "not_applied"


class InvalidArgumentError(RaftstateError, ValueError):
    """The request is malformed or over a limit."""


class ResourceExhaustedError(RaftstateError):
    """A limit, rate or floor was reached; what was asked may work later."""


class OutOfRangeError(RaftstateError):
    """A revision that is compacted or lies in the future."""


class ConflictError(RaftstateError):
    """A condition of the request did not hold."""


class NoLeaderError(RaftstateError, ConnectionError):
    """No leader was found within the deadline; the request was not appended to any log."""


class SessionExpiredError(RaftstateError):
    """The client session is unknown or expired; the command was not run."""


class LeaseNotFoundError(RaftstateError):
    """There is no lease with this id: it was never granted, was revoked, or has expired."""


class LockLostError(RaftstateError):
    """A lock, or the leadership of an election, is not held any more: its lease has ended, or was not renewed
    in time to know that it has not."""


class WrongClusterError(RaftstateError):
    """The node belongs to another cluster than the one that the client, or the directory, is of."""


class FailedPreconditionError(RaftstateError):
    """The cluster, or a directory, is not in a state to do what was asked."""


class UnimplementedError(RaftstateError):
    """The cluster's machine version does not know this command yet."""


class DataLossError(RaftstateError):
    """Damaged bytes were found; they were not served."""


class DeadlineError(RaftstateError, TimeoutError):
    """A read, or a request that was never sent, ran out of time."""


class ClosedError(RaftstateError):
    """The client or the node was closed."""


class IndefiniteError(RaftstateError):
    """A write was sent and its answer lost: whether it was applied can't be known."""

    outcome = "unknown"


class ConfigError(RaftstateError, ValueError):
    """A setting is wrong."""


class StorageError(RaftstateError):
    """A disk, file or LMDB operation failed."""


class InvariantError(RaftstateError):
    """Something that must always hold did not.

    A bug in raftstate. The node stops rather than go on from it.
    """
