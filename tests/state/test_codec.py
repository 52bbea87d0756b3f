from __future__ import annotations

import dataclasses
import enum
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgpack  # type: ignore[import-untyped]
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftstate.errors import DataLossError, InvalidArgumentError
from raftstate.state import codec

KEYS = st.text(max_size=4) | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=4)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
# `fold` means nothing in UTC, and is not kept there.
TIMED = st.datetimes() | st.datetimes().map(lambda at: at.replace(tzinfo=UTC, fold=0)) | st.uuids()


class Color(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Step:
    at: datetime
    id: UUID
    raw: bytes
    color: Color
    seen: set[int]
    price: Decimal
    day: date
    parts: list[Step]


class Job(msgspec.Struct):
    name: str
    step: Step
    none: None = None


@given(PLAIN)
def test_json_like_data_and_bytes_come_back_as_they_were(state: Any) -> None:
    assert codec.decode(codec.encode(state)) == state


@given(PLAIN)
def test_another_messagepack_reads_the_same(state: Any) -> None:
    assert msgpack.unpackb(codec.encode(state), strict_map_key=False) == state


@given(st.lists(TIMED) | st.dictionaries(st.text(), st.lists(TIMED)))
def test_datetimes_and_uuids_come_back_with_their_types(state: Any) -> None:
    loaded = codec.decode(codec.encode(state))
    assert loaded == state
    assert repr(loaded) == repr(state)


def test_an_aware_datetime_comes_back_as_the_same_instant_in_utc() -> None:
    at = datetime(2024, 5, 1, 12, tzinfo=timezone(timedelta(hours=5)))
    loaded = codec.decode(codec.encode(at))
    assert (loaded, loaded.tzinfo) == (at, UTC)


def test_a_tuple_comes_back_as_a_list() -> None:
    assert codec.decode(codec.encode({"a": (1, (UUID(int=1),))})) == {"a": [1, [UUID(int=1)]]}


def test_records_come_back_as_dicts_or_as_themselves() -> None:
    inner = Step(
        datetime(2024, 1, 1), UUID(int=7), b"\x00", Color.RED, {2, 1}, Decimal("1.50"), date(2024, 1, 2), []
    )
    job = Job("j", dataclasses.replace(inner, parts=[inner]))
    raw = codec.encode(job)
    assert codec.decode(raw, Job) == job
    plain = codec.decode(raw)["step"]["parts"][0]
    assert plain == {
        "at": datetime(2024, 1, 1),
        "id": UUID(int=7),
        "raw": b"\x00",
        "color": "red",
        "seen": [1, 2],
        "price": "1.50",
        "day": "2024-01-02",
        "parts": [],
    }


def test_a_state_of_another_type_than_asked_for_is_said() -> None:
    with pytest.raises(InvalidArgumentError, match=r"is not a .*Job.*: Expected `object`, got `int`"):
        codec.decode(codec.encode(1), Job)


def test_the_same_state_gives_the_same_bytes() -> None:
    assert (
        codec.encode({"a": 1, "b": [1, 2]})
        == codec.encode({"a": 1, "b": [1, 2]})
        == b"\x82\xa1a\x01\xa1b\x92\x01\x02"
    )


class Plain:
    pass


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"a": [1, {"b": {1, 2}}]},
            r"can't save state\['a'\]\[1\]\['b'\]: it is a builtins.set; save a sorted list",
        ),
        ([Plain()], r"can't save state\[0\]: it is a .*Plain; convert it to a dict, list or str"),
        ({"x": bytearray(b"a")}, r"can't save state\['x'\]: it is a builtins.bytearray; save bytes"),
        ({"x": Color.RED}, r"can't save state\['x'\]: it is a .*Color"),
        ({"x": Decimal(1)}, r"can't save state\['x'\]: it is a decimal.Decimal"),
        ({(1, 2): 1}, "it has keys of type tuple; str, int and bytes are allowed"),
        ({True: 1}, "it has keys of type bool"),
        (2**64, "can't save state: can't serialize ints"),
        ({"a": [1, 2**64]}, r"can't save state\['a'\]\[1\]: can't serialize ints .*convert it to a str"),
        ("\ud800", "not valid Unicode"),
        ([{"k": "\ud800"}], r"can't save state\[0\]\['k'\]: .* is not valid Unicode"),
        (Job, r"can't save state: it is a "),
    ],
)
def test_what_would_not_come_back_is_refused_when_it_is_saved(state: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        codec.encode(state)


def test_a_record_that_holds_an_unknown_type_is_refused() -> None:
    @dataclasses.dataclass
    class Holder:
        inner: Any

    with pytest.raises(InvalidArgumentError, match=r"can't save state\[0\] \(a .*Holder\).*Plain"):
        codec.encode([Holder(Plain())])


def test_a_state_that_holds_itself_is_refused() -> None:
    state: list[Any] = [1, "x"]
    state.append(state)
    with pytest.raises(InvalidArgumentError, match="nested too deeply, or holds itself"):
        codec.encode(state)


@pytest.mark.parametrize("raw", [b"", b"\xc1", b"\x92\x01", b"\xd4\x63\x00", b"\xd4\x02\x00"])
def test_damaged_bytes_are_never_a_state(raw: bytes) -> None:
    with pytest.raises(DataLossError, match="not readable"):
        codec.decode(raw)
