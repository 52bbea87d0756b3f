"""Another generation takes the place of a state in use: brought up to date from the log, refused where it
does not fit, and whole whatever the moment of a crash."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from raftstate.errors import DataLossError, FailedPreconditionError, RaftstateError
from raftstate.machine.layout import read_meta
from raftstate.machine.machine import Machine
from raftstate.machine.reader import Reader
from raftstate.machine.tables import Table
from raftstate.machine.types import EntryResult
from raftstate.machine.verify import check_state
from raftstate.node.rebuild import Replay, StateRebuilder
from raftstate.node.startup import reset_to_finish
from raftstate.store.log import LogStore
from raftstate.store.snapshot import PreparedGeneration, SnapshotMeta, content_of, write_snapshot
from raftstate.store.state import StateStore
from tests.node.test_applier import Rig


class RebuildRig(Rig):
    """A rig whose state can be replaced, and that stands for the driver of its node."""

    def __init__(self, path: Path, *, create: bool = True) -> None:
        super().__init__(path, create=create)
        self.path = path
        self.applied_index = self.machine.applied_index
        self.committed_index = self.applied_index
        self.running = True
        self.rebuilt_from: list[int] = []
        self.rebuilder = StateRebuilder(self.state, self.log, self.applier, self, self.halts.append)

    def state_rebuilt(self, index: int) -> None:
        self.rebuilt_from.append(index)

    async def put(self, *keys: str, value: bytes = b"v") -> list[EntryResult]:
        results = await self.apply(self.entry(self.puts(list(keys), value)))
        self.applied_index = self.committed_index = self.index
        return results

    def copy(self) -> PreparedGeneration:
        """A generation made from a snapshot of the state as it is."""
        path = self.path / "snapshot-1"
        with self.state.read() as tables:
            meta = read_meta(tables)
            rows, raw_bytes = content_of(tables)
            write_snapshot(
                tables,
                SnapshotMeta(
                    meta.cluster_id,
                    meta.applied_index,
                    meta.applied_term,
                    meta.conf_state,
                    meta.machine_version,
                    rows,
                    raw_bytes,
                ),
                path,
                lambda: None,
            )
        builder = self.state.build(7)
        builder.feed(path.read_bytes())
        path.unlink()
        return builder.finish(check_state)

    def value(self, key: str) -> bytes | None:
        with self.state.read() as tables:
            pair = Reader(tables).get(key.encode())
        return None if pair is None else pair.value

    def lose(self, key: str) -> None:
        """Let a key vanish, as with a damaged page."""
        with self.state.write() as tables:
            assert tables.delete(Table.INDEX, key.encode())

    def flip(self, key: str) -> None:
        """Damage the index row of a key."""
        with self.state.write() as tables:
            row = tables.get(Table.INDEX, key.encode())
            assert row is not None
            tables.put(Table.INDEX, key.encode(), row[:-1] + bytes([row[-1] ^ 1]))

    async def close(self) -> bool:
        self.rebuilder.close()
        self.rebuilder.join()
        return await super().close()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[RebuildRig]:
    rig = RebuildRig(tmp_path)
    yield rig
    await rig.close()
    assert rig.halts == []


async def test_a_copy_is_brought_up_to_date_and_takes_the_states_place(rig: RebuildRig) -> None:
    for number in range(50):
        await rig.put(f"before{number}")
    prepared = rig.copy()
    for number in range(400):
        await rig.put(f"after{number}")
    rig.lose("before7")
    old = rig.state.path
    digest = rig.machine.digest
    await rig.rebuilder.rebuild_from(prepared)
    assert rig.state.path != old
    assert (rig.machine.digest, rig.machine.applied_index) == (digest, 450)
    assert (rig.value("before7"), rig.value("after399")) == (b"v", b"v")
    assert rig.rebuilt_from == [450]
    await rig.put("later")
    assert rig.value("later") == b"v"
    with rig.state.read() as tables:
        check_state(tables)


async def test_writes_go_on_while_a_copy_is_brought_up_to_date(rig: RebuildRig) -> None:
    await rig.put("first")
    prepared = rig.copy()
    rebuilt = asyncio.create_task(rig.rebuilder.rebuild_from(prepared))
    number = 0
    while not rebuilt.done():
        await rig.put(f"k{number}")
        number += 1
    await rebuilt
    await rig.put("last")
    assert all(rig.value(f"k{n}") == b"v" for n in range(number))
    with rig.state.read() as tables:
        assert check_state(tables).applied_index == rig.applied_index


async def test_a_copy_that_takes_too_long_does_not_let_the_log_fill_its_map(
    rig: RebuildRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.put("first")
    prepared = rig.copy()
    rig.rebuilder.hold_log(rig.applied_index)
    held = rig.rebuilder._log_needed_from
    assert held() == rig.applied_index
    monkeypatch.setattr(LogStore, "size_bytes", lambda log: log.map_bytes // 2 + 1)
    assert held() is None
    await rig.put("second")
    await rig.put("third")
    cut: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
    rig.writer.compact(rig.applied_index, cut.set_result)
    assert await cut is None
    with pytest.raises(FailedPreconditionError, match="a newer copy is needed"):
        await rig.rebuilder.rebuild_from(prepared)
    assert not prepared.path.exists()


async def test_the_loop_applies_nothing_of_what_is_left(
    rig: RebuildRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to a hundred entries of many commands each: as much as the loop must not be held for."""
    await rig.put("first")
    prepared = rig.copy()
    applied: list[str] = []
    plain = Replay.run

    def run(replay: Replay, to_index: int) -> None:
        applied.append(threading.current_thread().name)
        waiting.append(asyncio.run_coroutine_threadsafe(rig.put("meanwhile"), loop))
        time.sleep(0.05)
        assert not waiting[-1].done(), "nothing is applied to the old state meanwhile"
        plain(replay, to_index)

    loop = asyncio.get_running_loop()
    waiting: list[Future[list[EntryResult]]] = []
    monkeypatch.setattr(Replay, "run", run)
    await rig.rebuilder.rebuild_from(prepared)
    assert applied
    assert not any(name.startswith("MainThread") for name in applied)
    await asyncio.wrap_future(waiting[0])
    assert rig.value("meanwhile") == b"v"
    with rig.state.read() as tables:
        assert check_state(tables).applied_index == rig.applied_index


