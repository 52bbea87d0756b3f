"""raftstate: three durable nodes as processes on loopback, and its asyncio client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from raftstate import AsyncClient, connect_async
from raftstate.supervisor import LocalCluster


class RaftstateStore:
    """A client of the cluster."""

    settings = "3 nodes, fsync before every acknowledgement, AsyncClient over the pipeline"

    def __init__(self, client: AsyncClient) -> None:
        self.put = client.put


@asynccontextmanager
async def start_raftstate(scratch: Path) -> AsyncIterator[RaftstateStore]:
    """Start a fresh cluster in `scratch`; stop it at the end."""
    cluster = LocalCluster(scratch / "raftstate", nodes=3, port=0)
    try:
        await asyncio.to_thread(cluster.start)
        await asyncio.to_thread(cluster.wait_for_leader)
        async with connect_async(cluster.url, timeout=30) as client:
            yield RaftstateStore(client)
    finally:
        await asyncio.to_thread(cluster.stop)
