"""Snapshots between simulated nodes: a follower that the log can't help any more, and all that may happen on
the way."""

from __future__ import annotations

import pytest

from raftstate.node import snapshot_receiver, snapshot_sender
from raftstate.node.environment import (
    SnapshotChunk,
    SnapshotFinished,
    SnapshotOffer,
    SnapshotPull,
    SnapshotWithdrawn,
)
from tests.node.world import SimCluster, SimNode, was_applied

SNAPSHOT_BODIES = (SnapshotOffer, SnapshotPull, SnapshotChunk, SnapshotFinished, SnapshotWithdrawn)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the small states of these tests travel in many pieces."""
    monkeypatch.setattr(snapshot_sender, "CHUNK_BYTES", 700)
    monkeypatch.setattr(snapshot_receiver, "PULL_BYTES", 1_500)
    monkeypatch.setattr(snapshot_receiver, "AHEAD_BYTES", 3_000)


def write(cluster: SimCluster, node_id: int, prefix: str, count: int) -> None:
    """Have so many writes acknowledged."""
    outcomes = [cluster.put(node_id, f"{prefix}/{n}", "v" * 50) for n in range(count)]
    cluster.run_until(lambda: all(outcomes))
    assert all(map(was_applied, outcomes))


def cluster_with_one_behind(seed: int, *, margin: int = 5, writes: int = 60) -> tuple[SimCluster, SimNode]:
    """Three nodes; the one returned was down while the others wrote, and cut their logs behind it."""
    cluster = SimCluster(3, seed, log_margin=margin)
    leader = cluster.elect()
    write(cluster, leader.id, "before", 3)
    behind = next(node for node in cluster.nodes.values() if node is not leader)
    cluster.run_for(0.3)
    cluster.crash(behind.id)
    cluster.run_until(cluster.leader)
    for n in range(writes // 10):
        write(cluster, cluster.elect().id, f"meanwhile/{n}", 10)
    cluster.run_for(0.5)
    last = behind.storage.last_index()
    assert all(node.storage.first_index() > last + 1 for node in cluster.nodes.values() if node.alive)
    return cluster, behind


def same_state(cluster: SimCluster) -> bool:
    """Whether all nodes have applied the same, and all that is committed."""
    nodes = list(cluster.nodes.values())
    if not all(node.alive for node in nodes):
        return False
    committed = max(node.driver.raw.raft.raft_log.committed for node in nodes)
    return all(node.driver.applied_index == committed for node in nodes) and (
        len({node.machine.digest for node in nodes}) == 1
    )


def healthy(cluster: SimCluster) -> None:
    """Assert that nobody halted, and that all come to the same state."""
    cluster.run_until(lambda: same_state(cluster), seconds=60)
    assert [node.failures for node in cluster.nodes.values()] == [[], [], []]
    dumps = [node.tables.dump() for node in cluster.nodes.values()]
    assert dumps[0] == dumps[1] == dumps[2]


def test_a_follower_that_the_log_can_t_help_is_sent_a_snapshot_and_then_the_log() -> None:
    cluster, behind = cluster_with_one_behind(1)
    behind.start()
    healthy(cluster)
    assert len(behind.installed) == 1
    outcomes = cluster.put(behind.id, "after")
    cluster.run_until(lambda: outcomes)
    assert was_applied(outcomes)
    healthy(cluster)
    reads = cluster.read(behind.id)
    cluster.run_until(lambda: reads)
    assert isinstance(reads[0], int)
