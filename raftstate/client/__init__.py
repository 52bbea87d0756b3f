"""The client: what programs use to reach a cluster.

It speaks gRPC as published in proto/raftstate/v1, and nothing else.

`AsyncClient` is where every call is written; `Client` is a face over it for threads. Writes pass through
`pipeline` (the stream), which keeps its books in `ledger` (exactly once, without I/O); reads are single calls
(`reads`); `leader` knows whom to talk to.
"""

from __future__ import annotations

from raftstate.client import fork as fork  # first: it has a word with gRPC before that is imported
from raftstate.client.async_client import AsyncClient, connect_async
from raftstate.client.sync_client import Client, connect
from raftstate.client.types import (
    Consistency,
    DeleteResult,
    KeyValue,
    MemberStatus,
    NodeStatus,
    PeerProgress,
    PutResult,
    RangeResult,
)

__all__ = [
    "AsyncClient",
    "Client",
    "Consistency",
    "DeleteResult",
    "KeyValue",
    "MemberStatus",
    "NodeStatus",
    "PeerProgress",
    "PutResult",
    "RangeResult",
    "connect",
    "connect_async",
]
