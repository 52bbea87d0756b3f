"""The tables over LMDB: what transactions read, write and refuse, and how failures of the disk come out."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import lmdb
import pytest

from raftstate.errors import ClosedError, InvariantError, ResourceExhaustedError, StorageError
from raftstate.machine.tables import Table
from raftstate.store.start import MAX_READERS
from raftstate.store.state import StateStore
from raftstate.store.transactions import lmdb_failure
from tests.store.state_model import Workload, empty_model, lmdb_error, rows_in

LETTERS = [(letter, letter.upper()) for letter in (b"a", b"b", b"c", b"d")]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StateStore]:
    store = StateStore.create(tmp_path, map_bytes=1 << 28)
    yield store
    store.close(clean=False)


def test_transaction_reads_what_it_wrote_and_others_read_it_after_its_commit(store: StateStore) -> None:
    with store.write() as tables:
        tables.put_many(Table.INDEX, LETTERS)
        tables.put(Table.HOT, b"a", b"1")
        assert (tables.get(Table.INDEX, b"a"), tables.get(Table.HOT, b"a")) == (b"A", b"1")
        assert (tables.count(Table.INDEX), tables.get(Table.CHANGES, b"a")) == (4, None)
        assert rows_in(store) == empty_model()
    assert rows_in(store) == empty_model() | {Table.INDEX: dict(LETTERS), Table.HOT: {b"a": b"1"}}


def test_transaction_whose_body_raises_leaves_nothing(store: StateStore) -> None:
    def fail() -> None:
        with store.write() as tables:
            tables.put_many(Table.INDEX, LETTERS)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert rows_in(store) == empty_model()
    assert store.dirtied_bytes == 0


def test_read_stays_at_the_commit_that_it_began_with(store: StateStore) -> None:
    with store.read() as tables:
        with store.write() as later:
            later.put(Table.HOT, b"a", b"1")
        assert (tables.get(Table.HOT, b"a"), list(tables.scan(Table.HOT)), tables.count(Table.HOT)) == (
            None,
            [],
            0,
        )


@pytest.mark.parametrize(
    ("start", "end", "found"),
    [
        (b"", None, b"abcd"),
        (b"b", None, b"bcd"),
        (b"aa", b"cc", b"bc"),
        (b"b", b"d", b"bc"),
        (b"b", b"b", b""),
        (b"", b"a", b""),
        (b"c", b"b", b""),
        (b"e", None, b""),
        (b"", b"z", b"abcd"),
    ],
)
def test_scan_yields_the_half_open_range_in_order(
    store: StateStore, start: bytes, end: bytes | None, found: bytes
) -> None:
    with store.write() as tables:
        tables.put_many(Table.INDEX, LETTERS)
        tables.put(Table.HOT, b"b", b"another table's")
        expected = [(bytes([letter]), bytes([letter]).upper()) for letter in found]
        assert list(tables.scan(Table.INDEX, start, end)) == expected


def test_scan_of_an_empty_table_yields_nothing(store: StateStore) -> None:
    with store.read() as tables:
        assert list(tables.scan(Table.CHANGES)) == []


def test_transaction_that_changes_nothing_dirties_nothing(store: StateStore) -> None:
    with store.write() as tables:
        tables.put_many(Table.CHANGES, [], append=True)
        tables.put_many(Table.INDEX, [])
        tables.delete(Table.INDEX, b"a")
    assert store.dirtied_bytes == 0
    store.close(clean=True)


def test_delete_says_whether_the_row_was_there(store: StateStore) -> None:
    with store.write() as tables:
        tables.put(Table.INDEX, b"a", b"1")
        assert (tables.delete(Table.INDEX, b"a"), tables.delete(Table.INDEX, b"a")) == (True, False)


def test_put_many_replaces_and_append_refuses_to(store: StateStore) -> None:
    with store.write() as tables:
        tables.put_many(Table.CHANGES, LETTERS[:2], append=True)
        tables.put_many(Table.CHANGES, LETTERS[2:], append=True)
        tables.put_many(Table.CHANGES, [(b"a", b"new"), (b"e", b"E")])
    with pytest.raises(InvariantError, match="1 of 2 rows appended to CHANGES"), store.write() as tables:
        tables.put_many(Table.CHANGES, [(b"d", b"again"), (b"f", b"F")], append=True)
    assert rows_in(store)[Table.CHANGES] == dict(LETTERS) | {b"a": b"new", b"e": b"E"}


def test_random_transactions_leave_what_a_dict_would_hold(store: StateStore) -> None:
    workload = Workload(Random(1))
    for index in range(1, 80):
        with store.write() as tables:
            workload.transaction(tables)
        if index % 7 == 0:
            store.checkpoint(index)
    assert rows_in(store) == workload.model


def test_estimate_of_dirtied_bytes_is_never_below_what_a_commit_writes(store: StateStore) -> None:
    workload, data_file = Workload(Random(2)), store.path / "data.mdb"
    estimated = written = 0
    before = data_file.read_bytes()
    for _ in range(150):
        estimate_before = store.dirtied_bytes
        with store.write() as tables:
            workload.transaction(tables)
        after = data_file.read_bytes()
        estimate = store.dirtied_bytes - estimate_before
        pages = range(0, len(after), 4096)
        changed = sum(4096 for page in pages if before[page : page + 4096] != after[page : page + 4096])
        assert estimate >= changed
        estimated, written, before = estimated + estimate, written + changed, after
    assert estimated < 3 * written


@pytest.mark.case(58)
def test_running_out_of_reader_slots_fails_that_read_alone(store: StateStore) -> None:
    readers = [store.read() for _ in range(MAX_READERS - 1)]  # one slot is the checkpoint's
    with pytest.raises(ResourceExhaustedError, match="no reader slot is free"):
        store.read()
    assert store.failure is None
    with store.write() as tables:
        tables.put(Table.HOT, b"a", b"1")
    with readers.pop():
        pass
    assert rows_in(store)[Table.HOT] == {b"a": b"1"}
    for reader in readers:
        with reader:
            pass


def test_same_pid_in_another_pid_namespace_is_named_as_the_cause(tmp_path: Path) -> None:
    error = lmdb_error(lmdb.Error, "mdb_txn_begin: Resource temporarily unavailable", errno.EAGAIN)
    failure = lmdb_failure("beginning to read", tmp_path, error)
    assert isinstance(failure, StorageError)
    assert "a process with this pid in another pid namespace" in failure.message


@pytest.mark.case(57)
def test_overwriting_with_checkpoints_keeps_the_file_bounded(store: StateStore) -> None:
    for index in range(1, 200):
        with store.write() as tables:
            tables.put(Table.HOT, b"row", bytes(50_000))
        store.checkpoint(index)
    assert store.size_bytes() < 40 * 50_000


def test_only_one_writing_transaction_at_a_time(store: StateStore) -> None:
    with store.write(), pytest.raises(InvariantError, match="while another one is open"):
        store.write()
    with store.write() as tables:
        tables.put(Table.HOT, b"a", b"1")


def test_closed_store_says_so(store: StateStore) -> None:
    store.close(clean=True)
    for use in (store.read, store.write, store.clear_dead_readers, lambda: store.begin_checkpoint(1)):
        with pytest.raises(ClosedError, match="is closed"):
            use()


def test_clean_stop_without_a_last_checkpoint_is_refused(store: StateStore) -> None:
    with store.write() as tables:
        tables.put(Table.HOT, b"a", b"1")
    with pytest.raises(InvariantError, match="a clean stop needs a last checkpoint"):
        store.close(clean=True)
    store.checkpoint(1)
    store.close(clean=True)


class FailingTransaction:
    """A transaction that LMDB can't commit."""

    def __init__(self, error: lmdb.Error) -> None:
        self.error = error

    def commit(self) -> None:
        raise self.error

    def abort(self) -> None:
        pass


