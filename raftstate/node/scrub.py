"""Reads everything that this node holds on disk, again and again, at a bounded rate: the state, then the log.

What rots where nobody reads is found so before a second copy rots, and what a read can't notice at all is
found here alone: keys that vanished with a damaged page of a tree. How long such a false "not found" can live
is the time between two passes: it is logged with each, and can be asked for.

What a start has left unverified of the log is looked at first, whatever the rate.

A thread reads, in slices of a millisecond or two with pauses between; what it finds is told on the loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol, TypeVar

from raftstate.core.errors import Compacted, Damaged, Unavailable
from raftstate.errors import ClosedError, DataLossError, RaftstateError, StorageError
from raftstate.logs import get_logger
from raftstate.machine.digest import SumChanges
from raftstate.machine.machine import Machine
from raftstate.machine.scrub import ROW_WORK, Scrub, VanishedError
from raftstate.node.environment import Clock
from raftstate.store.log import LogStore
from raftstate.store.state import StateStore

log = get_logger(__name__)

T = TypeVar("T")

PASS_S_MIN = 60.0
"""From the beginning of one pass to that of the next, at least: a small state is not read all the time."""
RETRY_S = 5.0
"""After a pass that could not be brought to its end."""
JOB_S = 0.25
"""What the thread does before it looks at the loop again."""
GROWN_BYTES_MAX = 64 << 20
"""What the log may grow by while its old part is looked at without haste."""
LOG_ENTRIES = 512
LOG_BYTES = 512 << 10
"""Of one read of the log."""


class ScrubReport(NamedTuple):
    """How far back what is on this node's disk was verified. Times are monotonic, in ns."""

    passed_ns: int | None
    """When the last full pass began that found nothing; None: there was none since the start."""
    period_ns: int | None
    """From the beginning of the pass before to the end of that pass: a key that a damaged page hides has been
    "not found" for no longer than that when it is noticed."""


class Beside(Protocol):
    """What a scrub asks of the applier."""

    may_cut: Callable[[], bool]
    """Asked before the log is cut, unless space is short."""

    @property
    def is_beside(self) -> bool:
        """Whether the machine is in use on another thread."""
        ...


