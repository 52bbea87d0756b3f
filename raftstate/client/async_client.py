"""The client: every call, written once, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import grpc

from raftstate.client import fork, limits
from raftstate.client.channels import Channels
from raftstate.client.faults import RpcFailure
from raftstate.client.leader import LeaderTracker
from raftstate.client.ledger import Write
from raftstate.client.limits import BytesLike, Key
from raftstate.client.pipeline import Pipeline
from raftstate.client.reads import read
from raftstate.client.results import key_value, node_status, range_result
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
    RaftstateError,
    WrongClusterError,
)
from raftstate.pb.v1 import cluster_pb2, cluster_pb2_grpc, common_pb2, kv_pb2

TIMEOUT_S_DEFAULT = 5.0
MAX_LAG_MS_DEFAULT = 50

_CONSISTENCIES = {
    "linearizable": common_pb2.CONSISTENCY_LINEARIZABLE,
    "bounded": common_pb2.CONSISTENCY_BOUNDED,
    "local": common_pb2.CONSISTENCY_LOCAL,
}


def connect_async(url: str | None = None, *, timeout: float = TIMEOUT_S_DEFAULT) -> AsyncClient:
    """Return a client of the cluster at `url`. Nothing is sent before the first call.

    Args:
        url: `[raftstate://]host:port[,host:port...]`; None: the environment variable RAFTSTATE_URL, else
            127.0.0.1:7001,127.0.0.1:7002,127.0.0.1:7003. One node is enough, the others are needed when it is down.
        timeout: the default of all calls, in seconds.

    Raises:
        ConfigError: the URL is not of this form.
        InvalidArgumentError: the timeout is not a number above 0.
    """
    return AsyncClient(endpoints_of(url), timeout=timeout)


class AsyncClient:
    """A client for one event loop: the one of its first call. Use it as `async with`, or call `close`.

    Every call takes `timeout` in seconds (None: the client's) and is safe to cancel. All raise `RaftstateError` subclasses: `InvalidArgumentError`
    before anything is sent; `NoLeaderError`, `DeadlineError` and what the cluster refuses when certainly nothing was done; `IndefiniteError`
    when a write was sent and its outcome can't be known; `ClosedError` after `close`.

    Writes go through a session, so that each is applied exactly once however often it is sent. Those that run at the same time share batches, and
    may be applied in any order: await one before the other where order matters. A write cancelled may or may not have been applied,
    and will not be after a later write of this client.

    In a forked child the client begins anew, with a session of its own.
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
        """End the session and the connections. Calls that still wait raise `ClosedError`, or `IndefiniteError` for writes that were sent."""
        self._closed = True
        links, self._links = self._links, None
        if links is not None:
            await links.close()

    # ---- writes

    async def put(
        self, key: Key, value: BytesLike, *, prev_kv: bool = False, timeout: float | None = None
    ) -> PutResult:
        """Store `value` (bytes-like, at most 8 MiB) under `key` (str or bytes, 1 to 480 bytes). With `prev_kv`, return the pair as it was before."""
        return await self._write(
            limits.encode_key(key), limits.encode_value(value), prev_kv, timeout, is_delete=False
        )

    async def put_many(
        self, items: Iterable[tuple[Key, BytesLike]], *, timeout: float | None = None
    ) -> list[PutResult]:
        """Store many pairs at once, as fast as the cluster takes them; return their results in the order given.

        Not a transaction: each is a write of its own, in any order, and has `timeout` for itself. Nothing is sent when one argument is wrong.
        All are waited for; then the first error is raised, an `IndefiniteError` before others.
        """
        pairs = [(limits.encode_key(key), limits.encode_value(value)) for key, value in items]
        pipeline = self._connected().pipeline
        writes = [self._submit(key, value, False, timeout, is_delete=False) for key, value in pairs]
        try:
            outcomes = await asyncio.gather(*(write.future for write in writes), return_exceptions=True)
        except asyncio.CancelledError:
            for write in writes:
                pipeline.give_up(write)
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
        """Delete `key`; with `range_end` all keys of [key, range_end); with `prefix` all keys that begin with `key` ("": every key).

        At most 100,000 keys at once. With `prev_kv`, return the pairs as they were.
        """
        start, end = _interval_to_delete(key, range_end, prefix)
        return await self._write(start, end, prev_kv, timeout, is_delete=True)

    # ---- reads

    async def get(
        self,
        key: Key,
        *,
        consistency: Consistency = "linearizable",
        max_lag_ms: int = MAX_LAG_MS_DEFAULT,
        timeout: float | None = None,
    ) -> KeyValue | None:
        """Return the pair of `key`, or None when there is none.

        consistency: "linearizable" includes every write acknowledged before the call; "bounded" is no older than `max_lag_ms`; "local" is
        whatever the asked node has applied.
        """
        request = kv_pb2.GetRequest(key=limits.encode_key(key), **_freshness(consistency, max_lag_ms))
        reply: kv_pb2.GetResponse = await self._read("Get", request, timeout)
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
        """Return the pairs of [start, end) in the order of their keys, or those under `prefix`; None leaves an end open.

        At most `limit` pairs, and no more than fit a reply: `more` says whether there are others. With `keys_only` the values are empty, with
        `count_only` no pairs are returned. `consistency` and `max_lag_ms` as in `get`.
        """
        first, range_end = _interval_to_read(start, end, prefix)
        request = kv_pb2.RangeRequest(
            key=first,
            range_end=range_end,
            limit=0 if limit is None else limits.check_count(limit, "limit", 1, limits.COUNT_MAX),
            keys_only=keys_only,
            count_only=count_only,
            **_freshness(consistency, max_lag_ms),
        )
        return range_result(await self._read("Range", request, timeout))

    # ---- the cluster

    async def status(
        self, endpoint: str | None = None, *, timeout: float | None = None
    ) -> list[NodeStatus]:
        """Return what each node says of itself, or the one at `endpoint` (host:port): those of the URL first, then those that they name.

        A node that does not answer is in the list with its `error`. Raises `NoLeaderError` when none does.
        """
        tracker = self._connected().tracker
        timeout_s = self._timeout_s(timeout)
        endpoints = self.endpoints if endpoint is None else endpoints_of(endpoint)
        found = list(await asyncio.gather(*(_ask(tracker, each, timeout_s) for each in endpoints)))
        if endpoint is None:
            known = {*endpoints, *(member.client_address for node in found for member in node.members if member.id in {each.node_id for each in found})}
            named = dict.fromkeys(
                member.client_address for node in found for member in node.members if member.client_address
            )
            others = [address for address in named if address not in known]
            found += await asyncio.gather(*(_ask(tracker, each, timeout_s) for each in others))
        if all(node.error for node in found):
            raise tracker.no_leader(timeout_s, "no node answered")
        return found

    async def transfer_leader(self, target: int | str | None = None, *, timeout: float | None = None) -> int:
        """Hand leadership to another voter and return the id of the node that leads then.

        target: its id or its name; None: the most up-to-date one. Raises `InvalidArgumentError` for a name that no member has.
        """
        links = self._connected()
        timeout_s = self._timeout_s(timeout)
        deadline = asyncio.get_running_loop().time() + timeout_s
        address = await links.tracker.find(deadline, timeout_s)
        left_s = deadline - asyncio.get_running_loop().time()
        try:
            target_id = target if isinstance(target, int) else await _member_id(links.tracker, address, target, left_s)
            reply: cluster_pb2.TransferLeaderResponse = await links.channels.unary(
                address,
                cluster_pb2_grpc.ClusterStub,
                "TransferLeader",
                cluster_pb2.TransferLeaderRequest(target_id=target_id),
                left_s,
            )
        except RpcFailure as failure:
            links.tracker.forget(address)
            raise failure.as_error(write=True) from failure
        links.tracker.observe(reply.header)
        return reply.leader_id

    # ---- inside

    async def _write(
        self, key: bytes, tail: bytes, prev_kv: bool, timeout: float | None, *, is_delete: bool
    ) -> Any:
        write = self._submit(key, tail, prev_kv, timeout, is_delete=is_delete)
        try:
            return await write.future
        except asyncio.CancelledError:
            self._connected().pipeline.give_up(write)
            raise
