"""A dict beside a state store, random transactions on both, and the comparison of all rows."""

from __future__ import annotations

from random import Random

import lmdb

from raftstate.machine.tables import Table, WriteTables
from raftstate.store.state import StateStore

Model = dict[Table, dict[bytes, bytes]]

KEYS = [b"key-%04d" % number for number in range(400)]


def empty_model() -> Model:
    return {table: {} for table in Table}


def copy_model(model: Model) -> Model:
    return {table: dict(rows) for table, rows in model.items()}


def rows_in(store: StateStore) -> Model:
    with store.read() as tables:
        return {table: dict(tables.scan(table)) for table in Table}


class Workload:
    """Transactions like the machine's: appended changes, sorted index rows, small hot rows and some large
    ones, compaction."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.model = empty_model()
        self.revision = 0

    def transaction(self, tables: WriteTables) -> None:
        """Do one transaction of 1 to 60 commands on the tables and on the model."""
        random, model = self.random, self.model
        changes = []
        index = {}
        for _ in range(random.choice((1, 1, 8, 60))):
            self.revision += 1
            value = random.randbytes(random.choice((8, 200, 200, 1500, 6000)))
            changes.append((self.revision.to_bytes(8, "big"), value))
            index[random.choice(KEYS)] = self.revision.to_bytes(8, "big") + bytes(40)
        tables.put_many(Table.CHANGES, changes, append=True)
        tables.put_many(Table.INDEX, sorted(index.items()))
        model[Table.CHANGES].update(changes)
        model[Table.INDEX].update(index)
        for name in (b"meta", b"session", b"buckets"):
            value = random.randbytes(random.choice((20, 900, 5000)))
            tables.put(Table.HOT, name, value)
            model[Table.HOT][name] = value
        self._delete_some(tables, Table.INDEX, random.sample(KEYS, 4))
        if random.random() < 0.3:
            oldest = sorted(model[Table.CHANGES])
            self._delete_some(tables, Table.CHANGES, oldest[: len(oldest) // 2])

    def _delete_some(self, tables: WriteTables, table: Table, keys: list[bytes]) -> None:
        for key in keys:
            was_there = self.model[table].pop(key, None) is not None
            assert tables.delete(table, key) == was_there


def lmdb_error(kind: type[lmdb.Error], message: str, code: int) -> lmdb.Error:
    """Make an error as LMDB's binding does."""
    error = kind(message)
    error.code = code  # type: ignore[misc]
    return error
