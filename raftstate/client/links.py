"""What a client has on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from raftstate.client.channels import Channels
from raftstate.client.leader import LeaderTracker
from raftstate.client.pipeline import Pipeline
from raftstate.client.transport import Transport
from raftstate.client.url import EMBEDDED
from raftstate.client.watch_stream import Watcher

FINISH_S = 1.0
"""How long a client that closes waits for what lets others have their turn before a lease's end."""


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
        self._finishing: set[asyncio.Task[None]] = set()

    def spawn(
        self, work: Coroutine[Any, Any, None], name: str, *, finishes: bool = False
    ) -> asyncio.Task[None]:
        """Run something in the background, until it is done or the client is closed: then it is cancelled;
        what `finishes`, a moment later (`FINISH_S`).
        """
        task = self.loop.create_task(work, name=name)
        tasks = self._finishing if finishes else self._background
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    async def close(self) -> None:
        """Give everything up, in the order that lets a session be closed. Whatever one part raises, or a
        cancellation, keeps no other from being closed.
        """
        async with contextlib.AsyncExitStack() as parts:
            for part in (self.tracker, self.transport, self.pipeline, self.watcher):
                parts.push_async_callback(part.close)
            await self._end_background()

    async def _end_background(self) -> None:
        if self._finishing:
            await asyncio.wait(list(self._finishing), timeout=FINISH_S)
        background = [*self._background, *self._finishing]
        for task in background:
            task.cancel()
        if background:
            await asyncio.wait(background)


def _transport_to(endpoints: tuple[str, ...]) -> Transport:
    if endpoints[0].startswith(EMBEDDED):
        # A node stands above the client; here is only the door to it.
        from raftstate.embedded import EmbeddedTransport

        return EmbeddedTransport(endpoints[0])
    return Channels()
