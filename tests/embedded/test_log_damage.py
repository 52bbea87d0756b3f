"""A sole node whose log has rotted where its state holds all that was there: it goes on, at once."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from raftstate import connect
from raftstate.core.types import Entry, HardState
from raftstate.store.checkpoint import CheckpointRecord
from raftstate.store.generation import current_generation
from raftstate.store.log import LogStore, LogWrite
from tests.offline.folders import stopped
from tests.store.log_regions import flip, regions


@pytest.mark.case(62)
@pytest.mark.parametrize("back", [0, 1])
def test_the_record_of_the_entry_applied_last_may_be_damaged(tmp_path: Path, back: int) -> None:
    folder, keys = tmp_path / "node", [f"key{number}" for number in range(20)]
    with connect(f"embedded:{tmp_path / 'running'}") as client:
        for key in keys:
            client.put(key, b"before")
        time.sleep(1.5)  # a checkpoint is taken once a second
        for key in keys:
            client.put(key, b"after")
        shutil.copytree(tmp_path / "running", folder)  # as a kill leaves it
    data = folder / "data"
    generation = current_generation(data)
    assert generation is not None
    applied = CheckpointRecord.read(generation.checkpoint_file).applied_index
    log = LogStore.open(data / "log", map_bytes=16 << 30)
    first, last = log.first_index(), log.last_index()
    log.close()
    assert first < applied < last
    file = data / "log" / "data.mdb"
    flip(file, regions(file)["record"][applied - back - first])
    with connect(f"embedded:{folder}") as client:
        assert [pair.value for pair in client.range(prefix="key")] == [b"after"] * 20


@pytest.mark.case(85)
def test_a_put_that_was_under_way_when_damage_was_found_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stopped(tmp_path / "node")
    file = folder / "data" / "log" / "data.mdb"
    flip(file, regions(file)["record"][10])
    writing = threading.Event()
    armed: list[bool] = []
    verify_rest, write = LogStore.verify_rest, LogStore.write

    def verified_late(log: LogStore) -> tuple[int, ...]:
        found = verify_rest(log)
        assert found
        assert writing.wait(20)
        return found

    def written_slowly(log: LogStore, hard_state: HardState | None, entries: Sequence[Entry]) -> LogWrite:
        if armed and entries:
            armed.clear()
            writing.set()
            time.sleep(0.5)
        return write(log, hard_state, entries)

    monkeypatch.setattr(LogStore, "verify_rest", verified_late)
    monkeypatch.setattr(LogStore, "write", written_slowly)
    with connect(f"embedded:{folder}", timeout=8) as client:
        client.put("a", b"1")
        armed.append(True)
        began_s = time.monotonic()
        client.put("b", b"2")
        assert time.monotonic() - began_s < 5.0  # without another append it was never acknowledged
