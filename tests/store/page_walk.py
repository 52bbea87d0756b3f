"""Which pages of an LMDB data file a commit sees, found by walking its trees."""

from __future__ import annotations

import struct

from raftstate.store.meta_page import MetaPage

_EMPTY = (1 << 64) - 1
_BRANCH, _LEAF = 0x01, 0x02
_BIG_DATA, _SUB_DATA = 0x01, 0x02


def pages_seen(data: bytes, meta: MetaPage) -> set[int]:
    """Return the numbers of all pages that the commit of a meta page leads to: tables, overflow pages and the
    free list."""
    size = meta.page_bytes
    seen: set[int] = set()

    def walk(root: int) -> None:
        if root == _EMPTY:
            return
        page = data[root * size : (root + 1) * size]
        number, _, flags, lower, _ = struct.unpack_from("=QHHHH", page)
        assert number == root
        assert root not in seen
        seen.add(root)
        for (position,) in struct.iter_unpack("=H", page[16:lower]):
            low, high, node_flags, key_bytes = struct.unpack_from("=HHHH", page, position)
            if flags & _BRANCH:
                walk(low | high << 16 | node_flags << 32)
                continue
            assert flags & _LEAF
            value = position + 8 + key_bytes
            if node_flags & _BIG_DATA:
                (first,) = struct.unpack_from("=Q", page, value)
                (count,) = struct.unpack_from("=I", data, first * size + 12)
                seen.update(range(first, first + count))
            elif node_flags & _SUB_DATA:
                walk(struct.unpack_from("=Q", page, value + 40)[0])

    walk(meta.free.root)
    walk(meta.main.root)
    return seen
