"""What the tests of the log share: logs in a directory, and entries to put in them."""

from __future__ import annotations

from pathlib import Path

from raftstate.core.types import Entry, HardState
from raftstate.store.log import LogStore

MAP_BYTES = 1 << 30
NO_LIMIT = 1 << 62


def entry(index: int, term: int = 1, data: bytes | None = None) -> Entry:
    """An entry whose payload tells its index and term, unless given."""
    return Entry(index=index, term=term, data=b"%d/%d" % (index, term) if data is None else data)


def run(first: int, last: int, term: int = 1) -> list[Entry]:
    """The entries from `first` to `last`, both included."""
    return [entry(index, term) for index in range(first, last + 1)]


def put(log: LogStore, entries: list[Entry], hard_state: HardState | None = None) -> None:
    """Write and publish."""
    log.publish(log.write(hard_state, entries))


def content(log: LogStore) -> tuple[HardState, int, list[Entry]]:
    """All that a reader can see: hard state, first index, entries."""
    first, last = log.first_index(), log.last_index()
    entries = log.entries(first, last + 1, NO_LIMIT) if last >= first else []
    return log.last_hard_state, first, entries


def new_log(path: Path, **options: int) -> LogStore:
    return LogStore.open(path, map_bytes=MAP_BYTES, create=True, **options)


def reopen(path: Path, **options: int) -> LogStore:
    return LogStore.open(path, map_bytes=MAP_BYTES, **options)
