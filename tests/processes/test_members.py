"""Members come and go among real processes: from an embedded store to three nodes, and on to others."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

import raftstate
from raftstate.client import Client, MemberList
from raftstate.supervisor import LocalCluster


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
