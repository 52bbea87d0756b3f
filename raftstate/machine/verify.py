"""Everything of a state checked: each row by its checksum, and that the rows belong together.

What a checksum can't tell is that a row is missing, or is an old one: a damaged page of a tree hides rows and
leaves the others intact. So each table is counted and walked, and what one row says of others is looked up:

    CHANGES      none is missing from the compacted revision on, up to the latest; what one of them replaced
                 is there, and is the version before
    INDEX        the change that each row names is there and is the one it was made for; the bucket sums,
                 added up again, are those stored, so no key has vanished or come back
    MILESTONES   one for each change that must have one, and no other
    HOT          answers belong to a session; leases, the rows of their keys and the index agree

Changes before the compacted revision may be there or swept. That answers, or a lease without keys, are
missing only the count of HOT tells.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from raftstate.errors import DataLossError
from raftstate.machine.digest import BUCKET_MASK, BUCKETS, SUM_MASK
from raftstate.machine.layout import (
    ANSWERS_START,
    CHANGE_HEADER,
    CHECKSUM_BYTES,
    LEASES_END,
    LEASES_START,
    META_KEY,
    MILESTONE_REVISION_BYTES,
    MILESTONE_VERSIONS,
    SESSIONS_END,
    SESSIONS_START,
    SUMS_KEY,
    SWEEP_KEY,
    ChangeHead,
    ChangeKind,
    Meta,
    change_key,
    checksum,
    milestone_key,
    name_key,
    name_row,
    read_answers,
    read_answers_key,
    read_attachment,
    read_attachment_lease,
    read_change_key,
    read_head,
    read_index,
    read_lease,
    read_lease_key,
    read_meta,
    read_milestone_key,
    read_milestone_whole,
    read_session,
    read_session_key,
    read_sums,
    read_sweep,
    verified_head,
)
from raftstate.machine.tables import ReadTables, Table
from raftstate.machine.types import KEY_BYTES_MAX, SessionId

PAUSE_WORK = 512 << 10
ROW_WORK = 1_024
"""Between two pauses: so many bytes of rows, where each counts for so many more than it has. A millisecond
or two."""

_FIRST_REVISION = 2
"""Of a change: a store begins at revision 1, with none."""
_PUT, _DELETE, _NOTHING = int(ChangeKind.PUT), int(ChangeKind.DELETE), int(ChangeKind.NOTHING)
_CHANGES, _INDEX, _HOT = Table.CHANGES, Table.INDEX, Table.HOT


def check_state(tables: ReadTables, pause: Callable[[], None] = lambda: None) -> Meta:
    """Check a whole state. Takes some seconds for a million rows: for a thread that nobody waits for.

    Args:
        tables: one read transaction.
        pause: called after each millisecond or two of work, so that other threads get the interpreter. May
            raise to give up.

    Returns:
        The machine's own record, which the rows bear out.

    Raises:
        DataLossError: a row is damaged, missing, or contradicts another; the message names it.
        StorageError: the disk or LMDB failed.
    """
    return _Check(tables, pause).run()


class _Check:
    """One pass over all tables, in an order in which each may rely on those before it."""

    def __init__(self, tables: ReadTables, pause: Callable[[], None]) -> None:
        self._tables = tables
        self._get = tables.get
        self._pause = pause
        self._milestones_expected = 0
        self._leased: Counter[int] = Counter()
        """How many keys of the index each lease has."""

    def run(self) -> Meta:
        with _readable("the state's own rows"):
            meta = read_meta(self._tables)
            sums = read_sums(self._tables)
            read_sweep(self._tables)
        if not 0 <= meta.compacted_revision <= meta.revision:
            raise DataLossError(
                f"the state is compacted at revision {meta.compacted_revision}, and its latest one is "
                f"{meta.revision}"
            )
        self._check_changes(meta)
        self._check_index(sums)
        self._check_milestones()
        self._check_hot(meta)
        return meta

    def _rows(self, table: Table) -> Iterator[tuple[bytes, bytes]]:
        """Yield all rows of a table; then see that there were as many as it says."""
        found = work = 0
        for row in self._tables.scan(table):
            found += 1
            work += ROW_WORK + len(row[1])
            if work >= PAUSE_WORK:
                work = 0
                self._pause()
            yield row
        if found != self._tables.count(table):
            raise DataLossError(
                f"table {table.name} has {found} rows, and its record says {self._tables.count(table)}"
            )

    # -- changes

    def _check_changes(self, meta: Meta) -> None:
        expected = (max(meta.compacted_revision, _FIRST_REVISION), 0)
        for row_key, row in self._rows(_CHANGES):
            head = read_head(row_key, row)
            at = read_change_key(row_key)
            if at >= expected:
                # Nothing tells how many changes a revision has: after each of them the next one may begin.
                if at != expected and not (at == (expected[0] + 1, 0) and expected[1]):
                    raise _missing(expected, at)
                expected = (at[0], at[1] + 1)
            _, kind, _, _, version, _, previous_revision, previous_sub = head
            self._check_head(at, head, row)
            if kind == _DELETE or (kind == _PUT and not version % MILESTONE_VERSIONS):
                self._milestones_expected += 1
            if previous_revision and at[0] > meta.compacted_revision:
                self._check_previous(at, verified_head(row), (previous_revision, previous_sub))
        if meta.revision >= _FIRST_REVISION and expected <= (meta.revision, 0):
            raise _missing(expected, (meta.revision + 1, 0))
        if expected[1] and expected[0] > meta.revision:
            raise DataLossError(
                f"there is a change at revision {expected[0]}, and the latest one is {meta.revision}"
            )

    def _check_head(self, at: tuple[int, int], head: ChangeHead, row: bytes) -> None:
        _, kind, key_bytes, create, version, lease, previous_revision, _ = head
        if kind == _PUT:
            sound = 0 < create <= at[0] and version > 0 and (version == 1) == (previous_revision == 0)
        else:
            sound = kind in (_DELETE, _NOTHING) and not (create or version or lease)
            sound = sound and (previous_revision > 0) == (kind == _DELETE)
        has_key = 0 < key_bytes <= KEY_BYTES_MAX if kind != _NOTHING else not key_bytes and not at[1]
        if not sound or not has_key or previous_revision > at[0]:
            head_bytes = row[: CHECKSUM_BYTES + CHANGE_HEADER.size]  # without the key
            raise DataLossError(f"change {at[0]}.{at[1]} can't be: it begins with {head_bytes.hex()}")

    def _check_previous(
        self, at: tuple[int, int], own: tuple[ChangeHead, bytes], previous: tuple[int, int]
    ) -> None:
        """See that what a change replaced is there: the version before of the same key."""
        (_, kind, _, create, version, _, _, _), key = own
        row = self._get(_CHANGES, change_key(*previous))
        if row is None:
            raise DataLossError(
                f"change {at[0]}.{at[1]} of {name_key(key)} replaced change {previous[0]}.{previous[1]}, "
                "which is missing and not compacted"
            )
        (_, found_kind, _, found_create, found_version, _, _, _), found = verified_head(row)
        follows = kind == _DELETE or (create, version) == (found_create, found_version + 1)
        if found != key or found_kind != _PUT or not follows:
            raise DataLossError(
                f"change {at[0]}.{at[1]} of {name_key(key)} can't have replaced change "
                f"{previous[0]}.{previous[1]}, which is of {name_key(found)}, version {found_version}"
            )

    # -- index

    def _check_index(self, stored: list[int]) -> None:
        sums = [0] * BUCKETS
        get, leased = self._get, self._leased
        for key, row in self._rows(_INDEX):
            revision, sub, create, version, lease, own = read_index(key, row)
            change = get(_CHANGES, change_key(revision, sub))
            if change is None:
                raise DataLossError(
                    f"the index says that {name_key(key)} is at revision {revision}.{sub}, but there is no "
                    "such change"
                )
            head, found = verified_head(change)
            if found != key or head[:2] != (own, _PUT) or head[3:6] != (create, version, lease):
                raise DataLossError(
                    f"the index says that {name_key(key)} is at revision {revision}.{sub} with checksum "
                    f"{own:016x}, but that change is of {name_key(found)} and has checksum {head[0]:016x}, "
                    "or its versions or lease differ"
                )
            sums[checksum(key) & BUCKET_MASK] += own
            if lease:
                leased[lease] += 1
        wrong = [n for n, total in enumerate(sums) if total & SUM_MASK != stored[n]]
        if wrong:
            raise DataLossError(
                f"keys have vanished, or came back: in {len(wrong)} of {BUCKETS} buckets, the first being "
                f"{wrong[0]}, the keys add up to {sums[wrong[0]] & SUM_MASK:016x}, and should to "
                f"{stored[wrong[0]]:016x}"
            )

    # -- milestones

    def _check_milestones(self) -> None:
        found = 0
        for row_key, row in self._rows(Table.MILESTONES):
            with _readable(f"row {name_row(Table.MILESTONES, row_key)} of table MILESTONES"):
                sub, kind, version = read_milestone_whole(row_key, row)
                key = read_milestone_key(row_key)
            revision = int.from_bytes(row_key[-MILESTONE_REVISION_BYTES:], "big")
            change = self._get(_CHANGES, change_key(revision, sub))
            head, of = (None, b"") if change is None else verified_head(change)
            is_one = kind == _DELETE or not version % MILESTONE_VERSIONS
            agrees = head is not None and (of, head[1], head[4]) == (key, kind, version)
            if not agrees or not is_one or milestone_key(key, revision) != row_key:
                raise DataLossError(
                    f"{name_key(key)} has a milestone at revision {revision}.{sub}, but no such change that "
                    "makes one"
                )
            found += 1
        if found != self._milestones_expected:
            raise DataLossError(
                f"there are {found} milestones, and {self._milestones_expected} changes that must have one"
            )

    # -- hot rows

    def _check_hot(self, meta: Meta) -> None:
        sessions: set[SessionId] = set()
        for row_key, row in self._tables.scan(_HOT, SESSIONS_START, SESSIONS_END):
            with _readable(f"row {row_key.hex()} of table HOT"):
                read_session(row_key, row)
                sessions.add(read_session_key(row_key))
        attached: Counter[int] = Counter()
        for row_key, row in self._rows(_HOT):
            with _readable(f"row {name_row(_HOT, row_key)} of table HOT"):
                kind = row_key[:1]
                if kind == ANSWERS_START:
                    self._check_answers(row_key, row, sessions)
                elif kind == b"K":
                    attached[self._check_attachment(row_key, row)] += 1
                elif kind not in (LEASES_START, SESSIONS_START) and row_key not in _SINGLE:
                    raise DataLossError(f"table HOT has a row {row_key.hex()} of no known kind")
        for session in sessions:
            if session.index > meta.applied_index:
                raise DataLossError(
                    f"session {session.index} was opened after the applied index {meta.applied_index}"
                )
        self._check_leases(attached)

    def _check_answers(self, row_key: bytes, row: bytes, sessions: set[SessionId]) -> None:
        owner = read_answers_key(row_key)
        answers = read_answers(row_key, row)
        if owner not in sessions:
            raise DataLossError(
                f"row {row_key.hex()} of table HOT holds answers of {owner}, and there is no such session"
            )
        if len(answers.serials) != len(answers.revisions) or not (answers.serials or answers.answers):
            raise DataLossError(f"row {row_key.hex()} of table HOT holds no answers, or not whole ones")

    def _check_attachment(self, row_key: bytes, row: bytes) -> int:
        """See that the index attaches the key to the same lease; return that."""
        key, lease = read_attachment(row_key, row), read_attachment_lease(row_key)
        live = self._get(_INDEX, key)
        held = 0 if live is None else read_index(key, live)[4]
        if held != lease:
            raise DataLossError(
                f"{name_key(key)} is attached to lease {lease}, and by the index to {held or 'none'}"
            )
        return lease

    def _check_leases(self, attached: Counter[int]) -> None:
        # That all attached keys are leased ones was seen; with the same counts all leased keys are attached.
        known = 0
        for row_key, row in self._tables.scan(_HOT, LEASES_START, LEASES_END):
            with _readable(f"row {row_key.hex()} of table HOT"):
                lease, (_, _, count) = read_lease_key(row_key), read_lease(row_key, row)
            found = (attached.pop(lease, 0), self._leased.pop(lease, 0))
            if found != (count, count):
                raise DataLossError(
                    f"lease {lease} has {count} keys by its own row, {found[0]} by theirs, and {found[1]} by "
                    "the index"
                )
            known += 1
        if attached or self._leased:
            lease = next(iter((*attached, *self._leased)))
            raise DataLossError(f"keys are attached to lease {lease}, and there is none among the {known}")


_SINGLE = frozenset((META_KEY, SUMS_KEY, SWEEP_KEY))


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Turn what decoding an intact row may raise into damage: nobody writes such rows."""
    try:
        yield
    except (struct.error, msgspec.DecodeError, IndexError) as error:
        raise DataLossError(f"{what} can't be read, though its checksum matches: {error}") from error


def _missing(expected: tuple[int, int], at: tuple[int, int]) -> DataLossError:
    return DataLossError(
        f"no change was found from {expected[0]}.{expected[1]} to before {at[0]}.{at[1]}, where there must "
        "be one"
    )
