"""The applier over a real state and log: what runs on the loop, what beside it, and how the log is cut."""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import pytest

from raftstate.core.types import Entry, HardState
from raftstate.errors import ResourceExhaustedError, StorageError
from raftstate.machine.machine import Machine
from raftstate.machine.reader import Reader
from raftstate.machine.tables import ReadTables, Table, WriteTables
from raftstate.machine.types import Batch, BatchResult, CompactTo, EntryResult, Envelope, Item, Member
from raftstate.machine.verify import check_state
from raftstate.node import applier as applier_module
from raftstate.node.applier import (
    KEYS_ON_LOOP_MAX,
    SWEEP_CHANGES,
    SWEEP_NS,
    SWEEP_PAUSE_S,
    SWEEP_PAUSE_S_MIN,
    StateApplier,
)
from raftstate.node.clock import LoopClock
from raftstate.node.environment import PreparedState, SnapshotFile
from raftstate.node.snapshot_disk import StateSnapshots
from raftstate.pb.v1.pipeline_pb2 import CommandBatch
from raftstate.store import checkpoint as checkpoint_module
from raftstate.store.files import durable_write
from raftstate.store.log import LogStore
from raftstate.store.log_writer import LogWriter
from raftstate.store.state import ReadTransaction, StateStore

MARGIN_BYTES = 4 << 20
MARGIN_ENTRIES = 200_000


class Rig:
    """An applier over stores in a directory, and a log whose entries it is given."""

    def __init__(self, path: Path, *, create: bool = True) -> None:
        path.mkdir(exist_ok=True)
        loop = asyncio.get_running_loop()
        clock = LoopClock(loop)
        self.log = LogStore.open(path / "log", map_bytes=1 << 28, create=create)
        if create:
            self.state = StateStore.create(path, map_bytes=1 << 28)
            with self.state.write() as tables:
                Machine.bootstrap(tables, 7, [Member(1, 1, "n1", "peer", "client")])
        else:
            self.state = StateStore.open(path)
        with self.state.read() as tables:
            self.machine = Machine(tables)
        self.writer = LogWriter(self.log, loop.call_soon_threadsafe, clock_ns=clock.monotonic_ns)
        self.halts: list[BaseException] = []
        self.snapshot_disk = StateSnapshots(self.state, path, 7)
        self.applier = StateApplier(
            self.machine,
            self.state,
            self.writer,
            clock,
            self.halts.append,
            adopt=self.snapshot_disk.adopt,
            log_margin_bytes=MARGIN_BYTES,
            log_margin_entries=MARGIN_ENTRIES,
            log_boundary=self.log.first_index() - 1,
        )
        self.index = self.machine.applied_index

    def entry(self, batch: CommandBatch) -> Entry:
        return self.entry_of(Batch(batch.SerializeToString()))

    def entry_of(self, item: Item) -> Entry:
        self.index += 1
        return Entry(self.index, 1, data=msgspec.msgpack.encode(Envelope(0, 0, [item])))

    def changes(self) -> int:
        with self.state.read() as tables:
            return tables.count(Table.CHANGES)

    async def overwrite(self, times: int) -> None:
        """Put the same 500 keys so many times."""
        for number in range(times):
            await self.apply(self.entry(self.puts([f"k{n:03d}" for n in range(500)], b"%d" % number)))

    async def until_swept(self) -> None:
        async with asyncio.timeout(20):
            while self.machine.sweep_pending:  # noqa: ASYNC110 - a sweep tells nobody that it is done
                await asyncio.sleep(0.001)

    def puts(self, keys: list[str], value: bytes) -> CommandBatch:
        batch = CommandBatch()
        for serial, key in enumerate(keys):
            put = batch.commands.add(serial=serial).put
            put.key, put.value = key.encode(), value
        return batch

    async def apply(self, *entries: Entry, lazily: bool = False) -> list[EntryResult]:
        written: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        self.writer.append(HardState(1, 1, self.index), entries, written.set_result)
        assert await written is None
        done: asyncio.Future[list[EntryResult]] = asyncio.get_running_loop().create_future()
        self.applier.apply(entries, {}, done.set_result, lazily=lazily)
        return await done

    async def close(self) -> bool:
        self.writer.close()
        clean = await self.applier.close()
        self.snapshot_disk.close()
        self.state.close(clean=clean)
        self.log.close()
        return clean


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    assert await rig.close()
    assert rig.halts == []


