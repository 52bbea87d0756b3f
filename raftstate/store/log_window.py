"""The recent end of the log, in memory: a contiguous run of entries, bounded in bytes."""

from __future__ import annotations

from collections.abc import Sequence

from raftstate.core.types import Entry
from raftstate.errors import InvariantError

_ENTRY_OVERHEAD_BYTES = 150
"""What an entry takes in memory beside its payload: the struct, its integers, the header of its bytes."""


class LogWindow:
    """The last entries of a log, of at most `max_bytes` in memory, but always the very last one.

    Args:
        max_bytes: the bound; trimming goes some way below it, so that it is not done for every append.
        next_index: the index of the first entry that will be appended.
    """

    __slots__ = ("_bytes", "_entries", "first_index", "max_bytes")

    def __init__(self, max_bytes: int, next_index: int) -> None:
        self.first_index = next_index
        """The index of the first entry held; one after the last of the log when none is."""
        self.max_bytes = max_bytes
        self._entries: list[Entry] = []
        self._bytes = 0

    @property
    def next_index(self) -> int:
        """The index after the last entry held."""
        return self.first_index + len(self._entries)

    def term(self, index: int) -> int:
        """The term of an entry that is held."""
        return self._entries[index - self.first_index].term

    def slice(self, lo: int, hi: int) -> list[Entry]:
        """The entries from `lo` up to, not including, `hi`; all must be held."""
        return self._entries[lo - self.first_index : hi - self.first_index]

    def append(self, entries: Sequence[Entry]) -> None:
        """Add entries at their place; what stood there and after it goes.

        Raises:
            InvariantError: they would leave a gap.
        """
        first = entries[0].index
        if first > self.next_index:
            raise InvariantError(
                f"entry {first} would leave a gap in the log's window, which ends before {self.next_index}"
            )
        if first < self.first_index:
            self._entries.clear()
            self._bytes = 0
            self.first_index = first
        elif first < self.next_index:
            replaced = self._entries[first - self.first_index :]
            del self._entries[first - self.first_index :]
            self._bytes -= _memory_bytes(replaced)
        self._entries.extend(entries)
        self._bytes += _memory_bytes(entries)
        if self._bytes > self.max_bytes:
            self._trim()

    def drop_through(self, index: int) -> None:
        """Forget the entries up to and including `index`."""
        count = min(index + 1 - self.first_index, len(self._entries))
        if count > 0:
            self._drop(count)

    def _trim(self) -> None:
        excess = self._bytes - self.max_bytes * 3 // 4
        count = 0
        for entry in self._entries[:-1]:
            if excess <= 0:
                break
            excess -= len(entry.data) + _ENTRY_OVERHEAD_BYTES
            count += 1
        self._drop(count)

    def _drop(self, count: int) -> None:
        self._bytes -= _memory_bytes(self._entries[:count])
        del self._entries[:count]
        self.first_index += count


def _memory_bytes(entries: Sequence[Entry]) -> int:
    return sum(len(entry.data) for entry in entries) + _ENTRY_OVERHEAD_BYTES * len(entries)
