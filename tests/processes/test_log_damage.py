"""Real nodes whose log files are damaged while they are down: they mend themselves under load, and nothing is
lost."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from raftstate import connect_async
from raftstate.supervisor import LocalCluster
from tests.processes.load import Load, check
from tests.store.log_regions import flip, regions

pytestmark = pytest.mark.processes

REPLACED = (
    "meta row",
    "hard state",
    "newest meta page",
    "older meta page",
    "leaf page",
    "overflow page",
    "missing",
)
"""What no node goes on from: it is replaced by an empty one. The overflow page is of a record that the state
holds durably: no start looks at it, the node that runs does."""
MENDED = ("last record", "last records", "old records")

QUICK = {
    ("last records", "follower"),
    ("old records", "leader"),
    ("meta row", "leader"),
    ("overflow page", "leader"),
}
"""The others are for long runs: each takes as long as killing four nodes does."""


def damage(log: Path, what: str) -> None:
    data_file = log / "data.mdb"
    if what == "missing":
        shutil.rmtree(log)
        return
    places = regions(data_file)
    if what in places:
        flip(data_file, places[what][0])
        return
    records = places["record"]
    chosen = {
        "last record": records[-1:],
        "last records": records[-40:-1:3],
        "old records": records[len(records) // 4 : len(records) // 2 : 7],
    }[what]
    assert chosen
    flip(data_file, *chosen)


async def whole_again(cluster: LocalCluster, url: str) -> None:
    """Wait until all three nodes vote, have no alarm and know the leader."""
    async with connect_async(url, timeout=30) as client, asyncio.timeout(60):
        while True:
            statuses = await client.status()
            if len(statuses) == 3 and not any(status.alarms for status in statuses):
                voters = [member for member in statuses[0].members if not member.learner]
                if len(voters) == 3:
                    return
            await asyncio.sleep(0.05)


async def replaced(cluster: LocalCluster, name: str) -> None:
    """Wait until a node that served has noticed that its log is lost, and was replaced."""
    async with asyncio.timeout(30):
        while "replaced; beginning anew" not in cluster.node(name).log.read_text():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.mark.case(50)
@pytest.mark.case(85)
@pytest.mark.case(19)
@pytest.mark.parametrize(
    ("what", "victim"),
    [
        pytest.param(what, victim, marks=[] if (what, victim) in QUICK else pytest.mark.slow)
        for what in (*MENDED, *REPLACED)
        for victim in ("follower", "leader")
    ],
)
async def test_a_node_with_a_damaged_log_mends_itself_under_load(
    cluster: LocalCluster, what: str, victim: str
) -> None:
    async with connect_async(cluster.url, timeout=30) as client:
        await client.put("large", b"x" * 20_000)
        await asyncio.sleep(1.5)  # a checkpoint is taken once a second
        load = Load(client, writers=8, prefix="load")
        await load.until(500)
        leader = await asyncio.to_thread(cluster.wait_for_leader)
        name = leader if victim == "leader" else next(n.name for n in cluster.nodes if n.name != leader)
        await asyncio.to_thread(cluster.kill, name)
        damage(cluster.node(name).data / "data" / "log", what)
        await asyncio.to_thread(cluster.restart, name)
        if what == "overflow page":
            await replaced(cluster, name)
        await whole_again(cluster, cluster.url)
        await load.until(load.total + 300)
        # The others go: what this node has now is what counts.
        others = [node.name for node in cluster.nodes if node.name != name]
        await asyncio.to_thread(cluster.kill, others[0])
        await load.until(load.total + 200)
        await asyncio.to_thread(cluster.restart, others[0])
        await asyncio.to_thread(cluster.kill, others[1])
        await load.until(load.total + 200)
        await check(client, await load.stop(), "load")
        await asyncio.to_thread(cluster.restart, others[1])
    printed = cluster.node(name).log.read_text()
    assert ("the log is lost; asking to be replaced" in printed) is (what in REPLACED)
    assert ("the disk has stopped this node" in printed) is (what == "overflow page")
    assert cluster.deaths() == []
