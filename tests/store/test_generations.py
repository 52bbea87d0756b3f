"""One generation of the state follows another in a running store: readers, writers, checkpoints,
directories."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import lmdb
import msgspec
import pytest

from raftstate.errors import (
    ClosedError,
    DataLossError,
    FailedPreconditionError,
    InvariantError,
    StorageError,
    WrongClusterError,
)
from raftstate.machine.layout import Meta, read_meta
from raftstate.machine.machine import Machine
from raftstate.machine.tables import ReadTables, Table
from raftstate.machine.verify import check_state
from raftstate.store import checkpoint as checkpoint_module
from raftstate.store import generation as generation_module
from raftstate.store import snapshot as snapshot_module
from raftstate.store import snapshot_format
from raftstate.store.checkpoint import CheckpointRecord
from raftstate.store.files import disk_failure, durable_write
from raftstate.store.generation import Generation, new_generation
from raftstate.store.open_generation import OpenGeneration
from raftstate.store.snapshot import PreparedGeneration, content_of, write_snapshot
from raftstate.store.snapshot_format import SnapshotMeta
from raftstate.store.state import StateStore
from tests.machine.rig import CLUSTER, batch, entry, put
from tests.machine.test_apply import PROGRAM
from tests.store.page_walk import pages_seen
from tests.store.snapshot_helpers import (
    MAP_BYTES,
    apply_all,
    blank_state,
    meta_of,
    new_state,
    no_pause,
    prepare,
    snapshot_of,
)
from tests.store.state_model import Workload, rows_in

INDEX = len(PROGRAM)


@pytest.fixture
def sender(tmp_path: Path) -> Iterator[StateStore]:
    store = new_state(tmp_path / "sender")
    yield store
    store.close(clean=False)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StateStore]:
    """A state that lags behind the sender's."""
    store = new_state(tmp_path / "node", PROGRAM[:3])
    yield store
    store.close(clean=False)


def names(store: StateStore) -> set[str]:
    return set(os.listdir(store.path.parent))


def replace(store: StateStore, prepared: PreparedGeneration) -> None:
    store.make_current(prepared)
    store.adopt(prepared)


def reopen(store: StateStore, *, clean: bool = False) -> StateStore:
    store.close(clean=clean)
    return StateStore.open(store.path.parent)


# -- what follows


@pytest.mark.case(44)
@pytest.mark.parametrize("piece_bytes", [1, 7, 4096, 1 << 20])
def test_a_node_that_adopts_a_snapshot_holds_the_rows_of_its_sender(
    sender: StateStore, tmp_path: Path, piece_bytes: int
) -> None:
    joiner, expected = blank_state(tmp_path / "joiner"), rows_in(sender)
    prepared = prepare(joiner, snapshot_of(sender), piece_bytes)
    replace(joiner, prepared)
    assert rows_in(joiner) == expected
    assert (joiner.durable_applied_index, joiner.dirtied_bytes) == (INDEX, 0)
    joiner = reopen(joiner, clean=True)
    with joiner.read() as tables:
        machine = Machine(tables)
    assert (machine.applied_index, machine.is_blank) == (INDEX, False)
    assert (machine.session_count, machine.lease_count, len(machine.members)) == (1, 1, 3)
    assert rows_in(joiner) == expected
    joiner.close(clean=True)


def test_the_store_goes_on_in_the_adopted_generation(sender: StateStore, store: StateStore) -> None:
    replace(store, prepare(store, snapshot_of(sender)))
    assert store.path.name == "state-2"
    assert names(store) == {"CURRENT", "state-2"}
    assert store.size_bytes() == (store.path / "data.mdb").stat().st_size
    apply_all(store, [entry(INDEX + 1, batch(put(1, b"later")), term=3)])
    assert (store.durable_applied_index, store.dirtied_bytes) == (INDEX + 1, 0)
    expected = rows_in(store)
    with store.write() as tables:
        tables.put(Table.HOT, b"lost", b"with the next crash")
    assert store.dirtied_bytes > 0
    again = reopen(store)
    assert (rows_in(again), again.durable_applied_index) == (expected, INDEX + 1)
    again.close(clean=False)


