"""The tail of the log that is not known to be durable.

May live here: which entries and which snapshot still have to be written, and which of them someone is
writing. `entries[i]` has index `offset + i`; the storage may hold older, superseded entries at the same
indexes until the write arrives.

      storage ...          | offset ...          offset_in_progress ...        last
      durable              | being written       not yet handed out

An entry leaves only when `stable_to` is told its index *and* term: an entry at the same index may have been
replaced meanwhile.
"""

from __future__ import annotations

from raftstate.core.types import Entry, Snapshot
from raftstate.errors import InvariantError


class Unstable:
    """Entries from `offset` on, and perhaps a snapshot before them, that are not known to be durable."""

    __slots__ = ("entries", "offset", "offset_in_progress", "snapshot", "snapshot_in_progress")

    def __init__(self, offset: int) -> None:
        self.entries: list[Entry] = []
        self.offset = offset
        """Invariant: offset <= offset_in_progress <= offset + len(entries)."""
        self.offset_in_progress = offset
        self.snapshot: Snapshot | None = None
        self.snapshot_in_progress = False

    def last_index(self) -> int | None:
        """The last index that entries or snapshot reach; None if there is neither."""
        if self.entries:
            return self.offset + len(self.entries) - 1
        return self.snapshot.metadata.index if self.snapshot is not None else None

    def term(self, index: int) -> int | None:
        """The term at `index`, if an entry or the snapshot tells it."""
        position = index - self.offset
        if position >= 0:
            return self.entries[position].term if position < len(self.entries) else None
        if self.snapshot is not None and self.snapshot.metadata.index == index:
            return self.snapshot.metadata.term
        return None

    def next_entries(self) -> list[Entry]:
        """The entries that nobody is writing yet."""
        return self.entries[self.offset_in_progress - self.offset :]

    def has_next_entries(self) -> bool:
        """Whether there are entries that nobody is writing yet."""
        return self.offset_in_progress - self.offset < len(self.entries)

    def next_snapshot(self) -> Snapshot | None:
        """The snapshot, if there is one that nobody is writing yet."""
        return None if self.snapshot_in_progress else self.snapshot

    def accept_in_progress(self) -> None:
        """Note that everything here has been handed out to be written."""
        self.offset_in_progress = self.offset + len(self.entries)
        self.snapshot_in_progress = self.snapshot is not None

    def stable_to(self, index: int, term: int) -> None:
        """Drop the entries up to `index`, now durable, unless the entry there is another one by now.

        The caller vouches that no write under way can overwrite them.
        """
        if index < self.offset or self.term(index) != term:
            return
        del self.entries[: index + 1 - self.offset]
        self.offset = index + 1
        self.offset_in_progress = max(self.offset_in_progress, self.offset)

    def stable_snapshot_to(self, index: int) -> None:
        """Drop the snapshot, now durable, if it is the one at `index`."""
        if self.snapshot is not None and self.snapshot.metadata.index == index:
            self.snapshot = None
            self.snapshot_in_progress = False

    def restore(self, snapshot: Snapshot) -> None:
        """Start over behind `snapshot`."""
        self.offset = snapshot.metadata.index + 1
        self.offset_in_progress = self.offset
        self.entries = []
        self.snapshot = snapshot
        self.snapshot_in_progress = False

    def truncate_and_append(self, entries: list[Entry]) -> None:
        """Put `entries` (not empty) in place of everything at or after their first index.

        Raises:
            InvariantError: they are not contiguous, or would leave a gap.
        """
        first = entries[0].index
        if entries[-1].index - first + 1 != len(entries):
            raise InvariantError(
                f"{len(entries)} entries can't span the indexes {first} to {entries[-1].index}"
            )
        position = first - self.offset
        if position == len(self.entries):
            self.entries.extend(entries)
        elif position <= 0:
            # Reaches into what was handed to the storage, or is durable: the whole tail is written again.
            self.entries = list(entries)
            self.offset = first
            self.offset_in_progress = first
        elif position < len(self.entries):
            self.entries[position:] = entries
            self.offset_in_progress = min(self.offset_in_progress, first)
        else:
            raise InvariantError(
                f"appending entry {first} would leave a gap: the last index is "
                f"{self.offset + len(self.entries) - 1}"
            )

    def slice(self, lo: int, hi: int) -> list[Entry]:
        """Return the entries from `lo` up to, not including, `hi`, as a list of their own.

        Raises:
            InvariantError: one of them is not here.
        """
        if not self.offset <= lo <= hi <= self.offset + len(self.entries):
            raise InvariantError(
                f"entries [{lo}, {hi}) are not all among the unstable ones "
                f"[{self.offset}, {self.offset + len(self.entries)})"
            )
        return self.entries[lo - self.offset : hi - self.offset]
