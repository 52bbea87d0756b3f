"""Which files a start opens, and in what form: each branch of the rule, and a crash at each of its steps."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pytest

from raftstate.errors import DataLossError, FailedPreconditionError, StorageError
from raftstate.machine.tables import Table
from raftstate.store import checkpoint as checkpoint_module
from raftstate.store import files, start
from raftstate.store.checkpoint import CheckpointRecord
from raftstate.store.generation import current_generation
from raftstate.store.meta_page import read_meta_pages
from raftstate.store.start import startable, walk
from raftstate.store.state import StateStore
from tests.store.state_model import lmdb_error, rows_in

MAP_BYTES = 1 << 26

CHECKPOINTED = {
    Table.CHANGES: {},
    Table.INDEX: {b"a": b"1"},
    Table.MILESTONES: {},
    Table.HOT: {b"meta": b"10"},
}


def stopped_uncleanly(directory: Path) -> None:
    """Leave a state whose checkpoint at index 10 holds CHECKPOINTED, and later commits that are in no
    checkpoint."""
    store = StateStore.create(directory, MAP_BYTES)
    with store.write() as tables:
        tables.put(Table.INDEX, b"a", b"1")
        tables.put(Table.HOT, b"meta", b"10")
    store.checkpoint(10)
    for index in range(11, 15):
        with store.write() as tables:
            tables.put(Table.INDEX, b"a", b"lost")
            tables.put(Table.HOT, b"meta", b"%d" % index)
    store.close(clean=False)


def create_state(directory: Path) -> StateStore:
    return StateStore.create(directory, MAP_BYTES)


def stopped_cleanly(directory: Path) -> None:
    store = create_state(directory)
    with store.write() as tables:
        tables.put(Table.INDEX, b"a", b"1")
    with store.write() as tables:
        tables.put(Table.HOT, b"meta", b"10")
    store.checkpoint(10)
    store.close(clean=True)


def stopped_after_eio(directory: Path) -> None:
    stopped_uncleanly(directory)
    (directory / "state-1" / "eio").touch()


@contextmanager
def a_reader(directory: Path, generation: str = "state-1") -> Iterator[None]:
    """Hold the shared lock that another process holds while it has the environment open."""
    with open(directory / generation / "readers", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def names(directory: Path) -> set[str]:
    return set(os.listdir(directory))


def assert_opens_exactly(directory: Path) -> None:
    store = StateStore.open(directory, readers_wait_s=0)
    assert (rows_in(store), store.durable_applied_index) == (CHECKPOINTED, 10)
    store.close(clean=False)


def test_clean_stop_is_opened_as_it_stands(tmp_path: Path) -> None:
    stopped_cleanly(tmp_path)
    before = (tmp_path / "state-1" / "data.mdb").read_bytes()
    with startable(tmp_path, readers_wait_s=0, verify=walk) as (generation, record):
        assert generation.data_file.read_bytes() == before
        assert generation.lock_file.exists()
        assert record.applied_index == 10
        assert names(tmp_path) == {"CURRENT", "state-1"}, (
            "the marker must be gone before anything is opened for writing"
        )
    assert_opens_exactly(tmp_path)


def test_clean_stop_with_a_reader_goes_on_in_the_same_files(tmp_path: Path) -> None:
    stopped_cleanly(tmp_path)
    with a_reader(tmp_path):
        assert_opens_exactly(tmp_path)
    assert (tmp_path / "CURRENT").read_bytes() == b"state-1\n"


def test_clean_stops_marker_is_not_believed_beside_another_data_file(tmp_path: Path) -> None:
    stopped_uncleanly(tmp_path)
    (tmp_path / "clean-stop").touch()
    assert_opens_exactly(tmp_path)


def test_unclean_stop_goes_back_to_the_checkpoint_in_both_meta_pages(tmp_path: Path) -> None:
    stopped_uncleanly(tmp_path)
    record = CheckpointRecord.read(tmp_path / "state-1" / "checkpoint")
    with startable(tmp_path, readers_wait_s=0, verify=walk) as (generation, _):
        assert not generation.lock_file.exists()
        pages = read_meta_pages(generation.data_file)
    assert pages[record.meta.page_number] == record.meta
    assert pages[record.meta.page_number ^ 1] == record.meta.predecessor()
    assert pages[0].in_its_slot
    assert pages[1].in_its_slot
    assert_opens_exactly(tmp_path)


@pytest.mark.case(48)
def test_damaged_meta_pages_of_an_unclean_stop_do_not_matter(tmp_path: Path) -> None:
    stopped_uncleanly(tmp_path)
    with open(tmp_path / "state-1" / "data.mdb", "r+b") as file:
        file.write(os.urandom(2 * 4096))
    assert_opens_exactly(tmp_path)


def test_readers_that_leave_within_the_wait_cost_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_uncleanly(tmp_path)
    reader = a_reader(tmp_path)
    reader.__enter__()
    monkeypatch.setattr("time.sleep", lambda seconds: reader.__exit__(None, None, None))
    store = StateStore.open(tmp_path)
    assert (rows_in(store), store.path.name) == (CHECKPOINTED, "state-1")
    store.close(clean=False)


def test_reader_that_stays_keeps_its_files_and_the_node_goes_on_in_a_copy(tmp_path: Path) -> None:
    stopped_uncleanly(tmp_path)
    before = (tmp_path / "state-1" / "data.mdb").read_bytes()
    with a_reader(tmp_path):
        store = StateStore.open(tmp_path, readers_wait_s=0.02)
        assert (rows_in(store), store.path.name) == (CHECKPOINTED, "state-2")
        with store.write() as tables:
            tables.put(Table.HOT, b"meta", b"11")
        store.checkpoint(11)
        store.close(clean=True)
        assert (tmp_path / "state-1" / "data.mdb").read_bytes() == before
        assert names(tmp_path) == {"CURRENT", "state-1", "state-2", "clean-stop"}
    store = StateStore.open(tmp_path)
    assert names(tmp_path) == {"CURRENT", "state-2"}, "what nobody reads any more is removed"
    assert rows_in(store) == CHECKPOINTED | {Table.HOT: {b"meta": b"11"}}
    store.close(clean=False)


def test_data_file_that_was_cut_off_is_an_error_and_not_a_signal(tmp_path: Path) -> None:
    stopped_uncleanly(tmp_path)
    os.truncate(tmp_path / "state-1" / "data.mdb", 2 * 4096)
    with pytest.raises(DataLossError, match="damaged pages were found"):
        StateStore.open(tmp_path)


@pytest.mark.case(53)
def test_failed_sync_stops_the_state_and_the_file_is_never_synced_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def sync(environment: lmdb.Environment) -> None:
        synced.append(Path(environment.path()).name)
        if len(synced) == 1:
            raise lmdb_error(lmdb.Error, "mdb_env_sync: Input/output error", errno.EIO)

    stopped_uncleanly(tmp_path)
    store = StateStore.open(tmp_path)
    with store.write() as tables:
        tables.put(Table.HOT, b"meta", b"11")
    monkeypatch.setattr(checkpoint_module, "sync_data", sync)
    checkpoint = store.begin_checkpoint(11)
    with pytest.raises(StorageError, match=r"syncing the state .*Input/output error.*check the kernel's log"):
        checkpoint.sync()
    for use in (store.write, lambda: store.begin_checkpoint(11)):
        with pytest.raises(StorageError, match="Input/output error"):
            use()
    assert store.durable_applied_index == 10
    store.close(clean=False)

    store = StateStore.open(tmp_path)
    assert (rows_in(store), store.path.name, store.failure) == (CHECKPOINTED, "state-2", None)
    store.close(clean=False)
    assert_opens_exactly(tmp_path)
    assert synced == ["state-1", "state-2", "state-2"]
    assert names(tmp_path) == {"CURRENT", "state-2"}


@pytest.mark.case(53)
def test_copy_after_a_failed_sync_is_read_through_before_it_is_believed(tmp_path: Path) -> None:
    stopped_after_eio(tmp_path)
    record = CheckpointRecord.read(tmp_path / "state-1" / "checkpoint")
    with open(tmp_path / "state-1" / "data.mdb", "r+b") as file:
        file.seek(record.meta.main.root * record.meta.page_bytes)
        file.write(bytes(record.meta.page_bytes))
    with pytest.raises(DataLossError, match="replace this node"):
        StateStore.open(tmp_path)
    assert (tmp_path / "CURRENT").read_bytes() == b"state-1\n"


@pytest.mark.case(53)
def test_damaged_free_list_is_found_in_the_copy_though_no_row_is(tmp_path: Path) -> None:
    stopped_after_eio(tmp_path)
    record = CheckpointRecord.read(tmp_path / "state-1" / "checkpoint")
    with open(tmp_path / "state-1" / "data.mdb", "r+b") as file:
        file.seek((record.meta.free.root + 1) * record.meta.page_bytes - 8)
        file.write(record.meta.main.root.to_bytes(8, sys.byteorder))
    with pytest.raises(DataLossError, match=r"can't be trusted.*replace this node"):
        StateStore.open(tmp_path)


def test_verifier_of_the_caller_has_the_last_word_on_a_copy(tmp_path: Path) -> None:
    def refuse(tables: object) -> None:
        raise DataLossError("row a has a wrong checksum")

    stopped_after_eio(tmp_path)
    with pytest.raises(DataLossError, match="row a has a wrong checksum"):
        StateStore.open(tmp_path, verify=refuse)


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_state_without_its_checkpoint_is_refused(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    stopped_cleanly(tmp_path)
    damage(tmp_path / "state-1" / "checkpoint")
    with pytest.raises(DataLossError, match="replace this node"):
        StateStore.open(tmp_path)


def test_any_flipped_bit_in_the_checkpoint_is_noticed(tmp_path: Path) -> None:
    stopped_cleanly(tmp_path)
    path = tmp_path / "state-1" / "checkpoint"
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(DataLossError):
            CheckpointRecord.read(path)


@pytest.mark.parametrize("content", [b"", b"state-0\n", b"state-1/../state-1\n", b"\xff\xfe", b"state-7\n"])
def test_damaged_current_is_refused(tmp_path: Path, content: bytes) -> None:
    stopped_cleanly(tmp_path)
    (tmp_path / "CURRENT").write_bytes(content)
    for use in (current_generation, StateStore.open, create_state):
        with pytest.raises(DataLossError, match="CURRENT"):
            use(tmp_path)


def test_state_whose_current_is_missing_is_neither_opened_nor_overwritten(tmp_path: Path) -> None:
    stopped_cleanly(tmp_path)
    (tmp_path / "CURRENT").unlink()
    for use in (StateStore.open, create_state):
        with pytest.raises(DataLossError, match="CURRENT is missing"):
            use(tmp_path)
    assert (tmp_path / "state-1" / "data.mdb").exists()


def test_state_is_created_once(tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError, match="create it first"):
        StateStore.open(tmp_path)
    StateStore.create(tmp_path, MAP_BYTES).close(clean=False)
    with pytest.raises(FailedPreconditionError, match="holds a state already"):
        StateStore.create(tmp_path, MAP_BYTES)


def test_map_size_stays_the_one_of_the_creation(tmp_path: Path) -> None:
    StateStore.create(tmp_path, MAP_BYTES).close(clean=False)
    store = StateStore.open(tmp_path)
    with (
        pytest.raises(StorageError, match=r"the map is full.*larger state_map_bytes"),
        store.write() as tables,
    ):
        tables.put(Table.CHANGES, b"key", bytes(MAP_BYTES))
    store.close(clean=False)


def test_copy_without_the_kernels_help_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*arguments: int) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "copy_file_range", unsupported)
    monkeypatch.setattr(files, "_COPY_BYTES", 5000)
    stopped_after_eio(tmp_path)
    assert_opens_exactly(tmp_path)


@pytest.mark.case(55)
def test_slots_of_dead_readers_are_given_back(tmp_path: Path) -> None:
    stopped_cleanly(tmp_path)
    store = StateStore.open(tmp_path)
    program = (
        f"import lmdb, os; e = lmdb.open({str(store.path)!r}, readonly=True); t = e.begin(); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert (store.clear_dead_readers(), store.clear_dead_readers()) == (1, 0)
    store.close(clean=False)


@pytest.mark.case(55)
def test_a_start_beside_a_living_reader_gives_back_the_slots_of_dead_ones(tmp_path: Path) -> None:
    """LMDB itself clears the table for whoever opens the environment first, and here that is the reader."""
    stopped_cleanly(tmp_path)
    reading = (
        f"import lmdb, os, sys; e = lmdb.open({str(tmp_path / 'state-1')!r}, readonly=True); t = e.begin()"
    )
    command = [sys.executable, "-c", f"{reading}; print('reading', flush=True); sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as living:
        assert living.stdout is not None
        assert living.stdout.readline() == b"reading\n"
        subprocess.run([sys.executable, "-c", f"{reading}; os._exit(0)"], check=True)
        store = StateStore.open(tmp_path)
        assert {reader.pid for reader in store.readers()[0]} == {os.getpid(), living.pid}
        store.close(clean=False)
        living.communicate()


class Crash(BaseException):
    """The process ends here. Nothing may catch it."""


STEPS = (
    "fsync",
    "replace",
    "rename",
    "pwrite",
    "mkdir",
    "unlink",
    "rmdir",
    "ftruncate",
    "copy_file_range",
    "open",
)


def crash_before_step(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the process die before the `step`th call that changes files, counted from 0."""
    calls = iter(range(1 << 30))

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            if next(calls) >= step:
                raise Crash
            return function(*arguments, **options)

        return call

    for name in STEPS:
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    monkeypatch.setattr(lmdb, "open", counted(lmdb.open))


