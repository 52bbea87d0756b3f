"""Checkpoints of the state: how an environment that never waits for the disk comes back exact.

The state's commits are written without a sync, so a power cut may lose any subset of the pages written since
the last one, meta pages included. What can be relied on is a checkpoint: a commit P all of whose pages were
synced, whose meta page is known, and none of whose pages was written to since. The last part is LMDB's own
promise to a reader, so P is a read transaction that is kept open until the next checkpoint is durable (the
idea is libmdbx's safe-nosync mode, here on plain LMDB). One checkpoint is five steps:

    1  on the apply thread, between two of its transactions: begin the read transaction P
    2  in the same step: copy P's meta page
    3  off the loop and off the apply thread: sync the data file
    4  see that P's reader slot still stands, then publish the file `checkpoint` durably
    5  on the apply thread: end the P of the checkpoint before

`Pin` is steps 1 and 2, `Checkpoint.sync` steps 3 and 4, `Checkpoint.finish` step 5. Step 4 is the moment from
which a start goes by the new checkpoint; until step 5 both P's are held, so that either file is right.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import get_ident
from typing import Protocol

import lmdb
import xxhash

from raftstate.errors import DataLossError, InvariantError, StorageError
from raftstate.store.files import disk_failure, durable_write
from raftstate.store.generation import Generation
from raftstate.store.meta_page import META_BYTES, MetaPage, read_meta_page
from raftstate.store.transactions import lmdb_failure

_MAGIC = b"RSCP"
_FORMAT = 1
_HEAD = struct.Struct("<4sIQ")
_CHECKSUM = struct.Struct("<Q")
_REPLACE = "replace this node, the others hold the data"


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """What the file `checkpoint` holds."""

    applied_index: int
    """The last log entry that the checkpoint contains."""
    meta: MetaPage

    def to_bytes(self) -> bytes:
        """Return the file's content: magic, format, applied index, meta page, xxh3-64 of all before it."""
        body = _HEAD.pack(_MAGIC, _FORMAT, self.applied_index) + self.meta.to_bytes()[:META_BYTES]
        return body + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(body))

    @classmethod
    def read(cls, path: Path) -> CheckpointRecord:
        """Read a checkpoint file.

        Raises:
            DataLossError: it is missing or damaged; without it no page of the state can be relied on.
            StorageError: it can't be read.
        """
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise DataLossError(
                f"{path} is missing, and without it the state beside it can't be trusted: {_REPLACE}"
            ) from error
        except OSError as error:
            raise disk_failure("reading the checkpoint", path, error) from error
        body, checksum = content[: -_CHECKSUM.size], content[-_CHECKSUM.size :]
        if len(body) != _HEAD.size + META_BYTES or checksum != _CHECKSUM.pack(xxhash.xxh3_64_intdigest(body)):
            raise DataLossError(f"{path} is damaged ({len(content)} bytes, checksum mismatch): {_REPLACE}")
        magic, file_format, applied_index = _HEAD.unpack_from(body)
        if magic != _MAGIC or file_format != _FORMAT:
            raise DataLossError(
                f"{path} has format {magic!r} {file_format}; this build reads {_MAGIC!r} {_FORMAT}"
            )
        return cls(applied_index, MetaPage.parse(body[_HEAD.size :], source=str(path)))


def sync_data(environment: lmdb.Environment) -> None:
    """Sync the environment's data file to the disk."""
    environment.sync(True)


class Pin:
    """The read transaction P of one checkpoint, and the meta page that belongs to it (steps 1 and 2)."""

    __slots__ = ("_environment", "_slot", "_transaction", "meta")

    def __init__(self, environment: lmdb.Environment, data_fd: int, page_bytes: int, path: Path) -> None:
        """Begin it. The caller sees to it that no writing transaction is open.

        Args:
            environment: the state's.
            data_fd: its data file, opened for reading.
            page_bytes: its page size.
            path: its directory, for messages.

        Raises:
            InvariantError: there is no commit yet, or one was made meanwhile.
            ResourceExhaustedError: no reader slot is free.
            StorageError: LMDB or the read failed.
        """
        self._environment = environment
        try:
            self._transaction = environment.begin()
            transaction_id = self._transaction.id()
        except lmdb.Error as error:
            raise lmdb_failure("beginning a checkpoint", path, error) from error
        try:
            # Both meta pages carry id 0 before the first commit: neither could be told to be P's.
            if transaction_id == 0:
                raise InvariantError(f"a checkpoint of {path} before its first commit")
            try:
                self.meta = read_meta_page(data_fd, transaction_id & 1, page_bytes, source=str(path))
            except OSError as error:
                raise disk_failure("reading the meta page", path, error) from error
            if self.meta.transaction_id != transaction_id:
                raise InvariantError(
                    f"the reader of a checkpoint of {path} sees transaction {transaction_id}, the meta page "
                    f"is of {self.meta.transaction_id}: a transaction was committed between the two"
                )
        except BaseException:
            self._transaction.abort()
            raise
        self._slot = f"{os.getpid():10d} {get_ident():x} {transaction_id}\n"

    def stands(self) -> bool:
        """Whether LMDB still keeps the pages that this transaction sees: its line is in the reader table.

        If this process opens and closes lock.mdb, by whatever means, LMDB's lock on it is gone; the next
        process to open the environment takes the table to be left over from a crash, and clears it.
        """
        return self._slot in self._environment.readers()

    def end(self) -> None:
        """Let LMDB reuse the pages."""
        self._transaction.abort()