async def test_readers_of_the_old_state_finish_and_then_its_files_go(rig: RebuildRig) -> None:
    await rig.put("k", value=b"old")
    old = rig.state.path
    reading = rig.state.read()
    prepared = rig.copy()
    await rig.put("k", value=b"new")
    await rig.rebuilder.rebuild_from(prepared)
    pair = Reader(reading).get(b"k")
    assert pair is not None
    assert pair.value == b"old"
    assert old.exists()
    with reading:
        pass
    async with asyncio.timeout(10):
        while old.exists():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)


@pytest.mark.case(84)
async def test_a_copy_older_than_the_logs_boundary_is_refused_and_the_state_stays(rig: RebuildRig) -> None:
    await rig.put("a")
    prepared = rig.copy()
    for number in range(10):
        await rig.put(f"k{number}")
    rig.state.checkpoint(rig.applied_index)
    cut: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
    rig.writer.compact(5, cut.set_result)
    assert await cut is None
    path = rig.state.path
    with pytest.raises(RaftstateError, match="a newer copy is needed") as raised:
        await rig.rebuilder.rebuild_from(prepared)
    assert isinstance(raised.value, FailedPreconditionError)
    assert rig.state.path == path
    assert not prepared.path.exists()
    assert (rig.log.first_index(), rig.log.last_index()) == (6, 11)
    await rig.put("still")


async def test_a_copy_of_another_history_is_refused(rig: RebuildRig) -> None:
    await rig.put("a")
    prepared = rig.copy()
    prepared.meta = SnapshotMeta(
        *(9 if name == "term" else getattr(prepared.meta, name) for name in SnapshotMeta.__struct_fields__)
    )
    with pytest.raises(DataLossError, match="not of one history"):
        await rig.rebuilder.rebuild_from(prepared)
    assert not prepared.path.exists()


async def test_a_copy_that_does_not_pass_the_check_is_refused(rig: RebuildRig) -> None:
    await rig.put("a")
    prepared = rig.copy()
    await rig.put("b")
    seen = []

    def refuse(index: int, digest: int) -> None:
        seen.append((index, digest))
        raise DataLossError("another digest")

    with pytest.raises(DataLossError, match="another digest"):
        await rig.rebuilder.rebuild_from(prepared, refuse)
    assert seen == [(2, rig.machine.digest)]
    assert not prepared.path.exists()
    assert not rig.rebuilder.is_under_way


@pytest.mark.case(61)
async def test_the_log_is_not_cut_while_a_copy_is_brought_up_to_date(rig: RebuildRig) -> None:
    await rig.put("a")
    prepared = rig.copy()
    rig.rebuilder.hold_log(prepared.meta.index)
    value = bytes(1 << 20)
    for _ in range(10):  # more than the margin
        await rig.put("k", value=value)
    async with asyncio.timeout(20):
        while rig.state.durable_applied_index < rig.applied_index:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
    assert rig.log.first_index() <= prepared.meta.index + 1
    await rig.rebuilder.rebuild_from(prepared)
    assert rig.value("k") == value


