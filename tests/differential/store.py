"""What both stores have in common: requests over gRPC that are begun and then waited for, and watches."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import grpc

from tests.differential.operations import Event, Refusal, Reply, Request, Watch, WatchAnswer

REQUEST_TIMEOUT_S = 20.0
WATCH_TIMEOUT_S = 10.0
"""How long the last event of a watch may take: a second or two on a busy machine."""


class OpenWatch(Protocol):
    def collect(self, until: int) -> WatchAnswer:
        """End the watch once an event of the revision `until` has come, and return all that came."""
        ...

    def close(self) -> None: ...


class Ours(Protocol):
    """Our store, as the runner and the plants see it."""

    def begin(self, request: Request) -> Callable[[], Reply]:
        """Send a request without references; what is returned waits for its reply."""
        ...

    def watch(self, watch: Watch, start: int) -> OpenWatch:
        """Open a watch from `start` on, and wait until it stands. `watch.start` is not looked at."""
        ...


class Call(NamedTuple):
    """How a request is made: the method, its message, and what turns the answer into a reply."""

    method: Callable[..., Any]
    message: Any
    read: Callable[[Any], Reply]


def ask(call: Call) -> Reply:
    """Make a unary request and return its reply."""
    try:
        return call.read(call.method(call.message, timeout=REQUEST_TIMEOUT_S))
    except grpc.RpcError as error:
        return refused(error)


def refused(error: grpc.RpcError) -> Reply:
    """Return a failed call as a reply."""
    return Reply(None, Refusal(error.code().name, error.details() or ""))


class News(NamedTuple):
    """A message of a watch's stream. `ending`: as in WatchAnswer, once it has ended."""

    created: bool
    events: list[Event]
    ending: str = ""


class StreamWatch:
    """A watch that has a stream of its own.

    Args:
        method: the stream-stream method.
        create: the message that opens the watch.
        read: turns a message of the stream into news.
    """

    def __init__(self, method: Callable[..., Any], create: object, read: Callable[[Any], News]) -> None:
        self._closed = threading.Event()
        self._read = read
        self._call = method(self._requests(create))
        self._events: list[Event] = []
        self._ending = ""
        self._receive(lambda news: news.created)

    def collect(self, until: int) -> WatchAnswer:
        if not self._has(until):
            self._receive(lambda news: self._has(until))
        self.close()
        return WatchAnswer(self._events, self._ending or "finished")

    def close(self) -> None:
        self._closed.set()
        self._call.cancel()

    def _has(self, revision: int) -> bool:
        return bool(self._events) and self._events[-1].kv.mod_revision >= revision

    def _receive(self, enough: Callable[[News], bool]) -> None:
        """Take in messages up to one that is enough, or ends the watch."""
        if self._ending:
            return
        late = threading.Timer(WATCH_TIMEOUT_S, self._call.cancel)
        late.start()
        try:
            for message in self._call:
                news = self._read(message)
                self._events += news.events
                if news.ending:
                    self._ending = news.ending
                if news.ending or enough(news):
                    return
            self._ending = "the stream ended"
        except grpc.RpcError as error:
            is_late = error.code() is grpc.StatusCode.CANCELLED
            self._ending = "late" if is_late else f"{error.code().name}: {error.details()}"
        finally:
            late.cancel()

    def _requests(self, create: object) -> Iterator[object]:
        yield create
        # The stream ends with its requests.
        self._closed.wait()
