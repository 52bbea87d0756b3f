"""Watches for threads."""

from __future__ import annotations

import threading
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Self

from raftstate.client.watch import AsyncWatch
from raftstate.client.watch_inbox import WatchEvent
from raftstate.errors import ClosedError

if TYPE_CHECKING:
    from raftstate.client.sync_client import Run


class Watch:
    """The sync face of `AsyncWatch`; made by `Client.watch`.

        with store.watch(prefix="jobs/") as watch:
            for event in watch:
                ...

    Any number of threads may take its events; each event goes to one of them. `close`, from any thread, ends
    the iteration of all.
    """

    def __init__(self, inner: AsyncWatch, run: Run) -> None:
        self._inner = inner
        self._run = run
        self._taking = threading.Lock()

    @property
    def revision(self) -> int:
        """All events up to this revision were handed out; see `AsyncWatch.revision`."""
        return self._inner.revision

    def __enter__(self) -> Self:
        self._run(self._inner.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> WatchEvent:
        try:
            return self.next()
        except ClosedError:
            if self._inner.closed:
                raise StopIteration from None
            raise

    def next(self, timeout: float | None = None) -> WatchEvent:
        """Return the next event; see `AsyncWatch.next`."""
        begun_s: float | None = None
        while True:
            # Taken on this thread: an interrupted call (Ctrl-C) loses none, and few need the loop's help.
            with self._taking:
                event = self._inner.take()
            if event is not None:
                return event
            now_s = monotonic()
            begun_s = now_s if begun_s is None else begun_s
            self._run(self._inner.arrival(timeout, now_s - begun_s))

    def close(self) -> None:
        """End the watch; see `AsyncWatch.close`."""
        try:
            self._run(self._inner.close())
        except ClosedError:
            return  # it ended with its client
