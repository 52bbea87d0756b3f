"""What the core refuses, and what its storage may answer.

All of them are definite: nothing was appended because of the call that raised. Invariant violations are not
here; they are `raftstate.errors.InvariantError`, and after one of those the node must stop.
"""

# ruff: noqa: N818 - the names say what happened to the request, as etcd's error values do; they are
# outcomes, not faults

from __future__ import annotations

from raftstate.errors import DataLossError, RaftstateError


class ProposalDropped(RaftstateError):
    """A proposal was not appended: no leader here, a transfer under way, or the log's tail is full."""


class StepLocalMessage(RaftstateError):
    """A message that only the node itself may produce arrived from a peer."""


class StepPeerNotFound(RaftstateError):
    """A response arrived from a node that is no member of the configuration."""


class Compacted(RaftstateError):
    """The storage no longer holds the index: it lies before its first one."""


class Unavailable(RaftstateError):
    """The storage does not hold the index, though it is not compacted."""


class Damaged(DataLossError):
    """The storage holds the index, and what it holds there is damaged. Wherever this passes through the core,
    the core is as it was before the call, but for the leader that it may have heard from: the message may
    come again, and `ready` be called again, once the record is mended."""


class SnapshotOutOfDate(RaftstateError):
    """A snapshot is not newer than the one that the storage holds."""


class SnapshotTemporarilyUnavailable(RaftstateError):
    """The storage has no snapshot ready; the leader asks again later."""
