"""Nodes that serve watches of one history, without sockets: a client's transport with faults on demand.

Every node of a `FakeWatches` has applied the history up to a revision of its own: `write` moves all that are
not `lagging`. What a node has to say waits in its streams until the client reads it; there a test can cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import grpc

from raftstate.client.faults import RpcFailure
from raftstate.client.leader import LeaderTracker
from raftstate.client.limits import ALL_KEYS
from raftstate.client.methods import STATUS, WATCH
from raftstate.client.transport import Method
from raftstate.client.watch import AsyncWatch, watch_request
from raftstate.client.watch_stream import Watcher
from raftstate.errors import ClosedError
from raftstate.pb.v1 import cluster_pb2, common_pb2, watch_pb2

CLUSTER_ID = 0xC1
MESSAGES_AHEAD = 8
"""So many messages fit a stream before its client reads."""


def put(key: bytes, revision: int, value: bytes = b"", prev: bytes | None = None) -> watch_pb2.Event:
    kv = common_pb2.KeyValue(key=key, value=value, create_revision=revision, mod_revision=revision, version=1)
    event = watch_pb2.Event(kv=kv)
    if prev is not None:
        event.prev_kv.key = key
        event.prev_kv.value = prev
    return event


def deletion(key: bytes, revision: int) -> watch_pb2.Event:
    kv = common_pb2.KeyValue(key=key, mod_revision=revision)
    return watch_pb2.Event(kind=watch_pb2.Event.KIND_DELETE, kv=kv)


def wanted(create: watch_pb2.WatchCreate, event: watch_pb2.Event) -> bool:
    key, end = event.kv.key, create.range_end
    inside = key == create.key if not end else create.key <= key and (end == ALL_KEYS or key < end)
    return inside and not (create.no_delete if event.kind else create.no_put)


def unavailable(address: str, text: str = "the node went away") -> RpcFailure:
    return RpcFailure(address, grpc.StatusCode.UNAVAILABLE, text, None)


@dataclass
class FakeWatches:
    """A `transport.Transport` to `size` nodes, named n1:1, n2:1, ...

    `portion`: so many events stand in one message at most.
    """

    size: int = 3
    portion: int = 1_000
    cluster_id: int = CLUSTER_ID
    history: list[watch_pb2.Event] = field(default_factory=list)
    revision: int = 1
    compacted: int = 0
    closed: bool = False
    nodes: list[FakeNode] = field(default_factory=list)
    mutex: Any = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.nodes = [FakeNode(self, f"n{number + 1}:1") for number in range(self.size)]
        self.tracker = LeaderTracker(tuple(node.address for node in self.nodes), self)
        self.tracker._home = self.nodes[0].address
        self.watcher: Watcher | None = None

    # ---- the client's side

    def watch(self, key: str | None = None, timeout_s: float = 5.0, **options: Any) -> AsyncWatch:
        names = ("range_end", "prefix", "start_revision", "kinds")
        rest = [options.pop(name, None) for name in names]
        request = watch_request(key, rest[0], rest[1], rest[2], options.pop("prev_kv", False), rest[3])
        assert not options
        return AsyncWatch(self.connect, request, timeout_s)

    def connect(self) -> Watcher:
        if self.watcher is None:
            self.watcher = Watcher(self, self.tracker)
        return self.watcher

    async def close(self) -> None:
        self.closed = True
        if self.watcher is not None:
            await self.watcher.close()

    async def unary(self, address: str, method: Method[Any, Any], request: Any, timeout_s: float) -> Any:
        assert method is STATUS
        node = self.node(address)
        node.asked += 1
        await asyncio.sleep(0)
        if not node.answers:
            raise unavailable(address, "no answer")
        return cluster_pb2.StatusResponse(
            header=node.header(), role=cluster_pb2.ROLE_FOLLOWER, leader_id=node.leader_id
        )

    def stream(self, address: str, method: Method[Any, Any]) -> FakeStream:
        assert method is WATCH
        if self.closed:
            raise ClosedError("the client was closed")
        stream = FakeStream(self.node(address))
        stream.node.streams.append(stream)
        return stream

    # ---- the nodes' side

    def node(self, address: str) -> FakeNode:
        return next(node for node in self.nodes if node.address == address)

    @property
    def serving(self) -> FakeNode | None:
        """The node that has a stream of the client now."""
        return next((node for node in self.nodes if node.stream is not None), None)

    def write(self, *events: tuple[bytes, bytes | None]) -> int:
        """Make one revision of puts, and deletes (value None), on all nodes that don't lag; return it."""
        self.revision += 1
        for key, value in events:
            event = deletion(key, self.revision) if value is None else put(key, self.revision, value)
            self.history.append(event)
        self.apply()
        return self.revision

    def apply(self) -> None:
        """Have all nodes that don't lag apply the history."""
        for node in self.nodes:
            if not node.lagging:
                node.apply(self.revision)


class FakeNode:
    """`answers`: its status call does; `down`: its streams break at once; `silent`: they say nothing."""

    def __init__(self, cluster: FakeWatches, address: str) -> None:
        self.cluster = cluster
        self.address = address
        self.applied = cluster.revision
        self.lagging = False
        self.answers = True
        self.down = False
        self.silent = False
        self.leader_id = 1
        self.asked = 0
        self.refusals: deque[common_pb2.Error] = deque()
        """The next creations meet them."""
        self.streams: list[FakeStream] = []

    @property
    def stream(self) -> FakeStream | None:
        """The last stream, unless it has ended."""
        return self.streams[-1] if self.streams and not self.streams[-1].ended else None

    def apply(self, revision: int) -> None:
        self.applied = revision
        if self.stream is not None:
            self.stream.pump()

    def header(self) -> common_pb2.ResponseHeader:
        number = self.cluster.nodes.index(self) + 1
        return common_pb2.ResponseHeader(
            cluster_id=self.cluster.cluster_id, node_id=number, revision=self.applied, term=1
        )


