"""Watches over nodes that break, lag, lie still and refuse: each event once, in order."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Callable

import pytest

import raftstate
from raftstate.client import watch_inbox, watch_stream
from raftstate.client.watch import AsyncWatch
from raftstate.client.watch_inbox import WatchEvent
from raftstate.errors import (
    ClosedError,
    DeadlineError,
    FailedPreconditionError,
    InvalidArgumentError,
    NoLeaderError,
    OutOfRangeError,
    ResourceExhaustedError,
    WrongClusterError,
)
from raftstate.pb.v1 import common_pb2, watch_pb2
from tests.client.fake_watch import FakeWatches, put, refused, unavailable, wanted


@pytest.fixture
async def nodes() -> AsyncIterator[FakeWatches]:
    nodes = FakeWatches()
    yield nodes
    await nodes.close()


async def until(condition: Callable[[], object]) -> None:
    """Let everything run until the condition holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - of a fake, which has no events for it
            await asyncio.sleep(0)


async def take(watch: AsyncWatch, count: int) -> list[tuple[int, str]]:
    return [(event.revision, event.key.decode()) for event in [await watch.next(5) for _ in range(count)]]


async def test_a_watch_ends_when_its_task_is_cancelled_by_somebody_else(nodes: FakeWatches) -> None:
    watch = nodes.watch("k")
    await watch.begin(5)
    assert nodes.watcher._task is not None
    nodes.watcher._task.cancel()
    with pytest.raises(ClosedError, match="cancelled from outside"):
        await watch.next(5)
    async with asyncio.timeout(5), nodes.watch("k"):
        pass


# ---- what comes


async def test_a_closed_watch_tells_from_where_another_goes_on_without_a_gap(nodes: FakeWatches) -> None:
    async with nodes.watch(prefix="k") as watch:
        for number in range(6):
            nodes.write((f"k{number}".encode(), b""))
        await until(lambda: len(watch._inbox.events) == 6)
        taken = await take(watch, 2)
    assert watch.revision == taken[-1][0]
    again = nodes.watch(prefix="k", start_revision=watch.revision + 1)
    assert [key for _, key in taken + await take(again, 4)] == [f"k{number}" for number in range(6)]


async def test_a_watch_from_now_on_gets_what_is_written_after_it_was_created(nodes: FakeWatches) -> None:
    nodes.write((b"a", b"0"))
    async with nodes.watch("a") as watch:
        assert watch.revision == 2
        nodes.write((b"a", b"1"))
        nodes.write((b"b", b"1"))
        nodes.write((b"a", None))
        assert await watch.next() == WatchEvent("put", raftstate.KeyValue(b"a", b"1", 3, 3, 1))
        event = await watch.next()
        assert (event.kind, event.key, event.revision) == ("delete", b"a", 5)


async def test_a_watch_of_the_past_begins_there_without_being_entered(nodes: FakeWatches) -> None:
    for number in range(3):
        nodes.write((f"k{number}".encode(), b""))
    got = []
    async for event in nodes.watch(prefix="k", start_revision=3):
        got.append(event.revision)
        if len(got) == 2:
            break
    assert got == [3, 4]
    gc.collect()
    await until(lambda: nodes.serving is not None and nodes.serving.stream.cancels() == [1])


async def test_many_watches_share_a_stream_and_each_event_is_decoded_once(nodes: FakeWatches) -> None:
    watches = [nodes.watch(prefix="k") for _ in range(50)]
    for watch in watches:
        await watch.begin(5)
    stream = nodes.nodes[0].stream
    assert sum(len(node.streams) for node in nodes.nodes) == 1
    assert stream is not None
    ids = [create.watch_id for create in stream.creates()]
    assert len(set(ids)) == 50

    stream.say(events=[watch_pb2.WatchEvents(watch_ids=ids, events=[put(b"k1", 2)])])
    events = [await watch.next(5) for watch in watches]
    assert all(event is events[0] for event in events)


