"""The state of a node that joins, before its first snapshot."""

from __future__ import annotations

import pytest

from chaos.sim.memory_tables import MemoryTables
from raftstate.core.types import ConfState, Entry
from raftstate.errors import FailedPreconditionError
from raftstate.machine.layout import Meta, read_meta
from raftstate.machine.machine import Machine
from tests.machine.rig import CLUSTER, MEMBERS


def test_a_blank_state_knows_its_cluster_and_nothing_else() -> None:
    tables = MemoryTables()
    Machine.blank(tables, CLUSTER)
    # The lowest version of the machine: the cluster that it joins may not have moved to a later one.
    assert read_meta(tables) == Meta(CLUSTER, 0, 0, 1, 1, 0, 0, 0, ConfState(), [])
    machine = Machine(tables)
    assert machine.is_blank
    assert (machine.cluster_id, machine.applied_index, machine.machine_version) == (CLUSTER, 0, 1)
    assert (machine.members, machine.last_member_id, machine.conf_state()) == ([], 0, ConfState())
    assert (machine.session_count, machine.lease_count, machine.sweep_pending) == (0, 0, False)


@pytest.mark.parametrize("entries", [0, 1])
def test_a_state_with_members_is_not_blank_whatever_it_has_applied(entries: int) -> None:
    tables = MemoryTables()
    Machine.bootstrap(tables, CLUSTER, MEMBERS)
    machine = Machine(tables)
    machine.apply(tables, [Entry(1, 1)][:entries])
    assert not machine.is_blank


def test_a_state_is_made_blank_only_where_there_is_none() -> None:
    for first in (
        lambda tables: Machine.blank(tables, CLUSTER),
        lambda tables: Machine.bootstrap(tables, CLUSTER, MEMBERS),
    ):
        tables = MemoryTables()
        first(tables)
        with pytest.raises(FailedPreconditionError, match="holds a cluster already"):
            Machine.blank(tables, CLUSTER)
        with pytest.raises(FailedPreconditionError, match="holds a cluster already"):
            Machine.bootstrap(tables, CLUSTER, MEMBERS)
