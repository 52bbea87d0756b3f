"""A disk whose power can be cut: an ext4 image, mounted over a loop device. Linux, root only.

The cut is ext4's own (`EXT4_IOC_SHUTDOWN` without a flush of its journal): from then on nothing reaches
the image, and what was only in the page cache is gone when it is mounted again. What a disk's own cache would
lose, too, it does not show.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

_SHUTDOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN of Linux, fs/ext4/ext4.h: _IOR('X', 125, __u32)."""
_NO_LOG_FLUSH = 2
"""EXT4_GOING_FLAGS_NOLOGFLUSH: neither data nor journal are flushed."""


class PowerCutDisk:
    """A mounted image; a context manager that unmounts it.

    Args:
        scratch: an existing folder for the image and its mount point.
        megabytes: size of the image; sparse.
    """

    def __init__(self, scratch: Path, *, megabytes: int) -> None:
        self._image = scratch / "disk.img"
        self.folder = scratch / "disk"
        """Where it is mounted."""
        self._megabytes = megabytes

    def __enter__(self) -> Self:
        self.folder.mkdir()
        with self._image.open("wb") as image:
            image.truncate(self._megabytes << 20)
        _run("mkfs.ext4", "-q", "-F", str(self._image))
        self._mount()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _run("umount", "-l", str(self.folder))

    def cut(self) -> None:
        """Cut the power: whatever is not on the disk yet never gets there. Processes see EIO."""
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def restore(self) -> None:
        """Mount it again, after all processes that used it have ended. Nothing of it is in the page cache."""
        _run("umount", str(self.folder))
        image = os.open(self._image, os.O_RDONLY)
        try:
            os.fsync(image)
            os.posix_fadvise(image, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(image)
        self._mount()

    def _mount(self) -> None:
        _run("mount", "-o", "loop", str(self._image), str(self.folder))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
