"""Reads at the latest revision."""

from __future__ import annotations

import pytest

from raftstate.machine.reader import RangePage
from raftstate.machine.types import KEY_BYTES_MAX, PAIR_OVERHEAD_BYTES_MAX, KeyValue, covers
from raftstate.pb.v1 import common_pb2
from tests.machine.rig import Rig, put


def pair(n: int, value: bytes = b"value") -> KeyValue:
    return KeyValue(b"k%d" % n, value, n + 1, n + 1, 1)


def filled() -> Rig:
    rig = Rig()
    rig.write(*(put(n, b"k%d" % n, b"value") for n in range(1, 6)))
    return rig


def test_a_reader_knows_where_in_the_history_it_stands() -> None:
    rig = filled()
    reader = rig.reader
    assert (reader.revision, reader.applied_index) == (6, 1)
    assert (reader.get(b"k3"), reader.get(b"k")) == (pair(3), None)


@pytest.mark.parametrize(
    ("key", "range_end", "numbers"),
    [
        (b"k2", b"", [2]),
        (b"k2", b"k4", [2, 3]),
        (b"k4", b"\x00", [4, 5]),
        (b"\x00", b"\x00", [1, 2, 3, 4, 5]),
        (b"k", b"l", [1, 2, 3, 4, 5]),
        (b"k4", b"k2", []),
        (b"k2", b"k2", []),
        (b"x", b"", []),
    ],
)
def test_a_range_is_what_etcd_means_by_it(key: bytes, range_end: bytes, numbers: list[int]) -> None:
    found = filled().reader.range(*covers(key, range_end))
    assert found == RangePage([pair(n) for n in numbers], False, len(numbers))


def test_a_limit_leaves_out_pairs_but_counts_them() -> None:
    reader = filled().reader
    assert reader.range(b"k", b"l", limit=2) == RangePage([pair(1), pair(2)], True, 5)
    assert reader.range(b"k", b"l", limit=5) == RangePage([pair(n) for n in range(1, 6)], False, 5)


def test_keys_only_leaves_values_out_and_count_only_the_pairs() -> None:
    reader = filled().reader
    assert reader.range(b"k4", b"l", keys_only=True) == RangePage([pair(4, b""), pair(5, b"")], False, 2)
    assert reader.range(b"k", b"l", count_only=True, limit=1) == RangePage([], False, 5)


def test_a_reply_stops_before_its_size_limit_but_gives_one_pair() -> None:
    reader = filled().reader
    size = len(b"k1") + len(b"value") + PAIR_OVERHEAD_BYTES_MAX
    assert reader.range(b"k", b"l", bytes_max=3 * size) == RangePage([pair(1), pair(2), pair(3)], True, 5)
    assert reader.range(b"k", b"l", bytes_max=3 * size - 1) == RangePage([pair(1), pair(2)], True, 5)
    assert reader.range(b"k", b"l", bytes_max=1) == RangePage([pair(1)], True, 5)
    assert reader.range(b"k5", b"l", bytes_max=1) == RangePage([pair(5)], False, 1)


def test_no_pair_takes_more_in_a_reply_than_is_reckoned() -> None:
    biggest = (1 << 64) - 1
    key, value = b"k" * KEY_BYTES_MAX, b"." * (8 << 20)
    message = common_pb2.KeyValue(
        key=key,
        value=value,
        create_revision=biggest,
        mod_revision=biggest,
        version=biggest,
        lease=biggest,
    )
    framing_bytes = 6  # its own tag and length
    assert message.ByteSize() + framing_bytes <= len(key) + len(value) + PAIR_OVERHEAD_BYTES_MAX


def test_a_page_may_begin_right_after_the_longest_key() -> None:
    rig = Rig()
    longest = b"k" * KEY_BYTES_MAX
    rig.write(put(1, longest), put(2, b"l"))
    assert [found.key for found in rig.reader.range(longest + b"\x00", None).kvs] == [b"l"]
    assert [found.key for found in rig.reader.range(longest[:-1] + b"j" * 100, None).kvs] == [longest, b"l"]
