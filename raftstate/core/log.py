"""The log as Raft sees it: the durable entries of the storage and the unstable ones behind them, as one.

May live here: reading and comparing entries by index, and the three pointers into the log. Their order
always is

      boundary <= applied <= applying <= committed <= last index

`committed`: known to be on a quorum. `applying`: handed to the application. `applied`: reported back by it.
What was handed out and not reported back is limited in bytes, so that a slow application does not pile up
memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from raftstate.core.errors import Compacted, Damaged, Unavailable
from raftstate.core.storage import NO_LIMIT, Storage, entries_bytes, limit_entries
from raftstate.core.types import Entry, Snapshot
from raftstate.core.unstable import Unstable
from raftstate.errors import InvariantError


class EntryId(msgspec.Struct, frozen=True, gc=False):
    """An entry's index and term: entries that agree in both are the same, and so are all before them."""

    index: int
    term: int


class RaftLog:
    """The log of one node.

    Args:
        storage: its durable part.
        max_applying_bytes: how many bytes of entries may be handed to the application and not yet applied.
    """

    __slots__ = (
        "_applying_bytes",
        "_applying_paused",
        "_max_applying_bytes",
        "applied",
        "applying",
        "committed",
        "readable_to",
        "storage",
        "unstable",
    )

    def __init__(self, storage: Storage, max_applying_bytes: int = NO_LIMIT) -> None:
        boundary = storage.first_index() - 1
        self.storage = storage
        self.unstable = Unstable(storage.last_index() + 1)
        self.committed = boundary
        self.applying = boundary
        self.applied = boundary
        self.readable_to = NO_LIMIT
        """No entry behind this index is handed out to be applied. Set by the application while the storage
        can't read the next one."""
        self._max_applying_bytes = max_applying_bytes
        self._applying_bytes = 0
        self._applying_paused = False

    # -- reading

    def first_index(self) -> int:
        """The index after the boundary."""
        snapshot = self.unstable.snapshot
        return self.storage.first_index() if snapshot is None else snapshot.metadata.index + 1

    def last_index(self) -> int:
        """The index of the last entry; the boundary if there is none."""
        last = self.unstable.last_index()
        return self.storage.last_index() if last is None else last

    def last_entry_id(self) -> EntryId:
        """Index and term of the last entry, or of the boundary."""
        index = self.last_index()
        return EntryId(index, self.term(index))

    def term(self, index: int) -> int:
        """Return the term of the entry at `index`, which may be the boundary.

        Raises:
            Compacted: `index` lies before the boundary.
            Unavailable: `index` lies behind the log.
        """
        term = self.unstable.term(index)
        if term is not None:
            return term
        if index + 1 < self.first_index():
            raise Compacted(
                f"the term of entry {index} is compacted; the first index is {self.first_index()}"
            )
        if index > self.last_index():
            raise Unavailable(f"entry {index} is not in the log; the last index is {self.last_index()}")
        return self.storage.term(index)

    def term_or_zero(self, index: int) -> int:
        """The term of the entry at `index`, or 0, which no entry has, if the log does not know it."""
        try:
            return self.term(index)
        except (Compacted, Unavailable):
            return 0

    def match_term(self, index: int, term: int) -> bool:
        """Whether the log holds, or its boundary is, the entry of this index and term."""
        try:
            return self.term(index) == term
        except (Compacted, Unavailable):
            return False

    def is_up_to_date(self, index: int, term: int) -> bool:
        """Whether a log that ends so is at least as up to date as this one (Raft paper, 5.4.1)."""
        last = self.last_entry_id()
        return term > last.term or (term == last.term and index >= last.index)

    def entries_from(self, lo: int, max_bytes: int) -> list[Entry]:
        """Return the entries from `lo` to the end of the log, cut as `slice` does; none if there are none."""
        last = self.last_index()
        return self.slice(lo, last + 1, max_bytes) if lo <= last else []

    def slice(self, lo: int, hi: int, max_bytes: int) -> list[Entry]:
        """Return the entries from `lo` up to, not including, `hi`.

        Args:
            lo: an index behind the boundary.
            hi: at most the last index + 1.
            max_bytes: how many bytes of entries to return; the first one is returned whatever its size.

        Returns:
            A list that belongs to the caller.

        Raises:
            Compacted: the log no longer holds `lo`.
            InvariantError: `hi` lies behind the end of the log.
        """
        if lo > hi or hi > self.last_index() + 1:
            raise InvariantError(
                f"entries [{lo}, {hi}) are out of range: the last index is {self.last_index()}"
            )
        if lo < self.first_index():
            raise Compacted(f"entry {lo} is compacted; the first index is {self.first_index()}")
        if lo == hi:
            return []
        offset = self.unstable.offset
        if lo >= offset:
            return limit_entries(self.unstable.slice(lo, hi), max_bytes)
        cut = min(hi, offset)
        stable = self.storage.entries(lo, cut, max_bytes)
        if cut == hi or len(stable) < cut - lo:
            return stable
        room = max_bytes if max_bytes >= NO_LIMIT else max_bytes - entries_bytes(stable)
        if room <= 0:
            return stable
        rest = limit_entries(self.unstable.slice(cut, hi), room)
        # `limit_entries` never returns nothing, so that its first entry may be one too many.
        if len(rest) == 1 and entries_bytes(rest) > room:
            return stable
        stable.extend(rest)
        return stable

    def scan(self, lo: int, hi: int) -> Iterator[Entry]:
        """The entries from `lo` up to, not including, `hi`, read in pages of the applying limit."""
        while lo < hi:
            page = self.slice(lo, hi, self._max_applying_bytes)
            if not page:
                raise InvariantError(f"the storage returned none of the entries [{lo}, {hi})")
            yield from page
            lo += len(page)

    def snapshot(self) -> Snapshot:
        """The newest snapshot, whether it is durable or not. Raises `SnapshotTemporarilyUnavailable`."""
        return self.storage.snapshot() if self.unstable.snapshot is None else self.unstable.snapshot

    # -- appending

    def append(self, entries: list[Entry]) -> int:
        """Put `entries` (not empty) in place of everything at or after their first index.

        Returns:
            The last index.

        Raises:
            InvariantError: that would replace a committed entry, or leave a gap.
        """
        if entries[0].index <= self.committed:
            raise InvariantError(
                f"entry {entries[0].index} would replace a committed one: committed is {self.committed}"
            )
        self.unstable.truncate_and_append(entries)
        return self.last_index()

    def maybe_append(self, index: int, term: int, entries: list[Entry], committed: int) -> int | None:
        """Append a leader's `entries`, which follow the entry (`index`, `term`), and follow its commit index.

        Only a conflicting suffix is replaced: a late or repeated message that holds nothing new changes
        nothing. The commit index follows no further than the entries which this message vouches for.

        Returns:
            The last index that now is known to match the leader's log; None, with nothing changed, if
            (`index`, `term`) is not in this log.

        Raises:
            InvariantError: the entries contradict a committed one.
        """
        if not self.match_term(index, term):
            return None
        conflict = self._find_conflict(entries)
        if conflict:
            if conflict <= self.committed:
                raise InvariantError(
                    f"entry {conflict} conflicts with a committed one: committed is {self.committed}"
                )
            offset = conflict - index - 1
            self.append(entries[offset:] if offset else entries)
        last = index + len(entries)
        self.commit_to(min(committed, last))
        return last

    def _find_conflict(self, entries: list[Entry]) -> int:
        """The index of the first of `entries` that this log does not hold as it is; 0: it holds them all.

        An entry of this log that can't be read is judged by the first one behind it that can: if that is the
        leader's, so is all before it (Raft paper, 5.3). If it is not, it was never committed, and what is
        unreadable and not known to be committed goes with it. Behind the last of `entries` its term alone is
        known: if that is lower than theirs, they are not held, since terms never decrease along a log.

        Raises:
            Damaged: one can't be read, nor any of those behind it that this message tells of.
        """
        last = self.last_index()
        unread: Damaged | None = None
        unread_from = 0
        for entry in entries:
            try:
                held = entry.index <= last and self.match_term(entry.index, entry.term)
            except Damaged as error:
                if unread is None:
                    unread, unread_from = error, entry.index
                continue
            if not held:
                # The last entry can be read, so this one contradicts: it does not just lie behind the end.
                from_ = entry.index if unread is None else max(unread_from, self.committed + 1)
                return min(from_, entry.index)
            unread = None
        if unread is None:
            return 0
        if entries[-1].term > self._next_readable_term(entries[-1].index + 1):
            return min(entries[-1].index, max(unread_from, self.committed + 1))
        raise unread

    def _next_readable_term(self, index: int) -> int:
        while True:
            try:
                return self.term(index)  # that of the last entry can always be read
            except Damaged:
                index += 1

    def find_conflict_by_term(self, index: int, term: int) -> EntryId:
        """Guess where this log and another begin to agree, knowing only one entry's id of the other.

        Terms never decrease along a log, so entries of this one with a higher term than the other's, at or
        before its index, can't be in the other: however many there are, they cost one round trip.

        Returns:
            The last entry at or before `index` with a term of at most `term`; term 0 says that this log does
            not know its term.
        """
        for guess in range(index, 0, -1):
            our_term = self.term_or_zero(guess)
            if our_term <= term:
                return EntryId(guess, our_term)
        return EntryId(0, 0)

    def restore(self, snapshot: Snapshot) -> None:
        """Replace the whole log by `snapshot`, which lies ahead of the commit index."""
        self.committed = snapshot.metadata.index
        self.unstable.restore(snapshot)

    # -- committing and applying

    def commit_to(self, index: int) -> None:
        """Raise the commit index to `index`; a lower one is ignored.

        Raises:
            InvariantError: the log ends before `index`.
        """
        if index <= self.committed:
            return
        last = self.last_index()
        if index > last:
            raise InvariantError(
                f"told to commit {index}, but the last index is {last}: part of the log was lost"
            )
        self.committed = index

    def maybe_commit(self, index: int, term: int) -> bool:
        """Commit up to `index`, if the entry there is of `term`, the leader's own (Raft paper, 5.4.2).

        Returns:
            Whether the commit index moved.
        """
        try:
            matches = bool(term) and index > self.committed and self.match_term(index, term)
        except Damaged:
            return False  # a later entry, or the mended one, commits it
        if matches:
            self.commit_to(index)
        return matches

    def has_next_or_in_progress_snapshot(self) -> bool:
        """Whether there is a snapshot that is not known to be durable."""
        return self.unstable.snapshot is not None

    def has_next_committed(self, allow_unstable: bool) -> bool:
        """Whether `next_committed` would return something."""
        return (
            not self._applying_paused
            # Nothing is applied past a snapshot that is not installed yet.
            and self.unstable.snapshot is None
            and self.applying < self._max_appliable(allow_unstable)
        )

    def next_committed(self, allow_unstable: bool) -> list[Entry]:
        """Return the committed entries to apply next, within the byte limit.

        Args:
            allow_unstable: whether entries that are not known to be durable here may be among them.
        """
        if not self.has_next_committed(allow_unstable):
            return []
        room = self._max_applying_bytes - self._applying_bytes
        if room <= 0:
            raise InvariantError(
                f"{self._applying_bytes} bytes are being applied, the limit is {self._max_applying_bytes}"
            )
        return self.slice(self.applying + 1, self._max_appliable(allow_unstable) + 1, room)

    def accept_applying(self, entries: list[Entry], allow_unstable: bool) -> None:
        """Note that `entries`, from `next_committed`, have been handed to the application."""
        index = entries[-1].index
        if index > self.committed:
            raise InvariantError(f"applying {index}, but only {self.committed} is committed")
        self.applying = index
        # A short hand-out means that the next entry was over the limit: wait for an acknowledgement even if
        # a byte is left.
        if self._max_applying_bytes < NO_LIMIT:
            self._applying_bytes += entries_bytes(entries)
            self._applying_paused = (
                self._applying_bytes >= self._max_applying_bytes
                or index < self._max_appliable(allow_unstable)
            )

    def applied_to(self, index: int, entries: list[Entry]) -> None:
        """Note that everything up to `index` is applied; `entries` are those of a hand-out that this
        acknowledges.

        Raises:
            InvariantError: `index` lies before what was applied or behind what is committed.
        """
        if not self.applied <= index <= self.committed:
            raise InvariantError(
                f"applied {index} is out of range: applied was {self.applied}, committed is {self.committed}"
            )
        self.applied = index
        self.applying = max(self.applying, index)
        if self._max_applying_bytes < NO_LIMIT:
            self._applying_bytes = max(0, self._applying_bytes - entries_bytes(entries))
            self._applying_paused = self._applying_bytes >= self._max_applying_bytes

    def _max_appliable(self, allow_unstable: bool) -> int:
        stable = self.committed if allow_unstable else min(self.committed, self.unstable.offset - 1)
        return min(stable, self.readable_to)
