"""Reads of keys at the latest revision or an earlier one, and of leases, within one read transaction.

Every row read is verified. How the past is found stands in raftstate.machine.history; here is what a reply
holds of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import NamedTuple

import msgspec

from raftstate.errors import OutOfRangeError, ResourceExhaustedError
from raftstate.machine.history import FoundRow, check_revision, find_at, key_value, rows_at
from raftstate.machine.layout import (
    LEASES_END,
    IndexRow,
    attachments,
    lease_key,
    read_attachment,
    read_index,
    read_lease,
    read_lease_key,
    read_live_change,
    read_meta,
)
from raftstate.machine.tables import ReadTables, Table
from raftstate.machine.types import PAIR_OVERHEAD_BYTES_MAX, SORT_KEYS_MAX, KeyValue

SORT_VALUES_BYTES_MAX = 64 << 20
"""What the values of a range that is sorted by them may have: all are held at once."""


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

    All methods raise `DataLossError` when a row that they read is damaged, or one that they are led to is
    missing.
    """

    def __init__(self, tables: ReadTables) -> None:
        meta = read_meta(tables)
        self.revision = meta.revision
        self.compacted_revision = meta.compacted_revision
        self.applied_index = meta.applied_index
        self._tables = tables

    def get(self, key: bytes, *, revision: int = 0) -> KeyValue | None:
        """Return the pair of a key as of a revision (0: the latest), or None when there was no such key.

        Raises `OutOfRangeError` when that revision is compacted, or lies in the future.
        """
        revision = self._past(revision)
        if revision:
            found = find_at(self._tables, key, revision)
            return None if found is None else key_value(found[1], found[0])
        row = self._tables.get(Table.INDEX, key)
        return None if row is None else _pair(self._tables, key, read_index(key, row))

    def range(
        self,
        start: bytes,
        end: bytes | None,
        *,
        limit: int = 0,
        keys_only: bool = False,
        count_only: bool = False,
        bytes_max: int | None = None,
        revision: int = 0,
        sort: Sort | None = None,
        skip_count: bool = False,
    ) -> RangePage:
        """Return the pairs of start <= key < end as of a revision.

        Args:
            start: the first key; may be longer than a key can be.
            end: the first key no longer wanted; None: no end.
            limit: at most so many pairs; 0: any number.
            keys_only: leave the values empty.
            count_only: only count; `more` is then False.
            bytes_max: stop before the pairs would take more than this in a reply, but give one at least.
            revision: as of when; 0: the latest.
            sort: the order of the pairs; None: ascending by key.
            skip_count: leave `count` 0, and look no further than the page.

        Raises:
            OutOfRangeError: that revision is compacted, or lies in the future; the detail holds the
                `compacted_revision` and the latest `revision`.
            ResourceExhaustedError: `sort` is not by ascending keys, and the range holds over 100,000 keys or,
                sorted by value, over 64 MiB of values.
        """
        return page_of(
            self._tables,
            rows_at(self._tables, start, end, self._past(revision)),
            limit=limit,
            keys_only=keys_only,
            count_only=count_only,
            bytes_max=bytes_max,
            sort=sort,
            skip_count=skip_count,
        )

    def lease(self, lease_id: int, clock_ms: int) -> LeaseStatus | None:
        """Return a lease as of lease clock `clock_ms`; None: there is no such lease."""
        row_key = lease_key(lease_id)
        row = self._tables.get(Table.HOT, row_key)
        return None if row is None else _lease_status(row_key, row, clock_ms)

    def leases(self, above: int, limit: int, clock_ms: int) -> tuple[list[LeaseStatus], bool]:
        """Return the leases with an id above `above`, in order, and whether there are others beyond them.

        Args:
            above: an id, whether or not it is in use.
            limit: at most so many; at least 1.
            clock_ms: the lease clock that tells what remains of them.
        """
        found: list[LeaseStatus] = []
        for row_key, row in self._tables.scan(Table.HOT, lease_key(above) + b"\x00", LEASES_END):
            if len(found) == limit:
                return found, True
            found.append(_lease_status(row_key, row, clock_ms))
        return found, False

    def lease_keys(self, lease_id: int, bytes_max: int) -> list[bytes]:
        """Return the keys attached to a lease, in order, as many as have `bytes_max` bytes together."""
        keys = []
        for row_key, row in self._tables.scan(Table.HOT, *attachments(lease_id)):
            key = read_attachment(row_key, row)
            bytes_max -= len(key)
            if bytes_max < 0:
                break
            keys.append(key)
        return keys

    def _past(self, revision: int) -> int:
        """Return `revision`, or 0 when that is the latest. Raises `OutOfRangeError`."""
        fault = check_revision(revision, self.compacted_revision, self.revision)
        if fault is not None:
            raise OutOfRangeError(
                fault.message,
                field=fault.field,
                detail={"compacted_revision": self.compacted_revision, "revision": self.revision},
            )
        return 0 if revision == self.revision else revision


