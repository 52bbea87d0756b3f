"""What a process has done for durability when it acknowledges a write, seen from outside with strace."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.peers.acknowledging_process import SAID

WRITES = 50
ROOT = Path(__file__).resolve().parents[2]
_SYNC = re.compile(r"\b(fsync|fdatasync|msync|sync_file_range|syncfs|sync)\b.*= 0$")
"""A call that has returned, begun on the same line or before."""


def can_trace() -> bool:
    if shutil.which("strace") is None:
        return False
    return (
        subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False).returncode == 0
    )


pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(
        "CI" not in os.environ and not can_trace(),
        reason="strace is not installed, or may trace nothing here",
    ),
]


def calls_of(system: str, scratch: Path) -> list[str]:
    """Have writes acknowledged by a process; return its system calls that sync, open or tell of them."""
    trace, folder = scratch / "trace", scratch / "data"
    folder.mkdir()
    program = [sys.executable, "-m", "tests.peers.acknowledging_process", system, str(folder), str(WRITES)]
    calls = "trace=fsync,fdatasync,msync,sync_file_range,syncfs,sync,open,openat,write"
    subprocess.run(
        ["strace", "-f", "-e", calls, "-o", str(trace), *program],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=100,
    )
    return trace.read_text().splitlines()


def syncs_before_each(calls: list[str]) -> list[int]:
    """Return how many syncs had returned before each acknowledgement, since the one before it."""
    said = f'write(1, "{SAID.decode().strip()}'
    counts, count = [], 0
    for call in calls:
        if said in call:
            counts.append(count)
            count = 0
        elif _SYNC.search(call):
            count += 1
    return counts


def test_pysyncobj_syncs_nothing_for_acknowledged_writes_with_a_journal(tmp_path: Path) -> None:
    pytest.importorskip("pysyncobj", reason="pysyncobj is not installed: pip install 'raftstate[peers]'")
    calls = calls_of("pysyncobj", tmp_path)
    assert syncs_before_each(calls) == [0] * WRITES
    journals = [call for call in calls if ".journal" in call]
    assert sum("O_RDWR" in call for call in journals) >= 3
    assert not any("SYNC" in call for call in journals)


@pytest.mark.case(3)
def test_a_sync_has_returned_before_each_acknowledgement(tmp_path: Path) -> None:
    """The control of the same probe. That it is a majority's: `tests/processes/test_fsync_probe.py`."""
    counts = syncs_before_each(calls_of("raftstate", tmp_path))
    assert len(counts) == WRITES
    assert min(counts) >= 1
