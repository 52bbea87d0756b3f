"""Snapshots: a file made from one read transaction of the state, and a new generation made from such a
file.

Rows travel, not pages: what a disk did to a tree page stays where it is, pages may differ in size, and the
new file has no free pages. The format stands in raftstate.store.snapshot_format.

    with store.read() as tables: write_snapshot(tables, meta, path, pause)      on a thread

    builder = store.build(cluster_id)           on a thread, as all up to `finish`
    builder.feed(bytes)                         pieces of any size
    prepared = builder.finish(check_state)      verified, durable, a checkpoint of its own
    store.make_current(prepared)                from here on a start opens it
    store.adopt(prepared)                       on the thread that applies
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import lmdb

from raftstate.core.types import ConfState
from raftstate.errors import DataLossError, InvariantError, WrongClusterError
from raftstate.machine.tables import ReadTables, Table
from raftstate.store.checkpoint import sync_data
from raftstate.store.files import disk_failure, fsync_directory
from raftstate.store.generation import Generation, new_generation
from raftstate.store.open_generation import OpenGeneration, remove_closed
from raftstate.store.snapshot_format import (
    BLOCK_BYTES,
    Block,
    Row,
    SnapshotEncoder,
    SnapshotMeta,
    SnapshotParser,
)
from raftstate.store.start import create_environment, open_tables
from raftstate.store.transactions import Rows, WritableRows, lmdb_failure

__all__ = [
    "PreparedGeneration",
    "SnapshotBuilder",
    "SnapshotMeta",
    "VerifiedMeta",
    "content_of",
    "feed_state",
    "write_snapshot",
]

PAUSE_WORK = 256 << 10
"""Between two pauses of `write_snapshot`: so many bytes, where a row counts for `ROW_WORK` more than it has.
A millisecond or two."""
ROW_WORK = 128
TRANSACTION_BYTES = 16 << 20
"""Rows of a transaction of a builder. Its pages are in memory until it commits; then they are synced, so that
the disk gets them bit by bit, and a log on the same disk waits for a part of a second at most."""
ROWS_AT_ONCE = 1_000
"""Rows handed to LMDB in one call, which holds the interpreter: less than a millisecond."""


class VerifiedMeta(Protocol):
    """What `SnapshotBuilder.finish` compares with the snapshot's meta: the machine's own record."""

    @property
    def cluster_id(self) -> int:
        """Whose state it is."""
        ...

    @property
    def applied_index(self) -> int:
        """The last entry applied."""
        ...

    @property
    def applied_term(self) -> int:
        """Its term."""
        ...

    @property
    def machine_version(self) -> int:
        """By whose rules it was applied."""
        ...

    @property
    def conf_state(self) -> ConfState:
        """The configuration as of it."""
        ...


def content_of(tables: Rows) -> tuple[int, int]:
    """Return how many rows the tables have, and about how many bytes those are: for a `SnapshotMeta`.

    Raises:
        StorageError: LMDB can't tell.
    """
    return sum(map(tables.count, Table)), sum(map(tables.stored_bytes, Table))


def write_snapshot(tables: ReadTables, meta: SnapshotMeta, path: Path, pause: Callable[[], None]) -> int:
    """Write a snapshot of all tables. For a thread that nobody waits for.

    Args:
        tables: a read transaction, which pins its pages as long as this takes.
        meta: read from the same transaction; `rows` is its number of rows.
        path: the file; replaced if it is there. Not synced: after a crash nobody reads it.
        pause: called after each millisecond or two of work, so that other threads get the interpreter.
            May raise to give up.

    Returns:
        The bytes of the file.

    Raises:
        DataLossError: a page is damaged, or a table has not the rows that it says.
        StorageError: the disk is full or failed, or LMDB did.
    """
    encoder = SnapshotEncoder()
    size = 0
    try:
        with open(path, "wb") as file:
            size += file.write(encoder.begin(meta))
            for table in Table:
                expected = tables.count(table)
                found = 0
                for rows in _blocks(tables, table, pause):
                    found += len(rows)
                    size += file.write(encoder.block(table, rows))
                    pause()
                if found != expected:
                    raise DataLossError(
                        f"table {table.name} has {found} rows, its record says {expected}: a page of its "
                        "tree is damaged"
                    )
            size += file.write(encoder.end())
    except BaseException as error:
        with suppress(OSError):  # it says no more than what is being raised
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise disk_failure("writing a snapshot", path, error) from error
        raise
    return size


def feed_state(
    tables: ReadTables,
    meta: SnapshotMeta,
    feed: Callable[[bytes], None],
    pause: Callable[[], None],
    fed: Callable[[int], None],
) -> None:
    """Give the bytes of a snapshot to a builder beside, with no file between them.

    Args:
        tables: as `write_snapshot` takes them.
        meta: so, too.
        feed: takes the next bytes.
        pause: as there.
        fed: told the bytes of rows that were taken, again and again.

    Raises what `feed` does, and `DataLossError` when a page is damaged.
    """
    encoder = SnapshotEncoder()
    feed(encoder.begin(meta))
    for table in Table:
        for rows in _blocks(tables, table, pause):
            feed(encoder.block(table, rows))
            fed(sum(len(key) + len(value) for key, value in rows))
            pause()
    feed(encoder.end())


def _blocks(tables: ReadTables, table: Table, pause: Callable[[], None]) -> Iterator[list[Row]]:
    rows: list[Row] = []
    block_bytes = work = 0
    for row in tables.scan(table):
        rows.append(row)
        row_bytes = len(row[0]) + len(row[1])
        block_bytes += row_bytes
        work += row_bytes + ROW_WORK
        if block_bytes >= BLOCK_BYTES:
            yield rows
            rows = []
            block_bytes = work = 0
        elif work >= PAUSE_WORK:
            work = 0
            pause()
    if rows:
        yield rows


class PreparedGeneration:
    """A generation that a start could open, and that CURRENT does not name yet. Made by `SnapshotBuilder`.

    Args:
        meta: of the snapshot that it was made from.
        opened: its environment, which stays open when it is adopted.
    """

    def __init__(self, meta: SnapshotMeta, opened: OpenGeneration) -> None:
        self.meta = meta
        self.opened = opened
        """For whoever brings it up to date before it is adopted: it can be read, written and checkpointed."""
        self.is_offered = False
        """Whether CURRENT may name it: then it can't be discarded any more."""

    @property
    def path(self) -> Path:
        """Its directory."""
        return self.opened.path

    def discard(self) -> None:
        """Close it and remove its directory. Any thread; harmless the second time.

        Raises:
            InvariantError: CURRENT may name it.
            StorageError: the directory can't be removed; the next start does it.
        """
        if self.is_offered:
            raise InvariantError(f"{self.path} is discarded, but CURRENT may name it")
        remove_closed(self.opened)


