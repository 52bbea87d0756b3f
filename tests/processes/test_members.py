"""Members come and go among real processes: from an embedded store to three nodes, and on to others."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import raftstate
from raftstate.client import Client, MemberList
from raftstate.errors import FailedPreconditionError, RaftstateError
from raftstate.supervisor import SERVE_COMMAND, LocalCluster, _free_ports


def until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def voters(members: MemberList) -> list[str]:
    return [member.name for member in members if not member.learner]


def until_voters(client: Client, names: list[str]) -> None:
    until(lambda: voters(client.members(timeout=20)) == names)


@pytest.mark.case(21)
def test_a_single_node_grows_to_three_moves_on_and_shrinks_while_it_is_written_to(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path / "d", nodes=1, port=0)
    with cluster, raftstate.connect(cluster.url, timeout=20) as client:
        for number in range(200):
            client.put(f"k/{number}", b"v" * 100)
        for name in ("n2", "n3", "n4"):
            cluster.add_node(name)
            until_voters(client, ["n1", "n2", "n3", "n4"][: int(name[1])])
            client.put(f"joined/{name}", b"")
        client.remove_members(["n1"], timeout=20)
        until(lambda: [death.name for death in cluster.deaths()] == ["n1"])
        assert "was removed from the cluster" in cluster.log_tail("n1")
        client.put("after", b"")
        assert client.range(prefix="k/", count_only=True).count == 200
        assert voters(client.members()) == ["n2", "n3", "n4"]


@pytest.mark.case(19)
def test_a_node_that_lost_its_data_comes_back_by_a_replacement_only(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path / "d", nodes=3, port=0)
    with cluster, raftstate.connect(cluster.url, timeout=20) as client:
        client.put("k", b"1")
        cluster.kill("n2")
        folder = cluster.node("n2").data
        shutil.rmtree(folder / "data")
        with pytest.raises(FailedPreconditionError, match=r"raftstate member replace n2 --out DIR"):
            cluster.restart("n2")
        assert not (folder / "data" / "identity").exists()
        until(lambda: client.transfer_leader("n1") == 1)
        replaced = cli("member", "replace", "n2", "--out", str(folder), url=cluster.url)
        assert replaced["member"]["incarnation"] == 2
        cluster.restart("n2")
        until_voters(client, ["n1", "n2", "n3"])
        cluster.kill("n3")  # now it is one of the two that a majority takes
        client.put("k", b"2")
        found = client.get("k")
        assert found is not None
        assert found.value == b"2"


def test_an_embedded_store_is_served_and_grows_to_three_nodes_while_it_is_written_to(tmp_path: Path) -> None:
    """The addresses of its record, which were never used, are replaced by those that it is served with."""
    with raftstate.connect(f"embedded:{tmp_path / 'n1'}") as store:
        store.put("embedded", b"1")
        with pytest.raises(FailedPreconditionError, match=r"`raftstate serve --data DIR`"):
            store.add_member("n2", peer_address="127.0.0.1:2", client_address="127.0.0.1:1")
    ports = [f"127.0.0.1:{port}" for port in _free_ports(6)]
    with (
        serving("--data", str(tmp_path / "n1"), "--listen", ports[0], "--peer", ports[1]) as first,
        raftstate.connect(first, timeout=20) as client,
    ):
        until(lambda: client.members().members[0].peer_address == ports[1])
        assert client.members().members[0].client_address == ports[0]
        with Writer(client) as writer:
            added = [
                cli(
                    *("member", "add", name, "--address", client_port, "--peer-address", peer_port),
                    *("--out", str(tmp_path / name)),
                    url=first,
                )
                for name, client_port, peer_port in (("n2", *ports[2:4]), ("n3", *ports[4:6]))
            ]
            assert [each["member"]["id"] for each in added] == [2, 3]
            with (
                serving("--data", str(tmp_path / "n2")) as second,
                serving("--data", str(tmp_path / "n3")),
            ):
                until_voters(client, ["n1", "n2", "n3"])
                written = len(writer.acknowledged)
                until(lambda: len(writer.acknowledged) > written + 20)
                writer.stop()
                with raftstate.connect(second, timeout=20) as other:
                    keys = {pair.key.decode() for pair in other.scan(keys_only=True)}
                assert {"embedded", *writer.acknowledged} <= keys
                assert writer.errors == []


class Writer:
    """Writes one key after the other, until it is stopped."""

    def __init__(self, client: Client) -> None:
        self.acknowledged: list[str] = []
        self.errors: list[RaftstateError] = []
        self._client = client
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def _write(self) -> None:
        number = 0
        while not self._over.wait(0.005):
            key = f"w/{number:06d}"
            number += 1
            try:
                self._client.put(key, b"v")
            except RaftstateError as error:
                self.errors.append(error)
            else:
                self.acknowledged.append(key)

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def cli(*arguments: str, url: str) -> dict[str, Any]:
    """Run a command of the command line, and return the JSON that it prints."""
    command = [sys.executable, "-m", "raftstate.cli", *arguments, "--url", url, "--json", "--timeout", "20"]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@contextmanager
def serving(*arguments: str) -> Iterator[str]:
    """Have a node served by a process; the value is its endpoint."""
    with subprocess.Popen([*SERVE_COMMAND, *arguments, "--json"], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, "the node ended at its start"
            yield json.loads(line)["endpoint"]
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
