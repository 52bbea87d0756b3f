"""The checkpoint's five steps, and when one is due."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from raftstate.errors import DataLossError, InvariantError, StorageError
from raftstate.machine.tables import Table
from raftstate.store import checkpoint as checkpoint_module
from raftstate.store.checkpoint import (
    CHECKPOINT_BYTES,
    CHECKPOINT_COMMANDS,
    CHECKPOINT_NS,
    WAIT_BYTES,
    Checkpoint,
    Checkpointer,
    CheckpointRecord,
    Pin,
)
from raftstate.store.state import StateStore
from tests.store.page_walk import pages_seen
from tests.store.state_model import Workload, rows_in


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StateStore]:
    store = StateStore.create(tmp_path, map_bytes=1 << 28)
    yield store
    store.close(clean=False)


def put(store: StateStore, value: bytes) -> None:
    with store.write() as tables:
        tables.put(Table.HOT, b"meta", value)


def published(store: StateStore) -> CheckpointRecord:
    return CheckpointRecord.read(store.path / "checkpoint")


def test_checkpoint_counts_once_it_is_finished_and_covers_what_was_committed_before_it_began(
    store: StateStore,
) -> None:
    put(store, b"1")
    before, dirtied = published(store), store.dirtied_bytes
    checkpoint = store.begin_checkpoint(1)
    put(store, b"2")
    assert (published(store), store.durable_applied_index) == (before, 0)
    checkpoint.sync()
    assert published(store) == CheckpointRecord(1, checkpoint.pin.meta)
    assert store.durable_applied_index == 0
    checkpoint.finish()
    assert (store.durable_applied_index, store.dirtied_bytes) == (1, dirtied)


def test_checkpoint_syncs_then_looks_at_its_slot_then_publishes_then_ends_the_one_before(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = store.begin_checkpoint(1)
    steps: list[str] = []

    def stands(pin: Pin) -> bool:
        steps.append("look")
        return True

    monkeypatch.setattr(checkpoint_module, "sync_data", lambda environment: steps.append("sync"))
    monkeypatch.setattr(Pin, "stands", stands)
    monkeypatch.setattr(checkpoint_module, "durable_write", lambda path, content: steps.append(path.name))
    monkeypatch.setattr(
        Pin, "end", lambda pin: steps.append("end the new" if pin is checkpoint.pin else "end")
    )
    checkpoint.sync()
    checkpoint.finish()
    assert steps == ["sync", "look", "checkpoint", "end"]


@pytest.mark.case(60)
def test_a_checkpoint_of_another_format_is_refused(
    store: StateStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.checkpoint(1)
    record = published(store)
    with monkeypatch.context() as newer:
        newer.setattr(checkpoint_module, "_FORMAT", 2)
        (tmp_path / "newer").write_bytes(record.to_bytes())
    with pytest.raises(DataLossError, match=r"has format b'RSCP' 2; this build reads b'RSCP' 1"):
        CheckpointRecord.read(tmp_path / "newer")


@pytest.mark.case(48)
def test_the_sync_of_a_checkpoint_is_forced() -> None:
    """Otherwise LMDB does nothing where commits are not synced."""
    forced: list[bool] = []

    class Environment:
        def sync(self, force: bool = False) -> None:
            forced.append(force)

    checkpoint_module.sync_data(Environment())  # type: ignore[arg-type]
    assert forced == [True]


def test_checkpoints_are_one_at_a_time_and_between_transactions(store: StateStore) -> None:
    with store.write(), pytest.raises(InvariantError, match="within a transaction"):
        store.begin_checkpoint(1)
    checkpoint = store.begin_checkpoint(1)
    with pytest.raises(InvariantError, match="another checkpoint is in progress"):
        store.begin_checkpoint(1)
    with pytest.raises(InvariantError, match="finished before it is published"):
        checkpoint.finish()
    checkpoint.sync()
    checkpoint.finish()
    with pytest.raises(InvariantError, match="finished twice"):
        checkpoint.finish()


@pytest.mark.case(64)
def test_durable_index_never_goes_back(store: StateStore) -> None:
    store.checkpoint(5)
    with pytest.raises(InvariantError, match="at index 4, behind the last one's 5"):
        store.begin_checkpoint(4)
    assert store.durable_applied_index == 5


def test_no_transaction_before_the_checkpoint_of_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(checkpoint_module, "sync_data", lambda environment: synced.append(1))
    monkeypatch.setattr(StateStore, "checkpoint", lambda store, applied_index: None)
    store = StateStore.create(tmp_path, map_bytes=1 << 28)
    with pytest.raises(InvariantError, match="before the checkpoint that every start begins with"):
        store.write()
    monkeypatch.undo()
    store.checkpoint(0)
    put(store, b"1")
    store.close(clean=False)


@pytest.mark.case(77)
@pytest.mark.parametrize("restart", [False, True])
def test_no_page_of_a_checkpoint_is_written_to_before_the_next_one_is_durable(
    tmp_path: Path, *, restart: bool
) -> None:
    store = StateStore.create(tmp_path, map_bytes=1 << 28)
    workload = Workload(Random(7))

    def write(transactions: int) -> None:
        for _ in range(transactions):
            with store.write() as tables:
                workload.transaction(tables)

    def protected_pages() -> dict[int, bytes]:
        data, meta = (store.path / "data.mdb").read_bytes(), published(store).meta
        return {page: data[page * 4096 : (page + 1) * 4096] for page in pages_seen(data, meta)}

    write(30)
    store.checkpoint(1)
    write(30)
    store.checkpoint(2)
    if restart:
        store.close(clean=False)
        store = StateStore.open(tmp_path)
    pages = protected_pages()
    assert len(pages) > 50
    write(30)
    checkpoint = store.begin_checkpoint(3)
    write(30)
    checkpoint.sync()
    data = (store.path / "data.mdb").read_bytes()
    assert {page: data[page * 4096 : (page + 1) * 4096] for page in pages} == pages
    pages = protected_pages()
    checkpoint.finish()
    write(30)
    data = (store.path / "data.mdb").read_bytes()
    assert {page: data[page * 4096 : (page + 1) * 4096] for page in pages} == pages
    store.close(clean=False)


def test_full_disk_at_the_checkpoint_file_leaves_the_old_one_and_lets_it_be_tried_again(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise StorageError("the disk is full", detail={"errno": errno.ENOSPC})

    put(store, b"1")
    checkpoint = store.begin_checkpoint(1)
    monkeypatch.setattr(checkpoint_module, "durable_write", full)
    with pytest.raises(StorageError, match="the disk is full"):
        checkpoint.sync()
    assert (published(store).applied_index, store.failure) == (0, None)
    put(store, b"2")
    monkeypatch.undo()
    checkpoint.sync()
    checkpoint.finish()
    assert (store.durable_applied_index, published(store).applied_index) == (1, 1)


@pytest.mark.case(53)
def test_checkpoint_file_that_fails_to_sync_stops_the_state(
    store: StateStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path, content: bytes) -> None:
        raise StorageError(f"can't sync {path.name}", detail={"errno": errno.EIO})

    put(store, b"1")
    checkpoint = store.begin_checkpoint(1)
    monkeypatch.setattr(checkpoint_module, "durable_write", failing)
    with pytest.raises(StorageError, match="can't sync checkpoint") as raised:
        checkpoint.sync()
    assert raised.value.__notes__ == ["nor could this be noted for the next start: can't sync eio"]
    with pytest.raises(StorageError, match="takes no writes until the node is started again"):
        store.write()
    monkeypatch.undo()
    store.close(clean=False)
    again = StateStore.open(tmp_path)
    assert rows_in(again)[Table.HOT] == {}
    again.close(clean=False)


class ScriptedStore:
    """A store as the checkpointer sees it."""

    def __init__(self) -> None:
        self.dirtied_bytes = 0
        self.finished = 0

    def begin_checkpoint(self, applied_index: int) -> Checkpoint:
        return ScriptedCheckpoint(self)  # type: ignore[return-value]


class ScriptedCheckpoint:
    def __init__(self, store: ScriptedStore) -> None:
        self.store = store

    def finish(self) -> None:
        self.store.dirtied_bytes = 0
        self.store.finished += 1


@pytest.mark.parametrize(
    ("elapsed_ns", "commands", "dirtied_bytes", "due"),
    [
        (CHECKPOINT_NS - 1, CHECKPOINT_COMMANDS - 1, CHECKPOINT_BYTES - 1, False),
        (CHECKPOINT_NS, 1, 1, True),
        (0, CHECKPOINT_COMMANDS, 1, True),
        (0, 1, CHECKPOINT_BYTES, True),
        (100 * CHECKPOINT_NS, 100 * CHECKPOINT_COMMANDS, 0, False),
    ],
)
def test_checkpoint_is_due_by_time_commands_or_bytes_and_never_when_nothing_changed(
    elapsed_ns: int, commands: int, dirtied_bytes: int, *, due: bool
) -> None:
    store = ScriptedStore()
    checkpointer = Checkpointer(store, now_ns=5, commands=70)
    store.dirtied_bytes = dirtied_bytes
    assert checkpointer.due(5 + elapsed_ns, 70 + commands) == due


def test_limits_count_from_the_beginning_of_the_last_checkpoint() -> None:
    store = ScriptedStore()
    checkpointer = Checkpointer(store, now_ns=0)
    store.dirtied_bytes = CHECKPOINT_BYTES
    checkpointer.begin(CHECKPOINT_NS, 500, applied_index=9)
    assert not checkpointer.due(9 * CHECKPOINT_NS, 9 * CHECKPOINT_COMMANDS), "one at a time"
    checkpointer.finish()
    store.dirtied_bytes = 1
    answers = [
        checkpointer.due(2 * CHECKPOINT_NS - 1, 500),
        checkpointer.due(2 * CHECKPOINT_NS, 500),
        checkpointer.due(CHECKPOINT_NS, 500 + CHECKPOINT_COMMANDS),
    ]
    assert (answers, store.finished) == ([False, True, True], 1)


@pytest.mark.case(57)
def test_apply_waits_while_too_much_is_dirtied_and_not_yet_durable() -> None:
    store = ScriptedStore()
    checkpointer = Checkpointer(store, now_ns=0)
    store.dirtied_bytes = WAIT_BYTES
    checkpointer.begin(0, 0, applied_index=1)
    assert not checkpointer.must_wait
    store.dirtied_bytes += 1
    assert checkpointer.must_wait
    checkpointer.finish()
    assert not checkpointer.must_wait


def test_nothing_is_finished_that_was_not_begun() -> None:
    with pytest.raises(InvariantError, match="no checkpoint is in progress"):
        Checkpointer(ScriptedStore(), now_ns=0).finish()
