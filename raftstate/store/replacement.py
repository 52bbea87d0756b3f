"""Makes the data of a node anew, in place, under a new incarnation.

The data directory itself may be the root of a file system, so it is not renamed: what is in it is. Two
markers say how far that is, and each step may be the last one before a crash:

    replacing   holds the new identity. From here on the old data are given up: what is in the directory, but
                for identity, lock, marker and `aside`, is moved into `aside`; then the marker becomes
    blanking    what is in the directory, but for the same, was made anew, perhaps in part: it is removed, and
                made again. The new identity is written, the marker removed
    (none)      `aside` is removed

May live here: these steps. What blank data are is the caller's affair.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from raftstate.store.directory import DataDirectory, decode_identity, encode_identity
from raftstate.store.files import disk_failure, durable_remove, durable_write, fsync_directory

_REPLACING, _BLANKING, _ASIDE = "replacing", "blanking", "aside"
_KEPT = frozenset(
    {"identity", "identity.new", "lock", "members", _REPLACING, _BLANKING, _ASIDE, "lost+found"}
)


def begin(directory: DataDirectory, incarnation: int) -> None:
    """Give up what a data directory holds: the node goes on as this incarnation. `finish` must follow, now or
    at the next start.

    Raises:
        StorageError: the disk failed; nothing is given up.
    """
    identity = msgspec.structs.replace(directory.identity, incarnation=incarnation)
    durable_write(directory.path / _REPLACING, encode_identity(identity))


def finish(directory: DataDirectory, populate: Callable[[Path], None]) -> bool:
    """Bring a replacement that was begun to its end; return whether there was one.

    Args:
        directory: locked by the caller. Its identity is the new one afterwards.
        populate: makes blank data in the directory, durably.

    Raises:
        DataLossError: the marker is damaged.
        StorageError: the disk failed; the next call goes on.
    """
    path = directory.path
    replacing, blanking, aside = path / _REPLACING, path / _BLANKING, path / _ASIDE
    try:
        if replacing.exists():
            aside.mkdir(exist_ok=True)
            for entry in _data(path):
                os.replace(entry, aside / entry.name)
            fsync_directory(aside)
            fsync_directory(path)
            os.replace(replacing, blanking)
            fsync_directory(path)
        under_way = blanking.exists()
        if under_way:
            for entry in _data(path):
                _remove(entry)
            identity = decode_identity(blanking)
            populate(path)
            durable_write(path / "identity", encode_identity(identity))
            durable_remove(blanking)
            directory.identity = identity
        if aside.exists():
            _remove(aside)
    except OSError as error:
        raise disk_failure("replacing a node's data", path, error) from error
    return under_way


def _data(path: Path) -> list[Path]:
    return [entry for entry in path.iterdir() if entry.name not in _KEPT]


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()
