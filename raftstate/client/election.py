"""Elections: one leader at a time, with a value that all can see."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from raftstate.client import limits
from raftstate.client.claim import Holder, Line, position
from raftstate.client.compare import Compare
from raftstate.client.limits import BytesLike, Key
from raftstate.client.operations import Put
from raftstate.client.types import KeyValue
from raftstate.client.watch import AsyncWatch
from raftstate.client.watch_inbox import WatchEvent
from raftstate.errors import ClosedError, LockLostError, OutOfRangeError, RaftstateError

if TYPE_CHECKING:
    from raftstate.client.async_client import AsyncClient
    from raftstate.client.sync_client import Run


class AsyncLeadership(Holder):
    """The leadership of an election; made by `AsyncElection.campaign`. Has what a lock has: see `AsyncLock`.

    `async with` it, which campaigns first if need be, and resigns at the end; or `await` it, which campaigns.
    """

    def __init__(
        self, client: AsyncClient, line: Line, ttl: float, value: BytesLike, timeout: float | None
    ) -> None:
        super().__init__(client, line, ttl, timeout)
        self._value = limits.encode_value(value)

    def __await__(self) -> Generator[Any, None, Self]:
        return self._campaign().__await__()

    async def __aenter__(self) -> Self:
        if self._claim is None or self._claim.is_returned:
            await self._campaign()
        await self._enter()
        return self

    async def _campaign(self) -> Self:
        await self._win(self._value, None)
        return self

    async def proclaim(self, value: BytesLike, *, timeout: float | None = None) -> None:
        """Show another value as leader.

        Args:
            value: bytes-like, at most 8 MiB.
            timeout: in seconds; None: the client's.

        Raises:
            LockLostError: the leadership is lost; the value was not set.
            FailedPreconditionError: this object does not lead.
            RaftstateError: else as `AsyncClient.put`.
        """
        encoded = limits.encode_value(value)
        claim = self._held()
        claim.check()
        put = Put(claim.key, encoded, lease=claim.lease)
        result = await self._client.txn().when(self.held()).then(put).commit(timeout=timeout)
        if not result.succeeded:
            raise LockLostError(f"{self._line.what} is lost: its key was deleted")

    async def resign(self, timeout: float | None = None) -> None:
        """Give the leadership to the next in line. Cancelled, that goes on by itself; another call waits for
        it.

        Args:
            timeout: in seconds; None: the client's.

        Raises:
            LockLostError: it had been lost before.
            FailedPreconditionError: this object does not lead.
            RaftstateError: else as `AsyncClient.put`; resign again, or it ends by itself within its ttl.
        """
        await self._give_back(timeout)


class AsyncElection:
    """An election of the cluster; made by `AsyncClient.election`.

        async with store.election("scheduler").campaign(b"host-7") as leadership:
            ...

    Args:
        client: whose calls it makes.
        name: of the election.
        ttl: how long a leader that died or was cut off leads on, in seconds.
    """

    def __init__(self, client: AsyncClient, name: Key, ttl: float) -> None:
        limits.ttl_ms(ttl)
        self._client = client
        self._line = Line("election", name)
        self._ttl_s = ttl

    def campaign(self, value: BytesLike, *, timeout: float | None = None) -> AsyncLeadership:
        """Return a leadership to be won: `async with` it, or `await` it.

        Args:
            value: what all can see of the leader; bytes-like, at most 8 MiB.
            timeout: how long to wait for it, in seconds; None: as long as it takes.

        Raises:
            InvalidArgumentError: an argument is not within its limits.
            DeadlineError, LockLostError, RaftstateError: winning it fails as `AsyncLock.acquire` does.
        """
        return AsyncLeadership(self._client, self._line, self._ttl_s, value, timeout)

    async def leader(self) -> KeyValue | None:
        """Return the pair of the leader: its value, and its token as `create_revision`; None: nobody leads.

        Raises:
            RaftstateError: as `AsyncClient.get`.
        """
        pairs, _ = await self._line.read(self._client, keys_only=False)
        return pairs[0] if pairs else None

    def observe(self) -> AsyncObserver:
        """Return an iterator of leaders: the pair of the present one, if there is one, and then each new one:
        another leader's, or another value of the same one. Goes on until it is closed, whatever becomes of
        the nodes.

            async for leader in election.observe():
                ...
        """
        return AsyncObserver(self._client, self._line)


class AsyncObserver:
    """The leaders of an election as they come; made by `AsyncElection.observe`.

    A step that was cancelled, or raised, can be taken again: no leader is missed by that. It ends with
    `close`, with `async with`, or when nobody holds it any more.

    Raises:
        RaftstateError: a step does as `AsyncClient.get` and the iteration of `AsyncWatch`.
    """

    def __init__(self, client: AsyncClient, line: Line) -> None:
        self._client = client
        self._line = line
        self._turn = asyncio.Lock()
        self._watch: AsyncWatch | None = None
        self._running: dict[bytes, KeyValue] = {}
        self._shown: KeyValue | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> KeyValue:
        async with self._turn:
            while not self._closed:
                watch = self._watch or await self._begin()
                leader = min(self._running.values(), key=position, default=None)
                if leader is not None and leader != self._shown:
                    self._shown = leader
                    return leader
                try:
                    self._take(await watch.next())
                except OutOfRangeError:
                    await self._end()  # compacted while nobody asked for the next one: look who leads now
                except RaftstateError:
                    if not self._closed:
                        await self._end()
                        raise
            raise StopAsyncIteration

    async def close(self) -> None:
        """End the iteration, of all who wait for a step of it."""
        self._closed = True
        await self._end()

    async def _begin(self) -> AsyncWatch:
        """See who leads now, and watch from there."""
        pairs, revision = await self._line.read(self._client, keys_only=False)
        self._running = {pair.key: pair for pair in pairs}
        watch = self._client.watch(self._line.first, range_end=self._line.end, start_revision=revision + 1)
        if self._closed:
            await watch.close()
        else:
            self._watch = watch
        return watch

    async def _end(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            await watch.close()

    def _take(self, event: WatchEvent) -> None:
        if event.kind == "delete":
            self._running.pop(event.key, None)
        elif event.key in self._line:
            self._running[event.key] = event.kv


class Leadership:
    """The sync face of `AsyncLeadership`; made by `Election.campaign`. As `Lock`, `check` and the end of
    `with` tell when it is lost.
    """

    def __init__(self, inner: AsyncLeadership, run: Run) -> None:
        self._inner = inner
        self._run = run

    @property
    def token(self) -> int:
        """The fencing token; see `AsyncLeadership.token`."""
        return self._inner.token

    @property
    def key(self) -> bytes:
        """The key that stands for leading; see `AsyncLeadership.key`."""
        return self._inner.key

    def held(self) -> Compare:
        """Return the compare that it is held; see `AsyncLeadership.held`."""
        return self._inner.held()

    def check(self) -> None:
        """Return if it can't have been lost, by what this end knows; see `AsyncLeadership.check`."""
        self._inner.check()

    def proclaim(self, value: BytesLike, *, timeout: float | None = None) -> None:
        """Show another value as leader; see `AsyncLeadership.proclaim`."""
        self._run(self._inner.proclaim(value, timeout=timeout))

    def resign(self, timeout: float | None = None) -> None:
        """Give the leadership to the next in line; see `AsyncLeadership.resign`."""
        self._run(self._inner.resign(timeout))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._inner._leave(error))


