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

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Condition
from typing import TypeVar

from raftstate.errors import (
    ClosedError,
    FailedPreconditionError,
    InvariantError,
    RaftstateError,
    StorageError,
)
from raftstate.machine.tables import ReadTables
from raftstate.measure import Histogram
from raftstate.store.checkpoint import Checkpoint
from raftstate.store.files import disk_failure, durable_remove, durable_write
from raftstate.store.generation import remove_leftovers
from raftstate.store.open_generation import (
    OpenGeneration,
    ReadTransaction,
    WriteTransaction,
    remove_closed,
)
from raftstate.store.snapshot import PreparedGeneration, SnapshotBuilder
from raftstate.store.space import Reader, Space
from raftstate.store.start import (
    READERS_WAIT_S,
    check_pages,
    create_first_generation,
    mark_clean_stop,
    startable,
    walk,
)

T = TypeVar("T")

Run = Callable[[Callable[[], None]], object]
"""Has a callable called, soon, on a thread that may block; as `Executor.submit` does."""


class StateStore:
    """The tables of the replicated state machine, on disk. `create` or `open` makes one."""

    def __init__(self, opened: OpenGeneration) -> None:
        """Used by `open` only: the generation that CURRENT names, just opened."""
        self._opened = opened
        self._data_directory = opened.generation.data_directory
        self._offered: PreparedGeneration | None = None
        """Named by CURRENT, or about to be, and not adopted yet."""
        self._unnamed: PreparedGeneration | None = None
        """The same, if CURRENT could not be written yet. Of the thread that offered it."""
        self._adopted = Condition()
        """Notified when what was made current is adopted."""
        self._retired: set[OpenGeneration] = set()
        """Replaced ones that are not closed yet."""

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
        suspect: bool = False,
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
            suspect: check the structure of all pages before LMDB reads any: the last run crashed, and a page
                may be why.

        Raises:
            FailedPreconditionError: there is no state in the directory.
            DataLossError: CURRENT or the checkpoint is missing or damaged, or a copy did not pass `verify`.
            StorageError: the disk or LMDB failed.
        """
        with startable(data_directory, readers_wait_s=readers_wait_s, verify=verify) as (generation, record):
            if suspect:
                check_pages(generation)
            store = cls(OpenGeneration.open(generation, record, map_bytes))
        try:
            store.clear_dead_readers()
            store.checkpoint(record.applied_index)
            remove_leftovers(generation)
        except BaseException:
            store.close(clean=False)
            raise
        return store

    @property
    def path(self) -> Path:
        """The directory of the generation that is open."""
        return self._opened.path

    @property
    def durable_applied_index(self) -> int:
        """The last log entry that a crash can't take from the state: how far the log may be cut.

        Once CURRENT names another generation a start goes by that one, though it is not adopted yet.
        """
        index = self._opened.durable_applied_index
        offered = self._offered
        return index if offered is None else min(index, offered.opened.durable_applied_index)

    @property
    def dirtied_bytes(self) -> int:
        """Bytes of pages written since the last durable checkpoint began: an estimate, rather too high."""
        return self._opened.dirtied_bytes

    def distrust(self, reason: str) -> None:
        """Note durably, beside the state that is open, that it can't be trusted. It stays noted until another
        generation takes its place. Blocks on the disk; any thread.

        Raises `StorageError` when it could not be noted.
        """
        durable_write(self._opened.generation.distrust_file, reason.encode())

    def trust(self) -> None:
        """Take back what `distrust` noted: nobody is left whose state could take the place of this one.

        Raises `StorageError` when the disk failed.
        """
        durable_remove(self._opened.generation.distrust_file)

    def distrusted(self) -> str:
        """Return what was noted of the state that is open; empty: nothing. Raises `StorageError`."""
        path = self._opened.generation.distrust_file
        try:
            return path.read_bytes().decode(errors="replace") or "it was found damaged"
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise disk_failure("reading what was noted of the state", path, error) from error

    @property
    def is_settled(self) -> bool:
        """Whether CURRENT names the generation that is open: none was made current that is not adopted."""
        return self._offered is None

    @property
    def failure(self) -> RaftstateError | None:
        """Why nothing can be written until the node is started again; None as long as all is well."""
        return self._opened.failure

    @property
    def map_bytes(self) -> int:
        """The most that the state's file can grow to."""
        return self._opened.map_bytes

    def disk_free_bytes(self) -> int:
        """Return what the file system has left for others than its superuser. Raises `StorageError`."""
        return self._opened.disk_free_bytes()

    @property
    def commit_seconds(self) -> Histogram:
        """Of commits alone, which wait for no disk."""
        return self._opened.commit_seconds

    def size_bytes(self) -> int:
        """Return the size of the data file, free pages included."""
        return self._opened.size_bytes()

    def read(self) -> ReadTransaction:
        """Begin to read what was committed last.

        Use it as a context manager, and end it soon: it keeps pages from being reused, and a generation that
        was replaced from being removed.

        Raises:
            ResourceExhaustedError: no reader slot is free; only this read suffers.
            StorageError: LMDB failed.
            ClosedError: the store is closed.
        """
        return self._of_opened(OpenGeneration.read)

    def _of_opened(self, call: Callable[[OpenGeneration], T]) -> T:
        """Call something of the generation that is open. Any thread: another one may be adopted at that
        moment, and the old one closed."""
        while True:
            opened = self._opened
            try:
                return call(opened)
            except (ClosedError, StorageError):
                if opened is self._opened:
                    raise

    def write(self) -> WriteTransaction:
        """Begin a transaction. As a context manager it commits at the end, or aborts when the body raises.

        Raises:
            StorageError: the state has stopped (`failure`), or LMDB failed. A failure to commit is raised at
                the end of the context; unless it is also in `failure`, it was for want of space, nothing was
                changed, and the transaction may be tried again.
            InvariantError: another one is open.
            ClosedError: the store is closed.
        """
        return self._opened.write()

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
        return self._opened.begin_checkpoint(applied_index)

    def checkpoint(self, applied_index: int) -> None:
        """Take a whole checkpoint, for starts and stops: waits for the disk. Raises what its steps do."""
        self._opened.checkpoint(applied_index)

    def clear_dead_readers(self) -> int:
        """Give back the slots, and so the pages, of readers whose process is gone; return how many. Any
        thread."""
        return self._of_opened(OpenGeneration.clear_dead_readers)

    # -- replacing the state

    def build(self, cluster_id: int = 0) -> SnapshotBuilder:
        """Begin to make another generation, from a snapshot. For a thread that may block.

        Args:
            cluster_id: whose snapshot is expected; 0: anybody's.

        Raises:
            StorageError: the disk or LMDB failed.
        """
        return SnapshotBuilder(self._data_directory, self._opened.map_bytes, cluster_id)

    def make_current(
        self, prepared: PreparedGeneration, *, instead_of: Path | None = None, wait_s: float = 0.0
    ) -> None:
        """Let CURRENT name a generation, durably: every start from here on opens it. `adopt` must follow.

        Until then this store goes on with its own; what is written to it is lost with it, and so is what its
        checkpoints make durable. Blocks on the disk; any thread.

        Where the disk has no room for it, it may be called again: CURRENT names the old one or this one.

        Args:
            prepared: which one.
            instead_of: the path of the one that it was made for; None: any.
            wait_s: how long to wait, in seconds, while another one is waiting to be adopted: not on the
                thread that adopts.

        Raises:
            FailedPreconditionError: another one than `instead_of` is open by now; nothing was done.
            InvariantError: it was offered or discarded before, or another one is waiting to be adopted.
            StorageError: CURRENT could not be written. Which one a start would open is not known: call again
                if the disk is full, or stop.
        """
        if prepared is not self._unnamed:
            self._offer_in_turn(prepared, instead_of, wait_s)
            self._unnamed = prepared
        prepared.opened.generation.make_current()
        self._unnamed = None

    def _offer_in_turn(self, prepared: PreparedGeneration, instead_of: Path | None, wait_s: float) -> None:
        with self._adopted:
            self._adopted.wait_for(lambda: self._offered is None or self._opened.is_closed, wait_s)
            if instead_of is not None and self.path != instead_of:
                raise FailedPreconditionError(
                    f"the state is {self.path.name} by now, and {prepared.path.name} was made in place of "
                    f"{instead_of.name}"
                )
            self._offer(prepared)

    def _offer(self, prepared: PreparedGeneration) -> None:
        if self._offered is not None or prepared.is_offered or prepared.opened.is_closed:
            raise InvariantError(f"{prepared.path} can't become the current generation: it, or another, was")
        prepared.is_offered = True
        self._offered = prepared

    def adopt(self, prepared: PreparedGeneration, run: Run | None = None) -> None:
        """Go on in the generation that was made current. On the thread that applies.

        What reads the old one reads on; then it is closed and its directory removed, which may take a part of
        a second for each GiB.

        Args:
            prepared: which one.
            run: has that done elsewhere. It is called by whoever is the last to read; what it is given
                raises `StorageError` if the directory can't be removed, which the next start does then.
                None: it is done there and then.

        Raises:
            InvariantError: it was not made current, or a transaction or a checkpoint is under way in either.
        """
        if prepared is not self._offered:
            raise InvariantError(f"{prepared.path} is adopted, and was not made current")
        old = self._opened
        if not (old.is_idle and prepared.opened.is_idle):
            raise InvariantError(f"{prepared.path} is adopted within a transaction or a checkpoint")
        prepared.opened.commit_seconds = old.commit_seconds
        with self._adopted:
            self._opened, self._offered = prepared.opened, None
            self._adopted.notify_all()
        self._retired.add(old)

        def end() -> None:
            try:
                remove_closed(old)
            finally:
                self._retired.discard(old)

        def ended() -> None:
            if run is None:
                end()
                return
            # An executor that was shut down takes no more: `close` does it.
            with suppress(RuntimeError):
                run(end)

        old.retire(ended)

    def space(self) -> Space:
        """Measure the state's file. Any thread.

        Raises:
            ResourceExhaustedError: no reader slot is free.
            StorageError: LMDB failed.
            ClosedError: the store is closed.
        """
        return self._of_opened(OpenGeneration.space)

    def readers(self) -> tuple[list[Reader], int]:
        """Return who reads the state now, in this process and in others, and the id of the newest commit: who
        reads that one keeps no page from being used again. Takes no slot. Any thread.

        Raises:
            StorageError: LMDB failed.
            ClosedError: the store is closed.
        """
        return self._of_opened(OpenGeneration.readers)

    def close(self, *, clean: bool) -> None:
        """Close the environment. No other thread may be in a read, nor do what `adopt` was given `run` for.

        Args:
            clean: leave the marker of a clean stop, so that the next open need not distrust the files.

        Raises:
            InvariantError: `clean`, but something was committed after the last checkpoint, or the state has
                stopped, or a generation that was made current was not adopted.
            StorageError: the marker could not be written, or a generation that was replaced not be removed;
                the next open goes back to the checkpoint, which loses nothing.
        """
        opened = self._opened
        if opened.is_closed:
            return
        if clean and not (
            opened.is_idle and not opened.dirtied_bytes and opened.failure is None and self._offered is None
        ):
            raise InvariantError(
                f"a clean stop needs a last checkpoint: {opened.dirtied_bytes} bytes were dirtied after it, "
                f"failure: {opened.failure}"
            )
        if self._offered is not None:
            self._offered.opened.close()
        opened.close()
        for retired in list(self._retired):
            remove_closed(retired)
        if clean:
            mark_clean_stop(self._data_directory)
