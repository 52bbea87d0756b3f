"""The machine over LMDB: the same rows as in memory, and they are there again after a close."""

from __future__ import annotations

from pathlib import Path

from chaos.sim.memory_tables import MemoryTables
from raftstate.machine.digest import recount
from raftstate.machine.layout import read_sums
from raftstate.machine.machine import Machine
from raftstate.machine.reader import Reader
from raftstate.machine.tables import ReadTables, Table
from raftstate.store.state import StateStore
from tests.machine.rig import CLUSTER, MEMBERS
from tests.machine.test_apply import CONF_STATES, PROGRAM


def rows(tables: ReadTables) -> dict[str, dict[bytes, bytes]]:
    return {table.name: dict(tables.scan(table)) for table in Table}


def test_over_lmdb_the_machine_writes_and_answers_what_it_does_in_memory(tmp_path: Path) -> None:
    memory = MemoryTables()
    Machine.bootstrap(memory, CLUSTER, MEMBERS)
    expected = Machine(memory).apply(memory, PROGRAM, CONF_STATES)
    store = StateStore.create(tmp_path, 64 << 20)
    with store.write() as tables:
        Machine.bootstrap(tables, CLUSTER, MEMBERS)
    results = []
    for start in range(0, len(PROGRAM), 2):
        with store.read() as committed:
            machine = Machine(committed)
        with store.write() as tables:
            results += machine.apply(tables, PROGRAM[start : start + 2], CONF_STATES)
    assert results == expected
    with store.read() as committed:
        assert rows(committed) == memory.dump()
        assert Reader(committed).range(b"k", None) == Reader(memory).range(b"k", None)
        assert recount(committed) == read_sums(committed)
    store.checkpoint(machine.applied_index)
    store.close(clean=True)
    store = StateStore.open(tmp_path)
    with store.read() as committed:
        assert Machine(committed).digest == machine.digest
    store.close(clean=True)
