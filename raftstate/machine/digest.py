"""Two checks on what the machine holds: a running digest of all it ever did, and sums over all that is live.

The digest chains each entry to the one before, so nodes that agree on it at one index agree on everything up
to there. The bucket sums are of the live state alone: each key falls into one of 256 buckets by its hash, and
a bucket's sum is that of the checksums of its keys' live changes, modulo 2^64. Adding and subtracting
commute, so they can be kept up to date with each write and added up again from nothing; a difference means
that a key vanished or came back, which no row's own checksum can tell.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from struct import Struct, pack

from raftstate.machine.layout import checksum, read_index, read_live_change
from raftstate.machine.tables import ReadTables, Table

BUCKETS = 256
BUCKET_MASK = BUCKETS - 1
SUM_MASK = (1 << 64) - 1

_HEADER = Struct("<QQQIQQII")


class SumChanges:
    """What was changed in the bucket sums while somebody adds them up again, a part of the keys at a time.

    One thread adds, and goes back when a transaction did not commit; another takes, and takes no more than
    what is committed: neither meets what the other does.
    """

    KEYS_MAX = 1_000_000
    """Some 100 MB. Whoever adds up so slowly had better begin anew when there is less to do."""

    def __init__(self) -> None:
        self._changes: deque[tuple[int, list[tuple[bytes, int]]]] = deque()
        self._keys = 0
        self.is_lost = False
        """Whether there were too many to keep them, or the state that they are of was replaced."""

    def add(self, applied_index: int, changes: list[tuple[bytes, int]]) -> None:
        """Add what a call of apply has changed, up to and including an entry: (key, difference)."""
        self._keys += len(changes)
        if self.is_lost or self._keys > self.KEYS_MAX:
            self.is_lost = True
            self._changes.clear()
        else:
            self._changes.append((applied_index, changes))

    def go_back_to(self, applied_index: int) -> None:
        """Forget what came after an entry: it was not committed."""
        while self._changes and self._changes[-1][0] > applied_index:
            self._changes.pop()

    def take(self, applied_index: int) -> Iterator[tuple[bytes, int]]:
        """Yield what was changed up to and including an entry that is committed, once."""
        while self._changes and self._changes[0][0] <= applied_index:
            _, changes = self._changes.popleft()
            self._keys -= len(changes)
            yield from changes


def next_digest(
    previous: int,
    *,
    index: int,
    term: int,
    machine_version: int,
    clocks_ms: tuple[int, int],
    changes: Sequence[int],
    facts: bytes,
    results: bytes,
) -> int:
    """Return the digest after one entry.

    Args:
        previous: the digest after the entry before.
        index: the entry's index.
        term: the entry's term.
        machine_version: by whose rules it was applied.
        clocks_ms: lease clock and wall clock as of it.
        changes: checksums of the changes that it made, in order.
        facts: what it did to sessions, leases, membership, the history and the machine version.
        results: its results, encoded.
    """
    header = _HEADER.pack(previous, index, term, machine_version, *clocks_ms, len(changes), len(facts))
    return checksum(b"".join((header, pack(f"<{len(changes)}Q", *changes), facts, results)))


def recount(tables: ReadTables) -> list[int]:
    """Add the bucket sums up again from the live rows, each of which is read and verified.

    Raises `DataLossError` when a row is damaged, or a key's change is not the one that the index names.
    """
    sums = [0] * BUCKETS
    for key, row in tables.scan(Table.INDEX):
        change = read_live_change(tables, key, read_index(key, row))
        sums[checksum(key) & BUCKET_MASK] += change.checksum
    return [total & SUM_MASK for total in sums]
