from __future__ import annotations

import asyncio

import pytest

from raftstate.errors import (
    ClosedError,
    DataLossError,
    InvalidArgumentError,
    NoLeaderError,
    ResourceExhaustedError,
    StorageError,
)
from raftstate.machine.layout import change_key
from raftstate.machine.tables import Table
from raftstate.machine.types import KeyValue
from raftstate.node.service import WatchEnd, WatchEvent
from raftstate.node.watch_memory import WatchLimits
from tests.machine.rig import put
from tests.node.watch_rig import SMALL, WatchRig, create, created, ends, poll, says, spec, told


async def test_a_watch_is_told_of_its_changes_once_they_are_applied_and_of_no_others() -> None:
    rig = WatchRig()
    rig.put(b"a", b"before")
    stream = rig.hub.open()
    await create(stream, spec(7, b"a"))
    assert says(poll(stream)) == {
        "revision": 2,
        "applied_index": rig.machine.applied_index,
        "created": [(7, 3)],
    }
    rig.put(b"a", b"1")
    rig.put(b"b", b"2")
    rig.delete(b"a")
    assert poll(stream) is None, "nothing is read within the turn that applied it"
    rig.clock.turn()
    put_and_delete = [
        WatchEvent(False, KeyValue(b"a", b"1", 2, 3, 2)),
        WatchEvent(True, KeyValue(b"a", b"", 0, 5, 0)),
    ]
    assert says(poll(stream)) == {
        "revision": 5,
        "applied_index": rig.machine.applied_index,
        "events": [((7,), put_and_delete)],
    }
    rig.settle()
    assert poll(stream) is None


async def test_what_is_applied_in_one_turn_or_soon_after_is_read_in_one_pass() -> None:
    rig = WatchRig()
    stream = rig.hub.open()
    await created(stream, spec(1, b"k"))
    rig.settle()
    reads = rig.reads
    for _ in range(10):
        rig.put(b"k")
    rig.clock.turn()
    assert rig.reads == reads + 1
    for _ in range(10):
        rig.put(b"k")
        rig.clock.turn()
    assert rig.reads == reads + 1, "the next pass comes 2 ms later"
    rig.clock.advance(0.002)
    assert rig.reads == reads + 2
    assert len(told(poll(stream))[1]) == 20


async def test_nothing_is_read_while_nobody_watches() -> None:
    rig = WatchRig()
    rig.put(b"k")
    rig.clock.advance(1)
    assert rig.reads == 0


async def test_watches_of_one_stream_that_want_the_same_share_their_events() -> None:
    rig = WatchRig()
    first, second = rig.hub.open(), rig.hub.open()
    await created(first, spec(1, b"a/", prefix=True), spec(2, b"a/", prefix=True), spec(3, b"a/x"))
    await created(second, spec(1, b"a/", prefix=True))
    rig.put(b"a/x")
    rig.put(b"a/y")
    rig.settle()
    news, other = poll(first), poll(second)
    assert news is not None
    assert other is not None
    assert {ids: len(events) for ids, events in news.events} == {(1, 2): 2, (3,): 1}
    everywhere = [event for _, events in [*news.events, *other.events] for event in events]
    assert len({id(event) for event in everywhere}) == 2, "and what streams are told is in memory once"


async def test_one_that_joins_others_is_not_told_what_they_wait_for() -> None:
    rig = WatchRig()
    stream = rig.hub.open()
    await created(stream, spec(1, b"k"))
    rig.put(b"k", b"1")
    rig.settle()
    await create(stream, spec(2, b"k"))
    rig.put(b"k", b"2")
    rig.settle()
    news = poll(stream)
    assert news is not None
    assert news.created == [(2, 3)]
    assert told(news) == {1: [(2, b"k", b"1"), (3, b"k", b"2")], 2: [(3, b"k", b"2")]}
    rig.put(b"k", b"3")
    rig.settle()
    news = poll(stream)
    assert news is not None
    assert [ids for ids, _ in news.events] == [(1, 2)], "from here on they are one group"


async def test_kinds_can_be_left_out() -> None:
    rig = WatchRig()
    stream = rig.hub.open()
    await created(
        stream,
        spec(1, b"k", no_put=True),
        spec(2, b"k", no_delete=True),
        spec(3, b"k", no_put=True, no_delete=True),
    )
    rig.put(b"k")
    rig.delete(b"k")
    rig.settle()
    assert told(poll(stream)) == {1: [(3, b"k", None)], 2: [(2, b"k", b"v")]}


