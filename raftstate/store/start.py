"""The start rule of the state: which files to open, and what must be done to them first.

After a clean stop the environment is opened as it stands. After anything else the meta pages on the disk mean
nothing: they may be of a commit of which other pages were lost, and if the machine did not go down, what can
be read now is the page cache, not the disk. So the state goes back to its last durable checkpoint, whose meta
page the file `checkpoint` holds, and the log replays what came after:

    exclusive lock on `readers` granted   the checkpoint's meta page goes into both slots of data.mdb,
                                          lock.mdb is removed
    not granted within a second, or a     data.mdb is copied into a new generation, the meta pages go into
    sync of data.mdb failed before        the copy, it is synced (and after a failed sync read through),
                                          CURRENT is switched

An environment that another process has open is never taken over, since its reader table is in the lock file
and its map in memory.

Every step may be the last one before a crash. Before the switch of CURRENT nothing that it names has changed
except meta pages, which the next start writes again; after it, what remains is a directory to remove.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
from lmdb.verify import VerifyError
from lmdb.verify import verify as verify_pages

from raftstate.errors import DataLossError, FailedPreconditionError, StorageError
from raftstate.machine.tables import ReadTables, Table
from raftstate.store.checkpoint import CheckpointRecord, sync_data
from raftstate.store.files import (
    copy_bytes,
    disk_failure,
    durable_remove,
    durable_write,
    require_readable,
)
from raftstate.store.generation import Generation, current_generation, generations
from raftstate.store.meta_page import MetaPage, read_meta_pages
from raftstate.store.transactions import Handles, Rows, lmdb_failure, table_name

READERS_WAIT_S = 1.0
"""How long a start waits for other processes to close the environment before it copies it."""

MAX_READERS = 512
"""Reader slots of the environment, for this node and the processes that read its files: 64 bytes each."""

_CLEAN_STOP = "clean-stop"
_BAD_COPY = "the copy of the state made after a failed sync can't be trusted"
_REPLACE = "replace this node, the others hold the data"


def open_environment(generation: Generation, map_bytes: int, *, create: bool = False) -> lmdb.Environment:
    """Open the environment of a generation for writing.

    `sync=False` is what this environment is about, see raftstate.store.checkpoint. Without readahead, since
    the keys of a batch lie anywhere in the file.
    """
    return lmdb.open(
        str(generation.path),
        map_size=map_bytes,
        max_dbs=len(Table),
        max_readers=MAX_READERS,
        sync=False,
        readahead=False,
        create=create,
    )


def create_environment(generation: Generation, map_bytes: int) -> lmdb.Environment:
    """Make an environment with empty tables in the directory of a generation, and leave it open.

    Raises:
        lmdb.Error: LMDB or the disk failed.
    """
    environment = open_environment(generation, map_bytes, create=True)
    try:
        with environment.begin(write=True) as transaction:
            for table in Table:
                environment.open_db(table_name(table), txn=transaction)
    except BaseException:
        environment.close()
        raise
    return environment


def create_first_generation(data_directory: Path, map_bytes: int) -> None:
    """Make `state-1` with empty tables and a checkpoint at index 0. A creation that was cut short is done
    again from the start.

    Args:
        data_directory: the node's directory.
        map_bytes: the size of the map, and so the most that the state can ever hold. Address space, not disk
            space.

    Raises:
        FailedPreconditionError: there is a state already.
        DataLossError: there is one, but CURRENT is missing.
        StorageError: the disk or LMDB failed.
    """
    if current_generation(data_directory) is not None:
        raise FailedPreconditionError(
            f"{data_directory} holds a state already: open it, or remove the directory to begin anew"
        )
    for leftover in generations(data_directory):
        refuse_orphan(leftover)
        leftover.remove()
    generation = Generation(data_directory, 1)
    generation.make_directory()
    try:
        with create_environment(generation, map_bytes) as environment:
            sync_data(environment)
            meta = max(read_meta_pages(generation.data_file), key=lambda page: page.transaction_id)
    except lmdb.Error as error:
        raise lmdb_failure("creating the state", generation.path, error) from error
    durable_write(generation.checkpoint_file, CheckpointRecord(0, meta).to_bytes())
    generation.make_current()


def refuse_orphan(generation: Generation) -> None:
    """Raise `DataLossError` if a generation that no CURRENT names holds more than an unfinished creation."""
    if (
        generation.checkpoint_file.exists()
        and CheckpointRecord.read(generation.checkpoint_file).applied_index > 0
    ):
        raise DataLossError(
            f"{generation.data_directory / 'CURRENT'} is missing, but {generation.path} holds a state: "
            f"{_REPLACE}"
        )


def mark_clean_stop(data_directory: Path) -> None:
    """Note that all commits are in the last checkpoint and the environment is closed."""
    durable_write(data_directory / _CLEAN_STOP, b"")


def distrust_state(data_directory: Path) -> None:
    """Have the next start copy the state, as after a failed sync: the marker that says so could not be
    written then.

    Raises:
        StorageError: it still can't be.
    """
    generation = current_generation(data_directory)
    if generation is not None:
        durable_write(generation.eio_marker, b"")


@contextmanager
def startable(
    data_directory: Path, *, readers_wait_s: float, verify: Callable[[ReadTables], None]
) -> Iterator[tuple[Generation, CheckpointRecord]]:
    """Bring the state into a form that can be opened, by the rule above; open it inside the context.

    Args:
        data_directory: the node's directory, whose lock the caller holds.
        readers_wait_s: how long to wait for other processes that have the environment open, in seconds.
        verify: reads a copy made after a failed sync, and raises if it can't be trusted.

    Yields:
        The generation to open, and its last durable checkpoint.

    Raises:
        FailedPreconditionError: there is no state.
        DataLossError: the checkpoint is missing or damaged, or a copy did not pass `verify`.
        StorageError: the disk failed.
    """
    generation = current_generation(data_directory)
    if generation is None:
        for orphan in generations(data_directory):
            refuse_orphan(orphan)
        raise FailedPreconditionError(f"{data_directory} holds no state: create it first")
    stopped_cleanly = (data_directory / _CLEAN_STOP).exists()
    durable_remove(data_directory / _CLEAN_STOP)
    record = CheckpointRecord.read(generation.checkpoint_file)
    failed_to_sync = generation.eio_marker.exists()
    if stopped_cleanly and not failed_to_sync and _ends_with(generation, record.meta):
        yield generation, record
        return
    with generation.without_readers(readers_wait_s) as granted:
        if granted and not failed_to_sync:
            _rewind(generation, record)
            yield generation, record
            return
    copy = _copy(generation, record, verify if failed_to_sync else None)
    yield copy, record


def _ends_with(generation: Generation, meta: MetaPage) -> bool:
    """Whether LMDB would open exactly the checkpoint, and all of it: then a clean stop's marker and file
    belong together. Behind the end of a file that was cut off its map raises SIGBUS."""
    try:
        pages = read_meta_pages(generation.data_file)
        size = generation.data_file.stat().st_size
    except DataLossError:
        return False
    except OSError as error:
        raise disk_failure("reading the meta pages", generation.data_file, error) from error
    is_whole = size >= (meta.last_page + 1) * meta.page_bytes
    return is_whole and meta in pages and all(page.transaction_id <= meta.transaction_id for page in pages)


def _rewind(generation: Generation, record: CheckpointRecord) -> None:
    """Let LMDB open the checkpoint, in place."""
    try:
        fd = os.open(generation.data_file, os.O_RDWR | os.O_CLOEXEC)
        try:
            write_meta_pages(fd, record.meta)
        finally:
            os.close(fd)
        # Its reader table is of processes that are gone, this node's earlier runs among them.
        generation.lock_file.unlink(missing_ok=True)
    except OSError as error:
        raise disk_failure("going back to the last checkpoint", generation.data_file, error) from error


def write_meta_pages(fd: int, meta: MetaPage) -> None:
    """Write a checkpoint's meta page into its slot of a data file, and its predecessor into the other.

    Raises:
        OSError: a write failed.
    """
    for page in (meta.predecessor(), meta):
        content = page.to_bytes()
        if os.pwrite(fd, content, page.page_number * page.page_bytes) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    # The file may end before the last page if that one is free. A page that is in use and was cut off reads
    # as zeros then, which LMDB reports; behind the end of a file its map raises SIGBUS.
    used_bytes = (meta.last_page + 1) * meta.page_bytes
    if os.fstat(fd).st_size < used_bytes:
        os.ftruncate(fd, used_bytes)


def _copy(
    generation: Generation, record: CheckpointRecord, verify: Callable[[ReadTables], None] | None
) -> Generation:
    """Copy the checkpoint into a new generation and make it current."""
    copy = Generation(generation.data_directory, generation.number + 1)
    if copy.path.exists():
        copy.remove()  # begun by a start that was cut short: CURRENT never named it, so nobody has it open
    copy.make_directory()
    try:
        source = os.open(generation.data_file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            target = os.open(copy.data_file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                copy_bytes(source, target, (record.meta.last_page + 1) * record.meta.page_bytes)
                write_meta_pages(target, record.meta)
                os.fsync(target)
            finally:
                os.close(target)
        finally:
            os.close(source)
    except OSError as error:
        if error.errno == errno.EIO:
            require_readable(generation.data_file)
        raise disk_failure(f"copying {generation.data_file}", copy.data_file, error) from error
    if verify is not None:
        _verify(copy, verify)
    if generation.distrust_file.exists():
        durable_write(copy.distrust_file, _read(generation.distrust_file))
    durable_write(copy.checkpoint_file, record.to_bytes())
    copy.make_current()
    return copy


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise disk_failure("reading what was noted of the state", path, error) from error


def _verify(generation: Generation, verify: Callable[[ReadTables], None]) -> None:
    """Check a copy's pages, its free list among them, and then let `verify` read it, without a lock file."""
    environment_path = str(generation.path)
    try:
        problems: list[str] = verify_pages(environment_path)  # type: ignore[no-untyped-call]  # has no stub
        if problems:
            raise DataLossError(f"{_BAD_COPY}: {problems[0]} ({len(problems)} such findings); {_REPLACE}")
        with (
            lmdb.open(environment_path, max_dbs=len(Table), readonly=True, lock=False) as environment,
            environment.begin() as transaction,
        ):
            verify(Rows(transaction, open_tables(environment, transaction), generation.path))
    except (lmdb.Error, VerifyError, StorageError) as error:
        raise DataLossError(f"{_BAD_COPY}: {error}; {_REPLACE}") from error


