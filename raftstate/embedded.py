"""A node within the caller's process: a cluster of one, on a thread of its own, without a port.

    with raftstate.connect("embedded:./state") as store: ...

A client reaches it through the very handlers that serve gRPC (`rpc.methods`), so that calls, errors, sessions
and durability are the same; only the socket is missing. The directory is the folder of a node as any other
(`folder`): `raftstate serve --data DIR` goes on with it. `embedded:DIR?listen=HOST:PORT` also opens a client
port.

Clients of one process share the node of a directory; it stops, in good order, with the last of them, or at
the end of the process. A process that is killed loses nothing that was acknowledged.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
from collections import deque
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import grpc
import uvloop
from google.protobuf.message import Message

from raftstate.client.faults import RpcFailure
from raftstate.client.transport import Method, Request, Response, Stream
from raftstate.client.url import EMBEDDED, endpoints_of
from raftstate.config import NodeSettings
from raftstate.errors import ClosedError, FailedPreconditionError, RaftstateError
from raftstate.folder import settings_alone
from raftstate.logs import get_logger
from raftstate.rpc.methods import Method as NodeMethod
from raftstate.rpc.methods import StreamMethod, UnaryMethod, call, methods_of, serve
from raftstate.rpc.status import RefusedError, status_text
from raftstate.server import Node, Stores

if TYPE_CHECKING:
    from raftstate.client.async_client import AsyncClient

T = TypeVar("T")

log = get_logger(__name__)

PIPE_MESSAGES_MAX = 16
"""What waits in a stream each way; then whoever writes waits, as gRPC's flow control has it."""
ANSWER_PART = 0.9
"""The part of a call's time that the node may take: what it knows arrives before the caller's deadline."""


def open_node(url: str) -> EmbeddedNode:
    """Open the node of `embedded:DIR[?listen=HOST:PORT]`, or share the one that this process has open.

    Each call takes a `release`.

    Raises:
        ConfigError: the URL is not of this form, or the directory's settings are not allowed.
        FailedPreconditionError: the directory is in use by another process (its message names it), holds
            something else, or belongs to a cluster of several nodes.
        DataLossError, StorageError, WrongClusterError: it can't be opened.
    """
    folder, listen = _parse(url)
    with _nodes.lock:
        node = _nodes.open.get(folder)
        if node is None or node.failure is not None or node.pid != os.getpid():
            node = EmbeddedNode(folder, listen)
            _nodes.open[folder] = node
        elif listen is not None and listen != node.listen:
            how = f"on {node.listen}" if node.listen else "without a port"
            raise FailedPreconditionError(
                f"{folder} is open in this process {how}; close it before opening it on {listen}"
            )
        node.users += 1
        return node


