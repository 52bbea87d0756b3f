"""The machine's tables in memory: what `WriteTables` promises, with transactions that can be aborted."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from raftstate.errors import InvariantError
from raftstate.machine.tables import Table


class MemoryTables:
    """Ordered tables over dicts. Readers see a transaction that is still open: there is one thread here."""

    def __init__(self) -> None:
        self._rows: dict[Table, dict[bytes, bytes]] = {table: {} for table in Table}
        self._keys: dict[Table, list[bytes]] = {table: [] for table in Table}
        self._undo: list[tuple[Table, bytes, bytes | None]] = []
        self.writes = 0
        """Rows put or deleted so far."""

    @contextmanager
    def write(self) -> Iterator[MemoryTables]:
        """A transaction: an exception out of it puts every row back."""
        self._undo = []
        try:
            yield self
        except BaseException:
            for table, key, value in reversed(self._undo):
                self._set(table, key, value)
            raise

    def copy(self) -> MemoryTables:
        """Another one with the same rows."""
        copied = MemoryTables()
        copied._rows = {table: dict(rows) for table, rows in self._rows.items()}
        copied._keys = {table: list(keys) for table, keys in self._keys.items()}
        return copied

    def get(self, table: Table, key: bytes) -> bytes | None:
        return self._rows[table].get(key)

    def scan(
        self, table: Table, start: bytes = b"", end: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        keys = self._keys[table]
        found = keys[bisect_left(keys, start) : len(keys) if end is None else bisect_left(keys, end)]
        for key in found:
            yield key, self._rows[table][key]

    def count(self, table: Table) -> int:
        return len(self._keys[table])

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        self._undo.append((table, key, self.get(table, key)))
        self._set(table, key, value)
        self.writes += 1

    def put_many(self, table: Table, rows: Sequence[tuple[bytes, bytes]], *, append: bool = False) -> None:
        keys = [key for key, _ in rows]
        if keys != sorted(set(keys)):
            raise InvariantError(f"rows for {table.name} are not in ascending order")
        if append and keys and self._keys[table] and keys[0] <= self._keys[table][-1]:
            raise InvariantError(f"a row appended to {table.name} does not come after its last one")
        for key, value in rows:
            self.put(table, key, value)

    def delete(self, table: Table, key: bytes) -> bool:
        before = self.get(table, key)
        self._undo.append((table, key, before))
        self._set(table, key, None)
        self.writes += 1
        return before is not None

    def _set(self, table: Table, key: bytes, value: bytes | None) -> None:
        rows, keys = self._rows[table], self._keys[table]
        if value is None:
            if rows.pop(key, None) is not None:
                del keys[bisect_left(keys, key)]
            return
        if key not in rows:
            insort(keys, key)
        rows[key] = value

    def dump(self) -> dict[str, dict[bytes, bytes]]:
        """Every row, for comparing two states."""
        return {table.name: dict(self._rows[table]) for table in Table}
