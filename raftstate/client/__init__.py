"""The client: what programs use to reach a cluster.

It speaks gRPC as published in proto/raftstate/v1, and nothing else.

`AsyncClient` is where every call is written; `Client` is a face over it for threads. Writes pass through
`pipeline` (the stream), which keeps its books in `ledger` (exactly once, without I/O); reads are single calls
(`reads`); `leader` knows whom to talk to. What writes and transactions do is said by the values of
`operations` and `compare`.
"""

from __future__ import annotations

from raftstate.client import fork as fork  # first: it has a word with gRPC before that is imported
from raftstate.client.async_client import AsyncClient, connect_async
from raftstate.client.compare import Compare, where
from raftstate.client.election import (
    AsyncElection,
    AsyncLeadership,
    AsyncObserver,
    Election,
    Leadership,
    Observer,
)
from raftstate.client.lease import AsyncLease, Lease
from raftstate.client.lock import AsyncLock, Lock
from raftstate.client.operations import Delete, Get, Put, Range
from raftstate.client.scan import AsyncScan, Scan
from raftstate.client.sync_client import Client, connect
from raftstate.client.sync_watch import Watch
from raftstate.client.txn import AsyncTxn, Txn
from raftstate.client.types import (
    Consistency,
    DeleteResult,
    EraseResult,
    KeyValue,
    LeaseStatus,
    MemberAdded,
    MemberErase,
    MemberList,
    MemberStatus,
    NodeStatus,
    PeerProgress,
    PutResult,
    RangeResult,
    SortBy,
    TxnResult,
)
from raftstate.client.watch import AsyncWatch
from raftstate.client.watch_inbox import EventKind, WatchEvent

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
    "Client",
    "Compare",
    "Consistency",
    "Delete",
    "DeleteResult",
    "Election",
    "EraseResult",
    "EventKind",
    "Get",
    "KeyValue",
    "Leadership",
    "Lease",
    "LeaseStatus",
    "Lock",
    "MemberAdded",
    "MemberErase",
    "MemberList",
    "MemberStatus",
    "NodeStatus",
    "Observer",
    "PeerProgress",
    "Put",
    "PutResult",
    "Range",
    "RangeResult",
    "Scan",
    "SortBy",
    "Txn",
    "TxnResult",
    "Watch",
    "WatchEvent",
    "connect",
    "connect_async",
    "where",
]
