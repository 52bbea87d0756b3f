"""A node that looks at its room, over real stores."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from raftstate.errors import ResourceExhaustedError
from raftstate.node import disk
from raftstate.node.clock import LoopClock
from raftstate.node.disk import DiskSettings, DiskWatch
from raftstate.node.room import Writes
from raftstate.node.service import ReadConsistency
from raftstate.pb.v1.pipeline_pb2 import CommandBatch
from raftstate.store.reserve import Reserve
from raftstate.store.space import FileSystem
from tests.node.test_local import Rig, reader

MB = 1 << 20

READER = """
import sys, time, lmdb
environment = lmdb.open(sys.argv[1], max_dbs=8, max_readers=512, map_size=1 << 28)
transaction = environment.begin()
print("reading", flush=True)
time.sleep(600)
"""


class Watched(Rig):
    """A node on a disk of 100 MiB of which a test says how much is free."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(path)
        self.path = path
        self.free_bytes = 90 * MB
        monkeypatch.setattr(disk, "LOOK_S", 0.01)
        monkeypatch.setattr(disk, "LOOK_NEAR_S", 0.01)
        monkeypatch.setattr(disk, "READERS_LOOKS", 1)
        monkeypatch.setattr(disk, "file_system", lambda _path: FileSystem(100 * MB, self.free_bytes))
        self.reserve = Reserve(path, MB)
        self.watch = DiskWatch(
            self.driver,
            self.log,
            self.state,
            self.writer,
            self.applier,
            self.reserve,
            LoopClock(asyncio.get_running_loop()),
            path=path,
            settings=DiskSettings(),
        )

    @property
    def writes(self) -> Writes:
        return self.driver.requests.gate.writes

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 - a look tells nobody
                await asyncio.sleep(0.005)

    async def delete(self, key: bytes) -> None:
        batch = CommandBatch()
        batch.commands.add(serial=1).delete.key = key
        await self.write(batch)

    async def close(self) -> None:
        self.watch.close()
        await super().close()


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    node = Watched(tmp_path, monkeypatch)
    yield node
    await node.close()
    assert node.halts == []


async def test_the_floors_are_minded_from_the_first_moment_and_given_up_by_themselves(node: Watched) -> None:
    node.free_bytes = 15 * MB
    node.watch.start()
    with pytest.raises(ResourceExhaustedError, match=r"node 1, the leader: 15\.\d MiB of room are left"):
        await node.put(b"a", b"1")
    await node.delete(b"a")
    assert len(node.driver.fitness.alarms) == 1
    node.free_bytes = 5 * MB
    await node.until(lambda: node.writes is Writes.NONE)
    with pytest.raises(ResourceExhaustedError, match="only reads go on"):
        await node.delete(b"a")
    async with reader(node, ReadConsistency.LINEARIZABLE) as state:
        assert await state.get(b"a") is None
    # The only voter leads on: somebody must take the deletions once there is some room.
    assert node.driver.fitness.may_lead
    node.free_bytes = 90 * MB
    await node.until(lambda: node.writes is Writes.ALL)
    await node.put(b"a", b"1")
    assert node.driver.fitness.alarms == ()


@pytest.mark.case(51)
async def test_while_room_is_short_the_log_is_cut_closely(node: Watched) -> None:
    node.watch.start()
    assert not node.applier._space_is_short
    node.free_bytes = 15 * MB
    await node.until(lambda: node.writes is Writes.FREEING)
    assert node.applier._space_is_short
    node.free_bytes = 90 * MB
    await node.until(lambda: node.writes is Writes.ALL)
    assert not node.applier._space_is_short


async def test_a_disk_that_is_filled_between_two_looks_is_looked_at_in_between(
    node: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOOK_S", "LOOK_NEAR_S"):
        monkeypatch.setattr(disk, name, 1_000)
    node.free_bytes = 22 * MB
    node.watch.start()

    async def fill() -> None:
        for _ in range(100):
            await node.put(b"a", bytes(64 << 10))
            node.free_bytes -= 128 << 10

    with pytest.raises(ResourceExhaustedError):
        await fill()
    assert 18 * MB < node.free_bytes < 22 * MB


async def test_the_reserve_is_made_while_there_is_room_and_again_once_it_was_used(node: Watched) -> None:
    node.watch.start()
    assert node.reserve.held
    node.reserve.release()
    node.free_bytes = 10 * MB
    await node.until(
        lambda: node.watch.measured is not None and node.watch.measured.disk.free_bytes == 10 * MB
    )
    assert not node.reserve.held
    node.free_bytes = 90 * MB
    await node.until(lambda: node.reserve.held)


@pytest.mark.case(58)
async def test_running_out_of_reader_slots_fails_reads_and_neither_writes_nor_the_node(node: Watched) -> None:
    node.watch.start()
    await node.put(b"a", b"1")
    readers = []
    while True:
        try:
            readers.append(node.state.read())
        except ResourceExhaustedError:
            break
    with pytest.raises(ResourceExhaustedError, match="no reader slot is free"):
        async with reader(node, ReadConsistency.LOCAL):
            pass
    node.free_bytes = 15 * MB
    await node.until(lambda: node.writes is Writes.FREEING)
    node.free_bytes = 90 * MB
    await node.until(lambda: node.writes is Writes.ALL)
    await node.put(b"b", b"1")
    readers.clear()
    async with reader(node, ReadConsistency.LOCAL) as state:
        assert await state.get(b"b") is not None


@pytest.mark.case(55)
async def test_a_reader_that_dies_later_is_cleared_by_a_later_look(node: Watched) -> None:
    node.watch._look_around()
    process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
        [sys.executable, "-c", READER, str(node.state.path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == "reading\n"
    finally:
        process.kill()
        await asyncio.to_thread(process.communicate)
    assert process.pid in {each.pid for each in node.state.readers()[0]}
    node.watch._look_around()
    assert process.pid not in {each.pid for each in node.state.readers()[0]}


@pytest.mark.case(55)
@pytest.mark.case(57)
async def test_a_reader_of_another_process_is_named_when_it_stands_still_and_cleared_when_it_died(
    node: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "OLD_READER_NS", 50_000_000)
    process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
        [sys.executable, "-c", READER, str(node.state.path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == "reading\n"
        node.watch.start()
        await node.put(b"a", b"1")
        await node.until(
            lambda: any(f"process {process.pid} " in each for each in node.driver.fitness.alarms)
        )
        assert node.watch.measured is not None
        assert node.watch.measured.room_bytes == 90 * MB
        process.send_signal(signal.SIGSTOP)
        assert process.pid in {each.pid for each in node.state.readers()[0]}
    finally:
        process.kill()
        await asyncio.to_thread(process.communicate)
    await node.until(lambda: process.pid not in {each.pid for each in node.state.readers()[0]})
    await node.until(lambda: node.driver.fitness.alarms == ())
