from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from raftstate import supervisor
from raftstate.config import MemberConfig, load_settings
from raftstate.errors import ConfigError, FailedPreconditionError
from raftstate.folder import write_joiner
from raftstate.lifeline import Lifeline
from raftstate.supervisor import Death, LocalCluster

FAKE_NODE = (sys.executable, "-m", "tests.supervisor.fake_node")


def cluster(tmp_path: Path, nodes: int | None = None, port: int | None = 0) -> LocalCluster:
    return LocalCluster(tmp_path / "c", nodes=nodes, port=port, command=FAKE_NODE)


def said(tmp_path: Path, name: str) -> list[dict[str, object]]:
    """What each run of a fake node printed."""
    return [json.loads(line) for line in (tmp_path / "c" / name / "node.log").read_text().splitlines()]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def faults(monkeypatch: pytest.MonkeyPatch, **by_node: str) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("FAKE_NODE", json.dumps(by_node))
        yield


def test_a_new_directory_gets_a_cluster_whose_nodes_agree(tmp_path: Path) -> None:
    made = cluster(tmp_path, nodes=5)
    settings = [load_settings(tmp_path / "c" / f"n{n}" / "node.toml") for n in range(1, 6)]
    assert [s.name for s in settings] == ["n1", "n2", "n3", "n4", "n5"]
    assert [s.node_id for s in settings] == [1, 2, 3, 4, 5]
    assert [s.data_path for s in settings] == [tmp_path / "c" / f"n{n}" / "data" for n in range(1, 6)]
    assert all(s.cluster == made.config for s in settings)
    assert made.endpoints == [s.client_listener for s in settings]
    assert made.url == "raftstate://" + ",".join(made.endpoints)
    assert len({address for m in made.config.members for address in (m.client_address, m.peer_address)}) == 10


def test_two_clusters_have_different_ids(tmp_path: Path) -> None:
    one = LocalCluster(tmp_path / "a", port=0, command=FAKE_NODE)
    two = LocalCluster(tmp_path / "b", port=0, command=FAKE_NODE)
    assert one.config.cluster_id != two.config.cluster_id


def test_ports_follow_the_one_that_was_given(tmp_path: Path) -> None:
    made = cluster(tmp_path, nodes=3, port=17_001)
    assert [(m.client_address, m.peer_address) for m in made.config.members] == [
        ("127.0.0.1:17001", "127.0.0.1:17101"),
        ("127.0.0.1:17002", "127.0.0.1:17102"),
        ("127.0.0.1:17003", "127.0.0.1:17103"),
    ]


def test_nodes_are_started_and_stopped(tmp_path: Path) -> None:
    with cluster(tmp_path) as running:
        pids = [node.pid for node in running.nodes]
        assert [said(tmp_path, node.name)[0]["pid"] for node in running.nodes] == pids
    assert [node.pid for node in running.nodes] == [None] * 3
    assert not any(is_alive(pid) for pid in pids if pid is not None)


def test_only_the_first_start_may_make_empty_directories(tmp_path: Path) -> None:
    with cluster(tmp_path):
        pass
    with cluster(tmp_path):
        pass
    assert [run["bootstrap"] for run in said(tmp_path, "n2")] == [True, False]


def test_a_first_start_that_did_not_finish_is_still_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faults(monkeypatch, n3="exit"), pytest.raises(FailedPreconditionError):
        cluster(tmp_path).start()
    with cluster(tmp_path):
        pass
    assert [run["bootstrap"] for run in said(tmp_path, "n1")][-1] is True


def test_the_same_directory_is_the_same_cluster(tmp_path: Path) -> None:
    made = cluster(tmp_path, nodes=1)
    for again in (cluster(tmp_path), cluster(tmp_path, port=None), cluster(tmp_path, nodes=1)):
        assert again.config == made.config