async def test_the_previous_pair_comes_with_the_event_if_wanted_unless_it_is_compacted() -> None:
    rig = WatchRig()
    rig.put(b"k", b"1")
    rig.put(b"k", b"2")
    rig.delete(b"k")
    rig.put(b"k", b"3")
    rig.compact(3)
    stream = rig.hub.open()
    await create(stream, spec(1, b"k", start=3, prev_kv=True))
    rig.settle()
    news = poll(stream)
    assert news is not None
    [(_, events)] = news.events
    assert [(event.kv.mod_revision, event.prev_kv) for event in events] == [
        (3, None),
        (4, KeyValue(b"k", b"2", 2, 3, 2)),
        (5, None),
    ]


async def test_the_events_of_one_revision_come_in_its_order() -> None:
    rig = WatchRig()
    rig.write(*(put(n, b"k%d" % n) for n in range(1, 10)))
    stream = rig.hub.open()
    await created(stream, spec(1, b"k", prefix=True))
    rig.delete(b"k", b"l")
    rig.settle()
    assert told(poll(stream)) == {1: [(11, b"k%d" % n, None) for n in range(1, 10)]}


# -- where a watch begins


async def test_one_without_a_revision_begins_after_what_a_confirmation_says_is_applied() -> None:
    rig = WatchRig()
    stream = rig.hub.open()
    rig.on_confirm = lambda: [rig.put(b"k", b"arrived meanwhile"), None][1]
    await create(stream, spec(1, b"k"))
    assert rig.confirmed == [1.5]
    rig.put(b"k", b"after")
    rig.settle()
    news = poll(stream)
    assert news is not None
    assert news.created == [(1, 3)]
    assert told(news) == {1: [(3, b"k", b"after")]}


async def test_one_that_can_not_be_confirmed_ends_with_the_reason() -> None:
    rig = WatchRig()
    stream = rig.hub.open()
    rig.confirm_failure = NoLeaderError("nobody leads")
    await create(stream, spec(1, b"k"))
    assert says(poll(stream))["ended"] == [WatchEnd(1, rig.confirm_failure)]
    rig.confirm_failure = asyncio.CancelledError()
    with pytest.raises(asyncio.CancelledError):
        await create(stream, spec(1, b"k"))
    assert poll(stream) is None
    assert rig.hub.watch_count == 0


async def test_one_from_the_past_is_told_what_it_missed_and_then_what_comes() -> None:
    rig = WatchRig()
    for n in range(2, 8):
        rig.put(b"k", b"%d" % n)
    stream = rig.hub.open()
    await create(stream, spec(1, b"k", start=4))
    assert rig.confirmed == []
    rig.put(b"k", b"8")
    rig.settle()
    news = poll(stream)
    assert news is not None
    assert news.created == [(1, 4)]
    assert told(news) == {1: [(n, b"k", b"%d" % n) for n in range(4, 9)]}
    rig.put(b"k", b"9")
    rig.settle()
    assert told(poll(stream)) == {1: [(9, b"k", b"9")]}


async def test_one_from_the_future_waits_for_it() -> None:
    rig = WatchRig()
    stream = rig.hub.open()
    await created(stream, spec(1, b"k", start=4, progress_notify=True), spec(2, b"k", progress_notify=True))
    rig.put(b"k", b"2")
    rig.settle()
    assert told(poll(stream)) == {2: [(2, b"k", b"2")]}
    rig.clock.advance(6)
    news = poll(stream)
    assert news is not None
    assert news.progress == [2]
    for value in (b"3", b"4", b"5"):
        rig.put(b"k", value)
    rig.settle()
    got = told(poll(stream))
    assert got[1] == [(4, b"k", b"4"), (5, b"k", b"5")]
    assert [revision for revision, _, _ in got[2]] == [3, 4, 5]


@pytest.mark.parametrize("start", [1, 2])
async def test_one_from_the_first_revision_is_told_everything(start: int) -> None:
    rig = WatchRig()
    rig.put(b"k")
    stream = rig.hub.open()
    await create(stream, spec(1, b"k", start=start))
    rig.settle()
    assert told(poll(stream)) == {1: [(2, b"k", b"v")]}


async def test_one_from_before_the_compacted_revision_ends_and_names_the_first_that_is_valid() -> None:
    rig = WatchRig()
    for _ in range(6):
        rig.put(b"k")
    rig.compact(5)
    rig.sweep()
    stream = rig.hub.open()
    await create(stream, spec(1, b"k", start=4))
    await create(stream, spec(2, b"k", start=5))
    rig.settle()
    news = poll(stream)
    assert news is not None
    assert news.created == [(2, 5)]
    assert ends(news) == [(1, "OutOfRangeError", 5)]
    assert "4" in str(news.ended[0].error)
    assert [revision for revision, _, _ in told(news)[2]] == [5, 6, 7]


