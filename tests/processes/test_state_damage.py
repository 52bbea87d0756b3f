"""Real nodes whose state's files are damaged while they are down: they mend themselves under load, and no
read is answered wrongly meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import pytest

from raftstate import AsyncClient, RaftstateError, connect_async
from raftstate.store.generation import current_generation
from raftstate.supervisor import LocalCluster
from tests.processes.load import Load, check
from tests.store.state_regions import flip, state_regions

pytestmark = pytest.mark.processes

FETCHED = ("checkpoint", "no checkpoint", "CURRENT", "no CURRENT", "no data file", "every row")
"""What no node starts from: it gets a copy of another one's before it takes part."""
REBUILT = ("row", "overflow")
"""What a node finds while it serves."""
FIXED_KEYS = 300
LARGE = bytes(range(256)) * 64


def damage(data: Path, what: str) -> None:
    generation = current_generation(data)
    assert generation is not None
    if what == "checkpoint":
        flip(generation.checkpoint_file, [30])
    elif what == "no checkpoint":
        generation.checkpoint_file.unlink()
    elif what == "CURRENT":
        (data / "CURRENT").write_bytes(b"stat\xe5-1\n")
    elif what == "no CURRENT":
        (data / "CURRENT").unlink()
    elif what == "no data file":
        generation.data_file.unlink()
    elif what == "meta pages":
        flip(generation.data_file, [64, 4096 + 64, 120, 4096 + 120])
    elif what == "row":
        places = state_regions(data)["row"]
        flip(generation.data_file, places[len(places) // 3 : len(places) // 3 + 1])
    elif what == "every row":
        flip(generation.data_file, state_regions(data)["row"])
    else:
        places = state_regions(data)[what]
        assert places
        flip(generation.data_file, places[:: max(1, len(places) // 3)])


async def fill(client: AsyncClient) -> None:
    for number in range(FIXED_KEYS):
        await client.put(f"fixed/{number:04d}", b"%d" % number)
    for number in range(8):
        await client.put(f"large/{number}", LARGE)


async def read_all(url: str, stop: asyncio.Event, wrong: list[str], *, missing_is_wrong: bool) -> None:
    """Read what was written once and never changed, of one node, as it is there."""
    async with connect_async(url, timeout=2) as client:
        number = 0
        while not stop.is_set():
            number = (number + 7) % FIXED_KEYS
            for key, value in ((f"fixed/{number:04d}", b"%d" % number), (f"large/{number % 8}", LARGE)):
                try:
                    pair = await client.get(key, consistency="local")
                except RaftstateError:
                    await asyncio.sleep(0.01)
                    continue
                if pair is None and missing_is_wrong:
                    wrong.append(f"{key} is missing")
                elif pair is not None and pair.value != value:
                    wrong.append(f"{key} is {pair.value[:20]!r}")


async def whole_again(cluster: LocalCluster, name: str) -> None:
    """Wait until no node has an alarm, and one has applied what the others had."""
    async with connect_async(cluster.url, timeout=30) as client, asyncio.timeout(60):
        while True:
            statuses = {status.name: status for status in await client.status()}
            quiet = len(statuses) == 3 and not any(status.alarms for status in statuses.values())
            if quiet and statuses[name].applied_index + 500 >= max(
                s.applied_index for s in statuses.values()
            ):
                return
            await asyncio.sleep(0.05)


async def until_logged(cluster: LocalCluster, name: str, *words: str) -> None:
    async with asyncio.timeout(60):
        while not any(word in cluster.node(name).log.read_text() for word in words):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def supervise(cluster: LocalCluster, name: str, *words: str) -> None:
    """Start a node again and again, as a supervisor does, until it has mended itself."""
    for _ in range(5):
        # It may end before it serves, or later.
        with contextlib.suppress(RaftstateError):
            cluster.restart(name, timeout_s=60)
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s and cluster.node(name).pid is not None:
            if any(word in cluster.node(name).log.read_text() for word in words):
                return
            time.sleep(0.05)
        with contextlib.suppress(RaftstateError):
            cluster.kill(name)
    raise AssertionError(f"{name} has not mended itself: {cluster.log_tail(name)}")


def scrub_fast(cluster: LocalCluster) -> None:
    for node in cluster.nodes:
        path = node.data / "node.toml"
        path.write_text(f"scrub_rate_bytes_per_s = {1 << 40}\n{path.read_text()}")


@pytest.mark.case(56)
@pytest.mark.parametrize("victim", ["follower", "leader"])
@pytest.mark.parametrize("what", [*FETCHED, *REBUILT, "meta pages"])
async def test_a_node_with_a_damaged_state_mends_itself_under_load(
    cluster: LocalCluster, what: str, victim: str
) -> None:
    scrub_fast(cluster)
    async with connect_async(cluster.url, timeout=30) as client:
        await fill(client)
        load = Load(client, writers=8, prefix="load")
        await load.until(500)
        leader = await asyncio.to_thread(cluster.wait_for_leader)
        name = leader if victim == "leader" else next(n.name for n in cluster.nodes if n.name != leader)
        await asyncio.sleep(1.5)  # a checkpoint or two, so that what is damaged is in use
        await asyncio.to_thread(cluster.kill, name)
        damage(cluster.node(name).data / "data", what)
        await asyncio.to_thread(cluster.restart, name, timeout_s=60)
        stop, wrong = asyncio.Event(), []  # type: tuple[asyncio.Event, list[str]]
        endpoint = cluster.endpoints[[node.name for node in cluster.nodes].index(name)]
        reading = asyncio.create_task(read_all(f"raftstate://{endpoint}", stop, wrong, missing_is_wrong=True))
        if what in REBUILT:
            await until_logged(cluster, name, "state rebuilt")
        await whole_again(cluster, name)
        await load.until(load.total + 300)
        stop.set()
        await reading
        assert wrong == []
        # Another goes: what this node has now is what counts.
        other = next(node.name for node in cluster.nodes if node.name != name)
        await asyncio.to_thread(cluster.kill, other)
        await load.until(load.total + 200)
        await check(client, await load.stop(), "load")
        await asyncio.to_thread(cluster.restart, other)
    printed = cluster.node(name).log.read_text()
    assert ("the state is lost; fetching a copy" in printed) is (what in FETCHED)
    assert ("state rebuilt" in printed) is (what in REBUILT)
    assert cluster.deaths() == []


TREE = ("leaf", "branch", "free list")
"""What hides rows, or leads LMDB astray."""


@pytest.mark.case(76)
@pytest.mark.case(82)
@pytest.mark.parametrize("what", TREE)
async def test_a_node_with_a_damaged_tree_mends_itself_under_load(cluster: LocalCluster, what: str) -> None:
    """A key may be "not found" until the scrub has come to it; nothing else is answered wrongly."""
    scrub_fast(cluster)
    async with connect_async(cluster.url, timeout=30) as client:
        await fill(client)
        load = Load(client, writers=8, prefix="load")
        await load.until(500)
        leader = await asyncio.to_thread(cluster.wait_for_leader)
        name = next(node.name for node in cluster.nodes if node.name != leader)
        await asyncio.sleep(1.5)
        await asyncio.to_thread(cluster.kill, name)
        damage(cluster.node(name).data / "data", what)
        stop, wrong = asyncio.Event(), []  # type: tuple[asyncio.Event, list[str]]
        endpoint = cluster.endpoints[[node.name for node in cluster.nodes].index(name)]
        reading = asyncio.create_task(
            read_all(f"raftstate://{endpoint}", stop, wrong, missing_is_wrong=False)
        )
        await asyncio.to_thread(supervise, cluster, name, "state rebuilt", "fetching a copy")
        await whole_again(cluster, name)
        await load.until(load.total + 200)
        stop.set()
        await reading
        assert wrong == []
        other = next(node.name for node in cluster.nodes if node.name != name)
        await asyncio.to_thread(cluster.kill, other)
        await load.until(load.total + 100)
        await check(client, await load.stop(), "load")
        await asyncio.to_thread(cluster.restart, other)