def crash_at_every_step(
    tmp_path: Path,
    prepare: Callable[[Path], object],
    use: Callable[[Path], None],
    check: Callable[[Path], None],
) -> int:
    """Run `use` on a prepared directory with a crash at each step in turn, and `check` after each; return the
    number of steps."""
    step = 0
    while True:
        directory = tmp_path / f"crash-{step}"
        directory.mkdir()
        prepare(directory)
        with pytest.MonkeyPatch.context() as patch:
            crash_before_step(patch, step)
            try:
                use(directory)
                crashed = False
            except Crash:
                crashed = True
        check(directory)
        if not crashed:
            return step
        step += 1


def open_and_close(directory: Path) -> None:
    StateStore.open(directory, readers_wait_s=0).close(clean=False)


def test_crash_at_any_step_of_a_creation_lets_it_be_done_again(tmp_path: Path) -> None:
    def create(directory: Path) -> None:
        StateStore.create(directory, MAP_BYTES).close(clean=False)

    def check(directory: Path) -> None:
        store = (
            StateStore.open(directory)
            if current_generation(directory) is not None
            else StateStore.create(directory, MAP_BYTES)
        )
        assert (rows_in(store), store.durable_applied_index) == ({table: {} for table in Table}, 0)
        store.close(clean=False)

    assert crash_at_every_step(tmp_path, lambda directory: None, create, check) > 20


