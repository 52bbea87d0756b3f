"""Reads the rows of an LMDB file without LMDB, as one of its meta pages describes them.

For those who must not change a file, nor be killed by it: LMDB opens what its newest meta page says, which
after a crash is not the checkpoint, and it believes the pages. Here the file is mapped for reading, any meta
page can be the one to go by, and what does not fit is a `DataLossError`. It is some ten times slower than
LMDB.

May live here: lookups and scans. Whether the pages are sound as a whole `page_check` says.
"""

from __future__ import annotations

import mmap
import os
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raftstate.errors import DataLossError
from raftstate.machine.tables import Table
from raftstate.store.files import disk_failure
from raftstate.store.meta_page import MetaPage, TreeRecord
from raftstate.store.transactions import table_name

_HEADER = struct.Struct("=QHHHH")
_NODE = struct.Struct("=HHHH")
_NUMBER = struct.Struct("=Q")
_TREE = struct.Struct("=IHHQQQQQ")
_NO_PAGE = (1 << 64) - 1
_BRANCH, _LEAF = 0x01, 0x02
_NODE_BIG_DATA = 0x01


class PageTree:
    """The rows of one tree, in order of key."""

    def __init__(self, content: mmap.mmap, page_bytes: int, tree: TreeRecord) -> None:
        self._content = content
        self._page_bytes = page_bytes
        self._tree = tree

    @property
    def count(self) -> int:
        """How many rows the tree's record says it has."""
        return self._tree.entries

    def get(self, key: bytes) -> bytes | None:
        """Return the value under `key`, or None. Raises `DataLossError`."""
        for found, value in self.scan(key):
            return value if found == key else None
        return None

    def scan(self, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) from `start` on. Raises `DataLossError`."""
        if self._tree.root == _NO_PAGE:
            return
        try:
            yield from self._from(self._tree.root, 1, start)
        except (struct.error, IndexError) as error:
            raise DataLossError(f"the pages do not hold together: {error}") from error

    def _from(self, page: int, depth: int, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        offset = page * self._page_bytes
        number, _, flags, lower, upper = _HEADER.unpack_from(self._content, offset)
        if number != page or not _HEADER.size <= lower <= upper <= self._page_bytes:
            raise DataLossError(f"page {page} says that it is page {number}")
        nodes = struct.unpack_from(f"={(lower - _HEADER.size) // 2}H", self._content, offset + _HEADER.size)
        if flags == _LEAF and depth == self._tree.depth:
            for node in nodes[bisect_left(nodes, start, key=lambda node: self._key(offset + node)) :]:
                yield self._row(offset + node)
        elif flags == _BRANCH and depth < self._tree.depth:
            # The first child has no key: it holds all that is before the second.
            first = bisect_right(nodes, start, lo=1, key=lambda node: self._key(offset + node)) - 1
            for position in range(first, len(nodes)):
                low, high, top, _ = _NODE.unpack_from(self._content, offset + nodes[position])
                child = low | high << 16 | top << 32
                yield from self._from(child, depth + 1, start if position == first else b"")
        else:
            raise DataLossError(f"page {page} has flags {flags:#x} at depth {depth}")

    def _key(self, at: int) -> bytes:
        key_bytes = _NODE.unpack_from(self._content, at)[3]
        return self._content[at + _NODE.size : at + _NODE.size + key_bytes]

    def _row(self, at: int) -> tuple[bytes, bytes]:
        low, high, flags, key_bytes = _NODE.unpack_from(self._content, at)
        size = low | high << 16
        data_at = at + _NODE.size + key_bytes
        key = self._content[at + _NODE.size : data_at]
        if flags == _NODE_BIG_DATA:
            (page,) = _NUMBER.unpack_from(self._content, data_at)
            data_at = page * self._page_bytes + _HEADER.size
        value = self._content[data_at : data_at + size]
        if len(value) != size:
            raise DataLossError(f"the value of key {key!r} is cut off")
        return key, value


class PageTables:
    """`machine.tables.ReadTables` over the named trees of a meta page."""

    def __init__(self, content: mmap.mmap, meta: MetaPage) -> None:
        records = dict(PageTree(content, meta.page_bytes, meta.main).scan())
        self._trees: dict[Table, PageTree] = {}
        for table in Table:
            record = records.get(table_name(table), b"")
            if len(record) != _TREE.size:
                raise DataLossError(f"the record of table {table.name} is missing")
            self._trees[table] = PageTree(content, meta.page_bytes, TreeRecord(*_TREE.unpack(record)))

    def get(self, table: Table, key: bytes) -> bytes | None:
        """See `ReadTables.get`."""
        return self._trees[table].get(key)

    def scan(
        self, table: Table, start: bytes = b"", end: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """See `ReadTables.scan`."""
        for row in self._trees[table].scan(start):
            if end is not None and row[0] >= end:
                return
            yield row

    def count(self, table: Table) -> int:
        """See `ReadTables.count`."""
        return self._trees[table].count


@contextmanager
def mapped(data_file: Path) -> Iterator[mmap.mmap]:
    """Map a file for reading.

    Raises:
        DataLossError: it is missing or empty.
        StorageError: it can't be read.
    """
    try:
        descriptor = os.open(data_file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise DataLossError(f"{data_file} is missing") from error
    except ValueError as error:
        raise DataLossError(f"{data_file} is empty") from error
    except OSError as error:
        raise disk_failure("reading an LMDB file", data_file, error) from error
    with content:
        yield content