@pytest.mark.case(54)
@pytest.mark.parametrize(
    "error",
    [
        lmdb_error(lmdb.Error, "mdb_txn_commit: Input/output error", errno.EIO),
        lmdb_error(lmdb.PanicError, "mdb_txn_commit: MDB_PANIC: Update of meta page failed", -30795),
    ],
)
def test_failed_commit_stops_the_state_with_a_clear_message(store: StateStore, error: lmdb.Error) -> None:
    with pytest.raises(StorageError, match=f"committing.*{error}; "):
        store._opened._commit(FailingTransaction(error), lambda: 4096)  # type: ignore[arg-type]
    with pytest.raises(StorageError, match=f"takes no writes until the node is started again.*{error}"):
        store.write()
    assert rows_in(store) == empty_model(), "reads go on"


@pytest.mark.case(52)
@pytest.mark.parametrize(
    ("error", "free_bytes"),
    [
        (lmdb_error(lmdb.DiskError, "mdb_txn_commit: No space left on device", errno.ENOSPC), 1 << 40),
        (lmdb_error(lmdb.Error, "mdb_txn_commit: Input/output error", errno.EIO), 4095),
    ],
)
def test_full_disk_fails_the_commit_and_not_the_state(
    store: StateStore, error: lmdb.Error, free_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store._opened, "disk_free_bytes", lambda: free_bytes)
    with pytest.raises(StorageError, match="the disk is full: free or add space"):
        store._opened._commit(FailingTransaction(error), lambda: 4096)  # type: ignore[arg-type]
    assert (store.failure, store.dirtied_bytes) == (None, 0)
    with store.write() as tables:
        tables.put(Table.HOT, b"a", b"1")


