"""The replicated log and hard state of one node, in an LMDB environment that is durable at every commit.

Two threads use a `LogStore`, and each has its own view of it. The log thread writes (`write`, `compact`), and
checks what it is given against what is on disk. The loop thread reads, through the core's `Storage` protocol,
what was published to it: `publish` takes the result of a write that has been committed, so that the view in
memory can lag behind the disk and can never be ahead of it.

Recent entries are kept in memory, in a window that ends with the last published entry; older ones are read
from LMDB, and their checksums verified. A record that does not match its checksum is never served, and
never taken for the end of the log: commits are atomic, so it is the rot of something that was acknowledged.

May live here: transactions on the log, and the window. Formats are in `log_format`, what must hold at a
start, and why that is enough, in `log_check`.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import lmdb
import msgspec

from raftstate.core.errors import Compacted, Damaged, SnapshotTemporarilyUnavailable, Unavailable
from raftstate.core.storage import entry_bytes, limit_entries
from raftstate.core.types import NONE, ConfState, Entry, HardState, Snapshot
from raftstate.errors import DataLossError, FailedPreconditionError, InvariantError, StorageError
from raftstate.store import log_format
from raftstate.store.directory import mark_eio
from raftstate.store.files import disk_failure, fsync_directory, is_full
from raftstate.store.log_check import check_data_file, check_rows, page_checksum
from raftstate.store.log_copy import DATA_FILE, copy_log
from raftstate.store.log_format import HARD_STATE_KEY, META_KEY, MetaRow, entry_key
from raftstate.store.log_unverified import UnverifiedPart
from raftstate.store.log_window import LogWindow
from raftstate.store.meta_page import read_meta_page, read_meta_pages
from raftstate.store.space import Space, environment_space, pages_bytes

WINDOW_BYTES = 64 << 20
"""How much of the log's end is kept in memory, unless told otherwise."""

_EMPTY = MetaRow(0, 0, 0, 0, 1, 0)


@dataclass(frozen=True, slots=True)
class LogWrite:
    """A durable transaction, and what it made of the log; `LogStore.publish` makes it visible to readers."""

    entries: Sequence[Entry]
    """What it appended; it also removed all that stood at or after the first of them."""
    hard_state: HardState
    meta: MetaRow
    refilled: Sequence[int] = ()
    """The indexes of damaged records that it put right, in place."""
    in_new_files: bool = False
    """Whether the log was rewritten: the ids of its transactions have begun anew."""
    is_reset: bool = False
    """Whether everything that stood in the log before was removed."""


