"""Physical compaction: takes away, in slices, the rows that no read from the compacted revision on meets.

A compaction at C is logical first: from its log entry on, reads before C are refused. The rows that only
those would meet go later, here, on each node for itself; nothing but the room they take shows how far it is.
They are the changes before C whose place another change of the same key took, at C or before; deletions
before C; and the milestones of both. What is at C or later all stays, since watches may begin at C.

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

_NEVER = SweepProgress(1, 0, 0)


def pending(tables: ReadTables, compacted_revision: int) -> bool:
    """Return whether `sweep` has anything left to do. Raises `DataLossError` when its row is damaged."""
    return (read_sweep(tables) or _NEVER).revision <= compacted_revision


def sweep(tables: WriteTables, compacted_revision: int, changes_max: int) -> int:
    """Walk the next changes up to `compacted_revision`, and delete the rows that they make superfluous.

    Args:
        tables: the caller's transaction; nothing here is done unless it commits. No writes to keys may be
            gathered outside of it.
        compacted_revision: of the last compaction, 0 for none; never less than in an earlier call.
        changes_max: walk at most so many; at least 1. A slice also ends after 1 MiB of them.

    Returns:
        How many were walked. 0: all were before.

    Raises `DataLossError` when a change on the way is damaged or missing.
    """
    progress = read_sweep(tables) or _NEVER
    revision, sub, target = progress
    if revision >= target and compacted_revision > target:
        revision, sub = target, 0  # for its deletions
    if revision > compacted_revision:
        return 0
    walked = used_bytes = 0
    changes: list[bytes] = []
    milestones: list[bytes] = []
    # First all that is to go, then the deletions: no cursor stands in a table while rows of it are deleted.
    for row_key, row in change_rows(tables, revision, sub, compacted_revision + 1):
        own_revision, own_sub = read_change_key(row_key)
        kind, key, version, previous_revision, previous_sub = read_links(row_key, row)
        is_delete = kind == ChangeKind.DELETE
        if version != 1:
            changes.append(change_key(previous_revision, previous_sub))
            if is_delete or not (version - 1) % MILESTONE_VERSIONS:
                milestones.append(milestone_key(key, previous_revision))
        if is_delete and own_revision < compacted_revision:
            changes.append(row_key)
            milestones.append(milestone_key(key, own_revision))
        revision, sub = own_revision, own_sub + 1
        walked += 1
        used_bytes += len(row)
        if walked == changes_max or used_bytes >= SWEEP_BYTES_MAX:
            break
    else:
        revision, sub = compacted_revision + 1, 0
    for row_key in sorted(changes):
        tables.delete(Table.CHANGES, row_key)
    for row_key in sorted(milestones):
        tables.delete(Table.MILESTONES, row_key)
    tables.put(Table.HOT, SWEEP_KEY, sweep_row(SweepProgress(revision, sub, compacted_revision)))
    return walked
