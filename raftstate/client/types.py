"""What calls return."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from raftstate.errors import InvalidArgumentError

Consistency = Literal["linearizable", "bounded", "local", "session"]
"""How fresh a read must be.

In this order: includes every write acknowledged before it began (the default); is no older than `max_lag_ms`;
whatever the serving node has applied; any node, but never older than what this client has read or written.
"""

SortBy = Literal["key", "version", "create", "mod", "value"]
"""What a range is sorted by: the keys, how often each was put since it was created, the revision that created
it, the one that changed it last, or the values (as bytes). Pairs equal in it stay in order of their keys."""


class KeyValue(msgspec.Struct, frozen=True):
    """A key as of one revision. `version` is 1 at creation and one more with each put; `lease` 0 is none."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


class PutResult(msgspec.Struct, frozen=True):
    """A put that was applied. `prev_kv`: the pair as it was before, when asked for and there was one."""

    revision: int
    prev_kv: KeyValue | None = None


class DeleteResult(msgspec.Struct, frozen=True):
    """A delete that was applied.

    `deleted`: how many keys; `prev_kvs`: the pairs as they were, when asked for.
    """

    revision: int
    deleted: int
    prev_kvs: tuple[KeyValue, ...] = ()


class EraseResult(msgspec.Struct, frozen=True):
    """An erase that was applied.

    `revision`: all history before it is forgotten. `deleted`: whether the key was there. `index`: what
    `erase_progress` is asked with.
    """

    revision: int
    deleted: bool
    index: int


class MemberErase(msgspec.Struct, frozen=True):
    """How far one member is with an erase.

    `state`: "done": its bytes are in none of the member's files any more; "pending": they may be; or
    "unreachable": it did not answer.
    """

    id: int
    name: str
    client_address: str
    state: Literal["done", "pending", "unreachable"]


class RangeResult(msgspec.Struct, frozen=True):
    """Pairs in the order of their keys; iterable, with a length.

    It is one page: `more` says that the range holds pairs beyond those returned, and `next_start` where a
    loop goes on (`AsyncClient.range` shows it). `count`: how many keys it holds, whatever the limit.
    `revision`: of the store, when read. `by_key`: whether the keys ascend; pages do nothing else.
    """

    kvs: tuple[KeyValue, ...]
    more: bool
    count: int
    revision: int
    by_key: bool = True

    @property
    def next_start(self) -> bytes | None:
        """The `start` of the next page: the first key after the last one returned. None: there is none.

        Raises `InvalidArgumentError` when there are more pairs and the range was sorted otherwise than by
        ascending keys: the next ones may have any key.
        """
        if not self.more or not self.kvs:
            return None
        if not self.by_key:
            raise InvalidArgumentError(
                "a range that is sorted otherwise than by ascending keys has no next page; raise its limit,"
                " or read its pages unsorted",
                field="sort",
            )
        return self.kvs[-1].key + b"\x00"

    def __iter__(self) -> Iterator[KeyValue]:
        return iter(self.kvs)

    def __len__(self) -> int:
        return len(self.kvs)


Response = PutResult | KeyValue | None | RangeResult | DeleteResult
"""What one operation of a transaction gives: a put, get (None: no such key), range or delete."""


class TxnResult(msgspec.Struct, frozen=True):
    """A transaction that was committed; iterable, with a length, and indexable: its `responses`.

    `succeeded`: whether all compares held, so that the operations of `then` ran, else those of `otherwise`.
    `responses`: one for each of them, in order. `revision`: of the store after it: its own, if it wrote.
    """

    revision: int
    succeeded: bool
    responses: tuple[Response, ...]

    def __iter__(self) -> Iterator[Response]:
        return iter(self.responses)

    def __len__(self) -> int:
        return len(self.responses)

    def __getitem__(self, position: int) -> Response:
        return self.responses[position]


class LeaseStatus(msgspec.Struct, frozen=True):
    """A lease as a node knows it. Times in seconds.

    `remaining_s`: an estimate of what is left of it; 0: it is due, and ends as soon as the leader says so.
    `key_count`: how many keys are attached. `keys`: they, in order, when asked for (at most 3 MiB of them).
    """

    id: int
    ttl_s: float
    remaining_s: float
    key_count: int
    keys: tuple[bytes, ...] = ()