def test_a_generation_that_was_built_on_a_thread_that_has_ended_takes_writes(
    sender: StateStore, store: StateStore
) -> None:
    prepared: list[PreparedGeneration] = []
    snapshot = snapshot_of(sender)
    thread = threading.Thread(target=lambda: prepared.append(prepare(store, snapshot)))
    thread.start()
    thread.join()
    replace(store, prepared[0])
    apply_all(store, [entry(INDEX + 1, batch(put(1, b"later")), term=3)])
    assert store.failure is None
    assert store.durable_applied_index == INDEX + 1


def test_a_generation_follows_another_again_and_again(sender: StateStore, store: StateStore) -> None:
    for number in range(2, 6):
        replace(store, prepare(store, snapshot_of(sender)))
        assert (store.path.name, names(store)) == (f"state-{number}", {"CURRENT", f"state-{number}"})
    assert rows_in(store) == rows_in(sender)


def test_a_prepared_generation_can_be_brought_up_to_date_before_it_is_adopted(
    sender: StateStore, store: StateStore
) -> None:
    prepared = prepare(store, snapshot_of(sender))
    with prepared.opened.read() as committed:
        machine = Machine(committed)
    with prepared.opened.write() as tables:
        machine.apply(tables, [entry(INDEX + 1, batch(put(1, b"later")), term=3)])
    prepared.opened.checkpoint(INDEX + 1)
    replace(store, prepared)
    assert store.durable_applied_index == INDEX + 1
    with store.read() as tables:
        assert check_state(tables).applied_index == INDEX + 1


@pytest.mark.case(77)
def test_no_page_of_the_adopted_checkpoint_is_written_to_before_the_next_one(
    sender: StateStore, store: StateStore
) -> None:
    replace(store, prepare(store, snapshot_of(sender)))
    data_file = store.path / "data.mdb"

    def pages() -> dict[int, bytes]:
        data = data_file.read_bytes()
        return {page: data[page * 4096 : (page + 1) * 4096] for page in protected}

    record = CheckpointRecord.read(store.path / "checkpoint")
    protected = pages_seen(data_file.read_bytes(), record.meta)
    before = pages()
    workload = Workload(Random(3))
    workload.revision = 1 << 40
    for _ in range(60):
        with store.write() as tables:
            workload.transaction(tables)
    assert pages() == before


def test_the_map_is_as_large_as_the_present_one(sender: StateStore, tmp_path: Path) -> None:
    new_state(tmp_path / "grown", PROGRAM[:1]).close(clean=True)
    grown = StateStore.open(tmp_path / "grown", map_bytes=2 * MAP_BYTES)
    replace(grown, prepare(grown, snapshot_of(sender)))
    grown = reopen(grown)
    assert grown._opened.map_bytes == 2 * MAP_BYTES
    grown.close(clean=False)


# -- readers


def test_a_reader_of_the_old_generation_reads_on_and_then_its_directory_goes(
    sender: StateStore, store: StateStore
) -> None:
    expected, old = rows_in(store), store.path
    readers = [store.read(), store.read()]
    replace(store, prepare(store, snapshot_of(sender)))
    assert rows_in(store) == rows_in(sender)
    for tables in readers:
        assert old.exists()
        with tables:
            assert {table: dict(tables.scan(table)) for table in Table} == expected
    assert not old.exists()


def test_the_last_reader_has_the_old_generation_removed_elsewhere(
    sender: StateStore, store: StateStore
) -> None:
    old, jobs = store.path, list[Callable[[], None]]()
    prepared = prepare(store, snapshot_of(sender))
    store.make_current(prepared)
    reader = store.read()
    store.adopt(prepared, jobs.append)
    assert jobs == []
    with reader:
        pass
    assert (len(jobs), old.exists()) == (1, True)
    with reader:  # the second end of a reader counts for nothing
        pass
    [job] = jobs
    job()
    assert not old.exists()