class SnapshotBuilder:
    """Makes a generation from a snapshot. One thread at a time; made by `StateStore.build`.

    After an exception only `discard` may be called.

    Args:
        data_directory: where the generation goes.
        map_bytes: the most that it can ever take.
        cluster_id: whose snapshot is expected; 0: anybody's.

    Raises:
        StorageError: the disk or LMDB failed.
    """

    def __init__(self, data_directory: Path, map_bytes: int, cluster_id: int) -> None:
        self._cluster_id = cluster_id
        self._parser = SnapshotParser()
        self._transaction: lmdb.Transaction[bytes] | None = None
        self._tables: WritableRows | None = None
        self._uncommitted_bytes = 0
        self._is_usable, self._is_finished = True, False
        generation = new_generation(data_directory)
        try:
            self._opened = _create(generation, map_bytes)
        except BaseException:
            generation.remove()
            raise

    @property
    def meta(self) -> SnapshotMeta | None:
        """What the snapshot says of itself, once enough of it was fed."""
        return self._parser.meta

    @property
    def path(self) -> Path:
        """The directory of the generation."""
        return self._opened.path

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the snapshot; write the rows in them.

        Args:
            data: of any size. Up to a block of rows is in memory, and a transaction's pages.

        Raises:
            DataLossError: the snapshot is damaged.
            WrongClusterError: it is of another cluster.
            FailedPreconditionError: it has a newer format.
            StorageError: the disk or LMDB failed.
            InvariantError: an earlier call has raised, or `finish` was called.
        """
        self._begin_call()
        self._parser.feed(data)
        block = self._parser.next_block()
        self._check_cluster()
        while block is not None:
            self._put(block)
            block = self._parser.next_block()
        self._is_usable = True

    def finish(self, verify: Callable[[ReadTables], VerifiedMeta]) -> PreparedGeneration:
        """Verify what was made, and make it durable, with a checkpoint of its own.

        Args:
            verify: reads all rows, raises if any is damaged or missing, and returns what they say of
                themselves.

        Raises:
            DataLossError: the snapshot ended too early, or its rows are not what it says; or `verify` raised
                it.
            StorageError: the disk or LMDB failed.
            InvariantError: as for `feed`.
        """
        self._begin_call()
        meta = self._parser.finish()
        self._commit()
        with self._opened.read() as tables:
            _check_counts(tables, self._parser.rows)
            _check_agree(meta, verify(tables))
        self._opened.checkpoint(meta.index)
        fsync_directory(self._opened.path)
        fsync_directory(self._opened.path.parent)
        self._is_finished = True
        return PreparedGeneration(meta, self._opened)

    def discard(self) -> None:
        """Give it up: close the environment and remove the directory. Harmless after `finish`, and the second
        time.

        Raises:
            StorageError: the directory can't be removed; the next start does it.
        """
        if self._is_finished:
            return
        self._is_usable = False
        if self._transaction is not None:
            self._transaction.abort()
            self._transaction = self._tables = None
        remove_closed(self._opened)

    def _begin_call(self) -> None:
        if not self._is_usable:
            raise InvariantError(
                f"the builder of {self._opened.path} is used after it failed, or was finished or discarded"
            )
        self._is_usable = False  # until the call has come to its end

    def _check_cluster(self) -> None:
        meta = self._parser.meta
        if meta is not None and self._cluster_id not in (0, meta.cluster_id):
            raise WrongClusterError(
                f"the snapshot is of cluster {meta.cluster_id:#x}, and this node is of cluster "
                f"{self._cluster_id:#x}; nothing of it was used"
            )

    def _put(self, block: Block) -> None:
        for start in range(0, len(block.rows), ROWS_AT_ONCE):
            rows = block.rows[start : start + ROWS_AT_ONCE]
            self._writable().put_many(block.table, rows, append=True)
            self._uncommitted_bytes += sum(len(key) + len(value) for key, value in rows)
            if self._uncommitted_bytes >= TRANSACTION_BYTES:
                self._commit()

    def _writable(self) -> WritableRows:
        if self._tables is None:
            try:
                self._transaction = self._opened.environment.begin(write=True)
            except lmdb.Error as error:
                raise lmdb_failure("beginning to write", self._opened.path, error) from error
            self._tables = WritableRows(self._transaction, self._opened.handles, self._opened.path)
        return self._tables

    def _commit(self) -> None:
        """Commit the rows that were put, and have the disk write them."""
        if self._transaction is None:
            return
        transaction, self._transaction, self._tables = self._transaction, None, None
        self._uncommitted_bytes = 0
        try:
            transaction.commit()
            sync_data(self._opened.environment)
        except lmdb.Error as error:
            raise lmdb_failure("writing a snapshot's rows", self._opened.path, error) from error


def _create(generation: Generation, map_bytes: int) -> OpenGeneration:
    try:
        environment = create_environment(generation, map_bytes)
        try:
            handles = open_tables(environment)
            return OpenGeneration(environment, handles, generation, 0, environment.stat()["psize"])
        except BaseException:
            environment.close()
            raise
    except lmdb.Error as error:
        raise lmdb_failure("creating a generation of the state", generation.path, error) from error
    except OSError as error:
        raise disk_failure("creating a generation of the state", generation.path, error) from error


def _check_counts(tables: ReadTables, rows: dict[Table, int]) -> None:
    for table, count in rows.items():
        if tables.count(table) != count:
            raise DataLossError(
                f"{count} rows of table {table.name} were received, and {tables.count(table)} are there"
            )


def _check_agree(meta: SnapshotMeta, found: VerifiedMeta) -> None:
    said = (meta.cluster_id, meta.index, meta.term, meta.machine_version, meta.conf_state)
    held = (
        found.cluster_id,
        found.applied_index,
        found.applied_term,
        found.machine_version,
        found.conf_state,
    )
    if said != held:
        raise DataLossError(
            "a snapshot's (cluster, index, term, machine version, configuration) should be "
            f"{said}, and its rows say {held}"
        )
