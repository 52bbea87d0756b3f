"""The client for threads: a face over `AsyncClient`, whose loop runs in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Coroutine, Iterable
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import uvloop

from raftstate.client import fork, limits
from raftstate.client.async_client import MAX_LAG_MS_DEFAULT, TIMEOUT_S_DEFAULT, AsyncClient
from raftstate.client.limits import BytesLike, Key
from raftstate.client.types import (
    Consistency,
    DeleteResult,
    KeyValue,
    NodeStatus,
    PutResult,
    RangeResult,
)
from raftstate.client.url import endpoints_of
from raftstate.errors import ClosedError, FailedPreconditionError

T = TypeVar("T")

WIND_UP_S = 1.0
"""How long calls of other threads have to hear that the client was closed."""

if TYPE_CHECKING:
    from raftstate.state import Workflow


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
        self._thread: _LoopThread | None = None
        self._closed = False
        self._finalizer: weakref.finalize[..., Client] | None = None
        fork.begin_anew_in_child(self)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The addresses of the URL."""
        return self._async.endpoints

    @property
    def timeout_s(self) -> float:
        """The default of all calls."""
        return self._async.timeout_s

    def __enter__(self) -> Self:
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
            finalizer = self._finalizer
        if finalizer is not None:
            finalizer()

    def put(
        self, key: Key, value: BytesLike, *, prev_kv: bool = False, timeout: float | None = None
    ) -> PutResult:
        """Store `value` under `key`; see `AsyncClient.put`."""
        return self._run(self._async.put(key, value, prev_kv=prev_kv, timeout=timeout))

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

    def get(
        self,
        key: Key,
        *,
        consistency: Consistency = "linearizable",
        max_lag_ms: int = MAX_LAG_MS_DEFAULT,
        timeout: float | None = None,
    ) -> KeyValue | None:
        """Return the pair of `key`, or None; see `AsyncClient.get`."""
        return self._run(
            self._async.get(key, consistency=consistency, max_lag_ms=max_lag_ms, timeout=timeout)
        )

    def range(
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
        """Return pairs in the order of their keys; see `AsyncClient.range`."""
        return self._run(
            self._async.range(
                start,
                end,
                prefix=prefix,
                limit=limit,
                keys_only=keys_only,
                count_only=count_only,
                consistency=consistency,
                max_lag_ms=max_lag_ms,
                timeout=timeout,
            )
        )

    def status(self, endpoint: str | None = None, *, timeout: float | None = None) -> list[NodeStatus]:
        """Return what the nodes say of themselves; see `AsyncClient.status`."""
        return self._run(self._async.status(endpoint, timeout=timeout))

    def transfer_leader(self, target: int | str | None = None, *, timeout: float | None = None) -> int:
        """Hand leadership to another voter; see `AsyncClient.transfer_leader`."""
        return self._run(self._async.transfer_leader(target, timeout=timeout))

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
        except BaseException:
            future.cancel()
            raise

    def _start(self, call: Coroutine[Any, Any, T]) -> Future[T]:
        # Under the lock, so that a call is either told of the close or waited for by it.
        with self._lock:
            if self._closed:
                raise ClosedError("the client is closed; connect again")
            if self._thread is None:
                self._thread = _LoopThread()
                # Also runs when the client is collected, and at exit.
                self._finalizer = weakref.finalize(self, self._thread.stop, self._async)
            if threading.get_ident() == self._thread.ident:
                raise FailedPreconditionError(
                    "a Client can't be used on its own event loop; use connect_async there"
                )
            return asyncio.run_coroutine_threadsafe(call, self._thread.loop)

    def _forget_parent(self) -> None:
        # The lock may be held, for ever, by a thread that this process does not have.
        self._lock = threading.Lock()
        if self._finalizer is not None:
            self._finalizer.detach()
        fork.kept.append(self._thread)
        self._finalizer = self._thread = None


class _LoopThread:
    """An event loop that runs in a daemon thread."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="raftstate-client", daemon=True)
        self._thread.start()

    @property
    def ident(self) -> int | None:
        """The thread's identity."""
        return self._thread.ident

    def stop(self, client: AsyncClient) -> None:
        """Close the client and end the thread.

        Called on the thread itself (by the garbage collector), it does not wait.
        """
        asyncio.run_coroutine_threadsafe(self._wind_up(client), self.loop)
        if threading.get_ident() != self.ident:
            self._thread.join()

    async def _wind_up(self, client: AsyncClient) -> None:
        try:
            await client.close()
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
