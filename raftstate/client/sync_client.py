"""The client for threads: a face over `AsyncClient`, whose loop runs in a thread of its own."""

from __future__ import annotations

import asyncio
import atexit
import threading
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

import uvloop

from raftstate.client import fork, limits
from raftstate.client.async_client import MAX_LAG_MS_DEFAULT, TIMEOUT_S_DEFAULT, AsyncClient
from raftstate.client.claim import TTL_S_DEFAULT
from raftstate.client.election import Election
from raftstate.client.lease import Lease
from raftstate.client.limits import BytesLike, HasId, Key
from raftstate.client.lock import Lock
from raftstate.client.scan import Pages, Scan
from raftstate.client.sync_watch import Watch
from raftstate.client.txn import Txn
from raftstate.client.types import (
    Consistency,
    DeleteResult,
    EraseResult,
    KeyValue,
    LeaseStatus,
    MemberAdded,
    MemberErase,
    MemberList,
    MemberStatus,
    NodeStatus,
    PutResult,
    RangeResult,
    SortBy,
)
from raftstate.client.url import EMBEDDED, endpoints_of
from raftstate.client.watch_inbox import EventKind
from raftstate.errors import ClosedError, FailedPreconditionError, IndefiniteError

T = TypeVar("T")

WIND_UP_S = 1.0
"""How long calls of other threads have to hear that the client was closed."""

if TYPE_CHECKING:
    from raftstate.state import Workflow


class Run(Protocol):
    """Runs a coroutine on a client's loop, and blocks until it is done."""

    def __call__(self, call: Coroutine[Any, Any, T], /) -> T:
        """Return what it returns; raise what it raises."""
        ...


class _Steps(Generic[T]):
    """An async iterator as an iterator for threads. No generator, since those end with their first error."""

    def __init__(self, items: AsyncIterator[T], run: Run) -> None:
        self._items = items
        self._run = run

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        try:
            return self._run(self._step())
        except StopAsyncIteration:
            raise StopIteration from None

    async def _step(self) -> T:
        return await anext(self._items)


def connect(url: str | None = None, *, timeout: float = TIMEOUT_S_DEFAULT) -> Client:
    """Return a thread-safe client of the cluster at `url`. Nothing is sent before the first call.

    Arguments and errors are those of `connect_async`.
    """
    return Client(endpoints_of(url), timeout=timeout)


