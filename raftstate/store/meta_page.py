"""LMDB's meta pages, read from and written as bytes.

A data file begins with two meta pages. A commit with transaction id `t` writes page `t & 1`, so the newest
commit and the one before it both stand; opening takes the page with the higher id. Raftstate reads them
itself where LMDB would choose in silence: the log compares both with what it recorded, and the state writes
back the page that belongs to its last durable checkpoint.

The layout is that of LMDB 0.9's data format 1 on a 64-bit machine, in the machine's byte order (`MDB_page`
header, then `MDB_meta`):

    0  page number u64 | pad u16 | page flags u16 | bounds u32        the page header, 16 bytes
    16 magic u32 | data format u32 | map address u64 | map size u64
    40 MDB_db of the free list   (its `pad` is the page size)
    88 MDB_db of the main table  (the named tables' records)
    136 last page number u64 | transaction id u64                      152 bytes in all
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, replace

from raftstate.errors import DataLossError

META_BYTES = 152
"""What LMDB reads of a meta page; the rest of the page means nothing."""

_LAYOUT = struct.Struct("=QHHI II QQ IHHQQQQQ IHHQQQQQ QQ")
assert _LAYOUT.size == META_BYTES

_MAGIC = 0xBEEFC0DE
_DATA_FORMAT = 1
_PAGE_IS_META = 0x08
_PAGE_BYTES_MIN, _PAGE_BYTES_MAX = 256, 0x8000
"""LMDB's own bounds of a page's size."""


@dataclass(frozen=True, slots=True)
class TreeRecord:
    """One B+tree as a meta page names it (`MDB_db`)."""

    pad: int
    flags: int
    depth: int
    branch_pages: int
    leaf_pages: int
    overflow_pages: int
    entries: int
    root: int
    """The root's page number; all bits set for an empty tree."""


@dataclass(frozen=True, slots=True)
class MetaPage:
    """One meta page. Two are equal when LMDB would open the same commit from them."""

    page_number: int
    """0 or 1: which of the two slots it stands in."""
    transaction_id: int
    last_page: int
    """The highest page number in use; the file may end before it when the free list holds the last pages."""
    map_bytes: int
    free: TreeRecord
    main: TreeRecord

    @property
    def page_bytes(self) -> int:
        """The page size, which LMDB keeps in the free list's record."""
        return self.free.pad

    @classmethod
    def parse(cls, data: bytes, *, source: str) -> MetaPage:
        """Read a meta page.

        Args:
            data: the page, or at least its first `META_BYTES` bytes.
            source: where it came from, for the error message.

        Raises:
            DataLossError: it is not a meta page of data format 1, or stands in the slot of the other parity.
        """
        if len(data) < META_BYTES:
            raise DataLossError(f"{source}: a meta page has {META_BYTES} bytes, got {len(data)}")
        fields = _LAYOUT.unpack_from(data)
        page_number, _, page_flags, _, magic, data_format, _, map_bytes = fields[:8]
        if magic != _MAGIC or not page_flags & _PAGE_IS_META:
            raise DataLossError(
                f"{source}: not an LMDB meta page (magic {magic:#x}, page flags {page_flags:#x})"
            )
        if data_format != _DATA_FORMAT:
            raise DataLossError(f"{source}: LMDB data format {data_format}; this build reads {_DATA_FORMAT}")
        free, main = TreeRecord(*fields[8:16]), TreeRecord(*fields[16:24])
        last_page, transaction_id = fields[24:]
        if page_number not in (0, 1) or not _PAGE_BYTES_MIN <= free.pad <= _PAGE_BYTES_MAX:
            raise DataLossError(f"{source}: meta page number {page_number}, page size {free.pad} can't be")
        return cls(page_number, transaction_id, last_page, map_bytes, free, main)

    @property
    def in_its_slot(self) -> bool:
        """Whether the page stands where a commit with its transaction id writes it."""
        return self.page_number == self.transaction_id & 1

    def predecessor(self) -> MetaPage:
        """Return the same trees under the transaction id before this one, as the page of the other slot.

        With it beside this page, LMDB opens this commit, and the next commit overwrites the other slot.
        """
        return replace(self, page_number=self.page_number ^ 1, transaction_id=self.transaction_id - 1)

    def to_bytes(self) -> bytes:
        """Return the whole page, `page_bytes` long."""
        free, main = self.free, self.main
        head = _LAYOUT.pack(
            *(self.page_number, 0, _PAGE_IS_META, 0, _MAGIC, _DATA_FORMAT, 0, self.map_bytes),
            *(free.pad, free.flags, free.depth),
            *(free.branch_pages, free.leaf_pages, free.overflow_pages, free.entries, free.root),
            *(main.pad, main.flags, main.depth),
            *(main.branch_pages, main.leaf_pages, main.overflow_pages, main.entries, main.root),
            *(self.last_page, self.transaction_id),
        )
        return head.ljust(self.page_bytes, b"\0")


def read_meta_page(fd: int, page_number: int, page_bytes: int, *, source: str) -> MetaPage:
    """Read the meta page in slot `page_number` (0 or 1) of an open data file whose pages have `page_bytes`
    bytes.

    Raises:
        DataLossError: see `MetaPage.parse`; or the page carries another page number than its slot's.
        OSError: the read failed.
    """
    page = MetaPage.parse(os.pread(fd, META_BYTES, page_number * page_bytes), source=source)
    if page.page_number != page_number:
        raise DataLossError(f"{source}: slot {page_number} holds meta page {page.page_number}")
    return page


def read_meta_pages(path: str | os.PathLike[str]) -> tuple[MetaPage, MetaPage]:
    """Read both meta pages of a data file; its page size is taken from the first.

    Raises:
        DataLossError: either is not a meta page, or stands in the wrong slot.
        OSError: the file can't be read.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        first = read_meta_page(fd, 0, 0, source=os.fspath(path))
        second = read_meta_page(fd, 1, first.page_bytes, source=os.fspath(path))
    finally:
        os.close(fd)
    return first, second
