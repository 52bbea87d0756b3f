"""After a power cut the state is exactly that of its last durable checkpoint, whatever was lost of what came
after it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.store.crash_images import count_exact

ROOT = Path(__file__).parents[2]


@pytest.mark.case(48)
@pytest.mark.case(77)
@pytest.mark.parametrize("seed", range(10))
def test_state_comes_back_exact_from_thirty_power_cuts_in_a_row(seed: int, tmp_path: Path) -> None:
    assert count_exact(tmp_path, seed, 30) == 30


def test_without_the_checkpoints_reader_the_same_power_cuts_corrupt_the_state(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "tests.store.crash_images", str(tmp_path), "0", "30"]
    ended = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    reported_exact = int(ended.stdout) if ended.returncode == 0 else 0
    assert reported_exact < 30, ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
