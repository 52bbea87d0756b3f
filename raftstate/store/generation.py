"""Generations of the state: directories `state-<n>`, of which the file `CURRENT` names the one in use.

A generation is written whole and synced before CURRENT names it, and is never changed into another one: what
can't go on in its files (a disk that failed to sync them, readers of an earlier run that still have them
open) goes on in a copy, the next generation.

May live here: names, the CURRENT file, the locks of readers, removal. Which generation a start opens, and
how, is raftstate.store.start.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from raftstate.errors import DataLossError, StorageError
from raftstate.store.files import disk_failure, durable_write, fsync_directory

SNAPSHOT_PREFIX = "snapshot-"
"""Begins the names of files in the data directory that no start needs: snapshots on their way."""

_NAME = re.compile(r"state-([1-9][0-9]{0,8})\Z")
_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Generation:
    """One directory `state-<n>` and the names in it."""

    data_directory: Path
    number: int

    @property
    def path(self) -> Path:
        """The directory, which is also the LMDB environment."""
        return self.data_directory / f"state-{self.number}"

    @property
    def data_file(self) -> Path:
        """LMDB's data file."""
        return self.path / "data.mdb"

    @property
    def lock_file(self) -> Path:
        """LMDB's lock file. Only LMDB opens it: closing it drops all locks of this process on it."""
        return self.path / "lock.mdb"

    @property
    def readers_file(self) -> Path:
        """Not of LMDB: other processes hold a shared flock on it while they have the environment open."""
        return self.path / "readers"

    @property
    def checkpoint_file(self) -> Path:
        """The last durable checkpoint's record."""
        return self.path / "checkpoint"

    @property
    def eio_marker(self) -> Path:
        """Stands here once a sync of the data file failed: it is never synced again."""
        return self.path / "eio"

    @property
    def distrust_file(self) -> Path:
        """Stands here once the state in it was found not to be trusted; holds why."""
        return self.path / "distrusted"

    def make_directory(self) -> None:
        """Create the directory with its readers file. The caller syncs."""
        try:
            self.path.mkdir()
            self.readers_file.touch(exist_ok=False)
        except OSError as error:
            raise disk_failure("creating a generation of the state", self.path, error) from error

    def make_current(self) -> None:
        """Let CURRENT name this generation. All in it must be durable.

        Raises:
            StorageError: CURRENT could not be written; it names the generation it named before, or after a
                failed directory sync either.
        """
        # The directory's own name first: no crash may leave a CURRENT that names what is not there.
        fsync_directory(self.path)
        fsync_directory(self.data_directory)
        durable_write(_current_file(self.data_directory), self.path.name.encode() + b"\n")

    def remove(self) -> None:
        """Remove the directory and all in it. Nobody may have it open.

        In place, without a new name first: a crash leaves a part of a directory that CURRENT does not name,
        and a start removes that, as it would under any name.
        """
        try:
            shutil.rmtree(self.path)
        except OSError as error:
            raise disk_failure("removing an old generation of the state", self.path, error) from error

    @contextmanager
    def without_readers(self, wait_s: float) -> Iterator[bool]:
        """Try to keep other processes from opening the environment while the context lasts.

        Args:
            wait_s: how long to wait for those that have it open, in seconds.

        Yields:
            Whether it worked, that is, whether nobody else has it open.
        """
        try:
            # A crash between the two steps of make_directory can't have left a current generation without the
            # file, but a restore from a backup that skips empty files can.
            fd = os.open(self.readers_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise disk_failure("opening the readers' lock", self.readers_file, error) from error
        try:
            yield _exclusive_lock(fd, time.monotonic() + wait_s)
        finally:
            os.close(fd)


def _exclusive_lock(fd: int, deadline_s: float) -> bool:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(_POLL_S)
        else:
            return True


def _current_file(data_directory: Path) -> Path:
    return data_directory / "CURRENT"


def generations(data_directory: Path) -> list[Generation]:
    """Return every generation that has a directory, in use, half made or left over, by number."""
    try:
        names = os.listdir(data_directory)
    except OSError as error:
        raise disk_failure("listing the data directory", data_directory, error) from error
    numbers = sorted(int(match[1]) for match in map(_NAME.match, names) if match)
    return [Generation(data_directory, number) for number in numbers]


def new_generation(data_directory: Path) -> Generation:
    """Make the directory of a generation after all that have one, and return it.

    Raises:
        StorageError: it can't be made.
    """
    while True:
        number = max((generation.number for generation in generations(data_directory)), default=0) + 1
        generation = Generation(data_directory, number)
        try:
            generation.make_directory()
        except StorageError as error:
            if error.detail["errno"] != errno.EEXIST:
                raise
            continue  # somebody else makes one at the same time
        return generation


def current_generation(data_directory: Path) -> Generation | None:
    """Return the generation that CURRENT names; None without a CURRENT: no creation came to its end.

    Raises:
        DataLossError: CURRENT is damaged, or names a generation that is not there.
        StorageError: it can't be read.
    """
    path = _current_file(data_directory)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise disk_failure("reading CURRENT", path, error) from error
    match = _NAME.match(content.removesuffix(b"\n").decode("ascii", "replace"))
    if match is None:
        raise DataLossError(
            f"{path} is damaged: it should name a directory like state-1, got {content[:40]!r}"
        )
    generation = Generation(data_directory, int(match[1]))
    if not generation.data_file.exists():
        raise DataLossError(f"{path} names {generation.path.name}, but there is no {generation.data_file}")
    return generation


def remove_leftovers(current: Generation) -> None:
    """Remove every other generation that nobody has open, and snapshots that were being made or received; the
    next start tries again with the rest."""
    for generation in generations(current.data_directory):
        if generation == current:
            continue
        # A reader that opens the lock file meanwhile gets its lock on a removed file, reads CURRENT again and
        # goes there.
        with generation.without_readers(0) as granted:
            if granted:
                generation.remove()
    for path in current.data_directory.glob(SNAPSHOT_PREFIX + "*"):
        try:
            path.unlink()
        except OSError as error:
            raise disk_failure("removing an old snapshot", path, error) from error
