"""The file that a snapshot is: the rows of all tables, in blocks that are compressed and checksummed.

    head      magic "RSSN", format u32, bytes of the meta u32, checksum u64
    meta      SnapshotMeta, as MessagePack; checksum u64
    blocks    kind u8 (1), table u8, rows u32, raw bytes u32, stored bytes u32, checksum of the stored bytes
              u64, checksum u64; then the stored bytes: one zstd frame
    end       a block of kind 2, stored as it is: blocks u64, raw bytes u64, then rows of each table u64

All numbers are little-endian. What a block holds, once decompressed:

    for each row bytes of its key u16; for each row bytes of its value u32; all keys; all values

Rows come table by table, in order of key: a receiver can append them. Each checksum of a head is an xxh3-64
that is seeded with the one before it, in the order of the file; and a block's head holds the checksum of what
is stored behind it. So a block that was lost, repeated, moved or taken from another snapshot does not fit,
lengths are known to be right before anything is done by them, and the end vouches for all before it. Rows
carry the machine's own checksums beside, which only the machine can verify.

A format is written in full here when it changes: readers refuse a higher one than theirs.

No I/O: bytes in, rows out, and the other way round.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate, pairwise
from operator import lt
from typing import NamedTuple

import msgspec
from xxhash import xxh3_64_intdigest

from raftstate.compression import zstd
from raftstate.core.types import ConfState
from raftstate.errors import DataLossError, FailedPreconditionError, InvariantError
from raftstate.machine.tables import Table

FORMAT = 1
"""The newest format of a snapshot that this code knows."""
BLOCK_BYTES = 512 << 10
"""A block ends with the row that makes it this long: some 2 ms to compress, and all that is held at once."""
BLOCK_BYTES_MAX = 64 << 20
"""The longest block: one row. Values have 8 MiB at most, answers stored in a session 21 MiB."""

_META_BYTES_MAX = 1 << 20
_ROW_KEY_BYTES_MAX = 511
"""LMDB's limit."""
_MAGIC = b"RSSN"
_CHECKSUM = struct.Struct("<Q")
_HEAD = struct.Struct("<4sII")
_BLOCK = struct.Struct("<BBIIIQ")
_END = struct.Struct(f"<QQ{len(Table)}Q")
_ROWS, _IS_END = 1, 2
_LEVEL = 1
"""zstd's quickest: a snapshot is made once, beside a node that works."""
_ROW_LENGTHS_BYTES = 6
_TABLES = frozenset(map(int, Table))

Row = tuple[bytes, bytes]
_Head = tuple[int, int, int, int, int, int]
"""kind, table, rows, raw bytes, stored bytes, checksum of the stored bytes."""


class SnapshotMeta(msgspec.Struct, array_like=True, frozen=True):
    """What a snapshot is of. Stands at its beginning."""

    cluster_id: int
    index: int
    """The last log entry that it contains."""
    term: int
    conf_state: ConfState
    """As of `index`."""
    machine_version: int
    rows: int
    """How many all tables have together."""
    raw_bytes: int
    """About how many bytes the rows have, to show progress by."""


class Block(NamedTuple):
    """Rows of one table, in order of key."""

    table: Table
    rows: list[Row]


_decoder = msgspec.msgpack.Decoder(SnapshotMeta)


class SnapshotEncoder:
    """Makes the bytes of a snapshot: `begin`, then `block` for all rows in order, then `end`."""

    def __init__(self) -> None:
        self._chain = 0
        self._blocks = self._raw_bytes = 0
        self._rows = dict.fromkeys(Table, 0)

    def begin(self, meta: SnapshotMeta) -> bytes:
        """Return the head and the meta."""
        encoded = msgspec.msgpack.encode(meta)
        head = _HEAD.pack(_MAGIC, FORMAT, len(encoded))
        return self._sealed(head) + self._sealed(encoded)

    def block(self, table: Table, rows: Sequence[Row]) -> bytes:
        """Return a block with `rows`, at least one, which follow those of earlier blocks."""
        keys, values = zip(*rows, strict=True)
        count = len(keys)
        raw = b"".join(
            (
                struct.pack(f"<{count}H", *map(len, keys)),
                struct.pack(f"<{count}I", *map(len, values)),
                *keys,
                *values,
            )
        )
        stored = zstd.compress(raw, _LEVEL)
        if max(len(raw), len(stored)) > BLOCK_BYTES_MAX:
            raise InvariantError(f"a block of a snapshot has {len(raw)} bytes, limit {BLOCK_BYTES_MAX}")
        self._blocks += 1
        self._raw_bytes += len(raw)
        self._rows[table] += count
        head = _BLOCK.pack(_ROWS, table, count, len(raw), len(stored), xxh3_64_intdigest(stored))
        return self._sealed(head) + stored

    def end(self) -> bytes:
        """Return the end."""
        counts = _END.pack(self._blocks, self._raw_bytes, *self._rows.values())
        head = _BLOCK.pack(_IS_END, 0, 0, len(counts), len(counts), xxh3_64_intdigest(counts))
        return self._sealed(head) + counts

    def _sealed(self, head: bytes) -> bytes:
        self._chain = xxh3_64_intdigest(head, self._chain)
        return head + _CHECKSUM.pack(self._chain)


