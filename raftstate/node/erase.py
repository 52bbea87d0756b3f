"""Sees to it that what was erased is in no file of this node any more.

An erase is applied like any command; then no read finds the key or its past. What is left of it in files goes
in these steps, each of which is looked at anew, again and again, so that a restart, or a failure, goes on:

    the sweep is through with the history that the erase has compacted
    the state is rewritten: its old generation's pages hold what was deleted from them
    the log is cut behind the erase's entry, and rewritten
    nothing else is left: older generations, snapshots, what others have put aside
    the file `erased` in the generation says so (raftstate.store.erased)

A state that was received from another node, or rebuilt from one, has no such file: the steps are taken for
it, too. Erasures that come while the steps are taken are seen to in the next round, all together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from raftstate.errors import RaftstateError
from raftstate.logs import get_logger
from raftstate.node.defragment import Rewritten
from raftstate.node.environment import Clock, Timer
from raftstate.store.erased import read_erased
from raftstate.store.files import disk_failure

log = get_logger(__name__)

LOOK_S = 0.25
"""Between two looks at what is to be done next."""
QUIET_NS = 1_000_000_000
"""After an erase the next ones are waited for so long: they are done together,"""
QUIET_NS_MAX = 10_000_000_000
"""but no longer than this."""
FOLLOWERS_NS_MAX = 10_000_000_000
"""How long a leader waits, before it cuts its log, for followers that it hears of to have the entries. Those
that have them not by then are sent a snapshot."""
RETRY_NS_MIN, RETRY_NS_MAX = 5_000_000_000, 300_000_000_000
"""After a failure: twice as long after each."""
_LEFTOVERS = ("state-", "log.", "aside", "blanking")
"""How names in the data directory begin that may hold what was erased, beside the current ones: other
generations, copies that were not finished, and what was put aside when this node was replaced."""
_SNAPSHOT = "snapshot-"
"""And of snapshots. Those that are made once the state holds nothing of it hold nothing of it either."""


class ErasedState(Protocol):
    """What is asked of the machine."""

    @property
    def last_erase_index(self) -> int:
        """The entry of the last erase; 0: there was none."""
        ...

    @property
    def sweep_pending(self) -> bool:
        """Whether anything compacted is yet to be deleted."""
        ...


class ErasedFiles(Protocol):
    """What is asked of the node, so that a test can take its place."""

    def generation(self) -> Path:
        """Return the directory of the state's generation."""
        ...

    def durable_index(self) -> int:
        """Return the last entry that a crash can't take from the state."""
        ...

    def log_boundary(self) -> int:
        """Return the last entry that the log holds no more."""
        ...

    def rewrite_state(self, done: Callable[[Rewritten | RaftstateError], None]) -> None:
        """Begin to rewrite the state; raises `RaftstateError` when it can't be begun."""
        ...

    def followers_lack(self, index: int) -> bool:
        """Return whether followers that this node leads, and hears of, have yet to get an entry."""
        ...

    def retire_snapshots(self) -> None:
        """Hand out no snapshot made so far; each is removed when nobody is sent it any more."""
        ...

    def cut_log(self, to_index: int, done: Callable[[BaseException | None], None]) -> None:
        """Remove the entries up to `to_index`, whatever the margin."""
        ...

    def rewrite_log(self, done: Callable[[BaseException | None], None]) -> None:
        """Copy the log into new files."""
        ...

    def write_erased(self, index: int, done: Callable[[BaseException | None], None]) -> None:
        """Write the file `erased`, on a thread."""
        ...

    def alarm(self, reason: str) -> None:
        """Tell operators why it does not come on; empty: it does again."""
        ...


