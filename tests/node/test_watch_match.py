from __future__ import annotations

import random

import pytest

from raftstate.node.watch_match import Intervals, _Tree, prefix_end


@pytest.mark.parametrize(
    ("prefix", "end"),
    [
        (b"a", b"b"),
        (b"a\xff", b"b"),
        (b"a\x00", b"a\x01"),
        (b"\xff", None),
        (b"\xfe\xff\xff", b"\xff"),
        (b"", None),
    ],
)
def test_the_end_of_a_prefix_is_the_first_key_after_all_that_have_it(
    prefix: bytes, end: bytes | None
) -> None:
    assert prefix_end(prefix) == end


@pytest.mark.parametrize("seed", range(6))
def test_intervals_find_what_a_look_at_all_of_them_finds(seed: int) -> None:
    rng = random.Random(seed)
    letters = [b"\x00", b"a", b"b", b"\xff"]

    def key(least: int) -> bytes:
        return b"".join(rng.choices(letters, k=rng.randint(least, 4)))

    def interval() -> tuple[bytes, bytes | None]:
        start = key(0)
        kind = rng.randrange(4)
        if kind == 0:
            return start, start + b"\x00"
        if kind == 1:
            return start, prefix_end(start)
        return start, None if kind == 2 and not rng.randrange(4) else key(1)

    intervals: Intervals[int] = Intervals()
    there: dict[int, tuple[bytes, bytes | None]] = {}
    for item in range(900):
        if there and rng.random() < (0.2 if item < 500 else 0.8):
            gone = rng.choice(list(there))
            intervals.remove(*there.pop(gone), gone)
        else:
            there[item] = interval()
            intervals.add(*there[item], item)
        if item % 10 == 0:
            assert len(intervals) == len(there)
            for _ in range(5):
                wanted = key(1)
                expected = [
                    each
                    for each, (start, end) in there.items()
                    if start <= wanted and (end is None or wanted < end)
                ]
                assert sorted(intervals.find(wanted)) == expected


def test_intervals_that_lost_all_items_hold_nothing() -> None:
    intervals: Intervals[int] = Intervals()
    kinds = [(b"k", b"k\x00"), (b"k", b"l"), (b"a", b"z"), (b"", None)]
    for item in range(300):
        for start, end in kinds:
            intervals.add(start, end, item)
    for item in range(300):
        for start, end in kinds:
            intervals.remove(start, end, item)
    assert len(intervals) == 0
    assert intervals.find(b"k") == []
    assert (intervals._keys, intervals._prefixes) == ({}, {})
    assert (intervals._ranges._items, intervals._ranges._trees) == ({}, [])
    assert not intervals._ranges.used


def test_many_ranges_are_sorted_into_trees_a_few_times_each(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    build = _Tree.__init__

    def counted(self: _Tree[int], ranges: list[tuple[bytes, bytes, dict[int, None]]]) -> None:
        built.append(len(ranges))
        build(self, ranges)

    monkeypatch.setattr(_Tree, "__init__", counted)
    intervals: Intervals[int] = Intervals()
    for item in range(10_000):
        intervals.add(b"%05d" % item, b"%05d" % (item + 2), item)
    assert sum(built) < 10_000 * 10
    assert len(intervals._ranges._trees) < 10
    assert sorted(intervals.find(b"05000")) == [4_999, 5_000]