@pytest.mark.parametrize("prepare", [stopped_uncleanly, stopped_cleanly, stopped_after_eio])
def test_crash_at_any_step_of_a_start_loses_nothing(tmp_path: Path, prepare: Callable[[Path], None]) -> None:
    assert crash_at_every_step(tmp_path, prepare, open_and_close, assert_opens_exactly) > 8


def test_crash_at_any_step_of_a_start_beside_a_reader_loses_nothing(tmp_path: Path) -> None:
    def open_beside_a_reader(directory: Path) -> None:
        with a_reader(directory):
            open_and_close(directory)

    assert crash_at_every_step(tmp_path, stopped_uncleanly, open_beside_a_reader, assert_opens_exactly) > 20


def test_crash_at_any_step_of_a_checkpoint_and_a_clean_stop_loses_nothing(tmp_path: Path) -> None:
    later = CHECKPOINTED | {Table.HOT: {b"meta": b"11"}}

    def checkpoint_and_stop(directory: Path) -> None:
        store = StateStore.open(directory)
        try:
            with store.write() as tables:
                tables.put(Table.HOT, b"meta", b"11")
            store.checkpoint(11)
            store.close(clean=True)
        except BaseException:
            store.close(clean=False)
            raise

    def check(directory: Path) -> None:
        store = StateStore.open(directory)
        assert (store.durable_applied_index, rows_in(store)) in ((10, CHECKPOINTED), (11, later))
        store.close(clean=False)

    assert crash_at_every_step(tmp_path, stopped_uncleanly, checkpoint_and_stop, check) > 20


@pytest.mark.case(53)
@pytest.mark.parametrize("is_readable", [True, False])
def test_a_state_that_the_disk_can_not_give_back_is_lost_and_one_that_it_can_not_take_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_readable: bool
) -> None:
    """Otherwise a node with a bad sector would try to copy it for ever, instead of fetching a copy."""
    stopped_uncleanly(tmp_path)
    start.distrust_state(tmp_path)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(start, "copy_bytes", fail)
    if not is_readable:
        real = os.pread
        monkeypatch.setattr(os, "pread", lambda fd, size, at: fail() if size > 8192 else real(fd, size, at))
    with pytest.raises(StorageError if is_readable else DataLossError, match="Input/output error"):
        StateStore.open(tmp_path)
