"""Power cuts of a state store, as images of what the disk may hold after one.

What a sync covered is on the disk. Of every page written since, the disk has the old content, the new one or
a part of each, and the file is as long as it was or as it is. A `Machine` runs random transactions and
checkpoints, is cut off at random moments, goes on from the image by the start rule, and counts how often the
state was not exactly that of its checkpoint.

Run as a program it does so without the checkpoint's reader, and prints how many of the images were exact; the
images may then be so corrupt that LMDB takes the process down, which is why it is a program.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from random import Random

from raftstate.errors import RaftstateError
from raftstate.machine.tables import Table
from raftstate.store.checkpoint import CheckpointRecord, Pin
from raftstate.store.state import StateStore
from tests.store.state_model import Model, Workload, copy_model, rows_in

SECTOR_BYTES = 512
PAGE_BYTES = 4096


def torn(before: bytes, after: bytes, random: Random) -> bytes:
    """Return one page as a power cut may leave it: old, new, or some sectors of each."""
    kind = random.random()
    if kind < 0.45:
        return before
    if kind < 0.9:
        return after
    sectors = [
        random.choice((before, after))[start : start + SECTOR_BYTES]
        for start in range(0, PAGE_BYTES, SECTOR_BYTES)
    ]
    return b"".join(sectors)


def lossy_image(synced: bytes, written: bytes, random: Random) -> bytes:
    """Return a file whose pages that differ between the two were lost or kept at random."""
    keep_all_old, keep_all_new = random.random() < 0.1, random.random() < 0.1
    size = max(len(synced), len(written))
    before, after = synced.ljust(size, b"\0"), written.ljust(size, b"\0")
    pages = []
    for start in range(0, size, PAGE_BYTES):
        old, new = before[start : start + PAGE_BYTES], after[start : start + PAGE_BYTES]
        if old == new or keep_all_new:
            pages.append(new)
        else:
            pages.append(old if keep_all_old else torn(old, new, random))
    image = b"".join(pages)
    # Pages behind the synced end that were lost: the file may not have grown at all.
    return image[: len(synced)] if image[len(synced) :].strip(b"\0") == b"" else image


class Machine:
    """A state store on a machine that loses power."""

    def __init__(self, directory: Path, seed: int, *, protected: bool = True) -> None:
        """Args: where the images go; the seed; whether checkpoints keep their reader."""
        self.directory = directory
        self.random = Random(seed)
        self.protected = protected
        self.workload = Workload(self.random)
        self.boots = 0
        self.data_directory = directory / "boot-0"
        self.data_directory.mkdir(parents=True)
        self.store = StateStore.create(self.data_directory, map_bytes=1 << 28)
        self._started(CheckpointRecord.read(self.store.path / "checkpoint"))

    def _started(self, record: CheckpointRecord) -> None:
        if not self.protected and self.store._opened._pin is not None:
            self.store._opened._pin.end()
        self.applied_index = record.applied_index
        self.synced = self._data()
        self.published: tuple[CheckpointRecord, Model] = (record, copy_model(self.workload.model))

    def _data(self) -> bytes:
        return (self.store.path / "data.mdb").read_bytes()

    def run_until_cut(self) -> None:
        """Run transactions and checkpoints; return at a random moment, which may lie within a checkpoint."""
        for _ in range(self.random.randint(1, 4)):
            self._write(self.random.randint(0, 6))
            if self._checkpoint_is_cut():
                return
        self._write(self.random.randint(0, 6))

    def _write(self, transactions: int) -> None:
        for _ in range(transactions):
            with self.store.write() as tables:
                self.workload.transaction(tables)
            self.applied_index += 1
            if self.random.random() < 0.2:
                self._abort_one()

    def _abort_one(self) -> None:
        model, revision = copy_model(self.workload.model), self.workload.revision
        try:
            with self.store.write() as tables:
                self.workload.transaction(tables)
                raise InterruptedError
        except InterruptedError:
            self.workload.model, self.workload.revision = model, revision

    def _checkpoint_is_cut(self) -> bool:
        """Take a checkpoint with transactions between its steps; True if the power goes in the middle of
        it."""
        checkpoint = self.store.begin_checkpoint(self.applied_index)
        if not self.protected:
            checkpoint.pin.end()
        model = copy_model(self.workload.model)
        self._write(self.random.randint(0, 3))
        if self.random.random() < 0.15:
            return True
        checkpoint.sync()
        self.synced = self._data()
        if self.random.random() < 0.15:
            return True  # as far as the image goes: synced, and the file `checkpoint` not written yet
        self.published = (CheckpointRecord(checkpoint.applied_index, checkpoint.pin.meta), model)
        self._write(self.random.randint(0, 3))
        if self.random.random() < 0.15:
            return True
        checkpoint.finish()
        return False

    def cut_and_start(self) -> bool:
        """Lose power, start from what is left, and return whether the state is exactly that of the last
        durable checkpoint."""
        record, model = self.published
        self.boots += 1
        image = self.directory / f"boot-{self.boots}"
        generation = image / "state-1"
        generation.mkdir(parents=True)
        (image / "CURRENT").write_bytes(b"state-1\n")
        (generation / "checkpoint").write_bytes(record.to_bytes())
        (generation / "data.mdb").write_bytes(lossy_image(self.synced, self._data(), self.random))
        if self.random.random() < 0.5:
            (generation / "lock.mdb").write_bytes((self.store.path / "lock.mdb").read_bytes())
        self.store.close(clean=False)
        shutil.rmtree(self.data_directory)
        self.data_directory = image
        self.store = StateStore.open(image)
        exact = rows_in(self.store) == model
        assert self.store.durable_applied_index == record.applied_index
        self.workload.model = copy_model(model)
        self.workload.revision = max((int.from_bytes(key, "big") for key in model[Table.CHANGES]), default=0)
        self._started(record)
        return exact

    def close(self) -> None:
        self.store.close(clean=False)


def count_exact(directory: Path, seed: int, images: int, *, protected: bool = True) -> int:
    """Cut the power `images` times; return how many starts came back exact. Stops at the first that did
    not."""
    machine = Machine(directory, seed, protected=protected)
    exact = 0
    try:
        for _ in range(images):
            machine.run_until_cut()
            if not machine.cut_and_start():
                break
            exact += 1
    finally:
        machine.close()
    return exact


def main(directory: str, seed: str, images: str) -> None:
    """Print how many images were exact when nothing kept LMDB from reusing the checkpoint's pages."""
    Pin.stands = lambda self: True  # type: ignore[method-assign]
    try:
        print(count_exact(Path(directory), int(seed), int(images), protected=False))
    except RaftstateError as error:
        sys.exit(f"corrupt: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