def test_what_an_executor_did_not_take_any_more_is_done_by_the_close(
    sender: StateStore, store: StateStore
) -> None:
    def shut_down(job: Callable[[], None]) -> None:
        raise RuntimeError("cannot schedule new futures after shutdown")

    old = store.path
    prepared = prepare(store, snapshot_of(sender))
    store.make_current(prepared)
    with store.read():
        store.adopt(prepared, shut_down)
    assert old.exists()
    store.close(clean=True)
    assert not old.exists()
    StateStore.open(store.path.parent).close(clean=True)


def test_readers_on_threads_never_meet_a_closed_environment(sender: StateStore, store: StateStore) -> None:
    """They begin and end while one generation follows another, and each sees one of them whole."""
    stop, found, errors = threading.Event(), set[int](), list[BaseException]()
    seen = threading.Barrier(5)

    def read() -> None:
        try:
            seen.wait()
            while not stop.is_set():
                with store.read() as tables:
                    first = read_meta(tables).applied_index
                    found.add(first)
                    assert sum(1 for _ in tables.scan(Table.INDEX)) == tables.count(Table.INDEX)
                    assert read_meta(tables).applied_index == first
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    seen.wait()
    snapshots = [snapshot_of(sender), snapshot_of(store)]
    try:
        for number in range(12):
            replace(store, prepare(store, snapshots[number % 2]))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert found == {3, INDEX}
    assert names(store) == {"CURRENT", "state-13"}


