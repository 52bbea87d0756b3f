"""What goes into the machine (the contents of log entries) and what comes out (results): msgspec Structs.

The structs that stand in log entries or in rows are `array_like`: the order of their fields is a disk format.
New fields are added at the end, with a default, and only together with a new machine version. Those of a log
entry refuse fields that they don't know: a node that ignored what another one obeys would drift away from it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

import msgspec

Uint = Annotated[int, msgspec.Meta(ge=0)]
"""0 to 2^64 - 1: MessagePack has no integers beyond, and a negative one must fail where bytes are decoded,
not where rows are packed."""

MACHINE_VERSION = 3
"""The newest version of the rules that this code knows. A new cluster begins with it; one that is older moves
to it by a log entry (`MoveTo`), when all of its members have it. 2 brought transactions, compaction and
leases, 3 changes of the membership."""
MEMBERSHIP_SINCE = 3
"""The machine version from which on members may change. Nodes whose code knows it also know what snapshots,
repairs and membership say between peers."""

KEY_BYTES_MAX = 480
"""So that a milestone's key, with 33 bytes for each 32 of it and 8 for the revision, has at most 503 bytes
(`layout.milestone_key`): LMDB allows 511."""
VALUE_BYTES_MAX = 8 << 20
"""A value passes the log, the peers and the reply in one piece, and takes the loop's time in each."""
BATCH_COMMANDS_MAX = 512
"""Some milliseconds of the loop to apply: less than a heartbeat."""
BATCH_BYTES_MAX = 1 << 20
"""As much as one message of entries holds. A batch may be larger when it holds a single command."""
BATCH_HEAD_BYTES_MAX = 64 << 10
"""What a batch of over `BATCH_BYTES_MAX` may hold beside its command's value: a full `given_up`, and some."""
RANGE_DELETE_KEYS_MAX = 100_000
"""What all range deletes of a batch may meet together: their keys are deleted in one transaction."""
SESSION_WINDOW = 4_096
"""How far a serial may lie above its session's floor: eight full batches, more than a client keeps in flight;
it bounds the answers that a session holds in memory."""
ANSWERS_BYTES_MAX = 9 << 20
"""Previous pairs of one command: at least one of the largest key and value."""
BATCH_ANSWERS_BYTES_MAX = 8 << 20
"""Previous pairs read for one batch or repeated in its answers; once they are over it, no command of the
batch is run. Without a session its answers have this much and the pairs of one command at most."""
SESSION_BYTES_MAX = 3 << 20
"""Stored answers of one session; once they are over it, only the serial at the floor is run. A batch can ask
for all of them again: this much, the pairs of the command that went over it, and those of the one at the
floor, 21 MiB in all, must pass between peers in one frame."""
PAIR_OVERHEAD_BYTES_MAX = 64
"""What a pair may take in an answer beside its key and value, whatever the encoding: tags, lengths and four
numbers."""
SESSION_TTL_MS_DEFAULT = 600_000
"""Ten minutes: a client that was cut off for less can still ask what became of its writes."""
SESSION_TTL_MS_MIN = 10_000
"""Several changes of leader: a session must not end while its client looks for one."""
SESSION_TTL_MS_MAX = 86_400_000
"""A day: the sessions of clients that died without closing them must go at some time."""
SESSIONS_MAX = 100_000
"""All are in memory, at some hundred bytes each without their answers."""
TXN_OPERATIONS_MAX = 1_024
"""Compares and operations of both branches of one transaction, together."""
BATCH_OPERATIONS_MAX = 16_384
"""Compares and operations of all transactions of one batch: to check them takes some 50 ms of the loop."""
TXN_READ_KEYS_MAX = 100_000
"""What the ranges read or compared by the transactions of one batch may meet together: keys, and for those of
the past all that is looked at on the way there."""
COMMAND_PAIRS_MAX = 10_000
"""Pairs that one command answers: all are held, and made into a message in one piece."""
BATCH_PAIRS_MAX = 20_000
"""Pairs read for one batch or repeated in its answers: once half of them are, no command of the batch is
run, so that one more fits."""
SORT_KEYS_MAX = 100_000
"""What a range that is sorted otherwise than by ascending keys may hold: all of it is looked at."""
LEASE_TTL_MS_MIN = 1_000
"""The lease clock's ticks, and so the chance to expire, come once a second."""
LEASE_TTL_MS_MAX = 86_400_000
"""A day, as for sessions."""
LEASES_MAX = 100_000
"""All are in memory, at some hundred bytes each without their keys."""
LEASE_KEYS_MAX = 100_000
"""All are deleted in one transaction when the lease ends."""


class Code(IntEnum):
    """Why a command was not run, or a request refused. The numbers are those of the wire's ErrorCode."""

    INVALID = 1
    RESOURCE_EXHAUSTED = 2
    OUT_OF_RANGE = 3
    CONFLICT = 4
    NO_LEADER = 5
    UNKNOWN_OUTCOME = 6
    SESSION_EXPIRED = 7
    STALE = 8
    WINDOW = 9
    CANCELLED = 10
    WRONG_CLUSTER = 11
    DATA_LOSS = 12
    UNIMPLEMENTED = 13
    FAILED_PRECONDITION = 14
    LEASE_NOT_FOUND = 15


class Fault(msgspec.Struct, array_like=True, frozen=True):
    """A refusal. `field` names the part of the request at fault, where there is one.

    The refusal of a command stands in its session's rows, and all of them in the digest: nodes that word one
    differently drift apart. To change the text of a fault that applying gives takes a new machine version.
    """

    code: Code
    message: str
    field: str = ""


