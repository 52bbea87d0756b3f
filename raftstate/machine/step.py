"""A step: several reads and writes at one revision, that are done as a whole or not at all.

What a step writes is gathered with everything else; to undo it is to take that out again. So nothing may be
flushed while a step is under way: one that looks at ranges has all before it flushed as it begins, and merges
its own writes into what the table holds.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import islice

from raftstate.errors import DataLossError
from raftstate.machine.digest import BUCKET_MASK, SUM_MASK
from raftstate.machine.keyspace import NEVER, Keyspace
from raftstate.machine.layout import MILESTONE_REVISION_BYTES, IndexRow, checksum, name_key, read_index
from raftstate.machine.leases import Lease
from raftstate.machine.tables import ReadTables, Table
from raftstate.machine.types import Fault, KeyValue, covers


class Step:
    """One command's work on the keys. What it wrote stays, unless it is ended with `undo`.

    Args:
        keyspace: what it reads and writes.
        looks_at_tables: whether it reads ranges, or the past.
    """

    def __init__(self, keyspace: Keyspace, *, looks_at_tables: bool) -> None:
        if looks_at_tables:
            keyspace.flush()
        keyspace.budget.begin_command()
        self.tables: ReadTables = _View(keyspace)
        """The tables with the changes that were gathered; with the index as before the step."""
        self._keyspace = keyspace
        self._budget = keyspace.budget
        self._revision_before = keyspace.revision
        self._milestones_start = len(self._keyspace.milestones)
        self._written: list[tuple[bytes, IndexRow, bool]] = []
        """Keys in the order of their changes, each with what stood for it before, and whether that was
        gathered. None is written twice."""
        self._keys: list[bytes] = []
        """The same keys in order, for ranges."""

    def undo(self) -> None:
        """Take back all that was written. What was counted stays counted."""
        keyspace = self._keyspace
        for key, before, was_gathered in reversed(self._written):
            now = keyspace.live[key] or NEVER
            bucket = checksum(key) & BUCKET_MASK
            keyspace.sums[bucket] = (keyspace.sums[bucket] - now[5] + before[5]) & SUM_MASK
            if keyspace.sum_changes is not None:
                keyspace.sum_changes.append((key, before[5] - now[5]))
            if now[4] != before[4]:
                keyspace.leases.move(key, now[4], before[4])
            if was_gathered:
                keyspace.live[key] = None if before is NEVER else before
            else:
                del keyspace.live[key]
            keyspace.changes.popitem()
            keyspace.checksums.pop()
        del keyspace.milestones[self._milestones_start :]
        keyspace.revision = self._revision_before

    # -- reading

    def past(self) -> ReadTables:
        """Return the tables for one read of the past; see `_Past`."""
        return _Past(self._keyspace)

    def find(self, key: bytes) -> IndexRow | None:
        """Return the index row of a key, as the step sees it; None: it is not there."""
        return self._keyspace.find(key)

    def find_range(
        self, key: bytes, range_end: bytes, count_max: int
    ) -> tuple[list[tuple[bytes, IndexRow]], int]:
        """Return keys and index rows of a range in order, as the step sees it, and how many keys it looked
        at, which are `count_max` at most: those too that the step has deleted."""
        found = []
        count = 0
        for each, row in islice(self._scan(*covers(key, range_end)), count_max):
            count += 1
            if row is not None:
                found.append((each, row))
        return found, count

    def _scan(self, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, IndexRow | None]]:
        """Yield the keys of the table and of the step; None: the step has deleted it."""
        keys, at = self._keys, bisect_left(self._keys, start)
        keys_end = len(keys) if end is None else bisect_left(keys, end)
        live = self._keyspace.live
        for key, row in self._keyspace.tables.scan(Table.INDEX, start, end):
            while at < keys_end and keys[at] < key:
                yield keys[at], live[keys[at]]
                at += 1
            if at < keys_end and keys[at] == key:
                yield key, live[key]
                at += 1
            else:
                yield key, read_index(key, row)
        for own in range(at, keys_end):
            yield keys[own], live[keys[own]]

    # -- writing

    def put(self, key: bytes, value: bytes, want_previous: bool, lease: int) -> KeyValue | Fault | None:
        """Write one key; return the pair as it was, if wanted and there was one.

        Returns a fault when the lease is not there or can't hold another key, or the answer gets too large.
        """
        written = (key, self.find(key) or NEVER, key in self._keyspace.live)
        done = self._keyspace.put(key, value, want_previous, lease, len(self._written))
        if isinstance(done, Fault):
            return done
        self._written.append(written)
        insort(self._keys, key)
        return self._budget.check_pairs() or done

    def delete(self, key: bytes, range_end: bytes, want_previous: bool) -> tuple[int, list[KeyValue]] | Fault:
        """Delete one key, or all of a range.

        Returns:
            How many keys were deleted, and the pairs that they were if that is wanted. Or a
            RESOURCE_EXHAUSTED fault, with nothing deleted, when the ranges of this batch have met more than
            100,000 keys so far, or the wanted pairs are over 9 MiB or, since machine version 2, over 10,000.

        Raises `LongApply`.
        """
        if range_end:
            found, count = self.find_range(key, range_end, self._budget.deletes_end)
            fault = self._budget.meet_deletes(count)
            if fault is not None:
                return fault
        else:
            own = self.find(key)
            found = [] if own is None else [(key, own)]
        pairs: list[KeyValue] = []
        if want_previous:
            for each, live in found:
                pairs.append(self._keyspace.pair(each, live))
                fault = self._budget.check_pairs()
                if fault is not None:
                    return fault
        self._bury(found)
        return len(found), pairs

    def revoke(self, lease: Lease) -> int:
        """Delete the keys of a lease, in order, and end it; return how many they were. It can't be undone.

        Raises `DataLossError` when a key that is attached to it is not there, or one is missing.
        """
        found = []
        for key in self._keyspace.leases.keys(self._keyspace.tables, lease.id):
            live = self.find(key)
            if live is None or live[4] != lease.id:
                raise DataLossError(
                    f"{name_key(key)} is attached to lease {lease.id}, and its index row denies it"
                )
            found.append((key, live))
        if len(found) != lease.key_count:
            raise DataLossError(f"lease {lease.id} holds {lease.key_count} keys, and {len(found)} were found")
        self._bury(found)
        self._keyspace.leases.end(lease)
        return len(found)

    def _bury(self, found: list[tuple[bytes, IndexRow]]) -> None:
        for key, live in found:
            self._written.append((key, live, key in self._keyspace.live))
            self._keyspace.bury(key, live, len(self._written) - 1)
        if found:
            # Only those between are sorted anew, which the range met as well.
            start = bisect_left(self._keys, found[0][0])
            end = bisect_left(self._keys, found[-1][0])
            self._keys[start:end] = sorted(self._keys[start:end] + [key for key, _ in found])


class _View:
    """`ReadTables` as a step sees them, which count what is read for the call of apply."""

    def __init__(self, keyspace: Keyspace) -> None:
        self._tables = keyspace.tables
        self._changes = keyspace.changes
        self._budget = keyspace.budget

    def get(self, table: Table, key: bytes) -> bytes | None:
        """See `ReadTables.get`."""
        row = self._changes.get(key) if table is Table.CHANGES else None
        if row is None:
            row = self._tables.get(table, key)
        if row is not None:
            self._budget.spend(0, len(row))
        return row

    def scan(
        self, table: Table, start: bytes = b"", end: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """See `ReadTables.scan`."""
        return self._tables.scan(table, start, end)

    def count(self, table: Table) -> int:
        """See `ReadTables.count`."""
        return self._tables.count(table)


class _Past(_View):
    """A view that also counts all that a read of the past looks at, for the batch.

    But not the milestones up to the last compaction: no two nodes need have the same of them, as each sweeps
    when it finds the time. Nor more than one of a key: how many of them are looked at depends on the others.
    Those are counted for the call alone.

    `get` and the iterators of `scan` raise `ReadsSpentError`.
    """

    def __init__(self, keyspace: Keyspace) -> None:
        super().__init__(keyspace)
        self._compacted = keyspace.compacted_revision.to_bytes(MILESTONE_REVISION_BYTES, "big")
        self._milestone_of = b""
        """Whose milestone was counted last."""

    def get(self, table: Table, key: bytes) -> bytes | None:
        self._budget.meet_past(1)
        return super().get(table, key)

    def scan(
        self, table: Table, start: bytes = b"", end: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        budget = self._budget
        for key, row in super().scan(table, start, end):
            if table is not Table.MILESTONES:
                budget.meet_past(1)
            elif key[-MILESTONE_REVISION_BYTES:] <= self._compacted or self._is_counted(key):
                budget.spend(1)
            else:
                budget.meet_past(1)
            yield key, row

    def _is_counted(self, row_key: bytes) -> bool:
        own = row_key[:-MILESTONE_REVISION_BYTES]
        before, self._milestone_of = self._milestone_of, own
        return own == before
