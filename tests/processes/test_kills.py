"""Real nodes killed with SIGKILL under load: every acknowledged write is there afterwards, and none twice."""

from __future__ import annotations

import asyncio
import random

import pytest

from raftstate import connect_async
from raftstate.supervisor import LocalCluster
from tests.processes.load import Load, check

pytestmark = pytest.mark.processes


def leader_of(cluster: LocalCluster) -> str:
    return cluster.wait_for_leader()


async def kill_rounds(cluster: LocalCluster, victims: str, rounds: int, seed: int) -> None:
    rng = random.Random(seed)
    async with connect_async(cluster.url, timeout=30) as client:
        load = Load(client, writers=32, prefix="load")
        for _ in range(rounds):
            # At a random moment: after a random number of further acknowledgements.
            await load.until(load.total + rng.randrange(200, 2_000))
            leader = await asyncio.to_thread(leader_of, cluster)
            names = [node.name for node in cluster.nodes]
            if victims == "leader":
                names = [leader]
            elif victims == "follower":
                names = [rng.choice([name for name in names if name != leader])]
            for name in names:
                await asyncio.to_thread(cluster.kill, name)
            for name in names:
                await asyncio.to_thread(cluster.restart, name)
        await load.until(load.total + 200)
        await check(client, await load.stop(), "load")
        statuses = await client.status()
        assert len({status.name for status in statuses}) == 3


@pytest.mark.parametrize("victims", ["leader", "follower", "all"])
async def test_acknowledged_writes_survive_and_none_is_applied_twice(
    cluster: LocalCluster, victims: str
) -> None:
    await kill_rounds(cluster, victims, rounds=2, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("victims", ["leader", "follower", "all"])
async def test_acknowledged_writes_survive_many_kills(cluster: LocalCluster, victims: str) -> None:
    await kill_rounds(cluster, victims, rounds=30, seed=2)
