"""Which of many intervals of keys hold a key: the question that is asked once for each change.

Single keys and prefixes, which is what nearly all watches are of, are looked up in dicts: one look for the
key, and one for each length of prefix that is there. Other ranges stand in trees over their ends, each
larger than all after it: those that were added since the last was built are looked through one by one, until
they make a tree, together with those that are no larger.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

from raftstate.machine.types import KEY_BYTES_MAX

T = TypeVar("T")

_NO_END = b"\xff" * (KEY_BYTES_MAX + 1)
"""After every key."""
_RECENT_MAX = 64
"""Ranges that are looked through one by one: about as long as a look-up in the tree takes."""


def prefix_end(prefix: bytes) -> bytes | None:
    """Return the first key after all that begin with `prefix`; None: there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem else None


class Intervals(Generic[T]):
    """Items, each with an interval start <= key < end (None: no end). An item may have several."""

    def __init__(self, items: Iterable[tuple[bytes, bytes | None, T]] = ()) -> None:
        self._count = 0
        self._keys: dict[bytes, dict[T, None]] = {}
        self._prefixes: dict[int, dict[bytes, dict[T, None]]] = {}
        """By the prefix's length."""
        self._ranges: _Ranges[T] = _Ranges()
        for start, end, item in items:
            self.add(start, end, item)

    def __len__(self) -> int:
        return self._count

    def add(self, start: bytes, end: bytes | None, item: T) -> None:
        """Add an item that does not have this interval yet."""
        self._count += 1
        if end == start + b"\x00":
            self._keys.setdefault(start, {})[item] = None
        elif start and end == prefix_end(start):
            self._prefixes.setdefault(len(start), {}).setdefault(start, {})[item] = None
        else:
            self._ranges.add(start, end, item)

    def remove(self, start: bytes, end: bytes | None, item: T) -> None:
        """Remove an item that has this interval."""
        self._count -= 1
        if end == start + b"\x00":
            _remove(self._keys, start, item)
        elif start and end == prefix_end(start):
            of_length = self._prefixes[len(start)]
            _remove(of_length, start, item)
            if not of_length:
                del self._prefixes[len(start)]
        else:
            self._ranges.remove(start, end, item)

    def find(self, key: bytes) -> list[T]:
        """Return the items whose interval holds `key`, in no particular order."""
        found = list(self._keys.get(key, ()))
        for length, of_length in self._prefixes.items():
            items = of_length.get(key[:length])
            if items is not None:
                found += items
        if self._ranges.used:
            self._ranges.find(key, found)
        return found


def _remove(items_by_key: dict[bytes, dict[T, None]], key: bytes, item: T) -> None:
    items = items_by_key[key]
    del items[item]
    if not items:
        del items_by_key[key]


_Range = tuple[bytes, bytes, dict[T, None]]
"""An interval, and its items."""


class _Tree(Generic[T]):
    """Intervals that do not change.

    It is an array: node n has the children 2n and 2n + 1, the leaves are the intervals in order of start.
    Each node knows the least start and the greatest end below it.
    """

    def __init__(self, ranges: list[_Range[T]]) -> None:
        self.ranges = sorted(ranges, key=lambda each: each[:2])
        size = 1 << (len(ranges) - 1).bit_length()
        rest = size - len(ranges)
        self._starts = [b""] * size + [start for start, _, _ in self.ranges] + [_NO_END] * rest
        self._ends = [b""] * size + [end for _, end, _ in self.ranges] + [b""] * rest
        for node in range(size - 1, 0, -1):
            self._starts[node] = min(self._starts[2 * node], self._starts[2 * node + 1])
            self._ends[node] = max(self._ends[2 * node], self._ends[2 * node + 1])

    def find(self, key: bytes, found: list[T]) -> None:
        size = len(self._starts) // 2
        nodes = [1]
        while nodes:
            node = nodes.pop()
            if self._starts[node] <= key < self._ends[node]:
                if node >= size:
                    found += self.ranges[node - size][2]
                else:
                    nodes += (2 * node, 2 * node + 1)


class _Ranges(Generic[T]):
    """Intervals of any kind."""

    def __init__(self) -> None:
        self._items: dict[tuple[bytes, bytes], dict[T, None]] = {}
        self._recent: list[_Range[T]] = []
        self._trees: list[_Tree[T]] = []
        """The largest first."""
        self._emptied = 0
        """Intervals that lost their last item since all was built anew: they stand there still."""
        self.used = False

    def add(self, start: bytes, end: bytes | None, item: T) -> None:
        interval = (start, _NO_END if end is None else end)
        items = self._items.get(interval)
        if items is None:
            items = self._items[interval] = {}
            self._recent.append((*interval, items))
        items[item] = None
        self.used = True
        if len(self._recent) > _RECENT_MAX:
            ranges, self._recent = self._recent, []
            while self._trees and len(self._trees[-1].ranges) <= len(ranges):
                ranges += self._trees.pop().ranges
            self._trees.append(_Tree(ranges))

    def remove(self, start: bytes, end: bytes | None, item: T) -> None:
        interval = (start, _NO_END if end is None else end)
        items = self._items[interval]
        del items[item]
        if not items:
            del self._items[interval]
            self._emptied += 1
            if self._emptied > max(_RECENT_MAX, len(self._items)) or not self._items:
                self._build()

    def find(self, key: bytes, found: list[T]) -> None:
        for start, end, items in self._recent:
            if start <= key < end:
                found += items
        for tree in self._trees:
            tree.find(key, found)

    def _build(self) -> None:
        """Build all anew, without what was emptied."""
        ranges = [(start, end, items) for (start, end), items in self._items.items()]
        self._trees = [_Tree(ranges)] if ranges else []
        self._recent = []
        self._emptied = 0
        self.used = bool(ranges)