async def test_lazy_portions_share_a_transaction_and_each_gets_its_own_results(rig: Rig) -> None:
    first, second = (rig.entry(rig.puts([key], b"v")) for key in ("a", "b"))
    with rig.state.read() as tables:
        before = tables.transaction_id
    results = await asyncio.gather(rig.apply(first, lazily=True), rig.apply(second, lazily=True))
    assert [[each.index for each in portion] for portion in results] == [[1], [2]]
    with rig.state.read() as tables:
        assert tables.transaction_id == before + 1


async def test_hurry_applies_at_once_what_was_left_to_wait(rig: Rig) -> None:
    pending = asyncio.ensure_future(rig.apply(rig.entry(rig.puts(["a"], b"v")), lazily=True))
    while rig.machine.applied_index == 0:
        rig.applier.hurry()
        await asyncio.sleep(0)
    assert (await pending)[0].index == 1


async def test_a_long_range_delete_runs_beside_the_loop_and_what_follows_waits_for_it(rig: Rig) -> None:
    keys = [f"k/{number:05d}" for number in range(KEYS_ON_LOOP_MAX + 500)]
    for at in range(0, len(keys), 500):
        await rig.apply(rig.entry(rig.puts(keys[at : at + 500], b"v")))
    delete = CommandBatch()
    operation = delete.commands.add(serial=1).delete
    operation.key, operation.range_end = b"k/", b"k0"
    turns = 0
    deleting = asyncio.ensure_future(rig.apply(rig.entry(delete)))
    following = asyncio.ensure_future(rig.apply(rig.entry(rig.puts(["after"], b"v"))))
    while not deleting.done():
        turns += 1
        await asyncio.sleep(0)
    result = (await deleting)[0].items[0]
    assert isinstance(result, BatchResult)
    assert result.answers[0].deleted == len(keys)
    assert turns > 10
    assert (await following)[0].index == rig.index
    with rig.state.read() as tables:
        assert Reader(tables).range(b"", None).count == 1


async def test_what_a_long_portion_began_on_the_loop_is_taken_back_beside_it(rig: Rig) -> None:
    keys = [f"k/{number:05d}" for number in range(KEYS_ON_LOOP_MAX + 500)]
    for at in range(0, len(keys), 500):
        await rig.apply(rig.entry(rig.puts(keys[at : at + 500], b"v")))
    loaded: list[bool] = []
    load = rig.machine.load

    def watched(tables: ReadTables) -> None:
        loaded.append(threading.current_thread() is threading.main_thread())
        load(tables)

    rig.machine.load = watched  # type: ignore[method-assign]
    delete = CommandBatch()
    operation = delete.commands.add(serial=1).delete
    operation.key, operation.range_end = b"k/", b"k0"
    await rig.apply(rig.entry(delete))
    assert loaded == [False]


async def test_the_log_is_cut_by_bytes_where_entries_are_large(rig: Rig) -> None:
    for number in range(12):
        await rig.apply(rig.entry(rig.puts([f"k{number}"], b"x" * (1 << 20))))
    async with asyncio.timeout(20):
        while rig.log.first_index() == 1:  # noqa: ASYNC110 - the cut follows a checkpoint by the second
            await asyncio.sleep(0.01)
    assert rig.log.first_index() <= rig.state.durable_applied_index
    kept = sum(len(entry.data) for entry in rig.log.entries(rig.log.first_index(), rig.index + 1, 1 << 30))
    assert kept >= MARGIN_BYTES


# -- sweeps


