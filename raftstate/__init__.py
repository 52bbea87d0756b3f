"""raftstate: a replicated state store for Python programs that must not forget."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from raftstate.errors import (
    ClosedError,
    ConfigError,
    ConflictError,
    DataLossError,
    DeadlineError,
    FailedPreconditionError,
    IndefiniteError,
    InvalidArgumentError,
    InvariantError,
    LeaseNotFoundError,
    LockLostError,
    NoLeaderError,
    OutOfRangeError,
    RaftstateError,
    ResourceExhaustedError,
    SessionExpiredError,
    StorageError,
    UnimplementedError,
    WrongClusterError,
)

if TYPE_CHECKING:
    from raftstate.client import (
        AsyncClient,
        AsyncElection,
        AsyncLeadership,
        AsyncLease,
        AsyncLock,
        AsyncObserver,
        AsyncScan,
        AsyncTxn,
        AsyncWatch,
        Client,
        Compare,
        Consistency,
        Delete,
        DeleteResult,
        Election,
        EraseResult,
        EventKind,
        Get,
        KeyValue,
        Leadership,
        Lease,
        LeaseStatus,
        Lock,
        MemberErase,
        MemberStatus,
        NodeStatus,
        Observer,
        PeerProgress,
        Put,
        PutResult,
        Range,
        RangeResult,
        Scan,
        SortBy,
        Txn,
        TxnResult,
        Watch,
        WatchEvent,
        connect,
        connect_async,
        where,
    )
    from raftstate.state import Checkpoint, Restored, Workflow

    __version__: str

__all__ = [
    "AsyncClient",
    "AsyncElection",
    "AsyncLeadership",
    "AsyncLease",
    "AsyncLock",
    "AsyncObserver",
    "AsyncScan",
    "AsyncTxn",
    "AsyncWatch",
    "Checkpoint",
    "Client",
    "ClosedError",
    "Compare",
    "ConfigError",
    "ConflictError",
    "Consistency",
    "DataLossError",
    "DeadlineError",
    "Delete",
    "DeleteResult",
    "Election",
    "EraseResult",
    "EventKind",
    "FailedPreconditionError",
    "Get",
    "IndefiniteError",
    "InvalidArgumentError",
    "InvariantError",
    "KeyValue",
    "Leadership",
    "Lease",
    "LeaseNotFoundError",
    "LeaseStatus",
    "Lock",
    "LockLostError",
    "MemberErase",
    "MemberStatus",
    "NoLeaderError",
    "NodeStatus",
    "Observer",
    "OutOfRangeError",
    "PeerProgress",
    "Put",
    "PutResult",
    "RaftstateError",
    "Range",
    "RangeResult",
    "ResourceExhaustedError",
    "Restored",
    "Scan",
    "SessionExpiredError",
    "SortBy",
    "StorageError",
    "Txn",
    "TxnResult",
    "UnimplementedError",
    "Watch",
    "WatchEvent",
    "Workflow",
    "WrongClusterError",
    "__version__",
    "connect",
    "connect_async",
    "where",
]

_OF_STATE = frozenset({"Checkpoint", "Restored", "Workflow"})


def __getattr__(name: str) -> object:
    """Load the client at its first use: gRPC takes longer to import than all the rest, and nodes and tools
    have no need of the client.
    """
    if name == "__version__":
        value: object = importlib.import_module("importlib.metadata").version("raftstate")
    elif name in _OF_STATE:
        value = getattr(importlib.import_module("raftstate.state"), name)
    elif name in __all__:
        value = getattr(importlib.import_module("raftstate.client"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
