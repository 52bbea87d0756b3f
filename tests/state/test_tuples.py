from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftstate.errors import InvalidArgumentError
from raftstate.state.tuples import pack, prefix_range, unpack

INT64 = st.integers(min_value=-(2**64) + 1, max_value=2**64 - 1)
# Short alphabets make prefixes, zero bytes and equal elements likely.
SCALARS = (
    st.none()
    | st.binary(max_size=3)
    | st.text("\0a\xff\U0001f600", max_size=3)
    | INT64
    | st.integers(-300, 300)
)
TUPLES = st.recursive(
    st.lists(SCALARS, max_size=3).map(tuple),
    lambda inner: st.lists(SCALARS | inner, max_size=3).map(tuple),
    max_leaves=8,
)
RANK: dict[type, int] = {type(None): 0, bytes: 1, str: 2, int: 3, tuple: 4}


def before(left: Any, right: Any) -> bool:
    """The order that the encoding must have, said in the dumbest way."""
    if type(left) is not type(right):
        return RANK[type(left)] < RANK[type(right)]
    if not isinstance(left, tuple):
        return left is not None and left < right
    for one, other in zip(left, right, strict=False):
        if one != other:
            return before(one, other)
    return len(left) < len(right)


@given(TUPLES)
def test_unpacking_gives_back_the_tuple(elements: tuple[Any, ...]) -> None:
    assert unpack(pack(elements)) == elements


@given(TUPLES, TUPLES)
def test_packed_bytes_sort_as_the_tuples(left: tuple[Any, ...], right: tuple[Any, ...]) -> None:
    assert (pack(left) < pack(right)) == before(left, right)


@given(TUPLES, TUPLES)
def test_a_prefix_range_holds_the_extensions_and_nothing_else(
    prefix: tuple[Any, ...], other: tuple[Any, ...]
) -> None:
    start, end = prefix_range(prefix)
    extends = len(other) > len(prefix) and other[: len(prefix)] == prefix
    assert (start <= pack(other) < end) == extends
    assert start <= pack((*prefix, None)) < end


@given(st.binary(max_size=12))
def test_bytes_either_unpack_to_what_packs_to_them_or_are_refused(key: bytes) -> None:
    try:
        elements = unpack(key)
    except InvalidArgumentError:
        return
    assert pack(elements) == key


@pytest.mark.parametrize(
    ("elements", "encoding"),
    [
        ((), ""),
        ((None,), "05"),
        ((b"a\x00b",), "066100ff6200"),
        (("é",), "07c3a900"),
        ((0, 1, -1, 255, 256, -256), "20 2101 1ffe 21ff 220100 1efeff"),
        (((None, ()), 2**64 - 1), "3005300000 28ffffffffffffffff"),
    ],
)
def test_the_encoding_is_a_disk_format(elements: tuple[Any, ...], encoding: str) -> None:
    assert pack(elements).hex() == encoding.replace(" ", "")


@pytest.mark.parametrize(
    ("element", "message"),
    [
        (1.5, "can't hold a float"),
        (True, "can't hold a bool"),
        (2**64, "over 64"),
        ("\ud800", "not valid Unicode"),
    ],
)
def test_what_a_key_cannot_hold_is_refused(element: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        pack((element,))


@pytest.mark.parametrize("key", ["06", "0661", "07ff00", "3005", "2200ff", "21", "ff", "1fff"])
def test_malformed_keys_are_refused(key: str) -> None:
    with pytest.raises(InvalidArgumentError, match="malformed"):
        unpack(bytes.fromhex(key))
