"""Reads of the past: a key, a range, or the changes themselves, as of a revision. Every row read is verified.

A key at revision R: its index row, if that is no newer than R. Else the chain of its changes is walked back,
from the first milestone after R (or, if there is none, from the index row) to the first change at R or
before. Milestones stand at every 16th version and at every deletion, so these are at most 16 steps, whatever
the length of the chain; and a chain never leads past the creation of its key, since the deletion before it
is a milestone of its own. A key that the index does not hold, with no milestone after R, was not there at R.

Compaction at C takes away what no read at C or later meets: see raftstate.machine.compaction. So a row that a
read from C on is led to and does not find was lost, which is `DataLossError`.
"""

from __future__ import annotations

from collections.abc import Iterator

from raftstate.errors import DataLossError
from raftstate.machine.layout import (
    MILESTONE_REVISION_BYTES,
    MILESTONE_VERSIONS,
    Change,
    ChangeKind,
    IndexRow,
    change_key,
    milestone_key,
    milestones_after,
    milestones_start,
    name_key,
    read_change,
    read_change_key,
    read_index,
    read_links,
    read_live_change,
    read_milestone,
    read_milestone_key,
)
from raftstate.machine.tables import ReadTables, Table
from raftstate.machine.types import KEY_BYTES_MAX, Code, Fault, KeyValue

# Looking up a member of an enum costs as much as unpacking a row.
_CHANGES, _INDEX, _MILESTONES = Table.CHANGES, Table.INDEX, Table.MILESTONES
_DELETE = ChangeKind.DELETE

_FIRST_REVISION = 2
"""Of a change: a store begins at revision 1, with none."""

_ROWS_BEFORE_SEEK = 8
"""Milestones to pass one by one before a seek is thought of, which costs about as much."""

FoundRow = tuple[bytes, IndexRow, Change | None]
"""A key, its index row as of some revision, and its change if that had to be read to know."""


def check_revision(revision: int, compacted_revision: int, current_revision: int) -> Fault | None:
    """Return the OUT_OF_RANGE fault of a read at `revision`, or None when it can be read.

    Args:
        revision: what is asked for; 0: the latest, which can always be read.
        compacted_revision: the last compaction's; 0: none.
        current_revision: the latest one.
    """
    if not revision or compacted_revision <= revision <= current_revision:
        return None
    why = "is compacted" if revision < compacted_revision else "lies in the future"
    return Fault(
        Code.OUT_OF_RANGE,
        f"revision {revision} {why}; valid are {compacted_revision or 1} to {current_revision}; leave it out "
        "for the latest",
        "revision",
    )


def find_at(tables: ReadTables, key: bytes, revision: int) -> tuple[int, Change] | None:
    """Return (revision, change) of the put that made `key` what it was at `revision`; None: it was not there.

    Args:
        tables: all changes up to `revision` must be in them.
        key: a valid one.
        revision: one that `check_revision` lets pass, not 0.

    Raises `DataLossError` when a row is damaged or missing.
    """
    row = tables.get(_INDEX, key)
    live = None
    if row is not None:
        live = read_index(key, row)
        if live[0] <= revision:
            return live[0], read_live_change(tables, key, live)
    begin = _first_milestone(tables, key, revision) or (None if live is None else live[:2])
    found = None if begin is None else _walk_back(tables, key, begin, revision)
    return None if found is None else (found[0], found[2])


def scan_at(
    tables: ReadTables, start: bytes, end: bytes | None, revision: int
) -> Iterator[tuple[int, Change]]:
    """Yield (revision, change) of each key that `find_at` finds with start <= key < end (None: no end), in
    order of key.

    Arguments and errors as there; `start` may be longer than a key can be.
    """
    for key, live, change in rows_at(tables, start, end, revision):
        yield live[0], change or read_live_change(tables, key, live)