# -- ends


async def test_a_cancelled_watch_is_told_so_and_nothing_else() -> None:
    rig = WatchRig()
    stream = rig.hub.open()
    await created(stream, spec(1, b"k"), spec(2, b"k"))
    rig.put(b"k")
    rig.settle()
    stream.cancel(1)
    stream.cancel(99)
    news = poll(stream)
    assert told(news) == {2: [(2, b"k", b"v")]}
    assert ends(news) == [(1, "NoneType", 0)]
    stream.cancel(1)
    stream.cancel(2)
    rig.put(b"k")
    rig.settle()
    assert ends(poll(stream)) == [(2, "NoneType", 0)]
    assert rig.hub.watch_count == 0


async def test_one_cancelled_while_its_beginning_is_confirmed_never_begins() -> None:
    rig = WatchRig()
    stream = rig.hub.open()
    rig.on_confirm = lambda: stream.cancel(1)
    await create(stream, spec(1, b"k"))
    rig.put(b"k")
    rig.settle()
    news = poll(stream)
    assert (told(news), ends(news)) == ({}, [(1, "NoneType", 0)])
    assert not says(news).get("created")


async def test_an_id_is_free_again_once_the_end_of_its_watch_was_told() -> None:
    rig = WatchRig()
    stream = rig.hub.open()
    await created(stream, spec(1, b"k"))
    with pytest.raises(InvalidArgumentError, match="watch 1") as caught:
        await create(stream, spec(1, b"other"))
    assert caught.value.field == "watch_id"
    stream.cancel(1)
    with pytest.raises(InvalidArgumentError):
        await create(stream, spec(1, b"other"))
    poll(stream)
    await created(stream, spec(1, b"other"))
    rig.put(b"other")
    rig.settle()
    assert told(poll(stream)) == {1: [(2, b"other", b"v")]}


async def test_limits_of_watches_and_streams_are_kept() -> None:
    rig = WatchRig(WatchLimits(watches=2, streams=1))
    stream = rig.hub.open()
    with pytest.raises(ResourceExhaustedError, match="1 streams"):
        rig.hub.open()
    await created(stream, spec(1, b"k"), spec(2, b"k"))
    with pytest.raises(ResourceExhaustedError, match="2 watches"):
        await create(stream, spec(3, b"k"))
    stream.cancel(1)
    with pytest.raises(ResourceExhaustedError):
        await create(stream, spec(3, b"k"))
    poll(stream)
    await created(stream, spec(3, b"k"))
    stream.close()
    stream.close()
    assert (rig.hub.watch_count, rig.hub.stream_count) == (0, 0)
    await created(rig.hub.open(), spec(1, b"k"), spec(2, b"k"))


async def test_a_stop_of_the_node_wakes_those_who_wait() -> None:
    rig = WatchRig()
    stream = rig.hub.open()
    await created(stream, spec(1, b"k"))
    waiting = asyncio.ensure_future(stream.next())
    await asyncio.sleep(0)
    rig.hub.close()
    with pytest.raises(ClosedError):
        await waiting
    with pytest.raises(ClosedError):
        await create(stream, spec(2, b"k"))
    with pytest.raises(ClosedError):
        rig.hub.open()
    rig.put(b"k")
    rig.settle()


async def test_whoever_waits_is_woken_by_news() -> None:
    rig = WatchRig()
    stream = rig.hub.open()
    await created(stream, spec(1, b"k"))
    waiting = asyncio.ensure_future(stream.next())
    await asyncio.sleep(0)
    rig.put(b"k")
    rig.settle()
    assert told(await waiting) == {1: [(2, b"k", b"v")]}


# -- progress


async def test_a_progress_note_comes_after_5_s_without_an_event_and_only_if_wanted() -> None:
    rig = WatchRig()
    stream = rig.hub.open()
    await created(stream, spec(1, b"k", progress_notify=True), spec(2, b"k"))
    rig.clock.advance(3)
    rig.put(b"k")
    rig.clock.advance(0.1)
    poll(stream)
    rig.put(b"other")
    rig.clock.advance(4.5)
    assert poll(stream) is None
    rig.clock.advance(1)
    assert says(poll(stream)) == {
        "revision": 3,
        "applied_index": rig.machine.applied_index,
        "progress": [1],
    }
    rig.clock.advance(4.5)
    assert poll(stream) is None
    rig.clock.advance(1)
    assert poll(stream) is not None


