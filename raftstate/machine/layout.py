"""How rows are laid out, and the only place that packs or unpacks them. What stands here is a disk format.

Every row is a checksum and a body: xxh3-64 of the body, seeded with xxh3-64 of the row's own key, so that an
intact body under a wrong key is damage too. It is verified on every read. Numbers in keys are big-endian,
which makes the order of bytes that of numbers; in bodies they are little-endian.

    CHANGES     revision u64, sub u32                -> kind u8, key length u16, create, version, lease,
                                                        previous revision u64, previous sub u32, key, value
    INDEX       key                                  -> revision u64, sub u32, create, version, lease,
                                                        checksum of that change u64
    MILESTONES  key in groups of 32, revision u64    -> sub u32, kind u8, version u64
    HOT         "M"                                  -> Meta, as MessagePack
                "B"                                  -> 256 bucket sums u64
                "S", session index, nonce u64        -> last, time to live, floor u64
                "A", session index, nonce,
                     entry index u64, item u32       -> StoredAnswers, as MessagePack
                "L", lease u64                       -> last renewed, time to live, number of keys u64
                "K", lease u64, key                  -> nothing: the key is attached to the lease
                "P"                                  -> next revision u64, next sub u32, target revision u64
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

import msgspec
from xxhash import xxh3_64_intdigest

from raftstate.core.types import ConfState
from raftstate.errors import DataLossError
from raftstate.machine.tables import ReadTables, Table
from raftstate.machine.types import (
    KEY_BYTES_MAX,
    Answer,
    BatchResult,
    Cancelled,
    ItemResult,
    Member,
    SessionId,
)

checksum = xxh3_64_intdigest
"""(bytes, seed) -> xxh3-64 of them."""

CHECKSUM = Struct("<Q")
CHECKSUM_BYTES = CHECKSUM.size
_CHANGE_KEY = Struct(">QI")
CHANGE_HEADER = Struct("<BHQQQQI")
_CHANGE_ROW_HEADER = Struct("<QBHQQQQI")
_CHANGE_KEY_AT = _CHANGE_ROW_HEADER.size
INDEX_BODY = Struct("<QIQQQQ")
_INDEX_ROW = Struct("<QQIQQQQ")
MILESTONE_BODY = Struct("<IBQ")
SUMS_BODY = Struct("<256Q")
_SESSION_BODY = Struct("<QQQ")
_LEASE_BODY = Struct("<QQQ")
_SWEEP_BODY = Struct("<QIQ")

MILESTONE_VERSIONS = 16
"""One in so many versions of a key is a milestone: a read of the past steps back from the next one."""

META_KEY = b"M"
SUMS_KEY = b"B"
SWEEP_KEY = b"P"
SESSIONS_START, SESSIONS_END = b"S", b"T"
ANSWERS_START, ANSWERS_END = b"A", b"B"
LEASES_START, LEASES_END = b"L", b"M"
_SESSION_KEY = Struct(">cQQ")
_ANSWERS_KEY = Struct(">cQQQI")
_LEASE_KEY = Struct(">cQ")
_LEASE_KEY_START = b"K"
_KEY_GROUP_BYTES = 32
MILESTONE_REVISION_BYTES = 8
"""The last ones of a milestone's key: its revision. All before are of its key."""
_MILESTONES_END = b"\xff" * MILESTONE_REVISION_BYTES

_INDEX = Table.INDEX  # looking up a member of an enum costs as much as unpacking a row

IndexRow = tuple[int, int, int, int, int, int]
"""revision, sub, create revision, version, lease, checksum of the change. A plain tuple, for speed."""


class ChangeKind(IntEnum):
    """What a change did to its key. Numbers are on disk."""

    PUT = 1
    DELETE = 2
    NOTHING = 3
    """Of no key: it only takes a revision, so that all before it can be compacted."""


class Change(NamedTuple):
    """A row of CHANGES. A deletion has no value, create revision, version or lease; one of NOTHING no
    key either.

    `previous_revision` 0: the key was not there before.
    """

    kind: ChangeKind
    key: bytes
    value: bytes
    create_revision: int
    version: int
    lease: int
    previous_revision: int
    previous_sub: int
    checksum: int


