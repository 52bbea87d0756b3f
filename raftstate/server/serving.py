"""Serving: a node as a process, from its start to a signal, and again after its disk stopped it.

Here is what runs around a node: signals, the interpreter's settings, when to start again. Nothing here knows
of the node's parts.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import sys
from collections.abc import Callable

from raftstate.config import NodeSettings
from raftstate.errors import StorageError
from raftstate.logs import get_logger
from raftstate.server.node import Node
from raftstate.server.opening import open_stores
from raftstate.store.files import is_full
from raftstate.store.log_renewal import must_copy

log = get_logger(__name__)

SWITCH_INTERVAL_S = 0.0005
"""How long a thread keeps the interpreter while another waits for it. Python's default of 5 ms is a third of
a heartbeat: with one busy thread it costs the loop 5 ms at p50, with this 1.9 ms at p99."""
RESTART_S_MIN, RESTART_S_MAX = 0.2, 10.0
"""Between the end of a node that its disk has stopped and its next start: short at first, since its followers
can do with it; a disk that needs people won't be back sooner by being asked."""


async def serve(settings: NodeSettings, *, ready: Callable[[], None] | None = None) -> None:
    """Run a node until SIGTERM, SIGINT or cancellation.

    A node that its disk has stopped is started again, by the rules for starts, for as long as it takes: what
    the disk has failed to write is copied then (`store.log_renewal`, `store.start`).

    Args:
        settings: everything that it needs to know.
        ready: called once its ports are open; there may be no leader yet.

    Raises:
        ConfigError, WrongClusterError, FailedPreconditionError, DataLossError, StorageError: it can't start.
        RaftstateError: it halted; the message says why, and what to do.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    restarts = Restarts(settings)
    while True:
        try:
            await _serve_once(settings, stop, restarts, ready)
        except StorageError as error:
            if not restarts.may_follow(error):
                raise
            await restarts.wait(stop)
            if stop.is_set():
                raise
        else:
            return
        gc.unfreeze()


async def _serve_once(
    settings: NodeSettings, stop: asyncio.Event, restarts: Restarts, ready: Callable[[], None] | None
) -> None:
    """Run a node until it is told to stop. Raises as `serve`, and what it halted for."""
    stores = await open_stores(settings, stop, restarts.distrust)
    if stores is None:
        return
    halted = asyncio.Event()
    try:
        node = Node(settings, stores, halted.set)
        try:
            await node.start()
            # What lives now lives as long as the node: the collector need not look at it again and again.
            gc.collect()
            gc.freeze()
            if ready is not None and not restarts.has_run:
                ready()
            restarts.started()
            await either(stop, halted)
            await node.hand_over()
        finally:
            await node.stop()
    finally:
        stores.close()
    if node.failure is not None:
        raise node.failure


async def either(*events: asyncio.Event) -> None:
    """Wait until one of some events is set."""
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


class Restarts:
    """When to start a node again that its disk has stopped, within the same process."""

    def __init__(self, settings: NodeSettings) -> None:
        self.settings = settings
        self.has_run = False
        """Whether the node has run already."""
        self.distrust: set[str] = set()
        """What the disk has failed to write in this process in such a way that it must be copied ("log",
        "state"), though the marker that says so could perhaps not be written."""
        self._pause_s = RESTART_S_MIN

    def started(self) -> None:
        """The node runs: what was wrong is mended."""
        self.has_run = True
        self.distrust.clear()
        self._pause_s = RESTART_S_MIN

    def may_follow(self, failure: StorageError) -> bool:
        """Whether to try again. Not if the node has never run and nothing says that its disk had failed
        before: then whoever starts it for the first time must hear of it. What is damaged, though, the
        next start mends, or finds lost."""
        if "distrust" in failure.detail:
            self.distrust.add(str(failure.detail["distrust"]))
        is_damage = "distrust" in failure.detail and not failure.detail.get("errno")
        if (
            not self.has_run
            and not is_damage
            and (not is_full(failure) or not must_copy(self.settings.data_path))
        ):
            return False
        log.error(
            "the disk has stopped this node; it starts again",
            node=self.settings.name,
            reason=str(failure),
            in_s=self._pause_s,
        )
        return True

    async def wait(self, stop: asyncio.Event) -> None:
        """Wait before the next start, longer each time, or until `stop` is set."""
        pause_s, self._pause_s = self._pause_s, min(RESTART_S_MAX, 2 * self._pause_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await stop.wait()
