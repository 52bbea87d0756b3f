"""The thread that writes the log: group commit.

The loop thread hands over appends and does not wait. The log thread takes all that wait, makes one durable
transaction of them, and posts one callback to the loop, which publishes the transaction and then calls each
append's `done`, in order. What is not durable is never published, and never reported as done.

After a failure nothing is written any more: what waits, and what comes later, gets an error. A full disk is
none: the log thread lets go of reserved space, and tries the same group again until there is room, while all
else waits behind it; only a compaction, which makes room, may come in between. The commit index alone is not
worth a transaction (it can be learned again from the leader): it goes with the next one.

May live here: the thread, and how waiting appends become one.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue

import msgspec

from raftstate.core.types import Entry, HardState
from raftstate.errors import ClosedError, InvariantError, StorageError
from raftstate.measure import Histogram
from raftstate.store.files import is_full
from raftstate.store.log import LogStore, LogWrite, check_hard_state

Done = Callable[[BaseException | None], None]
"""Told None once something is durable and published, else why it is not."""

COMPACTION_SLICE_ENTRIES = 512
"""How many entries one transaction of a compaction removes: what an append may have to wait for."""
FULL_RETRY_S = 0.2
"""How long a group that the disk has no room for waits before it is tried again."""


@dataclass(frozen=True, slots=True)
class _Append:
    hard_state: HardState | None
    entries: Sequence[Entry]
    done: Done
    since_ns: int


@dataclass(frozen=True, slots=True)
class _Install:
    publish: Callable[[], None]
    hard_state: HardState
    index: int
    term: int
    done: Done
    since_ns: int


@dataclass(frozen=True, slots=True)
class _Compaction:
    to_index: int
    done: Done


@dataclass(frozen=True, slots=True)
class _Refill:
    entries: Sequence[Entry]
    anchor: tuple[int, int] | None
    done: Done


@dataclass(frozen=True, slots=True)
class _Rewrite:
    done: Done


_Request = _Append | _Install | _Compaction | _Refill | _Rewrite


class LogWriter:
    """Writes a log in a thread of its own. All methods, and all callbacks, belong to the loop thread.

    Args:
        log: the log; nothing else may write to it or publish.
        post: runs a callable on the loop thread, soon, in the order of the calls; usable from any thread, as
            `loop.call_soon_threadsafe` is.
        clock_ns: a monotonic clock, in nanoseconds.
        release: lets go of reserved space, and says whether there was any; called on the log thread when the
            disk is full.
    """

    def __init__(
        self,
        log: LogStore,
        post: Callable[[Callable[[], None]], object],
        *,
        clock_ns: Callable[[], int],
        release: Callable[[], bool] = lambda: False,
    ) -> None:
        self._log = log
        self._post = post
        self._clock_ns = clock_ns
        self._release = release
        self.full: str | None = None
        """What the disk said when it had no room for what is to be written next; None: it has. Written by the
        log thread, read by any."""
        # The loop thread's: appends and installs not reported yet, oldest first.
        self._outstanding: deque[_Append | _Install] = deque()
        # The newest hard state given, and the same while its commit index waits for a write to ride with.
        self._given = log.last_hard_state
        self._riding: HardState | None = None
        self._failed = False
        self._closed = False
        self.commit_seconds = Histogram()
        """Of transactions of the log, each durable when it returned."""
        # From the loop thread to the log thread; None asks it to end.
        self._queue: SimpleQueue[_Request | None] = SimpleQueue()
        # The log thread's: what arrived while it waited for room, and what follows.
        self._later: deque[_Request | None] = deque()
        # What a compaction that came before a waiting group has made of the commit index.
        self._commit_at_least = 0
        self._published: _Install | None = None
        self._refills: deque[_Refill] = deque()
        self._compactions: deque[_Compaction] = deque()
        self._rewrites: deque[_Rewrite] = deque()
        self._saved = self._newest = log.last_hard_state
        self._failure: StorageError | None = None
        # Set when the thread could not save what it still had to: read once it has ended.
        self._last_failure: StorageError | None = None
        self._thread = threading.Thread(target=self._run, name="raftstate-log", daemon=True)
        self._thread.start()

    @property
    def outstanding_since_ns(self) -> int | None:
        """When the oldest append or install not reported yet was handed over, by the given clock; None: no
        such."""
        return self._outstanding[0].since_ns if self._outstanding else None

    def append(self, hard_state: HardState | None, entries: Sequence[Entry], done: Done) -> None:
        """Hand over entries and a hard state, to be written after everything handed over before.

        Args:
            hard_state: the new one; None: as it was. If only its commit index differs, and there are no
                entries, `done` may be called before it is written.
            entries: as `LogStore.write` takes them. Not to be changed afterwards.
            done: called with None once they are durable and published, and with the error if they are not:
                the first to fail gets what was raised, later ones a `StorageError`.

        Raises:
            ClosedError: the writer was closed.
        """
        self._check_open()
        before = self._given
        if hard_state is not None:
            self._given = self._riding = hard_state
        if not entries and not self._outstanding and not self._failed and _only_commits(before, self._given):
            # All that must be durable is. The log thread would have nothing to write, and the way there and
            # back costs more than the rest of a lone put on a follower.
            done(None)
            return
        request = _Append(self._riding, entries, done, self._clock_ns())
        self._riding = None
        self._outstanding.append(request)
        self._queue.put(request)

    def install(
        self, publish: Callable[[], None], hard_state: HardState, index: int, term: int, done: Done
    ) -> None:
        """Replace the state, then empty the log, after everything handed over before, and before all after.

        A crash between the two leaves the new state beside the old log, which the next start resets.

        Args:
            publish: makes the new state, which contains entry `index`, the one that a start would open.
                Called on the log's thread; may block.
            hard_state: as `LogStore.reset` takes it.
            index: the last entry that the new state contains.
            term: its term.
            done: called with None once both are durable and the empty log is published, else with the error.
                Like a failed append, a failed install is the last thing that the writer tried.

        Raises:
            ClosedError: the writer was closed.
        """
        self._check_open()
        self._given, self._riding = hard_state, None
        request = _Install(publish, hard_state, index, term, done, self._clock_ns())
        self._outstanding.append(request)
        self._queue.put(request)

    def compact(self, to_index: int, done: Done) -> None:
        """Remove entries up to and including `to_index`, in slices between which appends are written.

        Args:
            to_index: as `LogStore.compact` takes it.
            done: called with None once all is removed, durably, else with the error. One that is not of the
                disk, or says that it is full, leaves the writer usable.

        Raises:
            ClosedError: the writer was closed.
        """
        self._check_open()
        self._queue.put(_Compaction(to_index, done))

    @property
    def damaged(self) -> Sequence[int]:
        """The indexes of the log's records that are known to be damaged, ascending; another object whenever
        that has changed."""
        return self._log.damaged

    def refill(self, entries: Sequence[Entry], anchor: tuple[int, int] | None, done: Done) -> None:
        """Write damaged records anew, after everything handed over before.

        Args:
            entries: as `LogStore.refill` takes them.
            anchor: as `LogStore.refill` takes it.
            done: called with None once that is durable and published, else with the error.

        Raises:
            ClosedError: the writer was closed.
        """
        self._check_open()
        self._queue.put(_Refill(entries, anchor, done))

    def rewrite(self, done: Done) -> None:
        """Copy the log into new files, see `LogStore.rewrite`, after the compactions handed over before.
        Appends wait for as long as that takes: cut the log first.

        Args:
            done: called with None once that is durable, else with the error. Unless the log failed as a
                whole, the writer stays usable.

        Raises:
            ClosedError: the writer was closed.
        """
        self._check_open()
        self._queue.put(_Rewrite(done))

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called: nothing is taken any more."""
        return self._closed

    def close(self) -> None:
        """Write what waits, and end the thread. What was handed over is still reported, after this returns.

        Closing twice does nothing. The log stays open.

        Raises:
            StorageError: a commit index that was still to be written could not be; nothing else is lost.
        """
        if self._closed:
            return
        self._closed = True
        if self._riding is not None:
            request = _Append(self._riding, (), lambda _error: None, self._clock_ns())
            self._outstanding.append(request)
            self._queue.put(request)
        self._queue.put(None)
        self._thread.join()
        if self._last_failure is not None:
            raise self._last_failure

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the log writer is closed: the node is stopping")

    def _report(
        self, requests: Sequence[_Append | _Install], write: LogWrite | None, error: BaseException | None
    ) -> None:
        """Publish and report one group; runs on the loop thread."""
        if write is not None:
            self._log.publish(write)
        self._failed = self._failed or error is not None
        for request in requests:
            self._outstanding.popleft()
            request.done(error)

    # -- the log thread

    def _run(self) -> None:
        running = True
        while running:
            appends, install, running = self._take()
            if appends:
                self._write_group(appends)
            while self._refills:
                self._refill(self._refills.popleft())
            if install is not None:
                self._install(install)
            if self._compactions and running:
                self._compact_slice(self._compactions[0])
            elif self._rewrites and running:
                self._rewrite(self._rewrites.popleft())
        self._finish()

    def _take(self) -> tuple[list[_Append], _Install | None, bool]:
        """All appends that wait up to the next install, that install, and whether to go on then; waits for
        one if there is nothing to compact."""
        appends: list[_Append] = []
        block = not self._compactions and not self._rewrites
        while True:
            try:
                request = self._later.popleft() if self._later else self._queue.get(block)
            except Empty:
                return appends, None, True
            block = False
            if request is None:
                return appends, None, False
            if isinstance(request, _Install):
                return appends, request, True
            if isinstance(request, _Append):
                appends.append(request)
            elif isinstance(request, _Refill):
                # It looks at what the log holds then: appends that came after it may be written before it.
                self._refills.append(request)
            elif isinstance(request, _Compaction):
                self._compactions.append(request)
            else:
                self._rewrites.append(request)

    def _write_group(self, appends: list[_Append]) -> None:
        self._do(appends, partial(self._write, appends))

    def _install(self, install: _Install) -> None:
        self._do((install,), partial(self._replace, install))

    def _do(self, requests: Sequence[_Append | _Install], work: Callable[[], LogWrite | None]) -> None:
        """Do what was asked for, unless something failed before, and post the report."""
        write: LogWrite | None = None
        error: BaseException | None = self._failure
        if error is None:
            try:
                write = self._once_there_is_room(work)
            except Exception as raised:  # noqa: BLE001 - whatever it was, those who wait must hear of it
                error = raised
                self._failure = StorageError(
                    f"the log takes no more writes after an earlier failure: {raised}"
                )
                self._failure.__cause__ = raised
        self._post(partial(self._report, requests, write, error))

    def _replace(self, install: _Install) -> LogWrite:
        """Publish the new state, once, and reset the log."""
        check_hard_state(self._newest, install.hard_state)
        if self._published is not install:
            install.publish()
            self._published = install
        write = self._log.reset(install.hard_state, install.index, install.term)
        self._newest = self._saved = write.hard_state
        return write

    def _once_there_is_room(self, work: Callable[[], LogWrite | None]) -> LogWrite | None:
        """Do it, and again for as long as the disk has no room for it: nothing that came later is written
        before."""
        while True:
            try:
                write = work()
            except StorageError as error:
                if not is_full(error):
                    raise
                self.full = error.message
                self._log.hurry_verifying()  # it pins pages
                if not self._release() and not self._wait_for_room():
                    raise
            else:
                self.full = None
                self._commit_at_least = 0
                return write

    def _wait_for_room(self) -> bool:
        """Wait a moment, in which compactions are done; return False if the writer is being closed."""
        deadline = time.monotonic() + FULL_RETRY_S
        while (left_s := deadline - time.monotonic()) > 0:
            if self._compactions:
                self._compact_slice(self._compactions[0])
                self._commit_at_least = self._saved.commit
            try:
                request = self._queue.get(timeout=0 if self._compactions else left_s)
            except Empty:
                continue
            if isinstance(request, _Compaction):
                self._compactions.append(request)
            else:
                self._later.append(request)
        return None not in self._later

    def _write(self, appends: list[_Append]) -> LogWrite | None:
        """Write a group in one transaction; None: there was nothing that needs one."""
        entries: list[Entry] = []
        newest = self._newest
        for append in appends:
            hard_state = append.hard_state
            if hard_state is not None:
                if hard_state.commit < self._commit_at_least:
                    hard_state = msgspec.structs.replace(hard_state, commit=self._commit_at_least)
                check_hard_state(newest, hard_state)
                newest = hard_state
            if append.entries:
                merge_entries(entries, append.entries)
        if not entries and (newest.term, newest.vote) == (self._saved.term, self._saved.vote):
            self._newest = newest
            return None
        began_ns = self._clock_ns()
        write = self._log.write(newest, entries)
        self.commit_seconds.observe_ns(self._clock_ns() - began_ns)
        self._newest = self._saved = write.hard_state
        return write

    def _refill(self, refill: _Refill) -> None:
        write: LogWrite | None = None
        error: BaseException | None = self._failure
        if error is None:
            try:
                write = self._log.refill(refill.entries, refill.anchor)
            except Exception as raised:  # noqa: BLE001 - whatever it was, the one who waits must hear of it
                error = raised
        self._post(partial(self._report, (), write, None))
        self._post(partial(refill.done, error))

    def _compact_slice(self, compaction: _Compaction) -> None:
        write: LogWrite | None = None
        error: BaseException | None = None
        try:
            write = self._log.compact(compaction.to_index, COMPACTION_SLICE_ENTRIES)
        except Exception as raised:  # noqa: BLE001 - whatever it was, the one who waits must hear of it
            error = raised
        if write is not None:
            self._saved = write.hard_state
            if self._newest.commit < self._saved.commit:
                self._newest = self._saved
            self._post(partial(self._report, (), write, None))
        if write is None or write.meta.boundary_index >= compaction.to_index:
            self._compactions.popleft()
            self._post(partial(compaction.done, error))

    def _rewrite(self, rewrite: _Rewrite) -> None:
        try:
            write = self._log.rewrite()
        except Exception as raised:  # noqa: BLE001 - whatever it was, the one who waits must hear of it
            self._post(partial(rewrite.done, raised))
        else:
            self._post(partial(self._report, (), write, None))
            self._post(partial(rewrite.done, None))

    def _finish(self) -> None:
        for rewrite in self._rewrites:
            self._post(
                partial(rewrite.done, ClosedError("the log writer was closed before it had rewritten it"))
            )
        for compaction in self._compactions:
            error = ClosedError(f"the log writer was closed before it had compacted to {compaction.to_index}")
            self._post(partial(compaction.done, error))
        if self._failure is None and self._newest != self._saved:
            try:
                write = self._log.write(self._newest, ())
            except StorageError as error:
                self._last_failure = error
            else:
                self._post(partial(self._report, (), write, None))


def _only_commits(held: HardState, new: HardState) -> bool:
    """Whether `new` differs from `held` in nothing but a commit index that is not lower."""
    return (new.term, new.vote) == (held.term, held.vote) and new.commit >= held.commit


def merge_entries(waiting: list[Entry], more: Sequence[Entry]) -> None:
    """Put `more` behind `waiting`, in place: what stands from its first index on is replaced.

    Raises:
        InvariantError: there is a gap between them.
    """
    kept = more[0].index - waiting[0].index if waiting else 0
    if kept > len(waiting):
        raise InvariantError(f"entries from {more[0].index} on leave a gap after {waiting[-1].index}")
    waiting[max(kept, 0) :] = more
