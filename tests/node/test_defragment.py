"""A state rewritten while it is in use: over a real store, with a rebuilder that the test plays."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from raftstate.errors import ClosedError, FailedPreconditionError, RaftstateError, ResourceExhaustedError
from raftstate.machine.machine import Machine
from raftstate.machine.tables import Table
from raftstate.node import defragment
from raftstate.node.clock import LoopClock
from raftstate.node.defragment import Defragmenter, Rewritten
from raftstate.store.erased import read_erased, write_erased
from raftstate.store.snapshot import PreparedGeneration
from raftstate.store.state import StateStore
from tests.machine.rig import CLUSTER, MEMBERS, batch, entry, erase, put

MARK = b"7Yq-secret"


class Rebuilder:
    """Goes over to what was prepared at once, or does what `outcome` says."""

    def __init__(self, state: StateStore) -> None:
        self.state = state
        self.is_under_way = False
        self.held: list[int] = []
        self.let_go = 0
        self.outcome: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.reached, self.ended = asyncio.Event(), asyncio.Event()

    def hold_log(self, index: int) -> None:
        self.held.append(index)

    def let_log_go(self) -> None:
        self.let_go += 1

    async def rebuild_from(self, prepared: PreparedGeneration, check: Callable[[int, int], None]) -> None:
        self.reached.set()
        if self.gate is not None:
            await self.gate.wait()
        try:
            check(0, 0)
        except FailedPreconditionError:
            prepared.discard()
            raise
        if self.outcome is not None:
            prepared.discard()
            self.ended.set()
            raise self.outcome
        self.state.make_current(prepared)
        self.state.adopt(prepared)
        self.ended.set()


class Rig:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state = StateStore.create(directory, 1 << 30)
        with self.state.write() as tables:
            Machine.bootstrap(tables, CLUSTER, MEMBERS)
        with self.state.read() as tables:
            self.machine = Machine(tables)
        self.state.checkpoint(0)
        self.rebuilder = Rebuilder(self.state)
        self.halted: list[BaseException] = []
        self.why_not = ""
        self.defragmenter = self.make(0)
        self.results: asyncio.Queue[Rewritten | RaftstateError] = asyncio.Queue()

    def make(self, bytes_min: int) -> Defragmenter:
        return Defragmenter(
            self.state,
            self.rebuilder,
            LoopClock(asyncio.get_running_loop()),
            self.directory,
            why_not=lambda: self.why_not,
            on_halt=self.halted.append,
            bytes_min=bytes_min,
        )

    def apply(self, *commands) -> None:  # type: ignore[no-untyped-def]
        with self.state.write() as tables:
            self.machine.apply(tables, [entry(self.machine.applied_index + 1, batch(*commands))])

    def sweep_all(self) -> None:
        while self.machine.sweep_pending:
            with self.state.write() as tables:
                self.machine.sweep(tables, 1_000)

    def rows(self) -> dict[Table, list[tuple[bytes, bytes]]]:
        with self.state.read() as tables:
            return {table: list(tables.scan(table)) for table in Table}

    async def rewrite(self) -> Rewritten | RaftstateError:
        self.defragmenter.begin("defragment", self.results.put_nowait)
        async with asyncio.timeout(30):
            return await self.results.get()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig(tmp_path)
    yield made
    await made.defragmenter.close()
    made.state.close(clean=False)


def mostly_free(rig: Rig) -> None:
    for at in range(60):
        rig.apply(*(put(n, b"k%d" % n, os.urandom(8_000) + MARK) for n in range(1, 21)))
        if at % 10 == 9:
            rig.apply(erase(1, b"none"))
            rig.sweep_all()
            rig.state.checkpoint(rig.machine.applied_index)


async def test_the_file_shrinks_and_the_rows_are_the_same(rig: Rig) -> None:
    mostly_free(rig)
    before, free = rig.rows(), rig.defragmenter.free_bytes()
    assert free > rig.state.size_bytes() // 2
    result = await rig.rewrite()
    assert isinstance(result, Rewritten)
    assert result.bytes_after < result.bytes_before // 2
    assert result.bytes_after == rig.state.size_bytes()
    assert rig.rows() == before
    assert rig.defragmenter.why == ""
    assert rig.defragmenter.done_bytes > 0
    assert sorted(path.name for path in rig.directory.glob("state-*")) == ["state-2"]
    assert rig.rebuilder.held == [rig.machine.applied_index]
    rig.apply(put(1, b"after"))


async def test_nothing_that_was_deleted_is_in_the_new_file(rig: Rig) -> None:
    rig.apply(*(put(n, b"secret%d" % n, MARK * 1_000) for n in range(1, 9)), put(9, b"secret9", MARK))
    rig.apply(*(erase(n, b"secret%d" % n) for n in range(1, 10)), put(10, b"kept", b"v"))
    rig.sweep_all()
    assert MARK in (rig.state.path / "data.mdb").read_bytes()
    result = await rig.rewrite()
    assert isinstance(result, Rewritten)
    assert result.clean_index == rig.machine.last_erase_index == 2
    data = (rig.state.path / "data.mdb").read_bytes()
    assert MARK not in data
    assert b"secret" not in data
    assert b"kept" in data


async def test_a_copy_made_before_the_sweep_was_through_is_not_clean(rig: Rig) -> None:
    rig.apply(put(1, b"secret", MARK))
    rig.apply(erase(1, b"secret"))
    result = await rig.rewrite()
    assert isinstance(result, Rewritten)
    assert result.clean_index == 0
    assert MARK in (rig.state.path / "data.mdb").read_bytes()


async def test_how_far_erasures_are_goes_with_the_copy(rig: Rig) -> None:
    write_erased(rig.state.path, 7)
    rig.defragmenter.erased_index = lambda: 7
    await rig.rewrite()
    assert rig.state.path.name == "state-2"
    assert read_erased(rig.state.path) == 7


async def test_readers_read_on_in_the_old_generation(rig: Rig) -> None:
    mostly_free(rig)
    before = rig.rows()
    with rig.state.read() as tables:
        await rig.rewrite()
        rig.apply(put(1, b"k1", b"later"))
        assert {table: list(tables.scan(table)) for table in Table} == before
        assert len(list(rig.directory.glob("state-*"))) == 2
    assert [path.name for path in rig.directory.glob("state-*")] == ["state-2"]


async def test_one_at_a_time(rig: Rig) -> None:
    rig.rebuilder.gate = asyncio.Event()
    rig.defragmenter.begin("erase", rig.results.put_nowait)
    assert rig.defragmenter.why == "erase"
    with pytest.raises(FailedPreconditionError, match=r"being rewritten already \(erase\); wait for that"):
        rig.defragmenter.begin("defragment", rig.results.put_nowait)
    rig.rebuilder.gate.set()
    assert isinstance(await rig.results.get(), Rewritten)
    rig.why_not = "it is quarantined"
    with pytest.raises(FailedPreconditionError, match="not rewritten now: it is quarantined"):
        rig.defragmenter.begin("defragment", rig.results.put_nowait)
    rig.why_not, rig.rebuilder.is_under_way = "", True
    with pytest.raises(FailedPreconditionError, match="another node's state"):
        rig.defragmenter.begin("defragment", rig.results.put_nowait)


async def test_a_disk_without_room_is_told_before_anything_is_begun(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defragment.os, "statvfs", lambda _: SimpleNamespace(f_bavail=100 << 20, f_frsize=1))
    with pytest.raises(ResourceExhaustedError, match=r"has 100 MiB free, and a second copy .* needs 256 MiB"):
        rig.defragmenter.begin("defragment", rig.results.put_nowait)
    assert rig.defragmenter.why == ""
    assert rig.rebuilder.held == []


async def test_what_fails_leaves_the_old_files_in_use(rig: Rig) -> None:
    before = rig.rows()
    rig.rebuilder.outcome = FailedPreconditionError("the log was cut")
    result = await rig.rewrite()
    assert result is rig.rebuilder.outcome
    assert [path.name for path in rig.directory.glob("state-*")] == ["state-1"]
    assert rig.rows() == before
    rig.rebuilder.outcome = None
    assert isinstance(await rig.rewrite(), Rewritten)


async def test_a_copy_of_a_state_that_was_replaced_meanwhile_is_not_gone_over_to(rig: Rig) -> None:
    rig.rebuilder.gate = asyncio.Event()
    rig.defragmenter.begin("erase", rig.results.put_nowait)
    async with asyncio.timeout(30):
        await rig.rebuilder.reached.wait()
    other = rig.make(0)
    gate, rig.rebuilder.gate = rig.rebuilder.gate, None
    other.begin("repair", rig.results.put_nowait)
    assert isinstance(await rig.results.get(), Rewritten)
    path = rig.state.path
    gate.set()
    result = await rig.results.get()
    assert isinstance(result, FailedPreconditionError)
    assert rig.state.path == path
    assert len(list(rig.directory.glob("state-*"))) == 1
    await other.close()


async def test_damage_that_the_copy_meets_is_told_and_the_log_is_let_go(rig: Rig) -> None:
    rig.apply(put(1, b"k"))
    with rig.state.write() as tables:
        tables.put(Table.INDEX, b"k", b"rot")
    result = await rig.rewrite()
    assert isinstance(result, RaftstateError)
    assert "is damaged" in str(result)
    assert rig.rebuilder.let_go == 1
    assert [path.name for path in rig.directory.glob("state-*")] == ["state-1"]


async def test_a_stop_in_the_middle_leaves_the_old_files(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    mostly_free(rig)
    resting, stopped = threading.Event(), threading.Event()

    def rest(_: float) -> None:
        resting.set()
        assert stopped.wait(30)

    monkeypatch.setattr(defragment, "time", SimpleNamespace(sleep=rest))
    rig.defragmenter.begin("defragment", rig.results.put_nowait)
    assert await asyncio.to_thread(resting.wait, 30)
    closing = asyncio.create_task(rig.defragmenter.close())
    await asyncio.sleep(0)
    stopped.set()
    await closing
    assert rig.results.empty()
    assert [path.name for path in rig.directory.glob("state-*")] == ["state-1"]
    with pytest.raises(ClosedError):
        rig.defragmenter.begin("defragment", rig.results.put_nowait)


async def test_a_large_file_that_is_half_free_is_rewritten_by_itself(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defragment, "AUTO_LOOK_S", 0.01)
    mostly_free(rig)
    size = rig.state.size_bytes()
    others = rig.make(size + 1), rig.make(0)
    for other in others:
        other.start()
    await asyncio.sleep(0.1)
    assert rig.state.path.name == "state-1"
    own = rig.make(size - 1)
    own.start()
    async with asyncio.timeout(30):
        await rig.rebuilder.ended.wait()
    assert rig.state.path.name == "state-2"
    assert rig.state.size_bytes() < size // 2
    for each in (*others, own):
        await each.close()


async def test_a_failure_of_its_own_accord_is_not_repeated_at_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defragment, "AUTO_LOOK_S", 0.005)
    mostly_free(rig)
    rig.rebuilder.outcome = FailedPreconditionError("no")
    own = rig.make(1)
    own.start()
    async with asyncio.timeout(30):
        await rig.rebuilder.ended.wait()
    await asyncio.sleep(0.1)
    assert len(rig.rebuilder.held) == 1
    await own.close()