async def test_after_a_compaction_its_changes_are_swept_in_slices_and_entries_are_applied_between(
    rig: Rig,
) -> None:
    await rig.overwrite(4)
    compacted = rig.machine.revision
    sizes: list[int] = []
    sweep = rig.machine.sweep

    def watched(tables: WriteTables, changes_max: int) -> int:
        walked = sweep(tables, changes_max)
        sizes.append(walked)
        return walked

    rig.machine.sweep = watched  # type: ignore[method-assign]
    await rig.apply(rig.entry_of(CompactTo(compacted)))
    assert rig.changes() == 2_000  # a compaction is logical at first
    between: list[int] = []
    while rig.machine.sweep_pending:
        await rig.apply(rig.entry(rig.puts(["new"], b"v")))
        between.append(len(sizes))
        await asyncio.sleep(0.001)
    assert len(set(between)) > 1
    # The walk passes each change once, deletes 1,500, and only the last one of each key stays, beside the new
    # ones.
    assert sum(sizes) == 2_000 + 1_500
    assert sizes[0] <= SWEEP_CHANGES
    assert rig.changes() == 500 + len(between)
    with rig.state.read() as tables:
        assert Reader(tables).range(b"k", b"l").count == 500


async def test_a_sweep_that_a_stop_cut_short_goes_on_after_the_next_start_and_is_checkpointed(
    tmp_path: Path,
) -> None:
    first = Rig(tmp_path)
    await first.overwrite(6)
    await first.apply(first.entry_of(CompactTo(first.machine.revision)))
    async with asyncio.timeout(20):
        while first.changes() == 3_000:  # noqa: ASYNC110 - nor that it has begun
            await asyncio.sleep(0.001)
    assert await first.close()
    second = Rig(tmp_path, create=False)
    assert second.machine.sweep_pending
    assert 500 < second.changes() < 3_000
    second.applier.start()
    await second.until_swept()
    assert second.changes() == 500
    async with asyncio.timeout(20):  # though no entry is applied
        while second.state.dirtied_bytes:  # noqa: ASYNC110 - a checkpoint follows within a second
            await asyncio.sleep(0.01)
    assert await second.close()
    assert second.halts == []


async def test_the_end_of_a_sweep_is_logged_once(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "raftstate.node.applier")
    await rig.overwrite(4)
    compacted = rig.machine.revision
    await rig.apply(rig.entry_of(CompactTo(compacted)))
    await rig.until_swept()
    await rig.apply(rig.entry(rig.puts(["new"], b"v")))
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"history deleted compacted_revision={compacted}"]