class _Nodes:
    """The nodes of this process, by their folders."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.open: dict[Path, EmbeddedNode] = {}


_nodes = _Nodes()


def _parse(url: str) -> tuple[Path, str | None]:
    [endpoint] = endpoints_of(url)
    directory, _, query = endpoint.removeprefix(EMBEDDED).partition("?")
    return Path(directory), query.removeprefix("listen=") or None


class EmbeddedNode:
    """A node that runs, and the thread that it runs on. Made by `open_node`.

    Args:
        folder: of the node.
        listen: host:port to serve clients on, too; None: no port.

    Raises as `open_node`.
    """

    def __init__(self, folder: Path, listen: str | None) -> None:
        self.folder = folder
        self.listen = listen
        self.users = 0
        self.pid = os.getpid()
        self.failure: BaseException | None = None
        self.methods: dict[str, NodeMethod] = {}
        settings = settings_alone(folder, {"listen_client": listen})
        if len(settings.cluster.members) > 1:
            raise _of_several(folder, len(settings.cluster.members))
        self.loop = uvloop.new_event_loop()
        self._stop = asyncio.Event()
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._serve, args=(settings, started), name="raftstate-node", daemon=True
        )
        self._thread.start()
        try:
            started.result()
        except BaseException:
            self._thread.join()
            raise

    @property
    def ident(self) -> int | None:
        """The thread's identity."""
        return self._thread.ident

    def check(self) -> None:
        """Raise `FailedPreconditionError` in a forked child, and `ClosedError` when the node has stopped."""
        if self.pid != os.getpid():
            raise FailedPreconditionError(
                f"the node of {self.folder} runs in process {self.pid}, and this is a forked child of it;"
                " open a store after the fork, in one process only"
            )
        if self.failure is not None:
            raise ClosedError(f"the node of {self.folder} has halted: {self.failure}") from self.failure
        if not self._thread.is_alive():
            raise ClosedError(f"the node of {self.folder} was stopped")

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run something on the node's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def release(self) -> None:
        """Give the node back; the last of those who have it stops it, and waits until it has stopped."""
        with _nodes.lock:
            self.users -= 1
            if self.users > 0 or self.pid != os.getpid():
                return
            if _nodes.open.get(self.folder) is self:
                del _nodes.open[self.folder]
            self.stop()

    def stop(self) -> None:
        """Stop in good order. On the node's own thread it does not wait."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has stopped
            self.loop.call_soon_threadsafe(self._stop.set)
        if threading.get_ident() != self.ident:
            self._thread.join()

    def _serve(self, settings: NodeSettings, started: Future[None]) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._run(settings, started))
        except BaseException as error:  # noqa: BLE001 - told to whoever opened it, or at their next call
            self.failure = error
            if started.done():
                log.error("the embedded node failed", folder=str(self.folder), exc_info=error)
            else:
                started.set_exception(error)
        finally:
            self.loop.close()

    async def _run(self, settings: NodeSettings, started: Future[None]) -> None:
        stores = Stores(settings)
        try:
            voters = len(stores.machine.conf_state().voters)
            if voters > 1:
                raise _of_several(self.folder, voters)
            node = Node(
                settings, stores, self._halted, listen_clients=self.listen is not None, listen_peers=False
            )
            try:
                await node.start()
                self.methods = methods_of(node.service)
                started.set_result(None)
                await self._stop.wait()
            finally:
                self.failure = self.failure or node.failure
                await node.stop()
                await _end_calls()
        finally:
            stores.close()

    def _halted(self) -> None:
        self._stop.set()


async def _end_calls() -> None:
    """Let what callers still wait for hear that the node has stopped."""
    calls = asyncio.all_tasks() - {asyncio.current_task()}
    for each in calls:
        each.cancel()
    if calls:
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
        _nodes.open.clear()
    for node in nodes:
        node.stop()


def _in_child() -> None:
    # The lock may be held, for ever, by a thread that this process does not have.
    _nodes.lock = threading.RLock()
    _nodes.open.clear()


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_in_child)


class EmbeddedTransport:
    """Implements `client.transport.Transport`. The node is opened at the first call, and released by `close`.

    `url`: see `open_node`.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._node: EmbeddedNode | None = None
        self._opening: asyncio.Task[EmbeddedNode] | None = None
        self._closed = False

    async def unary(
        self, address: str, method: Method[Request, Response], request: Request, timeout_s: float
    ) -> Response:
        """See `client.transport.Transport.unary`."""
        node = await self.opened()
        known = cast(UnaryMethod, node.methods[method.name])
        answer = call(known, cast(Message, request), timeout_s * ANSWER_PART)
        try:
            async with asyncio.timeout(timeout_s):
                if asyncio.get_running_loop() is node.loop:
                    return cast(Response, await answer)
                return cast(Response, await asyncio.wrap_future(node.submit(answer)))
        except RefusedError as error:
            raise _failure(address, error) from error
        except TimeoutError as error:
            status = grpc.StatusCode.DEADLINE_EXCEEDED
            raise RpcFailure(address, status, f"no answer within {timeout_s:g} s", None) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise RpcFailure(
                address, grpc.StatusCode.CANCELLED, "the node stopped during the call", None
            ) from None

    def stream(self, address: str, method: Method[Request, Response]) -> Stream[Request, Response]:
        """See `client.transport.Transport.stream`."""
        if self._closed:
            raise ClosedError("the client was closed")
        return _ClientStream(self, address, method.name)

    async def opened(self) -> EmbeddedNode:
        """Return the node. Raises as `open_node`, and as `EmbeddedNode.check`."""
        if self._closed:
            raise ClosedError("the client was closed")
        if self._node is None:
            if self._opening is None:
                self._opening = asyncio.create_task(asyncio.to_thread(open_node, self._url))
            try:
                self._node = await asyncio.shield(self._opening)
            finally:
                if self._opening.done():
                    self._opening = None
        self._node.check()
        return self._node

    async def close(self) -> None:
        """See `client.transport.Transport.close`."""
        self._closed = True
        if self._opening is not None:
            with contextlib.suppress(RaftstateError):
                self._node = await self._opening
        node, self._node = self._node, None
        if node is not None:
            if asyncio.get_running_loop() is node.loop:
                node.release()
            else:
                await asyncio.to_thread(node.release)


def _failure(address: str, refused: RefusedError) -> RpcFailure:
    status, error = refused.refusal
    return RpcFailure(address, status, status_text(error), error)


