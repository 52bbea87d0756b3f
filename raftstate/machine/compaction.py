"""Physical compaction: takes away, in slices, the rows that no read from the compacted revision on meets.

A compaction at C is logical first: from its log entry on, reads before C are refused. The rows that only
those would meet go later, here, on each node for itself; nothing but the room they take shows how far it is.
They are the changes before C whose place another change of the same key took, at C or before; deletions
before C, and revisions that changed nothing; and the milestones of all these. What is at C or later all
stays, since watches may begin at C.

Each change names the one whose place it took, so that one walk over the changes from the last compaction to C
finds all: what a change at C or before replaced goes, and so does the change itself if it is a deletion
before C. A deletion at C stays until the next compaction, which therefore walks the changes at C once more.
Where the walk stands is a row, written with the deletions: a crash takes back both or neither.
"""

from __future__ import annotations

from raftstate.machine.history import change_rows
from raftstate.machine.layout import (
    MILESTONE_VERSIONS,
    SWEEP_KEY,
    ChangeKind,
    SweepProgress,
    change_key,
    milestone_key,
    read_change_key,
    read_links,
    read_sweep,
    sweep_row,
)
from raftstate.machine.tables import ReadTables, Table, WriteTables

SWEEP_BYTES_MAX = 1 << 20
"""Rows of a slice, read to verify them: a millisecond or so. The last one may go beyond."""
SWEEP_WINDOW_CHANGES = 32_768
"""Some 5 MB of memory while a sweep is under way, and 10 ms to sort. Where keys are changed evenly, most rows
that so many changes doom have others on their page."""

_NEVER = SweepProgress(1, 0, 0)


def pending(tables: ReadTables, compacted_revision: int) -> bool:
    """Return whether `sweep` has anything left to do. Raises `DataLossError` when its row is damaged."""
    return (read_sweep(tables) or _NEVER).revision <= compacted_revision


class Sweeper:
    """Walks and deletes, a slice at a time: a window of changes is walked first, then what it makes
    superfluous is deleted in the order of CHANGES.

    The changes that others replaced lie scattered; sorted over a window, those on one page go together, and
    the page is written once. What was walked is in memory only. That is sound because what a change dooms is
    itself, or lies before it: once all doomed rows up to a position are gone, whatever the changes up to
    there have doomed is gone too, and a walk that begins there anew misses nothing.
    """

    def __init__(self) -> None:
        self._start = (0, 0)
        """Where the window begins: (revision, sub) of a change."""
        self._at = (0, 0)
        """Where the walk goes on, or has ended; (0, 0): there is no window."""
        self._target = 0
        self._walked = 0
        self._doomed: list[tuple[bytes, bytes]] = []
        """(key of a row of CHANGES, key of its milestone or nothing), as the walk finds them; once the window
        is walked, those that are left, in descending order."""
        self._is_walking = False

    def sweep(self, tables: WriteTables, compacted_revision: int, changes_max: int) -> int:
        """Go on with what is left up to `compacted_revision`.

        Args:
            tables: the caller's transaction. When it does not commit, a new `Sweeper` must go on. No writes
                to keys may be gathered outside of it.
            compacted_revision: of the last compaction, 0 for none; never less than in an earlier call.
            changes_max: walk or delete at most so many; at least 1. A slice also ends after 1 MiB of walked
                rows.

        Returns:
            How many were walked or deleted. 0: all were before.

        Raises `DataLossError` when a change on the way is damaged or missing.
        """
        if self._at == (0, 0) and not self._begin(tables, compacted_revision):
            return 0
        done = self._walk(tables, changes_max) if self._is_walking else 0
        if not self._is_walking:
            done += self._delete(tables, changes_max - done)
        return done

    def _begin(self, tables: WriteTables, compacted_revision: int) -> bool:
        """Begin a window, if there is anything left to do."""
        revision, sub, target = read_sweep(tables) or _NEVER
        if revision >= target and compacted_revision > target:
            revision, sub = target, 0  # for its deletions
        if revision > compacted_revision:
            return False
        self._start = self._at = (revision, sub)
        self._target = compacted_revision
        self._walked = 0
        self._is_walking = True
        return True

    def _walk(self, tables: WriteTables, changes_max: int) -> int:
        """Collect what the next changes of the window doom; return how many they were."""
        walked = used_bytes = 0
        doomed = self._doomed
        for row_key, row in change_rows(tables, *self._at, self._target + 1):
            if walked == changes_max or used_bytes >= SWEEP_BYTES_MAX:
                return walked
            if self._walked == SWEEP_WINDOW_CHANGES:
                break
            own_revision, own_sub = read_change_key(row_key)
            kind, key, version, previous_revision, previous_sub = read_links(row_key, row)
            is_delete = kind == ChangeKind.DELETE
            if kind == ChangeKind.NOTHING:
                if own_revision < self._target:
                    doomed.append((row_key, b""))
            elif version != 1:
                is_milestone = is_delete or not (version - 1) % MILESTONE_VERSIONS
                milestone = milestone_key(key, previous_revision) if is_milestone else b""
                doomed.append((change_key(previous_revision, previous_sub), milestone))
            if is_delete and own_revision < self._target:
                doomed.append((row_key, milestone_key(key, own_revision)))
            self._at = own_revision, own_sub + 1
            self._walked += 1
            walked += 1
            used_bytes += len(row)
        else:
            self._at = self._target + 1, 0
        doomed.sort(reverse=True)
        self._is_walking = False
        return walked

    def _delete(self, tables: WriteTables, rows_max: int) -> int:
        """Delete the next doomed rows; return how many."""
        doomed = self._doomed
        deleted = 0
        position = self._start
        while doomed and deleted < rows_max:
            row_key, milestone = doomed.pop()
            tables.delete(Table.CHANGES, row_key)
            if milestone:
                tables.delete(Table.MILESTONES, milestone)
            revision, sub = read_change_key(row_key)
            position = revision, sub + 1
            deleted += 1
        if not doomed:
            position, self._at = self._at, (0, 0)
        position = max(position, self._start)
        tables.put(Table.HOT, SWEEP_KEY, sweep_row(SweepProgress(*position, self._target)))
        return deleted
