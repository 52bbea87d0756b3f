"""The rows of the log's environment. All numbers are big-endian; every row begins with its own checksum.

    00                  meta: checksum u64, then as u64: last index, last term, boundary index, boundary term,
                        transaction id, checksum of the previous commit's LMDB meta page
    00 00               hard state: checksum u64, then as u64: term, vote, commit
    index u64           record: checksum u64, term u64, type u8, payload

A checksum is the xxh3-64 of the row's key and of all that follows the checksum, so that a row can't pass for
another one. The two short keys sort before every index: entries can always be appended at the end.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import xxhash

from raftstate.core.errors import Damaged
from raftstate.core.types import Entry, EntryType, HardState
from raftstate.errors import DataLossError

META_KEY = b"\x00"
HARD_STATE_KEY = b"\x00\x00"
FIXED_ROWS = 2
"""How many rows there are beside the records."""

_INDEX = struct.Struct(">Q")
_RECORD = struct.Struct(">QB")
_META = struct.Struct(">6Q")
_HARD_STATE = struct.Struct(">3Q")
_CHECKSUM_BYTES = 8
_PAYLOAD_AT = _CHECKSUM_BYTES + _RECORD.size
_TYPES = {int(kind): kind for kind in EntryType}


class MetaRow(NamedTuple):
    """What the log says of itself as of one transaction. The boundary is the last entry compacted away."""

    last_index: int
    last_term: int
    boundary_index: int
    boundary_term: int
    transaction_id: int
    previous_page_checksum: int


def checksum(content: bytes) -> int:
    """The xxh3-64 of `content`."""
    return xxhash.xxh3_64_intdigest(content)


def entry_key(index: int) -> bytes:
    """The key of the record of entry `index`."""
    return _INDEX.pack(index)


def encode_record(entry: Entry) -> tuple[bytes, bytes]:
    """The key and value that `entry` is stored as."""
    key = _INDEX.pack(entry.index)
    head = _RECORD.pack(entry.term, entry.type)
    digest = xxhash.xxh3_64(key + head)
    digest.update(entry.data)
    return key, b"".join((digest.digest(), head, entry.data))


def decode_record(index: int, value: memoryview) -> Entry:
    """The entry stored at `index`.

    Raises:
        Damaged: nothing of it is to be believed.
    """
    term, kind = verify_record(index, value)
    return Entry(index=index, term=term, type=kind, data=bytes(value[_PAYLOAD_AT:]))


def verify_record(index: int, value: memoryview) -> tuple[int, EntryType]:
    """Return term and type of the entry stored at `index`, once all of its record is found sound; without a
    copy of its payload.

    Raises:
        Damaged: nothing of it is to be believed.
    """
    if len(value) >= _PAYLOAD_AT:
        digest = xxhash.xxh3_64(_INDEX.pack(index))
        digest.update(value[_CHECKSUM_BYTES:])
        term, kind = _RECORD.unpack_from(value, _CHECKSUM_BYTES)
        if digest.digest() == value[:_CHECKSUM_BYTES] and kind in _TYPES:
            return term, _TYPES[kind]
    raise Damaged(
        f"log entry {index} is damaged: its record of {len(value)} bytes does not match its checksum",
        detail={"index": index},
    )


def encode_meta(row: MetaRow) -> bytes:
    """The value of the meta row."""
    return _seal(META_KEY, _META.pack(*row))


def decode_meta(value: memoryview | None) -> MetaRow:
    """The meta row. Raises `DataLossError` if it is absent or damaged."""
    return MetaRow(*_META.unpack(_unseal("meta row", META_KEY, value, _META.size)))


def encode_hard_state(hard_state: HardState) -> bytes:
    """The value of the hard state's row."""
    return _seal(HARD_STATE_KEY, _HARD_STATE.pack(hard_state.term, hard_state.vote, hard_state.commit))


def decode_hard_state(value: memoryview | None) -> HardState:
    """The hard state. Raises `DataLossError` if its row is absent or damaged."""
    return HardState(*_HARD_STATE.unpack(_unseal("hard state", HARD_STATE_KEY, value, _HARD_STATE.size)))


def _seal(key: bytes, body: bytes) -> bytes:
    return _INDEX.pack(checksum(key + body)) + body


def _unseal(name: str, key: bytes, value: memoryview | None, body_bytes: int) -> bytes:
    if value is None:
        raise DataLossError(f"the log's {name} is missing")
    body = bytes(value[_CHECKSUM_BYTES:])
    if len(body) != body_bytes or bytes(value[:_CHECKSUM_BYTES]) != _INDEX.pack(checksum(key + body)):
        raise DataLossError(
            f"the log's {name} is damaged: its {len(value)} bytes do not match their checksum"
        )
    return body
