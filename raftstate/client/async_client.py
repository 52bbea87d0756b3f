"""The client: every call, written once, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from raftstate.client import cluster, fork, limits, requests
from raftstate.client.claim import TTL_S_DEFAULT
from raftstate.client.election import AsyncElection
from raftstate.client.lease import AsyncLease, check_lease
from raftstate.client.ledger import Write
from raftstate.client.limits import BytesLike, HasId, Key
from raftstate.client.links import Links
from raftstate.client.lock import AsyncLock
from raftstate.client.members import MemberCalls
from raftstate.client.methods import GET, LEASES, RANGE
from raftstate.client.operations import Compact, Delete, Erase, Operation, Put
from raftstate.client.reads import ReadReply, ReadRequest, read
from raftstate.client.results import key_value, lease_status, range_result
from raftstate.client.scan import AsyncScan
from raftstate.client.transport import Method
from raftstate.client.txn import AsyncTxn
from raftstate.client.types import (
    Consistency,
    DeleteResult,
    EraseResult,
    KeyValue,
    LeaseStatus,
    MemberErase,
    NodeStatus,
    PutResult,
    RangeResult,
    SortBy,
)
from raftstate.client.url import EMBEDDED, endpoints_of
from raftstate.client.watch import AsyncWatch, watch_request
from raftstate.client.watch_inbox import EventKind
from raftstate.errors import ClosedError, FailedPreconditionError, IndefiniteError, InvalidArgumentError
from raftstate.pb.v1 import kv_pb2, lease_pb2

T = TypeVar("T")
SessionRequest = TypeVar("SessionRequest", kv_pb2.GetRequest, kv_pb2.RangeRequest)

TIMEOUT_S_DEFAULT = 5.0
"""Several elections: a change of leader in the middle of a call should not fail it."""
PORTION = 2_000
"""Writes handed over before others get their turn on the loop, some 20 ms: a lease is renewed there, too."""
MAX_LAG_MS_DEFAULT = 50
"""A few heartbeats: a healthy follower is never further behind."""

if TYPE_CHECKING:
    from raftstate.state import AsyncWorkflow


def connect_async(url: str | None = None, *, timeout: float = TIMEOUT_S_DEFAULT) -> AsyncClient:
    """Return a client of the cluster at `url`. Nothing is sent before the first call.

    Args:
        url: `[raftstate://]host:port[,host:port...]`; None: the environment variable RAFTSTATE_URL, else
            127.0.0.1:7001,127.0.0.1:7002,127.0.0.1:7003. One node is enough, the others are needed when it is
            down. Or `embedded:DIR`: a node of its own within this process, see `raftstate.embedded`.
        timeout: the default of all calls, in seconds.

    Raises:
        ConfigError: the URL is not of this form.
        InvalidArgumentError: the URL is no str, or the timeout is not above 0 and at most a day.
    """
    return AsyncClient(endpoints_of(url), timeout=timeout)


class AsyncClient(MemberCalls):
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
        self._links: Links | None = None
        self._closed = False
        self._left: Links | None = None
        """What `close` closes, by a task of its own: `_closing`."""
        self._closing: asyncio.Task[None] | None = None
        fork.begin_anew_in_child(self)

    async def __aenter__(self) -> Self:
        if self._closed:
            raise ClosedError("the client is closed; connect again")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the session and the connections. Cancelled, it goes on by itself; another call waits for it.

        Calls that still wait raise `ClosedError`, or `IndefiniteError` for writes that were sent.
        """
        self._closed = True
        if self._links is not None:
            self._left, self._links = self._links, None
        if self._left is None:
            return
        closing = self._closing
        if closing is None or closing.cancelled():  # by what cancels all tasks, perhaps before it began
            closing = self._closing = asyncio.create_task(self._left.close(), name="raftstate-close")
        if not closing.done():
            await asyncio.wait([closing])
        if not closing.cancelled():
            closing.result()

    # ---- writes

    async def put(
        self,
        key: Key,
        value: BytesLike,
        *,
        lease: int | HasId = 0,
        prev_kv: bool = False,
        timeout: float | None = None,
    ) -> PutResult:
        """Store a value under a key.

        Args:
            key: 1 to 480 bytes; a str counts in UTF-8.
            value: bytes-like, at most 8 MiB.
            lease: attach the key to this lease, given by its handle or id, and to no other: it is deleted
                when the lease ends. 0 takes it off the one that it had.
            prev_kv: return the pair as it was before, too.
            timeout: in seconds; None: the client's.

        Returns:
            The revision that the write made, and the pair before if that was asked for and there was one.

        Raises:
            InvalidArgumentError: an argument is not within its limits; nothing was sent.
            LeaseNotFoundError: there is no such lease; it was not applied.
            NoLeaderError: no leader took the write in time; it was not applied.
            IndefiniteError: it was sent, and whether it was applied can't be known.
            ResourceExhaustedError: the cluster refused it for now; it was not applied.
            ClosedError, FailedPreconditionError: the client is closed, or belongs to another loop or process.
        """
        return await self._execute(Put(key, value, lease=lease, prev_kv=prev_kv), timeout)

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
        timeout_s = self._timeout_s(timeout)
        puts: list[Put] = []
        for key, value in limits.encode_items(items):
            puts.append(Put(key, value))
            if not len(puts) % PORTION:
                await asyncio.sleep(0)
        pipeline = self._connected().pipeline
        writes: list[Write] = []
        try:
            for put in puts:
                writes.append(pipeline.submit(put, timeout_s))
                if not len(writes) % PORTION:
                    await asyncio.sleep(0)
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
        """Delete a key, or all keys of an interval or with a prefix, in one step.

        Args:
            key: the key, the first one of an interval, or the prefix ("": every key).
            range_end: delete all keys of [key, range_end).
            prefix: delete all keys that begin with `key`.
            prev_kv: return the pairs as they were, too; at most 9 MiB of them.
            timeout: in seconds; None: the client's.

        Returns:
            How many keys were deleted, the revision after it, and the pairs if asked for.

        Raises:
            InvalidArgumentError: a key is not within its limits, or range_end and prefix were both given.
            ResourceExhaustedError: more than 100,000 keys or 9 MiB of pairs; nothing was deleted.
            RaftstateError: else as `put`.
        """
        operation = Delete(key, range_end=range_end, prefix=prefix, prev_kv=prev_kv)
        return await self._execute(operation, timeout)

    def txn(self) -> AsyncTxn:
        """Begin a transaction: compares, and what is done in one step if they hold, or else.

            done = await (
                store.txn()
                .when(raftstate.where("jobs/7").version == 0)
                .then(raftstate.Put("jobs/7", b"mine"))
                .otherwise(raftstate.Get("jobs/7"))
                .commit()
            )
            done.succeeded or done[0].value

        Nothing is sent before `commit`.
        """
        return AsyncTxn(self._execute)

    async def compact(self, revision: int, *, timeout: float | None = None) -> None:
        """Forget the history before a revision. Reads at it and after it go on as before.

        Args:
            revision: above that of the last compaction, and not in the future.
            timeout: in seconds; None: the client's.

        Raises:
            InvalidArgumentError: the revision is no whole number from 1 up; nothing was sent.
            OutOfRangeError: it is compacted already, or in the future.
            RaftstateError: else as `put`.
        """
        number = limits.check_count(revision, "revision", 1, limits.REVISION_MAX)
        await self._execute(Compact(number), timeout)

    async def erase(self, key: Key, *, timeout: float | None = None) -> EraseResult:
        """Delete a key together with its history, for good: from every file of every member.

        When this returns, no read and no watch finds the key or its past any more, and after it no answer to
        a write that held a pair of it can be asked for again. Then each member rewrites its files, which
        takes a while: see `erase_progress`. All other history up to there is forgotten, too, as by
        `compact`. What is not in the members' files is not reached: what clients hold, backups, and the disks
        of members that were removed.

        Args:
            key: one key; it need not be there (any more).
            timeout: in seconds; None: the client's.

        Returns:
            The revision to which the history is forgotten, whether the key was there, and the index that
            `erase_progress` is asked with.

        Raises:
            InvalidArgumentError: the key is not within its limits; nothing was sent.
            UnimplementedError: a member runs older software.
            RaftstateError: else as `put`.
        """
        erased = await self._execute(Erase(key), timeout)
        # Of the newest answer so far: that of this erase, or one after it.
        return EraseResult(erased.revision, erased.deleted, self._connected().tracker.applied_index)

    async def erase_progress(
        self, erased: EraseResult | int, *, timeout: float | None = None
    ) -> list[MemberErase]:
        """Return how far each member is with an erase, and all those before it.

        Args:
            erased: what `erase` returned, or the `index` in it.
            timeout: in seconds; None: the client's. A member gets at most 2 s of it.

        Raises:
            InvalidArgumentError: it is no such index.
            RaftstateError: else as `status`.
        """
        index = erased.index if isinstance(erased, EraseResult) else erased
        index = limits.check_count(index, "erased", 1, limits.REVISION_MAX)
        return cluster.erase_progress(await self.status(timeout=timeout), index)

    # ---- reads

    async def get(
        self,
        key: Key,
        *,
        revision: int | None = None,
        consistency: Consistency = "linearizable",
        max_lag_ms: int = MAX_LAG_MS_DEFAULT,
        timeout: float | None = None,
    ) -> KeyValue | None:
        """Return the pair under a key.

        Args:
            key: 1 to 480 bytes; a str counts in UTF-8.
            revision: read as of this revision; None: the latest.
            consistency: "linearizable" includes every write acknowledged before the call; "bounded" is no
                older than `max_lag_ms`; "local" is whatever the asked node has applied; "session" is any
                node's, but never older than what this client has read or written.
            max_lag_ms: for a bounded read, in milliseconds.
            timeout: in seconds; None: the client's.

        Returns:
            The pair, or None when there is none.

        Raises:
            InvalidArgumentError: an argument is not within its limits; nothing was sent.
            NoLeaderError: a linearizable read found no leader in time, or no node was reached.
            DeadlineError: no node answered in time, or none was fresh enough.
            OutOfRangeError: the revision is compacted, or in the future.
            DataLossError: the stored pair is damaged on that node; it was not served.
            ClosedError, FailedPreconditionError: the client is closed, or belongs to another loop or process.
        """
        request = requests.get_request(key, revision, consistency, max_lag_ms)
        reply = await self._read(GET, self._in_session(request, consistency), timeout)
        return key_value(reply.kv) if reply.HasField("kv") else None

    async def range(
        self,
        start: Key | None = None,
        end: Key | None = None,
        *,
        prefix: Key | None = None,
        limit: int | None = None,
        revision: int | None = None,
        sort: SortBy | None = None,
        descending: bool = False,
        keys_only: bool = False,
        count_only: bool = False,
        consistency: Consistency = "linearizable",
        max_lag_ms: int = MAX_LAG_MS_DEFAULT,
        timeout: float | None = None,
    ) -> RangeResult:
        """Return the pairs of an interval, or those under a prefix.

        Args:
            start: the first key; None: from the lowest.
            end: the first key no longer wanted; None: to the highest.
            prefix: all keys that begin with it, from `start` on if that is given, too; not beside `end`.
            limit: at most so many pairs; None: as many as fit a reply (10,000, or 3 MiB).
            revision: read as of this revision; None: the latest.
            sort: order the pairs by "key", "version", "create" or "mod" revision, or "value", before the
                limit; None: by key. A range sorted otherwise than by ascending keys may hold 100,000 keys.
            descending: the largest first.
            keys_only: leave the values empty.
            count_only: count the keys, and return no pairs.
            consistency: as in `get`.
            max_lag_ms: as in `get`.
            timeout: in seconds; None: the client's.

        Returns:
            The pairs; its `more` says whether the interval holds others, its `count` how many in all, its
            `next_start` where the next page starts; `scan` reads all pages, as of one revision.

        Raises:
            InvalidArgumentError: an argument is not within its limits, or prefix was given beside end, or
                a start without that prefix; nothing was sent.
            ResourceExhaustedError: a range to be sorted holds too many keys.
            RaftstateError: else as `get`.
        """
        interval = requests.interval_to_read(start, end, prefix)
        query = requests.range_query(interval, limit, revision, sort, descending, keys_only, count_only)
        request = requests.range_request(query, consistency, max_lag_ms)
        reply = await self._read(RANGE, self._in_session(request, consistency), timeout)
        return range_result(reply, by_key=query.by_key)

    def scan(
        self,
        start: Key | None = None,
        end: Key | None = None,
        *,
        prefix: Key | None = None,
        revision: int | None = None,
        keys_only: bool = False,
        page_size: int = limits.PAGE_PAIRS_MAX,
        timeout: float | None = None,
    ) -> AsyncScan:
        """Return all pairs of an interval, or those under a prefix, as of one revision, however many.

            async for pair in store.scan(prefix="jobs/"):
                ...

        Args:
            start: the first key; None: from the lowest.
            end: the first key no longer wanted; None: to the highest.
            prefix: all keys that begin with it, from `start` on if that is given, too; not beside `end`.
            revision: read as of this revision; None: the latest when the first page is read, with every write
                acknowledged before.
            keys_only: leave the values empty.
            page_size: how many pairs are asked for at once, 1 to 10,000. A reply also ends at 3 MiB.
            timeout: in seconds, for each page; None: the client's.

        Returns:
            An async iterator of the pairs, in order of their keys. Its `revision` is that of all of them. It
            raises what `range` does; `OutOfRangeError` also when the revision is compacted on the way.

        Raises:
            InvalidArgumentError: an argument is not within its limits, or prefix was given beside end, or
                a start without that prefix.
        """
        interval = requests.interval_to_read(start, end, prefix)
        limit = limits.check_count(page_size, "page_size", 1, limits.PAGE_PAIRS_MAX)
        query = requests.range_query(interval, limit, revision, None, False, keys_only, False)
        request = requests.range_request(query, "linearizable", MAX_LAG_MS_DEFAULT)
        request.skip_count = True
        return AsyncScan(self, request, self._timeout_s(timeout))

    # ---- leases

    def lease(self, ttl: float | None = None, *, id: int | None = None) -> AsyncLease:
        """Return a lease: keys attached to it are deleted when it is not renewed for its time to live.

            async with store.lease(10) as lease:
                await store.put("workers/7", b"here", lease=lease)

        Nothing is sent before it is entered, or `grant` is called. Entered, it is granted and kept alive in
        the background; it is revoked when it is left.

        Args:
            ttl: its time to live, in seconds, from 1 to 86,400; None: the lease `id` exists, use that.
            id: its id; None: the cluster chooses one.

        Returns:
            See `raftstate.AsyncLease`.

        Raises:
            InvalidArgumentError: an argument is not within its limits, or none was given.
        """
        return AsyncLease(self, *check_lease(ttl, id))

    async def leases(self, *, timeout: float | None = None) -> list[LeaseStatus]:
        """Return all leases, in order of their ids, without their keys.

        Args:
            timeout: in seconds, for each 10,000 of them; None: the client's.

        Raises:
            RaftstateError: as `get`.
        """
        found: list[LeaseStatus] = []
        request = lease_pb2.LeaseListRequest()
        while True:
            reply = await self._read(LEASES, request, timeout)
            found += map(lease_status, reply.leases)
            if not reply.more or not reply.leases:
                return found
            request.above = found[-1].id

    # ---- watches, locks, elections

    def watch(
        self,
        key: Key | None = None,
        *,
        range_end: Key | None = None,
        prefix: Key | None = None,
        start_revision: int | None = None,
        prev_kv: bool = False,
        kinds: EventKind | None = None,
    ) -> AsyncWatch:
        """Return a watch: the changes to a key, an interval or a prefix, each once, in order.

            async with store.watch(prefix="jobs/") as watch:
                async for event in watch:
                    ...

        Nothing is sent before it is entered, or iterated over. Entered, it waits until a node has created it.

        Args:
            key: the key, or the first one of an interval; None: from the lowest.
            range_end: all keys of [key, range_end); None: `key` alone, or every key when that is None, too.
            prefix: all keys that begin with it ("": every key); not beside the others.
            start_revision: the first revision whose changes are wanted; one in the future is waited for.
                None: those made after the watch was created.
            prev_kv: each event also holds the pair as it was before.
            kinds: "put" or "delete": no others; None: both.

        Returns:
            See `raftstate.AsyncWatch`.

        Raises:
            InvalidArgumentError: an argument is not within its limits, or they don't go together.
        """
        request = watch_request(key, range_end, prefix, start_revision, prev_kv, kinds)
        return AsyncWatch(lambda: self._connected().watcher, request, self.timeout_s)

    def lock(self, name: Key, *, ttl: float = TTL_S_DEFAULT, timeout: float | None = None) -> AsyncLock:
        """Return a lock, which one holder at a time has. Nothing is sent before it is acquired, or entered.

        Args:
            name: of the lock; its keys are `name/` and the id of a lease. An election of that name is the
                same line.
            ttl: how long it outlives a holder that died or was cut off, in seconds, from 1 to 86,400.
            timeout: how long to wait for it, in seconds; None: as long as it takes.

        Returns:
            See `raftstate.AsyncLock`.

        Raises:
            InvalidArgumentError: an argument is not within its limits.
        """
        return AsyncLock(self, name, ttl, timeout)

    def election(self, name: Key, *, ttl: float = TTL_S_DEFAULT) -> AsyncElection:
        """Return an election, which one candidate at a time has won.

        Args:
            name: of the election; its keys are as those of a lock.
            ttl: how long a leader that died or was cut off leads on, in seconds, from 1 to 86,400.

        Returns:
            See `raftstate.AsyncElection`.

        Raises:
            InvalidArgumentError: an argument is not within its limits.
        """
        return AsyncElection(self, name, ttl)

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
            InvalidArgumentError: an embedded store was asked for another endpoint.
            NoLeaderError: no node answered.
            WrongClusterError: a node belongs to another cluster than those that answered before.
            ClosedError, FailedPreconditionError: the client is closed, or belongs to another loop or process.
        """
        timeout_s = self._timeout_s(timeout)
        asked = self.endpoints if endpoint is None else endpoints_of(endpoint)
        if (
            asked[0].startswith(EMBEDDED) or self.endpoints[0].startswith(EMBEDDED)
        ) and asked != self.endpoints:
            raise InvalidArgumentError(
                f"endpoint {endpoint!r} is none that this client can ask: an embedded store is a node alone;"
                " give no endpoint",
                field="endpoint",
            )
        tracker = self._connected().tracker
        return await cluster.statuses(tracker, asked, timeout_s, with_others=endpoint is None)

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
        return await cluster.transfer_leader(self._connected(), target, self._timeout_s(timeout))

    async def defragment(self, target: int | str, *, timeout: float | None = None) -> int:
        """Have a member rewrite the files of its state without the space that nothing uses any more.

        It goes on serving meanwhile. This returns when it has begun; `status` says how far it is.

        Args:
            target: the member's id or name.
            timeout: in seconds; None: the client's.

        Returns:
            The size of its state as it begins, in bytes.

        Raises:
            InvalidArgumentError: no member has that id or name.
            FailedPreconditionError: its files are being rewritten already.
            ResourceExhaustedError: its disk has no room for a second copy.
            NoLeaderError: the member, or all of them, did not answer.
            RaftstateError: else as `status`.
        """
        links = self._connected()
        return await cluster.defragment(links, self.endpoints, target, self._timeout_s(timeout))

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

    async def _execute(self, operation: Operation[T], timeout: float | None, *, first: bool = False) -> T:
        """Have a write done, `first`: before those that wait already, and return its result."""
        timeout_s = self._timeout_s(timeout)
        pipeline = self._connected().pipeline
        write = pipeline.submit(operation, timeout_s, first=first)
        try:
            result: T = await write.future
        except asyncio.CancelledError:
            pipeline.give_up(write)
            raise
        return result

    async def _read(
        self,
        method: Method[ReadRequest, ReadReply],
        request: ReadRequest,
        timeout: float | None,
    ) -> ReadReply:
        """Return the reply to a read."""
        timeout_s = self._timeout_s(timeout)
        links = self._connected()
        return await read(links.transport, links.tracker, method, request, timeout_s)

    def _in_session(self, request: SessionRequest, consistency: Consistency) -> SessionRequest:
        """Have a read see no less than this client has seen, if that was asked for."""
        if consistency == "session":
            request.min_applied_index = self._connected().tracker.applied_index
        return request

    def _spawn(
        self, work: Coroutine[Any, Any, None], name: str, *, finishes: bool = False
    ) -> asyncio.Task[None]:
        """Run something in the background, at most until the client is closed; see `Links.spawn`."""
        try:
            return self._connected().spawn(work, name, finishes=finishes)
        except BaseException:
            work.close()
            raise

    def _timeout_s(self, timeout: float | None) -> float:
        return self.timeout_s if timeout is None else limits.check_timeout(timeout)

    def _connected(self) -> Links:
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
        self._links = Links(self.endpoints, loop)
        return self._links

    def _forget_parent(self) -> None:
        fork.kept += [self._links, self._left, self._closing]
        self._links = self._left = self._closing = None
