"""Writes to keys: gathered over one call of apply, so that each table is written once, in order of its keys.

A write needs the key's index row (from the gathered writes, else from the table) and makes a change; index
rows are packed only when they are flushed, once for each key. Revisions are given out here.
"""

from __future__ import annotations

from raftstate.machine.digest import BUCKET_MASK, SUM_MASK
from raftstate.machine.layout import (
    MILESTONE_VERSIONS,
    Change,
    ChangeKind,
    IndexRow,
    change_key,
    change_row,
    checksum,
    index_row,
    milestone_key,
    milestone_row,
    read_change,
    read_index,
    read_live_change,
)
from raftstate.machine.tables import Table, WriteTables
from raftstate.machine.types import (
    ANSWERS_BYTES_MAX,
    PAIR_OVERHEAD_BYTES_MAX,
    RANGE_DELETE_KEYS_MAX,
    Code,
    Fault,
    KeyValue,
    LongApply,
    covers,
)

# Looking up a member of an enum costs as much as packing a row.
_INDEX = Table.INDEX
_PUT = ChangeKind.PUT

_NEVER: IndexRow = (0, 0, 0, 0, 0, 0)
"""Stands for the index row of a key that is not there: no previous change, version 0, nothing to subtract."""


class Keyspace:
    """The keys as one call of apply sees and changes them.

    Args:
        tables: the caller's transaction.
        sums: the bucket sums, changed in place.
        revision: the latest one.
        keys_at_once_max: what range deletes may meet before `LongApply` is raised; None: no limit.
    """

    def __init__(
        self, tables: WriteTables, sums: list[int], revision: int, keys_at_once_max: int | None = None
    ) -> None:
        self.revision = revision
        self.pair_bytes = 0
        """Previous pairs read for this batch, those of refused deletes too, as `pair_bytes` counts."""
        self._batch_keys_left = RANGE_DELETE_KEYS_MAX
        self._keys_left = keys_at_once_max
        self._tables = tables
        self._sums = sums
        self._live: dict[bytes, IndexRow | None] = {}
        """Index rows not yet written; None: the key was deleted."""
        self._changes: dict[bytes, bytes] = {}
        self._milestones: list[tuple[bytes, bytes]] = []
        self._checksums: list[int] = []

    def begin_batch(self) -> None:
        """Give the next batch its own allowance of keys and of previous pairs."""
        self.pair_bytes = 0
        self._batch_keys_left = RANGE_DELETE_KEYS_MAX

    def put(self, key: bytes, value: bytes, want_previous: bool) -> KeyValue | None:
        """Write one key at the next revision; return the pair as it was, if wanted and there was one."""
        live = self._find(key) or _NEVER
        previous_revision, previous_sub, create, version, _, previous_checksum = live
        previous = self._pair(key, live) if want_previous and version else None
        self.revision = revision = self.revision + 1
        version += 1
        create = create or revision
        row_key = change_key(revision, 0)
        row, own = change_row(
            row_key, _PUT, key, value, (create, version, 0), (previous_revision, previous_sub)
        )
        self._changes[row_key] = row
        self._live[key] = (revision, 0, create, version, 0, own)
        self._checksums.append(own)
        self._sums[checksum(key) & BUCKET_MASK] += own - previous_checksum
        if not version % MILESTONE_VERSIONS:
            self._add_milestone(key, revision, 0, ChangeKind.PUT, version)
        return previous

    def delete(self, key: bytes, range_end: bytes, want_previous: bool) -> tuple[int, list[KeyValue]] | Fault:
        """Delete one key, or all of a range, at the next revision; when there is none, no revision is made.

        Returns:
            How many keys were deleted, and the pairs that they were if that is wanted. Or a
            RESOURCE_EXHAUSTED fault, with nothing done, when the ranges of this batch hold more than 100,000
            keys so far, or the wanted pairs are over 9 MiB.

        Raises `LongApply`.
        """
        if range_end:
            keys_left = self._batch_keys_left
            found = self._find_range(key, range_end)
            if len(found) > keys_left:
                return Fault(
                    Code.RESOURCE_EXHAUSTED,
                    f"the range deletes of a batch may meet {RANGE_DELETE_KEYS_MAX} keys, and this range "
                    f"holds more than the {keys_left} left; delete it in parts, each in a batch of its own",
                    "range_end",
                )
        else:
            found = self._find_one(key)
        pairs: list[KeyValue] = []
        if want_previous:
            bytes_end = self.pair_bytes + ANSWERS_BYTES_MAX
            for each, live in found:
                pairs.append(self._pair(each, live))
                if self.pair_bytes > bytes_end:
                    return Fault(
                        Code.RESOURCE_EXHAUSTED,
                        f"previous pairs may have {ANSWERS_BYTES_MAX} bytes in all, these have more; "
                        "delete without prev_kv, or in parts",
                        "prev_kv",
                    )
        if found:
            self.revision += 1
            for sub, (each, live) in enumerate(found):
                self._bury(each, live, sub)
        return len(found), pairs

    def take_checksums(self) -> list[int]:
        """Return the checksums of all changes made since this was last called, in order."""
        taken, self._checksums = self._checksums, []
        return taken

    def flush(self) -> None:
        """Write what was gathered to the tables."""
        rows = []
        for key, live in sorted(self._live.items()):
            if live is not None:
                rows.append((key, index_row(key, live)))
            else:
                self._tables.delete(Table.INDEX, key)
        if rows:
            self._tables.put_many(Table.INDEX, rows)
        if self._changes:
            self._tables.put_many(Table.CHANGES, list(self._changes.items()), append=True)
        if self._milestones:
            self._tables.put_many(Table.MILESTONES, sorted(self._milestones))
        for bucket, total in enumerate(self._sums):
            self._sums[bucket] = total & SUM_MASK
        self._live.clear()
        self._changes.clear()
        self._milestones.clear()

    # -- looking

    def _find(self, key: bytes) -> IndexRow | None:
        if key in self._live:
            return self._live[key]
        row = self._tables.get(_INDEX, key)
        return None if row is None else read_index(key, row)

    def _find_one(self, key: bytes) -> list[tuple[bytes, IndexRow]]:
        live = self._find(key)
        return [] if live is None else [(key, live)]

    def _find_range(self, key: bytes, range_end: bytes) -> list[tuple[bytes, IndexRow]]:
        """Return the live keys of a range, at most one more than this batch may still meet."""
        self.flush()  # rather than to merge the gathered rows into the scan: ranges are rare
        keys_max = self._batch_keys_left
        if self._keys_left is not None:
            keys_max = min(keys_max, self._keys_left)
        found = []
        for each, row in self._tables.scan(Table.INDEX, *covers(key, range_end)):
            found.append((each, read_index(each, row)))
            if len(found) > keys_max:
                break
        if self._keys_left is not None:
            if len(found) > self._keys_left:
                raise LongApply(f"a range holds more than the {self._keys_left} keys that this call had left")
            self._keys_left -= len(found)
        self._batch_keys_left = max(0, self._batch_keys_left - len(found))
        return found

    def _pair(self, key: bytes, live: IndexRow) -> KeyValue:
        pair = key_value(self._change(key, live), live[0])
        self.pair_bytes += pair_bytes(pair)
        return pair

    def _change(self, key: bytes, live: IndexRow) -> Change:
        row_key = change_key(live[0], live[1])
        row = self._changes.get(row_key)
        return read_live_change(self._tables, key, live) if row is None else read_change(row_key, row)

    # -- changing

    def _bury(self, key: bytes, live: IndexRow, sub: int) -> None:
        row_key = change_key(self.revision, sub)
        row, own = change_row(row_key, ChangeKind.DELETE, key, b"", (0, 0, 0), live[:2])
        self._changes[row_key] = row
        self._live[key] = None
        self._checksums.append(own)
        self._sums[checksum(key) & BUCKET_MASK] -= live[5]
        # Nothing in the index leads to a deletion, so that a read of the past can only find it here.
        self._add_milestone(key, self.revision, sub, ChangeKind.DELETE, 0)

    def _add_milestone(self, key: bytes, revision: int, sub: int, kind: ChangeKind, version: int) -> None:
        row_key = milestone_key(key, revision)
        self._milestones.append((row_key, milestone_row(row_key, sub, kind, version)))


def pair_bytes(pair: KeyValue) -> int:
    """Return what a pair takes in an answer, at most."""
    return len(pair.key) + len(pair.value) + PAIR_OVERHEAD_BYTES_MAX


def key_value(change: Change, revision: int) -> KeyValue:
    """Return the pair that a put at `revision` made."""
    return KeyValue(change.key, change.value, change.create_revision, revision, change.version, change.lease)