class Checkpoint:
    """One checkpoint under way, made by `StateStore.begin_checkpoint`. `sync` and then `finish` follow."""

    def __init__(
        self,
        environment: lmdb.Environment,
        generation: Generation,
        pin: Pin,
        applied_index: int,
        *,
        stop: Callable[[StorageError], None],
        finished: Callable[[Checkpoint], None],
    ) -> None:
        """Used by `StateStore` only.

        Args:
            environment: the state's.
            generation: where it stands.
            pin: steps 1 and 2, done.
            applied_index: the last log entry in the commit that the pin sees.
            stop: called on the thread of `sync` when the environment must not be written to any more.
            finished: called by `finish`.
        """
        self.pin = pin
        self.applied_index = applied_index
        self._environment = environment
        self._generation = generation
        self._stop = stop
        self._finished = finished
        self._synced = False
        self._published = False

    def sync(self) -> None:
        """Make it durable and publish it (steps 3 and 4).

        Blocks on the disk: for any thread but the loop's and the one that applies.

        Raises:
            StorageError: it failed, and so the state has stopped (`StateStore.failure`); or there was no
                space for the file `checkpoint`. Then the state goes on, and so may this checkpoint, by
                another call: both P's are still held, so it does not matter which of the two files a crash
                would find.
        """
        path = self._generation.path
        if not self._synced:
            try:
                sync_data(self._environment)
            except lmdb.Error as error:
                failure = disk_failure("syncing the state", path, error)
                self._never_again(failure)
                raise failure from error
            self._synced = True
        if not self.pin.stands():
            failure = lost_slot(path)
            self._stop(failure)
            raise failure
        try:
            durable_write(
                self._generation.checkpoint_file,
                CheckpointRecord(self.applied_index, self.pin.meta).to_bytes(),
            )
        except StorageError as failure:
            if failure.detail["errno"] not in (errno.ENOSPC, errno.EDQUOT):
                self._never_again(failure)
            raise
        self._published = True

    def finish(self) -> None:
        """End the checkpoint before this one (step 5), on the thread that applies. Now it counts as durable.

        Raises:
            InvariantError: it is not published.
        """
        if not self._published:
            raise InvariantError(
                f"the checkpoint at index {self.applied_index} is finished before it is published"
            )
        self._finished(self)

    def _never_again(self, failure: StorageError) -> None:
        """Stop, and see to it that no later run syncs this file.

        The kernel reports a lost write once, and the next sync of the same file says OK (Rebello et al., "Can
        Applications Recover from fsync Failures?", ATC 2020). So this one is final, whatever its error
        number.
        """
        self._stop(failure)
        try:
            durable_write(self._generation.eio_marker, b"")
        except StorageError as unmarked:
            failure.detail["distrust"] = "state"
            failure.add_note(f"nor could this be noted for the next start: {unmarked}")


def lost_slot(path: Path) -> StorageError:
    """Make the error for a checkpoint's reader that LMDB no longer knows of."""
    return StorageError(
        f"the reader slot that protects the checkpoint in {path} is gone: another program opened lock.mdb "
        "there. Stop that program and start the node again; nothing is lost"
    )


CHECKPOINT_NS = 1_000_000_000
CHECKPOINT_COMMANDS = 20_000
CHECKPOINT_BYTES = 32 << 20
"""A checkpoint is due when this much time has passed since the last one began, this many commands were
applied, or pages of this many bytes were dirtied, whichever comes first."""

WAIT_BYTES = 256 << 20
"""Apply waits while more than this was dirtied since the last durable checkpoint, since none of it can be
reused before the next."""


class CheckpointedState(Protocol):
    """What `Checkpointer` asks of a `StateStore`."""

    @property
    def dirtied_bytes(self) -> int:
        """Bytes of pages written since the last durable checkpoint began, estimated."""
        ...

    def begin_checkpoint(self, applied_index: int) -> Checkpoint:
        """Do steps 1 and 2."""
        ...


class Checkpointer:
    """Says when the next checkpoint is due, and keeps them one at a time.

    It has no clock and no thread; the thread that applies drives it, between two of its transactions:
    `begin` when one is `due`, then `sync` of the checkpoint elsewhere, then `finish`. A `sync` that failed
    without stopping the state is called again later, on the same checkpoint.
    """

    def __init__(self, store: CheckpointedState, now_ns: int, commands: int = 0) -> None:
        """Begin to count.

        Args:
            store: has just been opened, and so has its first checkpoint.
            now_ns: now, on any clock that does not go back.
            commands: how many were applied so far, in the count that `due` is given.
        """
        self._store = store
        self._last_ns = now_ns
        self._last_commands = commands
        self._in_progress: Checkpoint | None = None

    @property
    def must_wait(self) -> bool:
        """Whether nothing more may be applied before a checkpoint is finished."""
        return self._store.dirtied_bytes > WAIT_BYTES

    def due(self, now_ns: int, commands: int) -> bool:
        """Whether to begin one now: none is in progress, something changed, and a limit is reached."""
        dirtied_bytes = self._store.dirtied_bytes
        if self._in_progress is not None or not dirtied_bytes:
            return False
        return (
            now_ns - self._last_ns >= CHECKPOINT_NS
            or commands - self._last_commands >= CHECKPOINT_COMMANDS
            or dirtied_bytes >= CHECKPOINT_BYTES
        )

    def begin(self, now_ns: int, commands: int, applied_index: int) -> Checkpoint:
        """Begin one (see `StateStore.begin_checkpoint`)."""
        self._in_progress = self._store.begin_checkpoint(applied_index)
        self._last_ns = now_ns
        self._last_commands = commands
        return self._in_progress

    def finish(self) -> None:
        """Finish the one in progress, after its `sync` returned.

        Raises:
            InvariantError: none is in progress, or it is not published.
        """
        if self._in_progress is None:
            raise InvariantError("no checkpoint is in progress that could be finished")
        self._in_progress.finish()
        self._in_progress = None
