"""Reads of keys at the latest revision, within one read transaction. Every row read is verified."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import msgspec

from raftstate.machine.keyspace import key_value
from raftstate.machine.layout import read_index, read_live_change, read_meta
from raftstate.machine.tables import ReadTables, Table
from raftstate.machine.types import KEY_BYTES_MAX, PAIR_OVERHEAD_BYTES_MAX, KeyValue


class RangePage(msgspec.Struct, frozen=True):
    """Pairs of a range, in order, and how many it holds. `more`: there are pairs beyond those given."""

    kvs: list[KeyValue]
    more: bool
    count: int


class SortTarget(IntEnum):
    """What a range is sorted by. The numbers are those of the wire's SortTarget."""

    KEY = 0
    VERSION = 1
    CREATE_REVISION = 2
    MOD_REVISION = 3
    VALUE = 4


class Sort(NamedTuple):
    """An order of pairs. Those equal in `target` stay in ascending order of key, as in etcd."""

    target: SortTarget
    descending: bool


class LeaseStatus(msgspec.Struct, frozen=True):
    """A lease. `remaining_ms`: what is left of its time to live at the lease clock that was asked with, at
    least 0."""

    id: int
    ttl_ms: int
    remaining_ms: int
    key_count: int


class Reader:
    """Reads one state.

    Args:
        tables: a read transaction, open for as long as the reader is used.

    All methods raise `DataLossError` when a row that they read is damaged.
    """

    def __init__(self, tables: ReadTables) -> None:
        meta = read_meta(tables)
        self.revision = meta.revision
        self.applied_index = meta.applied_index
        self._tables = tables

    def get(self, key: bytes) -> KeyValue | None:
        """Return the pair of a key, or None when there is no such key."""
        row = self._tables.get(Table.INDEX, key)
        return None if row is None else self._pair(key, row)

    def range(
        self,
        start: bytes,
        end: bytes | None,
        *,
        limit: int = 0,
        keys_only: bool = False,
        count_only: bool = False,
        bytes_max: int | None = None,
    ) -> RangePage:
        """Return the pairs of start <= key < end, in order of key.

        Args:
            start: the first key; may be longer than a key can be.
            end: the first key no longer wanted; None: no end.
            limit: at most so many pairs; 0: any number.
            keys_only: leave the values empty.
            count_only: only count; `more` is then False.
            bytes_max: stop before the pairs would take more than this in a reply, but give one at least.
        """
        if len(start) > KEY_BYTES_MAX:
            # No key is that long, and LMDB can't seek to what is longer than its own limit.
            start = start[:KEY_BYTES_MAX] + b"\x00"
        kvs: list[KeyValue] = []
        count = used_bytes = 0
        full = count_only
        for key, row in self._tables.scan(Table.INDEX, start, end):
            count += 1
            if full:
                read_index(key, row)  # a damaged key may not have been in the range at all
                continue
            pair = self._key_only(key, row) if keys_only else self._pair(key, row)
            used_bytes += len(key) + len(pair.value) + PAIR_OVERHEAD_BYTES_MAX
            if kvs and bytes_max is not None and used_bytes > bytes_max:
                full = True
                continue
            kvs.append(pair)
            full = len(kvs) == limit
        return RangePage(kvs, more=not count_only and count > len(kvs), count=count)

    def _pair(self, key: bytes, row: bytes) -> KeyValue:
        live = read_index(key, row)
        return key_value(read_live_change(self._tables, key, live), live[0])

    def _key_only(self, key: bytes, row: bytes) -> KeyValue:
        revision, _, create, version, lease, _ = read_index(key, row)
        return KeyValue(key, b"", create, revision, version, lease)