class Meta(msgspec.Struct, array_like=True, frozen=True):
    """What the machine knows beside its keys and sessions, as of `applied_index`."""

    cluster_id: int
    applied_index: int
    applied_term: int
    revision: int
    machine_version: int
    lease_clock_ms: int
    wall_clock_ms: int
    digest: int
    conf_state: ConfState
    members: list[Member]
    compacted_revision: int = 0
    last_member_id: int = 0
    """The highest id that a member ever had: ids are not used twice."""
    last_erase_index: int = 0
    """The entry of the last erase; 0: there was none."""


class SweepProgress(NamedTuple):
    """Where the physical compaction stands. Of this node alone: not in the digest.

    All changes before (revision, sub) are walked, on the way to `target`: the compacted revision as of then.
    """

    revision: int
    sub: int
    target: int


class StoredAnswers(msgspec.Struct, array_like=True, frozen=True):
    """What an item added to its session: serials[i] made revisions[i], all others are in `answers`."""

    serials: list[int]
    revisions: list[int]
    answers: list[Answer]


def seal(row_key: bytes, body: bytes) -> bytes:
    """Return the row that holds `body` under `row_key`."""
    return CHECKSUM.pack(checksum(body, checksum(row_key))) + body


def unseal(table: Table, row_key: bytes, row: bytes) -> bytes:
    """Return the body of a row. Raises `DataLossError`, naming the row, when its checksum does not match."""
    body = row[CHECKSUM_BYTES:]
    if len(row) < CHECKSUM_BYTES or CHECKSUM.unpack_from(row)[0] != checksum(body, checksum(row_key)):
        raise _damage(table, row_key, row)
    return body


def name_key(key: bytes) -> str:
    """Return what messages call a key, by its xxh3-64: they go to logs, which no erase reaches."""
    return f"key #{checksum(key):016x}"


def name_row(table: Table, row_key: bytes) -> str:
    """Return what messages call a row: by its key, in hex, where that names no key of a client."""
    if table is Table.CHANGES or (table is Table.HOT and not row_key.startswith(_LEASE_KEY_START)):
        return row_key.hex()
    return f"#{checksum(row_key):016x}"


def _damage(table: Table, row_key: bytes, row: bytes) -> DataLossError:
    expected = CHECKSUM.pack(checksum(row[CHECKSUM_BYTES:], checksum(row_key)))
    return DataLossError(
        f"row {name_row(table, row_key)} of table {table.name} is damaged: its {len(row)} bytes hold "
        f"checksum {row[:CHECKSUM_BYTES].hex()}, and {expected.hex()} was expected"
    )


# ---- keys

change_key = _CHANGE_KEY.pack
"""(revision, sub) -> key of a row of CHANGES. No function around it: one is made for each write."""


def change_row(
    row_key: bytes,
    kind: ChangeKind,
    key: bytes,
    value: bytes,
    live: tuple[int, int, int],
    previous: tuple[int, int],
) -> tuple[bytes, int]:
    """Return a row of CHANGES and its checksum.

    `live` is (create revision, version, lease); `previous` is (revision, sub) of the change replaced by this
    one.
    """
    body = CHANGE_HEADER.pack(kind, len(key), *live, *previous) + key + value
    own = checksum(body, checksum(row_key))
    return CHECKSUM.pack(own) + body, own


def read_change(row_key: bytes, row: bytes) -> Change:
    """Return what a row of CHANGES says. Raises `DataLossError`."""
    body = unseal(Table.CHANGES, row_key, row)
    kind, key_bytes, create, version, lease, previous_revision, previous_sub = CHANGE_HEADER.unpack_from(body)
    value_at = CHANGE_HEADER.size + key_bytes
    return Change(
        kind=ChangeKind(kind),
        key=body[CHANGE_HEADER.size : value_at],
        value=body[value_at:],
        create_revision=create,
        version=version,
        lease=lease,
        previous_revision=previous_revision,
        previous_sub=previous_sub,
        checksum=CHECKSUM.unpack_from(row)[0],
    )


def read_change_key(row_key: bytes) -> tuple[int, int]:
    """Return (revision, sub) of the row of CHANGES under `row_key`."""
    return _CHANGE_KEY.unpack(row_key)


