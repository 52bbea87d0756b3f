"""Folders of stopped nodes, to be checked and damaged."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from raftstate import connect

KEYS = 200


def stopped(folder: Path, keys: int = KEYS) -> Path:
    """A node's folder after a clean stop; it holds key0, key1, ..."""
    with connect(f"embedded:{folder}") as client:
        for number in range(keys):
            client.put(f"key{number}", b"value %d" % number)
    return folder


def killed(folder: Path, keys: int = KEYS) -> Path:
    """A node's folder as a kill -9 leaves it: copied while the node runs."""
    origin = folder.with_name(folder.name + "-running")
    with connect(f"embedded:{origin}") as client:
        for number in range(keys):
            client.put(f"key{number}", b"value %d" % number)
        shutil.copytree(origin, folder)
    return folder


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `raftstate`."""
    return subprocess.run(
        [sys.executable, "-m", "raftstate.cli", *arguments], capture_output=True, text=True, check=False
    )


def image(folder: Path) -> dict[str, str]:
    """What stands in a folder: path -> digest."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