class Eraser:
    """The erasures of one node. All methods and callbacks are the loop's.

    Args:
        machine: the node's.
        files: the node's.
        clock: the node's.
        data_directory: the node's.

    Raises `StorageError` when the file `erased` can't be read.
    """

    def __init__(self, machine: ErasedState, files: ErasedFiles, clock: Clock, data_directory: Path) -> None:
        self._machine = machine
        self._files = files
        self._clock = clock
        self._data_directory = data_directory
        self.erased_index = read_erased(files.generation())
        """Of erasures up to this entry nothing is in any file of this node."""
        self._clean_index = 0
        """So it is of the state's own generation."""
        self._log_clean_index = 0
        """And of the log's files."""
        self._retired_for = 0
        """The clean index since which no snapshot made before is handed out."""
        self._old_snapshots: set[str] = set()
        """Names of those that were there then."""
        self._seen_index = self._seen_ns = self._first_ns = 0
        self._cut_from_ns = 0
        self._busy = self._is_rewriting = False
        self._epoch = 0
        self._retry_ns, self._pause_ns = 0, RETRY_NS_MIN
        self._timer: Timer | None = None
        self._closing = False

    def start(self) -> None:
        """Begin to look, and go on with what an earlier run has left."""
        self._timer = self._clock.call_later(LOOK_S, self._look)

    def close(self) -> None:
        """Stop looking."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()

    def state_installed(self) -> None:
        """Take note that this node goes on with the state that it was sent, and that its log was emptied. At
        that moment: nothing was applied to it, or swept."""
        self._log_clean_index = self._retired_for = 0
        self._state_replaced()

    def state_exchanged(self) -> None:
        """Take note that this node went over to other files of its state, at that moment."""
        if self._is_rewriting:
            self.erased_index = read_erased(self._files.generation())
        else:
            self._state_replaced()

    def _state_replaced(self) -> None:
        self._epoch += 1
        self._busy = self._is_rewriting = False
        self.erased_index = read_erased(self._files.generation())
        # Its rows were put into new files: what was swept before is in none of them. And an erase that was
        # applied to them since would have left something to be swept.
        self._clean_index = 0 if self._machine.sweep_pending else self._machine.last_erase_index

    def _look(self) -> None:
        if self._closing:
            return
        self._timer = self._clock.call_later(LOOK_S, self._look)
        now_ns = self._clock.monotonic_ns()
        if self._machine.last_erase_index > self.erased_index and not self._busy and now_ns >= self._retry_ns:
            try:
                self._advance(now_ns)
            except RaftstateError as error:
                self._failed(error)

    def _advance(self, now_ns: int) -> None:
        """Take the next step."""
        if not self._is_quiet(now_ns) or self._machine.sweep_pending:
            return
        if self._clean_index < self._machine.last_erase_index:
            self._begin(self._files.rewrite_state, self._state_rewritten, is_rewriting=True)
            return
        target = self._clean_index
        if self._retired_for < target:
            self._retired_for = target
            self._files.retire_snapshots()
            self._old_snapshots = {name for name in self._names() if name.startswith(_SNAPSHOT)}
        if self._log_clean_index < target:
            self._clean_log(target, now_ns)
            return
        left = list(self._leftovers())
        if left:
            self._files.alarm(
                f"what was erased may still be in {', '.join(left)}: something reads or makes it"
            )
            return
        self._begin(lambda done: self._files.write_erased(target, done), lambda: self._erased(target))

    def _is_quiet(self, now_ns: int) -> bool:
        """Whether no more erasures are likely to come at this moment."""
        if self._seen_index != self._machine.last_erase_index:
            if self._seen_index <= self.erased_index:
                self._first_ns = now_ns
            self._seen_index = self._machine.last_erase_index
            self._seen_ns = now_ns
        return now_ns - self._seen_ns >= QUIET_NS or now_ns - self._first_ns >= QUIET_NS_MAX

    def _clean_log(self, target: int, now_ns: int) -> None:
        if self._files.durable_index() < target:
            return
        if self._files.log_boundary() < target:
            self._cut_from_ns = self._cut_from_ns or now_ns
            if self._files.followers_lack(target) and now_ns - self._cut_from_ns < FOLLOWERS_NS_MAX:
                return
            self._cut_from_ns = 0
            self._begin(lambda done: self._files.cut_log(target, done), lambda: None)
            return
        self._begin(self._files.rewrite_log, lambda: self._log_rewritten(target))

    def _leftovers(self) -> Iterable[str]:
        """Yield what is in the data directory that may hold what was erased."""
        current = self._files.generation().name
        for name in self._names():
            if name in self._old_snapshots or (name.startswith(_LEFTOVERS) and name != current):
                yield name

    def _names(self) -> list[str]:
        try:
            return sorted(os.listdir(self._data_directory))
        except OSError as error:
            raise disk_failure("listing the data directory", self._data_directory, error) from error

    # -- steps that take a while

    def _begin(
        self,
        step: Callable[[Callable[[object], None]], None],
        then: Callable[..., None],
        *,
        is_rewriting: bool = False,
    ) -> None:
        """Begin a step; `then` is called when it is done, unless the state was replaced meanwhile."""
        epoch = self._epoch
        self._busy, self._is_rewriting = True, is_rewriting

        def done(result: object) -> None:
            if self._closing or epoch != self._epoch:
                return
            self._busy = self._is_rewriting = False
            if isinstance(result, BaseException):
                self._failed(result)
                return
            self._retry_ns, self._pause_ns = 0, RETRY_NS_MIN
            if isinstance(result, Rewritten):
                then(result)
            else:
                then()

        try:
            step(done)
        except RaftstateError:
            self._busy = self._is_rewriting = False
            raise

    def _state_rewritten(self, result: Rewritten) -> None:
        self._clean_index = max(self._clean_index, result.clean_index)

    def _log_rewritten(self, target: int) -> None:
        self._log_clean_index = target

    def _erased(self, target: int) -> None:
        self.erased_index = target
        self._files.alarm("")
        log.info("erased from all files", index=target)

    def _failed(self, error: BaseException) -> None:
        self._retry_ns = self._clock.monotonic_ns() + self._pause_ns
        self._pause_ns = min(2 * self._pause_ns, RETRY_NS_MAX)
        log.warning("erase does not come on", error=str(error))
        self._files.alarm(f"what was erased is still in files of this node: {error}")
