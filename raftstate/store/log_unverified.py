"""The part of a log that its opening does not verify, since a start must not take longer the more is stored.

What the state holds durably nobody waits for: those records serve followers that are behind, and each is
verified when it is read for one. But LMDB believes the pages that it frees, so nothing may be removed from
the log before this part was looked at: its pages, and then its records, in a read transaction that is as old
as the opening. LMDB puts nothing where that one can see it.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import lmdb

from raftstate.core.errors import Damaged
from raftstate.errors import ClosedError, DataLossError, RaftstateError
from raftstate.store import log_format
from raftstate.store.log_format import entry_key
from raftstate.store.meta_page import MetaPage
from raftstate.store.page_check import check_pages

_STEPS_AT_ONCE = 32
"""Records, or nodes of pages, between two pauses: some 0.3 ms."""
_PAUSE_S = 0.005
"""Leaves the interpreter to those who wait for the node that has just begun to serve: the replay takes all it
can get. With it, 50,000 records take some 16 s."""


class UnverifiedPart:
    """The pages of the commit that `newest` describes, which was just opened, and its records from `first` to
    `last`."""

    def __init__(
        self, environment: lmdb.Environment, data_file: Path, newest: MetaPage, first: int, last: int
    ) -> None:
        self._transaction = environment.begin(buffers=True)
        self._data_file = data_file
        self._newest = newest
        self._indexes = range(first, last + 1)
        self._lock = threading.Lock()
        """Held by whoever verifies."""
        self._hurried = self._stopped = False
        self._damaged: tuple[int, ...] | None = None
        self._failure: RaftstateError | None = None
        self._steps = 0

    @property
    def is_verified(self) -> bool:
        """Whether it was, and nothing worse than damaged records was found."""
        return self._damaged is not None

    def verify(self, *, hurry: bool) -> tuple[int, ...]:
        """Verify it, once, or wait until another thread has. Any thread.

        Args:
            hurry: without pauses, whoever does it.

        Returns the indexes of the records that were damaged, ascending.

        Raises:
            ClosedError: `stop` was called, and nobody is in a hurry.
            DataLossError: more than records is damaged. It is raised again each time.
            StorageError: the disk failed. The same.
        """
        if hurry:
            self.hurry()
        with self._lock:
            if self._failure is not None:
                raise self._failure
            if self._damaged is None:
                try:
                    check_pages(self._data_file, self._newest, step=self._step)
                    self._damaged = self._damaged_records()
                except ClosedError:
                    raise
                except lmdb.Error as error:
                    self._failure = DataLossError(f"the pages of {self._data_file} are damaged: {error}")
                    raise self._failure from error
                except RaftstateError as error:
                    self._failure = error
                    raise
                self._transaction.abort()
            return self._damaged

    def hurry(self) -> None:
        """Have whoever verifies it make no more pauses. Any thread."""
        self._hurried = True

    def stop(self) -> None:
        """Have whoever verifies it leave off soon. Any thread."""
        self._stopped = True

    def let_go(self) -> None:
        """End, verified or not. No other thread is at it."""
        self._transaction.abort()

    def _damaged_records(self) -> tuple[int, ...]:
        damaged: list[int] = []
        with self._transaction.cursor() as cursor:
            for index in self._indexes:
                self._step()
                value = cursor.get(entry_key(index))
                if value is None:
                    raise DataLossError(f"log entry {index} is missing", detail={"index": index})
                try:
                    log_format.verify_record(index, value)
                except Damaged:
                    damaged.append(index)
        return tuple(damaged)

    def _step(self) -> None:
        self._steps += 1
        if self._steps % _STEPS_AT_ONCE == 0 and not self._hurried:
            if self._stopped:
                raise ClosedError("the log is being closed")
            time.sleep(_PAUSE_S)
