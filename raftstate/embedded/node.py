"""The nodes of this process, and the threads that they run on."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from raftstate.client.sync_client import on_event_loop
from raftstate.client.url import EMBEDDED, endpoints_of
from raftstate.errors import ClosedError, FailedPreconditionError, StorageError
from raftstate.folder import settings_alone
from raftstate.logs import get_logger
from raftstate.rpc.methods import Method as NodeMethod
from raftstate.rpc.methods import StreamMethod, methods_of, serve
from raftstate.rpc.stream import Stream
from raftstate.server import Node, Restarts, Stores, either

T = TypeVar("T")

log = get_logger(__name__)


def open_node(url: str) -> EmbeddedNode:
    """Open the node of `embedded:DIR[?listen=HOST:PORT]`, or share the one that this process has open.

    Each call takes a `release`.

    Raises:
        ConfigError: the URL is not of this form, or the directory's settings are not allowed.
        FailedPreconditionError: the directory is in use by another process (its message names it), holds
            something else, or belongs to a cluster of several nodes.
        DataLossError, StorageError, WrongClusterError: it can't be opened.
    """
    node = _share_or_make(*_parse(url))
    try:
        node.wait_started()
    except FailedPreconditionError as error:
        node.release()
        if node.folder in _nodes.of_parent and "pid" in error.detail:
            raise FailedPreconditionError(
                f"the store in {node.folder} is open in the process that this one was forked from, and can't"
                " be used on both sides of a fork; open it in one of them only, after the fork",
                detail=error.detail,
            ) from error
        raise
    except BaseException:
        node.release()
        raise
    return node


class _Nodes:
    """The nodes of this process, by their folders. Nobody waits for anything while holding the lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.open: dict[Path, EmbeddedNode] = {}
        self.of_parent: set[Path] = set()
        """What was open in the process that this one was forked from."""


_nodes = _Nodes()


def _parse(url: str) -> tuple[Path, str | None]:
    [endpoint] = endpoints_of(url)
    directory, _, query = endpoint.removeprefix(EMBEDDED).partition("?")
    return Path(directory), query.removeprefix("listen=") or None


def _share_or_make(folder: Path, listen: str | None) -> EmbeddedNode:
    made: EmbeddedNode | None = None
    while True:
        with _nodes.lock:
            node = _nodes.open.get(folder)
            if node is None and made is not None:
                _nodes.open[folder] = made
                break
            if node is not None and not node.ending:
                if made is not None:
                    made.loop.close()
                if listen is None or listen == node.listen:
                    node.users += 1
                    return node
                how = f"on {node.listen}" if node.listen else "without a port"
                raise FailedPreconditionError(
                    f"{folder} is open in this process {how}; close it before opening it on {listen}"
                )
        if node is None:
            # Made outside of the lock: what is collected meanwhile may want it.
            made = EmbeddedNode(folder, listen)
            made.users = 1
            continue
        # It gives the directory back before it can be opened anew.
        node.closed.wait()
        with _nodes.lock:
            if _nodes.open.get(folder) is node:
                del _nodes.open[folder]
    made.start()
    return made


