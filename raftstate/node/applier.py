"""Applies committed entries to the state, and takes its checkpoints.

Entries are applied on the event loop, in one LMDB transaction a portion: the state's transactions wait for no
disk, and a thread of its own would have to fight the loop for the interpreter at each of LMDB's calls. What
does wait for the disk, a checkpoint's sync, runs on a thread beside it.

What a compaction leaves to be deleted is deleted here, too, in slices between the portions: transactions like
any other, but that no entry asked for them, and nobody waits for them.

Where the disk has no room for a transaction, what was to be applied is kept, and applied again once there is:
no answer has left before, and reads go on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from raftstate.core.types import ConfState, Entry
from raftstate.errors import ClosedError, DataLossError, RaftstateError, ResourceExhaustedError
from raftstate.logs import get_logger
from raftstate.machine.machine import Machine
from raftstate.machine.types import BatchResult, EntryResult, LongApply
from raftstate.measure import Histogram
from raftstate.node.environment import Clock, Done, PreparedState, Timer
from raftstate.store.checkpoint import CHECKPOINT_NS, Checkpoint, Checkpointer
from raftstate.store.files import is_full
from raftstate.store.log_writer import LogWriter
from raftstate.store.state import StateStore

log = get_logger(__name__)

CUT_ENTRIES_MIN = 2_000
"""The log is cut when at least so many entries can go, or as many as the margin has: each cut is a
transaction of its own."""
LAZY_S = 0.010
"""How long a follower lets entries wait for more, when no read or watch waits for them. Less than a
heartbeat: small beside the lag that followers are held to, and at a full load it halves the pages that their
transactions write."""
KEYS_ON_LOOP_MAX = 2_000
"""Keys that ranges, revoked leases and, four to a key, operations of transactions may meet in a transaction
on the loop, some 20 ms; with more it is made on a thread."""
FULL_RETRY_S = 0.2
"""How long what the disk has no room for waits before it is tried again."""
SCARCE_MARGIN_BYTES, SCARCE_MARGIN_ENTRIES = 8 << 20, 1_000
"""What is kept of the log behind the last checkpoint while disk space is short."""

SWEEP_NS = 3_000_000
"""How long a slice of the sweep after a compaction may hold the loop: as long as a portion does."""
SWEEP_CHANGES = 200
"""Changes of the first slice, some 3 ms where each takes rows of other keys with it."""
SWEEP_CHANGES_MAX = 2_000
"""However quick the slices are: the next one may meet other rows."""
SWEEP_PAUSE_S = 0.015
"""Between two slices: a heartbeat, in which the loop gets most of the time."""
SWEEP_PAUSE_BUSY_S = 0.030
"""Between two slices if entries were applied meanwhile."""
SWEEP_PAUSE_S_MIN = 0.003
"""However far the sweep is behind: half of the loop's time, about, is left for everything else."""


@dataclass(frozen=True, slots=True)
class _Portion:
    entries: Sequence[Entry]
    conf_states: Mapping[int, ConfState]
    done: Callable[[list[EntryResult]], None]


class _Work:
    """Portions that share a transaction."""

    def __init__(self, portions: list[_Portion]) -> None:
        self.portions = portions
        self.entries = [entry for portion in portions for entry in portion.entries]
        self.conf_states = {
            index: state for portion in portions for index, state in portion.conf_states.items()
        }