def test_nodes_that_joined_are_part_of_the_cluster_that_a_directory_resumes(tmp_path: Path) -> None:
    first = cluster(tmp_path, nodes=1).config
    joined = MemberConfig(id=2, name="n2", peer_address="127.0.0.1:2", client_address="127.0.0.1:1")
    grown = first.model_copy(update={"members": (*first.members, joined)})
    write_joiner(tmp_path / "c" / "n2", "n2", grown)
    again = cluster(tmp_path)
    assert [node.name for node in again.nodes] == ["n1", "n2"]
    assert again.endpoints == [first.members[0].client_address, "127.0.0.1:1"]
    assert again.config == first
    with pytest.raises(ConfigError, match="holds a cluster of 2 nodes, not 1"):
        cluster(tmp_path, nodes=1)


def test_a_node_that_was_killed_from_outside_is_reported_once(tmp_path: Path) -> None:
    with cluster(tmp_path) as running:
        pid = running.node("n2").pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        deaths = running.deaths()
        assert deaths == [Death("n2", pid, -signal.SIGKILL)]
        assert deaths[0].cause == "killed by SIGKILL"
        assert running.deaths() == []
        assert [node.pid is None for node in running.nodes] == [False, True, False]


def test_a_node_is_killed_and_restarted_without_a_report(tmp_path: Path) -> None:
    with cluster(tmp_path) as running:
        old = running.node("n2").pid
        with pytest.raises(FailedPreconditionError, match="node n2 is running"):
            running.restart("n2")
        running.kill("n2")
        assert running.node("n2").pid is None
        assert running.deaths() == []
        with pytest.raises(FailedPreconditionError, match="node n2 is not running"):
            running.kill("n2")
        running.restart("n2")
        assert running.node("n2").pid not in (None, old)


def test_nodes_are_restarted_by_several_threads_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cluster(tmp_path) as running:
        names = [node.name for node in running.nodes]
    made: list[Lifeline] = []

    class Slow(Lifeline):
        """Made so slowly that another thread comes meanwhile."""

        def __init__(self) -> None:
            time.sleep(0.05)
            super().__init__()
            made.append(self)

    monkeypatch.setattr(supervisor, "Lifeline", Slow)
    again = cluster(tmp_path)
    try:
        with ThreadPoolExecutor(3) as threads:
            list(threads.map(again.restart, names))
        assert len(made) == 1
        assert all(node.pid is not None for node in again.nodes)
    finally:
        again.stop()


def test_a_node_that_ends_at_its_start_stops_all_and_tells_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starting = cluster(tmp_path)
    with (
        faults(monkeypatch, n2="exit"),
        pytest.raises(
            FailedPreconditionError, match=r"(?s)n2 ended at its start with exit code 7.*n2 can't go on"
        ),
    ):
        starting.start()
    assert [node.pid for node in starting.nodes] == [None] * 3


def test_a_node_that_never_serves_stops_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starting = cluster(tmp_path, nodes=1)
    with (
        faults(monkeypatch, n1="mute"),
        pytest.raises(FailedPreconditionError, match="n1 does not serve yet"),
    ):
        starting.start(timeout_s=1)
    assert starting.node("n1").pid is None


def test_a_node_that_ignores_the_request_to_stop_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starting = cluster(tmp_path, nodes=2)
    with faults(monkeypatch, n2="stubborn"):
        starting.start()
    pids = [node.pid for node in starting.nodes]
    starting.stop(timeout_s=0.5)
    assert not any(is_alive(pid) for pid in pids if pid is not None)