async def test_the_wire_carries_what_was_asked_for(nodes: FakeWatches) -> None:
    async with (
        nodes.watch("a", prev_kv=True, kinds="delete"),
        nodes.watch("a", range_end="c", start_revision=9, kinds="put"),
        nodes.watch(prefix="p/"),
        nodes.watch(),
    ):
        creates = nodes.nodes[0].streams[0].creates()
    assert [(each.key, each.range_end, each.start_revision) for each in creates] == [
        (b"a", b"", 0),
        (b"a", b"c", 9),
        (b"p/", b"p0", 0),
        (b"\0", b"\0", 0),
    ]
    assert [(each.prev_kv, each.no_put, each.no_delete) for each in creates[:3]] == [
        (True, True, False),
        (False, False, True),
        (False, False, False),
    ]
    assert all(each.progress_notify for each in creates)


async def test_a_progress_note_is_a_revision_that_was_handed_out(nodes: FakeWatches) -> None:
    async with nodes.watch("a") as watch:
        nodes.write((b"b", b""))
        nodes.write((b"a", b""))
        nodes.write((b"b", b""))
        assert nodes.serving is not None
        nodes.serving.stream.progress()
        await until(lambda: watch._inbox.revision == 5)
        assert watch.revision == 2
        await watch.next()
        assert watch.revision == 4


# ---- streams that end


@pytest.mark.parametrize("keep", [0, 1, 2, 3])
async def test_wherever_a_stream_breaks_the_next_node_goes_on(nodes: FakeWatches, keep: int) -> None:
    nodes.portion = 2
    async with nodes.watch(prefix="k") as watch:
        stream = nodes.nodes[0].stream
        assert stream is not None
        nodes.write((b"k1", b""), (b"k2", b""), (b"k3", b""))
        nodes.write((b"k4", b""), (b"k5", b""))
        assert stream.waiting == 3
        stream.break_off(keep)
        assert await take(watch, 5) == [(2, "k1"), (2, "k2"), (2, "k3"), (3, "k4"), (3, "k5")]
        nodes.write((b"k6", b""))
        assert await take(watch, 1) == [(4, "k6")]
    assert nodes.serving is nodes.nodes[1]


async def test_a_stream_that_its_node_ends_in_good_order_is_replaced(nodes: FakeWatches) -> None:
    async with nodes.watch("k") as watch:
        nodes.write((b"k", b""))
        assert nodes.serving is not None
        nodes.serving.stream.end()
        nodes.write((b"k", b""))
        assert await take(watch, 2) == [(2, "k"), (3, "k")]


async def test_a_watch_from_now_on_keeps_its_first_revision_when_the_stream_breaks_before_any_event(
    nodes: FakeWatches,
) -> None:
    async with nodes.watch("k") as watch:
        nodes.nodes[0].stream.break_off()
        nodes.nodes[0].lagging = True
        nodes.write((b"k", b""))
        assert await take(watch, 1) == [(2, "k")]
    assert [create.start_revision for create in nodes.nodes[1].streams[0].creates()] == [2]


async def test_a_watch_that_was_not_created_yet_asks_for_now_again(nodes: FakeWatches) -> None:
    nodes.nodes[0].silent = True
    watch = nodes.watch("k")
    entering = asyncio.create_task(watch.begin(5))
    await until(lambda: nodes.nodes[0].stream is not None and nodes.nodes[0].stream.requests)
    nodes.nodes[0].stream.break_off()
    await entering
    assert [create.start_revision for create in nodes.nodes[1].streams[0].creates()] == [0]
    await watch.close()


async def test_a_node_that_lags_is_waited_for(nodes: FakeWatches) -> None:
    nodes.nodes[1].lagging = True
    async with nodes.watch("k") as watch:
        for _ in range(3):
            nodes.write((b"k", b""))
        assert await take(watch, 3) == [(2, "k"), (3, "k"), (4, "k")]
        nodes.nodes[0].stream.break_off()
        await until(lambda: nodes.nodes[1].stream is not None and nodes.nodes[1].stream.watches)
        nodes.nodes[1].stream.progress()
        nodes.nodes[1].apply(3)
        nodes.write((b"k", b""))
        nodes.nodes[1].apply(5)
        assert await take(watch, 1) == [(5, "k")]


async def test_events_below_the_resume_point_are_never_taken(nodes: FakeWatches) -> None:

    async with nodes.watch("k", start_revision=5) as watch:
        stream = nodes.nodes[0].stream
        assert stream is not None
        events = [put(b"k", revision) for revision in (3, 4, 5)]
        stream.say(events=[watch_pb2.WatchEvents(watch_ids=[1], events=events)])
        assert await take(watch, 1) == [(5, "k")]


