"""Gets and ranges at a revision, and in an order."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftstate.errors import DataLossError, OutOfRangeError, ResourceExhaustedError
from raftstate.machine import reader as reader_module
from raftstate.machine.layout import change_key
from raftstate.machine.reader import RangePage, Reader, Sort, SortTarget
from raftstate.machine.tables import Table
from raftstate.machine.types import PAIR_OVERHEAD_BYTES_MAX, KeyValue
from tests.machine.chronicle import AWKWARD_KEYS, Chronicle
from tests.machine.rig import Rig, batch, put


def history() -> Chronicle:
    chronicle = Chronicle()
    chronicle.put(b"a", b"3")  # 2
    chronicle.put(b"b", b"1", 2)  # 3, 4: "1", "1."
    chronicle.put(b"c", b"2")  # 5
    chronicle.delete(b"a")  # 6
    chronicle.put(b"d", b"2")  # 7
    chronicle.put(b"c", b"0")  # 8
    return chronicle


def keys_of(page: RangePage) -> list[bytes]:
    return [pair.key for pair in page.kvs]


def test_a_get_at_a_revision_is_what_was_there() -> None:
    chronicle = history()
    reader = chronicle.rig.reader
    for revision in range(1, 9):
        for key in (b"a", b"b", b"c", b"d", b"e"):
            assert reader.get(key, revision=revision) == chronicle.as_of(revision).get(key)
    assert reader.get(b"c", revision=0) == reader.get(b"c", revision=8) == reader.get(b"c")


def test_a_range_at_a_revision_counts_and_limits_what_was_there() -> None:
    reader = history().rig.reader
    a, b = KeyValue(b"a", b"3", 2, 2, 1), KeyValue(b"b", b"1.", 3, 4, 2)
    assert reader.range(b"a", None, revision=5, limit=2) == RangePage([a, b], True, 3)
    assert reader.range(b"a", b"c", revision=5, limit=2) == RangePage([a, b], False, 2)
    assert reader.range(b"a", None, revision=5, count_only=True, limit=1) == RangePage([], False, 3)
    assert reader.range(b"a", b"b", revision=5, keys_only=True).kvs == [KeyValue(b"a", b"", 2, 2, 1)]
    assert reader.range(b"a", None, revision=1) == RangePage([], False, 0)
    size = len(b"a3") + PAIR_OVERHEAD_BYTES_MAX
    assert reader.range(b"a", None, revision=5, bytes_max=2 * size) == RangePage([a], True, 3)


@pytest.mark.parametrize(("revision", "what"), [(4, "is compacted"), (9, "lies in the future")])
def test_a_revision_that_cannot_be_read_is_refused_with_those_that_can(revision: int, what: str) -> None:
    chronicle = history()
    chronicle.compact(5)
    reader = chronicle.rig.reader
    assert reader.compacted_revision == 5
    assert keys_of(reader.range(b"a", None, revision=5)) == [b"a", b"b", b"c"]
    for read in (
        lambda: reader.get(b"a", revision=revision),
        lambda: reader.range(b"a", None, revision=revision, count_only=True),
    ):
        with pytest.raises(OutOfRangeError, match=f"revision {revision} {what}; valid are 5 to 8") as caught:
            read()
        assert caught.value.field == "revision"
        assert caught.value.detail == {"compacted_revision": 5, "revision": 8}


# -- orders


@pytest.mark.parametrize(
    ("target", "ascending", "descending"),
    [
        (SortTarget.KEY, [b"b", b"c", b"d"], [b"d", b"c", b"b"]),
        (SortTarget.VERSION, [b"d", b"b", b"c"], [b"b", b"c", b"d"]),  # b and c have 2
        (SortTarget.CREATE_REVISION, [b"b", b"c", b"d"], [b"d", b"c", b"b"]),
        (SortTarget.MOD_REVISION, [b"b", b"d", b"c"], [b"c", b"d", b"b"]),
        (SortTarget.VALUE, [b"c", b"b", b"d"], [b"d", b"b", b"c"]),
    ],
)
def test_a_range_is_sorted_before_it_is_limited(
    target: SortTarget, ascending: list[bytes], descending: list[bytes]
) -> None:
    reader = history().rig.reader
    for is_descending, expected in ((False, ascending), (True, descending)):
        sort = Sort(target, is_descending)
        assert keys_of(reader.range(b"a", None, sort=sort)) == expected
        page = reader.range(b"a", None, sort=sort, limit=2)
        assert (keys_of(page), page.more, page.count) == (expected[:2], True, 3)
        page = reader.range(b"a", None, sort=sort, bytes_max=1)
        assert (keys_of(page), page.more, page.count) == (expected[:1], True, 3)
        assert reader.range(b"a", None, sort=sort, count_only=True) == RangePage([], False, 3)


def test_an_order_by_value_needs_no_values_in_the_reply() -> None:
    reader = history().rig.reader
    page = reader.range(b"a", None, sort=Sort(SortTarget.VALUE, descending=True), keys_only=True, revision=5)
    assert [(pair.key, pair.value) for pair in page.kvs] == [(b"a", b""), (b"c", b""), (b"b", b"")]


def test_a_sort_of_too_many_keys_is_refused_but_not_by_ascending_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader = history().rig.reader
    monkeypatch.setattr(reader_module, "SORT_KEYS_MAX", 3)
    by_version, by_key = Sort(SortTarget.VERSION, False), Sort(SortTarget.KEY, False)
    assert len(reader.range(b"a", None, sort=by_version).kvs) == 3
    monkeypatch.setattr(reader_module, "SORT_KEYS_MAX", 2)
    with pytest.raises(ResourceExhaustedError, match="may hold 2 keys, this one holds more") as caught:
        reader.range(b"a", None, sort=by_version, limit=1)
    assert caught.value.field == "sort_target"
    assert len(reader.range(b"a", None, sort=by_key).kvs) == 3
    assert reader.range(b"a", None, sort=by_version, count_only=True).count == 3


def test_a_sort_by_values_that_are_too_much_to_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = history().rig.reader
    monkeypatch.setattr(reader_module, "SORT_VALUES_BYTES_MAX", 4)  # "1.", "0", "2"
    assert len(reader.range(b"a", None, sort=Sort(SortTarget.VALUE, False)).kvs) == 3
    monkeypatch.setattr(reader_module, "SORT_VALUES_BYTES_MAX", 3)
    with pytest.raises(ResourceExhaustedError, match="may have 3 bytes, these have more"):
        reader.range(b"a", None, sort=Sort(SortTarget.VALUE, False), limit=1)
    assert len(reader.range(b"a", None, sort=Sort(SortTarget.VERSION, False)).kvs) == 3


def test_only_the_values_of_a_sorted_reply_are_read() -> None:
    chronicle = history()
    chronicle.rig.tables.delete(Table.CHANGES, change_key(4, 0))  # of b
    page = chronicle.rig.reader.range(b"a", None, sort=Sort(SortTarget.MOD_REVISION, True), limit=2)
    assert keys_of(page) == [b"c", b"d"]


# -- all together

keys = st.sampled_from(AWKWARD_KEYS)
steps = st.one_of(
    st.tuples(st.just("put"), keys, st.binary(max_size=2), st.sampled_from([1, 1, 2, 17])),
    st.tuples(st.just("delete"), keys, st.just(b"") | keys),
)
FIELDS = {
    SortTarget.KEY: "key",
    SortTarget.VERSION: "version",
    SortTarget.CREATE_REVISION: "create_revision",
    SortTarget.MOD_REVISION: "mod_revision",
    SortTarget.VALUE: "value",
}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(steps, max_size=15),
    st.lists(keys, min_size=2, max_size=2),
    st.integers(0, 4),
    st.builds(Sort, st.sampled_from(SortTarget), st.booleans()) | st.none(),
    st.booleans(),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_random_ranges_are_those_of_a_list(
    program: list[tuple],  # type: ignore[type-arg]
    bounds: list[bytes],
    limit: int,
    sort: Sort | None,
    keys_only: bool,
    of_compacted: float,
    of_past: float,
) -> None:
    chronicle = Chronicle()
    for kind, *values in program:
        getattr(chronicle, kind)(*values)
    compacted = 1 + round(of_compacted * (chronicle.revision - 1))
    chronicle.compact(compacted)
    chronicle.sweep(7)
    revision = compacted + round(of_past * (chronicle.revision - compacted))
    start, end = sorted(bounds)
    inside = [pair for key, pair in chronicle.as_of(revision).items() if start <= key < end]
    wanted = inside
    if sort is not None:
        wanted = sorted(inside, key=lambda pair: getattr(pair, FIELDS[sort.target]), reverse=sort.descending)
    wanted = wanted[: limit or None]
    if keys_only:
        wanted = [
            KeyValue(pair.key, b"", pair.create_revision, pair.mod_revision, pair.version) for pair in wanted
        ]
    assert chronicle.rig.reader.range(
        start, end, revision=revision, limit=limit, sort=sort, keys_only=keys_only
    ) == RangePage(wanted, len(wanted) < len(inside), len(inside))


@pytest.mark.parametrize(
    ("limit", "keys", "more"), [(0, 5, False), (2, 2, True), (5, 5, False), (9, 5, False)]
)
def test_a_page_without_a_count_looks_no_further_than_itself(limit: int, keys: int, more: bool) -> None:
    rig = Rig()
    rig.run(batch(*(put(number, b"k%d" % number) for number in range(5))))
    page = Reader(rig.tables).range(b"k", b"l", limit=limit, skip_count=True)
    assert (len(page.kvs), page.more, page.count) == (keys, more, 0)


def test_a_page_without_a_count_does_not_read_what_comes_after_it() -> None:
    rig = Rig()
    rig.run(batch(*(put(number, b"k%d" % number) for number in range(5))))
    with rig.tables.write() as tables:
        tables.put(Table.INDEX, b"k4", b"damaged")
    assert Reader(rig.tables).range(b"k", b"l", limit=2, skip_count=True).more
    with pytest.raises(DataLossError):
        Reader(rig.tables).range(b"k", b"l", limit=2)
