"""A node as the services see it, over real stores: what its reads wait for, and what they say."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from raftstate.core.config import Config
from raftstate.core.rawnode import RawNode
from raftstate.core.types import Entry, HardState
from raftstate.errors import ClosedError, DataLossError, DeadlineError, OutOfRangeError
from raftstate.machine.machine import Machine
from raftstate.machine.reader import LeaseStatus, Sort, SortTarget
from raftstate.machine.tables import Table
from raftstate.machine.types import Batch, BatchResult, EntryResult, Envelope, Member
from raftstate.node.admission import Place
from raftstate.node.applier import KEYS_ON_LOOP_MAX, StateApplier
from raftstate.node.clock import LoopClock
from raftstate.node.driver import Driver, Timing, World
from raftstate.node.environment import PeerBody
from raftstate.node.local import LocalNode
from raftstate.node.membership import Membership
from raftstate.node.service import NodeReader, ReadConsistency, WatchSpec
from raftstate.node.snapshot_disk import StateSnapshots
from raftstate.node.startup import StartStorage
from raftstate.pb.v1.pipeline_pb2 import CommandBatch
from raftstate.store.log import LogStore
from raftstate.store.log_writer import LogWriter
from raftstate.store.state import StateStore

MODES = list(ReadConsistency)


class Nobody:
    """The network of a node that is alone."""

    def send(self, to: int, body: PeerBody) -> bool:
        return False


class Rig:
    """A single node, led by itself. `backlog`: what its log holds at its start, committed and not applied."""

    def __init__(self, path: Path, backlog: Sequence[Entry] = ()) -> None:
        loop = asyncio.get_running_loop()
        clock = LoopClock(loop)
        self.halts: list[BaseException] = []
        self.log = LogStore.open(path / "log", map_bytes=1 << 28, create=True)
        if backlog:
            self.log.publish(self.log.write(HardState(1, 1, backlog[-1].index), backlog))
        self.state = StateStore.create(path, map_bytes=1 << 28)
        with self.state.write() as tables:
            Machine.bootstrap(tables, 7, [Member(1, 1, "n1", "peer", "client")])
        with self.state.read() as tables:
            self.machine = machine = Machine(tables)
        self.writer = LogWriter(self.log, loop.call_soon_threadsafe, clock_ns=clock.monotonic_ns)
        self.snapshot_disk = StateSnapshots(self.state, path, 7)
        self.applier = StateApplier(
            machine,
            self.state,
            self.writer,
            clock,
            self.halts.append,
            adopt=self.snapshot_disk.adopt,
            log_margin_bytes=1 << 20,
            log_margin_entries=10_000,
        )
        config = Config(
            id=1,
            storage=StartStorage(self.log, machine.conf_state(), 0),
            random=random.Random(1),
            election_ticks=27,
            heartbeat_ticks=1,
            async_storage_writes=True,
            check_quorum=True,
            pre_vote=True,
            disable_proposal_forwarding=True,
        )
        world = World(
            clock,
            Nobody(),
            self.writer,
            self.applier,
            random.Random(1),
            self.halts.append,
            self.snapshot_disk,
        )
        self.driver = Driver(RawNode(config), machine, world, Timing(15, 405))
        place = Place(7, 1, 1, "n1", "peer", "client")
        membership = Membership(self.driver, Nobody(), clock, place, lambda: None)
        self.node = LocalNode(
            self.driver, membership, machine, self.log, self.state, clock, name="n1", version="0"
        )
        self.applier.on_applied(self.node.watch_hub.applied)
        self.driver.start()

    async def write(self, batch: CommandBatch) -> tuple[int, BatchResult]:
        item = Batch(batch.SerializeToString())
        index, _, result = await self.node.write(item, commands=len(batch.commands), timeout_s=5)
        assert isinstance(result, BatchResult)
        return index, result

    async def put(self, key: bytes, value: bytes = b"", lease: int = 0) -> int:
        batch = CommandBatch()
        put = batch.commands.add(serial=1).put
        put.key, put.value, put.lease = key, value, lease
        return (await self.write(batch))[0]

    async def close(self) -> None:
        self.driver.stop()
        self.writer.close()
        self.node.close()
        clean = await self.applier.close()
        self.snapshot_disk.close()
        self.state.close(clean=clean)
        self.log.close()


async def test_a_read_right_after_a_start_shows_all_that_an_earlier_life_knew_to_be_committed(
    tmp_path: Path,
) -> None:
    entries = []
    for index in range(1, 21):
        batch = CommandBatch()
        put = batch.commands.add(serial=1).put
        put.key, put.value = b"k", b"%d" % index + bytes(100_000)
        item = Batch(batch.SerializeToString())
        entries.append(Entry(index, 1, data=msgspec.msgpack.encode(Envelope(0, 0, [item]))))
    rig = Rig(tmp_path, entries)
    try:
        assert rig.driver.applied_index == 0
        async with reader(rig, ReadConsistency.LOCAL) as found:
            pair = await found.get(b"k")
            assert pair is not None
            assert pair.version == 20
    finally:
        await rig.close()


async def test_a_read_of_a_node_that_can_t_replay_its_log_is_refused_at_once_and_says_why(
    tmp_path: Path,
) -> None:
    entries = [Entry(index, 1, data=msgspec.msgpack.encode(Envelope(0, 0, []))) for index in range(1, 6)]
    rig = Rig(tmp_path, entries)
    try:
        rig.log.note_damage(3)
        with pytest.raises(
            DataLossError, match=r"applied 0 of the 5 entries .* entry 3 of its log is damaged"
        ):
            async with reader(rig, ReadConsistency.LOCAL, timeout_s=3600):
                pass
    finally:
        await rig.close()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    await rig.close()
    assert rig.halts == []


def reader(
    rig: Rig, mode: ReadConsistency, min_applied_index: int = 0, timeout_s: float = 5
) -> AbstractAsyncContextManager[NodeReader]:
    return rig.node.reader(
        mode, max_staleness_ms=60_000, timeout_s=timeout_s, min_applied_index=min_applied_index
    )


@pytest.mark.parametrize("mode", MODES)
async def test_a_read_waits_until_the_index_that_it_names_is_applied(rig: Rig, mode: ReadConsistency) -> None:
    index = await rig.put(b"a", b"1")

    async def read() -> bytes | None:
        async with reader(rig, mode, index + 1) as state:
            assert state.applied_index > index
            pair = await state.get(b"a")
            return None if pair is None else pair.value

    reading = asyncio.ensure_future(read())
    await asyncio.sleep(0)
    assert not reading.done()
    await rig.put(b"a", b"2")
    assert await reading == b"2"


@pytest.mark.parametrize("mode", MODES)
async def test_a_read_of_an_index_that_is_not_applied_in_time_says_how_far_this_node_is(
    rig: Rig, mode: ReadConsistency
) -> None:
    index = await rig.put(b"a")
    with pytest.raises(DeadlineError, match=f"waited for log index {index + 9}.*has applied {index}"):
        async with reader(rig, mode, index + 9, timeout_s=0.03):
            pass


async def test_a_read_that_waits_when_the_node_stops_is_told_so(rig: Rig) -> None:
    index = await rig.put(b"a")

    async def read() -> None:
        async with reader(rig, ReadConsistency.LOCAL, index + 9):
            pass

    reading = asyncio.ensure_future(read())
    await asyncio.sleep(0)
    rig.driver.stop()
    with pytest.raises(ClosedError):
        await reading


async def test_reads_of_the_past_reach_from_the_compacted_revision_to_the_latest(rig: Rig) -> None:
    for value in (b"1", b"2", b"3"):
        await rig.put(b"a", value)  # revisions 2, 3, 4
    batch = CommandBatch()
    batch.commands.add(serial=1).compact.revision = 3
    await rig.write(batch)
    by_value = Sort(SortTarget.VALUE, descending=True)
    async with reader(rig, ReadConsistency.LINEARIZABLE) as state:
        past = await state.get(b"a", revision=3)
        assert past is not None
        assert past.value == b"2"
        page = await state.range(
            b"a",
            None,
            limit=0,
            keys_only=False,
            count_only=False,
            bytes_max=1 << 20,
            revision=3,
            sort=by_value,
        )
        assert page.kvs == [past]
        for revision in (2, 5):
            with pytest.raises(OutOfRangeError, match="valid are 3 to 4"):
                await state.get(b"a", revision=revision)
    assert rig.node.status().compacted_revision == 3


async def test_a_lease_is_told_with_what_remains_of_it_and_its_keys(rig: Rig) -> None:
    batch = CommandBatch()
    for serial, lease in enumerate((5, 6, 7)):
        grant = batch.commands.add(serial=serial).lease_grant
        grant.id, grant.ttl_ms = lease, 60_000
    await rig.write(batch)
    await rig.put(b"b", lease=6)
    await rig.put(b"a", lease=6)
    async with reader(rig, ReadConsistency.LINEARIZABLE) as state:
        found = await state.lease(6, keys_bytes_max=100)
        assert found is not None
        status, keys = found
        assert (status.id, status.ttl_ms, status.key_count, keys) == (6, 60_000, 2, [b"a", b"b"])
        assert 0 < status.remaining_ms <= 60_000
        without_keys = await state.lease(6, keys_bytes_max=0)
        assert without_keys is not None
        assert without_keys[1] == []
        assert await state.lease(8, keys_bytes_max=100) is None
        page, more = await state.leases(above=5, limit=1)
        assert ([lease.id for lease in page], more) == ([6], True)
        assert isinstance(page[0], LeaseStatus)
    assert rig.node.status().leases == 3


async def test_watches_are_counted_and_told_what_is_applied(rig: Rig) -> None:
    watches = rig.node.watches()
    await watches.create(WatchSpec(1, b"a", None, 0), timeout_s=5)
    assert (await watches.next()).created
    assert rig.node.status().watches == 1
    await rig.put(b"a", b"1")
    news = await watches.next()
    assert [event.kv.value for _, events in news.events for event in events] == [b"1"]
    watches.close()
    assert rig.node.status().watches == 0


def puts(*keys: str) -> CommandBatch:
    batch = CommandBatch()
    for serial, key in enumerate(keys, 1):
        batch.commands.add(serial=serial).put.key = key.encode()
    return batch


async def test_while_entries_are_applied_beside_the_loop_a_node_tells_what_is_committed(rig: Rig) -> None:
    keys = [f"k/{number:05d}" for number in range(KEYS_ON_LOOP_MAX + 100)]
    for at in range(0, len(keys), 500):
        await rig.write(puts(*keys[at : at + 500]))
    status, revision = rig.node.status(), rig.node.revision
    looked: list[bool] = []
    rig.driver.upkeep.look = lambda _now_ns, _index: looked.append(  # type: ignore[method-assign]
        rig.applier.is_beside
    )
    apply = rig.machine.apply
    applied, commit = threading.Event(), threading.Event()

    def held(*args: Any, **kwargs: Any) -> list[EntryResult]:
        results = apply(*args, **kwargs)
        applied.set()
        commit.wait(20)
        return results

    rig.machine.apply = held  # type: ignore[method-assign]
    long = puts("first")
    delete = long.commands.add(serial=2).delete
    delete.key, delete.range_end = b"k/", b"k0"
    writing = asyncio.ensure_future(rig.write(long))
    async with asyncio.timeout(20):
        while not applied.is_set():  # noqa: ASYNC110 - a thread sets it
            await asyncio.sleep(0.001)
    rig.driver._tick()
    meanwhile, ahead = rig.node.status(), rig.machine.revision
    meanwhile_revision = rig.node.revision
    commit.set()
    assert ahead == revision + 2
    assert (meanwhile.revision, meanwhile.digest, meanwhile.applied_index, meanwhile_revision) == (
        revision,
        status.digest,
        status.applied_index,
        revision,
    )
    index, _ = await writing
    after = rig.node.status()
    assert (after.revision, after.applied_index) == (revision + 2, index)
    assert after.digest != status.digest
    rig.driver._tick()
    assert looked.count(True) == 0 < len(looked)


async def test_a_node_says_whether_it_has_watches(rig: Rig) -> None:
    assert not rig.driver.has_watches()
    watches = rig.node.watches()
    await watches.create(WatchSpec(1, b"k", b"k\0", 2), timeout_s=1)
    assert rig.driver.has_watches()
    watches.close()
    assert not rig.driver.has_watches()


@pytest.mark.case(73)
@pytest.mark.parametrize("mode", MODES)
async def test_a_read_under_way_answers_nothing_from_the_moment_the_state_is_known_to_be_wrong(
    rig: Rig, mode: ReadConsistency
) -> None:
    await rig.put(b"a", b"1")
    async with reader(rig, mode) as state:
        rig.driver.fitness.limit("state", "it is odd", may_lead=False, may_read=False)
        with pytest.raises(DataLossError, match="it is odd"):
            await state.get(b"a")
        with pytest.raises(DataLossError, match="it is odd"):
            await state.range(b"a", None, limit=0, keys_only=False, count_only=False, bytes_max=1 << 20)
    with pytest.raises(DataLossError, match="it is odd"):
        async with reader(rig, mode):
            pass
    rig.driver.fitness.lift("state")
    async with reader(rig, mode) as state:
        assert await state.get(b"a") is not None


@pytest.mark.case(56)
async def test_a_read_that_meets_damage_says_so_to_its_client_and_to_the_node(rig: Rig) -> None:
    await rig.put(b"a", b"1")
    found: list[DataLossError] = []
    rig.node.on_damage = found.append
    with rig.state.write() as tables:
        row = tables.get(Table.INDEX, b"a")
        assert row is not None
        tables.put(Table.INDEX, b"a", row[:-1] + bytes([row[-1] ^ 1]))
    async with reader(rig, ReadConsistency.LOCAL) as state:
        with pytest.raises(DataLossError, match="is damaged"):
            await state.get(b"a")
        with pytest.raises(DataLossError, match="is damaged"):
            await state.range(b"a", b"b", limit=0, keys_only=False, count_only=False, bytes_max=1 << 20)
    assert len(found) == 2
