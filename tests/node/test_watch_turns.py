"""Who may take large news when: copies of them are bounded, and nobody keeps others waiting for ever."""

from __future__ import annotations

import asyncio

import pytest

from raftstate.errors import ClosedError, ResourceExhaustedError
from raftstate.node.service import WatchNews
from raftstate.node.watch_memory import WatchLimits
from raftstate.node.watch_stream import Watches
from raftstate.node.watch_turns import PATIENCE_NS
from raftstate.node.watch_waiting import Later
from tests.node.watch_rig import WatchRig, created, spec

LARGE = b"x" * 1_000
"""About 1,400 bytes with what an event takes beside it."""
ROOM_FOR_TWO = WatchLimits(small_bytes=1_000, large_bytes=3_000, turn_bytes=100_000)


async def streams_of(rig: WatchRig, count: int) -> list[Watches]:
    """Open streams, each with a watch of the key k."""
    streams = [rig.hub.open() for _ in range(count)]
    for stream in streams:
        await created(stream, spec(1, b"k"))
    return streams


def read_all(streams: list[Watches]) -> list[asyncio.Task[WatchNews]]:
    return [asyncio.create_task(stream.next()) for stream in streams]


async def turns(rig: WatchRig, count: int = 20) -> None:
    """Let so many turns of the loop pass."""
    for _ in range(count):
        rig.clock.turn()
        await asyncio.sleep(0)


def done(tasks: list[asyncio.Task[WatchNews]]) -> list[int]:
    return [number for number, task in enumerate(tasks) if task.done() and not task.cancelled()]