def read_links(row_key: bytes, row: bytes) -> tuple[int, bytes, int, int, int]:
    """Return (kind, key, version, previous revision, previous sub) of a row of CHANGES, and leave its value.

    For those who pass many changes: a fifth of the time of `read_change`. Raises `DataLossError`.
    """
    if len(row) >= _CHANGE_KEY_AT:
        own, kind, key_bytes, _, version, _, revision, sub = _CHANGE_ROW_HEADER.unpack_from(row)
        if own == checksum(memoryview(row)[CHECKSUM_BYTES:], checksum(row_key)):
            return kind, row[_CHANGE_KEY_AT : _CHANGE_KEY_AT + key_bytes], version, revision, sub
    raise _damage(Table.CHANGES, row_key, row)


ChangeHead = tuple[int, int, int, int, int, int, int, int]
"""checksum, kind, bytes of the key, create revision, version, lease, previous revision, previous sub."""


def read_head(row_key: bytes, row: bytes) -> ChangeHead:
    """Return what a row of CHANGES says beside its key and value. Raises `DataLossError`."""
    if len(row) >= _CHANGE_KEY_AT:
        head = _CHANGE_ROW_HEADER.unpack_from(row)
        if head[0] == checksum(memoryview(row)[CHECKSUM_BYTES:], checksum(row_key)):
            return head
    raise _damage(Table.CHANGES, row_key, row)


def verified_head(row: bytes) -> tuple[ChangeHead, bytes]:
    """Return what a row of CHANGES, verified before in the same transaction, says beside its value, and its
    key."""
    head = _CHANGE_ROW_HEADER.unpack_from(row)
    return head, row[_CHANGE_KEY_AT : _CHANGE_KEY_AT + head[2]]


def read_live_change(tables: ReadTables, key: bytes, live: IndexRow) -> Change:
    """Return the change that the index names for `key`.

    Raises `DataLossError` when it is missing, damaged, or not the one that the index row was made for.
    """
    revision, sub, _, _, _, expected = live
    row_key = change_key(revision, sub)
    row = tables.get(Table.CHANGES, row_key)
    if row is None:
        raise DataLossError(
            f"the index says that {name_key(key)} is at revision {revision}.{sub}, but there is no such "
            "change"
        )
    change = read_change(row_key, row)
    if change.checksum != expected or change.key != key:
        raise DataLossError(
            f"the index says that {name_key(key)} is at revision {revision}.{sub} with checksum "
            f"{expected:016x}, but that change is of {name_key(change.key)} and has checksum "
            f"{change.checksum:016x}"
        )
    return change


def index_row(key: bytes, live: IndexRow) -> bytes:
    """Return the row of INDEX for a live key."""
    body = INDEX_BODY.pack(*live)
    return CHECKSUM.pack(checksum(body, checksum(key))) + body


def read_index(key: bytes, row: bytes) -> IndexRow:
    """Return what a row of INDEX says. Raises `DataLossError`."""
    # One is read for each write: the fields are unpacked with the checksum, and `unseal` only called to tell.
    if len(row) == _INDEX_ROW.size:
        own, revision, sub, create, version, lease, change = _INDEX_ROW.unpack(row)
        if own == checksum(row[CHECKSUM_BYTES:], checksum(key)):
            return revision, sub, create, version, lease, change
    return INDEX_BODY.unpack(unseal(_INDEX, key, row))


def milestone_key(key: bytes, revision: int) -> bytes:
    """Return the key of a row of MILESTONES: ordered by key, then by revision, and never over 503 bytes.

    Keys hold any byte, so none can end them. Each group of 32 bytes, the last one filled up with zeros, is
    followed by how many of them count, or by 33 when more follow.
    """
    parts = []
    for at in range(0, len(key), _KEY_GROUP_BYTES):
        group = key[at : at + _KEY_GROUP_BYTES]
        more = at + _KEY_GROUP_BYTES < len(key)
        parts.append(group.ljust(_KEY_GROUP_BYTES, b"\x00"))
        parts.append(bytes((_KEY_GROUP_BYTES + 1 if more else len(group),)))
    parts.append(revision.to_bytes(8, "big"))
    return b"".join(parts)


def milestone_row(row_key: bytes, sub: int, kind: ChangeKind, version: int) -> bytes:
    """Return a row of MILESTONES."""
    return seal(row_key, MILESTONE_BODY.pack(sub, kind, version))


