"""Rewrites the state's files while the node serves: a new generation with the same rows, and nothing else.

    thread   the rows of one read transaction go into a new generation, which is verified and made durable
    then     the log is replayed on it, and the node goes over to it: raftstate.node.rebuild

Readers of the old generation read on, and it is removed when they have left. Nobody waits for the thread. A
crash leaves the old generation or the new one, and the other to be removed by the next start.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from raftstate.errors import ClosedError, FailedPreconditionError, RaftstateError, ResourceExhaustedError
from raftstate.logs import get_logger
from raftstate.machine.compaction import pending
from raftstate.machine.layout import read_meta
from raftstate.machine.tables import Table
from raftstate.machine.verify import check_state
from raftstate.node.environment import Clock
from raftstate.store.erased import write_erased
from raftstate.store.files import disk_failure
from raftstate.store.snapshot import PreparedGeneration, SnapshotMeta, content_of, feed_state
from raftstate.store.state import StateStore

log = get_logger(__name__)

REST_S = 0.002
"""After each millisecond or two of work on the thread: the loop gets as much as that took."""
ROOM_BYTES = 256 << 20
"""Left free on the disk beside the copy: the log goes on meanwhile."""
AUTO_LOOK_S = 60.0
"""Between two looks whether half of a large file is free."""
AUTO_RETRY_S = 3_600.0
"""After a try of its own accord that failed."""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What came of it. `clean_index`: of erasures up to this entry nothing is in the new files."""

    clean_index: int
    bytes_before: int
    bytes_after: int


Done = Callable[[Rewritten | RaftstateError], None]


class Rebuilding(Protocol):
    """What is asked of `raftstate.node.rebuild.StateRebuilder`."""

    @property
    def is_under_way(self) -> bool:
        """Whether a state is being replaced."""
        ...

    def hold_log(self, index: int) -> None:
        """Keep the log from `index` on, until `rebuild_from` ends, or `let_log_go`."""
        ...

    def let_log_go(self) -> None:
        """No copy comes after all."""
        ...

    def rebuild_from(
        self, prepared: PreparedGeneration, check: Callable[[int, int], None]
    ) -> Coroutine[Any, Any, None]:
        """Bring a prepared generation up to date and go on with it. It is discarded if that fails, or if
        `check`, called before there is no way back, raises."""
        ...