def page_of(
    tables: ReadTables,
    rows: Iterable[FoundRow],
    *,
    limit: int,
    keys_only: bool,
    count_only: bool,
    bytes_max: int | None,
    sort: Sort | None,
    skip_count: bool = False,
) -> RangePage:
    """Make the page of a range from its rows, as `history.rows_at` yields them from the same tables.

    Arguments and errors as in `Reader.range`.
    """
    if sort is not None and sort != _BY_KEY and not count_only:
        rows = _sorted(tables, rows, sort)
    kvs: list[KeyValue] = []
    count = used_bytes = 0
    full = count_only
    for key, live, change in rows:
        count += 1
        if full:
            if skip_count and not count_only:
                return RangePage(kvs, more=True, count=0)
            continue
        if keys_only:
            pair = KeyValue(key, b"", live[2], live[0], live[3], live[4])
        elif change is None:
            pair = _pair(tables, key, live)
        else:
            pair = key_value(change, live[0])
        used_bytes += len(key) + len(pair.value) + PAIR_OVERHEAD_BYTES_MAX
        if kvs and bytes_max is not None and used_bytes > bytes_max:
            if skip_count:
                return RangePage(kvs, more=True, count=0)
            full = True
            continue
        kvs.append(pair)
        full = len(kvs) == limit
    if skip_count and not count_only:
        return RangePage(kvs, more=False, count=0)
    return RangePage(kvs, more=not count_only and count > len(kvs), count=count)


_BY_KEY = Sort(SortTarget.KEY, descending=False)

_FIELDS = {SortTarget.VERSION: 3, SortTarget.CREATE_REVISION: 2, SortTarget.MOD_REVISION: 0}
"""Where in an index row a sort finds what it looks at."""


def _sorted(tables: ReadTables, rows: Iterable[FoundRow], sort: Sort) -> Iterator[FoundRow]:
    """Yield the rows in order of `sort`. Only what they are sorted by is held, not their changes."""
    held: list[tuple[bytes | int, bytes, IndexRow]] = []
    values_bytes = 0
    for key, live, change in rows:
        if len(held) == SORT_KEYS_MAX:
            raise ResourceExhaustedError(
                f"a range sorted otherwise than by ascending keys may hold {SORT_KEYS_MAX} keys, this one "
                "holds more; read it in order of its keys, or in parts",
                field="sort_target",
            )
        if sort.target is SortTarget.VALUE:
            value = (change or read_live_change(tables, key, live)).value
            values_bytes += len(value)
            if values_bytes > SORT_VALUES_BYTES_MAX:
                raise ResourceExhaustedError(
                    f"the values of a range sorted by them may have {SORT_VALUES_BYTES_MAX} bytes, these "
                    "have more; read it in order of its keys, or in parts",
                    field="sort_target",
                )
            held.append((value, key, live))
        else:
            held.append((key if sort.target is SortTarget.KEY else live[_FIELDS[sort.target]], key, live))
    held.sort(key=lambda row: row[0], reverse=sort.descending)
    for _, key, live in held:
        yield key, live, None


def _pair(tables: ReadTables, key: bytes, live: IndexRow) -> KeyValue:
    return key_value(read_live_change(tables, key, live), live[0])


def _lease_status(row_key: bytes, row: bytes, clock_ms: int) -> LeaseStatus:
    renewed_ms, ttl_ms, key_count = read_lease(row_key, row)
    remaining_ms = max(0, renewed_ms + ttl_ms - clock_ms)
    return LeaseStatus(read_lease_key(row_key), ttl_ms, min(ttl_ms, remaining_ms), key_count)
