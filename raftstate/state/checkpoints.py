"""A checkpoint as it is stored: one row, which describes itself.

The layout of `Record` is a disk format: new fields are added at the end, with a default.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, cast

import msgspec
import xxhash

from raftstate.errors import DataLossError, InvalidArgumentError
from raftstate.state import codec, delta
from raftstate.state.tuples import unpack

Kind = Literal["base", "delta"]


class Checkpoint(msgspec.Struct, frozen=True):
    """A saved state.

    Attributes:
        id: names it within its workflow, "<sequence>-<writer>".
        revision: the store's, that the checkpoint made.
        parent: id of the checkpoint that its writer had last restored or made, or None. Two with one parent
            are a fork.
        created_at: by the clock of the client that wrote it.
        checksum: xxh3-128 of the encoded state, in hexadecimal.
        size: bytes of the encoded state.
        stored_bytes: bytes of the row.
        kind: "base" holds the whole state, "delta" its difference to a base.
        metadata: what was given with it.
    """

    id: str
    revision: int
    parent: str | None
    created_at: datetime
    checksum: str
    size: int
    stored_bytes: int
    kind: Kind
    metadata: Any


class Record(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """The value of a checkpoint's row. `base`: id of the base of a delta. `chain_bytes`: all deltas of that
    base so far."""

    workflow: str
    parent: str | None
    base: str | None
    created_at: datetime
    size: int
    checksum: bytes
    chain_bytes: int
    metadata: bytes
    payload: bytes


def read_row(key: bytes, value: bytes, revision: int) -> tuple[Checkpoint, Record]:
    """Return what stands in a row, described and as it is. Raises DataLossError."""
    checkpoint_id = id_of_key(key)
    try:
        record = msgspec.msgpack.decode(value, type=Record)
    except msgspec.DecodeError as error:
        raise DataLossError(f"checkpoint {checkpoint_id} is not readable: {error}") from error
    return describe(checkpoint_id, revision, record, len(value)), record


def parse_id(checkpoint_id: str) -> tuple[int, bytes]:
    """Return (sequence, writer). Raises InvalidArgumentError."""
    sequence, dash, writer = checkpoint_id.partition("-")
    try:
        if dash and sequence.isascii() and 0 < int(sequence) < 1 << 63:
            return int(sequence), bytes.fromhex(writer)
    except ValueError:
        pass
    raise InvalidArgumentError(f"{checkpoint_id!r} is not the id of a checkpoint", field="id")


def id_of_key(key: bytes) -> str:
    """Return the id of the checkpoint whose row has this key."""
    *_, negated, writer = unpack(key)
    return f"{-cast(int, negated)}-{cast(bytes, writer).hex()}"


def describe(checkpoint_id: str, revision: int, record: Record, stored_bytes: int) -> Checkpoint:
    """Return what is told of a record."""
    return Checkpoint(
        id=checkpoint_id,
        revision=revision,
        parent=record.parent,
        created_at=record.created_at,
        checksum=record.checksum.hex(),
        size=record.size,
        stored_bytes=stored_bytes,
        kind="base" if record.base is None else "delta",
        metadata=codec.decode(record.metadata),
    )


def content_of(checkpoint_id: str, record: Record, prefix: bytes) -> bytes:
    """Return the encoded state of a record, verified. Raises DataLossError."""
    try:
        state = delta.decompress(record.payload, record.size, prefix)
    except DataLossError as error:
        raise DataLossError(f"checkpoint {checkpoint_id} of {record.workflow!r}: {error}") from error
    found = xxhash.xxh3_128_digest(state)
    if found != record.checksum:
        raise DataLossError(
            f"checkpoint {checkpoint_id} of {record.workflow!r} has checksum {found.hex()}, not"
            f" {record.checksum.hex()} as when it was saved"
        )
    return state