class StateApplier:
    """Implements `environment.Applier` over a machine and its state store.

    Args:
        machine: loaded from `state`.
        state: open, with its first checkpoint taken.
        log_writer: cuts the log behind checkpoints.
        clock: the node's.
        on_halt: called with what can't be gone on from.
        adopt: makes `state` go on with a state that has become current.
        log_margin_entries: so many entries are kept behind the last checkpoint,
        log_margin_bytes: if they have no more bytes than this.
        log_boundary: what the log was cut to before.
    """

    def __init__(
        self,
        machine: Machine,
        state: StateStore,
        log_writer: LogWriter,
        clock: Clock,
        on_halt: Callable[[BaseException], None],
        *,
        adopt: Callable[[PreparedState], None],
        log_margin_bytes: int,
        log_margin_entries: int,
        log_boundary: int = 0,
    ) -> None:
        self._adopt_state = adopt
        self._log_margin_bytes = log_margin_bytes
        self._log_margin_entries = log_margin_entries
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
        self._synced_meanwhile: asyncio.Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="raftstate-apply")
        self._beside: asyncio.Future[Any] | None = None
        """A transaction under way on the thread, or another state that is being brought up to this one: the
        loop begins no transaction, and no checkpoint, and leaves the machine alone."""
        self._timer: Timer | None = None
        self._cut_to = log_boundary
        self._cutting = False
        self._log_needed_from: list[Callable[[], int | None]] = []
        self.may_cut: Callable[[], bool] = lambda: True
        """Asked before the log is cut, unless space is short."""
        self._adopting: tuple[PreparedState, Callable[[], None]] | None = None
        """What waits until nothing is under way that belongs to the old state."""
        self._adopted: list[Callable[[], None]] = []
        self._exchanged: list[Callable[[], None]] = []
        self._applied_bytes = self._cut_bytes = self._last_outside = 0
        self._sizes: deque[tuple[int, int]] = deque()
        """(last index, bytes applied by then) of each transaction that is within the margin."""
        self._commands = 0
        self._observers: list[Callable[[], None]] = []
        self._needs_before: list[Callable[[int], bool]] = []
        self._told = (machine.revision, machine.compacted_revision)
        self._sweep_timer: Timer | None = None
        self._sweep_changes = SWEEP_CHANGES
        self._applied_since_slice = False
        self._sweeping = False
        self._compactions_behind = 0
        """How many compactions came while there was still something to sweep of earlier ones."""
        self._full_timer: Timer | None = None
        self._syncing_again = False
        self._checkpoint: Checkpoint | None = None
        self._space_is_short = False
        self.full: str | None = None
        """What the disk said when it had no room for the state; None: it has."""
        self._closing = False
        self._failed = False
        self.apply_seconds = Histogram()
        """Of transactions of portions, from their begin to their commit."""
        self.checkpoint_seconds = Histogram()
        """Of checkpoints, from their begin until they were durable."""
        self._checkpoint_began_ns = self._durable_as_of_ns = clock.monotonic_ns()
        self._stalled = False
        self._exchanging: tuple[Callable[[], None], Callable[[], None], Done] | None = None
        """As `_adopting`, but for a state that the entries here were applied to as well."""
        self.on_damage: Callable[[DataLossError], bool] = lambda _: False
        """Told of damage that a transaction has met; returns whether another state will be put in the place
        of this one (`exchange`). Until then nothing is applied; or this node halts."""

    @property
    def commands_applied(self) -> int:
        """How many commands were applied since the start."""
        return self._commands

    @property
    def checkpoint_age_ns(self) -> int:
        """For how long, at most, something was applied that no durable checkpoint has; 0: they have all."""
        if not self._state.dirtied_bytes:
            return 0
        return self._clock.monotonic_ns() - self._durable_as_of_ns

    def on_applied(self, callback: Callable[[], None]) -> None:
        """Have `callback` called on the loop after each transaction that made a revision, or moved the
        compacted one: once it is committed, and its answers have left."""
        self._observers.append(callback)

    def hold_sweep_while(self, needs_before: Callable[[int], bool]) -> None:
        """Have no slice of a sweep made while `needs_before`, given the compacted revision, returns True:
        somebody is about to read changes before it."""
        self._needs_before.append(needs_before)

    def on_adopted(self, callback: Callable[[], None]) -> None:
        """Have `callback` called on the loop when another state has taken the place of this one: at a later
        index, and perhaps without some of the history that this one had."""
        self._adopted.append(callback)

    def on_exchanged(self, callback: Callable[[], None]) -> None:
        """Have `callback` called on the loop when this node has gone over to other files of the state, as of
        the same entry, before anything is applied to them."""
        self._exchanged.append(callback)

    def hold_log_from(self, needed_from: Callable[[], int | None]) -> None:
        """Have the log cut no further than the index that `needed_from` returns, unless that is None."""
        self._log_needed_from.append(needed_from)

    def start(self) -> None:
        """Go on with a sweep that was under way when the node stopped."""
        self._sweep_later()

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

    @property
    def is_beside(self) -> bool:
        """See `environment.Applier.is_beside`."""
        return self._beside is not None or self._stalled

    @property
    def is_stalled(self) -> bool:
        """Whether nothing can be applied before the state is exchanged."""
        return self._stalled

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
        if not self._waiting or self._failed or self._closing or self.is_beside:
            return
        if self._adopting is not None:
            return  # what waits is within the state that comes
        if self._full_timer is not None:
            return
        if self._checkpointer.must_wait:
            # So much was dirtied since the last checkpoint that more would only pile up on the disk; the one
            # under way, or begun here, lets it go on.
            self._begin_checkpoint()
            return
        work = _Work(self._waiting)
        self._waiting = []
        began_ns = self._clock.monotonic_ns()
        try:
            with self._state.write() as tables:
                results = self._machine.apply(
                    tables, work.entries, work.conf_states, keys_at_once_max=KEYS_ON_LOOP_MAX
                )
        except LongApply:
            self._work_beside(work)
        except DataLossError as error:
            self._stall(work, error)
        except Exception as error:  # noqa: BLE001 - not swallowed: it halts the node, or is tried again
            self._put_back(work, error)
        else:
            self.apply_seconds.observe_ns(self._clock.monotonic_ns() - began_ns)
            self._applied(work, results)

    def _stall(self, work: _Work, error: DataLossError) -> None:
        """A row that the entries need is damaged: they wait until another state has taken this one's place,
        if one will."""
        self._waiting[:0] = work.portions
        self._stalled = True
        log.error("state damaged; nothing is applied until it is replaced", error=str(error))
        if not self.on_damage(error):
            self._fail(error)
        self._go_over_if_idle()

    def _work_beside(self, work: _Work) -> None:
        """Apply on a thread what would hold the loop for longer than followers wait for a heartbeat."""

        began_ns = self._clock.monotonic_ns()

        def apply() -> list[EntryResult]:
            # Where many leases are, to take back what was begun takes long, too.
            with self._state.read() as tables:
                self._machine.load(tables)
            with self._state.write() as tables:
                return self._machine.apply(tables, work.entries, work.conf_states)

        self._beside = asyncio.get_running_loop().run_in_executor(self._thread, apply)
        self._beside.add_done_callback(lambda beside: self._worked_beside(work, beside, began_ns))

    def _worked_beside(self, work: _Work, beside: asyncio.Future[list[EntryResult]], began_ns: int) -> None:
        self._beside = None
        try:
            results = beside.result()
        except DataLossError as error:
            self._stall(work, error)
        except Exception as error:  # noqa: BLE001 - not swallowed: it halts the node, or is tried again
            self._put_back(work, error)
        else:
            self.apply_seconds.observe_ns(self._clock.monotonic_ns() - began_ns)
            self._applied(work, results)
        synced, self._synced_meanwhile = self._synced_meanwhile, None
        if synced is not None:
            self._synced(synced)
        self._go_over_if_idle()
        self._work()

    def _put_back(self, work: _Work, error: Exception) -> None:
        """Keep what could not be applied for want of space until there is some; halt for any other reason."""
        if self._waits_for_room(error):
            self._waiting[:0] = work.portions

    def _waits_for_room(self, error: Exception) -> bool:
        """After a transaction that failed: if only space lacks, take back what the machine has made of it,
        and come back in a moment. Otherwise halt, and return False."""
        if not is_full(error) or self._state.failure is not None:
            self._fail(error)
            return False
        try:
            with self._state.read() as tables:
                self._machine.load(tables)
        except RaftstateError as unread:
            self._fail(unread)
            return False
        if self.full is None:
            log.error("no room to apply", reason=str(error))
        self.full = str(error)
        if self._full_timer is None and not self._closing:
            self._full_timer = self._clock.call_later(FULL_RETRY_S, self._try_again)
        # What is free within the file is that only once a checkpoint has been finished.
        if self._state.dirtied_bytes:
            self._begin_checkpoint()
        return True

    def _try_again(self) -> None:
        self._full_timer = None
        if self._failed or self._closing:
            return
        self._work()
        self._sweep_later()
        if not self._waiting and self._full_timer is None:
            self._has_room()

    def _has_room(self) -> None:
        if self.full is not None:
            log.info("there is room again", node_applied=self._machine.applied_index)
            self.full = None

    def _applied(self, work: _Work, results: list[EntryResult]) -> None:
        """The transaction has committed: from here on readers see it, and answers may leave."""
        self._has_room()
        self._commands += sum(map(_commands, results))
        self._applied_bytes += sum(len(entry.data) for entry in work.entries)
        self._sizes.append((work.entries[-1].index, self._applied_bytes))
        # The first ones may have been within a state that took the place of this one: they have no results.
        start = len(results) - len(work.entries)
        for portion in work.portions:
            end = start + len(portion.entries)
            portion.done(results[max(0, start) : max(0, end)])
            start = end
        self._applied_since_slice = True
        self._tell()
        self._sweep_later()
        self._checkpoint_if_due()

    def _tell(self) -> None:
        now = (self._machine.revision, self._machine.compacted_revision)
        if now != self._told:
            if now[1] != self._told[1] and self._sweeping:
                self._compactions_behind += 1
            self._told = now
            for observer in self._observers:
                observer()

    def _sweep_later(self) -> None:
        self._sweeping = self._machine.sweep_pending
        if not self._sweeping:
            self._compactions_behind = 0
        elif self._sweep_timer is None and not self._closing:
            pause_s = SWEEP_PAUSE_BUSY_S if self._applied_since_slice else SWEEP_PAUSE_S
            # A sweep that does not keep up would let the files grow for as long as the writes go on.
            pause_s = max(SWEEP_PAUSE_S_MIN, pause_s / (1 + self._compactions_behind))
            self._applied_since_slice = False
            self._sweep_timer = self._clock.call_later(pause_s, self._sweep)

    def _sweep(self) -> None:
        """Delete a slice of what a compaction has made superfluous."""
        self._sweep_timer = None
        if self._failed or self._closing or self.is_beside or self._adopting is not None:
            return  # what runs beside the loop calls for the next slice when it is done
        if self._full_timer is not None:
            return  # what waits for room does, too
        if self._checkpointer.must_wait:
            self._begin_checkpoint()
        elif not any(needs(self._machine.compacted_revision) for needs in self._needs_before):
            began_ns = self._clock.monotonic_ns()
            try:
                with self._state.write() as tables:
                    swept = self._machine.sweep(tables, self._sweep_changes)
            except DataLossError as error:
                self._sweep_failed(error)
                return
            except Exception as error:  # noqa: BLE001 - not swallowed: it halts the node, or is tried again
                self._waits_for_room(error)
                return
            self._set_pace(swept, self._clock.monotonic_ns() - began_ns)
            if not self._machine.sweep_pending:
                log.info("history deleted", compacted_revision=self._machine.compacted_revision)
            self._checkpoint_if_due()
        self._sweep_later()

    def _sweep_failed(self, error: DataLossError) -> None:
        """A row on the way is damaged: no more is swept, and entries are applied for as long as they can."""
        log.error("history not deleted", error=str(error))
        try:
            with self._state.read() as tables:
                self._machine.load(tables)
        except DataLossError:
            self._stalled = True
        if not self.on_damage(error) and self._stalled:
            self._fail(error)

    def _set_pace(self, swept: int, took_ns: int) -> None:
        """Make the next slice shorter than one that took too long, or longer than one that had time left."""
        if took_ns > SWEEP_NS:
            self._sweep_changes = max(1, self._sweep_changes // 2)
        elif took_ns < SWEEP_NS // 2 and swept >= self._sweep_changes:
            self._sweep_changes = min(self._sweep_changes * 2, SWEEP_CHANGES_MAX)

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
        if self._syncing is not None or self.is_beside or self._failed or self._closing:
            return
        if self._adopting is not None or self._exchanging is not None:
            return  # of a state that is current no more
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
        self._checkpoint_began_ns = now_ns
        self._checkpoint = checkpoint
        self._sync(checkpoint)

    def _sync(self, checkpoint: Checkpoint) -> None:
        self._syncing_again = False
        self._syncing = asyncio.get_running_loop().run_in_executor(self._disk, checkpoint.sync)
        self._syncing.add_done_callback(self._synced)

    def _synced(self, syncing: asyncio.Future[None]) -> None:
        if self._beside is not None:
            # The last step belongs between two transactions.
            self._synced_meanwhile = syncing
            return
        try:
            syncing.result()
            self._checkpointer.finish()
        except Exception as error:  # noqa: BLE001 - not swallowed: it halts the node, or is tried again
            self._sync_again_if_full(error)
            return
        self._syncing = self._checkpoint = None
        self._durable_as_of_ns = self._checkpoint_began_ns
        self.checkpoint_seconds.observe_ns(self._clock.monotonic_ns() - self._checkpoint_began_ns)
        self._go_over_if_idle()
        self._cut_log()
        self._work()
        if self._state.dirtied_bytes and self._syncing is None:
            self._checkpoint_if_due()

    def _sync_again_if_full(self, error: Exception) -> None:
        """Publish the checkpoint later if there was no room for its small file; it stays in progress."""
        if not is_full(error) or self._state.failure is not None:
            self._fail(error)
            return
        log.warning("checkpoint waits for room", reason=str(error))
        self._syncing_again = True
        self._clock.call_later(FULL_RETRY_S, self._sync_again)

    def _sync_again(self) -> None:
        if self._checkpoint is not None and not self._failed and not self._closing:
            self._sync(self._checkpoint)

    def space_is_short(self, short: bool) -> None:
        """Say whether disk space is short: then the log goes almost up to the last checkpoint, at once."""
        self._space_is_short = short
        if short:
            self._cut_log()

    def _index_before_margin(self, margin_bytes: int) -> int:
        """Return the last index with more than the margin's bytes behind it; 0 when there is none."""
        while self._sizes and self._applied_bytes - self._sizes[0][1] > margin_bytes:
            self._last_outside, _ = self._sizes.popleft()
        return self._last_outside

    def cut_index(self, *, closely: bool) -> int:
        """Return up to where the log may be cut now. `closely`: with a small margin."""
        durable_index = self._state.durable_applied_index
        margin_bytes, margin_entries = self._log_margin_bytes, self._log_margin_entries
        if closely:
            margin_bytes = min(margin_bytes, SCARCE_MARGIN_BYTES)
            margin_entries = min(margin_entries, SCARCE_MARGIN_ENTRIES)
        # Never the whole log: a node that joins must not be sent the entries from the first one on, which
        # were applied to a state that it has not.
        to_index = max(durable_index - margin_entries, self._index_before_margin(margin_bytes), 1)
        needed = [index for held in self._log_needed_from if (index := held()) is not None]
        return min(to_index, durable_index, *needed)

    def _cut_log(self) -> None:
        """Let the log go up to the checkpoint, but for a margin. One cut at a time."""
        to_index = self.cut_index(closely=self._space_is_short)
        if self._cutting or self._closing or to_index <= self._cut_to:
            return
        if not self._space_is_short and not self.may_cut():
            return
        large = self._applied_bytes - self._cut_bytes > self._log_margin_bytes or self._space_is_short
        worthwhile = min(CUT_ENTRIES_MIN, self._log_margin_entries)
        if to_index - self._cut_to < worthwhile and self._cut_to and not large:
            return
        self._cutting = True
        self._cut_bytes = self._applied_bytes

        def done(error: BaseException | None) -> None:
            self._cutting = False
            if error is None:
                self._cut_to = to_index
                if self._space_is_short and not self._log_writer.is_closed:
                    self._cut_log()  # it may have become so since this cut was asked for
            elif is_full(error):
                log.warning("log not cut", reason=str(error))  # a later checkpoint tries again
            elif not self._closing and not isinstance(error, ClosedError):
                self._fail(error)

        self._log_writer.compact(to_index, done)

    def exchange(self, bring_up: Callable[[], None], swap: Callable[[], None], done: Done) -> None:
        """Go over to another state that this one's entries were applied to.

        Args:
            bring_up: called on a thread, while nothing is applied, and with no checkpoint under way: it
                brings the other state to the same entry, or further.
            swap: then called on the loop: it has the store adopt that state.
            done: called when the machine is loaded from it, before anything is applied to it; or with what
                one of the two has raised.
        """
        self._exchanging = (bring_up, swap, done)
        self._go_over_if_idle()

    def _go_over_if_idle(self) -> None:
        """Go over to another state, if one waits and nothing is under way that belongs to this one."""
        if self._beside is not None or self._syncing is not None:
            return
        if self._failed or self._closing:
            return  # it is current on disk: the next start goes on with it
        if self._exchanging is not None:
            bring_up, swap, done = self._exchanging
            self._beside = asyncio.get_running_loop().run_in_executor(self._thread, bring_up)
            self._beside.add_done_callback(lambda brought_up: self._brought_up(brought_up, swap, done))
        elif self._adopting is not None:
            (prepared, adopted), self._adopting = self._adopting, None
            self._adopt(prepared, adopted)

    def _brought_up(self, brought_up: asyncio.Future[None], swap: Callable[[], None], done: Done) -> None:
        self._beside = self._exchanging = None
        error = brought_up.exception()
        if self._failed or self._closing:
            return  # it is current on disk: the next start goes on with it
        if error is not None:
            done(error)
        else:
            self._exchange(swap, done)
        self._go_over_if_idle()

    def _exchange(self, swap: Callable[[], None], done: Done) -> None:
        self._machine.lose_sum_changes()
        try:
            swap()
            with self._state.read() as tables:
                self._machine.adopt(tables)
        except Exception as error:  # noqa: BLE001 - not swallowed: it is passed on
            done(error)
            return
        self._checkpointer = Checkpointer(self._state, self._clock.monotonic_ns(), self._commands)
        self._stalled = False
        for callback in self._exchanged:
            callback()
        done(None)
        self._tell()
        self._clock.call_soon(self._work)
        self._sweep_later()
        self._checkpoint_if_due()

    def adopt(self, prepared: PreparedState, done: Callable[[], None]) -> None:
        """See `environment.Applier.adopt`. A transaction on the thread, and a checkpoint's sync, are waited
        for: both use the environment that goes."""
        self._adopting = (prepared, done)
        self._go_over_if_idle()

    def _adopt(self, prepared: PreparedState, done: Callable[[], None]) -> None:
        for timer in (self._timer, self._lazy_timer, self._sweep_timer, self._full_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._lazy_timer = self._sweep_timer = self._full_timer = None
        self._waiting.clear()
        self._machine.lose_sum_changes()
        try:
            self._adopt_state(prepared)
            with self._state.read() as tables:
                self._machine.adopt(tables)
        except Exception as error:  # noqa: BLE001 - not swallowed: it halts the node
            self._fail(error)
            return
        self._checkpointer = Checkpointer(self._state, self._clock.monotonic_ns(), self._commands)
        self._stalled = False
        # The log begins anew behind it.
        self._cut_to = self._last_outside = self._machine.applied_index
        self._cut_bytes = self._applied_bytes
        self._sizes.clear()
        self._sweep_changes = SWEEP_CHANGES
        for callback in self._adopted:
            callback()
        done()
        self._tell()
        self._sweep_later()

    def _fail(self, error: BaseException) -> None:
        self._failed = True
        self._on_halt(error)

    async def close(self) -> bool:
        """Stop; return whether the state ends with a checkpoint, which the next start can trust as it is."""
        self._closing = True
        for timer in (self._timer, self._lazy_timer, self._sweep_timer, self._full_timer):
            if timer is not None:
                timer.cancel()
        self._waiting.clear()
        if self._beside is not None:
            await asyncio.wait([self._beside])
            await asyncio.sleep(0)
        if self._syncing is not None:
            await asyncio.wait([self._syncing])
        # The checkpoint's own callback runs on the loop's next turn.
        await asyncio.sleep(0)
        try:
            if self._failed or self._stalled or self._syncing_again or not self._state.is_settled:
                return False
            if self._state.dirtied_bytes:
                # On this thread: at the end of an interpreter no executor takes work any more, and nobody
                # waits for the loop.
                try:
                    self._state.checkpoint(self._machine.applied_index)
                except RaftstateError as error:
                    if is_full(error) and self._state.failure is None:
                        log.warning("stopped without a last checkpoint", reason=str(error))
                        return False
                    self._fail(error)
            return not self._failed
        finally:
            self._disk.shutdown()
            self._thread.shutdown()


def _commands(result: EntryResult) -> int:
    return sum(
        len(item.serials) + len(item.answers) if isinstance(item, BatchResult) else 1 for item in result.items
    )
