"""The state's environment: transactions that wait for no disk, durable at checkpoints.

    store = StateStore.open(directory)          goes back to the last checkpoint after a crash, and takes one
    with store.write() as tables: ...           commits at the end, aborts on an exception
    with store.read() as tables: ...
    checkpoint = store.begin_checkpoint(index)  between two writes
    checkpoint.sync()                           on another thread
    checkpoint.finish()                         between two writes
    store.close(clean=True)                     if all is checkpointed: the next open is quick

A commit is visible at once and durable with the next checkpoint; what came after the last one is in the log.
How a checkpoint works stands in raftstate.store.checkpoint, how a start does in raftstate.store.start.

Threads: `write`, `begin_checkpoint`, `finish` and `close` belong to one thread, the one that applies. `read`
may be called on any. Never fork with a store open.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import lmdb

from raftstate.errors import ClosedError, InvariantError, RaftstateError, StorageError
from raftstate.machine.tables import ReadTables
from raftstate.store.checkpoint import Checkpoint, CheckpointRecord, Pin, lost_slot
from raftstate.store.files import disk_failure
from raftstate.store.generation import Generation, remove_leftovers
from raftstate.store.space import Reader, Space, environment_space, parse_readers
from raftstate.store.start import (
    READERS_WAIT_S,
    create_first_generation,
    mark_clean_stop,
    open_environment,
    open_tables,
    startable,
    walk,
)
from raftstate.store.transactions import Handles, Rows, WritableRows, lmdb_failure


class ReadTransaction(Rows):
    """`ReadTables` as of the last commit; a context manager that ends the transaction."""

    __slots__ = ()

    def __enter__(self) -> ReadTransaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._transaction.abort()


class WriteTransaction(WritableRows):
    """`WriteTables`; a context manager that commits, or aborts when its body raises."""

    __slots__ = ("_store",)

    def __init__(
        self, store: StateStore, transaction: lmdb.Transaction[bytes], handles: Handles, path: Path
    ) -> None:
        super().__init__(transaction, handles, path)
        self._store = store

    def __enter__(self) -> WriteTransaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._store._commit(self._transaction, self.dirtied_bytes)
        else:
            self._store._abort(self._transaction)


class StateStore:
    """The tables of the replicated state machine, on disk. `create` or `open` makes one."""

    def __init__(
        self,
        environment: lmdb.Environment,
        handles: Handles,
        generation: Generation,
        record: CheckpointRecord,
    ) -> None:
        """Used by `open` only: the environment, just opened at the checkpoint that `record` describes."""
        self._environment: lmdb.Environment | None = environment
        self._handles = handles
        self._generation = generation
        self._path = generation.path  # each transaction asks for it, and makes no new one
        self._data_fd = os.open(generation.data_file, os.O_RDONLY | os.O_CLOEXEC)
        self._page_bytes = record.meta.page_bytes
        self._durable_applied_index = record.applied_index
        self._pin: Pin | None = None
        self._checkpoint: Checkpoint | None = None
        self._writing = False
        self._failure: RaftstateError | None = None
        self._dirtied_bytes = 0
        self._dirtied_bytes_at_begin = 0

    @classmethod
    def create(cls, data_directory: Path, map_bytes: int) -> StateStore:
        """Create an empty state and open it. A creation that was cut short by a crash is done again.

        Args:
            data_directory: the node's directory, whose lock the caller holds.
            map_bytes: the most that the state can ever take, fixed from here on.

        Raises:
            FailedPreconditionError: there is one already.
            DataLossError: there is one, but CURRENT is missing.
            StorageError: the disk or LMDB failed.
        """
        create_first_generation(data_directory, map_bytes)
        return cls.open(data_directory)

    @classmethod
    def open(
        cls,
        data_directory: Path,
        *,
        map_bytes: int = 0,
        readers_wait_s: float = READERS_WAIT_S,
        verify: Callable[[ReadTables], None] = walk,
    ) -> StateStore:
        """Open the state at its last durable checkpoint, or after a clean stop at its end, which is the same.

        A checkpoint is taken before this returns: its reader protects what the next crash would go back to.

        Args:
            data_directory: the node's directory, whose lock the caller holds.
            map_bytes: the most that the state can take, if that is more than it was created with.
            readers_wait_s: how long to wait, after a crash, for other processes to close the environment, in
                seconds.
            verify: reads through the copy that is made after a failed sync, and raises if it can't be
                trusted.

        Raises:
            FailedPreconditionError: there is no state in the directory.
            DataLossError: CURRENT or the checkpoint is missing or damaged, or a copy did not pass `verify`.
            StorageError: the disk or LMDB failed.
        """
        with startable(data_directory, readers_wait_s=readers_wait_s, verify=verify) as (generation, record):
            store = cls._opened(generation, record, map_bytes)
        try:
            store.clear_dead_readers()
            store.checkpoint(record.applied_index)
            remove_leftovers(generation)
        except BaseException:
            store.close(clean=False)
            raise
        return store

    @classmethod
    def _opened(cls, generation: Generation, record: CheckpointRecord, map_bytes: int) -> StateStore:
        try:
            # Before anything is read: a map must not grow under a live transaction.
            environment = open_environment(generation, max(record.meta.map_bytes, map_bytes))
            try:
                return cls(environment, open_tables(environment), generation, record)
            except BaseException:
                environment.close()
                raise
        except lmdb.Error as error:
            raise lmdb_failure("opening the state", generation.path, error) from error
        except OSError as error:
            raise disk_failure("opening the state", generation.path, error) from error

    @property
    def path(self) -> Path:
        """The directory of the generation that is open."""
        return self._path

    @property
    def durable_applied_index(self) -> int:
        """The last log entry that a crash can't take from the state: how far the log may be cut."""
        return self._durable_applied_index

    @property
    def dirtied_bytes(self) -> int:
        """Bytes of pages written since the last durable checkpoint began: an estimate, rather too high."""
        return self._dirtied_bytes

    @property
    def failure(self) -> RaftstateError | None:
        """Why nothing can be written until the node is started again; None as long as all is well."""
        return self._failure

    def size_bytes(self) -> int:
        """Return the size of the data file, free pages included."""
        try:
            return os.fstat(self._data_fd).st_size
        except OSError as error:
            raise disk_failure("looking at the state's size", self.path, error) from error

    def read(self) -> ReadTransaction:
        """Begin to read what was committed last.

        Use it as a context manager, and end it soon: it keeps pages from being reused.

        Raises:
            ResourceExhaustedError: no reader slot is free; only this read suffers.
            StorageError: LMDB failed.
            ClosedError: the store is closed.
        """
        environment = self._open_environment()
        try:
            transaction = environment.begin()
        except lmdb.Error as error:
            raise lmdb_failure("beginning to read", self.path, error) from error
        return ReadTransaction(transaction, self._handles, self.path)

    def write(self) -> WriteTransaction:
        """Begin a transaction. As a context manager it commits at the end, or aborts when the body raises.

        Raises:
            StorageError: the state has stopped (`failure`), or LMDB failed. A failure to commit is raised at
                the end of the context; unless it is also in `failure`, it was for want of space, nothing was
                changed, and the transaction may be tried again.
            InvariantError: another one is open.
            ClosedError: the store is closed.
        """
        environment = self._open_environment()
        if self._writing:
            raise InvariantError("a writing transaction is begun while another one is open")
        self._require_protection()
        try:
            transaction = environment.begin(write=True)
        except lmdb.Error as error:
            raise self._write_failure("beginning to write", error, 0) from error
        self._writing = True
        return WriteTransaction(self, transaction, self._handles, self.path)

    def begin_checkpoint(self, applied_index: int) -> Checkpoint:
        """Begin a checkpoint of all that is committed (steps 1 and 2).

        Args:
            applied_index: the last log entry applied in it.

        Returns:
            The checkpoint: call its `sync` on a thread that may block, then its `finish` on this one.

        Raises:
            InvariantError: a writing transaction or another checkpoint is open, or the index is behind the
                last checkpoint's.
            StorageError: the state has stopped, or LMDB or the disk failed.
            ResourceExhaustedError: no reader slot is free.
            ClosedError: the store is closed.
        """
        environment = self._open_environment()
        self._require_no_failure()
        if self._writing or self._checkpoint is not None:
            raise InvariantError(
                "a checkpoint is begun within a transaction, or while another checkpoint is in progress"
            )
        if applied_index < self._durable_applied_index:
            raise InvariantError(
                f"a checkpoint at index {applied_index}, behind the last one's {self._durable_applied_index}"
            )
        pin = Pin(environment, self._data_fd, self._page_bytes, self.path)
        self._dirtied_bytes_at_begin = self._dirtied_bytes
        self._checkpoint = Checkpoint(
            environment, self._generation, pin, applied_index, stop=self._stop, finished=self._finished
        )
        return self._checkpoint

    def checkpoint(self, applied_index: int) -> None:
        """Take a whole checkpoint, for starts and stops: waits for the disk. Raises what its steps do."""
        checkpoint = self.begin_checkpoint(applied_index)
        checkpoint.sync()
        checkpoint.finish()

    def clear_dead_readers(self) -> int:
        """Give back the slots, and so the pages, of readers whose process is gone; return how many."""
        try:
            return self._open_environment().reader_check()
        except lmdb.Error as error:
            raise lmdb_failure("clearing dead readers", self.path, error) from error

    def space(self) -> Space:
        """Measure the state's file. Any thread.

        Raises:
            ResourceExhaustedError: no reader slot is free.
            StorageError: LMDB failed.
            ClosedError: the store is closed.
        """
        with self.read() as tables:
            tables_bytes = tables.pages_bytes()
        try:
            return environment_space(self._open_environment(), tables_bytes)
        except lmdb.Error as error:
            raise lmdb_failure("measuring the state", self.path, error) from error

    def readers(self) -> tuple[list[Reader], int]:
        """Return who reads the state now, in this process and in others, and the id of the newest commit: who
        reads that one keeps no page from being used again. Takes no slot. Any thread.

        Raises:
            StorageError: LMDB failed.
            ClosedError: the store is closed.
        """
        try:
            environment = self._open_environment()
            newest: int = environment.info()["last_txnid"]
            return parse_readers(environment.readers()), newest
        except lmdb.Error as error:
            raise lmdb_failure("listing readers", self.path, error) from error

    def close(self, *, clean: bool) -> None:
        """Close the environment. No other thread may be in a read.

        Args:
            clean: leave the marker of a clean stop, so that the next open need not distrust the files.

        Raises:
            InvariantError: `clean`, but something was committed after the last checkpoint, or the state has
                stopped.
            StorageError: the marker could not be written; the next open goes back to the checkpoint, which
                loses nothing.
        """
        if self._environment is None:
            return
        if clean and (
            self._dirtied_bytes or self._writing or self._checkpoint is not None or self._failure is not None
        ):
            raise InvariantError(
                f"a clean stop needs a last checkpoint: {self._dirtied_bytes} bytes were dirtied after it, "
                f"failure: {self._failure}"
            )
        environment, self._environment = self._environment, None
        environment.close()
        os.close(self._data_fd)
        if clean:
            mark_clean_stop(self._generation.data_directory)

    def _open_environment(self) -> lmdb.Environment:
        if self._environment is None:
            raise ClosedError(f"the state in {self.path} is closed")
        return self._environment

    def _require_no_failure(self) -> None:
        if self._failure is not None:
            message = f"the state takes no writes until the node is started again: {self._failure.message}"
            raise StorageError(message, detail=self._failure.detail) from self._failure

    def _require_protection(self) -> None:
        """Raise unless the last durable checkpoint's pages are safe from being written to.

        Asked before a transaction, which may spill pages, and before it commits: at 0.3 us each, all but the
        moment of the write itself.
        """
        self._require_no_failure()
        if self._pin is None:
            raise InvariantError("a transaction before the checkpoint that every start begins with")
        if not self._pin.stands():
            failure = lost_slot(self.path)
            self._stop(failure)
            raise failure

    def _commit(self, transaction: lmdb.Transaction[bytes], dirtied_bytes: Callable[[], int]) -> None:
        written = 0
        try:
            self._require_protection()
            written = dirtied_bytes()
            transaction.commit()
        except lmdb.Error as error:
            raise self._write_failure("committing", error, written) from error
        finally:
            self._abort(transaction)
        self._dirtied_bytes += written

    def _abort(self, transaction: lmdb.Transaction[bytes]) -> None:
        transaction.abort()
        self._writing = False

    def _write_failure(self, doing: str, error: lmdb.Error, wanted_bytes: int) -> RaftstateError:
        """Make the error for a failed write; it stops the state, unless space is all that lacks."""
        failure = lmdb_failure(doing, self.path, error)
        # A write that the disk had room for in part only is an EIO to LMDB.
        if failure.detail.get("errno") == errno.EIO and self._free_bytes() < wanted_bytes:
            failure = disk_failure(doing, self.path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        if failure.detail.get("errno") not in (errno.ENOSPC, errno.EDQUOT):
            self._stop(failure)
        return failure

    def _free_bytes(self) -> int:
        try:
            system = os.fstatvfs(self._data_fd)
        except OSError as error:
            raise disk_failure("looking for free space", self.path, error) from error
        return system.f_bavail * system.f_frsize

    def _stop(self, failure: RaftstateError) -> None:
        self._failure = self._failure or failure

    def _finished(self, checkpoint: Checkpoint) -> None:
        """Step 5: the checkpoint is durable, the one before it may be written over."""
        if checkpoint is not self._checkpoint:
            raise InvariantError(
                f"the checkpoint at index {checkpoint.applied_index} is finished twice, or after a close"
            )
        previous, self._pin, self._checkpoint = self._pin, checkpoint.pin, None
        if previous is not None:
            previous.end()
        self._durable_applied_index = checkpoint.applied_index
        self._dirtied_bytes -= self._dirtied_bytes_at_begin
