"""Kill -9 at random moments, within checkpoints and starts too: the next start finds exactly the last durable
checkpoint."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from raftstate.store.checkpoint import CheckpointRecord
from raftstate.store.generation import current_generation
from raftstate.store.state import StateStore
from tests.store.state_model import empty_model, rows_in
from tests.store.state_process import DictTables, transact

ROOT = Path(__file__).parents[2]
LIFE_S = 0.25
"""The longest that a process lives after its imports; a start, some dozen transactions and a stop take some
20 ms."""


def live_and_be_killed(directory: Path, seed: int, life_s: float) -> list[int]:
    """Run the process, kill it after `life_s` seconds, and return the indexes that it was told are
    durable."""
    program = [sys.executable, "-m", "tests.store.state_process", str(directory), str(seed)]
    with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"ready\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(life_s)
        process.kill()
        output, errors = process.stdout.read(), process.stderr.read()
    assert (process.returncode, errors) == (-signal.SIGKILL, b"")
    return [int(line) for line in output.split(b"\n")[:-1]]


def kill_and_compare(directory: Path, seed: int, rounds: int) -> int:
    """Do that `rounds` times on one directory, and compare the state each time; return the last durable
    index."""
    random = Random(seed)
    model, modelled = DictTables(empty_model()), 0
    durable = 0
    for round_ in range(rounds):
        told = live_and_be_killed(directory, seed * 1000 + round_, random.uniform(0, LIFE_S))
        generation = current_generation(directory)
        if generation is None:
            assert told == []
            continue
        recorded = CheckpointRecord.read(generation.checkpoint_file).applied_index
        assert recorded >= max(told, default=durable)
        durable = recorded
        while modelled < durable:
            modelled += 1
            transact(model, modelled)  # type: ignore[arg-type]
        store = StateStore.open(directory)
        assert (store.durable_applied_index, rows_in(store)) == (durable, model.model)
        store.close(clean=random.random() < 0.3)
    return durable


@pytest.mark.case(48)
def test_state_is_exact_after_each_of_eight_kills(tmp_path: Path) -> None:
    assert kill_and_compare(tmp_path, seed=1, rounds=8) > 0


@pytest.mark.slow
@pytest.mark.case(48)
@pytest.mark.parametrize("seed", [2, 3])
def test_state_is_exact_after_each_of_fifty_kills(seed: int, tmp_path: Path) -> None:
    assert kill_and_compare(tmp_path, seed, rounds=50) > 0
