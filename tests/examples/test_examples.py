"""Every example runs as its first lines say, and prints what it promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

PRINTED = {
    "transactions.py": ["accounts/ann", "total 200"],
    "fenced_lock.py": [
        "printed: page of the first holder",
        "printed: page of the second holder",
        "the printer refused the stale token",
        "a stale holder's transaction was done: False",
        "the holder's transaction was done: True",
    ],
    "resumable_watch.py": [
        "a first follower saw 2 changes, and was stopped",
        "the next one saw 3 more",
        "counts: {'queued': 3, 'done': 1}",
    ],
    "grow.py": [
        "n2 has caught up, and votes",
        "n3 has caught up, and votes",
        "killed n1",
        "acknowledged writes lost: 0",
        "written twice: 0",
        "the watch saw each of them once, in order: True",
    ],
}


def test_no_example_is_without_a_test() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(PRINTED)


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_prints_what_it_promises(name: str) -> None:
    ended = subprocess.run(
        [sys.executable, EXAMPLES / name], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout
    for promised in PRINTED[name]:
        assert promised in lines
    assert ended.stderr == ""
