"""The applier over a real state and log: what runs on the loop, what beside it, and how the log is cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from raftstate.core.types import Entry, HardState
from raftstate.machine.machine import Machine
from raftstate.machine.reader import Reader
from raftstate.machine.types import Batch, BatchResult, EntryResult, Envelope, Member
from raftstate.node.applier import KEYS_ON_LOOP_MAX, StateApplier
from raftstate.node.clock import LoopClock
from raftstate.pb.v1.pipeline_pb2 import CommandBatch
from raftstate.store.log import LogStore
from raftstate.store.log_writer import LogWriter
from raftstate.store.state import StateStore

MARGIN_BYTES = 4 << 20


class Rig:
    """An applier over stores in a directory, and a log whose entries it is given."""

    def __init__(self, path: Path) -> None:
        loop = asyncio.get_running_loop()
        clock = LoopClock(loop)
        self.log = LogStore.open(path / "log", map_bytes=1 << 28, create=True)
        self.state = StateStore.create(path, map_bytes=1 << 28)
        with self.state.write() as tables:
            Machine.bootstrap(tables, 7, [Member(1, 1, "n1", "peer", "client")])
        with self.state.read() as tables:
            self.machine = Machine(tables)
        self.writer = LogWriter(self.log, loop.call_soon_threadsafe, clock_ns=clock.monotonic_ns)
        self.halts: list[BaseException] = []
        self.applier = StateApplier(
            self.machine, self.state, self.writer, clock, self.halts.append, log_margin_bytes=MARGIN_BYTES
        )
        self.index = 0

    def entry(self, batch: CommandBatch) -> Entry:
        self.index += 1
        data = msgspec.msgpack.encode(Envelope(0, 0, [Batch(batch.SerializeToString())]))
        return Entry(self.index, 1, data=data)

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


async def test_the_log_is_cut_by_bytes_where_entries_are_large(rig: Rig) -> None:
    for number in range(12):
        await rig.apply(rig.entry(rig.puts([f"k{number}"], b"x" * (1 << 20))))
    async with asyncio.timeout(20):
        while rig.log.first_index() == 1:  # noqa: ASYNC110 - the cut follows a checkpoint by the second
            await asyncio.sleep(0.01)
    assert rig.log.first_index() <= rig.state.durable_applied_index
    kept = sum(len(entry.data) for entry in rig.log.entries(rig.log.first_index(), rig.index + 1, 1 << 30))
    assert kept >= MARGIN_BYTES