class _Pipe(Generic[T]):
    """Messages from one event loop to another (or the same), a bounded number at a time."""

    def __init__(self, writer: asyncio.AbstractEventLoop, reader: asyncio.AbstractEventLoop) -> None:
        self._writer, self._reader = writer, reader
        self._messages: deque[T] = deque()
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self.ended = False

    async def put(self, message: T) -> bool:
        """Add a message; return whether there is still a reader."""
        while len(self._messages) >= PIPE_MESSAGES_MAX and not self.ended:
            self._writable.clear()
            if len(self._messages) >= PIPE_MESSAGES_MAX and not self.ended:
                await self._writable.wait()
        if self.ended:
            return False
        self._messages.append(message)
        _wake(self._reader, self._readable)
        return True

    async def get(self) -> T | None:
        """Take a message; None: there are no more."""
        while not self._messages:
            if self.ended:
                return None
            self._readable.clear()
            if not self._messages and not self.ended:
                await self._readable.wait()
        message = self._messages.popleft()
        _wake(self._writer, self._writable)
        return message

    def end(self) -> None:
        """There are no more messages; those that wait may still be taken."""
        self.ended = True
        _wake(self._reader, self._readable)
        _wake(self._writer, self._writable)


def _wake(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    if loop is asyncio._get_running_loop():
        event.set()
    else:
        with contextlib.suppress(RuntimeError):  # that loop is closed, and nobody waits there any more
            loop.call_soon_threadsafe(event.set)


class _NodeStream:
    """The node's side of a stream: `rpc.stream.Stream`."""

    def __init__(self, requests: _Pipe[bytes], replies: _Pipe[Message]) -> None:
        self._requests, self._replies = requests, replies

    async def read(self) -> bytes | None:
        return await self._requests.get()

    async def write(self, message: Message) -> None:
        if not await self._replies.put(message):
            raise ConnectionResetError("the client has gone")


class _ClientStream(Generic[Request, Response]):
    """The client's side of a stream: `client.transport.Stream`."""

    def __init__(self, transport: EmbeddedTransport, address: str, name: str) -> None:
        self._transport = transport
        self._address = address
        self._name = name
        self._beginning: asyncio.Lock = asyncio.Lock()
        self._pipes: tuple[_Pipe[bytes], _Pipe[Message]] | None = None
        self._serving: Future[None] | None = None
        self._failure: RpcFailure | None = None
        self._cancelled = False

    async def write(self, message: Request) -> None:
        requests, _ = await self._begun()
        if not await requests.put(cast(Message, message).SerializeToString()):
            status = grpc.StatusCode.UNAVAILABLE
            raise self._failure or RpcFailure(self._address, status, "the stream ended", None)

    async def read(self) -> Response | None:
        _, replies = await self._begun()
        message = await replies.get()
        if message is None and self._failure is not None:
            raise self._failure
        return cast(Response | None, message)

    def cancel(self) -> None:
        self._cancelled = True
        if self._pipes is not None:
            for pipe in self._pipes:
                pipe.end()
        if self._serving is not None:
            self._serving.cancel()

    async def _begun(self) -> tuple[_Pipe[bytes], _Pipe[Message]]:
        if self._pipes is None:
            async with self._beginning:
                if self._pipes is None:
                    await self._begin()
        assert self._pipes is not None
        return self._pipes

    async def _begin(self) -> None:
        node = await self._transport.opened()
        here = asyncio.get_running_loop()
        requests: _Pipe[bytes] = _Pipe(here, node.loop)
        replies: _Pipe[Message] = _Pipe(node.loop, here)
        self._pipes = requests, replies
        if self._cancelled:
            self.cancel()
            return
        method = cast(StreamMethod, node.methods[self._name])
        self._serving = node.submit(self._serve(method, requests, replies))

    async def _serve(self, method: StreamMethod, requests: _Pipe[bytes], replies: _Pipe[Message]) -> None:
        """On the node's loop: serve the stream to its end, and say what the end was."""
        try:
            await serve(method, _NodeStream(requests, replies))
        except RefusedError as error:
            self._failure = _failure(self._address, error)
        except ConnectionResetError:
            pass  # the client cancelled the stream: it knows
        except asyncio.CancelledError:
            text = "the node stopped during the call"
            self._failure = RpcFailure(self._address, grpc.StatusCode.CANCELLED, text, None)
            raise
        finally:
            requests.end()
            replies.end()


class NodeThread:
    """The thread of a sync client: the node's own, so that a call crosses no more threads than over a socket.

    `url`: see `open_node`, which is called here.
    """

    def __init__(self, url: str) -> None:
        self._node = open_node(url)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where the client's calls run."""
        return self._node.loop

    @property
    def ident(self) -> int | None:
        """The thread's identity."""
        return self._node.ident

    def stop(self, client: AsyncClient) -> None:
        """Close the client, and release the node. On the node's own thread it does not wait."""
        close = client.close()
        try:
            closing = self._node.submit(close)
        except RuntimeError:
            close.close()  # the node has stopped, and its loop is closed: the process ends
            return
        if threading.get_ident() == self.ident:
            closing.add_done_callback(lambda _: self._node.release())
            return
        wait((closing,))
        self._node.release()
