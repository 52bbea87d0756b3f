"""What survives the process: kill -9 at any moment, and a server that goes on with the directory."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import raftstate
from raftstate.supervisor import LocalCluster

WRITER = """
import sys, raftstate
store = raftstate.connect(sys.argv[1])
number = int(sys.argv[2])
while True:
    store.put(f"k/{number}", str(number).encode())
    print(number, flush=True)
    number += 1
"""


def write_until_killed(url: str, first: int, after_s: float) -> int:
    """Return the highest number whose put was acknowledged before SIGKILL; at least one is."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, url, str(first)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], 30)
    assert ready, "nothing was acknowledged in 30 s"
    time.sleep(after_s)
    process.send_signal(signal.SIGKILL)
    told, errors = process.communicate(timeout=30)
    lines = told.decode().split("\n")[:-1]
    assert lines, errors.decode()
    return int(lines[-1])


def check_kills(tmp_path: Path, rounds: int) -> None:
    url = f"embedded:{tmp_path / 's'}"
    rng = random.Random(0)
    acknowledged = 0
    for _ in range(rounds):
        acknowledged = write_until_killed(url, acknowledged + 1, rng.random() * 0.5)
        with raftstate.connect(url) as store:
            last = store.get(f"k/{acknowledged}")
            assert last is not None
            # Each number was put once, and the next one may have been, without its answer.
            held = store.range(prefix="k/", count_only=True).count
            assert held in (acknowledged, acknowledged + 1)
            if held > acknowledged:
                acknowledged += 1


@pytest.mark.processes
def test_kill_9_at_random_moments_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    check_kills(tmp_path, 4)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(600)
def test_a_hundred_kills_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    check_kills(tmp_path, 100)


@pytest.mark.processes
def test_a_server_goes_on_with_the_directory_and_the_program_after_it(tmp_path: Path) -> None:
    with LocalCluster(tmp_path / "c", nodes=1, port=0) as cluster:
        address = cluster.endpoints[0]  # free, once this is stopped
    url = f"embedded:{tmp_path / 's'}"
    with raftstate.connect(url) as store:
        store.put("a", b"embedded")
    command = [sys.executable, "-m", "raftstate.cli", "serve", "--json"]
    command += ["--data", str(tmp_path / "s"), "--listen", address]
    environment = {**os.environ, "RAFTSTATE_LISTEN_PEER": cluster.members[0].peer_address}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    try:
        assert server.stdout is not None
        assert json.loads(server.stdout.readline())["endpoint"] == address
        with pytest.raises(raftstate.FailedPreconditionError, match=f"in use by process {server.pid}"):
            raftstate.connect(url)
        with raftstate.connect(address) as store:
            found = store.get("a")
            assert found is not None
            assert found.value == b"embedded"
            store.put("a", b"served")
    finally:
        server.terminate()
        server.communicate(timeout=30)
    with raftstate.connect(url) as store:
        found = store.get("a")
        assert found is not None
        assert (found.value, found.version) == (b"served", 2)
