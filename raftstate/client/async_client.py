"""The client: every call, written once, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from raftstate.client import fork, limits, requests
from raftstate.client.channels import Channels
from raftstate.client.faults import RpcFailure
from raftstate.client.leader import LeaderTracker
from raftstate.client.ledger import Write
from raftstate.client.limits import BytesLike, Key
from raftstate.client.methods import GET, RANGE, TRANSFER_LEADER
from raftstate.client.pipeline import Pipeline
from raftstate.client.reads import ReadReply, ReadRequest, read
from raftstate.client.results import key_value, node_status, range_result
from raftstate.client.transport import Method, Transport
from raftstate.client.types import (
    Consistency,
    DeleteResult,
    KeyValue,
    NodeStatus,
    PutResult,
    RangeResult,
)
from raftstate.client.url import endpoints_of
from raftstate.errors import (
    ClosedError,
    FailedPreconditionError,
    IndefiniteError,
    InvalidArgumentError,
    NoLeaderError,
)
from raftstate.pb.v1 import cluster_pb2

TIMEOUT_S_DEFAULT = 5.0
"""Several elections: a change of leader in the middle of a call should not fail it."""
MAX_LAG_MS_DEFAULT = 50
"""A few heartbeats: a healthy follower is never further behind."""

STATUS_S_MAX = 2.0
"""Whoever waits for the list can't tell a node that takes longer from a dead one anyway."""

if TYPE_CHECKING:
    from raftstate.state import AsyncWorkflow


def connect_async(url: str | None = None, *, timeout: float = TIMEOUT_S_DEFAULT) -> AsyncClient:
    """Return a client of the cluster at `url`. Nothing is sent before the first call.

    Args:
        url: `[raftstate://]host:port[,host:port...]`; None: the environment variable RAFTSTATE_URL, else
            127.0.0.1:7001,127.0.0.1:7002,127.0.0.1:7003. One node is enough, the others are needed when it is
            down.
        timeout: the default of all calls, in seconds.

    Raises:
        ConfigError: the URL is not of this form.
        InvalidArgumentError: the URL is no str, or the timeout is not above 0 and at most a day.
    """
    return AsyncClient(endpoints_of(url), timeout=timeout)


