"""One generation of the state while it is open: its transactions, its checkpoints, and who still reads it.

Threads: `write`, `begin_checkpoint`, `finish` of the checkpoint and `close` belong to one thread, the one
that applies. `read` may be called on any, and a read may end on any. Never fork with one open.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from threading import Lock
from types import TracebackType

import lmdb

from raftstate.errors import ClosedError, InvariantError, RaftstateError, StorageError
from raftstate.machine.tables import Table
from raftstate.measure import Histogram
from raftstate.store.checkpoint import Checkpoint, CheckpointRecord, Pin, lost_slot
from raftstate.store.files import disk_failure
from raftstate.store.generation import Generation
from raftstate.store.space import Reader, Space, environment_space, parse_readers
from raftstate.store.start import open_environment, open_tables
from raftstate.store.transactions import Handles, Rows, WritableRows, lmdb_failure


class ReadTransaction(Rows):
    """`ReadTables` as of the last commit; a context manager that ends the transaction."""

    __slots__ = ("_source",)

    def __init__(
        self, source: OpenGeneration, transaction: lmdb.Transaction[bytes], handles: Handles
    ) -> None:
        super().__init__(transaction, handles, source.path)
        self._source: OpenGeneration | None = source

    def __enter__(self) -> ReadTransaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        source, self._source = self._source, None
        if source is not None:
            self._transaction.abort()
            source._reader_left()


class WriteTransaction(WritableRows):
    """`WriteTables`; a context manager that commits, or aborts when its body raises."""

    __slots__ = ("_target",)

    def __init__(
        self, target: OpenGeneration, transaction: lmdb.Transaction[bytes], handles: Handles
    ) -> None:
        super().__init__(transaction, handles, target.path)
        self._target = target

    def __enter__(self) -> WriteTransaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._target._commit(self._transaction, self.dirtied_bytes)
        else:
            self._target._abort(self._transaction)


class OpenGeneration:
    """A generation's environment, opened once in this process, at a checkpoint or before its first one.

    Args:
        environment: just opened.
        handles: of its tables.
        generation: where it stands.
        applied_index: the last log entry that it durably holds.
        page_bytes: its page size.
    """

    def __init__(
        self,
        environment: lmdb.Environment,
        handles: Handles,
        generation: Generation,
        applied_index: int,
        page_bytes: int,
    ) -> None:
        self.generation = generation
        self.path = generation.path
        """The directory. Each transaction asks for it, and makes no new one."""
        self.durable_applied_index = applied_index
        """The last log entry that a crash can't take from it."""
        self.dirtied_bytes = 0
        """Bytes of pages written since the last durable checkpoint began: an estimate, rather too high."""
        self.failure: RaftstateError | None = None
        """Why nothing can be written to it any more; None as long as all is well."""
        self.commit_seconds = Histogram()
        """Of commits alone, which wait for no disk; that of the generation before, which it goes on with."""
        self.environment = environment
        self.handles = handles
        self._data_fd = os.open(generation.data_file, os.O_RDONLY | os.O_CLOEXEC)
        self._page_bytes = page_bytes
        self._pin: Pin | None = None
        self._checkpoint: Checkpoint | None = None
        self._writing = False
        self._dirtied_bytes_at_begin = 0
        self._lock = Lock()
        """Held while readers are counted, and never while anything waits."""
        self._readers = 0
        self._ends: Callable[[], object] | None = None
        """Called when the last reader has left; set once no new ones are let in."""
        self._closed = False

    @classmethod
    def open(cls, generation: Generation, record: CheckpointRecord, map_bytes: int) -> OpenGeneration:
        """Open a generation that stands at the checkpoint of `record`.

        Args:
            generation: which one.
            record: its last checkpoint.
            map_bytes: the most that it can take, if that is more than it was created with.

        Raises:
            StorageError: LMDB or the disk failed.
        """
        try:
            # Before anything is read: a map must not grow under a live transaction.
            environment = open_environment(generation, max(record.meta.map_bytes, map_bytes))
            try:
                handles = open_tables(environment)
                return cls(environment, handles, generation, record.applied_index, record.meta.page_bytes)
            except BaseException:
                environment.close()
                raise
        except lmdb.Error as error:
            raise lmdb_failure("opening the state", generation.path, error) from error
        except OSError as error:
            raise disk_failure("opening the state", generation.path, error) from error

    @property
    def is_idle(self) -> bool:
        """Whether neither a writing transaction nor a checkpoint is under way."""
        return not self._writing and self._checkpoint is None

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    @property
    def map_bytes(self) -> int:
        """The most that it can take."""
        return self.environment.info()["map_size"]

    def space(self) -> Space:
        """Measure the file. Any thread. Raises as `StateStore.space`."""
        with self.read() as tables:
            tables_bytes = sum(map(tables.stored_bytes, Table))
            try:
                return environment_space(self.environment, tables_bytes)
            except lmdb.Error as error:
                raise lmdb_failure("measuring the state", self.path, error) from error

    def readers(self) -> tuple[list[Reader], int]:
        """Return who reads it now. Any thread. Raises as `StateStore.readers`."""
        try:
            newest: int = self.environment.info()["last_txnid"]
            return parse_readers(self.environment.readers()), newest
        except lmdb.Error as error:
            raise lmdb_failure("listing readers", self.path, error) from error

    def size_bytes(self) -> int:
        """Return the size of the data file, free pages included."""
        try:
            return os.fstat(self._data_fd).st_size
        except OSError as error:
            raise disk_failure("looking at the state's size", self.path, error) from error

    def read(self) -> ReadTransaction:
        """Begin to read what was committed last.

        Raises:
            ClosedError: it is closed, or closes with its last reader.
            ResourceExhaustedError: no reader slot is free; only this read suffers.
            StorageError: LMDB failed.
        """
        with self._lock:
            self._require_open()
            self._readers += 1
        try:
            transaction = self.environment.begin()
        except lmdb.Error as error:
            self._reader_left()
            raise lmdb_failure("beginning to read", self.path, error) from error
        return ReadTransaction(self, transaction, self.handles)

    def write(self) -> WriteTransaction:
        """See `StateStore.write`."""
        self._require_open()
        if self._writing:
            raise InvariantError("a writing transaction is begun while another one is open")
        self._require_protection()
        try:
            transaction = self.environment.begin(write=True)
        except lmdb.Error as error:
            raise self._write_failure("beginning to write", error, 0) from error
        self._writing = True
        return WriteTransaction(self, transaction, self.handles)

    def begin_checkpoint(self, applied_index: int) -> Checkpoint:
        """See `StateStore.begin_checkpoint`."""
        self._require_open()
        self._require_no_failure()
        if not self.is_idle:
            raise InvariantError(
                "a checkpoint is begun within a transaction, or while another checkpoint is in progress"
            )
        if applied_index < self.durable_applied_index:
            raise InvariantError(
                f"a checkpoint at index {applied_index}, behind the last one's {self.durable_applied_index}"
            )
        pin = Pin(self.environment, self._data_fd, self._page_bytes, self.path)
        self._dirtied_bytes_at_begin = self.dirtied_bytes
        self._checkpoint = Checkpoint(
            self.environment, self.generation, pin, applied_index, stop=self._stop, finished=self._finished
        )
        return self._checkpoint

    def checkpoint(self, applied_index: int) -> None:
        """Take a whole checkpoint: waits for the disk. Raises what its steps do."""
        checkpoint = self.begin_checkpoint(applied_index)
        checkpoint.sync()
        checkpoint.finish()

    def clear_dead_readers(self) -> int:
        """See `StateStore.clear_dead_readers`."""
        self._require_open()
        try:
            return self.environment.reader_check()
        except lmdb.Error as error:
            raise lmdb_failure("clearing dead readers", self.path, error) from error

    # -- its end

    def retire(self, ended: Callable[[], object]) -> None:
        """Let no new reader in, and have `ended` called, once, when the last one has left: on its thread, or
        on this one if there is none.

        Nobody writes to it any more. The checkpoint's reader goes at once: no start will go back to it.

        Raises:
            InvariantError: a writing transaction or a checkpoint is under way.
        """
        if not self.is_idle:
            raise InvariantError(f"{self.path} is retired within a transaction or a checkpoint")
        with self._lock:
            self._ends = ended
            is_last = self._readers == 0
        pin, self._pin = self._pin, None
        if pin is not None:
            pin.end()
        if is_last:
            ended()

    def close(self) -> bool:
        """Close the environment; return False if it was closed already. No other thread may be in a read."""
        with self._lock:
            if self._closed:
                return False
            self._closed = True
        self.environment.close()
        os.close(self._data_fd)
        return True

    def _reader_left(self) -> None:
        with self._lock:
            self._readers -= 1
            ended = self._ends if self._readers == 0 else None
        if ended is not None:
            ended()

    # -- writing

    def _require_open(self) -> None:
        if self._closed or self._ends is not None:
            raise ClosedError(f"the state in {self.path} is closed")

    def _require_no_failure(self) -> None:
        if self.failure is not None:
            message = f"the state takes no writes until the node is started again: {self.failure.message}"
            raise StorageError(message, detail=self.failure.detail) from self.failure

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
            began_ns = time.perf_counter_ns()
            transaction.commit()
            self.commit_seconds.observe_ns(time.perf_counter_ns() - began_ns)
        except lmdb.Error as error:
            raise self._write_failure("committing", error, written) from error
        finally:
            self._abort(transaction)
        self.dirtied_bytes += written

    def _abort(self, transaction: lmdb.Transaction[bytes]) -> None:
        transaction.abort()
        self._writing = False

    def _write_failure(self, doing: str, error: lmdb.Error, wanted_bytes: int) -> RaftstateError:
        """Make the error for a failed write; it stops the state, unless space is all that lacks."""
        failure = lmdb_failure(doing, self.path, error)
        # A write that the disk had room for in part only is an EIO to LMDB.
        if failure.detail.get("errno") == errno.EIO and self.disk_free_bytes() < wanted_bytes:
            failure = disk_failure(doing, self.path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        if failure.detail.get("errno") not in (errno.ENOSPC, errno.EDQUOT):
            self._stop(failure)
        return failure

    def disk_free_bytes(self) -> int:
        """Return what the file system has left for others than its superuser. Raises `StorageError`."""
        try:
            system = os.fstatvfs(self._data_fd)
        except OSError as error:
            raise disk_failure("looking for free space", self.path, error) from error
        return system.f_bavail * system.f_frsize

    def _stop(self, failure: RaftstateError) -> None:
        self.failure = self.failure or failure

    def _finished(self, checkpoint: Checkpoint) -> None:
        """Step 5: the checkpoint is durable, the one before it may be written over."""
        if checkpoint is not self._checkpoint or self._closed:
            raise InvariantError(
                f"the checkpoint at index {checkpoint.applied_index} is finished twice, or after a close"
            )
        previous, self._pin, self._checkpoint = self._pin, checkpoint.pin, None
        if previous is not None:
            previous.end()
        self.durable_applied_index = checkpoint.applied_index
        self.dirtied_bytes -= self._dirtied_bytes_at_begin


def remove_closed(opened: OpenGeneration) -> None:
    """Close a retired generation and remove its directory. Blocks for as long as unlinking its file takes.

    A crash on the way leaves a part of a directory that CURRENT does not name: the next start removes it. So
    does it if another process still has the environment open. Harmless when it was closed before.

    Raises:
        StorageError: the directory can't be removed; the next start tries again.
    """
    if not opened.close() or not opened.path.exists():
        return
    with opened.generation.without_readers(0) as granted:
        if granted:
            opened.generation.remove()
