from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

import raftstate
from tests.client.fake_cluster import FakeCluster


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    async with FakeCluster() as cluster:
        yield cluster


@pytest.fixture
async def store(cluster: FakeCluster) -> AsyncIterator[raftstate.AsyncClient]:
    async with raftstate.connect_async(cluster.url) as store:
        yield store