class Election:
    """The sync face of `AsyncElection`; made by `Client.election`.

    with store.election("scheduler").campaign(b"host-7") as leadership:
        ...
    """

    def __init__(
        self,
        inner: AsyncElection,
        run: Run,
        iterate: Callable[[AsyncIterator[KeyValue]], Iterator[KeyValue]],
    ) -> None:
        self._inner = inner
        self._run = run
        self._iterate = iterate

    def campaign(self, value: BytesLike, *, timeout: float | None = None) -> Leadership:
        """Wait for the leadership and return it; see `AsyncElection.campaign`."""
        return Leadership(self._run(self._inner.campaign(value, timeout=timeout)._campaign()), self._run)

    def leader(self) -> KeyValue | None:
        """Return the pair of the leader, or None; see `AsyncElection.leader`."""
        return self._run(self._inner.leader())

    def observe(self) -> Observer:
        """Return an iterator of leaders; see `AsyncElection.observe`."""
        observer = self._inner.observe()
        return Observer(observer, self._run, self._iterate(observer))


class Observer:
    """The sync face of `AsyncObserver`; made by `Election.observe`.

    `close`, from any thread, ends the iteration of all.
    """

    def __init__(self, inner: AsyncObserver, run: Run, steps: Iterator[KeyValue]) -> None:
        self._inner = inner
        self._run = run
        self._steps = steps

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> KeyValue:
        return next(self._steps)

    def close(self) -> None:
        """End the iteration; see `AsyncObserver.close`."""
        try:
            self._run(self._inner.close())
        except ClosedError:
            return  # it ended with its client
