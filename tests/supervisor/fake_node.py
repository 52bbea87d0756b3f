"""Stands in for `raftstate serve`: takes its options, serves none. $FAKE_NODE says what each does wrong."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from raftstate.lifeline import watch


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--die-with-parent", type=int, required=True)
    parser.add_argument("--bootstrap", action="store_true")
    options = parser.parse_args()
    name = options.config.parent.name
    fault = json.loads(os.environ.get("FAKE_NODE", "{}")).get(name)
    if fault == "exit":
        print(f"{name} can't go on", file=sys.stderr)
        sys.exit(7)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if fault == "stubborn" else lambda *_: sys.exit(0))
    watch(options.die_with_parent, grace_s=0.0)
    environment = sorted(key for key in os.environ if key.startswith("RAFTSTATE_"))
    print(
        json.dumps({"bootstrap": options.bootstrap, "environment": environment, "pid": os.getpid()}),
        flush=True,
    )
    if fault == "mute":
        signal.pause()
    os.write(options.ready_fd, b"1")
    os.close(options.ready_fd)
    while True:
        signal.pause()


main()
