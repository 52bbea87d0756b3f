"""A witness of the host: a process that notes when it did not run, and when the disk did not answer.

    python -m bench.stalls FOLDER

On a shared machine a slow request can be the fault of the host. This process knows nothing of the system that
is measured: one thread reads the clock all the time, another writes and syncs a file in FOLDER. What takes
`NOTED_MS` or more is printed, one line of JSON each; it ends when its standard input does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

NOTED_MS = 20
STALL_MS = 100
"""What counts as a stall of the host. A shorter one may still be the larger part of a slow request."""
_CLOCK_STEP_S = 0.005
_DISK_STEP_S = 0.020
_BLOCK = b"s" * 4096


class Stall(NamedTuple):
    """A time in which the host did not run (`kind` "clock") or did not sync ("disk"), in monotonic ns.

    What is measured uses the same disk: its own writes can be what a sync waited for.
    """

    kind: str
    start_ns: int
    end_ns: int

    @property
    def ms(self) -> float:
        """How long it was, in ms."""
        return (self.end_ns - self.start_ns) / 1e6


class StallProbe:
    """The witness, as a process. `folder`: on the disk that it syncs to."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.stalls", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).resolve().parents[1],
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()
        self._seen: list[Stall] = []

    def stop(self) -> list[Stall]:
        """End it, if that was not done; return what it saw, in order of kind and beginning."""
        if self._process.poll() is None:
            out, _ = self._process.communicate()
            self._seen = sorted(Stall(*json.loads(line)) for line in out.splitlines())
        return self._seen


def long(stalls: Iterable[Stall]) -> list[Stall]:
    """Return those of `STALL_MS` or more."""
    return [stall for stall in stalls if stall.ms >= STALL_MS]


def overlapping(stalls: Iterable[Stall], start_ns: int, end_ns: int) -> list[Stall]:
    """Return the stalls that share some time with what lasted from `start_ns` to `end_ns`."""
    return [stall for stall in stalls if stall.start_ns < end_ns and start_ns < stall.end_ns]


def _say(kind: str, start_ns: int, end_ns: int) -> None:
    os.write(1, json.dumps([kind, start_ns, end_ns]).encode() + b"\n")


def _watch_clock() -> None:
    last_ns = time.monotonic_ns()
    while True:
        time.sleep(_CLOCK_STEP_S)
        now_ns = time.monotonic_ns()
        if now_ns - last_ns >= NOTED_MS * 1_000_000:
            _say("clock", last_ns, now_ns)
        last_ns = now_ns


def _watch_disk(path: Path) -> None:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    while True:
        start_ns = time.monotonic_ns()
        os.pwrite(file, _BLOCK, 0)
        os.fdatasync(file)
        end_ns = time.monotonic_ns()
        if end_ns - start_ns >= NOTED_MS * 1_000_000:
            _say("disk", start_ns, end_ns)
        time.sleep(_DISK_STEP_S)


def main() -> None:
    """Run until standard input ends."""
    path = Path(sys.argv[1]) / f"stalls-{os.getpid()}"
    for run in (_watch_clock, lambda: _watch_disk(path)):
        threading.Thread(target=run, daemon=True).start()
    os.write(1, b"{}\n")
    sys.stdin.read()
    path.unlink(missing_ok=True)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
