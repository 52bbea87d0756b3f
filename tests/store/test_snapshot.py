"""Snapshots of a state, and the generations that are made from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from raftstate.machine.machine import Machine
from raftstate.store.state import StateStore
from tests.store.snapshot_helpers import blank_state, new_state, prepare, snapshot_of
from tests.store.state_model import rows_in


@pytest.mark.case(44)
@pytest.mark.parametrize("piece_bytes", [1, 7, 4096, 1 << 20])
def test_a_node_that_adopts_a_snapshot_holds_the_rows_of_its_sender(tmp_path: Path, piece_bytes: int) -> None:
    sender, receiver = new_state(tmp_path / "sender"), blank_state(tmp_path / "receiver")
    expected = rows_in(sender)
    prepared = prepare(receiver, snapshot_of(sender), piece_bytes)
    receiver.make_current(prepared)
    receiver.adopt(prepared)
    assert rows_in(receiver) == expected
    index = prepared.meta.index
    assert (receiver.durable_applied_index, receiver.dirtied_bytes) == (index, 0)
    receiver.close(clean=True)
    receiver = StateStore.open(tmp_path / "receiver")
    with receiver.read() as tables:
        assert Machine(tables).applied_index == index
    assert rows_in(receiver) == expected
    receiver.close(clean=True)
    sender.close(clean=True)
