"""watch, lock and lease keep-alive as processes: what ends them, and how."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from raftstate import Client, connect
from raftstate.supervisor import LocalCluster

pytestmark = pytest.mark.processes

COMMAND = [sys.executable, "-m", "raftstate.cli"]
END_S = 30
ENDS_WHEN_TOLD = 'trap "echo told; exit 9" TERM; echo begun; while :; do sleep 0.05; done'


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("signals"), nodes=3, port=0) as cluster:
        cluster.wait_for_leader()
        yield cluster


@pytest.fixture
def store(cluster: LocalCluster) -> Iterator[Client]:
    with connect(cluster.url, timeout=30) as store:
        yield store


@contextmanager
def started(cluster: LocalCluster, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        env={**os.environ, "RAFTSTATE_URL": cluster.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def told(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline()


def test_a_watch_goes_on_when_the_leader_is_killed(cluster: LocalCluster, store: Client) -> None:
    with started(cluster, "watch", "leader/", "--count", "3") as process:
        assert told(process) == "raftstate: watching; interrupt to stop\n"
        first = store.put("leader/1", b"before").revision
        assert line(process) == f"{first}\tput\tleader/1\tbefore\n"
        leader = cluster.wait_for_leader()
        cluster.kill(leader)
        second = store.put("leader/1", b"after").revision
        store.delete("leader/1")
        assert line(process) == f"{second}\tput\tleader/1\tafter\n"
        assert line(process) == f"{second + 1}\tdelete\tleader/1\n"
        assert process.wait(END_S) == 0
    cluster.restart(leader)
    cluster.wait_for_leader()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_watch_is_done_unless_it_was_to_count(cluster: LocalCluster, signum: int) -> None:
    for options, code in ((), 0), (("--count", "1"), 130):
        with started(cluster, "watch", "nothing/", *options) as process:
            told(process)
            process.send_signal(signum)
            assert process.wait(END_S) == code
            assert (line(process), told(process)) == ("", "")


def test_a_watch_whose_reader_has_gone_ends_without_a_change(cluster: LocalCluster) -> None:
    with started(cluster, "watch", "nothing/") as process:
        told(process)
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(END_S) == 1
        assert told(process) == ""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_lease_is_kept_alive_until_a_signal_and_not_revoked(
    cluster: LocalCluster, store: Client, signum: int
) -> None:
    lease = store.lease(60).grant()
    with started(cluster, "lease", "keep-alive", str(lease.id), "--json") as process:
        assert json.loads(line(process)) == {"id": str(lease.id), "ttl_s": 60.0}
        process.send_signal(signum)
        assert process.wait(END_S) == 0
    assert lease.revoke() == 0


def test_a_lock_is_released_after_a_signal_has_ended_its_command(
    cluster: LocalCluster, store: Client
) -> None:
    with started(cluster, "lock", "told", "--", "sh", "-c", ENDS_WHEN_TOLD) as process:
        assert line(process) == "begun\n"
        assert store.range(prefix="told/").count == 1
        process.send_signal(signal.SIGTERM)
        assert line(process) == "told\n"
        assert process.wait(END_S) == 9
    assert store.range(prefix="told/").count == 0


def test_a_lock_that_is_lost_ends_its_command(cluster: LocalCluster, store: Client) -> None:
    with started(cluster, "lock", "lost", "--", "sh", "-c", ENDS_WHEN_TOLD) as process:
        assert line(process) == "begun\n"
        store.delete("lost/", prefix=True)
        assert line(process) == "told\n"
        assert process.wait(END_S) == 1
        assert told(process) == (
            "raftstate: lock 'lost' is lost: its key was deleted; telling the command to end\n"
        )


def test_whoever_stops_waiting_for_a_lock_leaves_no_place_in_line(
    cluster: LocalCluster, store: Client
) -> None:
    with store.watch(prefix="line/") as places, store.lock("line"):
        places.next()
        with started(cluster, "lock", "line", "--ttl", "60", "--", "echo", "ran") as process:
            places.next()
            process.send_signal(signal.SIGINT)
            assert process.wait(END_S) == 130
            assert line(process) == ""
        assert places.next(timeout=END_S).kind == "delete"
        assert store.range(prefix="line/").count == 1


AT_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "raftstate.cli", *sys.argv[1:]])
"""
COUNTS_CTRL_C = """
import signal, sys
signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
signal.signal(signal.SIGTERM, lambda *_: sys.exit("told"))
print("begun", sys.stdin.isatty(), flush=True)
while True:
    signal.pause()
"""


def test_ctrl_c_at_a_terminal_reaches_the_command_once(cluster: LocalCluster) -> None:
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", AT_TERMINAL, "lock", "tty", "--", sys.executable, "-c", COUNTS_CTRL_C],
        env={**os.environ, "RAFTSTATE_URL": cluster.url},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    with process, open(ours, "r+b", buffering=0) as terminal:
        try:
            assert terminal.readline() == b"begun True\r\n"
            terminal.write(b"\x03")
            assert terminal.readline() == b"^Cinterrupted\r\n"
            # Passed on after what came before it: a second interruption would be seen.
            process.send_signal(signal.SIGTERM)
            assert terminal.readline() == b"told\r\n"
            assert process.wait(END_S) == 1
        finally:
            process.kill()