async def test_events_of_a_creation_that_was_replaced_are_not_taken(nodes: FakeWatches) -> None:

    async with nodes.watch("k") as watch:
        nodes.nodes[0].stream.break_off()
        await until(lambda: nodes.nodes[1].stream is not None and nodes.nodes[1].stream.watches)
        nodes.nodes[1].stream.say(events=[watch_pb2.WatchEvents(watch_ids=[1], events=[put(b"k", 9)])])
        nodes.write((b"k", b""))
        assert await take(watch, 1) == [(2, "k")]


async def test_nobody_is_there_for_a_while_and_iterating_goes_on(nodes: FakeWatches) -> None:
    async with nodes.watch("k") as watch:
        for node in nodes.nodes:
            node.down = True
        nodes.nodes[0].stream.break_off()
        with pytest.raises(
            DeadlineError, match=r"no node serves the watch at present; tried n1:1 .*went away"
        ):
            await watch.next(0.1)
        for node in nodes.nodes:
            node.down = False
        nodes.write((b"k", b""))
        assert await take(watch, 1) == [(2, "k")]


# ---- nodes of no use


async def test_a_node_that_does_not_answer_is_left(
    nodes: FakeWatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_stream, "FIRST_S", 0.01)
    monkeypatch.setattr(watch_stream, "QUIET_S", 0.01)
    async with nodes.watch("k") as watch:
        nodes.nodes[0].answers = False
        nodes.nodes[0].lagging = True
        nodes.write((b"k", b""))
        assert await take(watch, 1) == [(2, "k")]
    assert nodes.nodes[0].streams[0].cancelled


async def test_a_node_that_takes_a_stream_and_says_nothing_is_left(
    nodes: FakeWatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_stream, "FIRST_S", 0.01)
    nodes.nodes[0].silent = True
    nodes.nodes[0].answers = False
    async with nodes.watch("k"):
        assert nodes.serving is nodes.nodes[1]


async def test_a_node_that_hears_no_leader_is_left_when_it_says_so_twice(
    nodes: FakeWatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_stream, "FIRST_S", 0.01)
    monkeypatch.setattr(watch_stream, "QUIET_S", 0.01)
    async with nodes.watch("k"):
        nodes.nodes[0].leader_id = 0
        await until(lambda: nodes.serving is nodes.nodes[1])
        assert nodes.nodes[0].asked >= 2


async def test_a_stream_that_lost_even_its_progress_notes_is_left(
    nodes: FakeWatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_stream, "FIRST_S", 0.01)
    monkeypatch.setattr(watch_stream, "QUIET_S", 0.01)
    monkeypatch.setattr(watch_stream, "SILENT_S", 0.02)
    async with nodes.watch("k"):
        await until(lambda: nodes.serving is nodes.nodes[1])


async def test_a_quiet_node_that_is_well_is_kept(nodes: FakeWatches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_stream, "FIRST_S", 0.001)
    monkeypatch.setattr(watch_stream, "QUIET_S", 0.001)
    async with nodes.watch("k"):
        await until(lambda: nodes.nodes[0].asked >= 20)
        assert [len(node.streams) for node in nodes.nodes] == [1, 0, 0]


# ---- refusals


async def test_a_compacted_revision_ends_the_watch_after_the_events_before_it(nodes: FakeWatches) -> None:
    async with nodes.watch("k") as watch:
        for _ in range(3):
            nodes.write((b"k", b""))
        await until(lambda: len(watch._inbox.events) == 3)
        nodes.compacted = 9
        nodes.nodes[0].stream.break_off()
        await until(lambda: watch._inbox.error is not None)
        assert await take(watch, 3) == [(2, "k"), (3, "k"), (4, "k")]
        for _ in range(2):
            with pytest.raises(OutOfRangeError, match="revision 4 is compacted") as caught:
                await watch.next()
            assert caught.value.detail["compacted_revision"] == 9


async def test_entering_a_watch_of_a_compacted_revision_raises(nodes: FakeWatches) -> None:
    nodes.compacted = 9
    with pytest.raises(OutOfRangeError) as caught:
        async with nodes.watch("k", start_revision=4):
            pass
    assert caught.value.detail["compacted_revision"] == 9