def read_milestone(row_key: bytes, row: bytes) -> tuple[int, int]:
    """Return (revision, sub) of the change that a row of MILESTONES names. Raises `DataLossError`."""
    body = unseal(Table.MILESTONES, row_key, row)
    return int.from_bytes(row_key[-MILESTONE_REVISION_BYTES:], "big"), MILESTONE_BODY.unpack(body)[0]


def read_milestone_whole(row_key: bytes, row: bytes) -> tuple[int, int, int]:
    """Return (sub, kind, version) in a row of MILESTONES. Raises `DataLossError`."""
    return MILESTONE_BODY.unpack(unseal(Table.MILESTONES, row_key, row))


def read_milestone_key(row_key: bytes) -> bytes:
    """Return the key whose milestone stands under `row_key`."""
    parts = []
    for at in range(0, len(row_key) - MILESTONE_REVISION_BYTES, _KEY_GROUP_BYTES + 1):
        count = row_key[at + _KEY_GROUP_BYTES]
        parts.append(row_key[at : at + min(count, _KEY_GROUP_BYTES)])
    return b"".join(parts)


def milestones_after(row_key: bytes, revision: int | None) -> bytes:
    """Return where, for the key of the milestone at `row_key`, those after `revision` begin.

    `revision` None: where all of them have ended.
    """
    after = _MILESTONES_END if revision is None else (revision + 1).to_bytes(MILESTONE_REVISION_BYTES, "big")
    return row_key[:-MILESTONE_REVISION_BYTES] + after


def milestones_start(start: bytes) -> bytes:
    """Return where the milestones of the keys from `start` on, of any length, begin: never over 503 bytes."""
    if len(start) <= KEY_BYTES_MAX:
        return milestone_key(start, 0)
    # No key is that long: the first one not before it is the next one after its longest part that is a key.
    return milestones_after(milestone_key(start[:KEY_BYTES_MAX], 0), None)


# ---- hot rows


def session_key(session: SessionId) -> bytes:
    """Return the key of a session's own row."""
    return _SESSION_KEY.pack(SESSIONS_START, session.index, session.nonce)


def read_session_key(row_key: bytes) -> SessionId:
    """Return the session whose row stands under `row_key`."""
    return SessionId(*_SESSION_KEY.unpack(row_key)[1:])


def session_row(row_key: bytes, last_ms: int, ttl_ms: int, floor: int) -> bytes:
    """Return a session's own row: when it was last heard from, its time to live, its floor."""
    return seal(row_key, _SESSION_BODY.pack(last_ms, ttl_ms, floor))


def read_session(row_key: bytes, row: bytes) -> tuple[int, int, int]:
    """Return (last ms, time to live ms, floor) of a session. Raises `DataLossError`."""
    return _SESSION_BODY.unpack(unseal(Table.HOT, row_key, row))


def answers_key(session: SessionId, entry_index: int, item: int) -> bytes:
    """Return the key of the answers that item number `item` of an entry added to a session."""
    return _ANSWERS_KEY.pack(ANSWERS_START, session.index, session.nonce, entry_index, item)


def read_answers_key(row_key: bytes) -> SessionId:
    """Return the session that the answers under `row_key` belong to."""
    return SessionId(*_ANSWERS_KEY.unpack(row_key)[1:3])


def lease_key(lease: int) -> bytes:
    """Return the key of a lease's own row."""
    return _LEASE_KEY.pack(LEASES_START, lease)


def read_lease_key(row_key: bytes) -> int:
    """Return the lease whose row stands under `row_key`."""
    lease: int = _LEASE_KEY.unpack(row_key)[1]
    return lease


def lease_row(row_key: bytes, renewed_ms: int, ttl_ms: int, key_count: int) -> bytes:
    """Return a lease's own row: when it was last renewed, its time to live, how many keys it holds."""
    return seal(row_key, _LEASE_BODY.pack(renewed_ms, ttl_ms, key_count))


def read_lease(row_key: bytes, row: bytes) -> tuple[int, int, int]:
    """Return (renewed ms, time to live ms, number of keys) of a lease. Raises `DataLossError`."""
    return _LEASE_BODY.unpack(unseal(Table.HOT, row_key, row))


def attachment_key(lease: int, key: bytes) -> bytes:
    """Return the key of the row that says that `key` is attached to `lease`."""
    return _LEASE_KEY.pack(_LEASE_KEY_START, lease) + key


