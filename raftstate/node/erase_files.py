"""What an erase asks of a node's files, over its real parts: implements `erase.ErasedFiles`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from raftstate.core.roles import Role
from raftstate.errors import ClosedError, RaftstateError
from raftstate.node.defragment import Defragmenter, Rewritten
from raftstate.node.driver import Driver
from raftstate.store.erased import write_erased
from raftstate.store.log import LogStore
from raftstate.store.log_writer import LogWriter
from raftstate.store.state import StateStore

_LIMIT = "erase"
COPY_BYTES = 16 << 20
"""Of a log that is copied as it is, in a tenth of a second or so."""


class NodeFiles:
    """The files of one node. All methods and callbacks are the loop's.

    Args:
        driver, state, log_store, log_writer, defragmenter: the node's.
        cut_index: returns up to where the log may be cut, with a small margin.
    """

    def __init__(
        self,
        driver: Driver,
        state: StateStore,
        log_store: LogStore,
        log_writer: LogWriter,
        defragmenter: Defragmenter,
        cut_index: Callable[[], int],
    ) -> None:
        self._driver = driver
        self._state = state
        self._log_store = log_store
        self._log_writer = log_writer
        self._defragmenter = defragmenter
        self._cut_index = cut_index
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="raftstate-erase")

    def generation(self) -> Path:
        """See `ErasedFiles.generation`."""
        return self._state.path

    def durable_index(self) -> int:
        """See `ErasedFiles.durable_index`."""
        return self._state.durable_applied_index

    def log_boundary(self) -> int:
        """See `ErasedFiles.log_boundary`."""
        return self._log_store.first_index() - 1

    def rewrite_state(self, done: Callable[[Rewritten | RaftstateError], None]) -> None:
        """See `ErasedFiles.rewrite_state`."""
        self._defragmenter.begin("erase", done)

    def followers_lack(self, index: int) -> bool:
        """See `ErasedFiles.followers_lack`."""
        raft = self._driver.raw.raft
        return raft.state is Role.LEADER and any(
            progress.recent_active and progress.match < index
            for peer, progress in raft.tracker.progress.items()
            if peer != raft.id
        )

    def retire_snapshots(self) -> None:
        """See `ErasedFiles.retire_snapshots`."""
        self._driver.snapshots.own.state_replaced()

    def cut_log(self, to_index: int, done: Callable[[BaseException | None], None]) -> None:
        """See `ErasedFiles.cut_log`."""
        self._log_writer.compact(to_index, done)

    def rewrite_log(self, done: Callable[[BaseException | None], None]) -> None:
        """See `ErasedFiles.rewrite_log`. A large log is cut closely first: appends wait for as long as it is
        copied, and each node copies its own at about the same time."""
        to_index = self._cut_index()
        if self._log_store.size_bytes() <= COPY_BYTES or to_index <= self.log_boundary():
            self._log_writer.rewrite(done)
            return

        def cut(error: BaseException | None) -> None:
            if error is not None:
                done(error)
                return
            try:
                self._log_writer.rewrite(done)
            except ClosedError as closed:
                done(closed)

        self._log_writer.compact(to_index, cut)

    def write_erased(self, index: int, done: Callable[[BaseException | None], None]) -> None:
        """See `ErasedFiles.write_erased`."""
        generation = self._state.path

        def finished(writing: asyncio.Future[None]) -> None:
            done(writing.exception())

        # At the end of an interpreter no executor takes work any more: the next start does it again.
        with suppress(RuntimeError):
            writing = asyncio.get_running_loop().run_in_executor(
                self._thread, write_erased, generation, index
            )
            writing.add_done_callback(finished)

    def alarm(self, reason: str) -> None:
        """See `ErasedFiles.alarm`."""
        if reason:
            self._driver.fitness.limit(_LIMIT, reason)
        else:
            self._driver.fitness.lift(_LIMIT)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()