async def test_a_limit_is_told_to_a_new_watch_and_waited_out_by_one_that_moves(nodes: FakeWatches) -> None:
    limit = refused(common_pb2.ERROR_CODE_RESOURCE_EXHAUSTED, "too many watches")
    nodes.nodes[0].refusals.append(limit)
    with pytest.raises(ResourceExhaustedError, match="too many watches"):
        async with nodes.watch("k"):
            pass
    nodes.nodes[1].refusals.append(limit)
    async with nodes.watch("k") as watch:
        nodes.nodes[0].stream.break_off()
        nodes.write((b"k", b""))
        assert await take(watch, 1) == [(2, "k")]
    assert len(nodes.nodes[1].streams[0].creates()) == 2


async def test_a_node_without_a_leader_is_asked_again(nodes: FakeWatches) -> None:
    nodes.nodes[0].refusals.extend([refused(common_pb2.ERROR_CODE_NO_LEADER)] * 3)
    async with nodes.watch("k"):
        assert len(nodes.nodes[0].streams[0].creates()) == 4


async def test_a_stream_that_is_refused_for_good_ends_new_watches_only(nodes: FakeWatches) -> None:
    async with nodes.watch("k") as watch:
        failure = unavailable("n1:1", "refused")
        failure.error = refused(common_pb2.ERROR_CODE_RESOURCE_EXHAUSTED, "too many streams")
        nodes.nodes[0].silent = True
        other = asyncio.create_task(nodes.watch("k").begin(5))
        await until(lambda: len(nodes.nodes[0].streams[0].creates()) == 2)
        nodes.nodes[0].stream.end(failure)
        with pytest.raises(ResourceExhaustedError, match="too many streams"):
            await other
        nodes.write((b"k", b""))
        assert await take(watch, 1) == [(2, "k")]


