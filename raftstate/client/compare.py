"""Compares: the conditions of a transaction.

raftstate.where("key").version == 0
raftstate.where(prefix="jobs/").lease != 0
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, cast

from raftstate.client import limits, requests
from raftstate.client.limits import BytesLike, HasId, Key
from raftstate.errors import InvalidArgumentError
from raftstate.pb.v1 import txn_pb2

_COMPARE_BYTES = 40
"""More than the wire adds to a compare's keys and value."""

_Attribute = Literal["version", "create_revision", "mod_revision", "lease"]

_EQUAL = txn_pb2.Compare.RESULT_EQUAL
_NOT_EQUAL = txn_pb2.Compare.RESULT_NOT_EQUAL
_GREATER = txn_pb2.Compare.RESULT_GREATER
_LESS = txn_pb2.Compare.RESULT_LESS
_SIGNS = {_EQUAL: "==", _NOT_EQUAL: "!=", _GREATER: ">", _LESS: "<"}


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition: `target` of the key, or of every key of [key, range_end), stands so to `operand`.

    It has no truth value of its own: whether it holds is found out when a transaction is committed.
    """

    key: bytes
    range_end: bytes
    target: Literal["version", "create_revision", "mod_revision", "lease", "value"]
    result: txn_pb2.Compare.Result
    operand: int | bytes

    @property
    def size_bytes(self) -> int:
        """At least what it takes on the wire."""
        operand_bytes = len(self.operand) if isinstance(self.operand, bytes) else 0
        return len(self.key) + len(self.range_end) + operand_bytes + _COMPARE_BYTES

    def fill(self, compare: txn_pb2.Compare) -> None:
        """Write it into a compare of the wire."""
        compare.result = self.result
        compare.key = self.key
        compare.range_end = self.range_end
        setattr(compare, self.target, self.operand)

    def __bool__(self) -> bool:
        raise InvalidArgumentError(
            f"the compare of {self.key!r:.80} ({self.target} {_SIGNS[self.result]} {self.operand!r:.80}) has"
            " no truth value; give it to txn().when(), each compare on its own: no `and`, `or`, `not`, or"
            " a < b < c",
            field="compares",
        )


def where(key: Key | None = None, *, range_end: Key | None = None, prefix: Key | None = None) -> Subject:
    """Begin a compare: of a key, or of all keys of an interval or with a prefix.

    A key that is not there has version, revisions and lease 0, and no value: a compare of its value never
    holds. A compare of many keys holds if it holds for each of them; if there are none, they count as one
    that is not there.

    Args:
        key: the key, or the first one of an interval.
        range_end: all keys of [key, range_end).
        prefix: all keys that begin with it ("": every key); not beside the others.

    Returns:
        What its attributes can be compared by, with ==, !=, < and >.

    Raises:
        InvalidArgumentError: a key is not within its limits, or the arguments don't go together.
    """
    return Subject(*requests.interval_to_compare(key, range_end, prefix))


class Subject:
    """The keys of a compare; see `where`. Each attribute makes a `Compare` of it and a number, or bytes."""

    __slots__ = ("_key", "_range_end")

    def __init__(self, key: bytes, range_end: bytes) -> None:
        self._key = key
        self._range_end = range_end

    @property
    def version(self) -> Number:
        """1 at creation, and one more with each put."""
        return Number(self._key, self._range_end, "version")

    @property
    def create_revision(self) -> Number:
        """The revision that created the key."""
        return Number(self._key, self._range_end, "create_revision")

    @property
    def mod_revision(self) -> Number:
        """The revision that changed the key last."""
        return Number(self._key, self._range_end, "mod_revision")

    @property
    def lease(self) -> Number:
        """The lease that the key is attached to: its id, or its handle; 0: none."""
        return Number(self._key, self._range_end, "lease")

    @property
    def value(self) -> Value:
        """The value; compared as bytes."""
        return Value(self._key, self._range_end)

    def exists(self) -> Compare:
        """Return the compare that the key is there; of many: that there is one."""
        return self.version > 0

    def missing(self) -> Compare:
        """Return the compare that the key is not there; of many: that there is none."""
        return self.version == 0


class Number:
    """A number of a key; ==, !=, <, >, <= and >= with a number make a `Compare`."""

    __slots__ = ("_attribute", "_key", "_range_end")

    def __init__(self, key: bytes, range_end: bytes, attribute: _Attribute) -> None:
        self._key = key
        self._range_end = range_end
        self._attribute: _Attribute = attribute

    def __eq__(self, number: int | HasId) -> Compare:  # type: ignore[override]
        return self._compare(_EQUAL, number)

    def __ne__(self, number: int | HasId) -> Compare:  # type: ignore[override]
        return self._compare(_NOT_EQUAL, number)

    def __gt__(self, number: int | HasId) -> Compare:
        return self._compare(_GREATER, number)

    def __lt__(self, number: int | HasId) -> Compare:
        return self._compare(_LESS, number)

    def __ge__(self, number: int | HasId) -> Compare:
        compare = self._compare(_GREATER, number)
        least = cast(int, compare.operand)
        if not least:
            raise InvalidArgumentError(f"{self._attribute} >= 0 always holds", field="compares")
        return replace(compare, operand=least - 1)

    def __le__(self, number: int | HasId) -> Compare:
        compare = self._compare(_LESS, number)
        most = cast(int, compare.operand)
        if most == limits.COUNT_MAX:
            raise InvalidArgumentError(f"{self._attribute} <= {most} always holds", field="compares")
        return replace(compare, operand=most + 1)

    __hash__ = None  # type: ignore[assignment]  # it is equal to nothing

    def _compare(self, result: txn_pb2.Compare.Result, number: int | HasId) -> Compare:
        if self._attribute == "lease":
            number = limits.lease_id(number)
        else:
            number = limits.check_count(number, self._attribute, 0, limits.COUNT_MAX)  # type: ignore[arg-type]
        return Compare(self._key, self._range_end, self._attribute, result, number)


class Value:
    """The value of a key; ==, !=, < and > with bytes make a `Compare`."""

    __slots__ = ("_key", "_range_end")

    def __init__(self, key: bytes, range_end: bytes) -> None:
        self._key = key
        self._range_end = range_end

    def __eq__(self, value: BytesLike) -> Compare:  # type: ignore[override]
        return self._compare(_EQUAL, value)

    def __ne__(self, value: BytesLike) -> Compare:  # type: ignore[override]
        return self._compare(_NOT_EQUAL, value)

    def __gt__(self, value: BytesLike) -> Compare:
        return self._compare(_GREATER, value)

    def __lt__(self, value: BytesLike) -> Compare:
        return self._compare(_LESS, value)

    __hash__ = None  # type: ignore[assignment]  # it is equal to nothing

    def _compare(self, result: txn_pb2.Compare.Result, value: BytesLike) -> Compare:
        return Compare(self._key, self._range_end, "value", result, limits.encode_value(value))
