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
from typing import NoReturn, Protocol

from raftstate.machine.reader import LeaseStatus, RangePage, Sort
from raftstate.machine.types import Item, ItemResult, KeyValue, Member
from raftstate.node.member_changes import MemberRequest, MembersChanged

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
    """Whatever this node has applied: at least all that it knew to be committed at its start. No claim on
    its age."""


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
    lag_entries: int = 0
    """Entries of the leader's log that the member is not known to have."""
    lag_ms: int = 0
    """How long ago the first of them was appended."""


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
    compacted_revision: int
    """Reads of the past, and watches, reach back to here."""
    leases: int
    watches: int
    """Open at this node."""
    members: Sequence[Member] = ()
    progress: Sequence[PeerStatus] = ()
    """One for each other member; empty on a node that does not lead."""
    alarms: Sequence[str] = field(default=())
    """Sentences for the operator; empty: all is well."""
    incarnation: int = 0
    metrics_address: str = ""
    """host:port of the HTTP port for metrics and probes; empty: there is none."""
    checkpoint_age_ms: int = 0
    """For how long, at most, something is applied that no durable checkpoint has; 0: they have all."""
    disk_free_bytes: int = 0
    """What the file system of the data directory has left."""
    log_map_bytes: int = 0
    state_map_bytes: int = 0
    """Sizes that the files of log and state can't exceed."""
    wall_clock_ms: int = 0
    """The node's time of day, since 1970."""
    last_erase_index: int = 0
    """The entry of the last erase applied here; 0: there was none."""
    erased_index: int = 0
    """What erases up to this entry took away is in no file here any more."""
    state_free_bytes: int = 0
    """Of `state_bytes`, what nothing uses."""
    rebuild: str = ""
    """What the files of the state are being rewritten for; empty: they are not."""
    rebuild_done_bytes: int = 0
    rebuild_total_bytes: int = 0
    """How many bytes of rows are copied, of about how many."""
    scrub_age_ms: int = 0
    """Since the last pass of the scrub that found nothing began; 0: there was none since the start."""
    scrub_period_ms: int = 0
    """From the beginning of the pass before to the end of that one: how long a key that a damaged page hides
    can be "not found" at most."""


@dataclass(frozen=True, slots=True)
class MemberList:
    """The members, with every change that was acknowledged before it was asked for."""

    members: Sequence[Member]
    leader_id: int
    commit_index: int
    progress: Sequence[PeerStatus] = ()
    """As in `NodeStatus`."""


@dataclass(frozen=True, slots=True)
class ClusterTimes:
    """What all nodes of a cluster must have the same settings for, beside its id."""

    heartbeat_ms: int
    election_timeout_ms: int
    history_retention_s: int


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

    async def get(self, key: bytes, *, revision: int = 0) -> KeyValue | None:
        """Return the pair under `key` as of a revision (0: the latest), or None.

        Raises `OutOfRangeError` when that revision is compacted or in the future, and `DataLossError` when
        its bytes are damaged.
        """
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
        revision: int = 0,
        sort: Sort | None = None,
        skip_count: bool = False,
    ) -> RangePage:
        """Return the pairs of start <= key < end (None: no end): at most `limit` (0: any number), and
        `bytes_max` bytes but at least one; as of a revision (0: the latest); in the order of `sort` (None:
        ascending by key). `skip_count`: leave the count 0, and look no further than the page.

        Raises as `get`, and `ResourceExhaustedError` when a sorted range holds too many keys.
        """
        ...

    async def lease(self, lease_id: int, *, keys_bytes_max: int) -> tuple[LeaseStatus, list[bytes]] | None:
        """Return a lease, and of its keys, in order, as many as have `keys_bytes_max` bytes (0: none). None:
        there is no such lease."""
        ...

    async def leases(self, *, above: int, limit: int) -> tuple[list[LeaseStatus], bool]:
        """Return at most `limit` leases with an id above `above`, in order, and whether there are others."""
        ...


