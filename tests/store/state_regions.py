"""Where what stands in a state's data file, as its last checkpoint sees it."""

from __future__ import annotations

import struct
from pathlib import Path

from raftstate.store.checkpoint import CheckpointRecord
from raftstate.store.generation import current_generation

_EMPTY = (1 << 64) - 1
_BRANCH, _BIG_DATA, _SUB_DATA = 0x01, 0x01, 0x02


def state_regions(data_directory: Path) -> dict[str, list[int]]:
    """Return offsets in the data file: what is there -> where.

    "row": within rows on leaf pages; "leaf": pointers to nodes of leaf pages; "branch": page numbers in
    branch pages; "overflow": within values on pages of their own; "free list": in the records of free pages.
    """
    generation = current_generation(data_directory)
    assert generation is not None
    meta = CheckpointRecord.read(generation.checkpoint_file).meta
    data = generation.data_file.read_bytes()
    size = meta.page_bytes
    found: dict[str, list[int]] = {key: [] for key in ("row", "leaf", "branch", "overflow", "free list")}

    def walk(root: int, *, free: bool, named: bool) -> None:
        if root == _EMPTY:
            return
        at = root * size
        _, _, flags, lower, _ = struct.unpack_from("=QHHHH", data, at)
        for number, (position,) in enumerate(struct.iter_unpack("=H", data[at + 16 : at + lower])):
            node = at + position
            low, high, node_flags, key_bytes = struct.unpack_from("=HHHH", data, node)
            if flags & _BRANCH:
                found["branch"].append(node)
                walk(low | high << 16 | node_flags << 32, free=free, named=named)
                continue
            value = node + 8 + key_bytes
            if node_flags & _BIG_DATA:
                (first,) = struct.unpack_from("=Q", data, value)
                found["free list" if free else "overflow"].append(first * size + 16 + 40)
            elif node_flags & _SUB_DATA:
                walk(struct.unpack_from("=Q", data, value + 40)[0], free=False, named=False)
            elif free:
                found["free list"].append(value + 8)
            else:
                found["row"].append(value + (low | high << 16) - 1)
                if number:
                    found["leaf"].append(at + 16 + 2 * number)

    walk(meta.free.root, free=True, named=False)
    walk(meta.main.root, free=False, named=True)
    return found


def flip(path: Path, offsets: list[int]) -> None:
    """Flip a bit at each offset of a file."""
    with open(path, "r+b") as file:
        for offset in offsets:
            file.seek(offset)
            (byte,) = file.read(1)
            file.seek(offset)
            file.write(bytes([byte ^ 0x04]))