async def test_progress_on_request_names_watches_that_are_up_to_date_and_no_others() -> None:
    rig = WatchRig(SMALL)
    for _ in range(30):
        rig.put(b"a")
    stream = rig.hub.open()
    await created(stream, spec(1, b"b"), spec(2, b"a", start=2), spec(3, b"b", start=100))
    stream.request_progress()
    news = poll(stream)
    assert news is not None
    assert (news.progress, news.revision) == ([1], 31)
    rig.settle()
    got = told(poll(stream))
    while True:
        rig.settle()
        news = poll(stream)
        if news is None:
            break
        got[2] += told(news)[2]
    stream.request_progress()
    news = poll(stream)
    assert news is not None
    assert sorted(news.progress) == [1, 2]
    assert [revision for revision, _, _ in got[2]] == list(range(2, 32))


async def test_progress_is_not_claimed_for_what_was_applied_but_not_read_yet() -> None:
    rig = WatchRig()
    stream = rig.hub.open()
    await created(stream, spec(1, b"k"))
    rig.put(b"k")
    stream.request_progress()
    news = poll(stream)
    assert news is not None
    assert (news.revision, news.progress, news.events) == (1, [1], [])
    rig.settle()
    assert told(poll(stream)) == {1: [(2, b"k", b"v")]}


# -- damage and failures


async def test_a_damaged_change_ends_the_watches_that_would_pass_it_and_the_node_goes_on() -> None:
    rig = WatchRig()
    stream = rig.hub.open()
    await created(stream, spec(1, b"k"), spec(2, b"other"), spec(3, b"k", start=5))
    rig.put(b"k", b"2")
    rig.put(b"k", b"3")
    damage(rig, 3)
    rig.settle()
    news = poll(stream)
    assert told(news) == {1: [(2, b"k", b"2")]}
    assert ends(news) == [(1, "DataLossError", 0), (2, "DataLossError", 0)]
    await created(stream, spec(1, b"k"))
    rig.put(b"k", b"4")
    rig.put(b"k", b"5")
    rig.settle()
    assert told(poll(stream)) == {1: [(4, b"k", b"4"), (5, b"k", b"5")], 3: [(5, b"k", b"5")]}
    await create(stream, spec(4, b"k", start=2))
    await create(stream, spec(5, b"k", start=4))
    rig.settle()
    news = poll(stream)
    assert told(news) == {4: [(2, b"k", b"2")], 5: [(4, b"k", b"4"), (5, b"k", b"5")]}
    assert ends(news) == [(4, "DataLossError", 0)]


async def test_a_missing_change_is_damage_too() -> None:
    rig = WatchRig()
    stream = rig.hub.open()
    await created(stream, spec(1, b"k"))
    for revision in (2, 3, 4):
        rig.put(b"k")
        if revision != 3:
            rig.machine_rig.tables.delete(Table.CHANGES, change_key(revision, 0))
    await create(stream, spec(2, b"k", start=2))
    rig.settle()
    assert ends(poll(stream)) == [(1, "DataLossError", 0), (2, "DataLossError", 0)]
    await create(stream, spec(3, b"k", start=3))
    rig.settle()
    news = poll(stream)
    assert told(news) == {3: [(3, b"k", b"v")]}
    assert ends(news) == [(3, "DataLossError", 0)], "the last one is missed too"


async def test_damage_within_a_revision_ends_all_that_it_may_concern() -> None:
    rig = WatchRig()
    rig.write(put(1, b"a"), put(2, b"b"))
    stream = rig.hub.open()
    await created(stream, spec(1, b"a"), spec(2, b"a", start=5), spec(3, b"a", start=6))
    rig.delete(b"a", b"c")
    rig.put(b"a")
    rig.put(b"a")
    row = rig.machine_rig.tables.get(Table.CHANGES, change_key(4, 1))
    assert row is not None
    rig.machine_rig.tables.put(Table.CHANGES, change_key(4, 1), row[:-1] + b"?")
    rig.settle()
    news = poll(stream)
    assert told(news) == {1: [(4, b"a", None)], 3: [(6, b"a", b"v")]}
    assert ends(news) == [(1, "DataLossError", 0), (2, "DataLossError", 0)], "5.0 may be what is damaged"


async def test_a_damaged_previous_pair_ends_those_who_want_it_and_no_others() -> None:
    rig = WatchRig()
    rig.put(b"k", b"2")
    stream = rig.hub.open()
    await created(stream, spec(1, b"k"), spec(2, b"k", prev_kv=True))
    rig.put(b"k", b"3")
    damage(rig, 2)
    rig.settle()
    news = poll(stream)
    assert told(news) == {1: [(3, b"k", b"3")]}
    assert ends(news) == [(2, "DataLossError", 0)]