async def test_a_node_of_another_cluster_ends_the_watches(nodes: FakeWatches) -> None:
    async with nodes.watch("k") as watch:
        nodes.cluster_id = 0xBAD
        nodes.write((b"k", b""))
        with pytest.raises(WrongClusterError, match="check the addresses"):
            await watch.next()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"key": ""}, "key"),
        ({"key": 5}, "key"),
        ({"key": "x" * 481}, "key"),
        ({"key": "b", "range_end": "a"}, "range_end"),
        ({"key": "b", "range_end": "b"}, "range_end"),
        ({"key": "b", "prefix": "b"}, "prefix"),
        ({"range_end": "b", "prefix": "b"}, "prefix"),
        ({"key": "b", "start_revision": 0}, "start_revision"),
        ({"key": "b", "start_revision": -1}, "start_revision"),
        ({"key": "b", "start_revision": "1"}, "start_revision"),
        ({"key": "b", "start_revision": 1 << 64}, "start_revision"),
        ({"key": "b", "kinds": "puts"}, "kinds"),
        ({"key": "b", "kinds": ["put"]}, "kinds"),
        ({"key": "b", "prev_kv": "yes"}, "prev_kv"),
    ],
)
async def test_bad_arguments_are_refused_before_anything_is_sent(
    nodes: FakeWatches, options: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        nodes.watch(**options)  # type: ignore[arg-type]
    assert caught.value.field == field
    assert nodes.watcher is None


# ---- waiting, and ending it


async def test_entering_without_any_node_says_what_was_tried(nodes: FakeWatches) -> None:
    for node in nodes.nodes:
        node.down = True
    with pytest.raises(NoLeaderError, match=r"tried n1:1 \(the node went away\), n2:1") as caught:
        async with nodes.watch("k", timeout_s=0.2):
            pass
    assert caught.value.definite


async def test_entering_at_a_node_that_waits_says_which(nodes: FakeWatches) -> None:
    async with nodes.watch("other"):
        nodes.nodes[0].silent = True
        with pytest.raises(DeadlineError, match=r"n1:1 did not create the watch within 0\.05 s"):
            async with nodes.watch("k", timeout_s=0.05):
                pass
        await until(lambda: len(nodes.watcher._inboxes) == 1)


async def test_next_has_a_deadline_and_loses_nothing_by_it_or_by_a_cancellation(nodes: FakeWatches) -> None:
    async with nodes.watch("k") as watch:
        with pytest.raises(DeadlineError, match=r"no event came within 0\.01 s; the watch is served by n1:1"):
            await watch.next(0.01)
        for _ in range(20):
            waiting = asyncio.create_task(watch.next())
            await asyncio.sleep(0)
            nodes.write((b"k", b""))
            for _ in range(random.Random(nodes.revision).randrange(6)):
                await asyncio.sleep(0)
            if not waiting.cancel():
                assert (await waiting).revision == nodes.revision
                continue
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert (await watch.next()).revision == nodes.revision
        with pytest.raises(InvalidArgumentError):
            await watch.next(0)


async def test_closing_a_watch_ends_its_iteration_and_its_place_at_the_node(nodes: FakeWatches) -> None:
    watch = nodes.watch("k")
    await watch.begin(5)

    got = []

    async def iterate() -> None:
        async for event in watch:
            got.append(event)  # noqa: PERF401 - each as it comes

    waiting = asyncio.create_task(iterate())
    nodes.write((b"k", b""))
    await until(lambda: got)
    await watch.close()
    await watch.close()
    await waiting
    assert len(got) == 1
    with pytest.raises(ClosedError, match="the watch was closed"):
        await watch.next()
    await until(lambda: nodes.nodes[0].stream.cancels() == [1])


async def test_closing_the_client_ends_the_iteration_with_its_error(nodes: FakeWatches) -> None:
    watch = nodes.watch("k")
    waiting = asyncio.create_task(anext(watch))
    await until(lambda: nodes.serving is not None and nodes.serving.stream.watches)
    await nodes.close()
    with pytest.raises(ClosedError, match="client was closed"):
        await waiting
    with pytest.raises(ClosedError):
        await nodes.watch("k").next()
    assert nodes.nodes[0].streams[0].cancelled


async def test_a_watch_that_was_begun_before_a_fork_is_refused(nodes: FakeWatches) -> None:
    async with nodes.watch("k") as watch:
        before, nodes.watcher = nodes.watcher, None  # as a client begins anew in a child
        with pytest.raises(FailedPreconditionError, match="before a fork; begin another here"):
            await watch.next()
        nodes.watcher = before


async def test_several_tasks_share_the_events_of_a_watch(nodes: FakeWatches) -> None:
    async with nodes.watch("k") as watch:
        waiting = [asyncio.create_task(watch.next()) for _ in range(5)]
        await asyncio.sleep(0)
        for _ in range(5):
            nodes.write((b"k", b""))
        assert sorted([(await each).revision for each in waiting]) == [2, 3, 4, 5, 6]


# ---- slow consumers


async def test_a_watch_that_nobody_reads_is_parked_and_goes_on_where_it_was(
    nodes: FakeWatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_inbox, "BYTES_MAX", 16 * watch_inbox.EVENT_BYTES)
    async with nodes.watch("slow") as slow, nodes.watch("fast") as fast:
        for number in range(100):
            nodes.write((b"slow", b"1"), (b"slow", b"2"), (b"fast", b""))
            assert (await fast.next(5)).revision == number + 2
        await until(lambda: slow._inbox.parked)
        assert len(slow._inbox.events) == 16
        stream = nodes.nodes[0].streams[0]
        await until(lambda: len(stream.watches) == 1)
        got = [await slow.next(5) for _ in range(200)]
        assert [event.revision for event in got] == [2 + number // 2 for number in range(200)]
        assert {event.value for event in got[::2]} == {b"1"}
        assert len(nodes.nodes[0].streams) == 1


async def test_a_parked_watch_is_created_again_before_its_last_event_is_taken(
    nodes: FakeWatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_inbox, "BYTES_MAX", 16 * (watch_inbox.EVENT_BYTES + 1))
    async with nodes.watch("k") as watch:
        for number in range(20):
            nodes.write((b"k", b""))
            await until(lambda number=number: watch._inbox.parked or len(watch._inbox.events) == number + 1)
        assert watch._inbox.parked
        await take(watch, 11)
        assert watch._inbox.parked
        await take(watch, 1)
        await until(lambda: len(nodes.nodes[0].streams[0].creates()) == 2)
        assert watch._inbox.events
        assert await take(watch, 8) == [(revision, "k") for revision in range(14, 22)]


async def test_a_parked_watch_survives_a_break_and_is_not_created_before_it_is_read(
    nodes: FakeWatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_inbox, "BYTES_MAX", 4 * watch_inbox.EVENT_BYTES)
    async with nodes.watch("slow") as slow, nodes.watch("fast") as fast:
        for _ in range(10):
            nodes.write((b"slow", b""))
        await until(lambda: slow._inbox.parked)
        nodes.nodes[0].stream.break_off()
        nodes.write((b"fast", b""))
        await fast.next(5)
        assert [create.key for create in nodes.nodes[1].streams[0].creates()] == [b"fast"]
        assert await take(slow, 10) == [(revision, "slow") for revision in range(2, 12)]


async def test_a_long_history_leaves_others_their_turn(nodes: FakeWatches) -> None:
    for _ in range(3_000):
        nodes.write((b"k", b""))
    async with nodes.watch("k", start_revision=1) as watch:
        assert await take(watch, 3_000) == [(revision, "k") for revision in range(2, 3_002)]
        # One message of 3,000 events, read in portions: it never was more than the reader could take.
        assert len(nodes.nodes[0].streams[0].creates()) == 1


# ---- everything at once


@pytest.mark.parametrize("seed", range(12))
async def test_over_many_breaks_every_watch_gets_the_true_history(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(watch_inbox, "BYTES_MAX", 8 * watch_inbox.EVENT_BYTES)
    monkeypatch.setattr(watch_stream, "DECODE_EVENTS", 3)
    monkeypatch.setattr(watch_stream, "backoff_s", lambda attempt: 0)
    nodes = FakeWatches(portion=3)
    got: dict[int, list[WatchEvent]] = {}
    starts: dict[int, int] = {}
    watches: dict[int, AsyncWatch] = {}
    readers = []

    async def read(number: int, watch: AsyncWatch) -> None:
        slow = rng.random() < 0.4
        async for event in watch:
            got[number].append(event)
            for _ in range(rng.randrange(8) if slow else 0):
                await asyncio.sleep(0)

    async def begin(number: int) -> None:
        past = rng.random() < 0.5 and nodes.revision > 1
        start = rng.randrange(1, nodes.revision + 3) if past else None
        watch = nodes.watch(prefix=f"k{rng.randrange(3)}" if rng.random() < 0.7 else "", start_revision=start)
        await watch.begin()
        starts[number] = start or watch._inbox.request.start_revision or watch.revision + 1
        got[number] = []
        watches[number] = watch
        readers.append(asyncio.create_task(read(number, watch)))

    for step in range(100):
        for _ in range(rng.randrange(4)):
            keys = [f"k{rng.randrange(3)}/{part}".encode() for part in range(rng.randrange(1, 7))]
            nodes.write(*[(key, None if rng.random() < 0.2 else b"v") for key in keys])
        if step % 10 == 0:
            await begin(step)
        node = rng.choice(nodes.nodes)
        node.lagging = rng.random() < 0.3
        if not node.lagging or rng.random() < 0.3:
            node.apply(rng.randrange(node.applied, nodes.revision + 1) if node.lagging else nodes.revision)
        if nodes.serving is not None and rng.random() < 0.25:
            stream = nodes.serving.stream
            stream.progress() if rng.random() < 0.4 else stream.break_off(rng.randrange(stream.waiting + 1))
        for _ in range(rng.randrange(20)):
            await asyncio.sleep(0)
    for node in nodes.nodes:
        node.lagging = False
        node.apply(nodes.revision)

    def expected(number: int) -> list[tuple[int, bytes, int]]:

        request = watches[number]._inbox.request
        return [
            (event.kv.mod_revision, event.kv.key, event.kind)
            for event in nodes.history
            if event.kv.mod_revision >= starts[number] and wanted(request, event)
        ]

    truth = {number: expected(number) for number in got}
    await until(lambda: all(len(got[number]) >= len(truth[number]) for number in got))
    for _ in range(50):
        await asyncio.sleep(0)
    for number, events in got.items():
        assert [(e.revision, e.key, int(e.kind == "delete")) for e in events] == truth[number]
    for watch in watches.values():
        await watch.close()
    await asyncio.gather(*readers)
    assert sum(len(node.streams) for node in nodes.nodes) > 5
    await nodes.close()
