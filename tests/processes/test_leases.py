"""Leases of real nodes: none ends early, whatever is killed or stopped, and none much later than it should.

Times are the test's own monotonic clock's. A lease's life begins between the moment its grant was sent and
the moment it was answered; its end is seen by a watch of its key, at a node that is left alone.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from bench.stalls import StallProbe, long, overlapping
from raftstate import AsyncClient, connect_async
from raftstate.supervisor import LocalCluster

pytestmark = pytest.mark.processes

DRIFT_PART, DRIFT_S = 0.001, 0.010
"""By how much the test's clock may run ahead of the leader's: it may be slewed, the other one is not."""
LATE_S = 3.0
"""No lease of one leader ends later than that after its time to live."""
GRACE_S = 2.0
"""An election, or a stall of the leader, adds its length and this."""
STALL_S = 5.0
TTLS_S = [1 + number / 8 for number in range(80)]
"""1 to 10.9 s: some end before, some in the middle of, and some after what the tests do."""


class Life(NamedTuple):
    """A lease: when its grant was sent and when answered (monotonic s)."""

    ttl_s: float
    sent_s: float
    answered_s: float


class Observed:
    """Leases that are granted and never renewed, and when they ended."""

    def __init__(self, lives: dict[bytes, Life], began_s: float) -> None:
        self.lives = lives
        self.began_s = began_s
        self.ends_s: dict[bytes, float] = {}
        self.ended = asyncio.Event()

    def early(self) -> dict[bytes, float]:
        """Return the leases that ended early, and by how many seconds."""
        short = {
            key: life.ttl_s * (1 - DRIFT_PART) - DRIFT_S - (self.ends_s[key] - life.sent_s)
            for key, life in self.lives.items()
            if key in self.ends_s
        }
        return {key: by_s for key, by_s in short.items() if by_s > 0}

    def late(self, allowed_s: float) -> dict[bytes, float]:
        """Return the leases that ended later than `allowed_s` after their time to live, and by how much."""
        over = {
            key: self.ends_s[key] - life.answered_s - life.ttl_s - allowed_s
            for key, life in self.lives.items()
        }
        return {key: by_s for key, by_s in over.items() if by_s > 0}


@asynccontextmanager
async def observe(client: AsyncClient, endpoint: str, ttls_s: list[float]) -> AsyncIterator[Observed]:
    """Grant leases, each with a key, and note their ends as a node at `endpoint` tells them."""

    async def grant(number: int, ttl_s: float) -> tuple[bytes, Life]:
        key = b"leased/%05d" % number
        sent_s = time.monotonic()
        lease = await client.lease(ttl_s).grant()
        answered_s = time.monotonic()
        await client.put(key, b"", lease=lease)
        return key, Life(ttl_s, sent_s, answered_s)

    async def note() -> None:
        async for event in watch:
            observed.ends_s[event.key] = time.monotonic()
            if len(observed.ends_s) == len(ttls_s):
                observed.ended.set()

    async with (
        connect_async(f"raftstate://{endpoint}", timeout=30) as observer,
        observer.watch(prefix="leased/", kinds="delete") as watch,
    ):
        began_s = time.monotonic()
        observed = Observed({}, began_s)
        notes = asyncio.create_task(note())
        observed.lives.update(
            await asyncio.gather(*(grant(number, ttl_s) for number, ttl_s in enumerate(ttls_s)))
        )
        yield observed
        notes.cancel()


async def all_ended(observed: Observed) -> None:
    """Wait until every lease has ended."""
    async with asyncio.timeout(60):
        await observed.ended.wait()


def roles(cluster: LocalCluster) -> tuple[str, list[str]]:
    """Return the leader's name, and the followers'."""
    leader = cluster.wait_for_leader()
    return leader, [node.name for node in cluster.nodes if node.name != leader]


async def kept(client: AsyncClient, key: str) -> bool:
    return await client.get(key) is not None


# ---- in every run of the suite. Nothing ends within 2 s after an election: they live longer than that.


async def test_a_lease_ends_after_its_time_and_not_before(cluster: LocalCluster) -> None:
    leader = await asyncio.to_thread(cluster.wait_for_leader)
    async with (
        connect_async(cluster.url, timeout=30) as client,
        observe(client, cluster.node(leader).endpoint, [2.5, 3.0]) as observed,
    ):
        await all_ended(observed)
        assert observed.early() == {}
        assert await client.leases() == []


async def test_no_lease_ends_early_when_the_leader_is_killed_and_one_that_is_renewed_does_not_end(
    cluster: LocalCluster,
) -> None:
    leader, followers = await asyncio.to_thread(roles, cluster)
    async with (
        connect_async(cluster.url, timeout=30) as client,
        client.lease(10) as renewed,
        observe(client, cluster.node(followers[0]).endpoint, [3.5]) as observed,
    ):
        await client.put("renewed", b"", lease=renewed)
        await asyncio.to_thread(cluster.kill, leader)
        await all_ended(observed)
        assert observed.early() == {}
        renewed.check()
        assert [lease.id for lease in await client.leases()] == [renewed.id]
        assert await kept(client, "renewed")


# ---- the long ones


@pytest.fixture
def probe(tmp_path: Path) -> Iterator[StallProbe]:
    probe = StallProbe(tmp_path)
    yield probe
    probe.stop()


def stalls_s(probe: StallProbe, began_s: float) -> float:
    """Return what the stalls of the host since then may add to a lease's life."""
    seen = overlapping(long(probe.stop()), int(began_s * 1e9), time.monotonic_ns())
    return sum(stall.ms / 1_000 + GRACE_S for stall in seen if stall.kind == "clock")


