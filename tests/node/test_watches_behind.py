"""Watches that fall behind: streams that nobody reads, memory, the way back to the tail."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from raftstate.errors import ClosedError
from raftstate.machine.types import CompactTo, KeyValue
from raftstate.node.service import WatchSpec
from raftstate.node.watch_memory import WatchLimits
from raftstate.node.watch_scan import EVENT_OVERHEAD_BYTES, Held, SliceLimits
from raftstate.node.watch_stream import Watches
from tests.machine.rig import delete, put
from tests.node.watch_rig import SMALL, Reader, WatchRig, create, created, ends, poll, short, spec, told


def held_events(rig: WatchRig) -> list[Held]:
    return list({held for stream in rig.hub._streams for group in stream.pending for held in group.events})


def check_memory(rig: WatchRig) -> None:
    """What is counted is what is there, and within the limits."""
    limits = rig.hub.limits
    held = held_events(rig)
    handed = [stream.handed_bytes for stream in rig.hub._streams]
    assert rig.hub.memory.pending_bytes == sum(each.size_bytes for each in held) + sum(
        size for size in handed if size > limits.small_bytes
    )
    if len(held) > 1 and max(handed) <= limits.small_bytes:
        assert rig.hub.memory.pending_bytes <= limits.total_bytes
    for stream in rig.hub._streams:
        sizes = [each.size_bytes for group in stream.pending for each in group.events]
        assert stream.pending_bytes == sum(sizes) + stream.handed_bytes
        assert len(sizes) <= 1 or stream.pending_bytes <= limits.stream_bytes
    holders = Counter(
        held for stream in rig.hub._streams for group in stream.pending for held in group.events
    )
    assert all(each.holders == holders[each] for each in held)


def drain(rig: WatchRig, stream: Watches) -> dict[int, list[tuple[int, bytes, bytes | None]]]:
    """Read a stream until there is no more to be told."""
    got: dict[int, list[tuple[int, bytes, bytes | None]]] = {}
    reader = Reader(stream)
    while True:
        news = reader.read()
        if news is None:
            rig.settle()
            news = reader.read()
        if news is None:
            reader.stop()
            return got
        for watch_id, events in told(news).items():
            got.setdefault(watch_id, []).extend(events)


async def test_a_stream_that_nobody_reads_holds_what_fits_and_its_watches_go_on_from_there() -> None:
    rig = WatchRig(SMALL)
    stream = rig.hub.open()
    await created(stream, spec(1, b"k"), spec(2, b"", end=None))
    for n in range(2, 102):
        rig.put(b"k", b"%d" % n)
        rig.settle()
        check_memory(rig)
    assert stream.pending_bytes <= SMALL.stream_bytes
    assert len(stream.behind) == 2
    assert len(held_events(rig)) < 10
    assert rig.clock.soon == rig.jobs == rig.jobs.__class__(), "nothing is read for it"
    everything = [(n, b"k", b"%d" % n) for n in range(2, 102)]
    assert drain(rig, stream) == {1: everything, 2: everything}
    assert stream.behind == {}
    rig.put(b"k", b"102")
    rig.clock.advance(0.002)
    assert drain(rig, stream) == {1: [(102, b"k", b"102")], 2: [(102, b"k", b"102")]}


async def test_one_slow_stream_holds_up_no_other() -> None:
    rig = WatchRig(SMALL)
    slow, quick = rig.hub.open(), rig.hub.open()
    await created(slow, spec(1, b"k"))
    await created(quick, spec(1, b"k"))
    for n in range(2, 60):
        rig.put(b"k", b"%d" % n)
        rig.clock.advance(0.002)
        assert told(poll(quick)) == {1: [(n, b"k", b"%d" % n)]}


async def test_a_slice_reads_no_more_than_it_may_and_so_does_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = WatchRig(SMALL)
    stream = rig.hub.open()
    await created(stream, spec(1, b"none", prefix=True))
    read: list[int] = []
    scan = rig.machine_rig.tables.scan

    def counted(*args: object) -> object:
        read.append(0)
        for row in scan(*args):  # type: ignore[arg-type]
            read[-1] += 1
            yield row

    monkeypatch.setattr(rig.machine_rig.tables, "scan", counted)
    rig.write(*(put(n, b"k%d" % n) for n in range(1, 101)))
    read.clear()
    rig.settle()
    assert sum(read) == 100
    assert max(read) == SMALL.on_loop.changes
    await create(stream, spec(2, b"none", start=2))
    read.clear()
    rig.settle()
    assert sum(read) in range(100, 130)
    assert max(read) == SMALL.beside.changes
    read.clear()
    rig.write(*(put(n, b"k%d" % n, b"v" * 1_000) for n in range(1, 10)))
    rig.settle()
    assert max(read) == 2, "and no more bytes"
    await create(stream, *[spec(3, b"k", prefix=True, start=2)])
    read.clear()
    drain(rig, stream)
    assert max(read) == SMALL.beside.changes


async def test_a_pass_is_for_a_bounded_number_of_matches() -> None:
    rig = WatchRig(SMALL)
    streams = [rig.hub.open() for _ in range(6)]
    for stream in streams:
        await created(stream, spec(1, b"k", prefix=True))
    rig.write(*(put(n, b"k%d" % n) for n in range(1, 4)))
    rig.clock.turn()
    assert [len(told(poll(stream))[1]) for stream in streams] == [2] * 6
    rig.settle()
    assert [len(told(poll(stream))[1]) for stream in streams] == [1] * 6


async def test_those_who_are_behind_at_similar_positions_share_a_scan() -> None:
    rig = WatchRig(SMALL)
    for _ in range(100):
        rig.put(b"k")
    streams = [rig.hub.open() for _ in range(4)]
    for n, stream in enumerate(streams):
        await created(stream, spec(1, b"none", start=2 + n))
    before = rig.reads
    rig.settle()
    alone = 100 / SMALL.beside.changes
    assert rig.reads - before < 4 * alone
    assert all(stream.up_to_date for stream in streams)


async def test_a_single_event_may_be_larger_than_everything_else_may() -> None:
    rig = WatchRig(SMALL)
    stream = rig.hub.open()
    await created(stream, spec(1, b"k"))
    large = b"x" * 2 * SMALL.total_bytes
    for value in (b"1", large, large, b"2"):
        rig.put(b"k", value)
    rig.settle()
    news = [told(poll(stream))[1]]
    for _ in range(3):
        rig.settle()
        check_memory(rig)
        news.append(told(poll(stream))[1])
    assert news == [[(2, b"k", b"1")], [(3, b"k", large)], [(4, b"k", large)], [(5, b"k", b"2")]]


async def test_the_events_of_one_revision_may_be_told_in_parts_in_order() -> None:
    rig = WatchRig(SMALL)
    rig.write(*(put(n, b"k%02d" % n, b"v") for n in range(1, 40)))
    stream = rig.hub.open()
    await created(stream, spec(1, b"k", prefix=True))
    rig.delete(b"k", b"l")
    rig.settle()
    first = told(poll(stream))[1]
    assert 0 < len(first) < 39
    assert first + drain(rig, stream)[1] == [(41, b"k%02d" % n, None) for n in range(1, 40)]


async def test_all_streams_together_hold_no_more_than_they_may_and_the_silent_ones_give_way() -> None:
    rig = WatchRig(SMALL)
    silent = [rig.hub.open() for _ in range(20)]
    for n, stream in enumerate(silent):
        await created(stream, spec(1, b"%02d" % n))
    reader = rig.hub.open()
    await created(reader, spec(1, b"r"))
    for n in range(20):
        for _ in range(8):
            rig.put(b"%02d" % n)
            rig.put(b"r")
            rig.settle()
            check_memory(rig)
            assert len(told(poll(reader))[1]) == 1
    assert len(held_events(rig)) <= SMALL.total_bytes // EVENT_OVERHEAD_BYTES
    for n, stream in enumerate(silent):
        assert [key for _, key, _ in drain(rig, stream)[1]] == [b"%02d" % n] * 8
    assert drain(rig, reader) == {}


async def test_a_stream_that_lacked_room_and_gave_way_itself_stays_out_until_it_is_read() -> None:
    rig = WatchRig(WatchLimits(stream_bytes=4_000, total_bytes=4_000))
    silent, first, second = (rig.hub.open() for _ in range(3))
    await created(silent, spec(1, b"s"))
    await created(first, spec(1, b"a"))
    await created(second, spec(1, b"b"))
    readers = [Reader(first), Reader(second)]
    assert [reader.read() for reader in readers] == [None, None]
    rig.put(b"s")
    rig.put(b"a", b"x" * 2_500)
    rig.settle()
    rig.put(b"s", b"x" * 1_500)
    rig.settle()
    assert silent.is_full, "only because of what the first one holds, which is about to be read"
    rig.put(b"b", b"x" * 600)
    rig.settle()
    assert (silent.is_full, silent.pending_bytes) == (True, 0)
    assert [len(told(reader.read())[1]) for reader in readers] == [1, 1]
    rig.settle()
    assert (silent.is_full, silent.pending_bytes) == (True, 0)
    assert len(drain(rig, silent)[1]) == 2


async def test_a_stream_that_lacks_only_what_others_hold_goes_on_when_they_let_go() -> None:
    rig = WatchRig(WatchLimits(stream_bytes=2_000, total_bytes=2_000))
    first, second = rig.hub.open(), rig.hub.open()
    await created(first, spec(1, b"a"))
    await created(second, spec(1, b"b"))
    waiting = [asyncio.ensure_future(stream.next()) for stream in (first, second)]
    await asyncio.sleep(0)
    rig.put(b"a", b"x" * 1_500)
    rig.put(b"b", b"x" * 1_500)
    rig.settle()
    check_memory(rig)
    assert second.is_full
    assert len(told(await waiting[0])[1]) == 1
    rig.settle()
    assert len(told(await waiting[1])[1]) == 1


async def test_compaction_ends_a_watch_that_is_behind_it_after_what_it_holds() -> None:
    rig = WatchRig(SMALL)
    stream = rig.hub.open()
    await created(stream, spec(1, b"k"), spec(2, b"other"))
    for _ in range(40):
        rig.put(b"k")
    rig.settle()
    rig.compact(30)
    rig.settle()
    rig.sweep()
    news = poll(stream)
    got = [revision for revision, _, _ in told(news)[1]]
    assert got == list(range(2, 2 + len(got)))
    assert ends(news) == [(1, "OutOfRangeError", 30)]
    rig.put(b"other")
    rig.settle()
    assert told(poll(stream)) == {2: [(42, b"other", b"v")]}


async def test_compaction_overtakes_a_scan_on_the_thread() -> None:
    rig = WatchRig(SMALL)
    for _ in range(40):
        rig.put(b"k")
    stream = rig.hub.open()
    await created(stream, spec(1, b"k", start=2), spec(2, b"k", start=5))
    rig.clock.advance(0.002)
    assert len(rig.jobs) == 1
    rig.compact(5)
    rig.sweep()
    rig.settle()
    news = poll(stream)
    assert ends(news) == [(1, "OutOfRangeError", 5)]
    got = told(news)[2]
    got += drain(rig, stream)[2]
    assert [revision for revision, _, _ in got] == list(range(5, 42))


async def test_a_scan_that_sees_a_compaction_before_the_loop_does_carries_no_watch_over_it() -> None:
    rig = WatchRig(SMALL)
    stream = rig.hub.open()
    for n in range(2, 60):
        rig.put(b"k", b"%d" % n)
    await created(stream, spec(1, b"k", start=3))
    while not rig.jobs:
        rig.clock.advance(0.002)
    rig.machine_rig.run(CompactTo(20))
    rig.run_job()
    rig.settle()
    news = poll(stream)
    assert told(news) == {}
    assert ends(news) == [(1, "OutOfRangeError", 20)]


async def test_a_watch_that_is_up_to_date_outlives_a_compaction_of_what_it_was_not_told_yet() -> None:
    rig = WatchRig(SMALL)
    stream = rig.hub.open()
    await created(stream, spec(1, b"k", prev_kv=True))
    for n in range(2, 9):
        rig.put(b"k", b"%d" % n)
    rig.compact(8)
    rig.sweep()
    assert rig.machine.sweep_pending, "the hub holds the sweep back"
    rig.settle()
    rig.sweep()
    assert not rig.machine.sweep_pending
    assert [revision for revision, _, _ in told(poll(stream))[1]] == list(range(2, 9))


async def test_a_watch_cancelled_or_a_stream_closed_in_the_middle_of_a_scan_gets_nothing_of_it() -> None:
    rig = WatchRig(SMALL)
    for _ in range(40):
        rig.put(b"k")
    stays, goes = rig.hub.open(), rig.hub.open()
    await created(stays, spec(1, b"k", start=2), spec(2, b"k", start=2))
    await created(goes, spec(1, b"k", start=2))
    rig.clock.advance(0.002)
    assert len(rig.jobs) == 1
    stays.cancel(1)
    goes.close()
    with pytest.raises(ClosedError):
        await goes.next()
    rig.run_job()
    got = drain(rig, stays)
    assert [revision for revision, _, _ in got[2]] == list(range(2, 42))
    assert 1 not in got
    assert (rig.hub.watch_count, rig.hub.memory.pending_bytes) == (1, 0)


async def test_one_that_begins_at_a_revision_that_the_tail_has_read_in_part_misses_nothing() -> None:
    rig = WatchRig(SMALL)
    rig.write(*(put(n, b"k%d" % n) for n in range(1, 10)))
    stream = rig.hub.open()
    await created(stream, spec(1, b"k", prefix=True))
    rig.delete(b"k", b"l")
    rig.clock.turn()
    assert rig.hub._tail == (11, SMALL.on_loop.changes)
    await create(stream, spec(2, b"k", prefix=True, start=11))
    await create(stream, spec(3, b"k", prefix=True, start=12))
    rig.put(b"k")
    got = drain(rig, stream)
    assert got[1] == got[2] == [*((11, b"k%d" % n, None) for n in range(1, 10)), (12, b"k", b"v")]
    assert got[3] == [(12, b"k", b"v")]


async def test_what_is_read_for_those_who_are_behind_ends_where_the_tail_stands() -> None:
    rig = WatchRig(WatchLimits(on_loop=SMALL.on_loop))
    stream = rig.hub.open()
    await created(stream, spec(1, b"other"))
    for _ in range(8):
        rig.put(b"k")
    rig.settle()
    await create(stream, spec(2, b"k", start=2))
    rig.clock.advance(0.002)
    assert len(rig.jobs) == 1
    rig.write(*(put(n, b"k") for n in range(1, 8)))
    rig.run_job()
    rig.clock.advance(0)
    assert [revision for revision, _, _ in drain(rig, stream)[2]] == list(range(2, 17))


async def test_a_full_stream_takes_nothing_until_it_is_read() -> None:
    rig = WatchRig(SMALL)
    stream = rig.hub.open()
    await created(stream, spec(1, b"a"), spec(2, b"b"))
    for value in (b"x" * 1_000, b"x" * 3_000):
        rig.put(b"a", value)
    rig.put(b"b")
    rig.settle()
    assert [list(told(poll(stream))), list(drain(rig, stream))] == [[1], [1, 2]]


async def test_an_event_that_others_hold_takes_no_more_of_what_all_may_hold() -> None:
    rig = WatchRig(WatchLimits(stream_bytes=4_000, total_bytes=2_000))
    streams = [rig.hub.open() for _ in range(5)]
    for stream in streams:
        await created(stream, spec(1, b"k"))
    rig.put(b"k", b"x" * 1_500)
    rig.settle()
    check_memory(rig)
    assert [len(told(poll(stream))[1]) for stream in streams] == [1] * 5


async def test_a_slice_is_for_a_bounded_number_of_groups() -> None:
    rig = WatchRig(SMALL)
    for _ in range(20):
        rig.put(b"k")
    stream = rig.hub.open()
    await created(stream, *(spec(n, b"none", start=2) for n in range(1, 9)))
    rig.clock.advance(0.002)
    assert [group.scan is not None for group in stream.behind].count(True) == SMALL.groups
    drain(rig, stream)
    assert stream.behind == {}


async def test_a_scan_that_ends_after_the_node_stopped_is_dropped() -> None:
    rig = WatchRig(SMALL)
    for _ in range(40):
        rig.put(b"k")
    stream = rig.hub.open()
    await created(stream, spec(1, b"k", start=2))
    rig.clock.advance(0.002)
    rig.hub.close()
    rig.run_job()
    rig.clock.advance(10)
    assert rig.jobs == rig.jobs.__class__()


async def test_what_ended_and_was_not_told_counts_so_that_it_stays_bounded() -> None:
    rig = WatchRig(WatchLimits(watches=10))
    stream = rig.hub.open()
    made = 0
    for n in range(50):
        try:
            await create(stream, spec(n, b"k"))
        except Exception:  # noqa: BLE001 - which one is another test's matter
            continue
        made += 1
        stream.cancel(n)
    assert made == 10


# -- everything at once


@dataclass(frozen=True)
class Happened:
    """A change, as the test's own little store made it."""

    revision: int
    key: bytes
    value: bytes | None
    previous: bytes | None


