"""What a client has on one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from raftstate.client.channels import Channels
from raftstate.client.leader import LeaderTracker
from raftstate.client.pipeline import Pipeline
from raftstate.client.transport import Transport
from raftstate.client.url import EMBEDDED
from raftstate.client.watch_stream import Watcher


class Links:
    """A transport, what is known of the leader, the pipeline of writes, the watches, and what runs in the
    background.
    """

    def __init__(self, endpoints: tuple[str, ...], loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.transport = _transport_to(endpoints)
        self.tracker = LeaderTracker(endpoints, self.transport)
        self.pipeline = Pipeline(self.transport, self.tracker)
        self.watcher = Watcher(self.transport, self.tracker)
        self._background: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run something in the background, until it is done or the client is closed: then it is cancelled."""
        task = self.loop.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def close(self) -> None:
        """Give everything up, in the order that lets a session be closed."""
        background = list(self._background)
        for task in background:
            task.cancel()
        if background:
            await asyncio.wait(background)
        await self.watcher.close()
        await self.pipeline.close()
        await self.transport.close()
        await self.tracker.close()


def _transport_to(endpoints: tuple[str, ...]) -> Transport:
    if endpoints[0].startswith(EMBEDDED):
        # A node stands above the client; here is only the door to it.
        from raftstate.embedded import EmbeddedTransport

        return EmbeddedTransport(endpoints[0])
    return Channels()