async def test_slices_grow_while_they_are_quick_and_shrink_when_they_are_not(rig: Rig) -> None:
    applier = rig.applier
    sizes = []
    for took_ns in [SWEEP_NS // 4, SWEEP_NS // 4, SWEEP_NS * 2, SWEEP_NS - 1, *[SWEEP_NS * 2] * 12]:
        applier._set_pace(applier._sweep_changes, took_ns)
        sizes.append(applier._sweep_changes)
    start = SWEEP_CHANGES
    assert sizes[:4] == [2 * start, 4 * start, 2 * start, 2 * start]
    assert sizes[-1] == 1
    applier._set_pace(0, 1)
    assert applier._sweep_changes == 1  # a slice that found little says nothing of how long a full one takes


async def test_a_sweep_that_later_compactions_overtake_pauses_for_less_long(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, applier = rig.applier._clock, rig.applier
    pauses: list[float] = []
    call_later = clock.call_later

    def watched(delay_s: float, callback: Callable[[], None]) -> object:
        if callback == applier._sweep:
            pauses.append(delay_s)
        return call_later(delay_s, callback)

    monkeypatch.setattr(clock, "call_later", watched)
    applier.hold_sweep_while(lambda _: len(pauses) < 40)  # so that none ends in between
    await rig.overwrite(4)
    for revision in range(500, 1_500, 100):
        await rig.apply(rig.entry_of(CompactTo(revision)))
    await rig.until_swept()
    assert pauses[0] >= SWEEP_PAUSE_S
    assert min(pauses) == SWEEP_PAUSE_S_MIN
    pauses.clear()
    await rig.apply(rig.entry_of(CompactTo(rig.machine.revision)))
    assert pauses[0] >= SWEEP_PAUSE_S
    pauses += [0.0] * 40  # let it go on


async def test_no_slice_is_made_while_somebody_reads_what_it_would_take(rig: Rig) -> None:
    await rig.overwrite(2)
    needed: list[int] = []
    is_needed = True

    def needs_before(revision: int) -> bool:
        needed.append(revision)
        return is_needed

    rig.applier.hold_sweep_while(needs_before)
    compacted = rig.machine.revision
    await rig.apply(rig.entry_of(CompactTo(compacted)))
    async with asyncio.timeout(20):
        while len(needed) < 3:  # noqa: ASYNC110 - a sweep asks again when it likes
            await asyncio.sleep(0.001)
    assert (rig.changes(), set(needed)) == (1_000, {compacted})
    is_needed = False
    await rig.until_swept()
    assert rig.changes() == 500


async def test_a_sweep_waits_for_a_transaction_beside_the_loop(rig: Rig) -> None:
    await rig.overwrite(6)
    await rig.apply(*(rig.entry(rig.puts([f"d/{at}/{n}" for n in range(500)], b"v")) for at in range(5)))
    deletes = CommandBatch()
    operation = deletes.commands.add(serial=1).delete
    operation.key, operation.range_end = b"d/", b"d0"
    await rig.apply(rig.entry_of(CompactTo(rig.machine.revision)))
    swept: list[bool] = []
    sweep = rig.machine.sweep

    def watched(tables: WriteTables, changes_max: int) -> int:
        swept.append(rig.applier._beside is not None)
        return sweep(tables, changes_max)

    rig.machine.sweep = watched  # type: ignore[method-assign]
    deleting = asyncio.ensure_future(rig.apply(rig.entry(deletes)))
    async with asyncio.timeout(20):
        while rig.applier._beside is None:  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0)
    rig.applier._sweep()  # as its timer may at any time
    result = (await deleting)[0].items[0]
    assert isinstance(result, BatchResult)
    assert result.answers[0].deleted == 2_500
    await rig.until_swept()
    assert swept.count(True) == 0 < len(swept)
    with rig.state.read() as tables:
        assert Reader(tables).range(b"k", b"l").count == 500


# -- who is told


async def test_observers_are_told_of_each_transaction_that_made_a_revision_or_moved_the_compacted_one(
    rig: Rig,
) -> None:
    told: list[tuple[int, int]] = []

    def observe() -> None:
        with rig.state.read() as tables:
            reader = Reader(tables)
        told.append((reader.revision, reader.compacted_revision))

    rig.applier.on_applied(observe)
    await rig.apply(rig.entry(rig.puts(["a"], b"1")), rig.entry(rig.puts(["a"], b"2")))
    await rig.apply(rig.entry(CommandBatch()))
    await rig.apply(rig.entry_of(CompactTo(3)))
    await rig.apply(rig.entry_of(CompactTo(2)))
    await rig.until_swept()
    assert told == [(3, 0), (3, 3)]


async def until_durable(rig: Rig, index: int) -> None:
    async with asyncio.timeout(20):
        while rig.state.durable_applied_index < index:  # noqa: ASYNC110 - a checkpoint tells nobody
            await asyncio.sleep(0.001)


async def until_cut(rig: Rig, first_index: int) -> None:
    async with asyncio.timeout(20):
        while rig.log.first_index() != first_index:  # noqa: ASYNC110 - nor does a cut
            await asyncio.sleep(0.001)


class FullDisk:
    """Has the state's transactions and checkpoints fail for want of room, while `full`."""

    def __init__(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = True
        self.refused = 0
        opened = rig.state._opened
        self._commit, self._abort = opened._commit, opened._abort
        monkeypatch.setattr(applier_module, "FULL_RETRY_S", 0.001)
        monkeypatch.setattr(opened, "_commit", self.commit)
        monkeypatch.setattr(checkpoint_module, "durable_write", self.durable_write)

    def check(self) -> None:
        if self.full:
            self.refused += 1
            raise StorageError("the disk is full", detail={"errno": errno.ENOSPC})

    def commit(self, transaction: Any, dirtied_bytes: Any) -> None:
        try:
            self.check()
        except StorageError:
            self._abort(transaction)
            raise
        self._commit(transaction, dirtied_bytes)

    def durable_write(self, path: Path, content: bytes) -> None:
        self.check()
        durable_write(path, content)

    async def until_refused(self, times: int) -> None:
        async with asyncio.timeout(20):
            while self.refused < times:  # noqa: ASYNC110 - nobody is told of an attempt
                await asyncio.sleep(0.001)


@pytest.mark.case(65)
async def test_no_answer_leaves_before_its_transaction_has_committed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[int] = []
    answered_at_commits: list[list[int]] = []
    opened = rig.state._opened
    commit = opened._commit

    def watched(transaction: Any, dirtied_bytes: Any) -> None:
        answered_at_commits.append(list(answered))
        commit(transaction, dirtied_bytes)

    monkeypatch.setattr(opened, "_commit", watched)
    for number in range(2):
        entry = rig.entry(rig.puts(["k"], b"%d" % number))
        rig.applier.apply(
            [entry], {}, lambda results: answered.extend(each.index for each in results), lazily=False
        )
    assert (answered_at_commits, answered) == ([[], [1]], [1, 2])


@pytest.mark.case(52)
@pytest.mark.case(65)
async def test_what_the_disk_has_no_room_for_is_applied_once_and_answered_once_when_it_has(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.apply(rig.entry(rig.puts(["before"], b"v")))
    disk = FullDisk(rig, monkeypatch)
    first = asyncio.ensure_future(rig.apply(rig.entry(rig.puts(["a"], b"1"))))
    await disk.until_refused(3)
    second = asyncio.ensure_future(rig.apply(rig.entry(rig.puts(["a"], b"2")), lazily=True))
    await disk.until_refused(6)
    assert rig.applier.full == "the disk is full"
    assert not first.done()
    with rig.state.read() as tables:
        reader = Reader(tables)
        assert (reader.applied_index, reader.get(b"a")) == (1, None)
        assert reader.get(b"before") is not None
    disk.full = False
    results = [*await first, *await second]
    assert [(result.index, result.revision) for result in results] == [(2, 3), (3, 4)]
    assert rig.applier.full is None
    with rig.state.read() as tables:
        pair = Reader(tables).get(b"a")
        assert pair is not None
        assert (pair.value, pair.version) == (b"2", 2)
    await until_durable(rig, 3)


@pytest.mark.case(52)
async def test_a_transaction_beside_the_loop_is_tried_again_too(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for start in range(0, KEYS_ON_LOOP_MAX + 200, 400):
        await rig.apply(rig.entry(rig.puts([f"k{number:05d}" for number in range(start, start + 400)], b"v")))
    disk = FullDisk(rig, monkeypatch)
    batch = CommandBatch()
    delete = batch.commands.add(serial=1).delete
    delete.key, delete.range_end = b"k", b"l"
    deleting = asyncio.ensure_future(rig.apply(rig.entry(batch)))
    while not rig.applier.is_beside:  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0)
    # What comes meanwhile stays behind it.
    later: asyncio.Future[list[EntryResult]] = asyncio.get_running_loop().create_future()
    rig.applier.apply([rig.entry(rig.puts(["k"], b"after"))], {}, later.set_result, lazily=False)
    await disk.until_refused(3)
    assert not deleting.done()
    disk.full = False
    [result], [after] = await deleting, await later
    assert (after.index, after.revision) == (result.index + 1, result.revision + 1)
    [item] = result.items
    assert isinstance(item, BatchResult)
    assert item.answers[0].deleted >= KEYS_ON_LOOP_MAX
    await until_durable(rig, rig.index)


@pytest.mark.case(52)
async def test_a_checkpoint_without_room_for_its_file_is_published_later(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.apply(rig.entry(rig.puts(["a"], b"1")))
    disk = FullDisk(rig, monkeypatch)
    rig.applier._begin_checkpoint()
    await disk.until_refused(3)
    assert rig.state.durable_applied_index == 0
    disk.full = False
    await until_durable(rig, 1)
    await rig.apply(rig.entry(rig.puts(["b"], b"1")))


@pytest.mark.case(52)
async def test_a_node_may_stop_while_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path)
    rig.state.checkpoint(0)
    await rig.apply(rig.entry(rig.puts(["a"], b"1")))
    disk = FullDisk(rig, monkeypatch)
    lost = asyncio.ensure_future(rig.apply(rig.entry(rig.puts(["a"], b"2"))))
    await disk.until_refused(2)
    assert not await rig.close()
    assert rig.halts == []
    lost.cancel()
    disk.full = False
    again = Rig(tmp_path, create=False)
    assert again.machine.applied_index == 0  # what came after the last checkpoint is in the log
    assert again.log.last_index() == 2
    await again.close()


def all_slots(state: StateStore) -> Iterator[ReadTransaction]:
    """Take all reader slots that are free."""
    while True:
        try:
            yield state.read()
        except ResourceExhaustedError:
            return


@pytest.mark.case(58)
async def test_without_a_reader_slot_checkpoints_wait_and_writes_go_on(rig: Rig) -> None:
    # A slot is free again once nobody holds the transaction any more.
    readers = list(all_slots(rig.state))
    await rig.apply(rig.entry(rig.puts(["a"], b"1")))
    rig.applier._begin_checkpoint()
    await rig.apply(rig.entry(rig.puts(["b"], b"1")))
    assert rig.state.durable_applied_index == 0
    readers.clear()
    rig.applier._begin_checkpoint()
    await until_durable(rig, 1)


async def test_while_room_is_short_the_log_goes_almost_up_to_the_checkpoint(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(applier_module, "SCARCE_MARGIN_ENTRIES", 3)
    for number in range(12):
        await rig.apply(rig.entry(rig.puts(["k"], b"%d" % number)))
    rig.applier._begin_checkpoint()
    await until_durable(rig, 12)
    await until_cut(rig, 2)
    rig.applier.space_is_short(True)
    await until_cut(rig, 10)
    rig.applier.space_is_short(False)


@pytest.mark.case(64)
async def test_the_log_is_not_cut_beyond_a_checkpoint_that_is_not_durable_yet(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(applier_module, "SCARCE_MARGIN_ENTRIES", 1)
    for number in range(4):
        await rig.apply(rig.entry(rig.puts(["k"], b"%d" % number)))
    rig.applier._begin_checkpoint()
    await until_durable(rig, 4)
    synced = threading.Event()
    sync_data = checkpoint_module.sync_data

    def slowly(environment: lmdb.Environment) -> None:
        assert synced.wait(30)
        sync_data(environment)

    monkeypatch.setattr(checkpoint_module, "sync_data", slowly)
    try:
        for number in range(8):
            await rig.apply(rig.entry(rig.puts(["k"], b"%d" % number)))
        rig.applier._begin_checkpoint()
        await rig.apply(rig.entry(rig.puts(["k"], b"last")))
        rig.applier.space_is_short(True)
        behind_the_cut: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        rig.writer.compact(0, behind_the_cut.set_result)
        assert await behind_the_cut is None
        assert rig.log.first_index() <= rig.state.durable_applied_index + 1 == 5
    finally:
        synced.set()
    await until_durable(rig, 12)
    await until_cut(rig, 12)
    rig.applier.space_is_short(False)


async def test_space_that_becomes_short_while_the_log_is_cut_has_it_cut_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(applier_module, "SCARCE_MARGIN_ENTRIES", 3)
    compact = rig.writer.compact
    held: list[Callable[[], None]] = []
    monkeypatch.setattr(rig.writer, "compact", lambda index, done: held.append(lambda: compact(index, done)))
    for number in range(12):
        await rig.apply(rig.entry(rig.puts(["k"], b"%d" % number)))
    rig.applier._begin_checkpoint()
    await until_durable(rig, 12)
    async with asyncio.timeout(20):
        while not held:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    rig.applier.space_is_short(True)
    assert len(held) == 1
    monkeypatch.setattr(rig.writer, "compact", compact)
    held[0]()
    await until_cut(rig, 10)
    rig.applier.space_is_short(False)


async def prepared_of(rig: Rig, path: Path, batches: int) -> PreparedState:
    """Another node's state of the same cluster, so many entries ahead of this one's, verified and ready."""
    other = Rig(path)
    try:
        for number in range(rig.index + batches):
            await other.apply(other.entry(other.puts([f"k{n:02d}" for n in range(50)], b"%d" % number)))
        made: asyncio.Future[SnapshotFile | BaseException] = asyncio.get_running_loop().create_future()
        other.snapshot_disk.make(made.set_result)
        file = await made
        assert isinstance(file, SnapshotFile)
        content = (path / file.name).read_bytes()
    finally:
        await other.close()
    build = rig.snapshot_disk.build()
    for at in range(0, len(content), 5_000):
        build.feed(content[at : at + 5_000], lambda error: None)
    done: asyncio.Future[PreparedState | BaseException] = asyncio.get_running_loop().create_future()
    build.finish(done.set_result)
    prepared = await done
    assert not isinstance(prepared, BaseException), prepared
    return prepared


async def make_current(rig: Rig, prepared: PreparedState) -> None:
    """As the driver does: the state becomes current, the log begins anew."""
    loop = asyncio.get_running_loop()
    metadata = prepared.metadata
    written: asyncio.Future[BaseException | None] = loop.create_future()
    rig.writer.install(
        lambda: rig.snapshot_disk.make_current(prepared),
        HardState(1, 1, metadata.index),
        metadata.index,
        metadata.term,
        written.set_result,
    )
    assert await written is None


async def adopt(rig: Rig, prepared: PreparedState) -> None:
    """And the applier goes on with it."""
    await make_current(rig, prepared)
    adopted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    rig.applier.adopt(prepared, lambda: adopted.set_result(None))
    await adopted
    rig.index = prepared.metadata.index


def state_of(rig: Rig) -> tuple[int, int, int]:
    with rig.state.read() as tables:
        return rig.machine.applied_index, Reader(tables).applied_index, tables.count(Table.INDEX)


async def test_an_adopted_state_takes_the_place_of_the_old_one_and_entries_go_on_behind_it(
    rig: Rig, tmp_path: Path
) -> None:
    await rig.overwrite(3)
    told: list[str] = []
    rig.applier.on_adopted(lambda: told.append("adopted"))
    rig.applier.on_applied(lambda: told.append("applied"))
    reader = rig.state.read()
    before = reader.count(Table.INDEX)
    old_path = rig.state.path
    prepared = await prepared_of(rig, tmp_path / "other", 4)
    await adopt(rig, prepared)
    assert told == ["adopted", "applied"]
    assert state_of(rig) == (7, 7, 50)
    assert rig.log.first_index() == 8
    # Who reads the old one reads on.
    assert reader.count(Table.INDEX) == before == 500
    assert old_path.exists()
    reader.__exit__(None, None, None)
    await rig.apply(rig.entry(rig.puts(["new"], b"v")))
    assert state_of(rig) == (8, 8, 51)


async def test_what_waits_to_be_applied_when_a_state_is_adopted_is_within_it(
    rig: Rig, tmp_path: Path
) -> None:
    await rig.apply(rig.entry(rig.puts(["a"], b"v")))
    prepared = await prepared_of(rig, tmp_path / "other", 5)
    await make_current(rig, prepared)
    called: list[object] = []
    rig.applier.apply([rig.entry(rig.puts(["b"], b"v"))], {}, called.append, lazily=True)
    rig.applier.adopt(prepared, lambda: called.append("adopted"))
    rig.applier.hurry()
    rig.index = prepared.metadata.index
    assert called == ["adopted"]
    assert rig.machine.applied_index == prepared.metadata.index


async def test_a_state_is_adopted_after_a_transaction_beside_the_loop_and_a_sync_have_ended(
    rig: Rig, tmp_path: Path
) -> None:
    keys = [f"k/{number:05d}" for number in range(KEYS_ON_LOOP_MAX + 500)]
    for at in range(0, len(keys), 500):
        await rig.apply(rig.entry(rig.puts(keys[at : at + 500], b"v")))
    prepared = await prepared_of(rig, tmp_path / "other", 5)
    delete = CommandBatch()
    operation = delete.commands.add(serial=1).delete
    operation.key, operation.range_end = b"k/", b"k0"
    results: list[object] = []
    entry = rig.entry(delete)
    rig.applier._begin_checkpoint()
    rig.applier.apply([entry], {}, results.append, lazily=False)
    assert rig.applier.is_beside
    await adopt(rig, prepared)
    assert len(results) == 1
    assert state_of(rig) == (prepared.metadata.index, prepared.metadata.index, 50)


async def test_a_sweep_of_the_old_state_is_not_gone_on_with_in_the_new_one(rig: Rig, tmp_path: Path) -> None:
    await rig.overwrite(8)
    rig.applier.hold_sweep_while(lambda _: True)
    await rig.apply(rig.entry_of(CompactTo(rig.machine.revision - 1)))
    with rig.state.write() as tables:
        rig.machine.sweep(tables, 300)
    assert rig.machine.sweep_pending
    await rig.apply(rig.entry(rig.puts(["a"], b"v")))
    await adopt(rig, await prepared_of(rig, tmp_path / "other", 5))
    assert not rig.machine.sweep_pending
    rig.applier._needs_before.clear()
    await rig.apply(rig.entry_of(CompactTo(rig.machine.revision - 1)))
    await rig.until_swept()
    with rig.state.read() as tables:
        check_state(tables)


async def test_a_close_between_a_state_becoming_current_and_its_adoption_loses_neither(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path / "own")
    await rig.overwrite(2)
    prepared = await prepared_of(rig, tmp_path / "other", 5)
    await make_current(rig, prepared)
    index = prepared.metadata.index
    rig.writer.close()
    await rig.applier.close()
    rig.snapshot_disk.close()
    rig.state.close(clean=False)
    rig.log.close()
    again = Rig(tmp_path / "own", create=False)
    assert again.machine.applied_index == index
    assert again.log.first_index() == index + 1
    assert await again.close()


async def test_the_log_is_cut_to_its_first_entry_at_once_and_no_further_than_it_is_needed(rig: Rig) -> None:
    needed: list[int | None] = [1]
    rig.applier.hold_log_from(lambda: needed[0])
    await rig.apply(rig.entry(rig.puts(["a"], b"v")))
    async with asyncio.timeout(20):
        while rig.log.first_index() != 2:  # noqa: ASYNC110 - a checkpoint tells nobody that it is done
            await asyncio.sleep(0.001)
    rig.applier._log_margin_entries = 1
    for _ in range(8):
        await rig.apply(rig.entry(rig.puts(["a"], b"v")))
    await checkpointed(rig)
    assert rig.log.first_index() == 2
    needed[0] = 4
    await rig.apply(rig.entry(rig.puts(["a"], b"v")))
    await checkpointed(rig)
    assert rig.log.first_index() == 5
    needed[0] = None
    await rig.apply(rig.entry(rig.puts(["a"], b"v")))
    await checkpointed(rig)
    assert rig.log.first_index() == rig.index


async def checkpointed(rig: Rig) -> None:
    """Wait until all is durable, and what could be cut is."""
    async with asyncio.timeout(20):
        while rig.state.durable_applied_index < rig.index or rig.applier._cutting:
            rig.applier._begin_checkpoint()
            await asyncio.sleep(0.001)
