"""What the core reads back: the durable part of the log.

May live here: the `Storage` protocol, the memory implementation that tests and examples use, and the sizes
that byte limits are counted in. The core only reads; whoever handles `Ready` writes. A storage holds one
contiguous run of entries behind a boundary, the last entry that a snapshot or a compaction took away, whose
term it still knows:

      boundary = first_index - 1   first_index  ...  last_index
      (term known)                 (entries)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from raftstate.core.errors import Compacted, SnapshotOutOfDate, Unavailable
from raftstate.core.types import ConfState, Entry, HardState, Snapshot, SnapshotMetadata
from raftstate.errors import InvariantError

NO_LIMIT = (1 << 64) - 1
"""The value of a byte limit that limits nothing."""


def entry_bytes(entry: Entry) -> int:
    """The size of `entry` as byte limits count it: its data, and what etcd's encoding adds to it."""
    size = 2 + (entry.term.bit_length() + 6) // 7 + (entry.index.bit_length() + 6) // 7
    if entry.type:
        size += 2
    data = len(entry.data)
    if data:
        size += 1 + (data.bit_length() + 6) // 7 + data
    return size


def entries_bytes(entries: Sequence[Entry]) -> int:
    """The sum of `entry_bytes` over `entries`."""
    return sum(map(entry_bytes, entries))


def payload_bytes(entries: Sequence[Entry]) -> int:
    """The bytes of data in `entries`; an entry without data counts as nothing."""
    return sum(len(entry.data) for entry in entries)


def limit_entries(entries: list[Entry], max_bytes: int) -> list[Entry]:
    """The longest prefix of `entries` of at most `max_bytes`, but never less than the first entry."""
    if max_bytes >= NO_LIMIT or len(entries) <= 1:
        return entries
    size = 0
    for count, entry in enumerate(entries):
        size += entry_bytes(entry)
        if size > max_bytes and count:
            return entries[:count]
    return entries


class Storage(Protocol):
    """The durable log, as the core reads it.

    Whatever else these methods raise passes through the core unchanged.
    """

    def initial_state(self) -> tuple[HardState, ConfState]:
        """Return the saved hard state (all zero: none) and the configuration as of `Config.applied`.

        Without `Config.applied` it is that of the boundary: the entries behind it are applied again.
        """
        ...

    def entries(self, lo: int, hi: int, max_bytes: int) -> list[Entry]:
        """Return the entries from `lo` up to, not including, `hi`.

        Args:
            lo: an index behind the boundary.
            hi: at most the last index + 1.
            max_bytes: how many bytes of entries to return; the first one is returned whatever its size.

        Returns:
            A list that belongs to the caller.

        Raises:
            Compacted: `lo` lies at or before the boundary.
            Unavailable: an entry in the range is not there.
            Damaged: one that is to be returned can't be read.
        """
        ...

    def term(self, index: int) -> int:
        """Return the term of the entry at `index`, which may be the boundary.

        Raises:
            Compacted: `index` lies before the boundary.
            Unavailable: `index` lies behind the log.
            Damaged: it can't be read. That of the last entry always can: votes depend on it.
        """
        ...

    def first_index(self) -> int:
        """The index after the boundary, whether there is an entry or not."""
        ...

    def last_index(self) -> int:
        """The index of the last entry; the boundary if there is none."""
        ...

    def snapshot(self) -> Snapshot:
        """The newest snapshot. Raises `SnapshotTemporarilyUnavailable` while one is being made."""
        ...