class EmbeddedNode:
    """A node, and the thread that it runs on. Made by `open_node`.

    The thread's loop, on which sync clients live, runs until the last of its users has released the node,
    also when the node halts before: then their calls are told so.

    Args:
        folder: of the node.
        listen: host:port to serve clients on, too; None: no port.
    """

    def __init__(self, folder: Path, listen: str | None) -> None:
        self.folder = folder
        self.listen = listen
        self.users = 0
        """Guarded by the lock of the table of nodes."""
        self.pid = os.getpid()
        self.failure: BaseException | None = None
        """Why it could not start, or has halted."""
        self.ending = False
        """Whether it will close, or has closed, its directory."""
        self.closed = threading.Event()
        """Set once the directory is given back."""
        self.methods: dict[str, NodeMethod] = {}
        self.loop = uvloop.new_event_loop()
        self._stop = asyncio.Event()
        self._released = asyncio.Event()
        self._started: Future[None] = Future()
        self._gate = threading.RLock()  # what is collected within may close a client of this node
        self._ended = False
        self._streams: set[asyncio.Task[None]] = set()
        self._kept: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._serve, name="raftstate-node", daemon=True)

    @property
    def ident(self) -> int | None:
        """The thread's identity."""
        return self._thread.ident

    def start(self) -> None:
        """Start the thread; `wait_started` tells what came of it."""
        self._thread.start()

    def wait_started(self) -> None:
        """Wait until the node serves. Raises what `open_node` does."""
        self._started.result()

    def check(self) -> None:
        """Raise `FailedPreconditionError` in a forked child, and `ClosedError` when the node has stopped."""
        if self.pid != os.getpid():
            raise FailedPreconditionError(
                f"the node of {self.folder} runs in process {self.pid}, and this is a forked child of it;"
                " open a store after the fork, in one process only"
            )
        if self.failure is not None:
            raise ClosedError(f"the node of {self.folder} has halted: {self.failure}") from self.failure
        if self.ending:
            raise ClosedError(f"the node of {self.folder} was stopped")

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run something on the node's loop. Raises `ClosedError` when that has ended."""
        with self._gate:
            if not self._ended and self.pid == os.getpid():
                return asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        coroutine.close()
        self.check()
        raise ClosedError(f"the node of {self.folder} was stopped")

    def keep(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run something on the node's loop, on which this is called, that nobody waits for."""
        task = self.loop.create_task(coroutine)
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)

    async def serve_stream(self, method: StreamMethod, stream: Stream) -> None:
        """Serve a stream on the node's loop, until it ends or the node does."""
        self.check()
        task = asyncio.create_task(serve(method, stream))
        self._streams.add(task)
        task.add_done_callback(self._streams.discard)
        try:
            await task
        finally:
            task.cancel()

    def release(self) -> None:
        """Give the node back. The last of those who have it stops it, and waits until it has stopped, unless
        it is on the thread of an event loop."""
        with _nodes.lock:
            self.users -= 1
            if self.users > 0 or self.pid != os.getpid():
                return
            self.ending = True
        self.end()
        if not on_event_loop():
            self.join()

    def end(self) -> None:
        """Have it stop in good order, and its loop end."""
        self.ending = True

        def end() -> None:
            self._stop.set()
            self._released.set()

        with self._gate:
            if not self._ended:
                self.loop.call_soon_threadsafe(end)

    def join(self) -> None:
        """Wait until its thread has ended."""
        self._thread.join()

    def wait_if_ending(self) -> None:
        """Wait until the directory is given back, if nobody has the node any more."""
        if self.ending:
            self.closed.wait()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._run())
        except BaseException as error:  # told to whoever opens it, or at their next call
            self.failure = self.failure or error
            if self._started.done():
                log.error("the embedded node failed", folder=str(self.folder), exc_info=error)
        finally:
            self.ending = True
            self.closed.set()
            if not self._started.done():
                self._started.set_exception(self.failure or ClosedError("the node was stopped at its start"))
            self.loop.run_until_complete(self._wind_up())
            self.loop.close()
            with _nodes.lock:
                if _nodes.open.get(self.folder) is self:
                    del _nodes.open[self.folder]

    async def _run(self) -> None:
        """Serve until told to stop, or until the node halts for more than its disk."""
        settings = settings_alone(self.folder, {"listen_client": self.listen})
        if len(settings.cluster.members) > 1:
            raise _of_several(self.folder, len(settings.cluster.members))
        restarts = Restarts(settings)
        while True:
            try:
                await self._run_once(restarts)
            except StorageError as error:
                if not restarts.may_follow(error):
                    raise
                await restarts.wait(self._stop)
                if self._stop.is_set():
                    raise
            else:
                return

    async def _run_once(self, restarts: Restarts) -> None:
        settings = restarts.settings
        stores = Stores(settings, distrust=restarts.distrust, with_reserve=False)
        halted = asyncio.Event()
        try:
            voters = len(stores.machine.conf_state().voters)
            if voters > 1:
                raise _of_several(self.folder, voters)
            node = Node(
                settings,
                stores,
                halted.set,
                listen_clients=self.listen is not None,
                listen_peers=False,
                default_metrics=False,
            )
            try:
                await node.start()
                self.methods = methods_of(node.service)
                restarts.started()
                if not self._started.done():
                    self._started.set_result(None)
                await either(self._stop, halted)
            finally:
                if self._stop.is_set() or not isinstance(node.failure, StorageError):
                    self.ending = True
                    self.failure = self.failure or node.failure
                await node.stop()
                for task in self._streams:
                    task.cancel()
        finally:
            stores.close()
        if isinstance(node.failure, StorageError) and not self.ending:
            raise node.failure

    async def _wind_up(self) -> None:
        """Once nobody uses the loop any more, end what is left on it."""
        if self._started.exception() is None:
            await self._released.wait()
        with self._gate:
            self._ended = True
        for _ in range(3):  # what was submitted before becomes a task, which takes its first step
            await asyncio.sleep(0)
        while calls := asyncio.all_tasks() - {asyncio.current_task()}:
            for each in calls:
                each.cancel()
            await asyncio.wait(calls)


def _of_several(folder: Path, voters: int) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"{folder} holds a node of a cluster with {voters} voters, which can't run within a program alone;"
        " start it with `raftstate serve`, and connect to the cluster by its addresses"
    )


def _stop_all() -> None:
    """At the end of the process: a checkpoint, and the marker of a clean stop."""
    with _nodes.lock:
        nodes = [node for node in _nodes.open.values() if node.pid == os.getpid()]
    for node in nodes:
        node.end()
    for node in nodes:
        node.join()


def _in_child() -> None:
    # The lock may be held, for ever, by a thread that this process does not have.
    _nodes.lock = threading.Lock()
    _nodes.of_parent |= _nodes.open.keys()
    _nodes.open.clear()


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_in_child)
