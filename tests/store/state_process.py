"""A process that opens a state, writes, takes checkpoints and closes it again, for ever, until it is killed.

    python -m tests.store.state_process DIRECTORY SEED

What transaction `i` does follows from `i` alone, so that the state at any index can be told from outside.
Prints `ready` when it is about to begin, and then each index that it was told is durable.
"""

from __future__ import annotations

import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from random import Random

from raftstate.machine.tables import Table, WriteTables
from raftstate.store.generation import current_generation
from raftstate.store.state import StateStore
from tests.store.state_model import KEYS, Model

CHANGES_KEPT = 300


def transact(tables: WriteTables, index: int) -> None:
    """Do what log entry `index` does."""
    random = Random(index)
    tables.put_many(
        Table.CHANGES,
        [(index.to_bytes(8, "big"), random.randbytes(random.choice((10, 300, 5000))))],
        append=True,
    )
    keys = sorted(random.sample(KEYS, random.randint(1, 20)))
    tables.put_many(Table.INDEX, [(key, index.to_bytes(8, "big")) for key in keys])
    tables.delete(Table.INDEX, random.choice(KEYS))
    tables.put(Table.HOT, b"applied", b"%d" % index)
    if index > CHANGES_KEPT:
        tables.delete(Table.CHANGES, (index - CHANGES_KEPT).to_bytes(8, "big"))


class DictTables:
    """The part of `WriteTables` that `transact` needs, over dicts."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        self.model[table][key] = value

    def put_many(self, table: Table, rows: list[tuple[bytes, bytes]], *, append: bool = False) -> None:
        self.model[table].update(rows)

    def delete(self, table: Table, key: bytes) -> bool:
        return self.model[table].pop(key, None) is not None


def live_once(directory: Path, random: Random, executor: ThreadPoolExecutor) -> None:
    """Start, write beside checkpoints, and stop, cleanly or not."""
    store = (
        StateStore.open(directory)
        if current_generation(directory) is not None
        else StateStore.create(directory, 1 << 28)
    )
    index = store.durable_applied_index
    checkpoint = None
    syncing: Future[None] | None = None
    for _ in range(random.randint(1, 60)):
        index += 1
        with store.write() as tables:
            transact(tables, index)
        if checkpoint is None and random.random() < 0.2:
            checkpoint = store.begin_checkpoint(index)
            syncing = executor.submit(checkpoint.sync)
        elif checkpoint is not None and syncing is not None and (syncing.done() or random.random() < 0.2):
            syncing.result()
            checkpoint.finish()
            checkpoint = None
            print(store.durable_applied_index, flush=True)
    if syncing is not None:
        syncing.result()
    if checkpoint is not None:
        checkpoint.finish()
    clean = random.random() < 0.5
    if clean:
        store.checkpoint(index)
        print(store.durable_applied_index, flush=True)
    store.close(clean=clean)


def main(directory: str, seed: str) -> None:
    random = Random(int(seed))
    print("ready", flush=True)
    with ThreadPoolExecutor(1) as executor:
        while True:
            live_once(Path(directory), random, executor)


if __name__ == "__main__":
    main(*sys.argv[1:])
