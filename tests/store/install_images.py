"""What a disk may hold when a node dies at any step of an install: of kill -9, and of a power cut.

After kill -9 all is there that was written. After a power cut a file has the content that it had when it was
last synced, a later one, or for LMDB's data files pages of both; and a name stands for what it did when its
directory was last synced, or for something later. `RecordedDisk` notes what was synced, by way of the
functions that do it, and takes an image before and after each.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

import lmdb
import pytest

from raftstate.store import checkpoint, files, generation, snapshot
from raftstate.store.log import LogStore
from tests.store.crash_images import lossy_image

Files = dict[str, bytes]


class Image(NamedTuple):
    """The files of a data directory as they would be found, by their names in it."""

    step: str
    phase: str
    files: Files

    def write(self, directory: Path) -> None:
        for name, content in self.files.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(content)


class RecordedDisk:
    """Watches a data directory. The test says in which `phase` it is.

    Args:
        directory: the data directory; all in it is durable now.
        random: chooses what a power cut leaves.
        monkeypatch: watches the functions that sync.
        cuts: how many images of a power cut are taken at each step, beside the one of kill -9.
    """

    def __init__(
        self, directory: Path, random: Random, monkeypatch: pytest.MonkeyPatch, cuts: int = 2
    ) -> None:
        self.directory = directory
        self.images: list[Image] = []
        self.phase = ""
        self._random = random
        self._cuts = cuts
        self._lock = threading.RLock()
        self._durable = self._now()
        self.durable_directories = self._directories()
        """Names of directories that a power cut leaves there, as things are."""
        sync_data, fsync_directory = checkpoint.sync_data, files.fsync_directory
        commit = LogStore._commit

        def synced_data(environment: lmdb.Environment) -> None:
            name = str((Path(environment.path()) / "data.mdb").relative_to(directory))
            self._around(f"sync of {name}", lambda: sync_data(environment), lambda: self._synced(name))

        def synced_directory(path: Path) -> None:
            self._around(
                f"sync of directory {path.name}",
                lambda: fsync_directory(path),
                lambda: self._names_synced(path),
            )

        def committed(log: LogStore, txn: lmdb.Transaction[memoryview]) -> None:
            self._around("commit of the log", lambda: commit(log, txn), lambda: self._synced("log/data.mdb"))

        for module in (checkpoint, snapshot):
            monkeypatch.setattr(module, "sync_data", synced_data)
        for module in (files, generation, snapshot):
            monkeypatch.setattr(module, "fsync_directory", synced_directory)
        monkeypatch.setattr(LogStore, "_commit", committed)

    def take(self, step: str) -> None:
        """Take images of this moment."""
        with self._lock:
            now = self._now()
            self.images.append(Image(f"{step}, kill -9", self.phase, now))
            for _ in range(self._cuts):
                self.images.append(Image(f"{step}, power cut", self.phase, self._after_power_cut(now)))

    def _around(self, step: str, work: Callable[[], None], done: Callable[[], None]) -> None:
        self.take(f"before the {step}")
        work()
        with self._lock:
            done()
        self.take(f"after the {step}")

    def _now(self) -> Files:
        # LMDB's lock files are left alone: to open and close one drops LMDB's locks on it.
        return {
            str(path.relative_to(self.directory)): path.read_bytes()
            for path in self.directory.rglob("*")
            if path.is_file() and path.name != "lock.mdb"
        }

    def _directories(self) -> set[str]:
        return {path.name for path in self.directory.iterdir() if path.is_dir()}

    def _synced(self, name: str) -> None:
        self._durable[name] = (self.directory / name).read_bytes()

    def _names_synced(self, path: Path) -> None:
        if path == self.directory:
            self.durable_directories = self._directories()
        prefix = "" if path == self.directory else f"{path.name}/"
        now = self._now()
        for name in {*now, *self._durable}:
            if not name.startswith(prefix) or "/" in name[len(prefix) :]:
                continue
            if name not in now:
                self._durable.pop(name, None)
            elif not name.endswith("data.mdb"):
                self._durable[name] = now[name]

    def _after_power_cut(self, now: Files) -> Files:
        random = self._random
        left: Files = {}
        lost = {name for name in self._directories() - self.durable_directories if random.random() < 0.3}
        for name in sorted({*now, *self._durable}):
            before, after = self._durable.get(name), now.get(name)
            if name.partition("/")[0] in lost:
                continue
            if name.endswith("data.mdb") and after is not None:
                content: bytes | None = lossy_image(before or b"", after, random)
            else:
                content = random.choice((before, after))
            if content is not None:
                left[name] = content
        return left
