"""Files that must survive a power cut, and one way to say what a disk did wrong.

May live here: what the log, the state and the data directory all need of the file system.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import lmdb

from raftstate.errors import DataLossError, StorageError

_COPY_BYTES = 16 << 20
_READ_BYTES = 1 << 20

_ADVICE = {
    errno.ENOSPC: "the disk is full: free or add space, and the node goes on by itself",
    errno.EDQUOT: "the disk quota is used up: raise it or free space, and the node goes on by itself",
    errno.EIO: "the disk failed: check the kernel's log, the disk and its free space",
    errno.EROFS: "the file system is read-only: check the kernel's log, remount it, start the node again",
    errno.EACCES: "permission was denied: the node's user needs to own the data directory",
}


def disk_failure(doing: str, path: Path, error: OSError | lmdb.Error) -> StorageError:
    """Make the error for a failed file or LMDB operation; the caller raises it from `error`.

    Args:
        doing: what was tried, to follow "failed while": "writing the log".
        path: the file or directory that it was tried on.
        error: what the operating system or LMDB raised.

    Returns:
        A `StorageError` that says what to do. Its `detail["errno"]` is the error number, 0 if there is none.
    """
    # py-lmdb sets `code` on what LMDB returned, and leaves it out when opening an environment fails.
    code = getattr(error, "code", 0) if isinstance(error, lmdb.Error) else error.errno or 0
    if isinstance(error, lmdb.MapFullError):
        code = errno.ENOSPC
        advice = "the LMDB map is full: start the node again with a larger map"
    elif isinstance(error, lmdb.PanicError):
        # What LMDB says from then on, whatever is tried; the first time it said what the disk did.
        code = errno.EIO
        advice = (
            "LMDB could not write its meta page, and takes no more writes: check the kernel's log, the disk "
            "and its free space"
        )
    else:
        advice = _ADVICE.get(code, "nothing that was not acknowledged can be relied on: start the node again")
    return StorageError(f"failed while {doing} at {path}: {error}; {advice}", detail={"errno": code})


def is_full(error: BaseException) -> bool:
    """Whether a failure was for want of space alone: nothing was written, and it may work once there is
    some."""
    return isinstance(error, StorageError) and error.detail.get("errno") in (errno.ENOSPC, errno.EDQUOT)


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable: what was created, renamed or removed in it.

    Raises:
        StorageError: it can't be opened or synced.
    """
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise disk_failure("syncing a directory", path, error) from error


def durable_write(path: Path, content: bytes) -> None:
    """Replace a file. A crash leaves the old one or the new one, whole; the new one once this has returned.

    Raises:
        StorageError: it can't be written or synced; the old file still stands.
    """
    fresh = path.with_name(path.name + ".new")
    try:
        with open(fresh, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except OSError as error:
        raise disk_failure("writing a file", path, error) from error
    fsync_directory(path.parent)


def remove(path: Path) -> None:
    """Remove a file, if it is there. Raises `StorageError` if it can't be."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise disk_failure("removing a file", path, error) from error


def durable_remove(path: Path) -> None:
    """Remove a file, if it is there, so that it does not come back after a power cut.

    Raises:
        StorageError: it can't be removed, or the directory can't be synced.
    """
    remove(path)
    fsync_directory(path.parent)


def require_readable(path: Path) -> None:
    """Read a file through, to tell a disk that can't give it back from one that could not take a copy.

    Raises:
        DataLossError: a part of it can't be read: waiting for the disk does not bring it back.
        StorageError: it can't be opened, or not be read for another reason.
    """
    at = 0
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while piece := len(os.pread(descriptor, _READ_BYTES, at)):
                at += piece
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno == errno.EIO:
            raise DataLossError(f"{path} can't be read from byte {at} on: {error}") from error
        raise disk_failure("reading a file", path, error) from error


def copy_bytes(source: int, target: int, size: int) -> None:
    """Copy up to `size` bytes between two descriptors, by reference where the file system can, as XFS and
    Btrfs do. Raises OSError."""
    done = 0
    by_kernel = hasattr(os, "copy_file_range")
    while done < size:
        wanted = min(_COPY_BYTES, size - done)
        if by_kernel:
            try:
                copied = os.copy_file_range(source, target, wanted if done else size, done, done)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                by_kernel = False
                continue
        else:
            copied = os.pwrite(target, os.pread(source, wanted, done), done)
        if copied == 0:
            return
        done += copied