class AsyncClient:
    """A client for one event loop: the one of its first call. Use it as `async with`, or call `close`.

    Every call takes `timeout` in seconds (None: the client's) and is safe to cancel. All raise
    `RaftstateError` subclasses: `InvalidArgumentError` before anything is sent; `NoLeaderError`,
    `DeadlineError` and what the cluster refuses when certainly nothing was done; `IndefiniteError` when a
    write was sent and its outcome can't be known; `ClosedError` after `close`.

    Writes go through a session, so that each is applied exactly once however often it is sent. Those that run
    at the same time share batches, and may be applied in any order: await one before the other where order
    matters. A write cancelled may or may not have been applied, and will not be after a later write of this
    client.

    A forked child of a process that has made a call must not use it: calls raise `FailedPreconditionError`
    there.
    """

    def __init__(self, endpoints: tuple[str, ...], *, timeout: float = TIMEOUT_S_DEFAULT) -> None:
        self.endpoints = endpoints
        self.timeout_s = limits.check_timeout(timeout)
        self._links: _Links | None = None
        self._closed = False
        fork.begin_anew_in_child(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the session and the connections.

        Calls that still wait raise `ClosedError`, or `IndefiniteError` for writes that were sent.
        """
        self._closed = True
        links, self._links = self._links, None
        if links is not None:
            await links.close()

    # ---- writes

    async def put(
        self, key: Key, value: BytesLike, *, prev_kv: bool = False, timeout: float | None = None
    ) -> PutResult:
        """Store a value under a key.

        Args:
            key: 1 to 480 bytes; a str counts in UTF-8.
            value: bytes-like, at most 8 MiB.
            prev_kv: return the pair as it was before, too.
            timeout: in seconds; None: the client's.

        Returns:
            The revision that the write made, and the pair before if that was asked for and there was one.

        Raises:
            InvalidArgumentError: key, value or timeout is not within its limits; nothing was sent.
            NoLeaderError: no leader took the write in time; it was not applied.
            IndefiniteError: it was sent, and whether it was applied can't be known.
            ResourceExhaustedError: the cluster refused it for now; it was not applied.
            ClosedError, FailedPreconditionError: the client is closed, or belongs to another loop or process.
        """
        result: PutResult = await self._write(
            limits.encode_key(key), limits.encode_value(value), prev_kv, timeout, is_delete=False
        )
        return result

    async def put_many(
        self, items: Iterable[tuple[Key, BytesLike]], *, timeout: float | None = None
    ) -> list[PutResult]:
        """Store many pairs, as fast as the cluster takes them.

        Not a transaction: each is a write of its own, and they are applied in any order. All are waited for,
        also when one fails.

        Args:
            items: pairs of key and value, as `put` takes them.
            timeout: in seconds, for each write; None: the client's.

        Returns:
            The results, in the order of the items.

        Raises:
            InvalidArgumentError: one of the items is wrong; nothing was sent.
            RaftstateError: as `put`: the first error of all writes, an `IndefiniteError` before others. The
                other writes may have been applied.
        """
        pairs = limits.encode_items(items)
        timeout_s = self._timeout_s(timeout)
        links = self._connected()
        writes = [links.submit(key, value, False, timeout_s, False) for key, value in pairs]
        try:
            outcomes = await asyncio.gather(*(write.future for write in writes), return_exceptions=True)
        except asyncio.CancelledError:
            for write in writes:
                links.pipeline.give_up(write)
            raise
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        for error in sorted(errors, key=lambda each: not isinstance(each, IndefiniteError)):
            raise error
        return [outcome for outcome in outcomes if isinstance(outcome, PutResult)]

    async def delete(
        self,
        key: Key,
        *,
        range_end: Key | None = None,
        prefix: bool = False,
        prev_kv: bool = False,
        timeout: float | None = None,
    ) -> DeleteResult:
        """Delete a key, or all keys of an interval or with a prefix, in one step.

        Args:
            key: the key, the first one of an interval, or the prefix ("": every key).
            range_end: delete all keys of [key, range_end).
            prefix: delete all keys that begin with `key`.
            prev_kv: return the pairs as they were, too; at most 16 MiB of them.
            timeout: in seconds; None: the client's.

        Returns:
            How many keys were deleted, the revision after it, and the pairs if asked for.

        Raises:
            InvalidArgumentError: a key is not within its limits, or range_end and prefix were both given.
            ResourceExhaustedError: more than 100,000 keys or 16 MiB of pairs; nothing was deleted.
            RaftstateError: else as `put`.
        """
        start, end = requests.interval_to_delete(key, range_end, prefix)
        result: DeleteResult = await self._write(start, end, prev_kv, timeout, is_delete=True)
        return result

    # ---- reads

    async def get(
        self,
        key: Key,
        *,
        consistency: Consistency = "linearizable",
        max_lag_ms: int = MAX_LAG_MS_DEFAULT,
        timeout: float | None = None,
    ) -> KeyValue | None:
        """Return the pair under a key.

        Args:
            key: 1 to 480 bytes; a str counts in UTF-8.
            consistency: "linearizable" includes every write acknowledged before the call; "bounded" is no
                older than `max_lag_ms`; "local" is whatever the asked node has applied.
            max_lag_ms: for a bounded read, in milliseconds.
            timeout: in seconds; None: the client's.

        Returns:
            The pair, or None when there is none.

        Raises:
            InvalidArgumentError: an argument is not within its limits; nothing was sent.
            NoLeaderError: a linearizable read found no leader in time, or no node was reached.
            DeadlineError: no node answered in time, or none was fresh enough.
            DataLossError: the stored pair is damaged on that node; it was not served.
            ClosedError, FailedPreconditionError: the client is closed, or belongs to another loop or process.
        """
        request = requests.get_request(key, consistency, max_lag_ms)
        reply = await self._read(GET, request, timeout)
        return key_value(reply.kv) if reply.HasField("kv") else None

    async def range(
        self,
        start: Key | None = None,
        end: Key | None = None,
        *,
        prefix: Key | None = None,
        limit: int | None = None,
        keys_only: bool = False,
        count_only: bool = False,
        consistency: Consistency = "linearizable",
        max_lag_ms: int = MAX_LAG_MS_DEFAULT,
        timeout: float | None = None,
    ) -> RangeResult:
        """Return the pairs of an interval, or those under a prefix, in the order of their keys.

        Args:
            start: the first key; None: from the lowest.
            end: the first key no longer wanted; None: to the highest.
            prefix: all keys that begin with it, from `start` on if that is given, too; not beside `end`.
            limit: at most so many pairs; None: as many as fit a reply (10,000, or 3 MiB).
            keys_only: leave the values empty.
            count_only: count the keys, and return no pairs.
            consistency: as in `get`.
            max_lag_ms: as in `get`.
            timeout: in seconds; None: the client's.

        Returns:
            The pairs; its `more` says whether the interval holds others, its `count` how many in all, its
            `next_start` where the next page starts. All pages are read so, one linearizable read each:

                start = None
                while True:
                    page = await store.range(start, prefix="jobs/")
                    for pair in page:
                        ...
                    start = page.next_start
                    if start is None:
                        break

        Raises:
            InvalidArgumentError: an argument is not within its limits, or prefix was given beside end, or
                a start without that prefix; nothing was sent.
            RaftstateError: else as `get`.
        """
        interval = requests.interval_to_read(start, end, prefix)
        request = requests.range_request(interval, limit, keys_only, count_only, consistency, max_lag_ms)
        return range_result(await self._read(RANGE, request, timeout))

    # ---- the cluster

    async def status(self, endpoint: str | None = None, *, timeout: float | None = None) -> list[NodeStatus]:
        """Return what each node says of itself: those of the URL first, then those that they name.

        Args:
            endpoint: host:port of the one node to ask; None: all.
            timeout: in seconds; None: the client's. A node gets at most 2 s of it.

        Returns:
            One item for each node; that of a node that did not answer holds its `error` only.

        Raises:
            ConfigError: `endpoint` is not host:port.
            NoLeaderError: no node answered.
            WrongClusterError: a node belongs to another cluster than those that answered before.
            ClosedError, FailedPreconditionError: the client is closed, or belongs to another loop or process.
        """
        tracker = self._connected().tracker
        timeout_s = self._timeout_s(timeout)
        asked = self.endpoints if endpoint is None else endpoints_of(endpoint)
        found = await _statuses(tracker, asked, timeout_s)
        if endpoint is None:
            answered = {node.node_id for node in found}
            others = {
                member.client_address
                for node in found
                for member in node.members
                if member.client_address and member.id not in answered
            }
            found += await _statuses(tracker, sorted(others.difference(asked)), timeout_s)
        if all(node.error for node in found):
            raise _nobody_answered(found, min(timeout_s, STATUS_S_MAX))
        return found

    async def transfer_leader(self, target: int | str | None = None, *, timeout: float | None = None) -> int:
        """Hand leadership to another voter.

        Args:
            target: its id or its name; None: the most up-to-date one.
            timeout: in seconds; None: the client's.

        Returns:
            The id of the node that leads then.

        Raises:
            InvalidArgumentError: no voter has that id or name.
            NoLeaderError: no leader was found in time.
            FailedPreconditionError: the transfer was given up: the target did not catch up in time.
            IndefiniteError: the leader was asked, and its answer lost; `status` tells who leads.
            ClosedError: the client is closed.
        """
        links = self._connected()
        tracker = links.tracker
        timeout_s = self._timeout_s(timeout)
        deadline = links.loop.time() + timeout_s
        address = await tracker.find(deadline, timeout_s)
        request = cluster_pb2.TransferLeaderRequest()
        try:
            if target is not None:
                request.target_id = await _member_id(tracker, address, target, deadline - links.loop.time())
            reply = await links.transport.unary(
                address, TRANSFER_LEADER, request, deadline - links.loop.time()
            )
        except RpcFailure as failure:
            tracker.forget(address)
            raise failure.as_error(write=True) from failure
        tracker.observe(reply.header)
        return reply.leader_id

    # ---- state models

    def workflow(self, name: str) -> AsyncWorkflow:
        """Return a workflow: a named chain of checkpoints. Nothing is sent, and none need exist yet.

        Args:
            name: of the workflow; a str that is not empty.

        Returns:
            See `raftstate.state.AsyncWorkflow`.

        Raises:
            InvalidArgumentError: the name is empty, or no text.
        """
        # The models stand above the client; here is only the door to them.
        from raftstate.state import AsyncWorkflow

        return AsyncWorkflow(self, name)

    # ---- inside

    async def _write(
        self, key: bytes, tail: bytes, prev_kv: bool, timeout: float | None, *, is_delete: bool
    ) -> Any:
        links = self._connected()
        write = links.submit(key, tail, prev_kv, self._timeout_s(timeout), is_delete)
        try:
            return await write.future
        except asyncio.CancelledError:
            links.pipeline.give_up(write)
            raise

    async def _read(
        self, method: Method[ReadRequest, ReadReply], request: ReadRequest, timeout: float | None
    ) -> ReadReply:
        links = self._connected()
        return await read(links.transport, links.tracker, method, request, self._timeout_s(timeout))

    def _timeout_s(self, timeout: float | None) -> float:
        return self.timeout_s if timeout is None else limits.check_timeout(timeout)

    def _connected(self) -> _Links:
        """Return what this client has on the running loop.

        Raises `ClosedError`, `FailedPreconditionError`.
        """
        links = self._links
        loop = asyncio.get_running_loop()
        if links is not None and links.loop is loop:
            return links
        if self._closed:
            raise ClosedError("the client is closed; connect again")
        if links is not None:
            raise FailedPreconditionError(
                "this client belongs to another event loop, that of its first call; connect in each loop,"
                " or use raftstate.connect"
            )
        self._links = _Links(self.endpoints, loop)
        return self._links

    def _forget_parent(self) -> None:
        fork.kept.append(self._links)
        self._links = None


class _Links:
    """What a client has on one event loop: a transport, what it knows of the leader, the writes."""

    def __init__(self, endpoints: tuple[str, ...], loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.transport: Transport = Channels()
        self.tracker = LeaderTracker(endpoints, self.transport)
        self.pipeline = Pipeline(self.transport, self.tracker)

    def submit(self, key: bytes, tail: bytes, prev_kv: bool, timeout_s: float, is_delete: bool) -> Write:
        """Hand a write to the pipeline."""
        loop = self.loop
        write = Write(loop.create_future(), key, tail, is_delete, prev_kv, loop.time() + timeout_s, timeout_s)
        self.pipeline.submit(write)
        return write

    async def close(self) -> None:
        """Give everything up, in the order that lets a session be closed."""
        await self.pipeline.close()
        await self.transport.close()
        await self.tracker.close()


async def _statuses(tracker: LeaderTracker, endpoints: Iterable[str], timeout_s: float) -> list[NodeStatus]:
    """Ask nodes for their status, all at once. Raises `WrongClusterError`."""

    async def ask(endpoint: str) -> NodeStatus:
        try:
            return node_status(endpoint, await tracker.ask(endpoint, min(timeout_s, STATUS_S_MAX)))
        except RpcFailure as failure:
            return NodeStatus(endpoint=endpoint, error=failure.text)

    return list(await asyncio.gather(*map(ask, endpoints)))


def _nobody_answered(nodes: list[NodeStatus], waited_s: float) -> NoLeaderError:
    who = "the node" if len(nodes) == 1 else "no node"
    did = "did not answer" if len(nodes) == 1 else "answered"
    tried = ", ".join(f"{node.endpoint} ({node.error})" for node in nodes)
    return NoLeaderError(
        f"{who} {did} within {waited_s:g} s; tried {tried}. Check what runs there, and that these are client"
        " ports"
    )


async def _member_id(tracker: LeaderTracker, address: str, target: int | str, timeout_s: float) -> int:
    """Return the id of a member given by id or name. Raises `InvalidArgumentError`, `RpcFailure`."""
    if isinstance(target, int):
        return limits.check_count(target, "target", 1, limits.COUNT_MAX)
    status = await tracker.ask(address, timeout_s)
    for member in status.members:
        if member.name == target:
            return int(member.id)
    names = ", ".join(member.name for member in status.members)
    raise InvalidArgumentError(f"no member is named {target!r}; members are {names}", field="target")
