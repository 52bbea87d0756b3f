"""Applies committed entries to the state, and takes its checkpoints.

Entries are applied on the event loop, in one LMDB transaction a portion: the state's transactions wait for no
disk, and a thread of its own would have to fight the loop for the interpreter at each of LMDB's calls. What
does wait for the disk, a checkpoint's sync, runs on a thread beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog

from raftstate.core.types import ConfState, Entry
from raftstate.errors import ResourceExhaustedError
from raftstate.machine.machine import Machine
from raftstate.machine.types import BatchResult, EntryResult
from raftstate.node.environment import Clock, Timer
from raftstate.store.checkpoint import CHECKPOINT_NS, Checkpointer
from raftstate.store.log_writer import LogWriter
from raftstate.store.state import StateStore

log = structlog.get_logger(__name__)

LOG_MARGIN_ENTRIES = 10_000
"""Entries kept behind the last checkpoint, for followers that are a little behind: cheaper than a
snapshot."""
CUT_ENTRIES_MIN = 2_000
"""The log is cut when at least so many entries can go: each cut is a transaction of its own."""


LAZY_S = 0.010
"""How long a follower lets entries wait for more, when no read waits for them. Less than a heartbeat: small
beside the lag that followers are held to, and at a full load it halves the pages that their transactions
write."""


@dataclass(frozen=True, slots=True)
class _Portion:
    entries: Sequence[Entry]
    conf_states: Mapping[int, ConfState]
    done: Callable[[list[EntryResult]], None]


class StateApplier:
    """Implements `environment.Applier` over a machine and its state store.

    Args:
        machine: loaded from `state`.
        state: open, with its first checkpoint taken.
        log_writer: cuts the log behind checkpoints.
        clock: the node's.
        on_halt: called with what can't be gone on from.
    """

    def __init__(
        self,
        machine: Machine,
        state: StateStore,
        log_writer: LogWriter,
        clock: Clock,
        on_halt: Callable[[BaseException], None],
    ) -> None:
        self._machine = machine
        self._state = state
        self._log_writer = log_writer
        self._clock = clock
        self._on_halt = on_halt
        self._checkpointer = Checkpointer(state, clock.monotonic_ns())
        self._waiting: list[_Portion] = []
        self._lazy_timer: Timer | None = None
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="raftstate-checkpoint")
        self._syncing: asyncio.Future[None] | None = None
        self._timer: Timer | None = None
        self._cut_to = 0
        self._cutting = False
        self._commands = 0
        self._closing = False
        self._failed = False

    def apply(
        self,
        entries: Sequence[Entry],
        conf_states: Mapping[int, ConfState],
        done: Callable[[list[EntryResult]], None],
        *,
        lazily: bool,
    ) -> None:
        """See `environment.Applier.apply`."""
        self._waiting.append(_Portion(entries, conf_states, done))
        if not lazily:
            self._work()
        elif self._lazy_timer is None:
            self._lazy_timer = self._clock.call_later(LAZY_S, self._work)

    def hurry(self) -> None:
        """See `environment.Applier.hurry`."""
        if self._waiting:
            self._work()

    def _work(self) -> None:
        """Apply all that waits, in one transaction: the pages of the index are written once, however many
        portions touch them."""
        if self._lazy_timer is not None:
            self._lazy_timer.cancel()
            self._lazy_timer = None
        if not self._waiting or self._failed or self._closing:
            return
        if self._checkpointer.must_wait:
            # So much was dirtied since the last checkpoint that more would only pile up on the disk; the one
            # under way, or begun here, lets it go on.
            self._begin_checkpoint()
            return
        portions, self._waiting = self._waiting, []
        entries = [entry for portion in portions for entry in portion.entries]
        conf_states = {index: state for portion in portions for index, state in portion.conf_states.items()}
        try:
            with self._state.write() as tables:
                results = self._machine.apply(tables, entries, conf_states)
        except Exception as error:  # noqa: BLE001 - not swallowed: it halts the node
            self._fail(error)
            return
        # The transaction has committed: from here on readers see it, and answers may leave.
        self._commands += sum(map(_commands, results))
        start = 0
        for portion in portions:
            end = start + len(portion.entries)
            portion.done(results[start:end])
            start = end
        self._checkpoint_if_due()

    def _checkpoint_if_due(self) -> None:
        if self._checkpointer.due(self._clock.monotonic_ns(), self._commands):
            self._begin_checkpoint()
        elif self._timer is None and self._syncing is None:
            self._timer = self._clock.call_later(CHECKPOINT_NS / 1e9, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        if not self._failed and self._state.dirtied_bytes:
            self._checkpoint_if_due()

    def _begin_checkpoint(self) -> None:
        if self._syncing is not None or self._failed:
            return
        now_ns = self._clock.monotonic_ns()
        try:
            checkpoint = self._checkpointer.begin(now_ns, self._commands, self._machine.applied_index)
        except ResourceExhaustedError as error:
            # No reader slot is free: readers come and go, and nothing is lost by a later checkpoint.
            log.warning("checkpoint postponed", reason=str(error))
            self._timer = self._timer or self._clock.call_later(CHECKPOINT_NS / 1e9, self._timer_fired)
            return
        except Exception as error:  # noqa: BLE001 - not swallowed: it halts the node
            self._fail(error)
            return
        self._syncing = asyncio.get_running_loop().run_in_executor(self._disk, checkpoint.sync)
        self._syncing.add_done_callback(self._synced)

    def _synced(self, syncing: asyncio.Future[None]) -> None:
        self._syncing = None
        try:
            syncing.result()
            self._checkpointer.finish()
        except Exception as error:  # noqa: BLE001 - not swallowed: it halts the node
            self._fail(error)
            return
        self._cut_log()
        self._work()
        if self._state.dirtied_bytes and self._syncing is None:
            self._checkpoint_if_due()

    def _cut_log(self) -> None:
        """Let the log go up to the checkpoint, but for a margin. One cut at a time."""
        to_index = self._state.durable_applied_index - LOG_MARGIN_ENTRIES
        if self._cutting or to_index - self._cut_to < CUT_ENTRIES_MIN:
            return
        self._cutting = True

        def done(error: BaseException | None) -> None:
            self._cutting = False
            if error is None:
                self._cut_to = to_index
            elif not self._closing:
                self._fail(error)

        self._log_writer.compact(to_index, done)

    def _fail(self, error: BaseException) -> None:
        self._failed = True
        self._on_halt(error)

    async def close(self) -> bool:
        """Stop; return whether the state ends with a checkpoint, which the next start can trust as it is."""
        self._closing = True
        for timer in (self._timer, self._lazy_timer):
            if timer is not None:
                timer.cancel()
        self._waiting.clear()
        if self._syncing is not None:
            await asyncio.wait([self._syncing])
        # The checkpoint's own callback runs on the loop's next turn.
        await asyncio.sleep(0)
        try:
            if self._failed:
                return False
            if self._state.dirtied_bytes:
                self._begin_checkpoint()
                if self._syncing is not None:
                    await asyncio.wait([self._syncing])
                    await asyncio.sleep(0)
            return not self._failed
        finally:
            self._disk.shutdown()


def _commands(result: EntryResult) -> int:
    return sum(
        len(item.serials) + len(item.answers) if isinstance(item, BatchResult) else 1 for item in result.items
    )