class Scrubber:
    """Scrubs one node. Everything is called on its loop.

    Args:
        machine: the node's.
        state: the node's.
        log_store: the node's.
        applier: the node's.
        clock: the node's.
        rate_bytes_per_s: how fast; a row counts for 1 KiB more than it has. 0: not at all.
        on_damage: told of damage in the state, and whether no read would notice it.
        on_log_damage: told that the log has another damaged record.
        on_log_lost: told that more than records of it is damaged: the node is to halt with that.
        may_scrub: returns whether the state is worth it: not while it is to be replaced.
    """

    def __init__(
        self,
        machine: Machine,
        state: StateStore,
        log_store: LogStore,
        applier: Beside,
        clock: Clock,
        *,
        rate_bytes_per_s: int,
        on_damage: Callable[[DataLossError, bool], object],
        on_log_damage: Callable[[], None],
        on_log_lost: Callable[[StorageError], object],
        may_scrub: Callable[[], bool],
    ) -> None:
        self._machine = machine
        self._state = state
        self._log = log_store
        self._applier = applier
        self._clock = clock
        self._rate = rate_bytes_per_s
        self._on_damage = on_damage
        self._on_log_damage = on_log_damage
        self._on_log_lost = on_log_lost
        self._may_scrub = may_scrub
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="raftstate-scrub")
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._changes = SumChanges()
        self.report = ScrubReport(None, None)
        applier.may_cut = self._may_cut_log

    def start(self) -> None:
        """Begin; to read again and again, if there is a rate to do it at."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def times_ms(self) -> tuple[int, int]:
        """Return how long ago the last pass that found nothing began, and its period, in ms; 0: none did."""
        passed_ns, period_ns = self.report
        if passed_ns is None or period_ns is None:
            return 0, 0
        return max(1, (self._clock.monotonic_ns() - passed_ns) // 1_000_000), period_ns // 1_000_000

    async def close(self) -> None:
        """Stop, and end the thread."""
        self._closing = True
        self._log.stop_verifying()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown()

    async def _run(self) -> None:
        try:
            self._found_in_log(await self._beside(self._log.verify_rest))
        except ClosedError:
            return
        except StorageError as error:
            self._on_log_lost(error)
            return
        if self._rate:
            await self._pass_after_pass()

    async def _pass_after_pass(self) -> None:
        before_ns: int | None = None
        while True:
            began_ns = self._clock.monotonic_ns()
            rest_s = RETRY_S
            try:
                if self._may_scrub() and await self._scrub_state():
                    entries = await self._scrub_log()
                    ended_ns = self._clock.monotonic_ns()
                    period_ns = ended_ns - (began_ns if before_ns is None else before_ns)
                    self.report = ScrubReport(began_ns, period_ns)
                    before_ns = began_ns
                    log.info(
                        "scrub found nothing wrong",
                        took_s=round((ended_ns - began_ns) / 1e9, 1),
                        period_s=round(period_ns / 1e9, 1),
                        log_entries=entries,
                    )
                    rest_s = max(RETRY_S, PASS_S_MIN - (ended_ns - began_ns) / 1e9)
            except ClosedError:
                return
            except DataLossError as error:
                log.error("scrub found damage", error=str(error))
                self._on_damage(error, isinstance(error, VanishedError))
            except RaftstateError as error:
                log.warning("scrub interrupted", reason=str(error))
            finally:
                self._record(None)
            await asyncio.sleep(rest_s)

    def _may_cut_log(self) -> bool:
        """Not before what the start has left out is verified: a cut would have to wait, and appends
        behind it. When the log has grown by much meanwhile, that is done in haste."""
        if not self._log.is_verified and self._log.grown_bytes() > GROWN_BYTES_MAX:
            self._log.hurry_verifying()
        return self._log.is_verified

    def _record(self, changes: SumChanges | None) -> None:
        if not self._applier.is_beside:
            self._machine.record_sum_changes(changes)

    # -- the state

    async def _scrub_state(self) -> bool:
        """Make a pass; return whether it came to its end."""
        path = self._state.path
        scrub = Scrub(lambda: self._changes)
        while not scrub.is_done:
            if scrub.wants_sums:
                while self._applier.is_beside:
                    await asyncio.sleep(0.01)
                    if not self._may_scrub():
                        return False
                self._changes = SumChanges()
                self._record(self._changes)
            await self._beside(lambda: self._slices(scrub))
            if self._state.path != path or not self._may_scrub():
                return False  # it is another one by now, or soon
            if scrub.is_lost:
                log.warning("scrub given up: more is written than it can follow at its rate")
                return False
        return True

    def _slices(self, scrub: Scrub) -> None:
        """On the thread."""
        end_s = time.monotonic() + JOB_S
        first = True
        while not scrub.is_done and (first or not scrub.wants_sums) and time.monotonic() < end_s:
            first = False
            with self._state.read() as tables:
                work = scrub.step(tables)
            self._rest(work)

    # -- the log

    async def _scrub_log(self) -> int:
        """Read the log; return how many entries it has."""
        index = self._log.first_index()
        last = self._log.last_index()
        while index <= last:
            at = index
            try:
                index, damaged = await self._beside(lambda: self._log_slice(at, last))  # noqa: B023 - awaited
            except DataLossError as error:
                lost = self._log.distrust(error)
                self._on_log_lost(lost)
                raise lost from error
            self._found_in_log(damaged)
            index = max(index, self._log.first_index())
        return last - self._log.first_index() + 1

    def _found_in_log(self, damaged: Sequence[int]) -> None:
        for each in damaged:
            self._log.note_damage(each)
        if damaged:
            log.error("scrub found damaged log records", indexes=damaged[:10], count=len(damaged))
            self._on_log_damage()

    def _log_slice(self, index: int, last: int) -> tuple[int, list[int]]:
        """On the thread: verify some records; return the next index, and which were damaged."""
        damaged: list[int] = []
        end_s = time.monotonic() + JOB_S
        while index <= last and time.monotonic() < end_s:
            work = ROW_WORK
            try:
                entries = self._log.stored(index, min(index + LOG_ENTRIES, last + 1), LOG_BYTES)
                index += len(entries)
                work = sum(ROW_WORK + len(entry.data) for entry in entries)
            except Damaged:
                # One of them: it is told which when they are read one by one.
                index, damaged_one = self._log_entry(index)
                damaged += damaged_one
            except (Compacted, Unavailable):
                return last + 1, damaged  # cut, or begun anew, meanwhile
            self._rest(work)
        return index, damaged

    def _log_entry(self, index: int) -> tuple[int, list[int]]:
        try:
            self._log.stored(index, index + 1, LOG_BYTES)
        except Damaged:
            return index + 1, [index]
        return index + 1, []

    def _rest(self, work: int) -> None:
        if self._closing:
            raise ClosedError("this node is stopping")
        time.sleep(min(work / self._rate, JOB_S))

    async def _beside(self, job: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, job)