def test_an_environment_that_another_process_reads_is_left_to_the_next_start(
    sender: StateStore, store: StateStore
) -> None:
    old = store.path
    with open(old / "readers", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        replace(store, prepare(store, snapshot_of(sender)))
        assert old.exists()
    again = reopen(store, clean=True)
    assert not old.exists()
    again.close(clean=True)


# -- order


def test_adopting_waits_for_nothing_and_refuses_what_is_under_way(
    sender: StateStore, store: StateStore
) -> None:
    prepared = prepare(store, snapshot_of(sender))
    with pytest.raises(InvariantError, match="is adopted, and was not made current"):
        store.adopt(prepared)
    store.make_current(prepared)
    with store.write() as tables:
        tables.put(Table.HOT, b"a", b"1")
        with pytest.raises(InvariantError, match="within a transaction or a checkpoint"):
            store.adopt(prepared)
    checkpoint = store.begin_checkpoint(3)
    with pytest.raises(InvariantError, match="within a transaction or a checkpoint"):
        store.adopt(prepared)
    checkpoint.sync()
    checkpoint.finish()
    store.adopt(prepared)
    with pytest.raises(InvariantError, match="finished twice"):
        checkpoint.finish()
    assert store.durable_applied_index == INDEX
    with pytest.raises(InvariantError, match="is adopted, and was not made current"):
        store.adopt(prepared)


def test_a_generation_is_offered_once_and_one_at_a_time(sender: StateStore, store: StateStore) -> None:
    snapshot = snapshot_of(sender)
    first, second = prepare(store, snapshot), prepare(store, snapshot)
    store.make_current(first)
    for prepared in (first, second):
        with pytest.raises(InvariantError, match="can't become the current generation"):
            store.make_current(prepared)
    with pytest.raises(InvariantError, match="is discarded, but CURRENT may name it"):
        first.discard()
    store.adopt(first)
    second.discard()
    second.discard()
    with pytest.raises(InvariantError, match="can't become the current generation"):
        store.make_current(second)
    assert names(store) == {"CURRENT", "state-2"}


@pytest.mark.case(64)
def test_one_that_may_wait_becomes_current_once_the_one_before_is_adopted(
    sender: StateStore, store: StateStore
) -> None:
    first, second = (prepare(store, snapshot_of(sender)) for _ in range(2))
    store.make_current(first)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(store.make_current, second, wait_s=30.0)
        assert not waiting.done()
        store.adopt(first)
        waiting.result(30)
    store.adopt(second)
    assert store.path == second.path


def test_one_that_was_made_in_place_of_another_state_is_refused(
    sender: StateStore, store: StateStore
) -> None:
    before = store.path
    replace(store, prepare(store, snapshot_of(sender)))
    late = prepare(store, snapshot_of(sender))
    with pytest.raises(FailedPreconditionError, match="was made in place of"):
        store.make_current(late, instead_of=before)
    assert not late.is_offered
    late.discard()


def test_what_is_noted_of_a_state_that_can_not_be_trusted_goes_with_it(
    sender: StateStore, store: StateStore
) -> None:
    assert store.distrusted() == ""
    store.distrust("a row is damaged")
    again = reopen(store)
    assert again.distrusted() == "a row is damaged"
    replace(again, prepare(again, snapshot_of(sender)))
    assert again.distrusted() == ""
    last = reopen(again)
    assert last.distrusted() == ""
    last.close(clean=False)


def test_once_another_one_is_current_no_more_counts_as_durable_than_both_hold(
    sender: StateStore, store: StateStore
) -> None:
    """A start would open the other one, and find the log cut no further than it has applied."""
    behind = prepare(store, snapshot_of(store))
    apply_all(store, PROGRAM[3:8])
    assert store.durable_applied_index == 8
    store.make_current(behind)
    assert store.durable_applied_index == 3
    apply_all(store, PROGRAM[8:9])
    assert store.durable_applied_index == 3
    store.adopt(behind)
    assert store.durable_applied_index == 3
    ahead = prepare(store, snapshot_of(sender))
    store.make_current(ahead)
    assert store.durable_applied_index == 3
    store.adopt(ahead)
    assert store.durable_applied_index == INDEX


def test_a_checkpoint_that_failed_is_still_under_way(
    sender: StateStore, store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(environment: lmdb.Environment) -> None:
        raise lmdb.DiskError("mdb_env_sync: Input/output error")

    prepared = prepare(store, snapshot_of(sender))
    store.make_current(prepared)
    monkeypatch.setattr(checkpoint_module, "sync_data", failing)
    checkpoint = store.begin_checkpoint(3)
    with pytest.raises(StorageError):
        checkpoint.sync()
    assert store.failure is not None
    with pytest.raises(InvariantError, match="within a transaction or a checkpoint"):
        store.adopt(prepared)


def test_a_clean_stop_is_refused_between_the_two_steps(sender: StateStore, store: StateStore) -> None:
    prepared = prepare(store, snapshot_of(sender))
    store.make_current(prepared)
    with pytest.raises(InvariantError, match="a clean stop needs"):
        store.close(clean=True)
    again = reopen(store)
    assert (rows_in(again), again.path.name) == (rows_in(sender), "state-2")
    again.close(clean=False)


def test_a_closed_store_says_so(sender: StateStore, store: StateStore) -> None:
    replace(store, prepare(store, snapshot_of(sender)))
    store.close(clean=True)
    for use in (store.read, store.write, store.clear_dead_readers, lambda: store.begin_checkpoint(1)):
        with pytest.raises(ClosedError, match="is closed"):
            use()


# -- what is refused


def refused(store: StateStore, snapshot: bytes) -> None:
    """Try to build from it; whatever was raised, the directory is as before."""
    before = names(store)
    try:
        prepare(store, snapshot)
    finally:
        assert names(store) == before


@pytest.mark.case(82)
@pytest.mark.parametrize("table", [Table.INDEX, Table.CHANGES, Table.MILESTONES])
def test_a_snapshot_of_a_state_that_has_lost_a_row_is_refused(
    sender: StateStore, store: StateStore, table: Table
) -> None:
    with sender.read() as tables:
        key = [key for key, _ in tables.scan(table)][-2 if table is Table.CHANGES else 0]
    with sender.write() as tables:
        assert tables.delete(table, key)
    expected = {
        Table.INDEX: "keys have vanished",
        Table.CHANGES: "no change was found|there is no such change|which is missing",
        Table.MILESTONES: r"there are \d+ milestones, and \d+ changes that must have one",
    }
    with pytest.raises(DataLossError, match=expected[table]):
        refused(store, snapshot_of(sender))
    assert rows_in(store)[Table.HOT] != {}


@pytest.mark.case(42)
@pytest.mark.case(56)
def test_a_snapshot_with_a_damaged_row_is_refused(sender: StateStore, store: StateStore) -> None:
    with sender.write() as tables:
        key, row = next(iter(tables.scan(Table.CHANGES)))
        tables.put(Table.CHANGES, key, row[:-1] + bytes((row[-1] ^ 1,)))
    with pytest.raises(DataLossError, match=rf"row {key.hex()} of table CHANGES is damaged"):
        refused(store, snapshot_of(sender))


@pytest.mark.case(42)
@pytest.mark.parametrize("at", range(0, 100, 7))
def test_a_damaged_or_truncated_file_is_refused_and_leaves_nothing(
    sender: StateStore, store: StateStore, at: int
) -> None:
    snapshot, expected = snapshot_of(sender), rows_in(store)
    place = len(snapshot) * at // 100
    with pytest.raises(DataLossError):
        refused(store, snapshot[:place] + bytes((snapshot[place] ^ 16,)) + snapshot[place + 1 :])
    with pytest.raises(DataLossError):
        refused(store, snapshot[:place])
    assert rows_in(store) == expected


@pytest.mark.case(59)
def test_a_snapshot_of_another_cluster_is_refused_at_its_head(sender: StateStore, store: StateStore) -> None:
    builder = store.build(CLUSTER + 1)
    with pytest.raises(WrongClusterError, match=r"is of cluster 0xc1, and this node is of cluster 0xc2"):
        builder.feed(snapshot_of(sender)[:200])
    builder.discard()
    assert names(store) == {"CURRENT", "state-1"}


@pytest.mark.case(60)
def test_a_newer_format_is_refused(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_format, "FORMAT", 2)
    newer = snapshot_of(store)
    monkeypatch.undo()
    with pytest.raises(FailedPreconditionError, match="format 2"):
        refused(store, newer)


@pytest.mark.parametrize(
    "wrong", [{"index": INDEX + 1}, {"term": 2}, {"machine_version": 1}, {"cluster_id": 5}]
)
def test_a_snapshot_that_is_not_what_its_head_says_is_refused(
    sender: StateStore, store: StateStore, tmp_path: Path, wrong: dict[str, int]
) -> None:
    meta = msgspec.structs.replace(meta_of(sender), **wrong)
    path = tmp_path / "snapshot"
    with sender.read() as tables:
        write_snapshot(tables, meta, path, no_pause)
    builder = store.build()
    builder.feed(path.read_bytes())
    with pytest.raises(DataLossError, match=r"should be \(.*\), and its rows say \("):
        builder.finish(check_state)
    builder.discard()


def test_a_builder_is_of_no_use_after_a_failure_or_its_end(sender: StateStore, store: StateStore) -> None:
    snapshot = snapshot_of(sender)
    failed, finished, discarded = store.build(), store.build(), store.build()
    with pytest.raises(DataLossError):
        failed.feed(b"no snapshot" * 10)
    finished.feed(snapshot)
    assert finished.meta is not None
    prepared = finished.finish(check_state)
    discarded.feed(snapshot[: len(snapshot) // 2])
    discarded.discard()
    for builder in (failed, finished, discarded):
        with pytest.raises(InvariantError, match="is used after it failed, or was finished or discarded"):
            builder.feed(b"")
        with pytest.raises(InvariantError, match="is used after it failed, or was finished or discarded"):
            builder.finish(check_state)
        builder.discard()
        builder.discard()
    assert names(store) == {"CURRENT", "state-1", prepared.path.name}
    prepared.discard()
    assert names(store) == {"CURRENT", "state-1"}


def test_what_verifying_raises_is_raised_and_nothing_becomes_a_checkpoint(
    sender: StateStore, store: StateStore
) -> None:
    def give_up(tables: ReadTables) -> Meta:
        raise ZeroDivisionError

    builder = store.build()
    builder.feed(snapshot_of(sender))
    with pytest.raises(ZeroDivisionError):
        builder.finish(give_up)
    assert not (builder.path / "checkpoint").exists()
    builder.discard()


# -- disks


def test_a_map_that_is_too_small_fails_the_build_and_not_the_state(tmp_path: Path) -> None:
    large = new_state(tmp_path / "large", [])
    values = (entry(n, batch(put(1, b"k%d" % n, b"v" * 900_000))) for n in range(1, 40))
    apply_all(large, list(values))
    (tmp_path / "small").mkdir()
    store = StateStore.create(tmp_path / "small", 8 << 20)
    with pytest.raises(StorageError, match="the map"):
        refused(store, snapshot_of(large))
    with store.write() as tables:
        tables.put(Table.HOT, b"a", b"1")
    store.close(clean=False)
    large.close(clean=False)


@pytest.mark.case(53)
def test_a_failed_sync_fails_the_build_and_not_the_state(
    sender: StateStore, store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(environment: lmdb.Environment) -> None:
        error = lmdb.DiskError("mdb_env_sync: Input/output error")
        error.code = errno.EIO  # type: ignore[misc]
        raise error

    snapshot = snapshot_of(sender)
    for module in (snapshot_module, checkpoint_module):
        monkeypatch.setattr(module, "sync_data", failing)
        with pytest.raises(StorageError, match="Input/output error"):
            refused(store, snapshot)
        monkeypatch.undo()
    assert store.failure is None
    replace(store, prepare(store, snapshot))


def test_a_snapshot_that_can_t_be_written_leaves_no_file(store: StateStore, tmp_path: Path) -> None:
    def give_up() -> None:
        raise ZeroDivisionError

    for path, pause, error in (
        (tmp_path / "absent" / "snapshot-3", no_pause, StorageError),
        (tmp_path / "snapshot-3", give_up, ZeroDivisionError),
    ):
        meta = meta_of(store)
        with pytest.raises(error), store.read() as tables:
            write_snapshot(tables, meta, path, pause)
        assert not path.exists()


# -- directories


def test_the_next_number_is_after_all_that_have_a_directory(store: StateStore) -> None:
    data_directory = store.path.parent
    (data_directory / "state-7").mkdir()
    assert new_generation(data_directory) == Generation(data_directory, 8)
    builder = store.build()
    assert builder.path.name == "state-9"
    builder.discard()
    assert names(store) == {"CURRENT", "state-1", "state-7", "state-8"}


def test_two_that_are_made_at_once_get_numbers_of_their_own(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_directory, make = store.path.parent, Generation.make_directory

    def too_late(generation: Generation) -> None:
        if generation.number == 2:
            Generation(data_directory, 2).path.mkdir()
        make(generation)

    monkeypatch.setattr(Generation, "make_directory", too_late)
    assert new_generation(data_directory).number == 3


def test_a_start_removes_half_built_generations_and_snapshots_on_their_way(
    sender: StateStore, store: StateStore
) -> None:
    snapshot = snapshot_of(sender)
    builder = store.build()
    builder.feed(snapshot[: len(snapshot) // 2])
    prepare(store, snapshot)
    data_directory = store.path.parent
    (data_directory / "state-9").mkdir()
    (data_directory / "snapshot-17").write_bytes(b"half of one")
    (data_directory / "snapshots").mkdir()
    again = reopen(store, clean=True)
    assert names(again) == {"CURRENT", "state-1", "snapshots"}
    again.close(clean=True)
    builder.discard()


# -- the snapshot's file


def test_a_snapshot_is_of_its_transaction_whatever_is_written_meanwhile(
    store: StateStore, tmp_path: Path
) -> None:
    expected = rows_in(store)
    meta = meta_of(store)
    writes = iter(PROGRAM[3:])

    def write() -> None:
        for later in writes:
            apply_all(store, [later])

    with store.read() as tables:
        write_snapshot(tables, meta, tmp_path / "snapshot", write)
    assert rows_in(store) != expected
    prepared = prepare(store, (tmp_path / "snapshot").read_bytes())
    with prepared.opened.read() as tables:
        assert {table: dict(tables.scan(table)) for table in Table} == expected
    prepared.discard()


def test_pauses_come_with_the_work(tmp_path: Path) -> None:
    large = new_state(tmp_path / "large", [])
    apply_all(large, [entry(n, batch(put(1, b"k%d" % n, b"v" * 900_000))) for n in range(1, 20)])
    pauses: list[int] = []
    meta = meta_of(large)
    with large.read() as tables:
        write_snapshot(tables, meta, tmp_path / "snapshot", lambda: pauses.append(1))
    assert len(pauses) == 19 + 2, "one for each block, here a row of CHANGES, one for INDEX, one for HOT"
    large.close(clean=False)


def test_a_table_with_fewer_rows_than_it_says_makes_no_snapshot(store: StateStore, tmp_path: Path) -> None:
    class Damaged:
        def __init__(self, tables: ReadTables) -> None:
            self.get, self.scan = tables.get, tables.scan
            self._tables = tables

        def count(self, table: Table) -> int:
            return self._tables.count(table) + (table is Table.INDEX)

    meta = meta_of(store)
    with store.read() as tables, pytest.raises(DataLossError, match="a page of its tree is damaged"):
        write_snapshot(Damaged(tables), meta, tmp_path / "snapshot", no_pause)
    assert not (tmp_path / "snapshot").exists()


def test_the_content_is_told_before_it_is_read(store: StateStore) -> None:
    with store.read() as tables:
        rows, stored_bytes = content_of(tables)
        assert rows == sum(len(of_table) for of_table in rows_in(store).values())
        raw_bytes = sum(len(key) + len(row) for table in Table for key, row in tables.scan(table))
    assert raw_bytes <= stored_bytes <= 4 * raw_bytes + 5 * 4096


def test_a_meta_is_read_back_as_it_was_written(store: StateStore) -> None:
    builder = store.build()
    builder.feed(snapshot_of(store))
    assert builder.meta == meta_of(store)
    assert isinstance(builder.meta, SnapshotMeta)
    builder.discard()


@pytest.mark.case(52)
def test_where_current_finds_no_room_it_is_written_once_there_is_some(
    sender: StateStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the log's thread does it: the same call, again and again."""
    store = blank_state(tmp_path / "full")
    prepared = prepare(store, snapshot_of(sender))
    write = durable_write
    tries: list[Path] = []

    def full_at_first(path: Path, content: bytes) -> None:
        tries.append(path)
        if len(tries) < 3:
            raise disk_failure("writing a file", path, OSError(errno.ENOSPC, "No space left on device"))
        write(path, content)

    monkeypatch.setattr(generation_module, "durable_write", full_at_first)
    for _ in range(2):
        with pytest.raises(StorageError, match="the disk is full"):
            store.make_current(prepared, wait_s=10)
        assert not store.is_settled
    store.make_current(prepared, wait_s=10)
    with pytest.raises(InvariantError, match="can't become the current generation"):
        store.make_current(prepared)
    store.adopt(prepared)
    assert meta_of(store).index == INDEX
    store.close(clean=True)
    reopened = StateStore.open(tmp_path / "full")
    assert meta_of(reopened).index == INDEX
    reopened.close(clean=False)


@pytest.mark.parametrize("ask", [StateStore.space, StateStore.readers, StateStore.clear_dead_readers])
def test_who_asks_while_another_one_is_adopted_is_answered_by_that_one(
    sender: StateStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Callable[[StateStore], object]
) -> None:
    store = blank_state(tmp_path / "asked")
    prepared = prepare(store, snapshot_of(sender))
    store.make_current(prepared)
    plain = getattr(OpenGeneration, ask.__name__)

    def after_adoption(opened: OpenGeneration) -> object:
        if not store.is_settled:
            store.adopt(prepared)
        return plain(opened)

    monkeypatch.setattr(OpenGeneration, ask.__name__, after_adoption)
    ask(store)
    assert store.is_settled
    store.close(clean=False)
    with pytest.raises((ClosedError, StorageError)):
        ask(store)
