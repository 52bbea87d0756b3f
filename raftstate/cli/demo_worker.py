"""The job of `raftstate demo`: hash every file under a path, with the manifest as the state of a workflow.

It knows nothing of the demo around it, nor of nodes that come and go: it resumes from the last checkpoint,
if there is one, and goes on. Each checkpoint that was acknowledged is noted in a ledger outside the cluster,
on disk before the next file is read. Progress goes to stdout, a JSON object a line.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from raftstate.cli.common import print_json
from raftstate.client import connect
from raftstate.errors import RaftstateError
from raftstate.lifeline import watch
from raftstate.state import Checkpoint, Workflow

WORKFLOW = "demo/manifest"
CHECKPOINTS = 150
"""How many a whole run makes, about."""
TIMEOUT_S = 30.0
"""For each request: an election must fit."""
LEFT_OUT = frozenset({b"__pycache__"})
"""Running programs rewrite it."""


class Manifest(TypedDict):
    """The workflow's state. Paths are relative bytes, since file names need not be text; digests are
    SHA-256."""

    files: dict[bytes, bytes]
    skipped: dict[bytes, str]


class SkippedError(Exception):
    """A file is left out of the manifest, for the reason that it says."""


def walk(
    root: bytes, left_out: frozenset[bytes], skipped: dict[bytes, str], folder: bytes = b""
) -> Iterator[bytes]:
    """Yield the paths of regular files under `root`, relative to it, in a fixed order; note what is
    skipped."""
    try:
        with os.scandir(os.path.join(root, folder)) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        skipped[folder or b"."] = f"unreadable folder: {error.strerror}"
        return
    for entry in entries:
        path = os.path.join(folder, entry.name)
        if entry.name in left_out:
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from walk(root, left_out, skipped, path)
        elif entry.is_file(follow_symlinks=False):
            yield path
        else:
            skipped[path] = "symbolic link" if entry.is_symlink() else "special file"


def hash_file(path: bytes) -> bytes:
    """Return the SHA-256 of a regular file. Raises SkippedError for one that can't be read or is none any
    more."""
    try:
        # O_NONBLOCK: a file that meanwhile became a FIFO must not hold the job up.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise SkippedError("special file")
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise SkippedError(f"unreadable file: {error.strerror}") from error


class Ledger:
    """Acknowledged checkpoints, one JSON object a line, each on disk when `note` returns."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def note(self, made: Checkpoint) -> None:
        """Append a checkpoint."""
        line = f'{{"id": "{made.id}", "revision": {made.revision}, "checksum": "{made.checksum}"}}\n'
        os.write(self._fd, line.encode())
        os.fsync(self._fd)


def work(workflow: Workflow, root: bytes, left_out: frozenset[bytes], ledger: Ledger) -> None:
    """Do the job, from the last checkpoint on, and report progress."""
    restored = workflow.restore(timeout=TIMEOUT_S)
    manifest: Manifest = restored.state if restored is not None else {"files": {}, "skipped": {}}
    paths = list(walk(root, left_out, manifest["skipped"]))
    every = max(1, len(paths) // CHECKPOINTS)
    todo = [path for path in paths if path not in manifest["files"] and path not in manifest["skipped"]]
    done = len(paths) - len(todo)
    print_json({"event": "started", "files": len(paths), "done": done, "every": every})
    for position, path in enumerate(todo, start=1):
        try:
            manifest["files"][path] = hash_file(os.path.join(root, path))
        except SkippedError as reason:
            manifest["skipped"][path] = str(reason)
        if position % every == 0:
            save(workflow, manifest, ledger, done + position)
    # Also when nothing was left to do: what a folder that can't be read any more changes is in it.
    save(workflow, manifest, ledger, len(paths))
    print_json({"event": "finished"})


def save(workflow: Workflow, manifest: Manifest, ledger: Ledger, done: int) -> None:
    """Make a checkpoint and report it; times are of the machine's monotonic clock, in seconds."""
    began_s = time.monotonic()
    made = workflow.checkpoint(manifest, {"files": done}, timeout=TIMEOUT_S)
    ended_s = time.monotonic()
    ledger.note(made)
    print_json({"event": "checkpoint", "done": done, "began_s": began_s, "ended_s": ended_s})


def main() -> None:
    """Run as a process of its own: `python -m raftstate.cli.demo_worker`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--ledger", required=True, type=Path)
    parser.add_argument("--leave-out", action="append", default=[], type=os.fsencode)
    parser.add_argument("--die-with-parent", required=True, type=int)
    parser.add_argument("path", type=os.fsencode)
    options = parser.parse_args()
    watch(options.die_with_parent, grace_s=0.0)
    try:
        with connect(options.url) as client:
            ledger = Ledger(options.ledger)
            work(client.workflow(WORKFLOW), options.path, LEFT_OUT | set(options.leave_out), ledger)
    except RaftstateError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
