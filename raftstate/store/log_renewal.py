"""What happens to a log after its disk failed a write: it goes on in another file.

After a failed sync the page cache may show what is not on the disk, and the next sync of the same file says
that all is well (Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020). So nothing is
written to that file any more. What can be read of it is copied into a new one, which is synced, and verified
like every log that is opened; then it takes the old one's place, in one step. Whatever of the failed write
is in the copy is durable by then, and whatever was acknowledged before is in it: its own sync had succeeded.

May live here: that copy. Damage that it brings to light is left as it is, for the rules of damage.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from raftstate.errors import DataLossError, StorageError
from raftstate.store.directory import clear_eio, read_eio
from raftstate.store.files import copy_bytes, disk_failure, fsync_directory, require_readable
from raftstate.store.log import LogStore
from raftstate.store.log_copy import DATA_FILE, LOCK_FILE
from raftstate.store.space import file_system, needed_for_copy

_ROOM_LEFT_BYTES = 1 << 20
"""Beyond the copy itself: directories, the marker's end, and the first commits to it."""


def must_copy(data_directory: Path) -> bool:
    """Whether the marker of a failed disk stands in a data directory: its log must be copied.

    Raises:
        StorageError: that can't be seen.
    """
    return read_eio(data_directory) is not None


def renew_log(path: Path, *, map_bytes: int) -> None:
    """Let a log go on in a new file, and take the data directory's marker of the failed disk away.

    A crash at any moment leaves the old file or the new one, and the marker until all is done: it is done
    again then.

    Args:
        path: the log's directory. Nobody has it open, and its data directory is locked by the caller.
        map_bytes: as for `LogStore.open`.

    Raises:
        StorageError: the disk failed again, or has no room for a copy yet (its `detail["errno"]` is ENOSPC).
        DataLossError: the old file can't be read, or does not hold a log: see `LogStore.open`.
    """
    copy = path.with_name(path.name + ".copy")
    source, target = path / DATA_FILE, copy / DATA_FILE
    try:
        if copy.exists():
            shutil.rmtree(copy)
        if not source.exists():
            raise DataLossError(f"the log's data file {source} is missing")
        _check_room(source)
        copy.mkdir()
        _copy(source, target)
        # It raises if this is no log. Damaged records don't matter here: the next opening finds them again.
        LogStore.open(copy, map_bytes=map_bytes).close()
        fsync_directory(copy)
        # Its reader table is of the process that failed.
        (path / LOCK_FILE).unlink(missing_ok=True)
        os.replace(target, source)
        fsync_directory(path)
        shutil.rmtree(copy)
    except OSError as error:
        if error.errno == errno.EIO:
            require_readable(source)
        raise disk_failure("copying the log", path, error) from error
    clear_eio(path.parent)


def _check_room(source: Path) -> None:
    needed = needed_for_copy(source) + _ROOM_LEFT_BYTES
    free = file_system(source.parent).free_bytes
    if free < needed:
        raise StorageError(
            f"the disk failed a write to {source}, which must be copied before this node can take part "
            f"again, and there is no room for that: {free} bytes are free, {needed} are needed; free or add "
            "space",
            detail={"errno": errno.ENOSPC},
        )


def _copy(source: Path, target: Path) -> None:
    """Copy a file, and sync the copy."""
    reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        writing = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            copy_bytes(reading, writing, os.fstat(reading).st_size)
            os.fsync(writing)
        finally:
            os.close(writing)
    finally:
        os.close(reading)
