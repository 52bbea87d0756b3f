"""Locks: one holder at a time, in the order of coming, with a fencing token."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from raftstate.client.claim import Holder, Line
from raftstate.client.compare import Compare
from raftstate.client.limits import Key

if TYPE_CHECKING:
    from raftstate.client.async_client import AsyncClient
    from raftstate.client.sync_client import Run


class AsyncLock(Holder):
    """A lock of the cluster; made by `AsyncClient.lock`.

        async with store.lock("reports") as lock:
            await store.txn().when(lock.held()).then(raftstate.Put("report", b"...")).commit()

    A lock of a cluster is never more than a promise: its holder may be stopped for longer than the lease
    lives, and wake up when another holds it. What must not happen then is guarded by `held` in transactions,
    and by `token` elsewhere. As soon as the loss can be known here, the body of `async with` is cancelled and
    `LockLostError` raised.

    Args:
        client: whose calls it makes.
        name: of the lock.
        ttl: how long it outlives a process that died or was cut off, in seconds.
        timeout: how long `acquire` waits, in seconds; None: as long as it takes.
    """

    def __init__(self, client: AsyncClient, name: Key, ttl: float, timeout: float | None) -> None:
        super().__init__(client, Line("lock", name), ttl, timeout)

    async def acquire(self, timeout: float | None = None) -> Self:
        """Wait for the lock. What fails, or is cancelled, leaves no place in line behind.

        Args:
            timeout: in seconds; None: that of the lock.

        Returns:
            This lock.

        Raises:
            DeadlineError: it was not free in time.
            LockLostError: the place in line was lost: the cluster was out of reach for the whole ttl.
            FailedPreconditionError: this object holds it, or waits for it, already.
            RaftstateError: else as `AsyncClient.put`.
        """
        await self._win(b"", timeout)
        return self

    async def release(self, timeout: float | None = None) -> None:
        """Give the lock to the next in line. Cancelled, that goes on by itself; another call waits for it.

        Args:
            timeout: in seconds; None: the client's.

        Raises:
            LockLostError: it had been lost before.
            FailedPreconditionError: it is not held.
            RaftstateError: else as `AsyncClient.put`; release it again, or it ends by itself within its ttl.
        """
        await self._give_back(timeout)

    async def __aenter__(self) -> Self:
        await self.acquire()
        await self._enter()
        return self


class Lock:
    """The sync face of `AsyncLock`; made by `Client.lock`.

        with store.lock("reports") as lock:
            for part in parts:
                lock.check()
                ...

    A thread can't be cancelled: when the lock is lost, `check` raises `LockLostError`, and so does the end of
    `with`.
    """

    def __init__(self, inner: AsyncLock, run: Run) -> None:
        self._inner = inner
        self._run = run

    @property
    def token(self) -> int:
        """The fencing token; see `AsyncLock.token`."""
        return self._inner.token

    @property
    def key(self) -> bytes:
        """The key that stands for holding it; see `AsyncLock.key`."""
        return self._inner.key

    def held(self) -> Compare:
        """Return the compare that it is held; see `AsyncLock.held`."""
        return self._inner.held()

    def check(self) -> None:
        """Return if it can't have been lost, by what this end knows; see `AsyncLock.check`."""
        self._inner.check()

    def acquire(self, timeout: float | None = None) -> Self:
        """Wait for the lock; see `AsyncLock.acquire`."""
        self._run(self._inner.acquire(timeout))
        return self

    def release(self, timeout: float | None = None) -> None:
        """Give the lock to the next in line; see `AsyncLock.release`."""
        self._run(self._inner.release(timeout))

    def __enter__(self) -> Self:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._inner._leave(error))