async def test_a_watch_waits_while_no_reader_slot_is_free() -> None:
    rig = WatchRig(SMALL)
    for n in range(30):
        rig.put(b"k", b"%d" % n)
    stream = rig.hub.open()
    await created(stream, spec(1, b"k"), spec(2, b"k", start=2))
    rig.put(b"k")
    rig.read_failure = ResourceExhaustedError("no slot")
    for _ in range(10):
        rig.clock.advance(0.1)
        if rig.jobs:
            rig.run_job()
    assert poll(stream) is None
    await create(stream, spec(3, b"k", start=2))
    assert ends(poll(stream)) == [(3, "ResourceExhaustedError", 0)]
    rig.read_failure = None
    rig.clock.advance(0.1)
    rig.settle()
    got = told(poll(stream))
    assert got[1] == [(32, b"k", b"v")]
    assert got[2][0] == (2, b"k", b"0")


async def test_a_state_that_can_not_be_read_ends_all_watches() -> None:
    rig = WatchRig(SMALL)
    stream = rig.hub.open()
    await created(stream, spec(1, b"k"))
    rig.put(b"k")
    rig.read_failure = StorageError("the disk")
    rig.settle()
    assert ends(poll(stream)) == [(1, "StorageError", 0)]
    rig.read_failure = None
    for _ in range(30):
        rig.put(b"k")
    await created(stream, spec(2, b"k", start=2))
    rig.clock.advance(0.01)
    rig.read_failure = StorageError("the disk")
    rig.run_job()
    assert ends(poll(stream)) == [(2, "StorageError", 0)]


def damage(rig: WatchRig, revision: int) -> None:
    row_key = change_key(revision, 0)
    row = rig.machine_rig.tables.get(Table.CHANGES, row_key)
    assert row is not None
    rig.machine_rig.tables.put(Table.CHANGES, row_key, row[:-1] + bytes([row[-1] ^ 1]))


# -- watches that begin later


async def test_watches_that_begin_later_do_not_slow_down_those_that_have_begun() -> None:
    rig = WatchRig()
    future, stream = rig.hub.open(), rig.hub.open()
    for watch_id in range(1, 3_001):
        await create(future, spec(watch_id, b"hot", start=1_000_000 + watch_id))
    await created(stream, spec(1, b"last"))
    rig.write(*[put(serial, b"hot") for serial in range(1, 250)], put(250, b"last"))
    rig.clock.turn()
    assert told(poll(stream)) == {1: [(251, b"last", b"v")]}


async def test_watches_begin_at_their_revision_whoever_else_there_is() -> None:
    rig = WatchRig()
    stream = rig.hub.open()
    starts = {1: 5, 2: 9, 3: 6, 4: 9, 5: 40, 6: 7}
    for watch_id, start in starts.items():
        await create(stream, spec(watch_id, b"k", start=start))
    stream.cancel(6)
    for _ in range(20):
        rig.put(b"k")
    rig.settle()
    got = {watch_id: [at for at, _, _ in events] for watch_id, events in told(poll(stream)).items()}
    assert got == {watch_id: list(range(starts[watch_id], 22)) for watch_id in (1, 2, 3, 4)}


async def test_what_a_watch_begins_with_is_not_swept_before_it_was_read() -> None:
    rig = WatchRig()
    await create(rig.hub.open(), spec(1, b"k", start=5))
    for _ in range(10):
        rig.put(b"k")
    assert not rig.hub.needs_before(5)
    assert rig.hub.needs_before(6)
    rig.settle()
    assert not rig.hub.needs_before(6)


async def test_a_state_that_can_not_be_trusted_closes_all_streams_and_opens_none_until_it_can() -> None:
    rig = WatchRig()
    rig.put(b"a", b"1")
    stream = rig.hub.open()
    await created(stream, spec(1, b"a"))
    rig.put(b"a", b"wrong")
    rig.settle()
    rig.hub.withhold(DataLossError("it shows nothing"))
    with pytest.raises(ClosedError):
        await stream.next()
    with pytest.raises(ClosedError, match="it shows nothing"):
        rig.hub.open()
    assert rig.hub.watch_count == 0
    rig.hub.show()
    stream = rig.hub.open()
    await created(stream, spec(1, b"a"))
    rig.put(b"a", b"2")
    rig.settle()
    assert says(poll(stream))["events"] == [((1,), [WatchEvent(False, KeyValue(b"a", b"2", 2, 4, 3))])]