class LogStore:
    """The log in one directory; made by `LogStore.open`.

    Records may be damaged: `damaged` knows those found at opening and those met since, for each read verifies
    what it reads. They are never served. The log goes on around them: entries can be appended,
    and a conflict or a compaction removes them like others; `refill` puts them right.
    """

    def __init__(self, path: Path, environment: lmdb.Environment, data_file: int, page_bytes: int) -> None:
        self.damaged: tuple[int, ...] = ()
        """The indexes of the records known to be damaged, ascending. Of the loop thread; another object
        whenever it has changed."""
        self._path = path
        self._environment = environment
        self._in_use = threading.Lock()
        """Held by whoever reads the environment on another thread than the one that may put another in its
        place."""
        self._main = environment.open_db()
        self._data_file = data_file
        self._page_bytes = page_bytes
        self._failure: StorageError | None = None
        self._unverified: UnverifiedPart | None = None
        self._opened_bytes = os.fstat(data_file).st_size
        # The log thread's view: what is on disk.
        self._meta = _EMPTY
        self._hard_state = HardState()
        # The loop thread's view: what was published.
        self._seen = _EMPTY
        self._seen_hard_state = HardState()
        self._window = LogWindow(WINDOW_BYTES, next_index=1)

    # -- opening and closing

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        map_bytes: int,
        create: bool = False,
        verify_after: int = 0,
        window_bytes: int = WINDOW_BYTES,
    ) -> LogStore:
        """Open the log, and verify it.

        Args:
            path: the environment's directory.
            map_bytes: the most that the log may grow to; address space, not disk. A multiple of the page
                size.
            create: make a new, empty log first. It gets its name once it is durable, so that a crash leaves
                none.
            verify_after: leave out what is up to this index, until `verify_rest`: durable elsewhere, it is
                not needed to go on, and to verify it takes as long as the log is large.
            window_bytes: how much of the log's end to keep in memory; at first, of what was verified.

        Raises:
            FailedPreconditionError: `create`, and there is one already.
            DataLossError: there is none, its meta row or hard state is damaged, or its files are in no
                state that a crash can leave. A damaged record does not raise: see `damaged`.
            StorageError: the disk or LMDB failed.
        """
        if create:
            _create(path, map_bytes)
        trusted_key = entry_key(verify_after) if verify_after else b""
        newest, older = check_data_file(path / DATA_FILE, trusted_key=trusted_key)
        try:
            data_file = os.open(path / DATA_FILE, os.O_RDONLY | os.O_CLOEXEC)
            try:
                environment = _open_environment(path, map_bytes)
            except lmdb.Error:
                os.close(data_file)
                raise
        except lmdb.Error as error:
            raise _read_failure(path, error) from error
        except OSError as error:
            raise disk_failure("opening the log", path, error) from error
        store = cls(path, environment, data_file, newest.page_bytes)
        try:
            with environment.begin(buffers=True) as txn:
                meta = log_format.decode_meta(txn.get(META_KEY))
                hard_state = log_format.decode_hard_state(txn.get(HARD_STATE_KEY))
                check_rows(
                    meta,
                    hard_state,
                    newest=newest,
                    older=older,
                    transaction_id=txn.id(),
                    rows=txn.stat()["entries"],
                )
                _check_ends(txn, meta)
                store._meta = store._seen = meta
                store._hard_state = store._seen_hard_state = hard_state
                store._load(txn, verify_after, window_bytes)
            if verify_after > meta.boundary_index:
                last = min(verify_after, meta.last_index)
                store._unverified = UnverifiedPart(
                    environment, path / DATA_FILE, newest, meta.boundary_index + 1, last
                )
        except lmdb.Error as error:
            store.close()
            raise _read_failure(path, error) from error
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Close the environment. No other thread may be using it; closing twice does nothing."""
        if self._unverified is not None:
            self._unverified.let_go()
        self._environment.close()
        if self._data_file >= 0:
            os.close(self._data_file)
            self._data_file = -1

    def verify_rest(self) -> tuple[int, ...]:
        """Verify what the opening has left out, without haste. Any thread. Whoever removes something from the
        log meanwhile makes haste of it, and waits.

        Returns the indexes of the records that are damaged; `note_damage` takes them, on the loop thread.

        Raises:
            ClosedError: `stop_verifying` was called.
            StorageError: the disk failed, or more than records is damaged: see `distrust`.
        """
        return self._verified_rest(hurry=False)

    @property
    def is_verified(self) -> bool:
        """Whether nothing waits for `verify_rest`: what removes entries goes on at once. Any thread."""
        return self._unverified is None or self._unverified.is_verified

    def hurry_verifying(self) -> None:
        """Have `verify_rest` make no more pauses. Any thread."""
        if self._unverified is not None:
            self._unverified.hurry()

    def grown_bytes(self) -> int:
        """How much larger the file is than it was at the opening: what is not verified pins its pages."""
        return os.fstat(self._data_file).st_size - self._opened_bytes

    def stop_verifying(self) -> None:
        """Have `verify_rest` end soon. Any thread."""
        if self._unverified is not None:
            self._unverified.stop()

    def _verified_rest(self, *, hurry: bool = True) -> tuple[int, ...]:
        if self._unverified is None:
            return ()
        try:
            return self._unverified.verify(hurry=hurry)
        except DataLossError as error:
            raise self.distrust(error) from error

    def distrust(self, error: DataLossError) -> StorageError:
        """Note durably that more than records is damaged: the next start copies the log, which shows whether
        it can be gone on with, and otherwise finds it lost.

        Returns what this node is to halt with.
        """
        failure = StorageError(
            f"this node's log is damaged: {error.message}; it is copied, or got anew from the other nodes, "
            "when the node starts again",
            detail=error.detail | {"errno": 0},
        )
        self._note_distrust(failure)
        return failure

    def _load(self, txn: lmdb.Transaction[memoryview], verify_after: int, window_bytes: int) -> None:
        """Verify records, and fill the window with the last of them, as far as they are sound.

        A record that is not found under its index is no damaged record but a damaged tree: nothing may be
        put into that.
        """
        recent: list[Entry] = []
        recent_bytes = 0
        damaged: list[int] = []
        with txn.cursor() as cursor:
            # From the end, since only what the window has room for is copied: of a long log the copies would
            # take longer than the checksums.
            for index in range(self._meta.last_index, max(self._meta.boundary_index, verify_after), -1):
                value = _stored_record(cursor, index)
                try:
                    if damaged or recent_bytes > window_bytes:
                        log_format.verify_record(index, value)
                    else:
                        recent.append(log_format.decode_record(index, value))
                        recent_bytes += len(value)
                except Damaged:
                    damaged.append(index)
        recent.reverse()
        self._window = LogWindow(window_bytes, next_index=self._meta.last_index + 1 - len(recent))
        if recent:
            self._window.append(recent)
        self.damaged = tuple(reversed(damaged))

    # -- reading: the loop thread

    @property
    def first_damaged_index(self) -> int | None:
        """The lowest index whose record is known to be damaged, or None."""
        return self.damaged[0] if self.damaged else None

    @property
    def last_hard_state(self) -> HardState:
        """The hard state of the last published write."""
        return self._seen_hard_state

    def initial_state(self) -> tuple[HardState, ConfState]:
        """Return the hard state. The configuration stands in the state, not in the log: here it is empty."""
        return self._seen_hard_state, ConfState()

    def first_index(self) -> int:
        """See `Storage.first_index`."""
        return self._seen.boundary_index + 1

    def last_index(self) -> int:
        """See `Storage.last_index`."""
        return self._seen.last_index

    def term(self, index: int) -> int:
        """See `Storage.term`.

        Raises:
            Damaged: the record is damaged. Of the last one the term stands in the meta row, too.
            StorageError: it can't be read.
        """
        if index >= self._window.first_index and index <= self._seen.last_index:
            return self._window.term(index)
        if index == self._seen.last_index:
            return self._seen.last_term
        if index == self._seen.boundary_index:
            return self._seen.boundary_term
        if index < self._seen.boundary_index:
            raise Compacted(
                f"the term of entry {index} is compacted; the boundary is {self._seen.boundary_index}"
            )
        if index > self._seen.last_index:
            raise Unavailable(f"entry {index} is not in the log; the last index is {self._seen.last_index}")
        return self._read(index, index + 1, 0)[0].term

    def entries(self, lo: int, hi: int, max_bytes: int) -> list[Entry]:
        """See `Storage.entries`.

        Raises:
            Damaged: a record is damaged.
            StorageError: one can't be read.
        """
        if lo <= self._seen.boundary_index:
            raise Compacted(f"entry {lo} is compacted; the first index is {self._seen.boundary_index + 1}")
        if hi > self._seen.last_index + 1:
            raise Unavailable(f"entry {hi - 1} is not in the log; the last index is {self._seen.last_index}")
        start = self._window.first_index
        if lo >= start:
            return limit_entries(self._window.slice(lo, hi), max_bytes)
        found = self._read(lo, min(hi, start), max_bytes)
        if found[-1].index + 1 == start:
            found.extend(self._window.slice(start, hi))
        return limit_entries(found, max_bytes)

    def stored(self, lo: int, hi: int, max_bytes: int) -> list[Entry]:
        """Return committed entries as `entries` does, read from the disk. Any thread.

        Raises:
            Compacted, Unavailable, Damaged, DataLossError, StorageError: as for `entries`.
        """
        return self._read(lo, hi, max_bytes, note=False)

    def note_damage(self, index: int) -> None:
        """Take note of a record that another thread has found damaged, if the log still holds it."""
        if self._seen.boundary_index < index <= self._seen.last_index and index not in self.damaged:
            self.damaged = tuple(sorted({*self.damaged, index}))

    def snapshot(self) -> Snapshot:
        """See `Storage.snapshot`."""
        raise SnapshotTemporarilyUnavailable("the log has no snapshot, and none is made of the state yet")

    @property
    def map_bytes(self) -> int:
        """The most that the log's file can grow to."""
        return int(self._environment.info()["map_size"])

    def size_bytes(self) -> int:
        """The bytes of the pages that the log's rows take up. Any thread."""
        try:
            with self._in_use:
                return pages_bytes(self._environment.stat())
        except lmdb.Error as error:
            raise disk_failure("measuring the log", self._path, error) from error

    def space(self) -> Space:
        """Measure the log's file. Any thread."""
        try:
            with self._in_use:
                return environment_space(self._environment, 0)
        except lmdb.Error as error:
            raise disk_failure("measuring the log", self._path, error) from error

    def publish(self, write: LogWrite) -> None:
        """Make a committed write visible to the reading side. Writes are published in order, each once.

        Raises:
            InvariantError: `write` is not newer than the last one published.
        """
        if write.meta.transaction_id <= self._seen.transaction_id and not write.in_new_files:
            raise InvariantError(
                f"log transaction {write.meta.transaction_id} was published after {self._seen.transaction_id}"
            )
        if write.is_reset:
            self._window = LogWindow(self._window.max_bytes, next_index=write.meta.boundary_index + 1)
        if write.entries:
            self._window.append(write.entries)
        self._window.drop_through(write.meta.boundary_index)
        if self.damaged:
            self._forget_damage(write)
        self._seen = write.meta
        self._seen_hard_state = write.hard_state

    def _read(self, lo: int, hi: int, max_bytes: int, *, note: bool = True) -> list[Entry]:
        """The entries from `lo` on that `max_bytes` has room for, and at least one, from disk."""
        found: list[Entry] = []
        size = 0
        try:
            with self._in_use, self._environment.begin(buffers=True) as txn, txn.cursor() as cursor:
                # The disk may be ahead of what was published: a gap there need not be damage.
                meta = log_format.decode_meta(txn.get(META_KEY))
                if lo <= meta.boundary_index:
                    raise Compacted(f"entry {lo} is compacted; the first index is {meta.boundary_index + 1}")
                if hi > meta.last_index + 1:
                    raise Unavailable(
                        f"entry {hi - 1} is not in the log; the last index is {meta.last_index}"
                    )
                for index in range(lo, hi):
                    try:
                        entry = log_format.decode_record(index, _stored_record(cursor, index))
                    except Damaged:
                        if note:
                            self.note_damage(index)
                        raise
                    except DataLossError as error:
                        if note:
                            raise self.distrust(error) from error
                        raise
                    found.append(entry)
                    size += entry_bytes(entry)
                    if size > max_bytes:
                        break
        except lmdb.Error as error:
            raise _read_failure(self._path, error) from error
        return found

    def _forget_damage(self, write: LogWrite) -> None:
        end = write.entries[0].index if write.entries else write.meta.last_index + 1
        kept = tuple(
            index
            for index in self.damaged
            if write.meta.boundary_index < index < end and index not in write.refilled
        )
        if len(kept) < len(self.damaged):
            self.damaged = kept

    # -- writing: the log thread

    def write(self, hard_state: HardState | None, entries: Sequence[Entry]) -> LogWrite:
        """Append entries and save the hard state, in one transaction that is durable when this returns.

        Args:
            hard_state: the new one; None: it stays as it is.
            entries: contiguous; what stands at or after the first of them is removed. Empty: none.

        Returns:
            What to publish.

        Raises:
            InvariantError: the entries leave a gap, are no contiguous run or reach back to committed or
                compacted ones, or the hard state goes backwards. Nothing was written.
            StorageError: the disk or LMDB failed, now or before. Whether this write is on disk can't be
                known, and every later one is refused; unless the disk or the map is full
                (`files.is_full`): then nothing was written, and it may be tried again.
        """
        target = self._hard_state if hard_state is None else hard_state
        check_hard_state(self._hard_state, target)
        meta = self._meta
        if entries:
            self._check_entries(entries)
            meta = meta._replace(last_index=entries[-1].index, last_term=entries[-1].term)
        if target.commit > meta.last_index:
            raise InvariantError(
                f"commit index {target.commit} exceeds the last index {meta.last_index} of the log"
            )
        if entries and entries[0].index <= self._meta.last_index:
            self._verified_rest()
        with self._transaction() as txn:
            if entries:
                _delete(txn, entries[0].index, self._meta.last_index)
                _append(txn, entries)
            meta = self._seal(txn, meta, target)
        self._meta, self._hard_state = meta, target
        return LogWrite(entries, target, meta)

    def compact(self, to_index: int, entries_max: int, term: int | None = None) -> LogWrite | None:
        """Remove one bounded slice of the entries up to and including `to_index`, which is applied durably.

        Args:
            to_index: the new boundary, at most the last index.
            entries_max: how many entries to remove in this transaction, at least 1.
            term: that of `to_index`, if it is known otherwise than by its record.

        Returns:
            What to publish, or None when the boundary is `to_index` or later already.

        The term of the new boundary is read from its record: where that is damaged, the slice ends at another
        one, up to `to_index`. None too when there is no sound one.

        Raises:
            InvariantError: `to_index` lies behind the log.
            StorageError: see `write`.
        """
        first = self._meta.boundary_index + 1
        if to_index < first:
            return None
        if to_index > self._meta.last_index:
            raise InvariantError(
                f"the log can't be compacted to {to_index}: its last index is {self._meta.last_index}"
            )
        wanted = min(to_index, first + entries_max - 1)
        found = (wanted, term) if wanted == to_index and term is not None else None
        found = found or self._sound_boundary(first, wanted, to_index)
        if found is None:
            return None
        boundary, term = found
        # What is applied is committed, though the saved commit index may lag; the core refuses one before
        # the boundary.
        hard_state = self._hard_state
        if hard_state.commit < boundary:
            hard_state = msgspec.structs.replace(hard_state, commit=boundary)
        self._verified_rest()
        with self._transaction() as txn:
            _delete(txn, first, boundary)
            meta = self._meta._replace(boundary_index=boundary, boundary_term=term)
            meta = self._seal(txn, meta, hard_state)
        self._meta, self._hard_state = meta, hard_state
        return LogWrite((), hard_state, meta)

    def _sound_boundary(self, first: int, wanted: int, to_index: int) -> tuple[int, int] | None:
        """The entry of `first` to `to_index` to cut at, `wanted` or the next best, and its term."""
        try:
            with self._environment.begin(buffers=True) as txn, txn.cursor() as cursor:
                for index in (*range(wanted, first - 1, -1), *range(wanted + 1, to_index + 1)):
                    if index == self._meta.last_index:
                        return index, self._meta.last_term
                    with suppress(Damaged):
                        return index, _read_term(cursor, index)
        except lmdb.Error as error:
            raise _read_failure(self._path, error) from error
        return None

    def refill(self, entries: Sequence[Entry], anchor: tuple[int, int] | None) -> LogWrite:
        """Write damaged records anew, in place, in one transaction that is durable when this returns.

        What is not damaged, or not in the log any more, stays as it is: the log may have moved on since the
        entries were asked for.

        Args:
            entries: what those records held; of this log for certain.
            anchor: index and term of the entry by which that is certain: as long as the log holds it, it
                holds what is before it. None: they are committed.

        Returns:
            What to publish; its `refilled` says which records are sound now.

        Raises:
            DataLossError: more than the record is damaged: the page that it stands on is, too. Nothing was
                written.
            StorageError: see `write`.
        """
        meta = self._meta
        sound: list[int] = []
        self._verified_rest()
        with self._transaction() as txn:
            with txn.cursor() as cursor:
                if anchor is None or self._holds(cursor, *anchor):
                    for entry in entries:
                        if meta.boundary_index < entry.index <= meta.last_index:
                            sound.append(entry.index)
                            self._put_right(txn, cursor, entry)
            meta = self._seal(txn, meta, self._hard_state)
        self._meta = meta
        return LogWrite((), self._hard_state, meta, sound)

    def _put_right(
        self, txn: lmdb.Transaction[memoryview], cursor: lmdb.Cursor[memoryview], entry: Entry
    ) -> None:
        try:
            _read_term(cursor, entry.index)
        except Damaged:
            key, value = log_format.encode_record(entry)
            held = len(cursor.value())
            # LMDB believes a node's size when it replaces it, and moves its neighbours by it. Large values
            # stand on pages of their own.
            if held != len(value) and min(held, len(value)) <= self._page_bytes // 2:
                raise DataLossError(
                    f"log entry {entry.index} has a record of {held} bytes, and {len(value)} belong there: "
                    "the page that it stands on is damaged"
                ) from None
            txn.put(key, value)

    def _holds(self, cursor: lmdb.Cursor[memoryview], index: int, term: int) -> bool:
        if index == self._meta.last_index:
            return term == self._meta.last_term
        if not self._meta.boundary_index < index < self._meta.last_index:
            return False
        try:
            return _read_term(cursor, index) == term
        except Damaged:
            return False

    def rewrite(self) -> LogWrite:
        """Copy the rows that there are into new files, which take the place of the old ones: whatever was
        removed from the log before is in no file of it then.

        Returns:
            What to publish.

        Raises:
            DataLossError: a record is damaged or missing; the log is as it was.
            StorageError: the disk or LMDB failed; the log is as it was, unless `write` fails from now on,
                too.
        """
        self._require_no_failure()
        self._verified_rest()
        map_bytes = self._environment.info()["map_size"]
        copy = copy_log(
            self._environment,
            self._path.with_name(self._path.name + ".copy"),
            self._meta,
            self._hard_state,
            lambda path: _open_environment(path, map_bytes, create=True),
        )
        try:
            copy.put_in_place(self._path)
        except StorageError as error:
            # Which of the two files a power cut would leave is not known, and a later sync that says that all
            # is well would prove nothing: neither may be written to, and the next start begins a third one.
            copy.discard()
            failure = StorageError(
                error.message,
                detail=error.detail | {"errno": errno.EIO, "said": error.detail.get("errno", 0)},
            )
            self._fail(failure)
            raise failure from error
        old, old_file = self._environment, self._data_file
        with self._in_use:
            self._environment, self._data_file = copy.environment, copy.data_file
            old.close()
        os.close(old_file)
        self._main = self._environment.open_db()
        self._meta = copy.meta
        self._reset_id = 0
        return LogWrite((), self._hard_state, copy.meta, in_new_files=True)

    def _require_no_failure(self) -> None:
        if self._failure is not None:
            raise StorageError(
                f"the log at {self._path} takes no more writes after an earlier failure: {self._failure}",
                detail=self._failure.detail,
            ) from self._failure

    def reset(self, hard_state: HardState, index: int, term: int) -> LogWrite:
        """Remove all entries, in one transaction: the state was replaced by one that contains entry `index`.

        Args:
            hard_state: the new one; its commit index is `index`.
            index: the new boundary, and so the last index. It may lie behind entries that were never
                committed.
            term: of that entry.

        Returns:
            What to publish.

        Raises:
            InvariantError: the hard state goes backwards, or is not one for this boundary; or the log holds
                this very entry: then what follows it may have been acknowledged, and stays. Nothing was
                written.
            DataLossError: the record that tells is damaged.
            StorageError: see `write`.
        """
        check_hard_state(self._hard_state, hard_state)
        if hard_state.commit != index or hard_state.term < term:
            raise InvariantError(
                f"the log can't be reset to entry {index} of term {term} with commit index "
                f"{hard_state.commit} in term {hard_state.term}"
            )
        if index <= self._meta.last_index and self._term_on_disk(index) == term:
            raise InvariantError(
                f"the log holds entry {index} of term {term}, up to {self._meta.last_index}: it is not reset"
            )
        self._verified_rest()
        with self._transaction() as txn:
            txn.drop(self._main, delete=False)
            meta = self._meta._replace(
                last_index=index, last_term=term, boundary_index=index, boundary_term=term
            )
            meta = self._seal(txn, meta, hard_state, anew=True)
        self._meta, self._hard_state = meta, hard_state
        return LogWrite((), hard_state, meta, is_reset=True)

    def _term_on_disk(self, index: int) -> int:
        """The term of an entry from the boundary to the last one. The log thread's."""
        meta = self._meta
        if index == meta.last_index:
            return meta.last_term
        if index == meta.boundary_index:
            return meta.boundary_term
        try:
            with self._environment.begin(buffers=True) as txn, txn.cursor() as cursor:
                return _read_term(cursor, index)
        except lmdb.Error as error:
            raise _read_failure(self._path, error) from error

    def _check_entries(self, entries: Sequence[Entry]) -> None:
        meta, first = self._meta, entries[0].index
        if not meta.boundary_index < first <= meta.last_index + 1:
            raise InvariantError(
                f"entries from {first} on can't be appended: the log holds {meta.boundary_index + 1} to "
                f"{meta.last_index}"
            )
        if first <= self._hard_state.commit:
            raise InvariantError(
                f"entries from {first} on would replace committed ones: "
                f"the commit index is {self._hard_state.commit}"
            )
        for expected, entry in enumerate(entries, first):
            if entry.index != expected:
                raise InvariantError(
                    f"entries from {first} on are not contiguous: got {entry.index}, expected {expected}"
                )

    @contextmanager
    def _transaction(self) -> Iterator[lmdb.Transaction[memoryview]]:
        """A write transaction, committed durably at the end of the block, aborted when that raises."""
        self._require_no_failure()
        try:
            txn = self._environment.begin(write=True, buffers=True)
            try:
                yield txn
            except BaseException:
                txn.abort()
                raise
            self._commit(txn)
        except (lmdb.Error, OSError) as error:
            failure = disk_failure("writing the log", self._path, error)
            if not is_full(failure):
                self._fail(failure)
            raise failure from error

    def _fail(self, failure: StorageError) -> None:
        """Take no more writes, in this run and, where the page cache can't be trusted any more, in this file.

        A disk that is full is another matter: what was not written leaves pages behind that nothing refers
        to, and every page of the next attempt is written anew.
        """
        self._failure = failure
        if failure.detail["errno"] == errno.EIO:
            self._note_distrust(failure)

    def _note_distrust(self, failure: StorageError) -> None:
        """Have the next start copy the log, and verify the copy."""
        failure.detail["distrust"] = "log"
        try:
            mark_eio(self._path.parent, failure.message)
        except StorageError as unmarked:
            failure.add_note(f"nor could this be noted for the next start: {unmarked}")

    def _seal(
        self,
        txn: lmdb.Transaction[memoryview],
        meta: MetaRow,
        hard_state: HardState,
        *,
        anew: bool = False,
    ) -> MetaRow:
        """Put the two fixed rows; return the meta row as written. `anew`: neither is there."""
        transaction_id = txn.id()
        slot = (transaction_id - 1) & 1
        previous = read_meta_page(self._data_file, slot, self._page_bytes, source=str(self._path))
        if previous.transaction_id != transaction_id - 1:
            raise InvariantError(
                f"log transaction {transaction_id} follows the meta page of {previous.transaction_id}"
            )
        sealed = meta._replace(transaction_id=transaction_id, previous_page_checksum=page_checksum(previous))
        txn.put(META_KEY, log_format.encode_meta(sealed))
        if anew or hard_state is not self._hard_state:
            txn.put(HARD_STATE_KEY, log_format.encode_hard_state(hard_state))
        return sealed

    def _commit(self, txn: lmdb.Transaction[memoryview]) -> None:
        # A method of its own so that a test can make a commit fail, or see it happen.
        txn.commit()


