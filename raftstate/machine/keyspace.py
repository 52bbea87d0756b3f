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
from raftstate.machine.types import ANSWERS_BYTES_MAX, RANGE_DELETE_KEYS_MAX, Code, Fault, KeyValue, covers

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
    """

    def __init__(self, tables: WriteTables, sums: list[int], revision: int) -> None:
        self.revision = revision
        self._tables = tables
        self._sums = sums
        self._live: dict[bytes, IndexRow | None] = {}
        """Index rows not yet written; None: the key was deleted."""
        self._changes: dict[bytes, bytes] = {}
        self._milestones: list[tuple[bytes, bytes]] = []
        self._checksums: list[int] = []

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
            RESOURCE_EXHAUSTED fault, with nothing done, when there are more than 100,000 keys, or the wanted
            pairs are over 16 MiB.
        """
        found = self._find_range(key, range_end) if range_end else self._find_one(key)
        if len(found) > RANGE_DELETE_KEYS_MAX:
            return Fault(
                Code.RESOURCE_EXHAUSTED,
                f"a delete may remove {RANGE_DELETE_KEYS_MAX} keys, the range holds more; delete it in parts",
                "range_end",
            )
        pairs: list[KeyValue] = []
        if want_previous:
            pair_bytes = 0
            for each, live in found:
                pairs.append(self._pair(each, live))
                pair_bytes += len(each) + len(pairs[-1].value)
                if pair_bytes > ANSWERS_BYTES_MAX:
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
        """Return the live keys of a range, at most one more than may be deleted at once."""
        self.flush()  # rather than to merge the gathered rows into the scan: ranges are rare
        found = []
        for each, row in self._tables.scan(Table.INDEX, *covers(key, range_end)):
            found.append((each, read_index(each, row)))
            if len(found) > RANGE_DELETE_KEYS_MAX:
                break
        return found

    def _pair(self, key: bytes, live: IndexRow) -> KeyValue:
        return key_value(self._change(key, live), live[0])

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


def key_value(change: Change, revision: int) -> KeyValue:
    """Return the pair that a put at `revision` made."""
    return KeyValue(change.key, change.value, change.create_revision, revision, change.version, change.lease)
