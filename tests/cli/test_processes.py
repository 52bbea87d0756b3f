"""dev, serve and demo with real nodes."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import raftstate
from raftstate.folder import write_node_file
from raftstate.supervisor import LocalCluster

pytestmark = pytest.mark.processes

COMMAND = [sys.executable, "-m", "raftstate.cli"]


@contextmanager
def dev(*options: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Run `raftstate dev --json` and yield it with its first line."""
    process = subprocess.Popen([*COMMAND, "dev", "--json", *options], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()
            process.wait()


def next_event(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    event: dict[str, Any] = json.loads(process.stdout.readline())
    return event


def assert_ends(pids: list[int]) -> None:
    """Fail unless processes that are not our children end soon."""
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        with open(fd, "rb", buffering=0) as file:
            assert select.select([file], [], [], 15)[0], f"process {pid} is still there"


def command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, timeout=60, check=False, **options)


def test_a_dev_cluster_serves_loses_its_leader_and_resumes(tmp_path: Path) -> None:
    data = str(tmp_path / "d")
    with dev("--port", "0", "--data", data) as (process, first):
        assert sorted(first) == ["endpoints", "leader", "nodes"]
        assert [node["name"] for node in first["nodes"]] == ["n1", "n2", "n3"]
        assert [node["endpoint"] for node in first["nodes"]] == first["endpoints"]
        for number, endpoint in enumerate(first["endpoints"]):
            with raftstate.connect(endpoint) as store:
                store.put(f"k{number}", b"v")
        url = ",".join(first["endpoints"])
        assert command("put", "--url", url, "cli", "-", input=b"\x00\xff").returncode == 0

        leader = next(node for node in first["nodes"] if node["name"] == first["leader"])
        os.kill(leader["pid"], signal.SIGKILL)
        assert next_event(process) == {
            "event": "died",
            "name": leader["name"],
            "pid": leader["pid"],
            "cause": "killed by SIGKILL",
        }
        with raftstate.connect(url) as store:
            store.put("after", b"v")
        shown = command("status", "--url", url)
        assert (shown.returncode, shown.stdout.count(b"unreachable")) == (0, 1)

        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    with dev("--data", data) as (process, again):
        assert again["endpoints"] == first["endpoints"]
        with raftstate.connect(url) as store:
            assert [pair.key for pair in store.range()] == [b"after", b"cli", b"k0", b"k1", b"k2"]
        assert command("get", "--url", url, "cli").stdout == b"\x00\xff"
        assert command("get", "--url", url, "absent").returncode == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert command("get", "--url", url, "cli", "--timeout", "0.5").returncode == 4


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for processes that are not its children")
def test_no_node_outlives_a_dev_that_was_killed(tmp_path: Path) -> None:
    with dev("--port", "0", "--nodes", "2", "--data", str(tmp_path / "d")) as (process, first):
        process.kill()
        process.wait()
        assert_ends([node["pid"] for node in first["nodes"]])


def test_dev_for_people_prints_what_to_paste(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "dev", "--nodes", "1", "--port", "0", "--data", str(tmp_path / "d")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        lines = []
        for line in process.stdout:
            lines.append(line.strip())
            if line.startswith("Ctrl-C"):
                break
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "stopped\n"
    assert process.wait(30) == 0
    row = next(line for line in lines if line.startswith("n1")).split()
    kill = next(line for line in lines if line.startswith("kill -9 "))
    assert (row[1], f"kill -9 {row[2]}") == ("leader", kill)
    assert f'with raftstate.connect("raftstate://{row[3]}") as store:' in lines
    assert any(line.startswith(f"raftstate put --url raftstate://{row[3]} ") for line in lines)


@pytest.mark.case(19)
def test_a_node_with_a_lost_directory_does_not_come_back(tmp_path: Path) -> None:
    with dev("--port", "0", "--nodes", "1", "--data", str(tmp_path / "d")) as (process, _):
        process.terminate()
        process.wait(30)
    (tmp_path / "d" / "n1" / "data").rename(tmp_path / "lost")
    again = command("dev", "--data", str(tmp_path / "d"))
    assert again.returncode == 1
    assert b"holds no data of node n1" in again.stderr
    assert b"Traceback" not in again.stderr


def test_serve_resumes_the_node_of_its_directory(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    # Other ports than the default ones, which something may be using.
    write_node_file(folder, "n1", LocalCluster(tmp_path / "ports", nodes=1, port=0).config)
    for options, before in ((["--bootstrap"], None), ([], b"v")):
        process = subprocess.Popen(
            [*COMMAND, "serve", "--json", "--data", str(folder), *options], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        with process.stdout:
            said = json.loads(process.stdout.readline())
            assert (said["name"], said["pid"], said["data"]) == ("n1", process.pid, str(folder / "data"))
            with raftstate.connect(said["endpoint"]) as store:
                found = store.get("k")
                assert (found and found.value) == before
                store.put("k", b"v")
            process.terminate()
            assert process.stdout.read() == ""
        assert process.wait(30) == 0


def test_a_wrong_setting_is_said_by_serve_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text("speed = 1\n")
    refused = command("serve", "--config", str(tmp_path / "node.toml"))
    assert (refused.returncode, refused.stdout) == (2, b"")
    assert b"speed: got 1; allowed: there is no such setting" in refused.stderr
    assert b"Traceback" not in refused.stderr
    assert b"--config FILE or --data DIR" in command("serve").stderr


def job(root: Path) -> Path:
    for number in range(60):
        (root / f"f{number:02}").parent.mkdir(parents=True, exist_ok=True)
        (root / f"f{number:02}").write_text(str(number))
    os.mkfifo(root / "fifo")
    return root


def test_the_demo_loses_its_leader_and_its_worker_and_nothing_else(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    ended = command(
        "demo", str(job(tmp_path / "job")), "--json", "-", env={**os.environ, "TMPDIR": str(temporary)}
    )
    assert ended.returncode == 0, ended.stderr.decode()
    outcome = json.loads(ended.stdout)
    assert (outcome["files"], outcome["skipped"]) == (60, {"special file": 1})
    assert (outcome["checkpoints_lost"], outcome["manifests_agree"], outcome["faults"]) == (0, True, [])
    # One for each file, but for one that the worker may have been killed before it could note.
    assert outcome["checkpoints"] >= 60
    assert outcome["failover_ms"] > 0
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for processes that are not its children")
def test_a_demo_that_is_interrupted_leaves_nothing_behind(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    process = subprocess.Popen(
        [*COMMAND, "demo", str(job(tmp_path / "job"))],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert process.stdout is not None
    with process.stdout:
        line = process.stdout.readline()
        pids = [int(part.split("pid ")[1].rstrip(")")) for part in line[: line.index(";")].split(", ")]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert_ends(pids)
    assert list(temporary.iterdir()) == []


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    refused = command("demo", str(tmp_path / "absent"))
    assert refused.returncode == 2
    assert b"absent is not a folder" in refused.stderr
    refused = command("demo", "--json", str(tmp_path / "absent" / "file"))
    assert refused.returncode == 2
    assert b"there is no folder" in refused.stderr
    refused = command("demo", "--json", str(tmp_path))
    assert refused.returncode == 2
    assert b"it is a folder" in refused.stderr


def test_a_cluster_that_begins_in_an_empty_folder_is_said_to_and_one_that_is_there_is_not(
    tmp_path: Path,
) -> None:
    folder, said = tmp_path / "d", []
    [ports] = LocalCluster(tmp_path / "ports", nodes=1, port=0).config.members
    addresses = ["--listen", ports.client_address, "--peer", ports.peer_address]
    for _ in range(2):
        process = subprocess.Popen(
            [*COMMAND, "serve", "--json", "--data", str(folder), *addresses],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        said.append(process.communicate(timeout=20)[1])
    assert "d was empty: a new cluster of one node begins there" in said[0]
    assert "was empty" not in said[1]