@pytest.mark.case(56)
async def test_an_apply_that_meets_damage_goes_on_with_the_copy(rig: RebuildRig) -> None:
    await rig.put("a")
    await rig.put("b")
    prepared = rig.copy()
    damage: list[DataLossError] = []
    rig.applier.on_damage = lambda error: damage.append(error) is None
    rig.flip("a")
    entry = rig.entry(rig.puts(["a"], b"new"))
    waiting = asyncio.create_task(rig.apply(entry))
    later = asyncio.create_task(rig.apply(rig.entry(rig.puts(["c"], b"v"))))
    async with asyncio.timeout(10):
        while not rig.applier.is_stalled:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)
    assert len(damage) == 1
    assert not waiting.done()
    await rig.rebuilder.rebuild_from(prepared)
    assert [[result.index for result in results] for results in (await waiting, await later)] == [[3], [4]]
    assert (rig.value("a"), rig.value("c")) == (b"new", b"v")


async def test_a_copy_beyond_where_damage_stopped_this_node_is_gone_over_to(
    rig: RebuildRig, tmp_path: Path
) -> None:
    """The entries up to there are passed over, and have no results here."""
    await rig.put("a")
    rig.applier.on_damage = lambda _: True
    entries = [rig.entry(rig.puts(["a"], b"%d" % number)) for number in range(4)]
    (tmp_path / "other").mkdir()
    other = RebuildRig(tmp_path / "other")
    await other.put("a")
    await other.apply(*entries[:2])
    with other.state.read() as tables:
        assert read_meta(tables).applied_index == 3
    rig.flip("a")
    waiting = [asyncio.create_task(rig.apply(entry)) for entry in entries]
    async with asyncio.timeout(10):
        while not (rig.applier.is_stalled and rig.log.last_index() == 5):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)
    rig.committed_index = 5
    prepared = other.copy()
    content = prepared.opened
    moved = rig.state.build(7)
    path = tmp_path / "file"
    with content.read() as tables:
        rows, raw_bytes = content_of(tables)
        meta = read_meta(tables)
        write_snapshot(
            tables,
            SnapshotMeta(7, 3, 1, meta.conf_state, meta.machine_version, rows, raw_bytes),
            path,
            lambda: None,
        )
    moved.feed(path.read_bytes())
    await rig.rebuilder.rebuild_from(moved.finish(check_state))
    results = [[result.index for result in results] for results in await asyncio.gather(*waiting)]
    assert results == [[], [], [4], [5]]
    assert rig.rebuilt_from == [3]
    assert rig.value("a") == b"3"
    prepared.discard()
    await other.close()


@pytest.mark.case(40)
@pytest.mark.parametrize("step", ["before current", "after current"])
async def test_a_crash_at_a_step_leaves_the_old_state_or_the_new_one(
    rig: RebuildRig, step: str, tmp_path: Path
) -> None:
    for number in range(20):
        await rig.put(f"k{number}")
    prepared = rig.copy()
    rig.lose("k3")
    for number in range(20, 40):
        await rig.put(f"k{number}")
    rig.state.checkpoint(rig.applied_index)

    class CrashError(Exception):
        pass

    make_current = rig.state.make_current

    def crash(generation: PreparedGeneration, **_: object) -> None:
        if step == "after current":
            make_current(generation)
        raise CrashError

    rig.state.make_current = crash  # type: ignore[method-assign]
    with pytest.raises(CrashError):
        await rig.rebuilder.rebuild_from(prepared)
    await rig.put("acknowledged")
    digest = rig.machine.digest
    rig.writer.close()
    await rig.applier.close()
    rig.state.close(clean=False)
    rig.log.close()
    rig.halts.clear()
    again = StateStore.open(tmp_path)
    with again.read() as tables:
        machine = Machine(tables)
        reader = Reader(tables)
        assert (reader.get(b"k3") is not None) is (step == "after current")
    rig_log = type(rig.log).open(tmp_path / "log", map_bytes=1 << 28)
    assert reset_to_finish(rig_log, machine.applied_index, machine.applied_term) is None
    entries = rig_log.entries(machine.applied_index + 1, rig_log.last_index() + 1, 1 << 30)
    with again.write() as tables:
        machine.apply(tables, entries)
    assert (machine.applied_index, machine.digest) == (41, digest)
    again.close(clean=False)
    rig_log.close()


async def test_a_stop_after_a_copy_was_made_current_is_no_clean_one_and_the_start_goes_on_with_it(
    rig: RebuildRig, tmp_path: Path
) -> None:
    await rig.put("a")
    prepared = rig.copy()
    await rig.put("b")
    rig.state.make_current(prepared)
    assert not await rig.close()
    again = StateStore.open(tmp_path)
    with again.read() as tables:
        assert read_meta(tables).applied_index == 1
    again.close(clean=False)


async def test_a_stop_in_the_middle_gives_the_copy_up(rig: RebuildRig) -> None:
    await rig.put("a")
    prepared = rig.copy()
    for _ in range(50):
        await rig.put(*(f"k{n}" for n in range(200)))
    rebuilt = asyncio.create_task(rig.rebuilder.rebuild_from(prepared))
    await asyncio.sleep(0)
    rig.rebuilder.close()
    with pytest.raises(Exception, match="stopping"):
        await rebuilt
    assert not prepared.path.exists()
