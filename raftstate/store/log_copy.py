"""Copies the log, row by row, into new files, which then take the place of the old ones.

What LMDB has deleted stays in its file until other rows come to stand there. A file into which only the rows
that are left were ever written holds nothing else.

The new environment is made, opened and written in a directory of its own; then its data file is renamed over
the old one, and its lock file after it. Both environments are open meanwhile: files that are open don't mind
their names. A crash leaves the old data file or the new one, and both hold the same rows: nothing is written
to the log while it is copied.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import lmdb

from raftstate.core.types import HardState
from raftstate.errors import DataLossError, InvariantError
from raftstate.store import log_format
from raftstate.store.files import disk_failure, fsync_directory
from raftstate.store.log_check import check_data_file, check_rows, page_checksum
from raftstate.store.log_format import HARD_STATE_KEY, META_KEY, MetaRow, entry_key
from raftstate.store.meta_page import read_meta_page

DATA_FILE = "data.mdb"
LOCK_FILE = "lock.mdb"
_TRANSACTION_BYTES = 16 << 20
"""Records of one transaction: all its pages are in memory until it commits."""
_ROWS_AT_ONCE = 1_000

Row = tuple[bytes, bytes]


class LogCopy(NamedTuple):
    """A copy that is open, durable, and verified, in a directory of its own."""

    path: Path
    environment: lmdb.Environment
    data_file: int
    """A descriptor for reading it."""
    meta: MetaRow

    def discard(self) -> None:
        """Close and remove it."""
        self.environment.close()
        os.close(self.data_file)
        shutil.rmtree(self.path, ignore_errors=True)

    def put_in_place(self, log_path: Path) -> None:
        """Give its files the names of the log's. Durable when this returns.

        Raises:
            StorageError: a rename failed, or could not be made durable: either file may be found by a start.
        """
        try:
            os.replace(self.path / DATA_FILE, log_path / DATA_FILE)
            fsync_directory(log_path)
            os.replace(self.path / LOCK_FILE, log_path / LOCK_FILE)
            self.path.rmdir()
        except OSError as error:
            raise disk_failure("putting the copied log in place", log_path, error) from error
        fsync_directory(log_path.parent)


def copy_log(
    source: lmdb.Environment,
    path: Path,
    meta: MetaRow,
    hard_state: HardState,
    open_new: Callable[[Path], lmdb.Environment],
) -> LogCopy:
    """Copy the rows of a log that nobody writes to meanwhile.

    Args:
        source: the log's environment.
        path: the directory to make; what stands there is the rest of an earlier try, and removed.
        meta: the log's meta row.
        hard_state: its hard state.
        open_new: makes the environment in a directory, and opens it.

    Raises:
        DataLossError: a record is damaged or missing, or the copy does not hold what was written to it.
        StorageError: the disk or LMDB failed; the log is as it was.
    """
    try:
        shutil.rmtree(path, ignore_errors=True)
        environment = open_new(path)
        data_file = -1
        try:
            data_file = os.open(path / DATA_FILE, os.O_RDONLY | os.O_CLOEXEC)
            sealed = _fill(source, environment, data_file, meta, hard_state, path)
            fsync_directory(path)
            _verify(environment, path, sealed, hard_state)
        except BaseException:
            environment.close()
            if data_file >= 0:
                os.close(data_file)
            shutil.rmtree(path, ignore_errors=True)
            raise
    except (lmdb.Error, OSError) as error:
        raise disk_failure("copying the log", path, error) from error
    return LogCopy(path, environment, data_file, sealed)


def _fill(
    source: lmdb.Environment,
    environment: lmdb.Environment,
    data_file: int,
    meta: MetaRow,
    hard_state: HardState,
    path: Path,
) -> MetaRow:
    """Write all rows, the meta row last; return it."""
    page_bytes = environment.stat()["psize"]
    with source.begin() as reading:
        rows = _records(reading, meta)
        while portion := list(islice(rows, _ROWS_AT_ONCE)):
            with environment.begin(write=True) as txn:
                size = 0
                while portion:
                    with txn.cursor() as cursor:
                        _, added = cursor.putmulti(portion, overwrite=False, append=True)
                    if added != len(portion):
                        raise InvariantError(f"of {len(portion)} records, {added} were copied")
                    size += sum(len(value) for _, value in portion)
                    portion = list(islice(rows, _ROWS_AT_ONCE)) if size < _TRANSACTION_BYTES else []
    with environment.begin(write=True) as txn:
        transaction_id = txn.id()
        previous = read_meta_page(data_file, (transaction_id - 1) & 1, page_bytes, source=str(path))
        if previous.transaction_id != transaction_id - 1:
            raise InvariantError(
                f"transaction {transaction_id} of a copied log follows the meta page of "
                f"{previous.transaction_id}"
            )
        sealed = meta._replace(transaction_id=transaction_id, previous_page_checksum=page_checksum(previous))
        txn.put(META_KEY, log_format.encode_meta(sealed))
        txn.put(HARD_STATE_KEY, log_format.encode_hard_state(hard_state))
    return sealed


def _records(reading: lmdb.Transaction[bytes], meta: MetaRow) -> Iterator[Row]:
    """Yield the rows of all records, each of them verified."""
    with reading.cursor() as cursor:
        for index in range(meta.boundary_index + 1, meta.last_index + 1):
            key = entry_key(index)
            value = cursor.get(key)
            if value is None:
                raise DataLossError(f"log entry {index} is missing", detail={"index": index})
            log_format.verify_record(index, memoryview(value))
            yield key, value


def _verify(environment: lmdb.Environment, path: Path, meta: MetaRow, hard_state: HardState) -> None:
    """Check the copy as a start would."""
    newest, older = check_data_file(path / DATA_FILE)
    with environment.begin() as reading:
        check_rows(
            log_format.decode_meta(memoryview(reading.get(META_KEY) or b"")),
            hard_state,
            newest=newest,
            older=older,
            transaction_id=reading.id(),
            rows=reading.stat()["entries"],
        )
        for _ in _records(reading, meta):
            pass