def rows_at(
    tables: ReadTables, start: bytes, end: bytes | None, revision: int, compacted_revision: int = 0
) -> Iterator[FoundRow]:
    """Yield the index as it was at `revision` (0: the latest) for start <= key < end (None: no end).

    In order of key. Values are read only of keys that were changed later. `start` may be longer than a key
    can be. With `compacted_revision`, a milestone is read of each key that has any after it, and which rows
    those before it are, on their way out, does not decide what else is read: so a count of all else is the
    same on all nodes. Raises `DataLossError` when a row is damaged or missing.
    """
    if len(start) > KEY_BYTES_MAX:
        # No key is that long, and LMDB can't seek to what is longer than its own limit.
        start = start[:KEY_BYTES_MAX] + b"\x00"
    rows = tables.scan(_INDEX, start, end)
    if not revision:
        for key, row in rows:
            yield key, read_index(key, row), None
        return
    later = _first_milestones(tables, start, end, revision, compacted_revision)
    ahead = next(later, None)
    for key, row in rows:
        while ahead is not None and ahead[0] < key:
            yield from _as_of(tables, ahead, revision)
            ahead = next(later, None)
        live = read_index(key, row)
        begin = (key, live[0], live[1])
        if ahead is not None and ahead[0] == key:
            begin, ahead = ahead, next(later, None)
        if live[0] > revision:
            yield from _as_of(tables, begin, revision)
        elif begin[1] > live[0]:
            raise DataLossError(
                f"the index says that {name_key(key)} is at revision {live[0]}, but it has a milestone at "
                f"revision {begin[1]}"
            )
        else:
            yield key, live, None
    while ahead is not None:
        yield from _as_of(tables, ahead, revision)
        ahead = next(later, None)


def changes_from(tables: ReadTables, revision: int, sub: int = 0) -> Iterator[tuple[int, int, Change]]:
    """Yield (revision, sub, change) of all changes from (revision, sub) on, in order.

    Args:
        tables: what to read.
        revision: the compacted one or a later one; may lie in the future.
        sub: the first one wanted of `revision`; if it has none, the next revision's are first.

    Raises `DataLossError` when one is damaged or missing.
    """
    for row_key, row in change_rows(tables, revision, sub):
        yield (*read_change_key(row_key), read_change(row_key, row))


def change_rows(
    tables: ReadTables, revision: int, sub: int, end_revision: int | None = None
) -> Iterator[tuple[bytes, bytes]]:
    """Yield the rows of CHANGES from (revision, sub) to before `end_revision` (None: all there are).

    They are not verified yet, but none is missing: revisions follow on each other, and so do the changes of
    each, from 0. Else raises `DataLossError`.
    """
    expected = max((revision, sub), (_FIRST_REVISION, 0))
    end = None if end_revision is None else change_key(end_revision, 0)
    for row_key, row in tables.scan(_CHANGES, change_key(*expected), end):
        at = read_change_key(row_key)
        # Nothing tells how many changes a revision has: after each of them the next one may begin.
        if at != expected and not (at == (expected[0] + 1, 0) and expected[1]):
            raise DataLossError(
                f"no change was found from {expected[0]}.{expected[1]} to before {at[0]}.{at[1]}, where "
                "there must be one"
            )
        expected = (at[0], at[1] + 1)
        yield row_key, row
    if end_revision is not None and expected < (end_revision - 1, 1):
        raise DataLossError(
            f"no change was found from {expected[0]}.{expected[1]} to before {end_revision}.0, where there "
            "must be one"
        )


def previous_pair(
    tables: ReadTables, revision: int, change: Change, compacted_revision: int
) -> KeyValue | None:
    """Return the pair that `change`, made at `revision`, replaced or deleted.

    Args:
        tables: where to look.
        revision: that of `change`.
        change: what took the pair's place.
        compacted_revision: as of `tables`.

    Returns:
        None when there was none, or when it is compacted: so are those before the changes at
        `compacted_revision` or earlier.

    Raises `DataLossError` when it is damaged or missing.
    """
    if revision <= compacted_revision or change.version == 1:
        return None
    found = _walk_back(tables, change.key, (change.previous_revision, change.previous_sub), revision - 1)
    return None if found is None else key_value(found[2], found[0])