class Chronicle:
    """What happened to the keys: a model of the machine's, made without it."""

    def __init__(self) -> None:
        self.revision = 1
        self.compacted = 0
        self.keys: dict[bytes, bytes] = {}
        self.changes: list[Happened] = []

    def put(self, key: bytes, value: bytes) -> None:
        self.revision += 1
        self.changes.append(Happened(self.revision, key, value, self.keys.get(key)))
        self.keys[key] = value

    def delete(self, start: bytes, end: bytes) -> None:
        gone = sorted(key for key in self.keys if start <= key < (end or start + b"\x00"))
        self.revision += bool(gone)
        for key in gone:
            self.changes.append(Happened(self.revision, key, None, self.keys.pop(key)))

    def wanted(self, wanted: WatchSpec, first_revision: int) -> list[Happened]:
        return [
            change
            for change in self.changes
            if change.revision >= first_revision
            and wanted.start <= change.key
            and (wanted.end is None or change.key < wanted.end)
            and not (wanted.no_put if change.value is not None else wanted.no_delete)
        ]


@dataclass
class Client:
    """A stream, and what it was told of each of its watches."""

    stream: Watches
    is_read: bool
    specs: dict[int, WatchSpec] = field(default_factory=dict)
    first: dict[int, int] = field(default_factory=dict)
    got: dict[int, list[tuple[int, bytes, bytes | None, KeyValue | None]]] = field(default_factory=dict)
    ended: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reader = Reader(self.stream)

    def read(self, rig: WatchRig, chronicle: Chronicle) -> bool:
        """Take news, or wait for them; and check what they claim."""
        news = self.reader.read()
        if news is None:
            return False
        for watch_id, first in news.created:
            self.first[watch_id] = first
        for watch_ids, events in news.events:
            for watch_id in watch_ids:
                assert watch_id in self.first
                assert watch_id not in self.ended
                self.got.setdefault(watch_id, []).extend((*short(event), event.prev_kv) for event in events)
        for watch_id in news.progress:
            self.check(watch_id, chronicle, up_to=news.revision)
        for end in news.ended:
            assert end.watch_id not in self.ended
            self.ended[end.watch_id] = type(end.error).__name__
            if end.error is not None:
                assert end.compacted_revision <= chronicle.compacted
        assert news.revision <= rig.machine.revision
        return True

    def check(self, watch_id: int, chronicle: Chronicle, *, up_to: int = 0) -> None:
        """What a watch got is what it should have, from its beginning on; all of it up to a revision."""
        wanted = self.specs[watch_id]
        expected = chronicle.wanted(wanted, self.first[watch_id])
        got = self.got.get(watch_id, [])
        assert [each[:3] for each in got] == [
            (change.revision, change.key, change.value) for change in expected[: len(got)]
        ]
        assert all(change.revision > up_to for change in expected[len(got) :])
        for change, (_, _, _, previous) in zip(expected, got, strict=False):
            if not wanted.prev_kv:
                assert previous is None
            elif previous is None:
                assert change.previous is None or change.revision <= chronicle.compacted
            else:
                assert previous.value == change.previous


