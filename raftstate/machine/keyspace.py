"""Writes to keys: gathered over one call of apply, so that each table is written once, in order of its keys.

A write needs the key's index row (from the gathered writes, else from the table) and makes a change; index
rows are packed only when they are flushed, once for each key. Revisions are given out here.

A put that is a command of its own is done here; all other commands are a `Step` (raftstate.machine.step).
"""

from __future__ import annotations

from raftstate.machine.budget import Budget
from raftstate.machine.digest import BUCKET_MASK, SUM_MASK
from raftstate.machine.history import key_value
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
from raftstate.machine.leases import Leases
from raftstate.machine.tables import Table, WriteTables
from raftstate.machine.types import Fault, KeyValue

# Looking up a member of an enum costs as much as packing a row.
_INDEX = Table.INDEX
_PUT = ChangeKind.PUT

NEVER: IndexRow = (0, 0, 0, 0, 0, 0)
"""Stands for the index row of a key that is not there: no previous change, version 0, nothing to subtract."""


class Keyspace:
    """The keys as one call of apply sees and changes them.

    Args:
        tables: the caller's transaction.
        sums: the bucket sums, changed in place.
        leases: all of them.
        revision: the latest one.
        compacted_revision: the last compaction's.
        budget: what may be looked at.
    """

    def __init__(
        self,
        tables: WriteTables,
        sums: list[int],
        leases: Leases,
        *,
        revision: int,
        compacted_revision: int = 0,
        budget: Budget | None = None,
    ) -> None:
        self.tables = tables
        self.leases = leases
        self.revision = revision
        self.compacted_revision = compacted_revision
        self.budget = budget or Budget()
        self.sums = sums
        # What was written and is not flushed, in the order it was written.
        self.live: dict[bytes, IndexRow | None] = {}
        """Index rows; None: the key was deleted."""
        self.changes: dict[bytes, bytes] = {}
        self.milestones: list[tuple[bytes, bytes]] = []
        self.erased: list[bytes] = []
        """Keys whose bytes no stored answer may keep, until `take_erased`."""
        self.sum_changes: list[tuple[bytes, int]] | None = None
        """If not None: each key that was changed, and by how much that changed the sum of its bucket."""
        self.checksums: list[int] = []
        """Of the changes that the digest has not covered yet."""

    def put(
        self, key: bytes, value: bytes, want_previous: bool, lease: int, sub: int = 0
    ) -> KeyValue | Fault | None:
        """Write one key; return the pair as it was, if wanted and there was one.

        Args:
            key: checked, as all of the command.
            value: its new value.
            want_previous: whether the pair is wanted.
            lease: the lease to attach the key to, and no other; 0: to none.
            sub: the number of the change in its revision. With the first one, 0, the next revision begins.

        Returns a fault, with nothing done, when the lease is not there or can't hold another key.
        """
        # Nearly all commands are this one: it saves the calls that it could share with others.
        if key in self.live:
            live = self.live[key] or NEVER
        else:
            row = self.tables.get(_INDEX, key)
            live = NEVER if row is None else read_index(key, row)
        previous_revision, previous_sub, create, version, old_lease, previous_checksum = live
        if lease and lease != old_lease:
            fault = self.leases.check_room(lease)
            if fault is not None:
                return fault
        previous = self.pair(key, live) if want_previous and version else None
        if not sub:
            self.revision += 1
        revision = self.revision
        version += 1
        create = create or revision
        row_key = change_key(revision, sub)
        row, own = change_row(
            row_key, _PUT, key, value, (create, version, lease), (previous_revision, previous_sub)
        )
        self.changes[row_key] = row
        self.live[key] = (revision, sub, create, version, lease, own)
        self.checksums.append(own)
        bucket = checksum(key) & BUCKET_MASK
        self.sums[bucket] = (self.sums[bucket] + own - previous_checksum) & SUM_MASK
        if self.sum_changes is not None:
            self.sum_changes.append((key, own - previous_checksum))
        if not version % MILESTONE_VERSIONS:
            self._add_milestone(key, revision, sub, ChangeKind.PUT, version)
        if lease != old_lease:
            self.leases.move(key, old_lease, lease)
        return previous

    def bury(self, key: bytes, live: IndexRow, sub: int) -> None:
        """Delete a key that `live` stands for until now; `sub` as in `put`."""
        if not sub:
            self.revision += 1
        row_key = change_key(self.revision, sub)
        row, own = change_row(row_key, ChangeKind.DELETE, key, b"", (0, 0, 0), live[:2])
        self.changes[row_key] = row
        self.live[key] = None
        self.checksums.append(own)
        bucket = checksum(key) & BUCKET_MASK
        self.sums[bucket] = (self.sums[bucket] - live[5]) & SUM_MASK
        if self.sum_changes is not None:
            self.sum_changes.append((key, -live[5]))
        # Nothing in the index leads to a deletion, so that a read of the past can only find it here.
        self._add_milestone(key, self.revision, sub, ChangeKind.DELETE, 0)
        if live[4]:
            self.leases.move(key, live[4], 0)

    def erase(self, key: bytes) -> bool:
        """Delete a key, if it is there, and compact its history away; return whether it was."""
        live = self.find(key)
        if live is not None:
            self.bury(key, live, 0)
        # A compaction leaves what stands at its own revision: that must not be the deletion, which names the
        # key.
        self.revision += 1
        row_key = change_key(self.revision, 0)
        row, own = change_row(row_key, ChangeKind.NOTHING, b"", b"", (0, 0, 0), (0, 0))
        self.changes[row_key] = row
        self.checksums.append(own)
        self.compacted_revision = self.revision
        self.erased.append(key)
        return live is not None

    def take_erased(self) -> set[bytes]:
        """Return the keys that were erased since this was last called."""
        taken, self.erased = set(self.erased), []
        return taken

    def take_checksums(self) -> list[int]:
        """Return the checksums of all changes made since this was last called, in order."""
        taken, self.checksums = self.checksums, []
        return taken

    def flush(self) -> None:
        """Write what was gathered to the tables."""
        rows = []
        for key, live in sorted(self.live.items()):
            if live is not None:
                rows.append((key, index_row(key, live)))
            else:
                self.tables.delete(Table.INDEX, key)
        if rows:
            self.tables.put_many(Table.INDEX, rows)
        if self.changes:
            self.tables.put_many(Table.CHANGES, list(self.changes.items()), append=True)
        if self.milestones:
            self.tables.put_many(Table.MILESTONES, sorted(self.milestones))
        self.live.clear()
        self.changes.clear()
        self.milestones.clear()

    # -- looking

    def find(self, key: bytes) -> IndexRow | None:
        """Return the index row of a key as of now; None: it is not there."""
        if key in self.live:
            return self.live[key]
        row = self.tables.get(_INDEX, key)
        return None if row is None else read_index(key, row)

    def change(self, key: bytes, live: IndexRow) -> Change:
        """Return the change that an index row of `key` names."""
        row_key = change_key(live[0], live[1])
        row = self.changes.get(row_key)
        return read_live_change(self.tables, key, live) if row is None else read_change(row_key, row)

    def pair(self, key: bytes, live: IndexRow) -> KeyValue:
        """Return the previous pair of a key, as an answer gives it, counted."""
        pair = key_value(self.change(key, live), live[0])
        self.budget.add_previous(pair)
        return pair

    def _add_milestone(self, key: bytes, revision: int, sub: int, kind: ChangeKind, version: int) -> None:
        row_key = milestone_key(key, revision)
        self.milestones.append((row_key, milestone_row(row_key, sub, kind, version)))