@contextmanager
def stalled(cluster: LocalCluster, names: list[str]) -> Iterator[None]:
    """Stop these nodes, and let them go on."""
    pids = [pid for name in names if (pid := cluster.node(name).pid) is not None]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def term(client: AsyncClient) -> int:
    return max(status.term for status in await client.status())


@pytest.mark.slow
async def test_no_lease_ends_early_or_late_under_one_leader(cluster: LocalCluster, probe: StallProbe) -> None:
    leader = await asyncio.to_thread(cluster.wait_for_leader)
    async with connect_async(cluster.url, timeout=30) as client:
        before = await term(client)
        async with observe(client, cluster.node(leader).endpoint, TTLS_S) as observed:
            await all_ended(observed)
        assert observed.early() == {}
        if await term(client) != before:
            pytest.skip("another node was elected meanwhile, on this busy machine")
        assert observed.late(LATE_S + stalls_s(probe, observed.began_s)) == {}


@asynccontextmanager
async def renewing(client: AsyncClient, ttl_s: float) -> AsyncIterator[None]:
    """Keep a lease alive by renewals that wait for as long as it takes; assert that it never ended."""
    lease = await client.lease(ttl_s).grant()
    await client.put("renewed", b"", lease=lease)

    async def renew() -> None:
        while True:
            await lease.renew(timeout=30)
            await asyncio.sleep(ttl_s / 4)

    renewals = asyncio.create_task(renew())
    yield
    assert await kept(client, "renewed")
    assert not renewals.done()
    renewals.cancel()


async def disturbed_s(client: AsyncClient, began_s: float) -> float:
    """Return for how long since then no leader could be written to, at most, in seconds."""
    await client.put("written", b"", timeout=30)
    return time.monotonic() - began_s


@pytest.mark.slow
async def test_no_lease_ends_early_or_late_when_the_leader_is_killed(
    cluster: LocalCluster, probe: StallProbe
) -> None:
    leader, followers = await asyncio.to_thread(roles, cluster)
    async with connect_async(cluster.url, timeout=30) as client, renewing(client, 4):
        async with observe(client, cluster.node(followers[0]).endpoint, TTLS_S) as observed:
            began_s = time.monotonic()
            await asyncio.to_thread(cluster.kill, leader)
            election_s = await disturbed_s(client, began_s)
            await all_ended(observed)
        assert observed.early() == {}
        extra_s = election_s + GRACE_S + stalls_s(probe, observed.began_s)
        assert observed.late(LATE_S + extra_s) == {}


@pytest.mark.slow
async def test_no_lease_ends_early_or_late_when_the_leader_stalls_and_loses_its_office(
    cluster: LocalCluster, probe: StallProbe
) -> None:
    leader, followers = await asyncio.to_thread(roles, cluster)
    async with connect_async(cluster.url, timeout=30) as client, renewing(client, 8):
        async with observe(client, cluster.node(followers[0]).endpoint, TTLS_S) as observed:
            began_s = time.monotonic()
            with stalled(cluster, [leader]):
                election_s = await disturbed_s(client, began_s)
                await asyncio.sleep(STALL_S - election_s)
            await all_ended(observed)
        assert observed.early() == {}
        extra_s = election_s + GRACE_S + stalls_s(probe, observed.began_s)
        assert observed.late(LATE_S + extra_s) == {}


@pytest.mark.slow
async def test_no_lease_ends_early_or_late_when_a_follower_that_stalled_becomes_leader(
    cluster: LocalCluster, probe: StallProbe
) -> None:
    _, followers = await asyncio.to_thread(roles, cluster)
    async with connect_async(cluster.url, timeout=30) as client, renewing(client, 8):
        async with observe(client, cluster.node(followers[1]).endpoint, TTLS_S) as observed:
            with stalled(cluster, [followers[0]]):
                await asyncio.sleep(STALL_S)
            began_s = time.monotonic()
            await client.transfer_leader(followers[0])
            election_s = await disturbed_s(client, began_s)
            await all_ended(observed)
        assert observed.early() == {}
        extra_s = election_s + GRACE_S + stalls_s(probe, observed.began_s)
        assert observed.late(LATE_S + extra_s) == {}


@pytest.mark.slow
async def test_a_lease_whose_renewal_waits_in_the_sockets_of_a_stalled_cluster_does_not_end(
    cluster: LocalCluster,
) -> None:
    async with connect_async(cluster.url, timeout=30) as client:
        lease = await client.lease(2).grant()
        await client.put("leased", b"", lease=lease)
        with stalled(cluster, [node.name for node in cluster.nodes]):
            renewal = asyncio.create_task(lease.renew(timeout=30))
            await asyncio.sleep(STALL_S)
        await renewal
        assert await kept(client, "leased")