class MemberStatus(msgspec.Struct, frozen=True):
    """A node as the cluster's log records it. Addresses are host:port.

    `incarnation` grows each time the node is replaced by an empty one. `learner`: it receives everything, and
    has no vote. `promote`: of a learner, that it gets one as soon as it has caught up.
    """

    id: int
    name: str
    peer_address: str
    client_address: str
    incarnation: int
    learner: bool
    promote: bool = False


class PeerProgress(msgspec.Struct, frozen=True):
    """A leader's view of another member. `lag_entries`: of its log that the member is not known to have;
    `lag_ms`: how long ago the first of them was appended."""

    id: int
    match_index: int
    next_index: int
    state: str
    recently_active: bool
    lag_entries: int = 0
    lag_ms: int = 0


class MemberList(msgspec.Struct, frozen=True):
    """The members of a cluster; iterable, with a length.

    `members`: with every change that was acknowledged before they were asked for. `leader_id`: who led then;
    0: not known. `progress`: how far the leader knows each other member to be, if it was the leader that
    answered; `commit_index` less a `match_index` is how far that one is behind, in log entries.
    """

    members: tuple[MemberStatus, ...]
    leader_id: int
    commit_index: int
    progress: tuple[PeerProgress, ...] = ()

    def __iter__(self) -> Iterator[MemberStatus]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)


class MemberAdded(msgspec.Struct, frozen=True):
    """A member that is to be started now, empty: `member`, as it is recorded, among all `members`.

    `already`: it had been added before, and has not taken part yet. The other fields are what the settings of
    the node must say, as those of all nodes do.
    """

    member: MemberStatus
    members: tuple[MemberStatus, ...]
    cluster_id: int
    heartbeat_ms: int
    election_timeout_ms: int
    history_retention_s: int
    already: bool = False


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What one node says of itself; with `error` set it did not answer, and only `endpoint` means anything.

    `durable_applied_index` can't be taken back by a power cut. `digest` is equal on all nodes at equal
    `applied_index`. Reads of the past, and watches, reach back to `compacted_revision`. `watches` are those
    that this node serves. `progress` is the leader's only. `metrics_address` is host:port of its HTTP port,
    if it has one. `checkpoint_age_ms`: for how long, at most, something is applied that no durable checkpoint
    has. `wall_clock_ms`: its time of day when it answered, in ms since 1970.

    What was erased up to `erased_index` is in none of its files any more; when that is not less than
    `last_erase_index`, nothing is to be erased. `state_free_bytes` of `state_bytes` are used by nothing.
    `rebuild` says what the files of its state are being rewritten for, if they are, and how far that is.
    """

    endpoint: str
    error: str = ""
    cluster_id: int = 0
    node_id: int = 0
    name: str = ""
    version: str = ""
    role: str = ""
    term: int = 0
    leader_id: int = 0
    leader_silent_ms: int = 0
    revision: int = 0
    keys: int = 0
    applied_index: int = 0
    commit_index: int = 0
    durable_applied_index: int = 0
    first_log_index: int = 0
    last_log_index: int = 0
    digest: int = 0
    machine_version: int = 0
    log_bytes: int = 0
    state_bytes: int = 0
    sessions: int = 0
    compacted_revision: int = 0
    leases: int = 0
    watches: int = 0
    members: tuple[MemberStatus, ...] = ()
    progress: tuple[PeerProgress, ...] = ()
    alarms: tuple[str, ...] = ()
    incarnation: int = 0
    metrics_address: str = ""
    checkpoint_age_ms: int = 0
    disk_free_bytes: int = 0
    log_map_bytes: int = 0
    state_map_bytes: int = 0
    wall_clock_ms: int = 0
    last_erase_index: int = 0
    erased_index: int = 0
    state_free_bytes: int = 0
    rebuild: str = ""
    rebuild_done_bytes: int = 0
    rebuild_total_bytes: int = 0
    scrub_age_ms: int = 0
    scrub_period_ms: int = 0