def key_value(change: Change, revision: int) -> KeyValue:
    """Return the pair that a put at `revision` made."""
    return KeyValue(change.key, change.value, change.create_revision, revision, change.version, change.lease)


# -- from a later change back


def _as_of(tables: ReadTables, begin: tuple[bytes, int, int], revision: int) -> Iterator[FoundRow]:
    """Yield the row of a key as of `revision`, if any; `begin`: (key, revision, sub) of a later change."""
    key, *at = begin
    found = _walk_back(tables, key, (at[0], at[1]), revision)
    if found is not None:
        own, sub, change = found
        yield (
            key,
            (own, sub, change.create_revision, change.version, change.lease, change.checksum),
            change,
        )


def _walk_back(
    tables: ReadTables, key: bytes, begin: tuple[int, int], revision: int
) -> tuple[int, int, Change] | None:
    """Follow the changes of `key` back from `begin` to the first one at `revision` or before.

    Returns (revision, sub, change) of it, or None when the key was not there.
    """
    at = begin
    for _ in range(MILESTONE_VERSIONS + 1):
        row_key = change_key(*at)
        row = tables.get(_CHANGES, row_key)
        if row is None:
            raise DataLossError(
                f"change {at[0]}.{at[1]} of {name_key(key)} is missing, and it is not compacted"
            )
        if at[0] <= revision:
            change = read_change(row_key, row)
            _check_key(at, key, change.key)
            return None if change.kind is _DELETE else (*at, change)
        _, found, version, previous_revision, previous_sub = read_links(row_key, row)
        _check_key(at, key, found)
        if version == 1:
            return None
        at = (previous_revision, previous_sub)
    raise DataLossError(
        f"{name_key(key)} has more than {MILESTONE_VERSIONS} changes from {begin[0]}.{begin[1]} back to "
        f"revision {revision}, and no milestone"
    )


def _check_key(at: tuple[int, int], key: bytes, found: bytes) -> None:
    if found != key:
        raise DataLossError(
            f"change {at[0]}.{at[1]} should be of {name_key(key)}, and is of {name_key(found)}"
        )


def _first_milestone(tables: ReadTables, key: bytes, revision: int) -> tuple[int, int] | None:
    """Return (revision, sub) of the first milestone of `key` after `revision`."""
    start = milestone_key(key, revision + 1)
    for row_key, row in tables.scan(_MILESTONES, start, milestones_after(start, None)):
        return read_milestone(row_key, row)
    return None


def _first_milestones(
    tables: ReadTables, start: bytes, end: bytes | None, revision: int, compacted_revision: int
) -> Iterator[tuple[bytes, int, int]]:
    """Yield (key, revision, sub) of the first milestone after `revision` of each key that has one, in order.

    Passes over others unverified, as they say nothing, and over those of one key with at most three seeks:
    one to what lies after `compacted_revision`, one to what lies after `revision`, one beyond.
    """
    compacted = compacted_revision.to_bytes(MILESTONE_REVISION_BYTES, "big")
    after = revision.to_bytes(MILESTONE_REVISION_BYTES, "big")
    seek: bytes | None = milestones_start(start)
    end_key = None if end is None else milestone_key(end, 0)
    found = mark = b""  # of which key one was yielded last, and which one stood at the last mark
    while seek is not None:
        rows = tables.scan(_MILESTONES, seek, end_key)
        seek, passed = None, 0
        for row_key, row in rows:
            if row_key[-MILESTONE_REVISION_BYTES:] > after:
                own = row_key[:-MILESTONE_REVISION_BYTES]
                if own != found:
                    found = own
                    yield (read_milestone_key(row_key), *read_milestone(row_key, row))
            passed += 1
            if passed == _ROWS_BEFORE_SEEK:
                passed = 0
                own = row_key[:-MILESTONE_REVISION_BYTES]
                if own == mark:
                    if own == found:
                        seek = milestones_after(row_key, None)
                    elif row_key[-MILESTONE_REVISION_BYTES:] > compacted:
                        seek = milestones_after(row_key, revision)
                    else:
                        seek = milestones_after(row_key, compacted_revision)
                    break
                mark = own
