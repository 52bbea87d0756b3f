"""The whole life of a membership under writers and kills: 3 nodes become 5, each of the first is replaced by
one with empty data, and 3 are left. No acknowledged write is lost, none is made twice, and in the end all
nodes know the same members. A watch and a client session go on through all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from raftstate import AsyncClient, connect_async
from raftstate.client import MemberAdded
from raftstate.errors import RaftstateError
from raftstate.joining import write_joiner
from raftstate.supervisor import LocalCluster
from tests.processes.load import Load, check

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

STEP_S = 90.0
KILLS_MIN = 3


async def replace(client: AsyncClient, name: str) -> MemberAdded:
    """Ask until it is done: kills interrupt it. One that was done, and not answered, is done once more."""
    deadline = time.monotonic() + STEP_S
    while True:
        try:
            return await client.replace_member(name, timeout=10)
        except RaftstateError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)


async def remove(client: AsyncClient, names: list[str]) -> None:
    """Ask until it is done; what was done, and not answered, is seen by who is left."""
    deadline = time.monotonic() + STEP_S
    while True:
        with contextlib.suppress(RaftstateError):
            await client.remove_members(names, timeout=10)
        with contextlib.suppress(RaftstateError):
            if not {member.name for member in await client.members(timeout=5)} & set(names):
                return
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)


async def until_voters(client: AsyncClient, names: list[str]) -> None:
    deadline = time.monotonic() + STEP_S
    while True:
        with contextlib.suppress(RaftstateError):
            members = await client.members(timeout=5)
            if sorted(member.name for member in members if not member.learner) == names:
                return
        assert time.monotonic() < deadline, f"not the voters {names}"
        await asyncio.sleep(0.1)


class Spared:
    """The nodes that are not to be killed at present."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.killing = asyncio.Lock()
        """Held from a kill until the node is started again."""

    async def add(self, *names: str) -> None:
        """From here on, none of them is down or being started because of a kill."""
        async with self.killing:
            self.names.update(names)

    def discard(self, name: str) -> None:
        self.names.discard(name)


@contextlib.asynccontextmanager
async def kills(cluster: LocalCluster, seed: int, spared: Spared) -> AsyncIterator[list[str]]:
    """Kill a running node now and then with SIGKILL, and start it again."""
    rng = random.Random(seed)
    killed: list[str] = []
    over = asyncio.Event()

    async def work() -> None:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), rng.uniform(1.0, 4.0))
            async with spared.killing:
                running = [node.name for node in cluster.nodes if node.pid is not None]
                names = [name for name in running if name not in spared.names]
                if names and not over.is_set():
                    name = rng.choice(names)
                    await asyncio.to_thread(cluster.kill, name)
                    await asyncio.to_thread(cluster.restart, name)
                    killed.append(name)

    killer = asyncio.create_task(work())
    try:
        yield killed
    finally:
        over.set()
        await killer


async def test_nothing_is_lost_while_a_cluster_grows_is_replaced_and_shrinks(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path / "d", nodes=3, port=0)
    with cluster:
        await asyncio.to_thread(cluster.wait_for_leader)
        async with connect_async(cluster.url, timeout=30) as client:
            seen: list[tuple[bytes, int]] = []

            async def watch() -> None:
                # From the beginning: on a slow machine many writes come before it is made.
                async with client.watch(prefix="load/", start_revision=1) as events:
                    async for event in events:
                        seen.append((event.key, event.revision))  # noqa: PERF401 - read while it grows

            watching = asyncio.create_task(watch())
            load = Load(client, writers=16, prefix="load")
            await load.until(200)
            spared = Spared()
            async with kills(cluster, seed=5, spared=spared) as killed:
                for name in ("n4", "n5"):
                    await spared.add(name)
                    await asyncio.to_thread(add, cluster, name)
                    spared.discard(name)
                names = ["n1", "n2", "n3", "n4", "n5"]
                await until_voters(client, names)
                for name in ("n1", "n2", "n3"):
                    await spared.add(name)
                    await asyncio.to_thread(lose_data, cluster, name)
                    replaced = await replace(client, name)
                    await asyncio.to_thread(come_back, cluster, name, replaced)
                    await until_voters(client, names)
                    spared.discard(name)
                    await load.until(load.total + 200)
                await spared.add("n1", "n2")
                await remove(client, ["n1", "n2"])
                await until_voters(client, ["n3", "n4", "n5"])
                await load.until(load.total + 500)
                async with asyncio.timeout(STEP_S):
                    while len(killed) < KILLS_MIN:  # noqa: ASYNC110 - a fast machine is done before
                        await asyncio.sleep(0.1)
            ledger = await load.stop()
            await check(client, ledger, "load")
            last = max(ledger.acknowledged.values())
            async with asyncio.timeout(600):
                while not seen or seen[-1][1] < last:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            # Every change once, in order: as many events of a key as it has versions.
            assert [revision for _, revision in seen] == sorted({revision for _, revision in seen})
            assert set(ledger.acknowledged.items()) <= set(seen)
            statuses = [node for node in await client.status() if not node.error]
            assert sorted(node.name for node in statuses) == ["n3", "n4", "n5"]
            known = {tuple((member.id, member.incarnation) for member in node.members) for node in statuses}
            assert len(known) == 1


def add(cluster: LocalCluster, name: str) -> None:
    deadline = time.monotonic() + STEP_S
    while True:
        try:
            cluster.add_node(name)
        except RaftstateError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        else:
            return


def lose_data(cluster: LocalCluster, name: str) -> None:
    if cluster.node(name).pid is not None:
        cluster.kill(name)
    shutil.rmtree(cluster.node(name).data / "data")


def come_back(cluster: LocalCluster, name: str, replaced: MemberAdded) -> None:
    write_joiner(cluster.node(name).data, replaced)
    cluster.restart(name)