@pytest.mark.parametrize("seed", range(10))
async def test_every_watch_is_told_all_of_its_changes_once_whatever_happens(seed: int) -> None:
    await run_random(seed, rounds=300)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 130))
async def test_every_watch_is_told_all_of_its_changes_once_in_long_runs(seed: int) -> None:
    await run_random(seed, rounds=2_000)


async def run_random(seed: int, rounds: int) -> None:
    rng = random.Random(seed)
    limits = WatchLimits(
        stream_bytes=rng.choice([1_500, 4_000, 20_000]),
        total_bytes=rng.choice([1_500, 9_000, 1 << 20]),
        groups=rng.choice([1, 3, 100]),
        on_loop=SliceLimits(rng.choice([2, 4, 15]), 10_000, rng.choice([1, 20])),
        beside=SliceLimits(rng.choice([3, 20, 50]), rng.choice([300, 10_000]), 40),
    )
    rig, chronicle = WatchRig(limits), Chronicle()
    clients = [Client(rig.hub.open(), is_read=n % 3 != 0) for n in range(8)]
    next_id = 0
    busy = 0.9
    for _ in range(rounds):
        client = rng.choice(clients)
        choice = rng.random()
        if choice < 0.35:
            write(rig, chronicle, rng)
        elif choice < 0.55:
            if client.is_read or rng.random() < 0.02:
                client.read(rig, chronicle)
            if rng.random() < 0.3:
                client.reader.stop()
        elif choice < 0.65:
            next_id += 1
            client.specs[next_id] = wanted = random_spec(next_id, rng, chronicle)
            await create(client.stream, wanted)
        elif choice < 0.68:
            if client.specs:
                client.stream.cancel(rng.choice(list(client.specs)))
        elif choice < 0.69:
            client.stream.request_progress()
        elif choice < 0.70:
            chronicle.compacted = max(chronicle.compacted, rng.randint(0, chronicle.revision))
            rig.compact(chronicle.compacted)
        elif choice < 0.72:
            rig.sweep()
        elif choice < 0.73:
            busy = rng.choice([0.1, 0.5, 0.9])
        elif choice < 0.735:
            client.stream.close()
            clients[clients.index(client)] = Client(rig.hub.open(), client.is_read)
        elif rng.random() < busy:
            rig.clock.advance(rng.choice([0, 0.001, 0.002, 0.002, 0.004, 0.02, 0.7]))
        elif rig.jobs:
            rig.run_job()
        check_memory(rig)
    for client in clients:
        client.reader.stop()  # one that was woken and does not take its news keeps others waiting
    for client in clients:
        if not client.is_read:
            assert len(client.stream.pending) <= limits.stream_bytes / EVENT_OVERHEAD_BYTES + 1
        while True:
            if not client.read(rig, chronicle):
                rig.settle()
                if not client.read(rig, chronicle):
                    client.reader.stop()
                    break
        for watch_id in client.first:
            over = watch_id in client.ended
            client.check(watch_id, chronicle, up_to=0 if over else chronicle.revision)
        assert set(client.specs) == set(client.first) | set(client.ended)
        assert set(client.ended.values()) <= {"NoneType", "OutOfRangeError"}
    check_memory(rig)
    assert rig.hub.memory.pending_bytes == 0