class FakeWatch:
    def __init__(self, create: watch_pb2.WatchCreate, position: int) -> None:
        self.create = create
        self.position = position
        """In the history."""


class FakeStream:
    """Implements `transport.Stream`. `requests`: all that the client wrote."""

    def __init__(self, node: FakeNode) -> None:
        self.node = node
        self.cluster = node.cluster
        self.requests: list[watch_pb2.WatchRequest] = []
        self.watches: dict[int, FakeWatch] = {}
        self.ended = False
        self.cancelled = False
        self._waiting: deque[watch_pb2.WatchResponse] = deque()
        self._end: RpcFailure | None = None
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        if node.down:
            self.break_off()

    # ---- the client's side

    async def write(self, message: watch_pb2.WatchRequest) -> None:
        await asyncio.sleep(0)
        if self.ended:
            raise self._end or unavailable(self.node.address)
        self.requests.append(message)
        if self.node.silent:
            return
        if message.HasField("create"):
            self._create(message.create)
        elif self.watches.pop(message.cancel.watch_id, None) is not None:
            self.say(canceled=[watch_pb2.WatchCanceled(watch_id=message.cancel.watch_id)])

    async def read(self) -> watch_pb2.WatchResponse | None:
        self.pump()
        while not self._waiting:
            if self.ended:
                if self._end is not None:
                    raise self._end
                return None
            self._news.clear()
            await self._news.wait()
        return self._waiting.popleft()

    def cancel(self) -> None:
        self.cancelled = self.ended = True
        self._notify()

    # ---- the node's side

    def say(self, **fields: Any) -> None:
        self._waiting.append(watch_pb2.WatchResponse(header=self.node.header(), **fields))
        self._notify()

    def end(self, failure: RpcFailure | None = None) -> None:
        """End after what waits was read: in good order, or not."""
        self.ended = True
        self._end = failure
        self._notify()

    def break_off(self, keep: int = 0) -> None:
        """Break; of what waits, only the first `keep` messages still arrive."""
        self._waiting = deque(list(self._waiting)[:keep])
        self.end(unavailable(self.node.address))

    def _notify(self) -> None:
        # Who writes may do so on another thread than the client's.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._news.set)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def creates(self) -> list[watch_pb2.WatchCreate]:
        return [request.create for request in self.requests if request.HasField("create")]

    def cancels(self) -> list[int]:
        return [request.cancel.watch_id for request in self.requests if request.HasField("cancel")]

    def refuse(self, watch_id: int, error: common_pb2.Error, compacted: int = 0) -> None:
        self.watches.pop(watch_id, None)
        self.say(
            canceled=[watch_pb2.WatchCanceled(watch_id=watch_id, error=error, compacted_revision=compacted)]
        )

    def progress(self) -> None:
        """Say of every watch that is up to date that it is."""
        self.pump()
        history = self.cluster.history
        done = [
            watch_id
            for watch_id, watch in self.watches.items()
            if watch.position == len(history) or history[watch.position].kv.mod_revision > self.node.applied
        ]
        self.say(progress=done)

    def _create(self, create: watch_pb2.WatchCreate) -> None:
        assert create.watch_id not in self.watches
        if self.node.refusals:
            self.refuse(create.watch_id, self.node.refusals.popleft())
            return
        start = create.start_revision or self.node.applied + 1
        if start < self.cluster.compacted:
            error = refused(common_pb2.ERROR_CODE_OUT_OF_RANGE, f"revision {start} is compacted")
            self.refuse(create.watch_id, error, self.cluster.compacted)
            return
        self.say(created=[watch_pb2.WatchCreated(watch_id=create.watch_id, start_revision=start)])
        position = bisect_left(self.cluster.history, start, key=lambda event: event.kv.mod_revision)
        self.watches[create.watch_id] = FakeWatch(create, position)
        self.pump()

    def pump(self) -> None:
        """Send what is applied: at most `portion` events a message, and no more than fit the stream."""
        with self.cluster.mutex:
            self._pump()

    def _pump(self) -> None:
        history = self.cluster.history
        for watch_id, watch in self.watches.items():
            found: list[watch_pb2.Event] = []
            while watch.position < len(history) and len(found) < MESSAGES_AHEAD * self.cluster.portion:
                if len(self._waiting) >= MESSAGES_AHEAD or self.ended:
                    return
                event = history[watch.position]
                if event.kv.mod_revision > self.node.applied:
                    break
                watch.position += 1
                if event.kv.mod_revision >= watch.create.start_revision and wanted(watch.create, event):
                    found.append(event)
            portion = self.cluster.portion
            for start in range(0, len(found), portion):
                events = found[start : start + portion]
                self.say(events=[watch_pb2.WatchEvents(watch_ids=[watch_id], events=events)])


def refused(code: int, message: str = "refused on demand") -> common_pb2.Error:
    return common_pb2.Error(code=code, outcome=common_pb2.OUTCOME_NOT_APPLIED, message=message)
