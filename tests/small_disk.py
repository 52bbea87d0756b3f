"""Small real disks for tests: an ext4 file system in a file, mounted for as long as a test runs.

It takes root and a loop device. Where there is neither a test is skipped, visibly; in CI it fails.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_EXT4_IOC_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2
"""From the kernel's ext4.h (EXT4_GOING_FLAGS_NOLOGFLUSH): what the journal holds in memory is lost, too."""


class SmallDisk:
    """A mounted file system, what fills it up, and what cuts its power."""

    def __init__(self, path: Path, image: Path) -> None:
        self.path = path
        self._image = image
        self._ballast = path / "ballast"

    def free_bytes(self) -> int:
        """What anybody may still take."""
        system = os.statvfs(self.path)
        return system.f_bavail * system.f_frsize

    def fill(self, but_bytes: int = 0) -> None:
        """Have somebody else take all that is free, but for so much; what was taken before stays taken."""
        taken = self._ballast.stat().st_blocks * 512 if self._ballast.exists() else 0
        with open(self._ballast, "ab") as file:
            # What the file system needs itself for a larger file makes it less than what is said to be free.
            wanted = self.free_bytes() - but_bytes
            while wanted > 0:
                try:
                    os.posix_fallocate(file.fileno(), 0, taken + wanted)
                except OSError:
                    wanted -= 4096
                else:
                    return

    def free(self, but_bytes: int = 0) -> None:
        """Have it given back, but for so much."""
        if but_bytes:
            os.truncate(self._ballast, but_bytes)
        else:
            self._ballast.unlink(missing_ok=True)

    def cut_power(self) -> None:
        """Lose what was not synced, as a power cut does: from here on every write fails. Close what is open,
        and go on with `restore_power`."""
        folder = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, _EXT4_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(folder)

    def restore_power(self) -> None:
        """Mount it again, as it was left. Nobody may have a file of it open."""
        _run("umount", str(self.path))
        _run("mount", "-o", "loop", str(self._image), str(self.path))


@contextmanager
def small_disk(folder: Path, size_bytes: int, *, journal: bool = False) -> Iterator[SmallDisk]:
    """Make and mount a disk of so many bytes in a folder; unmount it at the end.

    Nobody may use it any more then; what still does is left behind by the mount, which goes with its last
    user. `journal`: what a file system needs to be whole after a power cut.
    """
    image, mount = folder / "disk.img", folder / "disk"
    mount.mkdir(parents=True)
    with open(image, "wb") as file:
        file.truncate(size_bytes)
    # Without blocks kept for root: tests run as root, and must meet the end that others meet.
    feature = "has_journal" if journal else "^has_journal"
    _run("mkfs.ext4", "-q", "-F", "-m", "0", "-O", feature, str(image))
    try:
        _run("mount", "-o", "loop", str(image), str(mount))
    except subprocess.CalledProcessError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(f"no loop device can be mounted here: {error.stderr.strip()}")
    try:
        yield SmallDisk(mount, image)
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=True)


def _run(*command: str) -> None:
    if not any((Path(folder) / command[0]).exists() for folder in _PATHS):
        if "CI" in os.environ:
            raise FileNotFoundError(command[0])
        pytest.skip(f"{command[0]} is not installed")
    subprocess.run(command, check=True, capture_output=True, text=True, env={"PATH": ":".join(_PATHS)})


_PATHS = [*os.environ.get("PATH", "").split(":"), "/usr/sbin", "/sbin"]