async def end(tasks: list[asyncio.Task[WatchNews]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_copies_of_a_large_value_are_handed_out_as_others_were_written() -> None:
    rig = WatchRig(ROOM_FOR_TWO)
    streams = await streams_of(rig, 5)
    rig.put(b"k", LARGE)
    rig.settle()
    tasks = read_all(streams)
    await turns(rig)
    assert done(tasks) == [0, 1]
    assert rig.hub.memory.pending_bytes == 3 * 1_401  # the event itself, and a copy for each of the two
    again = asyncio.create_task(streams[1].next())
    await turns(rig)
    assert done(tasks) == [0, 1, 2]
    streams[0].close()
    await turns(rig)
    assert done(tasks) == [0, 1, 2, 3]
    assert all(task.result().events[0][1][0].kv.value == LARGE for task in tasks[:4])
    await end([*tasks, again])
    for stream in streams:
        stream.close()
    assert rig.hub.memory.pending_bytes == 0


async def test_small_news_do_not_wait_for_large_ones() -> None:
    rig = WatchRig(ROOM_FOR_TWO)
    streams = await streams_of(rig, 4)
    other = rig.hub.open()
    await created(other, spec(1, b"other"))
    rig.put(b"k", LARGE)
    rig.put(b"other")
    rig.settle()
    tasks = read_all([*streams, other])
    await turns(rig)
    assert done(tasks) == [0, 1, 4]
    await end(tasks)


async def test_one_turn_of_the_loop_hands_out_a_bounded_number_of_bytes() -> None:
    rig = WatchRig(WatchLimits(small_bytes=2_000, turn_bytes=3_000))
    streams = await streams_of(rig, 5)
    rig.put(b"k", LARGE)
    rig.settle()
    tasks = read_all(streams)
    await asyncio.sleep(0)
    assert done(tasks) == [0, 1]
    for expected in ([0, 1, 2, 3], [0, 1, 2, 3, 4]):
        rig.clock.turn()
        await asyncio.sleep(0)
        assert done(tasks) == expected


async def test_news_larger_than_all_that_may_be_handed_out_come_alone() -> None:
    rig = WatchRig(WatchLimits(small_bytes=100, large_bytes=200, turn_bytes=300))
    streams = await streams_of(rig, 2)
    rig.put(b"k", LARGE)
    rig.settle()
    tasks = read_all(streams)
    await turns(rig)
    assert done(tasks) == [0]
    streams[0].written()
    await turns(rig)
    assert done(tasks) == [0, 1]


async def test_who_does_not_take_large_news_is_given_up_once_others_have_waited_for_long() -> None:
    rig = WatchRig(ROOM_FOR_TWO)
    streams = await streams_of(rig, 3)
    given_up = [asyncio.create_task(stream.until_given_up()) for stream in streams]
    rig.put(b"k", LARGE)
    rig.settle()
    tasks = read_all(streams[:2])
    await turns(rig)
    rig.clock.advance(2 * PATIENCE_NS / 1e9)
    await turns(rig)
    assert not any(task.done() for task in given_up)  # nobody waited
    tasks += read_all(streams[2:])
    await turns(rig)
    assert done(tasks) == [0, 1]
    rig.clock.advance(0.001)
    await turns(rig)
    assert [task.done() for task in given_up] == [True, False, False]
    with pytest.raises(ResourceExhaustedError, match="has not taken 1401 bytes of events for 10 s"):
        await given_up[0]
    assert done(tasks) == [0, 1, 2]
    with pytest.raises(ClosedError):
        await streams[0].next()
    for task in given_up[1:]:
        task.cancel()


async def test_who_waits_for_a_turn_is_told_that_the_node_stops() -> None:
    rig = WatchRig(ROOM_FOR_TWO)
    streams = await streams_of(rig, 3)
    rig.put(b"k", LARGE)
    rig.settle()
    tasks = read_all(streams)
    await turns(rig)
    rig.hub.close()
    with pytest.raises(ClosedError):
        await tasks[2]


async def test_who_no_longer_waits_for_a_turn_keeps_nobody_waiting() -> None:
    rig = WatchRig(ROOM_FOR_TWO)
    streams = await streams_of(rig, 4)
    rig.put(b"k", LARGE)
    rig.settle()
    tasks = read_all(streams)
    await turns(rig)
    tasks[2].cancel()
    await turns(rig)
    streams[0].written()
    await turns(rig)
    assert done(tasks) == [0, 1, 3]


async def test_what_is_handed_out_and_not_written_takes_room_in_its_stream() -> None:
    rig = WatchRig(WatchLimits(stream_bytes=3_000))
    [stream] = await streams_of(rig, 1)
    for _ in range(2):
        rig.put(b"k", LARGE)
        rig.settle()
    first = await stream.next()
    assert [len(events) for _, events in first.events] == [2]
    rig.put(b"k", LARGE)
    rig.settle()
    assert (stream.pending_bytes, stream.waiting_bytes) == (2 * 1_401, 0)
    second = asyncio.create_task(stream.next())
    await turns(rig)
    rig.settle()
    await turns(rig)
    assert [len(events) for _, events in second.result().events] == [1]


async def test_who_reads_slowly_is_not_given_up_while_there_is_memory() -> None:
    rig = WatchRig(WatchLimits(small_bytes=1_000, large_bytes=100_000, turn_bytes=2_000))
    [slow, *others] = await streams_of(rig, 9)
    rig.put(b"k", LARGE)
    rig.settle()
    tasks = read_all([slow])
    await turns(rig)
    assert done(tasks) == [0]
    rig.clock.advance(2 * PATIENCE_NS / 1e9)
    # One of them in each turn of the loop: the others wait for a turn, not for memory.
    given_up = asyncio.create_task(slow.until_given_up())
    tasks += read_all(others)
    for _ in range(20):
        await turns(rig, 1)
        rig.clock.advance(0.001)
    assert done(tasks) == list(range(9))
    assert not given_up.done()
    await end([given_up])  # type: ignore[list-item]


def test_watches_of_the_future_that_come_and_go_leave_nothing_behind() -> None:
    class Waits:
        def __init__(self, first_revision: int) -> None:
            self.first_revision = first_revision

    later = Later()
    later.add(Waits(5))  # type: ignore[arg-type]
    for _ in range(1_000):
        group = Waits(1 << 60)
        later.add(group)  # type: ignore[arg-type]
        later.remove(group)  # type: ignore[arg-type]
    assert len(later._revisions) < 100
    assert later.first == 5
