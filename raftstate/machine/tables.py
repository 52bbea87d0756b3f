"""What the machine asks of the place where its rows stand: ordered tables of bytes, read and written in
transactions.

raftstate.store implements this over LMDB, tests over a dict. The machine can't tell them apart, which is why
it imports neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Protocol


class Table(IntEnum):
    """The tables. Numbers are on disk: never reuse one."""

    CHANGES = 1
    """(revision, sub) -> the change, value included. Appended to; a compaction's sweep deletes from it."""
    INDEX = 2
    """key -> its latest change. Dense: one row for each live key."""
    MILESTONES = 3
    """(key, revision) -> which change: every 16th version of a key, and each of its deletions. In order of
    key."""
    HOT = 4
    """What changes with every batch (meta, sessions, leases, bucket sums), in one table to dirty few
    pages."""


class ReadTables(Protocol):
    """A view of all tables as of one committed transaction.

    Raises `StorageError` when the disk or LMDB fails.
    """

    def get(self, table: Table, key: bytes) -> bytes | None:
        """Return the value under `key`, or None."""
        ...

    def scan(
        self, table: Table, start: bytes = b"", end: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) for start <= key < end (None: no end), in order of key."""
        ...

    def count(self, table: Table) -> int:
        """Return the number of rows of a table, without reading them."""
        ...


class WriteTables(ReadTables, Protocol):
    """A transaction that may write; what it wrote it also reads."""

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        """Insert or replace one row."""
        ...

    def put_many(self, table: Table, rows: Sequence[tuple[bytes, bytes]], *, append: bool = False) -> None:
        """Insert or replace rows in ascending order of key.

        `append`: every key is greater than all in the table.
        """
        ...

    def delete(self, table: Table, key: bytes) -> bool:
        """Delete one row; return whether it was there."""
        ...
