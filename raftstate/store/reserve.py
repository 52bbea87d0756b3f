"""A file that takes room on a data directory's disk, so that there is some when the disk is full.

Whoever finds the disk full lets go of it, and can then still write what is small and matters: a term, a vote,
a deletion, a marker. It is made anew once there is room again.

May live here: that file.
"""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

from raftstate.store.files import disk_failure

RESERVE_NAME = "reserve"


class Reserve:
    """The reserve of one data directory. Any thread; all calls may block on the disk.

    Args:
        directory: the data directory.
        size_bytes: how much room to keep; 0: none, and a file that is there from before is removed.
    """

    def __init__(self, directory: Path, size_bytes: int) -> None:
        self._path = directory / RESERVE_NAME
        self.size_bytes = size_bytes
        self.held = False
        """Whether the room is kept now, as far as this process knows."""
        self._lock = threading.Lock()

    def make(self) -> bool:
        """See to it that the room is kept; return whether it is.

        Raises:
            StorageError: the file can't be made, for another reason than that the disk is full.
        """
        with self._lock:
            try:
                if not self.size_bytes:
                    self._path.unlink(missing_ok=True)
                    return False
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    os.ftruncate(descriptor, self.size_bytes)
                    os.posix_fallocate(descriptor, 0, self.size_bytes)
                finally:
                    os.close(descriptor)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise disk_failure("reserving space", self._path, error) from error
                self._path.unlink(missing_ok=True)
                return False
            self.held = True
            return True

    def release(self) -> bool:
        """Give the room back to whoever needs it; return whether there was any.

        Raises:
            StorageError: the file can't be removed.
        """
        with self._lock:
            self.held = False
            try:
                self._path.unlink()
            except FileNotFoundError:
                return False
            except OSError as error:
                raise disk_failure("letting go of reserved space", self._path, error) from error
            return True