class SnapshotParser:
    """Reads a snapshot from its bytes: `feed`, then `next_block` until it returns None, and so on.

    After an exception nothing more may be asked of it.
    """

    def __init__(self) -> None:
        self.meta: SnapshotMeta | None = None
        """Known once enough was fed; `next_block` finds it."""
        self.is_complete = False
        """Whether the end was read."""
        self.rows = dict.fromkeys(Table, 0)
        """How many rows of each table were read."""
        self._buffer = bytearray()
        self._chain = 0
        self._meta_bytes: int | None = None
        self._head: _Head | None = None
        self._blocks = self._raw_bytes = 0
        self._last: tuple[int, bytes] = (0, b"")
        """Table and key of the last row."""

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the file."""
        self._buffer += data

    def next_block(self) -> Block | None:
        """Return the next block; None: more bytes are wanted, or it `is_complete`.

        Raises:
            DataLossError: the bytes are damaged, or not all and only those of a snapshot.
            FailedPreconditionError: it has a newer format.
        """
        if self.meta is None and not self._read_meta():
            return None
        if self._head is None:
            self._head = self._read_head()
        return None if self._head is None else self._read_block(self._head)

    def finish(self) -> SnapshotMeta:
        """Return the meta, if the snapshot has been read to its end. Raises `DataLossError` if not."""
        if self.meta is None or not self.is_complete:
            raise DataLossError(
                f"a snapshot ends before its end: {self._blocks} whole blocks were read, and "
                f"{len(self._buffer)} bytes after them"
            )
        if self.meta.rows != sum(self.rows.values()):
            raise DataLossError(
                f"a snapshot should hold {self.meta.rows} rows, and holds {sum(self.rows.values())}"
            )
        return self.meta

    def _read_meta(self) -> bool:
        if self._meta_bytes is None:
            head = self._take_sealed(_HEAD.size, "head")
            if head is None:
                return False
            magic, version, meta_bytes = _HEAD.unpack(head)
            if magic != _MAGIC:
                raise DataLossError(f"not a snapshot: it begins with {magic!r}, expected {_MAGIC!r}")
            if version > FORMAT:
                raise FailedPreconditionError(
                    f"the snapshot has format {version}, and this node reads formats up to {FORMAT}: start "
                    "it with the newer software that its peers run"
                )
            if meta_bytes > _META_BYTES_MAX:
                raise DataLossError(f"a snapshot's meta has {meta_bytes} bytes, limit {_META_BYTES_MAX}")
            self._meta_bytes = meta_bytes
        encoded = self._take_sealed(self._meta_bytes, "meta")
        if encoded is None:
            return False
        try:
            self.meta = _decoder.decode(encoded)
        except msgspec.DecodeError as error:
            raise DataLossError(f"a snapshot's meta can't be read: {error}") from error
        return True

    def _read_head(self) -> _Head | None:
        if self.is_complete:
            if self._buffer:
                raise DataLossError(f"a snapshot goes on after its end with {len(self._buffer)} bytes")
            return None
        head = self._take_sealed(_BLOCK.size, f"block {self._blocks}")
        if head is None:
            return None
        kind, table, rows, raw_bytes, stored_bytes, checksum = _BLOCK.unpack(head)
        known = kind == _IS_END or (kind == _ROWS and table in _TABLES)
        if not known or max(raw_bytes, stored_bytes) > BLOCK_BYTES_MAX:
            raise DataLossError(
                f"block {self._blocks} of a snapshot is of kind {kind} and table {table}, with {raw_bytes} "
                f"bytes, stored {stored_bytes}; limit {BLOCK_BYTES_MAX}"
            )
        return kind, table, rows, raw_bytes, stored_bytes, checksum

    def _read_block(self, head: _Head) -> Block | None:
        kind, table, count, raw_bytes, stored_bytes, checksum = head
        if len(self._buffer) < stored_bytes:
            return None
        stored = bytes(memoryview(self._buffer)[:stored_bytes])
        del self._buffer[:stored_bytes]
        self._head = None
        if xxh3_64_intdigest(stored) != checksum:
            raise DataLossError(f"block {self._blocks} of a snapshot is damaged: its checksum does not match")
        if kind == _IS_END:
            self._check_end(stored)
            return None
        rows = _unpack_rows(_decompress(stored, raw_bytes), count)
        self._check_order(table, rows)
        self._blocks += 1
        self._raw_bytes += raw_bytes
        self.rows[Table(table)] += count
        return Block(Table(table), rows)

    def _check_order(self, table: int, rows: list[Row]) -> None:
        keys = [key for key, _ in rows]
        ascending = all(map(lt, keys, keys[1:])) and self._last < (table, keys[0])
        longest = max(map(len, keys))
        if not ascending or not keys[0] or longest > _ROW_KEY_BYTES_MAX:
            raise DataLossError(
                f"block {self._blocks} of a snapshot has rows out of order, or keys of 0 or over "
                f"{_ROW_KEY_BYTES_MAX} bytes"
            )
        self._last = table, keys[-1]

    def _check_end(self, counts: bytes) -> None:
        found = (self._blocks, self._raw_bytes, *self.rows.values())
        if len(counts) != _END.size or _END.unpack(counts) != found:
            raise DataLossError(
                f"a snapshot's end does not agree with what came before it: {counts.hex()}, and there were "
                f"{self._blocks} blocks, {self._raw_bytes} bytes, {sum(self.rows.values())} rows"
            )
        self.is_complete = True
        self._read_head()  # raises when anything follows

    def _take_sealed(self, size: int, what: str) -> bytes | None:
        """Take `size` bytes and the checksum behind them; None: they are not all there yet."""
        if len(self._buffer) < size + _CHECKSUM.size:
            return None
        taken = bytes(memoryview(self._buffer)[: size + _CHECKSUM.size])
        del self._buffer[: size + _CHECKSUM.size]
        content = taken[:size]
        self._chain = xxh3_64_intdigest(content, self._chain)
        if taken[size:] != _CHECKSUM.pack(self._chain):
            raise DataLossError(
                f"the {what} of a snapshot is damaged, or does not follow what stands before it: its "
                "checksum does not match"
            )
        return content


def _decompress(stored: bytes, raw_bytes: int) -> bytes:
    try:
        # Looked at first, so that no frame can ask for all memory.
        found = zstd.get_frame_info(stored).decompressed_size
        if found != raw_bytes:
            raise DataLossError(f"a block of a snapshot holds {found} bytes, expected {raw_bytes}")
        raw = zstd.decompress(stored)
    except zstd.ZstdError as error:
        raise DataLossError(f"a block of a snapshot can't be decompressed: {error}") from error
    if len(raw) != raw_bytes:
        raise DataLossError(f"a block of a snapshot has {len(raw)} bytes, expected {raw_bytes}")
    return raw


def _unpack_rows(raw: bytes, count: int) -> list[Row]:
    keys_at = count * _ROW_LENGTHS_BYTES
    if not count or keys_at > len(raw):
        raise DataLossError(f"a block of a snapshot with {len(raw)} bytes can't have {count} rows")
    lengths = struct.unpack_from(f"<{count}H{count}I", raw)
    ends = accumulate(lengths, initial=keys_at)
    cuts = list(ends)
    if cuts[-1] != len(raw):
        raise DataLossError(f"the rows of a snapshot's block have {cuts[-1]} bytes, the block {len(raw)}")
    pieces = [raw[start:end] for start, end in pairwise(cuts)]
    return list(zip(pieces[:count], pieces[count:], strict=True))
