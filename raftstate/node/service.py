"""What the gRPC services ask of a node: the whole surface between raftstate.rpc and raftstate.node.

A `Protocol`, so that the services can be judged over a fake. Everything here is called on the node's event
loop. Cancelling a call only stops the waiting: a write that was appended stays in the log and may still be
applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from raftstate.machine.reader import RangePage
from raftstate.machine.types import Item, ItemResult, KeyValue, Member

TIMEOUT_S_DEFAULT = 5.0
"""How long a request waits when its client did not say."""

STALENESS_MS_DEFAULT = 50
"""How old a bounded read may be when its client did not say."""


class ReadConsistency(IntEnum):
    """How fresh a read must be. The numbers are those of the wire's Consistency."""

    LINEARIZABLE = 0
    """Includes every write acknowledged before the read began."""
    BOUNDED = 1
    """Includes every write acknowledged before (now - max_staleness_ms)."""
    LOCAL = 2
    """Whatever this node has applied; no claim on its age."""


class Role(IntEnum):
    """What a node is in its term. The numbers are those of the wire's Role."""

    FOLLOWER = 1
    PRE_CANDIDATE = 2
    CANDIDATE = 3
    LEADER = 4
    LEARNER = 5


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """A leader's view of another member."""

    id: int
    match_index: int
    next_index: int
    state: str
    """probe, replicate or snapshot."""
    recently_active: bool


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What a node knows of itself and its cluster, at one moment; needs no leader."""

    name: str
    version: str
    """Of the raftstate package."""
    role: Role
    leader_id: int
    """0: none is known."""
    leader_silent_ms: int
    """How long ago the leader was last heard of; 0 on the leader itself."""
    term: int
    commit_index: int
    applied_index: int
    durable_applied_index: int
    """The applied index that a power cut can't take back: the last checkpoint's."""
    first_log_index: int
    last_log_index: int
    revision: int
    digest: int
    """The running digest of the state at applied_index."""
    machine_version: int
    log_bytes: int
    state_bytes: int
    sessions: int
    keys: int
    members: Sequence[Member] = ()
    progress: Sequence[PeerStatus] = ()
    """One for each other member; empty on a node that does not lead."""
    alarms: Sequence[str] = field(default=())
    """Sentences for the operator; empty: all is well."""


class NodeReader(Protocol):
    """Reads of one state, as of one applied index.

    Whether a read runs on the loop or beside it is the node's affair.
    """

    @property
    def revision(self) -> int:
        """The store's revision that these reads see."""
        ...

    @property
    def applied_index(self) -> int:
        """The index of the last log entry that these reads see."""
        ...

    @property
    def staleness_bound_us(self) -> int | None:
        """The reads include every write acknowledged before (now - this); None: no claim.

        Ask it after the data was read.
        """
        ...

    async def get(self, key: bytes) -> KeyValue | None:
        """Return the pair under `key`, or None. Raises `DataLossError` when its bytes are damaged."""
        ...

    async def range(
        self,
        start: bytes,
        end: bytes | None,
        *,
        limit: int,
        keys_only: bool,
        count_only: bool,
        bytes_max: int,
    ) -> RangePage:
        """Return the pairs of start <= key < end (None: no end): at most `limit` (0: any number), and
        `bytes_max` bytes but at least one."""
        ...


class NodeService(Protocol):
    """A running node."""

    @property
    def cluster_id(self) -> int:
        """The cluster that this node is of."""
        ...

    @property
    def node_id(self) -> int:
        """This node."""
        ...

    @property
    def machine_version(self) -> int:
        """The rules by which commands are checked at present."""
        ...

    @property
    def term(self) -> int:
        """The Raft term at this node."""
        ...

    @property
    def applied_index(self) -> int:
        """The last log entry applied here."""
        ...

    @property
    def revision(self) -> int:
        """The store's revision here."""
        ...

    @property
    def is_serving(self) -> bool:
        """Whether requests can be answered: neither starting nor stopping nor halted."""
        ...

    async def write(self, item: Item, *, commands: int, timeout_s: float) -> tuple[int, int, ItemResult]:
        """Have one item applied; return (index of its log entry, revision after it, result). A `Refused`
        result is returned, not raised.

        `commands`: how many the item holds; 1 for all but a batch. Raises `NoLeaderError` (never appended;
        its detail may hold term, leader_id, leader_address, leader_silent_ms), `ResourceExhaustedError`,
        `FailedPreconditionError`, `ClosedError` (all: not applied) or `IndefiniteError` within `timeout_s`.
        """
        ...

    def reader(
        self, consistency: ReadConsistency, *, max_staleness_ms: int, timeout_s: float
    ) -> AbstractAsyncContextManager[NodeReader]:
        """Return a context whose entry waits until the state here is fresh enough. `max_staleness_ms` counts
        for BOUNDED only.

        Entering raises `NoLeaderError` when freshness can't be shown within `timeout_s`, `DeadlineError` when
        applying is too far behind, `ClosedError` or `DataLossError`.
        """
        ...

    def status(self) -> NodeStatus:
        """Return what this node knows."""
        ...

    async def transfer_leader(self, target_id: int, *, timeout_s: float) -> int:
        """Hand leadership to `target_id` (0: the most up-to-date voter); return the new leader's id.

        Raises `InvalidArgumentError` (no such voter), `NoLeaderError`, or `FailedPreconditionError` (the
        transfer was given up).
        """
        ...

    def leader(self) -> tuple[int, str]:
        """Return (id, client address) of the leader; (0, "") when none is known."""
        ...