class MemoryStorage:
    """A `Storage` in a list, with the writes that handling a `Ready` needs."""

    def __init__(self) -> None:
        self._hard_state = HardState()
        self._snapshot = Snapshot()
        # The first element stands for the boundary: only its index and term mean something.
        self._log = [Entry(index=0, term=0)]

    def initial_state(self) -> tuple[HardState, ConfState]:
        """The saved hard state and the configuration of the newest snapshot."""
        return self._hard_state, self._snapshot.metadata.conf_state

    def entries(self, lo: int, hi: int, max_bytes: int) -> list[Entry]:
        """See `Storage.entries`."""
        boundary = self._log[0].index
        if lo <= boundary:
            raise Compacted(f"entry {lo} is compacted; the first index is {boundary + 1}")
        if hi > self.last_index() + 1:
            raise Unavailable(f"entry {hi - 1} is not in the log; the last index is {self.last_index()}")
        return limit_entries(self._log[lo - boundary : hi - boundary], max_bytes)

    def term(self, index: int) -> int:
        """See `Storage.term`."""
        offset = index - self._log[0].index
        if offset < 0:
            raise Compacted(f"the term of entry {index} is compacted; the boundary is {self._log[0].index}")
        if offset >= len(self._log):
            raise Unavailable(f"entry {index} is not in the log; the last index is {self.last_index()}")
        return self._log[offset].term

    def first_index(self) -> int:
        """See `Storage.first_index`."""
        return self._log[0].index + 1

    def last_index(self) -> int:
        """See `Storage.last_index`."""
        return self._log[0].index + len(self._log) - 1

    def snapshot(self) -> Snapshot:
        """The newest snapshot; an empty one (index 0) if there never was one."""
        return self._snapshot

    def set_hard_state(self, hard_state: HardState) -> None:
        """Save `hard_state`."""
        self._hard_state = hard_state

    def append(self, entries: Sequence[Entry]) -> None:
        """Save `entries`, in place of whatever stands at or after the first of them.

        Those at or before the boundary are left out.

        Raises:
            InvariantError: they would leave a gap.
        """
        boundary = self._log[0].index
        fresh = [entry for entry in entries if entry.index > boundary]
        if not fresh:
            return
        offset = fresh[0].index - boundary
        if offset > len(self._log):
            raise InvariantError(
                f"appending entry {fresh[0].index} would leave a gap: the last index is {self.last_index()}"
            )
        self._log[offset:] = fresh

    def apply_snapshot(self, snapshot: Snapshot) -> None:
        """Replace the whole log by `snapshot`.

        Raises:
            SnapshotOutOfDate: it is not newer than the one held.
        """
        held = self._snapshot.metadata.index
        if held and held >= snapshot.metadata.index:
            raise SnapshotOutOfDate(
                f"snapshot {snapshot.metadata.index} is not newer than the one held ({held})"
            )
        self._snapshot = snapshot
        self._log = [Entry(index=snapshot.metadata.index, term=snapshot.metadata.term)]

    def create_snapshot(self, index: int, conf_state: ConfState | None, data: bytes) -> Snapshot:
        """Make and keep a snapshot as of `index`, an applied entry; the log stays as it is.

        Args:
            index: behind the present snapshot.
            conf_state: the configuration as of `index`; None: that of the present snapshot.
            data: the state, as the application wants it back.

        Raises:
            SnapshotOutOfDate: the present snapshot is as new.
            Unavailable: `index` lies behind the log.
        """
        if index <= self._snapshot.metadata.index:
            raise SnapshotOutOfDate(
                f"snapshot {index} is not newer than the one held ({self._snapshot.metadata.index})"
            )
        metadata = SnapshotMetadata(
            conf_state=self._snapshot.metadata.conf_state if conf_state is None else conf_state,
            index=index,
            term=self.term(index),
        )
        self._snapshot = msgspec.structs.replace(self._snapshot, data=data, metadata=metadata)
        return self._snapshot

    def compact(self, index: int) -> None:
        """Drop the entries up to and including `index`, which becomes the boundary. It must be applied.

        Raises:
            Compacted: it already lies at or before the boundary.
            Unavailable: it lies behind the log.
        """
        boundary = self._log[0].index
        if index <= boundary:
            raise Compacted(f"entry {index} is compacted; the boundary is {boundary}")
        if index > self.last_index():
            raise Unavailable(f"entry {index} is not in the log; the last index is {self.last_index()}")
        kept = self._log[index - boundary :]
        kept[0] = Entry(index=kept[0].index, term=kept[0].term)
        self._log = kept
