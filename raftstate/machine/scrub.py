"""Checks a whole state while it is in use: bit by bit, in read transactions of a millisecond or two.

No transaction is kept open over a pass, since it would keep LMDB from reusing pages for as long as the pass
takes, and the file would grow by all that is written meanwhile. Each slice goes on, by key, where the last
one ended, and what is compared with each other is of one transaction:

    CHANGES      each row intact; none missing from the compacted revision on; what one replaced is there, and
                 so is its milestone, if it has one
    INDEX        each row intact; the change that it names is there, and so is its lease's row of the key
    MILESTONES   each row intact, and its change there
    HOT          each row intact; a lease has as many keys as it says

The bucket sums are those of all keys at one moment, and a pass takes many. So the sums of the keys up to the
cursor are kept as of the transaction of the last slice: the machine records by how much each key that it
changes changes a sum (`SumChanges`), and before the next slice those of keys below the cursor are added, as
far as its transaction has them; those of the others it will see itself. After the last slice the sums are
those of all keys as of one transaction, whose own record they are compared with: a key that has vanished with
a damaged page, wherever the writes went meanwhile, is missing in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from struct import error as StructError  # noqa: N812 - it is an exception

import msgspec

from raftstate.errors import DataLossError
from raftstate.machine.digest import BUCKET_MASK, BUCKETS, SUM_MASK, SumChanges
from raftstate.machine.layout import (
    ANSWERS_START,
    LEASES_START,
    META_KEY,
    MILESTONE_REVISION_BYTES,
    MILESTONE_VERSIONS,
    SESSIONS_START,
    SUMS_KEY,
    SWEEP_KEY,
    ChangeKind,
    Meta,
    attachment_key,
    attachments,
    change_key,
    checksum,
    milestone_key,
    name_key,
    name_row,
    read_answers,
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
    read_sums,
    read_sweep,
    verified_head,
)
from raftstate.machine.tables import ReadTables, Table

ROW_WORK = 1_024
"""A row costs as much as so many bytes beside its own."""
SLICE_WORK = 512 << 10
"""Bytes of a slice, rows counted by `ROW_WORK`: a millisecond or two."""
_FIRST_REVISION = 2
_DELETE, _PUT = int(ChangeKind.DELETE), int(ChangeKind.PUT)


class VanishedError(DataLossError):
    """Keys, or rows that lead to them, are missing, and no read would notice."""


class _Phase(Enum):
    CHANGES = Table.CHANGES
    INDEX = Table.INDEX
    MILESTONES = Table.MILESTONES
    HOT = Table.HOT


_PHASES = tuple(_Phase)


class Scrub:
    """One pass. Not for two threads at once.

    Args:
        begin_sums: has the machine record what it changes in the sums from here on, and returns where;
            called before the first slice of the index.
    """

    def __init__(self, begin_sums: Callable[[], SumChanges]) -> None:
        self._begin_sums = begin_sums
        self._phase = 0
        self._at = b""
        """Where the next slice begins: all keys before it were checked."""
        self._expected = (0, 0)
        """The first (revision, sub) of a change that was not seen yet."""
        self._last_revision: int | None = None
        """As of the first slice. Later changes are for the next pass: they may come faster than this goes."""
        self._sums = [0] * BUCKETS
        self._changes: SumChanges | None = None

    @property
    def is_done(self) -> bool:
        """Whether all was checked."""
        return self._phase == len(_PHASES)

    @property
    def wants_sums(self) -> bool:
        """Whether `begin_sums` is called in the next slice."""
        return not self.is_done and _PHASES[self._phase] is _Phase.INDEX and self._changes is None

    @property
    def is_lost(self) -> bool:
        """Whether so much was changed meanwhile that the sums can't be compared: begin another pass."""
        return self._changes is not None and self._changes.is_lost

    def step(self, tables: ReadTables) -> int:
        """Check a slice; return its work in bytes, rows counted by `ROW_WORK`.

        Args:
            tables: a read transaction, later than the one of the slice before.

        Raises:
            VanishedError: keys are missing, or came back.
            DataLossError: a row is damaged or missing, or contradicts another; the message names it.
            StorageError: the disk or LMDB failed.
        """
        with _readable("the state's own rows"):
            meta = read_meta(tables)
        match _PHASES[self._phase]:
            case _Phase.CHANGES:
                return self._step_changes(tables, meta)
            case _Phase.INDEX:
                return self._step_index(tables, meta)
            case _Phase.MILESTONES:
                return self._step_milestones(tables)
            case _Phase.HOT:
                return self._step_hot(tables)

    def _rows(
        self, tables: ReadTables, table: Table, work: list[int], end: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield the rows of a slice; go on to the next table at the end."""
        done = 0
        for key, row in tables.scan(table, self._at, end):
            if done >= SLICE_WORK:
                self._at = key
                work[0] = done
                return
            done += ROW_WORK + len(key) + len(row)
            yield key, row
        work[0] = max(done, 1)
        self._at = b""
        self._phase += 1

    # -- changes

    def _step_changes(self, tables: ReadTables, meta: Meta) -> int:
        work = [0]
        phase = self._phase
        if self._last_revision is None:
            self._last_revision = meta.revision
        last = self._last_revision
        self._expected = max(self._expected, (max(meta.compacted_revision, _FIRST_REVISION), 0))
        for row_key, row in self._rows(tables, Table.CHANGES, work, change_key(last + 1, 0)):
            self._check_change(tables, meta, row_key, row)
        if self._phase != phase and last >= _FIRST_REVISION and self._expected <= (last, 0):
            raise _missing(self._expected, (last + 1, 0))
        return work[0]

    def _check_change(self, tables: ReadTables, meta: Meta, row_key: bytes, row: bytes) -> None:
        read_head(row_key, row)
        (_, kind, _, create, version, _, previous_revision, previous_sub), key = verified_head(row)
        at, expected = read_change_key(row_key), self._expected
        if at >= expected:
            # Nothing tells how many changes a revision has: after each of them the next one may begin.
            if at != expected and not (at == (expected[0] + 1, 0) and expected[1]):
                raise _missing(expected, at)
            self._expected = (at[0], at[1] + 1)
        if at[0] <= meta.compacted_revision:
            return  # what it replaced may be gone, and so may its milestone
        is_milestone = kind == _DELETE or (kind == _PUT and not version % MILESTONE_VERSIONS)
        if is_milestone and tables.get(Table.MILESTONES, milestone_key(key, at[0])) is None:
            raise VanishedError(f"change {at[0]}.{at[1]} of {name_key(key)} has lost its milestone")
        if not previous_revision:
            return
        previous = tables.get(Table.CHANGES, change_key(previous_revision, previous_sub))
        if previous is None:
            raise VanishedError(
                f"change {at[0]}.{at[1]} of {name_key(key)} replaced change "
                f"{previous_revision}.{previous_sub}, which is missing and not compacted"
            )
        (_, found_kind, _, found_create, found_version, _, _, _), found = verified_head(previous)
        follows = kind == _DELETE or (create, version) == (found_create, found_version + 1)
        if found != key or found_kind != _PUT or not follows:
            raise DataLossError(
                f"change {at[0]}.{at[1]} of {name_key(key)} can't have replaced change "
                f"{previous_revision}.{previous_sub}, which is of {name_key(found)}, version {found_version}"
            )

    # -- index

    def _step_index(self, tables: ReadTables, meta: Meta) -> int:
        if self._changes is None:
            self._changes = self._begin_sums()
        for key, difference in self._changes.take(meta.applied_index):
            if key < self._at:
                self._sums[checksum(key) & BUCKET_MASK] += difference
        work = [0]
        phase = self._phase
        for key, row in self._rows(tables, Table.INDEX, work):
            self._check_key(tables, key, row)
        if self._phase != phase and not self._changes.is_lost:
            self._compare(read_sums(tables))
        return work[0]

    def _check_key(self, tables: ReadTables, key: bytes, row: bytes) -> None:
        revision, sub, create, version, lease, own = read_index(key, row)
        change = tables.get(Table.CHANGES, change_key(revision, sub))
        if change is None:
            raise DataLossError(
                f"the index says that {name_key(key)} is at revision {revision}.{sub}, but there is no such "
                "change"
            )
        head, found = verified_head(change)
        if found != key or head[:2] != (own, _PUT) or head[3:6] != (create, version, lease):
            raise DataLossError(
                f"the index says that {name_key(key)} is at revision {revision}.{sub} with checksum "
                f"{own:016x}, but that change is of {name_key(found)} and has checksum {head[0]:016x}, or "
                "its versions differ"
            )
        if lease and tables.get(Table.HOT, attachment_key(lease, key)) is None:
            raise VanishedError(f"{name_key(key)} is attached to lease {lease} by the index alone")
        self._sums[checksum(key) & BUCKET_MASK] += own

    def _compare(self, stored: list[int]) -> None:
        wrong = [n for n, total in enumerate(self._sums) if total & SUM_MASK != stored[n]]
        if wrong:
            raise VanishedError(
                f"keys have vanished, or came back: in {len(wrong)} of {BUCKETS} buckets, the first being "
                f"{wrong[0]}, the keys add up to {self._sums[wrong[0]] & SUM_MASK:016x}, and should to "
                f"{stored[wrong[0]]:016x}"
            )

    # -- milestones, hot rows

    def _step_milestones(self, tables: ReadTables) -> int:
        work = [0]
        for row_key, row in self._rows(tables, Table.MILESTONES, work):
            with _readable(f"row {name_row(Table.MILESTONES, row_key)} of table MILESTONES"):
                sub, kind, version = read_milestone_whole(row_key, row)
                key = read_milestone_key(row_key)
            revision = int.from_bytes(row_key[-MILESTONE_REVISION_BYTES:], "big")
            change = tables.get(Table.CHANGES, change_key(revision, sub))
            head, found = (None, b"") if change is None else verified_head(change)
            if head is None or (found, head[1], head[4]) != (key, kind, version):
                raise DataLossError(
                    f"{name_key(key)} has a milestone at revision {revision}.{sub}, but no such change"
                )
        return work[0]

    def _step_hot(self, tables: ReadTables) -> int:
        work = [0]
        beside = 0
        for row_key, row in self._rows(tables, Table.HOT, work):
            with _readable(f"row {name_row(Table.HOT, row_key)} of table HOT"):
                beside += self._check_hot(tables, row_key, row)
        return work[0] + beside

    def _check_hot(self, tables: ReadTables, row_key: bytes, row: bytes) -> int:
        """Check a row; return the work that was done beside."""
        kind = row_key[:1]
        if row_key == META_KEY:
            read_meta(tables)
        elif row_key == SUMS_KEY:
            read_sums(tables)
        elif row_key == SWEEP_KEY:
            read_sweep(tables)
        elif kind == ANSWERS_START:
            read_answers(row_key, row)
        elif kind == SESSIONS_START:
            read_session(row_key, row)
        elif kind == b"K":
            key, lease = read_attachment(row_key, row), read_attachment_lease(row_key)
            live = tables.get(Table.INDEX, key)
            held = 0 if live is None else read_index(key, live)[4]
            if held != lease:
                raise VanishedError(
                    f"{name_key(key)} is attached to lease {lease}, and by the index to {held or 'none'}"
                )
        elif kind == LEASES_START:
            lease, (_, _, count) = read_lease_key(row_key), read_lease(row_key, row)
            found = sum(1 for _ in tables.scan(Table.HOT, *attachments(lease)))
            if found != count:
                raise VanishedError(f"lease {lease} has {count} keys by its own row, and {found} by theirs")
            return found * ROW_WORK // 8
        else:
            raise DataLossError(f"table HOT has a row {name_row(Table.HOT, row_key)} of no known kind")
        return 0


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Turn what decoding an intact row may raise into damage: nobody writes such rows."""
    try:
        yield
    except (StructError, msgspec.DecodeError, IndexError) as error:
        raise DataLossError(f"{what} can't be read, though its checksum matches: {error}") from error


def _missing(expected: tuple[int, int], at: tuple[int, int]) -> VanishedError:
    return VanishedError(
        f"no change was found from {expected[0]}.{expected[1]} to before {at[0]}.{at[1]}, where there must "
        "be one"
    )
