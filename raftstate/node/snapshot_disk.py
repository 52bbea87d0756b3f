"""Snapshots over a real state store: `environment.SnapshotDisk`, on threads beside the loop.

    data/snapshot-<index>-<n>   a file that is, or was, sent; nobody needs it after a restart
    data/state-<n>              what is being built (`store.snapshot`); a start removes it if not current

One thread makes files, one reads them, one builds. All of it is work that shares the interpreter with the
loop and the disk with the log, so the first and the last rest after each millisecond or two.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from raftstate.core.types import SnapshotMetadata
from raftstate.errors import InvariantError, StorageError
from raftstate.logs import get_logger
from raftstate.machine.layout import read_meta
from raftstate.machine.verify import check_state
from raftstate.node.environment import Done, PreparedState, SnapshotFile
from raftstate.store.files import disk_failure
from raftstate.store.snapshot import (
    PreparedGeneration,
    SnapshotBuilder,
    SnapshotMeta,
    content_of,
    write_snapshot,
)
from raftstate.store.state import StateStore

T = TypeVar("T")

log = get_logger(__name__)

REST_S = 0.002
"""After each slice of work: the loop, and on a small machine the other processes, get as much."""
RESTS_PER_SYNC = 64
"""A file is written back after so many slices, some 16 MiB: were it left to the system, the log's own sync
might have to wait for hundreds of them at once."""
ROOM_BYTES = 256 << 20
"""Left free on the disk beside a state that is built: the log goes on meanwhile."""
ADOPT_S = 10.0
"""How long a state waits to become current while another one, a repaired one, is being gone over to: that
takes two syncs and a few transactions."""
_FILES = "snapshot-*"


class _GivenUpError(Exception):
    """Nobody wants the result any more."""


class PreparedSnapshot:
    """A generation, as the driver has it: implements `environment.PreparedState`."""

    def __init__(self, generation: PreparedGeneration) -> None:
        self.generation = generation
        meta = generation.meta
        self.cluster_id = meta.cluster_id
        self.metadata = SnapshotMetadata(meta.conf_state, meta.index, meta.term)

    def discard(self) -> None:
        """See `environment.PreparedState.discard`. Removes files: a part of a second for each GiB."""
        if not self.generation.is_offered:
            try:
                self.generation.discard()
            except StorageError as error:
                log.warning("a discarded state is left over until the next start", error=str(error))


class StateSnapshots:
    """Implements `environment.SnapshotDisk`. Files left over from an earlier run are removed.

    Args:
        state: of this node.
        data_directory: of this node.
        cluster_id: whose snapshots are taken.

    Raises `StorageError` when what is left over can't be removed.
    """

    def __init__(self, state: StateStore, data_directory: Path, cluster_id: int) -> None:
        self._state = state
        self._data_directory = data_directory
        self._cluster_id = cluster_id
        self._loop = asyncio.get_running_loop()
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="raftstate-snapshot")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="raftstate-snapshot-read")
        self._builder = ThreadPoolExecutor(1, thread_name_prefix="raftstate-snapshot-build")
        self._closing = False
        self._numbers = itertools.count(1)
        for path in data_directory.glob(_FILES):
            self._unlink(path)

    # -- for others

    def make(self, done: Callable[[SnapshotFile | BaseException], None]) -> Callable[[], None]:
        """See `environment.SnapshotDisk.make`."""
        is_cancelled = False

        def rest() -> None:
            if is_cancelled or self._closing:
                raise _GivenUpError
            time.sleep(REST_S)

        def cancel() -> None:
            nonlocal is_cancelled
            is_cancelled = True

        def made(result: SnapshotFile | BaseException) -> None:
            if not is_cancelled:
                done(result)
            elif isinstance(result, SnapshotFile):
                self.remove(result)

        self._run(self._maker, lambda: self._make(rest), made)
        return cancel

    def _make(self, rest: Callable[[], None]) -> SnapshotFile:
        with self._state.read() as tables:
            # All of one transaction: what the file says of itself is what is in it.
            meta = read_meta(tables)
            rows, raw_bytes = content_of(tables)
            about = SnapshotMeta(
                cluster_id=meta.cluster_id,
                index=meta.applied_index,
                term=meta.applied_term,
                conf_state=meta.conf_state,
                machine_version=meta.machine_version,
                rows=rows,
                raw_bytes=raw_bytes,
            )
            # One that was made at this very entry before may still be sent.
            name = f"snapshot-{about.index}-{next(self._numbers)}"
            path = self._data_directory / name
            rests = 0

            def write_back_and_rest() -> None:
                nonlocal rests
                rests += 1
                if rests % RESTS_PER_SYNC == 0:
                    _write_back(path)
                rest()

            size_bytes = write_snapshot(tables, about, path, write_back_and_rest)
        metadata = SnapshotMetadata(about.conf_state, about.index, about.term)
        return SnapshotFile(name, metadata, size_bytes, raw_bytes)

    def read(
        self, file: SnapshotFile, offset: int, size: int, done: Callable[[bytes | BaseException], None]
    ) -> None:
        """See `environment.SnapshotDisk.read`."""
        path = self._data_directory / file.name

        def read() -> bytes:
            try:
                with open(path, "rb", buffering=0) as opened:
                    return os.pread(opened.fileno(), size, offset)
            except OSError as error:
                raise disk_failure("reading a snapshot", path, error) from error

        self._run(self._reader, read, done)

    def remove(self, file: SnapshotFile) -> None:
        """See `environment.SnapshotDisk.remove`."""

        def removed(result: BaseException | None) -> None:
            if result is not None:
                log.warning("a snapshot is left over until the next start", error=str(result))

        self._run(self._reader, lambda: self._unlink(self._data_directory / file.name), removed)

    def _unlink(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise disk_failure("removing a snapshot", path, error) from error

    # -- of others

    def why_no_room(self, raw_bytes: int) -> str:
        """See `environment.SnapshotDisk.why_no_room`."""
        try:
            system = os.statvfs(self._data_directory)
        except OSError as error:
            raise disk_failure("looking for free space", self._data_directory, error) from error
        free_bytes = system.f_bavail * system.f_frsize
        if free_bytes >= raw_bytes + ROOM_BYTES:
            return ""
        return (
            f"the disk has {free_bytes >> 20} MiB free, the state needs about {raw_bytes >> 20} and "
            f"{ROOM_BYTES >> 20} beside: free or add space"
        )

    def build(self) -> StateBuild:
        """See `environment.SnapshotDisk.build`."""
        return StateBuild(self)

    def make_current(self, prepared: PreparedState) -> None:
        """See `environment.SnapshotDisk.make_current`. Raises what `StateStore.make_current` does."""
        self._state.make_current(generation_of(prepared), wait_s=ADOPT_S)

    def adopt(self, prepared: PreparedState) -> None:
        """Let the state store go on with a state that is current. On the loop, between two transactions."""
        self._state.adopt(generation_of(prepared), self._end_replaced)

    def _end_replaced(self, end: Callable[[], None]) -> None:
        """Have a replaced state closed and removed. Raises `RuntimeError` once the threads have ended."""

        def ended(running: Future[None]) -> None:
            error = running.exception()
            if error is not None:
                log.warning("a replaced state is left over until the next start", error=str(error))

        self._builder.submit(end).add_done_callback(ended)

    # -- threads

    def _run(
        self, executor: ThreadPoolExecutor, job: Callable[[], T], done: Callable[[T | BaseException], None]
    ) -> None:
        """Run `job` on a thread; `done` gets its result or what it raised, on the loop, unless it gave up."""

        def finished(running: asyncio.Future[T]) -> None:
            error = running.exception()
            if error is None:
                done(running.result())
            elif not isinstance(error, _GivenUpError):
                done(error)

        # At the end of an interpreter no executor takes work any more: the next start removes what is left.
        with suppress(RuntimeError):
            self._loop.run_in_executor(executor, job).add_done_callback(finished)

    def close(self) -> None:
        """Give up what is under way, and end the threads. The driver has stopped."""
        self._closing = True
        for executor in (self._maker, self._reader, self._builder):
            executor.shutdown()


def _write_back(path: Path) -> None:
    try:
        opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(opened)
        finally:
            os.close(opened)
    except OSError as error:
        raise disk_failure("writing a snapshot", path, error) from error


def generation_of(prepared: PreparedState) -> PreparedGeneration:
    """Return the generation of a state that a `StateSnapshots` has built."""
    if not isinstance(prepared, PreparedSnapshot):
        raise InvariantError(f"a state that was prepared elsewhere: {type(prepared).__name__}")
    return prepared.generation


class StateBuild:
    """Implements `environment.SnapshotBuild` on the building thread."""

    def __init__(self, disk: StateSnapshots) -> None:
        self._disk = disk
        self._made: SnapshotBuilder | None = None
        self._is_discarded = False

    def _builder(self) -> SnapshotBuilder:
        self._check_wanted()
        if self._made is None:
            self._made = self._disk._state.build(self._disk._cluster_id)
        return self._made

    def _check_wanted(self) -> None:
        if self._is_discarded or self._disk._closing:
            raise _GivenUpError

    def _rest(self) -> None:
        self._check_wanted()
        time.sleep(REST_S)

    def feed(self, data: bytes, done: Done) -> None:
        """See `environment.SnapshotBuild.feed`."""
        self._disk._run(self._disk._builder, lambda: self._builder().feed(data), self._unless_discarded(done))

    def finish(self, done: Callable[[PreparedState | BaseException], None]) -> None:
        """See `environment.SnapshotBuild.finish`."""

        def finish() -> PreparedSnapshot:
            prepared = self._builder().finish(lambda tables: check_state(tables, self._rest))
            return PreparedSnapshot(prepared)

        def finished(result: PreparedSnapshot | BaseException) -> None:
            if not self._is_discarded:
                done(result)
            elif isinstance(result, PreparedSnapshot):
                self._disk._run(self._disk._builder, result.discard, lambda _: None)

        self._disk._run(self._disk._builder, finish, finished)

    def discard(self) -> None:
        """See `environment.SnapshotBuild.discard`."""
        self._is_discarded = True

        def discard() -> None:
            if self._made is not None:
                self._made.discard()

        def discarded(result: BaseException | None) -> None:
            if result is not None:
                log.warning("an unfinished state is left over until the next start", error=str(result))

        self._disk._run(self._disk._builder, discard, discarded)

    def _unless_discarded(self, done: Done) -> Callable[[BaseException | None], None]:
        return lambda result: None if self._is_discarded else done(result)