def wipe_reader_table(store: StateStore) -> None:
    """Do what a careless program does: open and close lock.mdb, which drops LMDB's lock; the next process
    then clears the table."""
    open(store.path / "lock.mdb", "rb").close()
    program = f"import lmdb; e = lmdb.open({str(store.path)!r}); e.begin().abort()"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.case(77)
def test_wiped_reader_table_stops_the_state_before_the_checkpoint_is_written_over(
    store: StateStore, tmp_path: Path
) -> None:
    with store.write() as tables:
        tables.put(Table.HOT, b"a", b"1")
    store.checkpoint(1)
    with store.write() as tables:
        tables.put(Table.HOT, b"a", b"2")
    checkpoint = store.begin_checkpoint(2)
    wipe_reader_table(store)
    with pytest.raises(StorageError, match=r"another program opened lock\.mdb"):
        checkpoint.sync()
    with pytest.raises(StorageError, match=r"another program opened lock\.mdb"):
        store.write()
    store.close(clean=False)
    again = StateStore.open(tmp_path)
    assert (rows_in(again)[Table.HOT], again.durable_applied_index) == ({b"a": b"1"}, 1)
    again.close(clean=False)


WIPED_WITHIN_A_TRANSACTION = """
import os, sys
from pathlib import Path
from raftstate.errors import StorageError
from raftstate.machine.tables import Table
from raftstate.store.state import StateStore
from tests.store.test_state import wipe_reader_table

store = StateStore.create(Path(sys.argv[1]), 1 << 28)
data_file = store.path / "data.mdb"
before = data_file.read_bytes()
try:
    with store.write() as tables:
        tables.put(Table.HOT, b"a", b"1")
        wipe_reader_table(store)
except StorageError as error:
    print(error, data_file.read_bytes() == before, flush=True)
os._exit(0)
"""


@pytest.mark.case(77)
def test_reader_table_wiped_within_a_transaction_keeps_it_from_committing(tmp_path: Path) -> None:
    # In a process of its own: the wipe also clears LMDB's write lock while it is held, which leaves the
    # thread that holds it with a list of locks that the C library can't walk again.
    command = [sys.executable, "-c", WIPED_WITHIN_A_TRANSACTION, str(tmp_path / "node")]
    (tmp_path / "node").mkdir()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "another program opened lock.mdb" in done.stdout
    assert done.stdout.rstrip().endswith("True")


def test_a_full_map_is_mended_by_a_start_with_a_larger_one(tmp_path: Path) -> None:
    store = StateStore.create(tmp_path, map_bytes=1 << 20)

    def fill(rows: int) -> None:
        with store.write() as tables:
            for number in range(rows):
                tables.put(Table.HOT, b"%08d" % number, b"x" * 1000)

    fill(10)
    with pytest.raises(StorageError, match="map"):
        fill(2_000)
    store.close(clean=False)
    store = StateStore.open(tmp_path, map_bytes=1 << 24)
    fill(2_000)
    with store.read() as tables:
        assert tables.count(Table.HOT) == 2_000
    store.close(clean=False)