def check_hard_state(held: HardState, new: HardState) -> None:
    """Check that `new` may follow `held`.

    Raises:
        InvariantError: the term or the commit index goes back, or the vote of a term changes.
    """
    if new.term < held.term:
        raise InvariantError(f"the term went back from {held.term} to {new.term}")
    if new.commit < held.commit:
        raise InvariantError(f"the commit index went back from {held.commit} to {new.commit}")
    if new.term == held.term and held.vote not in (NONE, new.vote):
        raise InvariantError(f"the vote in term {held.term} changed from {held.vote} to {new.vote}")


def _create(path: Path, map_bytes: int) -> None:
    if path.exists():
        raise FailedPreconditionError(f"there is a log at {path} already; it is opened, not made anew")
    unfinished = path.with_name(path.name + ".new")
    try:
        if unfinished.exists():
            shutil.rmtree(unfinished)
        with _open_environment(unfinished, map_bytes, create=True) as environment:
            first, _ = read_meta_pages(unfinished / DATA_FILE)
            with environment.begin(write=True) as txn:
                row = _EMPTY._replace(previous_page_checksum=page_checksum(first))
                txn.put(META_KEY, log_format.encode_meta(row))
                txn.put(HARD_STATE_KEY, log_format.encode_hard_state(HardState()))
        fsync_directory(unfinished)
        unfinished.rename(path)
    except (lmdb.Error, OSError) as error:
        raise disk_failure("making a log", path, error) from error
    fsync_directory(path.parent)