class Client:
    """A client that any number of threads may share.

    Use it as `with`, or call `close`; the end of the process does it otherwise.

    Calls, arguments, results and errors are those of `AsyncClient`; each blocks its thread until it is done,
    and an interrupted one (Ctrl-C) is cancelled.
    """

    def __init__(self, endpoints: tuple[str, ...], *, timeout: float = TIMEOUT_S_DEFAULT) -> None:
        self._async = AsyncClient(endpoints, timeout=timeout)
        self._lock = threading.Lock()
        self._thread: LoopThread | None = None
        self._closed = False
        self._finalizer: weakref.finalize[..., Client] | None = None
        fork.begin_anew_in_child(self)
        if endpoints[0].startswith(EMBEDDED):
            self._start_thread()  # what is wrong with the directory is told here

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The addresses of the URL."""
        return self._async.endpoints

    @property
    def timeout_s(self) -> float:
        """The default of all calls."""
        return self._async.timeout_s

    def __enter__(self) -> Self:
        if self._closed:
            raise ClosedError("the client is closed; connect again")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session and the connections.

        Calls that still wait raise `ClosedError`, or `IndefiniteError` for writes that were sent.
        """
        with self._lock:
            self._closed = True
            finalizer, thread = self._finalizer, self._thread
        if thread is not None and finalizer is not None and finalizer.detach() is not None:
            thread.stop(self._async)

    def put(
        self,
        key: Key,
        value: BytesLike,
        *,
        lease: int | HasId = 0,
        prev_kv: bool = False,
        timeout: float | None = None,
    ) -> PutResult:
        """Store `value` under `key`; see `AsyncClient.put`."""
        return self._run(self._async.put(key, value, lease=lease, prev_kv=prev_kv, timeout=timeout))

    def put_many(
        self, items: Iterable[tuple[Key, BytesLike]], *, timeout: float | None = None
    ) -> list[PutResult]:
        """Store many pairs at once; see `AsyncClient.put_many`."""
        return self._run(self._async.put_many(list(limits.check_items(items)), timeout=timeout))

    def delete(
        self,
        key: Key,
        *,
        range_end: Key | None = None,
        prefix: bool = False,
        prev_kv: bool = False,
        timeout: float | None = None,
    ) -> DeleteResult:
        """Delete a key, an interval or a prefix; see `AsyncClient.delete`."""
        return self._run(
            self._async.delete(key, range_end=range_end, prefix=prefix, prev_kv=prev_kv, timeout=timeout)
        )

    def txn(self) -> Txn:
        """Begin a transaction; see `AsyncClient.txn`."""
        return Txn(self._async._execute, self._run)

    def compact(self, revision: int, *, timeout: float | None = None) -> None:
        """Forget the history before a revision; see `AsyncClient.compact`."""
        self._run(self._async.compact(revision, timeout=timeout))

    def erase(self, key: Key, *, timeout: float | None = None) -> EraseResult:
        """Delete a key together with its history; see `AsyncClient.erase`."""
        return self._run(self._async.erase(key, timeout=timeout))

    def erase_progress(self, erased: EraseResult | int, *, timeout: float | None = None) -> list[MemberErase]:
        """Return how far each member is with an erase; see `AsyncClient.erase_progress`."""
        return self._run(self._async.erase_progress(erased, timeout=timeout))

    def get(
        self,
        key: Key,
        *,
        revision: int | None = None,
        consistency: Consistency = "linearizable",
        max_lag_ms: int = MAX_LAG_MS_DEFAULT,
        timeout: float | None = None,
    ) -> KeyValue | None:
        """Return the pair of `key`, or None; see `AsyncClient.get`."""
        return self._run(
            self._async.get(
                key, revision=revision, consistency=consistency, max_lag_ms=max_lag_ms, timeout=timeout
            )
        )

    def range(
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
        """Return the pairs of an interval or prefix; see `AsyncClient.range`."""
        return self._run(
            self._async.range(
                start,
                end,
                prefix=prefix,
                limit=limit,
                revision=revision,
                sort=sort,
                descending=descending,
                keys_only=keys_only,
                count_only=count_only,
                consistency=consistency,
                max_lag_ms=max_lag_ms,
                timeout=timeout,
            )
        )

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
    ) -> Scan:
        """Return an iterator of all pairs of an interval or prefix; see `AsyncClient.scan`."""
        scan = self._async.scan(
            start,
            end,
            prefix=prefix,
            revision=revision,
            keys_only=keys_only,
            page_size=page_size,
            timeout=timeout,
        )
        return Scan(scan, self._iterate(Pages(scan)))

    def lease(self, ttl: float | None = None, *, id: int | None = None) -> Lease:
        """Return a lease, a context manager; see `AsyncClient.lease`."""
        return Lease(self._async.lease(ttl, id=id), self._run)

    def leases(self, *, timeout: float | None = None) -> list[LeaseStatus]:
        """Return all leases; see `AsyncClient.leases`."""
        return self._run(self._async.leases(timeout=timeout))

    def watch(
        self,
        key: Key | None = None,
        *,
        range_end: Key | None = None,
        prefix: Key | None = None,
        start_revision: int | None = None,
        prev_kv: bool = False,
        kinds: EventKind | None = None,
    ) -> Watch:
        """Return a watch: the changes to a key, an interval or a prefix; see `AsyncClient.watch`."""
        watch = self._async.watch(
            key,
            range_end=range_end,
            prefix=prefix,
            start_revision=start_revision,
            prev_kv=prev_kv,
            kinds=kinds,
        )
        return Watch(watch, self._run)

    def lock(self, name: Key, *, ttl: float = TTL_S_DEFAULT, timeout: float | None = None) -> Lock:
        """Return a lock, which one holder at a time has; see `AsyncClient.lock`."""
        return Lock(self._async.lock(name, ttl=ttl, timeout=timeout), self._run)

    def election(self, name: Key, *, ttl: float = TTL_S_DEFAULT) -> Election:
        """Return an election, which one candidate at a time has won; see `AsyncClient.election`."""
        return Election(self._async.election(name, ttl=ttl), self._run, self._iterate)

    def status(self, endpoint: str | None = None, *, timeout: float | None = None) -> list[NodeStatus]:
        """Return what the nodes say of themselves; see `AsyncClient.status`."""
        return self._run(self._async.status(endpoint, timeout=timeout))

    def transfer_leader(self, target: int | str | None = None, *, timeout: float | None = None) -> int:
        """Hand leadership to another voter; see `AsyncClient.transfer_leader`."""
        return self._run(self._async.transfer_leader(target, timeout=timeout))

    def members(self, *, timeout: float | None = None) -> MemberList:
        """Return the members of the cluster; see `AsyncClient.members`."""
        return self._run(self._async.members(timeout=timeout))

    def add_member(
        self,
        name: str,
        *,
        peer_address: str,
        client_address: str,
        learner: bool = False,
        timeout: float | None = None,
    ) -> MemberAdded:
        """Add a node to the cluster; see `AsyncClient.add_member`."""
        return self._run(
            self._async.add_member(
                name,
                peer_address=peer_address,
                client_address=client_address,
                learner=learner,
                timeout=timeout,
            )
        )

    def promote_member(self, name: str, *, timeout: float | None = None) -> tuple[MemberStatus, ...]:
        """Give a learner a vote; see `AsyncClient.promote_member`."""
        return self._run(self._async.promote_member(name, timeout=timeout))

    def remove_members(
        self, names: Iterable[str], *, timeout: float | None = None
    ) -> tuple[MemberStatus, ...]:
        """Remove members, for ever; see `AsyncClient.remove_members`."""
        return self._run(self._async.remove_members(names, timeout=timeout))

    def replace_member(
        self,
        name: str,
        *,
        peer_address: str | None = None,
        client_address: str | None = None,
        timeout: float | None = None,
    ) -> MemberAdded:
        """Have a member begin anew with empty data; see `AsyncClient.replace_member`."""
        return self._run(
            self._async.replace_member(
                name, peer_address=peer_address, client_address=client_address, timeout=timeout
            )
        )

    def defragment(self, target: int | str, *, timeout: float | None = None) -> int:
        """Have a member rewrite its files without free space; see `AsyncClient.defragment`."""
        return self._run(self._async.defragment(target, timeout=timeout))

    def workflow(self, name: str) -> Workflow:
        """Return the workflow of that name; see `AsyncClient.workflow`."""
        from raftstate.state import Workflow

        return Workflow(self._async.workflow(name), self._run)

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            future = self._start(call)
        except BaseException:
            call.close()
            raise
        try:
            return future.result()
        except CancelledError as error:
            raise IndefiniteError(
                "the call was cut off when the loop that it ran on ended; whether it was done is unknown"
            ) from error
        except BaseException:
            future.cancel()
            raise

    def _iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """Return an iterator of what an async iterator yields; each step blocks its thread.

        A step that raised can be taken again, if the async iterator's can.
        """
        return _Steps(items, self._run)

    def _start(self, call: Coroutine[Any, Any, T]) -> Future[T]:
        # Under the lock, so that a call is either told of the close or waited for by it.
        with self._lock:
            if self._closed:
                raise ClosedError("the client is closed; connect again")
            thread = self._thread or self._start_thread()
            if threading.get_ident() == thread.ident:
                raise FailedPreconditionError(
                    "a Client can't be used on its own event loop; use connect_async there"
                )
            return thread.submit(call)

    def _start_thread(self) -> LoopThread:
        thread = self._thread = _thread_for(self.endpoints)
        self._finalizer = weakref.finalize(self, thread.abandon, self._async)
        self._finalizer.atexit = False
        _living.add(self)
        return thread

    def _forget_parent(self) -> None:
        # The lock may be held, for ever, by a thread that this process does not have.
        self._lock = threading.Lock()
        if self._finalizer is not None:
            self._finalizer.detach()
        fork.kept.append(self._thread)
        self._finalizer = self._thread = None


