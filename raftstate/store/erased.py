"""How far erasures have reached the files: a small file in the generation of the state that it is true of.

It says that neither this generation, nor the log, nor anything else in the data directory holds what was
erased up to a log entry. It stands in the generation so that it goes with it: one that was received from
another node, or copied page by page, has none, and its node begins anew to see to it.
"""

from __future__ import annotations

import struct
from pathlib import Path

import xxhash

from raftstate.store.files import disk_failure, durable_write

_NAME = "erased"
_BODY = struct.Struct("<4sQ")
_CHECKSUM = struct.Struct("<Q")
_MAGIC = b"RSER"


def read_erased(generation: Path) -> int:
    """Return the index that a generation's file holds; 0 when it has none, or a damaged one.

    Raises `StorageError` when it can't be read.
    """
    path = generation / _NAME
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise disk_failure("reading how far erasures are", path, error) from error
    body = content[: _BODY.size]
    if content != body + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(body)) or len(body) != _BODY.size:
        return 0
    magic, index = _BODY.unpack(body)
    return int(index) if magic == _MAGIC else 0


def write_erased(generation: Path, index: int) -> None:
    """Write it, durably. Raises `StorageError`."""
    body = _BODY.pack(_MAGIC, index)
    durable_write(generation / _NAME, body + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(body)))
