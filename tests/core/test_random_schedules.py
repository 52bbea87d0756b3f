"""Random schedules of everything that can happen to a cluster; `cluster` says what must hold all the
while."""

from __future__ import annotations

import pytest

from raftstate.core.types import (
    ConfChangeSingle,
    ConfChangeTransition,
    ConfChangeType,
    ConfChangeV2,
)
from tests.core.cluster import Cluster

STEPS = 8_000


def random_change(cluster: Cluster) -> ConfChangeV2:
    random = cluster.random
    types = (ConfChangeType.ADD_NODE, ConfChangeType.ADD_LEARNER_NODE, ConfChangeType.REMOVE_NODE)
    changes = [
        ConfChangeSingle(random.choice(types), random.choice(list(cluster.members)))
        for _ in range(random.choice((0, 1, 1, 2)))
    ]
    return ConfChangeV2(transition=random.choice(list(ConfChangeTransition)), changes=tuple(changes))


def disturb(cluster: Cluster, *, members_change: bool) -> None:
    """Do one of the rarer things."""
    random = cluster.random
    node_id = random.choice(list(cluster.members))
    up = cluster.up()
    kinds = {"crash": 2, "start": 4, "cut": 1, "heal": 3, "compact": 5, "transfer": 1, "change": 8}
    match random.choices(list(kinds), list(kinds.values()))[0]:
        case "crash" if len(up) > 2 and node_id in up:
            cluster.crash(node_id)
        case "start" if node_id not in up:
            cluster.start(node_id)
        case "cut":
            ids = list(cluster.members)
            random.shuffle(ids)
            split = random.randrange(1, len(ids))
            cluster.partition(tuple(ids[:split]), tuple(ids[split:]))
        case "heal":
            cluster.partition()
        case "compact" if node_id in up:
            cluster.compact(node_id)
        case "transfer" if node_id in up:
            cluster.members[node_id].node.transfer_leader(random.choice(list(cluster.members)))
        case "change" if members_change and (leader := cluster.leader()) is not None:
            cluster.propose_conf_change(leader, random_change(cluster))


def take_step(cluster: Cluster, number: int, *, members_change: bool, trouble: float = 0.015) -> None:
    random = cluster.random
    kind = random.random()
    if kind < trouble:
        disturb(cluster, members_change=members_change)
        return
    node_id = random.choice(cluster.up())
    if kind < 0.50 and cluster.network:
        # Mostly in order: reordering everything would keep any leader from being elected.
        position = 0 if random.random() < 0.8 else random.randrange(len(cluster.network))
        if random.random() < 0.03:
            cluster.lose(position)
        else:
            cluster.deliver(position, keep=random.random() < 0.03)
    elif kind < 0.66:
        cluster.handle_ready(node_id)
    elif kind < 0.76:
        cluster.do_append_work(node_id)
    elif kind < 0.82:
        cluster.do_apply_work(node_id)
    elif kind < 0.93:
        cluster.tick(node_id)
    elif kind < 0.98:
        cluster.propose(node_id, b"%d" % number)
    else:
        cluster.read(node_id)


def heal_and_serve(cluster: Cluster) -> None:
    """After everything is healed, the cluster elects a leader and commits, and all members apply that."""
    cluster.partition()
    for node_id in set(cluster.members) - set(cluster.up()):
        cluster.start(node_id)
    for _ in range(100):
        for node_id in cluster.up():
            cluster.tick(node_id)
        cluster.settle()
        leader = cluster.leader()
        if leader is not None and cluster.propose(leader, b"healed"):
            cluster.settle()
            progress = cluster.members[leader].node.raft.tracker.progress
            if all(cluster.has_applied(node_id, b"healed") for node_id in progress):
                return
    raise AssertionError("100 ticks after everything was healed, some member has not applied a proposal")


@pytest.mark.parametrize("seed", range(24))
def test_a_fixed_cluster_stays_safe_and_recovers(seed: int) -> None:
    cluster = Cluster(
        seed,
        async_storage_writes=seed % 3 != 0,
        pre_vote=seed % 2 == 0,
        check_quorum=seed % 4 < 2,
        max_message_bytes=(64, 1 << 20)[seed % 2],
        max_inflight_messages=(2, 256)[seed % 2],
    )
    for number in range(STEPS):
        take_step(cluster, number, members_change=False, trouble=(0.015, 0.06)[seed % 2])
    heal_and_serve(cluster)
    assert cluster.leaders
    assert cluster.committed


def quarrel(cluster: Cluster, number: int) -> None:
    """One round of a cluster in which somebody always wants to lead: short reigns, and tails that diverge."""
    random = cluster.random
    ids = list(cluster.members)
    random.shuffle(ids)
    split = random.choice((0, 0, 1, 2))
    cluster.partition(tuple(ids[:split]), tuple(ids[split:]))
    for node_id in ids[:2]:
        if node_id not in cluster.up():
            cluster.start(node_id)
        elif random.random() < 0.3 and len(cluster.up()) > 3:
            cluster.crash(node_id)
    cluster.members[random.choice(cluster.up())].node.campaign()
    for _ in range(random.randrange(20, 90)):
        node_id = random.choice(cluster.up())
        if random.random() < 0.3:
            cluster.propose(node_id, b"%d" % number)
        cluster.handle_ready(node_id)
        cluster.do_append_work(node_id)
        cluster.do_apply_work(node_id)
        if cluster.network:
            position = 0 if random.random() < 0.5 else random.randrange(len(cluster.network))
            cluster.deliver(position, keep=random.random() < 0.05)


@pytest.mark.parametrize("seed", range(12))
def test_a_cluster_in_constant_elections_stays_safe_and_recovers(seed: int) -> None:
    asynchronous = seed % 2 == 0
    cluster = Cluster(
        seed,
        voters=(1, 2, 3, 4, 5),
        async_storage_writes=asynchronous,
        pre_vote=False,
        check_quorum=False,
        max_message_bytes=(20, 1 << 20)[seed % 3 > 0],
    )
    for number in range(150):
        quarrel(cluster, number)
    heal_and_serve(cluster)
    assert len(cluster.leaders) > 20


@pytest.mark.parametrize("seed", range(24))
def test_a_cluster_whose_members_change_stays_safe(seed: int) -> None:
    cluster = Cluster(
        seed,
        spares=(4, 5),
        async_storage_writes=seed % 3 != 0,
        step_down_on_removal=seed % 2 == 0,
        max_applying_bytes=(40, 1 << 20)[seed % 2],
    )
    for number in range(STEPS):
        take_step(cluster, number, members_change=True, trouble=(0.015, 0.06)[seed // 2 % 2])
    assert cluster.leaders
    assert cluster.committed


def test_the_schedules_reach_what_they_are_meant_to_test() -> None:
    """Safety checks prove nothing on runs in which nothing happens."""
    snapshots = reads = leaders = 0
    for seed in range(8):
        cluster = Cluster(seed, spares=(4, 5))
        for number in range(STEPS):
            take_step(cluster, number, members_change=True)
        snapshots += cluster.snapshots_installed
        reads += cluster.reads_answered
        leaders += len(cluster.leaders)
    assert (snapshots > 5, reads > 20, leaders > 16) == (True, True, True), (snapshots, reads, leaders)