def check_pages(generation: Generation) -> None:
    """Check the structure of all pages that the checkpoint sees, its free list among them, without LMDB: it
    trusts what it reads, and a page that leads it astray can end the process.

    Takes time by the size of the state.

    Raises:
        DataLossError: a page is not what it should be.
    """
    try:
        problems: list[str] = verify_pages(str(generation.path))  # type: ignore[no-untyped-call]  # has no stub
    except VerifyError as error:
        raise DataLossError(
            f"the pages of {generation.data_file} are damaged: {error}; {_REPLACE}"
        ) from error
    except OSError as error:
        if error.errno == errno.EIO:
            # LMDB would be killed by it: it reads through a map.
            raise DataLossError(f"{generation.data_file} can't be read: {error}; {_REPLACE}") from error
        raise disk_failure("checking the pages of the state", generation.data_file, error) from error
    if problems:
        raise DataLossError(
            f"the pages of {generation.data_file} are damaged: {problems[0]} ({len(problems)} such "
            f"findings); {_REPLACE}"
        )


def open_tables(environment: lmdb.Environment, transaction: lmdb.Transaction[bytes] | None = None) -> Handles:
    """Open the handles of all tables, which exist since the creation.

    With a transaction they end with it. Without one py-lmdb begins a writing one, which changes nothing and
    so commits nothing.
    """
    return {table: environment.open_db(table_name(table), txn=transaction, create=False) for table in Table}


def walk(tables: ReadTables) -> None:
    """Read every row of every table, and count them.

    Raises:
        DataLossError: a table has another number of rows than it says.
        StorageError: a page can't be read.
    """
    for table in Table:
        found = sum(1 for _ in tables.scan(table))
        if found != tables.count(table):
            raise DataLossError(f"table {table.name} has {found} rows, its record says {tables.count(table)}")