class KeyValue(msgspec.Struct, array_like=True, frozen=True):
    """A key as of one revision."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


class SessionId(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A client session: the log index of its registration, and 64 random bits of its client's."""

    index: Uint
    nonce: Uint


class Member(msgspec.Struct, array_like=True, frozen=True):
    """A node as the cluster knows it. Addresses are host:port, as advertised."""

    id: int
    incarnation: int
    name: str
    peer_address: str
    client_address: str
    learner: bool = False
    """Whether it has no vote: by the configuration, whatever a change says."""
    promote: bool = False
    """Of a learner: whether the leader gives it a vote as soon as it has caught up."""


class MemberChange(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The context of a membership change: what is new in members' records. Who leaves goes with the
    configuration."""

    records: list[Member] = []
    """Added, or put in place of the one with the same id. Of a node that is no member: passed over."""


# ---- what stands in a log entry


class Batch(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=1):
    """Commands of one client.

    `raw` is a serialized raftstate.v1.CommandBatch, byte for byte as it arrived.
    """

    raw: bytes


class Register(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=2):
    """Opens a session; its id is (index of the entry, nonce). Only one in an entry."""

    nonce: Uint
    ttl_ms: Uint
    cluster_id: Uint = 0


class Cancel(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=3):
    """Gives up one serial of a session."""

    session: SessionId
    serial: Uint
    cluster_id: Uint = 0


class Close(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=4):
    """Ends a session."""

    session: SessionId
    cluster_id: Uint = 0


class Expire(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=5):
    """Ends a session if, at lease clock `at_ms`, it was not heard from for its time to live.

    Proposed by leaders only.
    """

    session: SessionId
    at_ms: Uint


class ExpireLease(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=6):
    """Ends a lease, with its keys, if at lease clock `at_ms` it was not renewed for its time to live.

    Proposed by leaders only.
    """

    lease: Uint
    at_ms: Uint


class CompactTo(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=7):
    """Forgets the history before a revision, if it is not forgotten already. Proposed by leaders only, when
    the history has reached its age."""

    revision: Uint


class MoveTo(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=8):
    """Moves the cluster to a machine version, if it is not there already. Proposed by leaders only, when all
    members have said that they know it."""

    machine_version: Uint


Item = Batch | Register | Cancel | Close | Expire | ExpireLease | CompactTo | MoveTo


class Envelope(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The data of a normal log entry.

    An entry with no data is a new leader's no-op; one with no items is a tick of the lease clock.
    """

    lease_clock_ms: Uint
    wall_clock_ms: Uint
    items: list[Item] = []


# ---- what applying gives


class RangeDone(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """A range read by a transaction: pairs in the order asked for, if there are others, how many in all."""

    kvs: list[KeyValue]
    more: bool
    count: int


class PutDone(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """A put of a transaction, with the pair as it was before, if wanted and there was one."""

    prev_kv: KeyValue | None = None


class DeleteDone(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """A delete of a transaction: how many keys, and the pairs that they were, if wanted."""

    deleted: int
    prev_kvs: list[KeyValue] = []


OperationDone = RangeDone | PutDone | DeleteDone


class TxnDone(msgspec.Struct, array_like=True, frozen=True):
    """Which branch of a transaction ran (`succeeded`: the compares held), and what came of its operations."""

    succeeded: bool
    responses: list[OperationDone]


class LeaseDone(msgspec.Struct, array_like=True, frozen=True):
    """A lease that was granted or renewed."""

    id: int
    ttl_ms: int


class Answer(msgspec.Struct, array_like=True, frozen=True):
    """What became of one command.

    With a fault it was not run, or ran into it and changed nothing; the answer is the same to every retry.
    """

    serial: int
    revision: int
    fault: Fault | None = None
    deleted: int = 0
    prev_kvs: list[KeyValue] = []
    txn: TxnDone | None = None
    lease: LeaseDone | None = None


class BatchResult(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """Answers to a batch: serials[i] made revisions[i], with no more to say; all others are in `answers`."""

    serials: list[int]
    revisions: list[int]
    answers: list[Answer]


class Registered(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """A session was opened."""

    session: SessionId
    ttl_ms: int


class Cancelled(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """What a cancel found: the stored answer of a command that had run, or None: it never will."""

    answer: Answer | None


class Closed(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """The session is gone (whether or not it was there)."""


class Refused(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """The item as a whole was not run."""

    fault: Fault


class Done(msgspec.Struct, array_like=True, frozen=True, tag=6):
    """What a leader asked for is so (whether or not it was before)."""


ItemResult = BatchResult | Registered | Cancelled | Closed | Refused | Done


class EntryResult(msgspec.Struct, frozen=True):
    """The results of one log entry, item for item, with the revision and digest as of it."""

    index: int
    term: int
    revision: int
    items: list[ItemResult]
    digest: int


class LongApply(Exception):  # noqa: N818 - nothing is wrong: the caller chose to be told
    """Ranges or revoked leases hold more keys than this call of apply was allowed. No result, and not part of
    one.

    The caller aborts the transaction, loads the machine again, and applies the same entries without a limit
    where that holds nobody up.
    """


def covers(key: bytes, range_end: bytes) -> tuple[bytes, bytes | None]:
    """Return the interval [start, end) that a request's key and range_end mean, by etcd's rules.

    Args:
        key: where it starts.
        range_end: where it ends; empty: after the key alone; one zero byte: nowhere.

    Returns:
        The first key, and the first one that is not meant any more; None: there is no end.
    """
    if not range_end:
        return key, key + b"\x00"
    return key, None if range_end == b"\x00" else range_end