class Defragmenter:
    """Rewrites the state of one node. All methods and callbacks are the loop's.

    Args:
        state: the node's.
        rebuilder: goes over to what is made.
        clock: the node's.
        data_directory: the node's.
        why_not: returns why the state is not to be copied, for people: another one is about to take its
            place, or it can't be trusted. Empty: it may be.
        on_halt: called with what can't be gone on from.
        bytes_min: a state file larger than this is rewritten of its own accord when half of it is free; 0:
            never.
    """

    def __init__(
        self,
        state: StateStore,
        rebuilder: Rebuilding,
        clock: Clock,
        data_directory: Path,
        *,
        why_not: Callable[[], str],
        on_halt: Callable[[BaseException], None],
        bytes_min: int,
    ) -> None:
        self._state = state
        self._rebuilder = rebuilder
        self._clock = clock
        self._data_directory = data_directory
        self._why_not = why_not
        self._on_halt = on_halt
        self._bytes_min = bytes_min
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="raftstate-defragment")
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._auto_after_ns = 0
        self.erased_index: Callable[[], int] = lambda: 0
        """Returns up to which entry erasures are through with all files of this node."""
        self.why = ""
        """What it is under way for; empty: it is not."""
        self.done_bytes = self.total_bytes = 0
        """Of rows, while it is under way: how many are copied, of about how many."""

    def start(self) -> None:
        """Begin to look whether half of a large file is free."""
        if self._bytes_min:
            self._clock.call_later(AUTO_LOOK_S, self._look)

    def free_bytes(self) -> int:
        """Return how many bytes of the state's file nothing uses. Raises `StorageError`."""
        with self._state.read() as tables:
            used_bytes = sum(map(tables.stored_bytes, Table))
        return max(0, self._state.size_bytes() - used_bytes)

    def _look(self) -> None:
        if self._closing:
            return
        self._clock.call_later(AUTO_LOOK_S, self._look)
        size_bytes = self._state.size_bytes()
        if (
            size_bytes <= self._bytes_min
            or self.why
            or self._clock.monotonic_ns() < self._auto_after_ns
            or self.free_bytes() <= size_bytes // 2
        ):
            return
        try:
            self.begin("defragment", self._looked)
        except RaftstateError as error:
            self._looked(error)

    def _looked(self, result: Rewritten | RaftstateError) -> None:
        if isinstance(result, RaftstateError):
            log.warning("not defragmented", reason=str(result))
            self._auto_after_ns = self._clock.monotonic_ns() + int(AUTO_RETRY_S * 1e9)

    # -- one

    def begin(self, why: str, done: Done) -> int:
        """Begin to rewrite; return the size of the file as it is.

        Args:
            why: a word for status.
            done: called once, unless the node stops: with what came of it, or with why the node goes on with
                its old files.

        Raises:
            FailedPreconditionError: the state is being rewritten or replaced already.
            ResourceExhaustedError: the disk has no room for it.
            ClosedError: the node stops.
        """
        if self._closing:
            raise ClosedError("this node is stopping")
        why_not = self._why_not()
        if why_not:
            raise FailedPreconditionError(f"this node's files are not rewritten now: {why_not}")
        if self.why or self._rebuilder.is_under_way:
            what = self.why or "from another node's state"
            raise FailedPreconditionError(
                f"the files of this node's state are being rewritten already ({what}); wait for that"
            )
        self._check_room()
        self.why = why
        self.done_bytes = self.total_bytes = 0
        bytes_before = self._state.size_bytes()
        log.info("state rewrite begun", why=why, bytes=bytes_before)
        self._rebuilder.hold_log(self._state.durable_applied_index)
        self._task = asyncio.get_running_loop().create_task(self._rewrite(bytes_before, done))
        return bytes_before

    def _check_room(self) -> None:
        try:
            system = os.statvfs(self._data_directory)
        except OSError as error:
            raise disk_failure("looking for free space", self._data_directory, error) from error
        with self._state.read() as tables:
            needed_bytes = content_of(tables)[1] + ROOM_BYTES
        free_bytes = system.f_bavail * system.f_frsize
        if free_bytes < needed_bytes:
            raise ResourceExhaustedError(
                f"the disk has {free_bytes >> 20} MiB free, and a second copy of the state needs "
                f"{needed_bytes >> 20} MiB: free or add space"
            )

    async def _rewrite(self, bytes_before: int, done: Done) -> None:
        erased_index = self.erased_index()
        began_ns = self._clock.monotonic_ns()
        copied = self._state.path

        def check(_index: int, _digest: int) -> None:
            # What took its place since is right where this one may have been wrong.
            if self._state.path != copied:
                raise FailedPreconditionError("another state took the place of the one that was copied")

        result: Rewritten | RaftstateError
        try:
            copying = asyncio.get_running_loop().run_in_executor(self._thread, self._copy, erased_index)
            try:
                prepared, clean_index = await copying
            except BaseException:
                self._rebuilder.let_log_go()
                raise
            await self._rebuilder.rebuild_from(prepared, check)
            result = Rewritten(max(clean_index, erased_index), bytes_before, self._state.size_bytes())
        except RaftstateError as error:
            result = error
            log.warning("state not rewritten", why=self.why, error=str(error))
        except Exception as error:  # noqa: BLE001 - not swallowed: it halts the node
            self._on_halt(error)
            return
        finally:
            why, self.why = self.why, ""
        if isinstance(result, Rewritten):
            took_s = (self._clock.monotonic_ns() - began_ns) / 1e9
            log.info(
                "state rewritten",
                why=why,
                bytes_before=bytes_before,
                bytes=result.bytes_after,
                took_s=round(took_s, 2),
            )
        if not self._closing:
            done(result)

    def _copy(self, erased_index: int) -> tuple[PreparedGeneration, int]:
        """On the thread: copy all rows, and verify them. Returns up to which erasure none of them is left."""
        builder = self._state.build()
        try:
            with self._state.read() as tables:
                meta = read_meta(tables)
                rows, self.total_bytes = content_of(tables)
                about = SnapshotMeta(
                    cluster_id=meta.cluster_id,
                    index=meta.applied_index,
                    term=meta.applied_term,
                    conf_state=meta.conf_state,
                    machine_version=meta.machine_version,
                    rows=rows,
                    raw_bytes=self.total_bytes,
                )
                is_swept = not pending(tables, meta.compacted_revision)
                feed_state(tables, about, builder.feed, self._rest, self._fed)
            prepared = builder.finish(lambda tables: check_state(tables, self._rest))
        except BaseException:
            builder.discard()
            raise
        if erased_index:
            # What is true of the rows is true of their copy.
            write_erased(prepared.path, erased_index)
        return prepared, meta.last_erase_index if is_swept else 0

    def _fed(self, size_bytes: int) -> None:
        self.done_bytes += size_bytes

    def _rest(self) -> None:
        if self._closing:
            raise ClosedError("this node is stopping")
        time.sleep(REST_S)

    async def close(self) -> None:
        """Give up what is under way, and end the thread. The rebuilder was told to stop."""
        self._closing = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._thread.shutdown()
