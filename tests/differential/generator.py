"""Programs from a seed: few keys, few values, few leases, so that operations meet each other's traces.

A program is made of segments. Each has its own mood: which operations are frequent, how many of the keys it
uses, whether it compacts. So some let histories grow long, and others are all transactions and leases.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import get_args

from raftstate.machine.types import covers
from tests.differential.operations import (
    TO_THE_END,
    Collect,
    Compact,
    Compare,
    Delete,
    Grant,
    Leases,
    Number,
    Operation,
    Order,
    Put,
    Range,
    Reference,
    Renew,
    Result,
    Revoke,
    SortTarget,
    Target,
    TimeToLive,
    Txn,
    Watch,
)

_STEMS = (b"a", b"jobs/", b"\x00", b"\xff", "ключ".encode())
_TAILS = (
    b"",
    b"\x00",
    b"\x00\x00",
    b"\x00\xff",
    b"a",
    b"a/b",
    b"aa",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\xff\xff",
    b"z" * 100,
)
KEYS = tuple(sorted(stem + tail for stem in _STEMS for tail in _TAILS))
VALUES = (b"", b"a", b"b", b"aa", b"\x00", b"\xff", b"\x00" * 40, bytes(range(256)), b"v" * 5_000)
LEASES = (1, 2, 3, 42, 127, 128, 1 << 31, 1 << 40, (1 << 62) + 5, (1 << 63) - 1)
TTLS_S = (5_000, 40_000, 86_400)
"""Too long to matter while a program runs."""

SEGMENT_OPERATIONS = (60, 400)
DUMP_EVERY = 2_500
"""Operations between two looks at everything there is."""
_OPERATIONS_OF_A_BRANCH_MAX = 5


def program(seed: int) -> Iterator[Operation]:
    """Yield the operations of a program without end. The same seed gives the same."""
    chance = random.Random(seed)
    yielded, dumps = 0, 0
    while True:
        for operation in _Segment(chance).operations():
            yield operation
            yielded += 1
        if yielded >= (dumps + 1) * DUMP_EVERY:
            dumps += 1
            yield from everything()


def everything() -> Iterator[Operation]:
    """Yield reads of all that a store holds: its pairs, its leases with their keys, its whole history."""
    yield Range(b"\x00", TO_THE_END)
    yield Leases()
    yield from (TimeToLive(lease) for lease in LEASES)
    yield Watch("all", b"\x00", TO_THE_END, start=Reference("compacted"), prev_kv=True)
    yield Collect("all")


def clearing() -> Iterator[Operation]:
    """Yield what leaves a store without pairs and leases."""
    yield Delete(b"\x00", TO_THE_END)
    yield from (Revoke(lease) for lease in LEASES)


class _Segment:
    """The operations of one segment, drawn from `chance`."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._keys = chance.sample(KEYS, chance.choice((2, 5, 15, 30, 60)))
        usual: list[tuple[Callable[[], Operation], float]] = [
            (self._put, 30),
            (self._delete, 8),
            (self._range, 25),
            (self._txn, 25),
            (self._compact, 0.7),
            (self._grant, 3),
            (lambda: Revoke(self._lease()), 3),
            (lambda: Renew(self._lease()), 1),
            (lambda: TimeToLive(self._lease(), keys=chance.random() < 0.9), 3),
            (Leases, 0.5),
        ]
        self._makers = [maker for maker, _ in usual]
        self._weights = [weight * chance.choice((0, 0.3, 1, 1, 3)) for _, weight in usual]
        if not any(self._weights):
            self._weights[0] = 1

    def operations(self) -> Iterator[Operation]:
        live = [self._live_watch(f"live {number}") for number in range(self._chance.randrange(3))]
        yield from live
        for _ in range(self._chance.randint(*SEGMENT_OPERATIONS)):
            yield self._chance.choices(self._makers, self._weights)[0]()
        # Opened before any is collected: etcd begins to send what is past every 100 ms only.
        replays = [self._replay(f"replay {number}") for number in range(self._chance.randrange(1, 4))]
        yield from replays
        yield from (Collect(watch.name) for watch in (*live, *replays))

    # ---- requests

    def _put(self) -> Put:
        lease = self._lease() if self._one_in(4) else 0
        key = b"" if self._one_in(300) else self._key()
        return Put(key, self._value(), lease, prev_kv=self._one_in(3))

    def _delete(self) -> Delete:
        return Delete(*self._interval(0.7), prev_kv=self._one_in(2))

    def _range(self) -> Range:
        order, target = self._sort()
        return Range(
            *self._interval(0.3),
            limit=self._chance.choice((0, 0, 0, 1, 2, 3, 10, 1_000)),
            revision=self._revision(),
            keys_only=self._one_in(5),
            count_only=self._one_in(8),
            order=order,
            target=target,
        )

    def _txn(self) -> Txn:
        return Txn(
            tuple(self._compare() for _ in range(self._chance.choice((0, 1, 1, 1, 2, 2, 3)))),
            self._branch(),
            self._branch(),
        )

    def _branch(self) -> tuple[Put | Delete | Range, ...]:
        makers = (self._put, self._put, self._delete, self._range)
        size = self._chance.randrange(_OPERATIONS_OF_A_BRANCH_MAX + 1)
        branch = [self._chance.choice(makers)() for _ in range(size)]
        # Mostly a branch that is not refused for writing a key twice.
        may_clash = self._one_in(12)
        kept: list[Put | Delete | Range] = []
        for operation in branch:
            if not any(
                _judged_otherwise(operation, other) or (not may_clash and _clash(operation, other))
                for other in kept
            ):
                kept.append(operation)
        return tuple(kept)

    def _compare(self) -> Compare:
        target: Target = self._chance.choice(get_args(Target))
        result: Result = self._chance.choice(get_args(Result))
        key, range_end = self._interval(0.85)
        operand: Number | bytes
        if target == "value":
            operand = self._value()
        elif target == "lease":
            operand = self._chance.choice((0, 0, self._lease()))
        else:
            base = {"version": "version", "create_revision": "created", "mod_revision": "modified"}[target]
            # Near what it was last seen to be, so that equality is not a rarity.
            seen = Reference(base, self._chance.choice((0, 0, 0, -1, 1, 2)), key)
            operand = self._chance.choice(
                (0, 1, seen, seen, seen, Reference("now", -self._chance.randrange(4)))
            )
        return Compare(key, target, result, operand, range_end)

    def _compact(self) -> Compact:
        return Compact(
            self._chance.choice(
                (
                    Reference("between", self._chance.randrange(1_001)),
                    Reference("between", self._chance.randrange(1_001)),
                    Reference("now", -self._chance.randrange(20)),
                    Reference("now"),
                    Reference("now", self._chance.randrange(1, 4)),
                    Reference("compacted", self._chance.randrange(-2, 3)),
                )
            )
        )

    def _grant(self) -> Grant:
        return Grant(self._lease(), self._chance.choice(TTLS_S))

    # ---- watches

    def _live_watch(self, name: str) -> Watch:
        # Without the pairs before: etcd reads them when it sends an event, and a compaction may come between.
        start = self._chance.choice((0, Reference("now", 1), Reference("now", 2)))
        return self._watch(name, start, prev_kv=False)

    def _replay(self, name: str) -> Watch:
        start = self._chance.choice(
            (
                Reference("between", self._chance.randrange(1_001)),
                Reference("now", -self._chance.randrange(100)),
                Reference("compacted", self._chance.randrange(-2, 3)),
            )
        )
        return self._watch(name, start, prev_kv=self._one_in(2))

    def _watch(self, name: str, start: Number, *, prev_kv: bool) -> Watch:
        key, range_end = self._interval(0.3, odd=False)
        filtered = self._chance.choice(("", "", "", "puts", "deletes"))
        return Watch(
            name, key, range_end, start, prev_kv, no_put=filtered == "puts", no_delete=filtered == "deletes"
        )

    # ---- parts

    def _one_in(self, number: int) -> bool:
        return self._chance.randrange(number) == 0

    def _key(self) -> bytes:
        return self._chance.choice(self._keys)

    def _value(self) -> bytes:
        return self._chance.choice(VALUES)

    def _lease(self) -> int:
        return self._chance.choice(LEASES)

    def _interval(self, single: float, *, odd: bool = True) -> tuple[bytes, bytes]:
        """Return (key, range_end): of one key with probability `single`; if `odd`, also what is refused or
        empty."""
        if odd and self._one_in(200):
            return b"", self._chance.choice((b"", TO_THE_END))
        if self._chance.random() < single:
            return self._key(), b""
        key, other = sorted((self._key(), self._chance.choice(KEYS)))
        kinds = ["prefix", "prefix", "prefix", "between", "between", "tail", "all"]
        match self._chance.choice([*kinds, "inverted"] if odd else kinds):
            case "prefix":
                prefix = key[: self._chance.randint(1, min(len(key), 8))]
                return prefix, end_of_prefix(prefix)
            case "between" if key < other:
                return key, other
            case "all":
                return b"\x00", TO_THE_END
            case "inverted":
                return other, key
            case _:
                return key, TO_THE_END

    def _revision(self) -> Number:
        return self._chance.choice(
            (
                0,
                0,
                0,
                0,
                Reference("between", self._chance.randrange(1_001)),
                Reference("now", -self._chance.randrange(50)),
                Reference("compacted", self._chance.randrange(-2, 3)),
                Reference("now", self._chance.randrange(-1, 3)),
            )
        )

    def _sort(self) -> tuple[Order, SortTarget]:
        if self._one_in(2):
            return "none", "key"
        # What no order by another target than the key means is each store's own.
        return self._chance.choice(("ascend", "descend")), self._chance.choice(get_args(SortTarget))


def end_of_prefix(prefix: bytes) -> bytes:
    """Return the range_end that stands for all keys that begin with `prefix`."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else TO_THE_END


def _clash(one: Put | Delete | Range, other: Put | Delete | Range) -> bool:
    """Return whether a transaction with both in one branch may be refused for writing a key twice."""
    if isinstance(one, Put) and isinstance(other, Put):
        return one.key == other.key
    for put, delete in ((one, other), (other, one)):
        if isinstance(put, Put) and isinstance(delete, Delete):
            start, end = covers(delete.key, delete.range_end)
            if start <= put.key and (end is None or put.key < end):
                return True
    return False


def _judged_otherwise(one: Put | Delete | Range, other: Put | Delete | Range) -> bool:
    """Return whether the stores may disagree on whether both write a key twice.

    etcd 3.4 takes a range_end of one zero byte for the key of this name when it looks for clashes. So it
    doesn't notice that a delete of all keys from the first one on covers a put of any but this first one; and
    it sees a clash of a put with a delete that covers nothing, but begins with its key.
    """
    for put, delete in ((one, other), (other, one)):
        if isinstance(put, Put) and isinstance(delete, Delete) and delete.range_end:
            return delete.range_end <= delete.key <= put.key
    return False