def test_nodes_do_not_inherit_the_settings_of_their_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAFTSTATE_NAME", "n1")
    monkeypatch.setenv("RAFTSTATE_URL", "127.0.0.1:1")
    with cluster(tmp_path):
        pass
    assert said(tmp_path, "n2")[0]["environment"] == []


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for processes that are not its children")
def test_nodes_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    program = f"""
import json, pathlib, signal
from raftstate.supervisor import LocalCluster
running = LocalCluster(pathlib.Path({str(tmp_path / "c")!r}), port=0, command={FAKE_NODE!r})
running.start()
print(json.dumps([node.pid for node in running.nodes]), flush=True)
signal.pause()
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent.stdout:
        pids = json.loads(parent.stdout.readline())
        ends = [os.pidfd_open(pid) for pid in pids]
        parent.kill()
        parent.wait()
    for end in ends:
        # A pidfd becomes readable when its process ends.
        with open(end, "rb", buffering=0) as file:
            assert select.select([file], [], [], 10)[0]


def test_a_port_in_use_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_PORT_WAIT_S", 0.0)
    starting = cluster(tmp_path)
    host, port = starting.endpoints[1].split(":")
    with socket.socket() as other:
        other.bind((host, int(port)))
        other.listen()
        with pytest.raises(
            FailedPreconditionError, match=f"{starting.endpoints[1]} is in use by another process"
        ):
            starting.start()
    assert not (tmp_path / "c" / "n1" / "node.log").exists()


@pytest.mark.parametrize(
    ("nodes", "port", "message"),
    [
        (0, 0, "1 to 7 nodes, not 0"),
        (8, 0, "1 to 7 nodes, not 8"),
        (3, -1, "port is 0 .* or from 1 to 65432, not -1"),
        (3, 65_433, "not 65433"),
    ],
)
def test_impossible_clusters_are_refused(tmp_path: Path, nodes: int, port: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cluster(tmp_path, nodes=nodes, port=port)
    assert not (tmp_path / "c").exists()


def test_a_new_cluster_on_ports_in_use_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_PORT_WAIT_S", 0.0)
    told: list[str] = []
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(
            FailedPreconditionError, match=rf":{port} is in use .* \(port 0 picks free ones\)"
        ):
            LocalCluster(tmp_path / "c", port=port, nodes=1, tell=told.append)
    assert not (tmp_path / "c").exists()
    # What the message advises works.
    cluster(tmp_path, nodes=1, port=0)


def test_what_a_start_waits_for_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    answers = iter([False, True, True])
    monkeypatch.setattr(supervisor, "_is_free", lambda host, port: next(answers))
    LocalCluster(tmp_path / "c", port=17_001, nodes=1, tell=told.append)
    assert told == ["127.0.0.1:17001 is in use; waiting up to 5 s for it to become free"]


def test_free_ports_for_a_cluster_that_has_ports_are_told_to_be_of_no_effect(tmp_path: Path) -> None:
    told: list[str] = []
    LocalCluster(tmp_path / "new", port=0, tell=told.append)
    assert told == []
    cluster(tmp_path, nodes=2, port=17_001)
    LocalCluster(tmp_path / "c", port=0, tell=told.append)
    assert len(told) == 1
    assert "keeps the ports it has (17001, 17002)" in told[0]


def test_one_directory_is_run_by_one_process_at_a_time(tmp_path: Path) -> None:
    with cluster(tmp_path, nodes=1) as running:
        with pytest.raises(
            FailedPreconditionError,
            match=f"runs already, started by process {os.getpid()}, and serves at {running.url}",
        ):
            cluster(tmp_path).start()
        assert running.node("n1").pid is not None
    with cluster(tmp_path):
        pass


def test_a_directory_with_files_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.txt").write_text("mine")
    with pytest.raises(FailedPreconditionError, match=r"not part of a new cluster \(thesis\.txt\)"):
        cluster(tmp_path)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["thesis.txt"]


def test_asking_an_existing_cluster_for_another_shape_is_refused(tmp_path: Path) -> None:
    cluster(tmp_path, nodes=3, port=17_001)
    with pytest.raises(ConfigError, match="holds a cluster of 3 nodes, not 5"):
        cluster(tmp_path, nodes=5)
    with pytest.raises(ConfigError, match="serves on port 17001 and on, not 18000"):
        cluster(tmp_path, port=18_000)


def test_a_directory_with_a_part_of_a_cluster_is_refused(tmp_path: Path) -> None:
    cluster(tmp_path)
    (tmp_path / "c" / "n2" / "node.toml").unlink()
    with pytest.raises(FailedPreconditionError, match=r"lacks n2/node\.toml"):
        cluster(tmp_path)
    (tmp_path / "c" / "n3" / "data").mkdir()
    (tmp_path / "c" / "n1" / "node.toml").unlink()
    with pytest.raises(FailedPreconditionError, match=r"holds n3 but no n1/node\.toml"):
        cluster(tmp_path)