_living: weakref.WeakSet[Client] = weakref.WeakSet()
_winding_up: set[_OwnThread] = set()
"""Threads whose clients were closed, or collected."""


def _close_all() -> None:
    """At the end of the process."""
    for client in list(_living):
        client.close()
    for thread in list(_winding_up):
        thread.join()


atexit.register(_close_all)


async def close_after_interrupted(client: AsyncClient) -> None:
    """Close a client once its interrupted calls have ended: what they take back, as a place in the line for a
    lock, they take back with it. Waits for them no longer than `WIND_UP_S`.
    """
    interrupted = [task for task in asyncio.all_tasks() if task.cancelling()]
    if interrupted:
        await asyncio.wait(interrupted, timeout=WIND_UP_S)
    await client.close()


def on_event_loop() -> bool:
    """Return whether this thread runs an event loop: it must not wait for one that may wait for it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class LoopThread(Protocol):
    """A thread with an event loop for a client."""

    @property
    def ident(self) -> int | None:
        """The thread's identity."""
        ...

    def submit(self, call: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a call of the client on the thread's loop. Raises `ClosedError` when that has ended."""
        ...

    def stop(self, client: AsyncClient) -> None:
        """Close the client, and end the thread unless others need it.

        Called on the thread of an event loop, it does not wait.
        """
        ...

    def abandon(self, client: AsyncClient) -> None:
        """As `stop`, for the garbage collector, which calls on any thread, between any two of its steps: it
        takes no lock and waits for nothing.
        """
        ...


def _thread_for(endpoints: tuple[str, ...]) -> LoopThread:
    if endpoints[0].startswith(EMBEDDED):
        from raftstate.embedded import NodeThread

        return NodeThread(endpoints[0])
    return _OwnThread()


class _OwnThread:
    """An event loop that runs in a daemon thread."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self._winding_up: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._serve, name="raftstate-client", daemon=True)
        self._thread.start()

    @property
    def ident(self) -> int | None:
        """The thread's identity."""
        return self._thread.ident

    def stop(self, client: AsyncClient) -> None:
        """Close the client and end the thread. On the thread of an event loop it does not wait."""
        self.abandon(client)
        if not on_event_loop():
            self._thread.join()

    def abandon(self, client: AsyncClient) -> None:
        """Have the client closed, and the thread end. Waits for nothing."""
        _winding_up.add(self)

        def wind_up() -> None:
            self._winding_up = self.loop.create_task(self._wind_up(client))

        self.loop.call_soon_threadsafe(wind_up)

    def submit(self, call: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a call on the loop."""
        return asyncio.run_coroutine_threadsafe(call, self.loop)

    async def _wind_up(self, client: AsyncClient) -> None:
        try:
            await close_after_interrupted(client)
            calls = asyncio.all_tasks() - {asyncio.current_task()}
            if calls:
                # Each learns from its closed channel that it is over, at the latest after its pause between
                # attempts.
                _, late = await asyncio.wait(calls, timeout=WIND_UP_S)
                for call in late:
                    call.cancel()
        finally:
            self.loop.stop()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.close()
        _winding_up.discard(self)

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()