def write(rig: WatchRig, chronicle: Chronicle, rng: random.Random) -> None:
    """Apply a batch of some puts and deletes."""
    commands = []
    for serial in range(1, rng.choice([1, 1, 3, 20]) + 1):
        key = b"%c%d" % (rng.choice(b"abc"), rng.randrange(12))
        if rng.random() < 0.85:
            value = b"x" * rng.choice([1, 1, 10, 700]) + b"%d" % chronicle.revision
            commands.append(put(serial, key, value))
            chronicle.put(key, value)
        else:
            end = rng.choice([b"", b"c", b"b5"])
            commands.append(delete(serial, key, end))
            chronicle.delete(key, end)
    rig.write(*commands)
    assert rig.machine.revision == chronicle.revision


def random_spec(watch_id: int, rng: random.Random, chronicle: Chronicle) -> WatchSpec:
    kind = rng.randrange(4)
    start = b"%c%d" % (rng.choice(b"abc"), rng.randrange(3))
    return spec(
        watch_id,
        b"" if kind == 3 else start[:1] if kind == 1 else start,
        prefix=kind == 1,
        end=None if kind == 3 else b"b9" if kind == 2 else b"",
        start=rng.choice(
            [
                0,
                rng.randint(1, chronicle.revision),
                max(1, chronicle.revision - rng.randrange(12)),
                chronicle.revision + rng.randint(1, 30),
            ]
        ),
        prev_kv=rng.random() < 0.3,
        progress_notify=rng.random() < 0.3,
        no_put=rng.random() < 0.1,
        no_delete=rng.random() < 0.1,
    )