def _open_environment(path: Path, map_bytes: int, *, create: bool = False) -> lmdb.Environment:
    # Durability flags are LMDB's defaults, on purpose: a commit that returns is on disk.
    return lmdb.open(str(path), map_size=map_bytes, create=create, mode=0o600)


def _read_failure(path: Path, error: lmdb.Error) -> DataLossError | StorageError:
    if isinstance(error, lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.InvalidError):
        return DataLossError(f"the pages of the log at {path} are damaged: {error}")
    return disk_failure("reading the log", path, error)


def _check_ends(txn: lmdb.Transaction[memoryview], meta: MetaRow) -> None:
    """Check that the first and the last record stand there. Their keys ascend, as `check_pages` has seen, and
    are as many as lie between: then no other is missing."""
    with txn.cursor() as cursor:
        for index in {meta.boundary_index + 1, meta.last_index} - {meta.boundary_index}:
            if index <= meta.last_index:
                _stored_record(cursor, index)


def _read_term(cursor: lmdb.Cursor[memoryview], index: int) -> int:
    return log_format.verify_record(index, _stored_record(cursor, index))[0]


def _stored_record(cursor: lmdb.Cursor[memoryview], index: int) -> memoryview:
    value = cursor.get(entry_key(index))
    if value is None:
        raise DataLossError(f"log entry {index} is missing", detail={"index": index})
    return value


def _delete(txn: lmdb.Transaction[memoryview], first: int, last: int) -> None:
    for index in range(first, last + 1):
        if not txn.delete(entry_key(index)):
            raise DataLossError(f"log entry {index} is missing", detail={"index": index})


def _append(txn: lmdb.Transaction[memoryview], entries: Sequence[Entry]) -> None:
    with txn.cursor() as cursor:
        rows = map(log_format.encode_record, entries)
        _, added = cursor.putmulti(rows, overwrite=False, append=True)
    if added != len(entries):
        raise InvariantError(
            f"of {len(entries)} entries from {entries[0].index} on, {added} were appended: "
            f"the log holds later ones"
        )
