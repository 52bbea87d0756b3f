"""Walks the pages of an LMDB file as one of its meta pages describes them, before LMDB is let near it; or
beside it, as long as a read transaction keeps it from those pages.

LMDB believes its pages. A wrong root, a wrong last page or a file that was cut off makes it read another
tree, reuse pages that are in use, or die of a signal. The walk follows both trees from their roots and says
whether

- every page lies within the file and the last page, carries its own number and the kind it must have, and is
  reached once;
- the nodes of a leaf lie side by side, without gap or overlap, as their sizes say: LMDB moves them by those;
- page counts, entry count and depth of both trees are those of the meta page;
- the keys of a tree ascend, within a page and from page to page, as its branches say: LMDB searches by that;
- no page that is reached is on the free list, and neither is any page past the last one;
- the free list's greatest transaction is the one of the meta page: each commit but the first frees pages.

It reads each leaf once, so its cost grows with the log as that of verifying the records does. Format: LMDB
0.9 on a 64-bit machine; the main tree holds either rows, as that of the log, or the records of named trees,
as that of the state.

    page header (16 bytes)  number u64, pad u16, flags u16, lower u16 and upper u16 (overflow: page count u32)
    node (8 bytes + key)    low u16, high u16, flags u16, key size u16; a leaf's data follows the key
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from raftstate.errors import DataLossError
from raftstate.store.files import disk_failure
from raftstate.store.meta_page import MetaPage, TreeRecord

_HEADER = struct.Struct("=QHHHH")
_OVERFLOW_PAGES = struct.Struct("=I")
_NODE = struct.Struct("=HHHH")
_NUMBER = struct.Struct("=Q")
_FIRST_DATA_PAGE = 2
_NO_PAGE = (1 << 64) - 1
"""The root of an empty tree."""
_BRANCH, _LEAF, _OVERFLOW = 0x01, 0x02, 0x04
_BYTE_ORDER_FLAGS_NOT = 0x02 | 0x04 | 0x08
"""MDB_REVERSEKEY, MDB_DUPSORT, MDB_INTEGERKEY: a tree with one of them, as the free list, is ordered
otherwise."""
_NODE_BIG_DATA, _NODE_TREE = 0x01, 0x02
_TREE = struct.Struct("=IHHQQQQQ")


def check_pages(
    data_file: Path,
    meta: MetaPage,
    *,
    named: bool = False,
    trusted_key: bytes = b"",
    step: Callable[[], None] | None = None,
) -> None:
    """Walk everything that `meta` leads to.

    Args:
        data_file: a data file whose pages that `meta` leads to no one is writing to.
        meta: the meta page to start from.
        named: whether the main tree holds the records of named trees, which are walked too. Their free list
            may end before the transaction of the meta page.
        trusted_key: the pages that hold the large values of keys up to this one in the main tree are not
            read: their number is by far the greatest. Whoever gives one sees to it that they are not freed
            before another walk.
        step: called for each row.

    Raises:
        DataLossError: the pages are not what the meta page says.
        StorageError: the file can't be read.
    """
    try:
        file = os.open(data_file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(file)
    except OSError as error:
        raise disk_failure("reading the pages of an LMDB file", data_file, error) from error
    with content:
        try:
            if trusted_key and hasattr(content, "madvise"):
                content.madvise(mmap.MADV_RANDOM)  # few pages are read, and none beside them is wanted
            _Walk(content, meta, named=named, trusted_key=trusted_key, step=step).run()
        except (struct.error, DataLossError) as error:
            raise DataLossError(
                f"the pages of {data_file} do not agree with its meta page {meta.page_number} "
                f"(transaction {meta.transaction_id}): {error}"
            ) from error


class _Walk:
    """One pass over the trees of one meta page."""

    def __init__(
        self,
        content: mmap.mmap,
        meta: MetaPage,
        *,
        named: bool = False,
        trusted_key: bytes = b"",
        step: Callable[[], None] | None = None,
    ) -> None:
        self._content = content
        self._named = named
        self._trusted_key = b""
        self._trusted_key_in_main = trusted_key
        self._step = step
        self._meta = meta
        self._page_count = min(meta.last_page + 1, len(content) // meta.page_bytes)
        self._reached: set[int] = set()
        self._branch_pages = self._leaf_pages = self._overflow_pages = 0

    def run(self) -> None:
        free_pages: set[int] = set()
        newest = 0
        for key_at, data_at, size in self._tree("free", self._meta.free):
            newest = max(newest, _NUMBER.unpack_from(self._content, key_at)[0])
            (count,) = _NUMBER.unpack_from(self._content, data_at)
            if (count + 1) * _NUMBER.size > size:
                raise DataLossError(f"a free list of {size} bytes says that it has {count} pages")
            free_pages.update(struct.unpack_from(f"={count}Q", self._content, data_at + _NUMBER.size))
        if not self._named:
            if self._meta.free.entries and newest != self._meta.transaction_id:
                raise DataLossError(f"the free list ends with transaction {newest}")
            if self._meta.transaction_id > 1 and not self._meta.free.entries:
                raise DataLossError("the free list is empty, and only that of the first transaction can be")
        trees = []
        self._trusted_key = self._trusted_key_in_main
        kind = _NODE_TREE if self._named else 0
        for key_at, data_at, size in self._tree("main", self._meta.main, kind):
            if self._named:
                trees.append((repr(self._content[key_at:data_at]), self._record(data_at, size)))
        for name, tree in trees:
            for _ in self._tree(name, tree):
                pass
        shared = self._reached & free_pages
        if shared:
            raise DataLossError(f"page {min(shared)} is in use and on the free list")
        if free_pages and not _FIRST_DATA_PAGE <= min(free_pages) <= max(free_pages) <= self._meta.last_page:
            raise DataLossError(
                f"pages {min(free_pages)} to {max(free_pages)} are free, the last is {self._meta.last_page}"
            )

    def _record(self, data_at: int, size: int) -> TreeRecord:
        if size != _TREE.size:
            raise DataLossError(f"the record of a named tree has {size} bytes, not {_TREE.size}")
        return TreeRecord(*_TREE.unpack_from(self._content, data_at))

    def _tree(self, name: str, tree: TreeRecord, kind: int = 0) -> Iterator[tuple[int, int, int]]:
        """Yield (offset of key, offset and size of data) of each node in the leaves; then check counts."""
        self._branch_pages = self._leaf_pages = self._overflow_pages = entries = 0
        pages: list[tuple[int, int, bytes, bytes | None]] = []
        if tree.root != _NO_PAGE:
            pages.append((tree.root, 1, b"", None))
        is_ordered = not tree.flags & _BYTE_ORDER_FLAGS_NOT
        while pages:
            page, depth, first_key, end_key = pages.pop()
            offset, flags, upper, nodes = self._page(page)
            keys = self._keys(offset, nodes) if is_ordered else [b""] * len(nodes)
            if flags == _BRANCH and depth < tree.depth:
                self._branch_pages += 1
                if is_ordered:
                    keys[:1] = [first_key]  # a branch's own first one means nothing
                    self._check_order(page, keys, first_key, end_key)
                for at, node in enumerate(nodes):
                    low, high, top, _ = _NODE.unpack_from(self._content, offset + node)
                    behind = keys[at + 1] if at + 1 < len(nodes) else end_key
                    pages.append((low | high << 16 | top << 32, depth + 1, keys[at], behind))
            elif flags == _LEAF and depth == tree.depth:
                self._leaf_pages += 1
                entries += len(nodes)
                if is_ordered:
                    self._check_order(page, keys, first_key, end_key)
                end = self._meta.page_bytes
                for node in sorted(nodes, reverse=True):
                    if self._step is not None:
                        self._step()
                    yield self._leaf_node(offset + node, offset + end, kind)
                    end = node
                if end != upper:
                    raise DataLossError(f"the nodes of page {page} begin at {end}, its space ends at {upper}")
            else:
                raise DataLossError(f"page {page} of the {name} tree has flags {flags:#x} at depth {depth}")
        got = (self._branch_pages, self._leaf_pages, self._overflow_pages, entries)
        expected = (tree.branch_pages, tree.leaf_pages, tree.overflow_pages, tree.entries)
        if got != expected or (tree.root == _NO_PAGE and tree.depth):
            raise DataLossError(
                f"the {name} tree's branch, leaf, overflow pages and entries are {got}, not {expected}"
            )

    def _keys(self, offset: int, nodes: tuple[int, ...]) -> list[bytes]:
        keys = []
        for node in nodes:
            at = offset + node + _NODE.size
            keys.append(self._content[at : at + _NODE.unpack_from(self._content, offset + node)[3]])
        return keys

    def _check_order(self, page: int, keys: list[bytes], first_key: bytes, end_key: bytes | None) -> None:
        """Check that the keys of a page ascend, from `first_key` on, and stay below `end_key`."""
        ends = [*keys[1:], *([] if end_key is None else [end_key])]
        if keys and (keys[0] < first_key or any(key >= end for key, end in zip(keys, ends, strict=False))):
            raise DataLossError(f"the keys of page {page} are not in order")

    def _page(self, page: int) -> tuple[int, int, int, tuple[int, ...]]:
        """Reach a branch or leaf page: its offset in the file, its flags, the end of its space, and the
        offsets of its nodes in the page."""
        offset = self._reach(page, 1)
        number, _, flags, lower, upper = _HEADER.unpack_from(self._content, offset)
        if number != page or not _HEADER.size <= lower <= upper <= self._meta.page_bytes:
            raise DataLossError(
                f"page {page} says that it is page {number}, with its space at {lower} to {upper}"
            )
        count = (lower - _HEADER.size) // 2
        return offset, flags, upper, struct.unpack_from(f"={count}H", self._content, offset + _HEADER.size)

    def _leaf_node(self, offset: int, end: int, kind: int) -> tuple[int, int, int]:
        """Check the node that lies from `offset` to `end`, whose flags are `kind` unless its value is on
        pages of its own: the offsets of its key and data, its size."""
        low, high, flags, key_bytes = _NODE.unpack_from(self._content, offset)
        size = low | high << 16
        key_at = offset + _NODE.size
        data_at = key_at + key_bytes
        node_end = data_at + (_NUMBER.size if flags == _NODE_BIG_DATA else size)
        if node_end + (node_end & 1) != end:
            raise DataLossError(f"the node at offset {offset} ends at {node_end}, the next begins at {end}")
        if flags == _NODE_BIG_DATA:
            (page,) = _NUMBER.unpack_from(self._content, data_at)
            count = -(-(size + _HEADER.size) // self._meta.page_bytes)
            data_at = self._reach(page, count) + _HEADER.size
            self._overflow_pages += count
            if self._trusted_key and self._content[key_at : key_at + key_bytes] <= self._trusted_key:
                return key_at, data_at, size
            number, _, kind = _HEADER.unpack_from(self._content, data_at - _HEADER.size)[:3]
            (held,) = _OVERFLOW_PAGES.unpack_from(self._content, data_at - _OVERFLOW_PAGES.size)
            if (number, kind, held) != (page, _OVERFLOW, count):
                raise DataLossError(
                    f"overflow page {page} has (number, flags, pages) {(number, kind, held)}, "
                    f"and should have {(page, _OVERFLOW, count)}"
                )
        elif flags != kind:
            raise DataLossError(f"the node at offset {offset} has flags {flags:#x} and {size} bytes of data")
        return key_at, data_at, size

    def _reach(self, page: int, count: int) -> int:
        """Mark `count` pages from `page` on as in use; return the offset of the first in the file."""
        if not _FIRST_DATA_PAGE <= page <= self._page_count - count:
            raise DataLossError(
                f"pages {page} to {page + count - 1} are in use, and the last page is {self._page_count - 1}"
            )
        pages = range(page, page + count)
        if not self._reached.isdisjoint(pages):
            raise DataLossError(f"page {page} is reached twice")
        self._reached.update(pages)
        return page * self._meta.page_bytes
