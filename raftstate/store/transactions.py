"""The machine's tables over one LMDB transaction: named databases by table number, rows as bytes.

May live here: what a transaction can do with rows, the translation of LMDB's errors, and the estimate of what
a transaction wrote. When one may begin, and what must hold before it commits, is the business of
raftstate.store.state.

Nothing here wraps a row: a batch of some hundred commands is a few hundred `get`s and two or three
`put_many`s, and each costs little more than LMDB's own call.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import lmdb

from raftstate.errors import (
    DataLossError,
    InvariantError,
    RaftstateError,
    ResourceExhaustedError,
    StorageError,
)
from raftstate.machine.tables import Table
from raftstate.store.files import disk_failure
from raftstate.store.space import pages_bytes

Handles = dict[Table, "lmdb._Database"]

COMMIT_PAGES = 6
"""Pages that every commit writes whatever it changed: the meta page, the table of tables, and about four of
the free list."""

_FREED_PER_PAGE = 256
"""Page numbers in one page of the free list: 512 fit, and a page may be half full."""


def table_name(table: Table) -> bytes:
    """Return the name of a table's LMDB database: its number, which is what never changes."""
    return b"%d" % table


def lmdb_failure(doing: str, path: Path, error: lmdb.Error) -> RaftstateError:
    """Make the error for a failed LMDB operation on the state; the caller raises it from `error`.

    Args:
        doing: what was tried, to follow "failed while".
        path: the environment's directory.
        error: what LMDB raised.

    Returns:
        `ResourceExhaustedError` if a read found no reader slot, from which nothing else suffers;
        `DataLossError` if a page is not what the tree says it is; else `StorageError`.
    """
    if isinstance(error, lmdb.ReadersFullError):
        return ResourceExhaustedError(
            f"no reader slot is free in {path}: too many reads at once in this node and the processes that "
            "read its files; try again"
        )
    if isinstance(error, lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.InvalidError):
        return DataLossError(
            f"damaged pages were found while {doing} at {path} ({error}): replace this node, the others hold "
            "the data"
        )
    if isinstance(error, lmdb.MapFullError):
        return StorageError(
            f"failed while {doing} at {path}: the map is full, or what is free in it is still being read; if "
            "it does not go on soon, start the node again with a larger state_map_bytes",
            detail={"errno": errno.ENOSPC},
        )
    failure = disk_failure(doing, path, error)
    if failure.detail["errno"] == errno.EAGAIN:
        return StorageError(
            f"failed while {doing} at {path}: a process with this pid in another pid namespace has the "
            "environment open; run both in one",
            detail=failure.detail,
        )
    return failure