def attachment_row(row_key: bytes) -> bytes:
    """Return the row of an attachment. It holds nothing: all is in its key."""
    return seal(row_key, b"")


def attachments(lease: int) -> tuple[bytes, bytes]:
    """Return the interval [start, end) of row keys that the attachments of a lease stand in."""
    start = _LEASE_KEY.pack(_LEASE_KEY_START, lease)
    return start, start + b"\xff" * (KEY_BYTES_MAX + 1)


def read_attachment(row_key: bytes, row: bytes) -> bytes:
    """Return the attached key. Raises `DataLossError`."""
    unseal(Table.HOT, row_key, row)
    return row_key[_LEASE_KEY.size :]


def read_attachment_lease(row_key: bytes) -> int:
    """Return the lease that a key is attached to by the row under `row_key`."""
    lease: int = _LEASE_KEY.unpack_from(row_key)[1]
    return lease


_meta_decoder = msgspec.msgpack.Decoder(Meta)
_answers_decoder = msgspec.msgpack.Decoder(StoredAnswers)
_encoder = msgspec.msgpack.Encoder()


def meta_row(meta: Meta) -> bytes:
    """Return the row of `meta`."""
    return seal(META_KEY, _encoder.encode(meta))


def read_meta(tables: ReadTables) -> Meta:
    """Return the machine's own record. Raises `DataLossError` when it is missing or damaged."""
    row = tables.get(Table.HOT, META_KEY)
    if row is None:
        raise DataLossError("the state holds no meta row: it was never bootstrapped, or has lost it")
    return _meta_decoder.decode(unseal(Table.HOT, META_KEY, row))


def sums_row(sums: list[int]) -> bytes:
    """Return the row of the bucket sums."""
    return seal(SUMS_KEY, SUMS_BODY.pack(*sums))


def read_sums(tables: ReadTables) -> list[int]:
    """Return the bucket sums as they were kept. Raises `DataLossError` when they are missing or damaged."""
    row = tables.get(Table.HOT, SUMS_KEY)
    if row is None:
        raise DataLossError("the state holds no bucket sums: it was never bootstrapped, or has lost them")
    return list(SUMS_BODY.unpack(unseal(Table.HOT, SUMS_KEY, row)))


def sweep_row(progress: SweepProgress) -> bytes:
    """Return the row of `progress`."""
    return seal(SWEEP_KEY, _SWEEP_BODY.pack(*progress))


def read_sweep(tables: ReadTables) -> SweepProgress | None:
    """Return where the physical compaction stands; None: it never began. Raises `DataLossError`."""
    row = tables.get(Table.HOT, SWEEP_KEY)
    return None if row is None else SweepProgress(*_SWEEP_BODY.unpack(unseal(Table.HOT, SWEEP_KEY, row)))


def answers_row(row_key: bytes, answers: StoredAnswers, machine_version: int) -> bytes:
    """Return the row of `answers`, in the form that it has at a machine version."""
    if machine_version >= LONG_ANSWERS_SINCE:
        return seal(row_key, _encoder.encode(answers))
    short = (answers.serials, answers.revisions, list(map(_short_answer, answers.answers)))
    return seal(row_key, _encoder.encode(short))


def read_answers(row_key: bytes, row: bytes) -> StoredAnswers:
    """Return the answers in a row. Raises `DataLossError`."""
    return _answers_decoder.decode(unseal(Table.HOT, row_key, row))


# ---- answers as they were before there were transactions and leases

LONG_ANSWERS_SINCE = 2
"""The machine version that gave answers their last two fields. Until a cluster has moved to it, its nodes may
run code that does not know them: rows and digests must not differ from theirs."""


def short_results(results: Sequence[ItemResult]) -> list[object]:
    """Return what encodes as `results` did at machine version 1."""
    return list(map(_short_result, results))


def _short_result(result: ItemResult) -> object:
    match result:
        case BatchResult(serials, revisions, answers):
            return 1, serials, revisions, list(map(_short_answer, answers))
        case Cancelled(Answer() as answer):
            return 3, _short_answer(answer)
    return result


def _short_answer(answer: Answer) -> tuple[object, ...]:
    return answer.serial, answer.revision, answer.fault, answer.deleted, answer.prev_kvs
