"""Watches of a node whose state is replaced by a later one: they go on without a gap, or end as compacted."""

from __future__ import annotations

import copy

import pytest

from raftstate.machine.types import CompactTo
from tests.machine.rig import Rig, put
from tests.node.test_watches_behind import drain
from tests.node.watch_rig import SMALL, WatchRig, create, created, ends, poll, spec, told

pytestmark = pytest.mark.case(72)


def later_state(rig: WatchRig, changes: int, *, compacted: int = 0) -> Rig:
    """The state of another node, so many changes later, that has swept what it compacted."""
    other = copy.deepcopy(rig.machine_rig)
    for _ in range(changes):
        other.write(put(1, b"k", b"%d" % (other.machine.revision + 1)))
    if compacted:
        other.run(CompactTo(compacted))
        while other.machine.sweep_pending:
            with other.tables.write() as tables:
                other.machine.sweep(tables, 1_000)
    return other


def replace(rig: WatchRig, other: Rig) -> None:
    rig.machine_rig, rig.machine = other, other.machine
    rig.hub.state_replaced()


def values(first: int, last: int) -> list[tuple[int, bytes, bytes | None]]:
    return [(n, b"k", b"%d" % n) for n in range(first, last + 1)]


async def test_a_watch_that_is_up_to_date_is_told_all_that_the_new_state_has_come_to() -> None:
    rig = WatchRig(SMALL)
    stream = rig.hub.open()
    await created(stream, spec(1, b"k"))
    rig.put(b"k", b"2")
    rig.settle()
    replace(rig, later_state(rig, 30))
    assert drain(rig, stream) == {1: values(2, 32)}
    rig.put(b"k", b"33")
    rig.clock.advance(0.002)
    assert drain(rig, stream) == {1: values(33, 33)}


async def test_a_watch_goes_on_when_the_new_state_was_compacted_up_to_where_it_is() -> None:
    rig = WatchRig(SMALL)
    stream = rig.hub.open()
    await created(stream, spec(1, b"k"))
    for n in range(2, 6):
        rig.put(b"k", b"%d" % n)
    rig.settle()
    replace(rig, later_state(rig, 10, compacted=6))
    assert drain(rig, stream) == {1: values(2, 15)}


async def test_a_watch_ends_as_compacted_when_the_new_state_lacks_what_it_was_not_told() -> None:
    rig = WatchRig(SMALL)
    stream = rig.hub.open()
    await created(stream, spec(1, b"k"))
    await create(stream, spec(2, b"k", start=9))
    rig.put(b"k", b"2")
    rig.settle()
    poll(stream)
    replace(rig, later_state(rig, 10, compacted=7))
    news = poll(stream)
    assert ends(news) == [(1, "OutOfRangeError", 7)]
    assert told(news) == {}
    # One that wants nothing of what is gone is not concerned.
    assert drain(rig, stream) == {2: values(9, 12)}


async def test_what_was_applied_and_not_read_before_a_compacted_state_came_is_no_gap() -> None:
    rig = WatchRig(SMALL)
    stream = rig.hub.open()
    await created(stream, spec(1, b"k"))
    rig.settle()
    for n in range(2, 5):
        rig.put(b"k", b"%d" % n)  # no pass was made since
    replace(rig, later_state(rig, 5, compacted=8))
    rig.settle()
    news = poll(stream)
    assert told(news) == {}
    assert ends(news) == [(1, "OutOfRangeError", 8)]


async def test_those_behind_go_on_from_their_cursor_or_end_if_that_is_compacted() -> None:
    rig = WatchRig(SMALL)
    near, far = rig.hub.open(), rig.hub.open()
    for n in range(2, 40):
        rig.put(b"k", b"%d" % n)
    await created(far, spec(1, b"k", start=5))
    await created(near, spec(1, b"k", start=30))
    replace(rig, later_state(rig, 10, compacted=20))
    assert drain(rig, near) == {1: values(30, 49)}
    rig.settle()
    assert ends(poll(far)) == [(1, "OutOfRangeError", 20)]


async def test_a_slice_that_is_being_read_of_the_old_state_counts() -> None:
    rig = WatchRig(SMALL)
    stream = rig.hub.open()
    for n in range(2, 40):
        rig.put(b"k", b"%d" % n)
    await created(stream, spec(1, b"k", start=3))
    while not rig.jobs:
        rig.clock.advance(0.002)
    job, done = rig.jobs.popleft()
    result = job()
    replace(rig, later_state(rig, 3))
    done(result)
    assert drain(rig, stream) == {1: values(3, 42)}


async def test_a_slice_of_the_old_state_does_not_carry_a_watch_over_what_is_compacted() -> None:
    rig = WatchRig(SMALL)
    stream = rig.hub.open()
    for n in range(2, 40):
        rig.put(b"k", b"%d" % n)
    await created(stream, spec(1, b"k", start=3))
    while not rig.jobs:
        rig.clock.advance(0.002)
    job, done = rig.jobs.popleft()
    result = job()
    replace(rig, later_state(rig, 20, compacted=50))
    done(result)
    rig.settle()
    news = poll(stream)
    assert told(news) == {}
    assert ends(news) == [(1, "OutOfRangeError", 50)]