class Rows:
    """What reading transactions and writing ones have in common (`ReadTables`). Ends with its transaction."""

    __slots__ = ("_get", "_handles", "_path", "_transaction")

    def __init__(self, transaction: lmdb.Transaction[bytes], handles: Handles, path: Path) -> None:
        self._transaction = transaction
        self._get = transaction.get
        self._handles = handles
        self._path = path

    @property
    def transaction_id(self) -> int:
        """The commit that is read; in a writing transaction, the one that it would be."""
        return self._transaction.id()

    def get(self, table: Table, key: bytes) -> bytes | None:
        """Return the value under `key`, or None.

        Raises:
            DataLossError: a page on the way to it is damaged.
            StorageError: LMDB can't read it, or the transaction has ended.
        """
        try:
            return self._get(key, None, self._handles[table])
        except lmdb.Error as error:
            raise lmdb_failure("reading a row", self._path, error) from error

    def scan(
        self, table: Table, start: bytes = b"", end: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) for start <= key < end (None: no end), in order of key.

        Raises:
            DataLossError: a page on the way is damaged.
            StorageError: LMDB can't read them, or the transaction has ended.
        """
        try:
            cursor = self._transaction.cursor(self._handles[table])
            if cursor.set_range(start):
                for row in cursor.iternext():
                    if end is not None and row[0] >= end:
                        return
                    yield row
        except lmdb.Error as error:
            raise lmdb_failure("scanning a table", self._path, error) from error

    def count(self, table: Table) -> int:
        """Return the number of rows of a table, without reading them."""
        try:
            return self._transaction.stat(self._handles[table])["entries"]
        except lmdb.Error as error:
            raise lmdb_failure("counting rows", self._path, error) from error

    def stored_bytes(self, table: Table) -> int:
        """Return the bytes of the pages that a table takes.

        Raises:
            StorageError: LMDB can't tell, or the transaction has ended.
        """
        try:
            tree = self._transaction.stat(self._handles[table])
        except lmdb.Error as error:
            raise lmdb_failure("measuring a table", self._path, error) from error
        return pages_bytes(tree)


class WritableRows(Rows):
    """A writing transaction's tables (`WriteTables`), which keep account of what they change."""

    __slots__ = ("_bytes_put", "_rows_touched")

    def __init__(self, transaction: lmdb.Transaction[bytes], handles: Handles, path: Path) -> None:
        super().__init__(transaction, handles, path)
        self._rows_touched = [0] * (max(Table) + 1)
        self._bytes_put = [0] * (max(Table) + 1)

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        """Insert or replace one row.

        Raises:
            StorageError: LMDB can't write it.
        """
        self._rows_touched[table] += 1
        self._bytes_put[table] += len(key) + len(value)
        try:
            self._transaction.put(key, value, db=self._handles[table])
        except lmdb.Error as error:
            raise lmdb_failure("writing a row", self._path, error) from error

    def put_many(self, table: Table, rows: Sequence[tuple[bytes, bytes]], *, append: bool = False) -> None:
        """Insert or replace rows in ascending order of key. `append`: every key is greater than all in the
        table.

        Raises:
            InvariantError: `append` was given for keys that are not.
            StorageError: LMDB can't write them.
        """
        self._rows_touched[table] += 1 if append and rows else len(rows)
        self._bytes_put[table] += sum(map(len, chain.from_iterable(rows)))
        try:
            with self._transaction.cursor(self._handles[table]) as cursor:
                _, added = cursor.putmulti(rows, append=append)
        except lmdb.Error as error:
            raise lmdb_failure("writing rows", self._path, error) from error
        if added != len(rows):
            raise InvariantError(
                f"{len(rows) - added} of {len(rows)} rows appended to {table.name} do not follow its last key"
            )

    def delete(self, table: Table, key: bytes) -> bool:
        """Delete one row; return whether it was there.

        Raises:
            StorageError: LMDB can't write.
        """
        try:
            found = self._transaction.delete(key, db=self._handles[table])
        except lmdb.Error as error:
            raise lmdb_failure("deleting a row", self._path, error) from error
        if found:
            self._rows_touched[table] += 2  # a page that becomes too empty takes its neighbour with it
        return found

    def dirtied_bytes(self) -> int:
        """Estimate the bytes of the pages that a commit writes, rather too many than too few.

        LMDB does not tell, and page numbers don't either, since freed pages are used again. But a commit
        writes a new page for each page that it changed and for the way up to the root, so: for each table at
        most one leaf and its branches for every row touched, never more than the table has; pages at worst
        half full for the bytes put; and what the free list takes to remember the old ones.
        """
        pages = COMMIT_PAGES
        page_bytes = 0
        for table, handle in self._handles.items():
            rows, put = self._rows_touched[table], self._bytes_put[table]
            if rows:
                tree = self._transaction.stat(handle)
                page_bytes = tree["psize"]
                pages += min(rows, tree["leaf_pages"]) + min(rows * (tree["depth"] - 1), tree["branch_pages"])
                pages += 2 * put // page_bytes + 1
        return (pages + pages // _FREED_PER_PAGE) * page_bytes