@dataclass(frozen=True, slots=True)
class WatchSpec:
    """What a watch wants. Its events are those of start <= key < end (None: no end)."""

    watch_id: int
    start: bytes
    end: bytes | None
    start_revision: int
    """0: what is applied after the watch was created."""
    prev_kv: bool = False
    progress_notify: bool = False
    no_put: bool = False
    no_delete: bool = False


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One change to a key. `kv`: the pair as put, or of a deletion its key and, as `mod_revision`, its
    revision. `prev_kv`: the pair before, if wanted, if there was one, and if it is not compacted."""

    is_delete: bool
    kv: KeyValue
    prev_kv: KeyValue | None = None


@dataclass(frozen=True, slots=True)
class WatchEnd:
    """A watch that has ended: because it was asked to (no `error`), or because of an error; then
    `compacted_revision` is the first from which one can begin, if that is what is wrong."""

    watch_id: int
    error: Exception | None = None
    compacted_revision: int = 0


@dataclass(frozen=True, slots=True)
class WatchNews:
    """What the watches of a stream have to say at one moment, in this order."""

    revision: int
    """Applied by this node at that moment."""
    applied_index: int
    created: Sequence[tuple[int, int]] = ()
    """(watch id, first revision whose changes will come)."""
    events: Sequence[tuple[Sequence[int], Sequence[WatchEvent]]] = ()
    """(watch ids, events that all of them are sent), in order of revision for each watch."""
    progress: Sequence[int] = ()
    """Watches whose events up to `revision` were all handed out."""
    ended: Sequence[WatchEnd] = ()


class NodeWatches(Protocol):
    """The watches of one stream. What it holds in memory is bounded, however many events there are and
    however seldom it is asked for them: a watch whose events do not fit is read from the history when there
    is room.
    """

    async def create(self, spec: WatchSpec, *, timeout_s: float) -> None:
        """Add a watch; the next news say that it was created, or why it was not.

        One without a start revision begins at a state that includes every write acknowledged before the
        call. Raises `InvalidArgumentError` when the stream has a watch with that id,
        `ResourceExhaustedError` at the limit of watches.
        """
        ...

    def cancel(self, watch_id: int) -> None:
        """End a watch; the next news say so. One that is not there has ended already: nothing is said."""
        ...

    def request_progress(self) -> None:
        """Have the next news name every watch that is up to date."""
        ...

    async def next(self) -> WatchNews:
        """Wait for news, and return them: at most a few MiB of events, but at least one.

        The news of the call before count as written, and as let go: until then they take memory of the
        stream's. Raises `ClosedError` when the node stops.
        """
        ...

    async def until_given_up(self) -> NoReturn:
        """Wait until the node gives the stream up, which is closed then: large news were not written for too
        long, while others waited for the memory that they take. Raises `ResourceExhaustedError`."""
        ...

    def close(self) -> None:
        """End all watches of the stream."""
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

    @property
    def may_read(self) -> bool:
        """Whether what this node holds may be shown; False while it is found damaged, or not there yet."""
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
        self,
        consistency: ReadConsistency,
        *,
        max_staleness_ms: int,
        timeout_s: float,
        min_applied_index: int = 0,
    ) -> AbstractAsyncContextManager[NodeReader]:
        """Return a context whose entry waits until the state here is fresh enough, and includes the log entry
        `min_applied_index`. `max_staleness_ms` counts for BOUNDED only.

        Entering raises `NoLeaderError` when freshness can't be shown within `timeout_s`, `DeadlineError` when
        applying is too far behind, `ClosedError` or `DataLossError`.
        """
        ...

    def watches(self) -> NodeWatches:
        """Return the watches of a new stream.

        Raises `ResourceExhaustedError` at the limit of streams, `NoLeaderError` at a node that joins and
        holds no state yet.
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

    async def members(self, *, timeout_s: float) -> MemberList:
        """Return the members. Raises as a linearizable read."""
        ...

    async def change_members(self, request: MemberRequest, *, timeout_s: float) -> MembersChanged:
        """Have the membership changed, by the leader; return when that is applied there.

        Raises `InvalidArgumentError` (malformed, or no such member), `FailedPreconditionError` (refused, for
        a reason that it tells), `ResourceExhaustedError` (too many members), `UnimplementedError` (the
        machine version is too low), `NoLeaderError`, `ClosedError` (all: nothing was changed) or
        `IndefiniteError`.
        """
        ...

    def cluster_times(self) -> ClusterTimes:
        """Return what a node that joins must be told."""
        ...

    def defragment(self) -> int:
        """Begin to rewrite the files of the state without free space; return their size as it begins.

        Raises `FailedPreconditionError` when they are being rewritten already, `ResourceExhaustedError` when
        the disk has no room for a second copy.
        """
        ...

    def leader(self) -> tuple[int, str]:
        """Return (id, client address) of the leader; (0, "") when none is known."""
        ...
