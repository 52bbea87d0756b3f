"""How clients reach a node of their own process: the handlers of its services, without a socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import grpc
from google.protobuf.message import Message

from raftstate.client.faults import RpcFailure
from raftstate.client.sync_client import WIND_UP_S, close_after_interrupted, on_event_loop
from raftstate.client.transport import Method, Request, Response, Stream
from raftstate.embedded.node import EmbeddedNode, open_node
from raftstate.errors import ClosedError, RaftstateError
from raftstate.rpc.methods import StreamMethod, UnaryMethod, call
from raftstate.rpc.status import RefusedError, status_text

if TYPE_CHECKING:
    from raftstate.client.async_client import AsyncClient

T = TypeVar("T")

PIPE_MESSAGES_MAX = 16
"""What waits in a stream each way; then whoever writes waits, as gRPC's flow control has it."""
ANSWER_PART = 0.9
"""The part of a call's time that the node may take: what it knows arrives before the caller's deadline."""


class EmbeddedTransport:
    """Implements `client.transport.Transport`. The node is opened at the first call, and released by `close`.

    `url`: see `open_node`.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._node: EmbeddedNode | None = None
        self._opening: asyncio.Future[EmbeddedNode] | None = None
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
            opening = self._opening
            if opening is None:
                # No task: what cancels all tasks must not leave an open node that nobody knows of.
                opening = asyncio.get_running_loop().run_in_executor(None, open_node, self._url)
                opening.add_done_callback(self._opened)
                self._opening = opening
            await asyncio.shield(opening)
            if self._node is None:
                raise ClosedError("the client was closed")
        self._node.check()
        return self._node

    def _opened(self, opening: asyncio.Future[EmbeddedNode]) -> None:
        self._opening = None
        if opening.cancelled() or opening.exception() is not None:
            return
        if self._closed:
            opening.result().release()
        else:
            self._node = opening.result()

    async def close(self) -> None:
        """See `client.transport.Transport.close`."""
        self._closed = True
        opening = self._opening
        if opening is not None:
            await asyncio.wait([opening])
            if not opening.cancelled() and opening.exception() is None:
                # `_opened` has released it.
                await asyncio.get_running_loop().run_in_executor(None, opening.result().wait_if_ending)
            return
        node, self._node = self._node, None
        if node is None:
            return
        node.release()
        if node.ending and asyncio.get_running_loop() is not node.loop:
            # Closed means that the directory can be opened by others.
            await asyncio.get_running_loop().run_in_executor(None, node.join)


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
        self._serving = node.submit(self._serve(node, method, requests, replies))

    async def _serve(
        self, node: EmbeddedNode, method: StreamMethod, requests: _Pipe[bytes], replies: _Pipe[Message]
    ) -> None:
        """On the node's loop: serve the stream to its end, and say what the end was."""
        try:
            await node.serve_stream(method, _NodeStream(requests, replies))
        except RefusedError as error:
            self._failure = _failure(self._address, error)
        except ClosedError as error:
            self._failure = RpcFailure(self._address, grpc.StatusCode.UNAVAILABLE, error.message, None)
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
        self._calls: set[Future[Any]] = set()

    @property
    def ident(self) -> int | None:
        """The thread's identity."""
        return self._node.ident

    def submit(self, call: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a call of the client."""
        future = self._node.submit(call)
        self._calls.add(future)
        future.add_done_callback(self._calls.discard)
        return future

    def stop(self, client: AsyncClient) -> None:
        """Close the client, and release the node. On the thread of an event loop it does not wait."""
        try:
            closing = self._node.submit(self._wind_up(client))
        except RaftstateError:
            self._node.release()  # its loop has ended: the process does, or is a forked child
            return
        if on_event_loop():
            closing.add_done_callback(lambda _: self._node.release())
        else:
            wait((closing,))
            self._node.release()

    def abandon(self, client: AsyncClient) -> None:
        """Have the client closed, and the node released, by the node's loop. Waits for nothing."""
        node = self._node

        async def let_go() -> None:
            try:
                await self._wind_up(client)
            finally:
                node.release()

        with contextlib.suppress(RuntimeError):  # its loop is closed: the process ends
            node.loop.call_soon_threadsafe(lambda: node.keep(let_go()))

    async def _wind_up(self, client: AsyncClient) -> None:
        await close_after_interrupted(client)
        calls = [asyncio.wrap_future(call) for call in list(self._calls)]
        if calls:
            # Each learns from its closed transport that it is over.
            await asyncio.wait(calls, timeout=WIND_UP_S)
