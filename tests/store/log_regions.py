"""Where in a log's data file the bytes stand that mean something, so that tests can flip them."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from raftstate.store.log_check import check_data_file
from raftstate.store.log_format import HARD_STATE_KEY, META_KEY
from raftstate.store.page_check import _Walk


def regions(data_file: Path) -> dict[str, list[int]]:
    """Return offsets in the file: of the payload's last byte of each record, in the order of the indexes; of
    bytes in the meta row, the hard state, both meta pages, and the headers of the tree's leaves and of the
    pages that hold a large record."""
    newest, _ = check_data_file(data_file)
    found: dict[str, list[int]] = {"record": [], "meta row": [], "hard state": [], "leaf page": []}
    found["overflow page"] = []
    with (
        data_file.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        walk = _Walk(content, newest)
        rows: list[tuple[bytes, int]] = []
        for key_at, data_at, size in walk._tree("main", newest.main):
            (key_bytes,) = struct.unpack_from("=H", content, key_at - 2)
            rows.append((content[key_at : key_at + key_bytes], data_at + size - 1))
            if size < newest.page_bytes // 2:
                found["leaf page"].append(key_at // newest.page_bytes * newest.page_bytes + 12)
            else:
                found["overflow page"].append(data_at - 4)
        for key, last_byte in sorted(rows):
            kind = {META_KEY: "meta row", HARD_STATE_KEY: "hard state"}.get(key, "record")
            found[kind].append(last_byte)
    found["newest meta page"] = [newest.page_number * newest.page_bytes + 144]
    found["older meta page"] = [(newest.page_number ^ 1) * newest.page_bytes + 144]
    return found


def flip(data_file: Path, *offsets: int, bit: int = 1) -> None:
    """Flip a bit of each of these bytes."""
    with data_file.open("r+b") as file:
        for offset in offsets:
            file.seek(offset)
            (byte,) = file.read(1)
            file.seek(offset)
            file.write(bytes((byte ^ 1 << bit,)))
