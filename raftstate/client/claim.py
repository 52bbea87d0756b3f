"""The line that locks and elections stand in.

Whoever wants its turn puts a key `name/<lease id>` under a lease of its own; the oldest key, by create
revision, has the turn. The others each wait for the key just before theirs to go away, so that the end of a
turn wakes one of them. The create revision is the fencing token: it grows from turn to turn.

A turn is lost when the key is deleted by anybody, when its lease has ended, and when this end can't know any
more that it has not: its time to live after the last renewal was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from raftstate.client import limits
from raftstate.client.compare import Compare, where
from raftstate.client.lease import AsyncLease
from raftstate.client.operations import Put
from raftstate.client.types import KeyValue
from raftstate.errors import (
    DeadlineError,
    FailedPreconditionError,
    IndefiniteError,
    InvalidArgumentError,
    LeaseNotFoundError,
    LockLostError,
    NoLeaderError,
    OutOfRangeError,
    RaftstateError,
    ResourceExhaustedError,
)

if TYPE_CHECKING:
    from raftstate.client.async_client import AsyncClient

TTL_S_DEFAULT = 10.0
"""How long the turn of a process that died, or can't reach the cluster, lasts at most."""

WITHDRAW_S = 1.0
"""Whoever gives up its place waits so long for it to be deleted; it is deleted in any case, then or by its
lease's end."""

POLL_S = 1.0
"""Where no more watches are to be had, whether a key is still there is asked so often."""

_ID_DIGITS = 16
_NAME_BYTES_MAX = limits.KEY_BYTES_MAX - 1 - _ID_DIGITS

_PASSING = (NoLeaderError, DeadlineError)


class Line:
    """The line of a name. `what`: its kind and name, for people.

    Raises `InvalidArgumentError`.
    """

    def __init__(self, kind: str, name: limits.Key) -> None:
        encoded = limits.encode_text(name, "name")
        if not 1 <= len(encoded) <= _NAME_BYTES_MAX:
            raise InvalidArgumentError(
                f"name must have 1 to {_NAME_BYTES_MAX} bytes, got {len(encoded)}", field="name"
            )
        self.what = f"{kind} {name!r}"
        # Of each name the keys with as many digits as an id has, and nothing else: a name may begin another.
        self.first, self.end = encoded + b"/0", encoded + b"/g"
        self._stem = encoded + b"/"
        self._pattern = re.compile(re.escape(self._stem) + b"[0-9a-f]{%d}" % _ID_DIGITS)

    def key(self, lease_id: int) -> bytes:
        """Return the key of whoever has this lease."""
        return self._stem + b"%016x" % lease_id

    def __contains__(self, key: bytes) -> bool:
        return self._pattern.fullmatch(key) is not None

    async def read(self, client: AsyncClient, *, keys_only: bool) -> tuple[list[KeyValue], int]:
        """Return those in line, the one whose turn it is first, and the revision as of which they are."""
        scan = client.scan(self.first, self.end, keys_only=keys_only)
        pairs = [pair async for pair in scan if pair.key in self]
        return sorted(pairs, key=position), scan.revision or 0


def position(pair: KeyValue) -> tuple[int, bytes]:
    """Return what those in line are sorted by."""
    return pair.create_revision, pair.key


async def until_deleted(client: AsyncClient, pair: KeyValue, revision: int) -> None:
    """Wait until a pair, which was there at a revision, has been deleted."""
    while True:
        watch = client.watch(pair.key, start_revision=revision + 1, kinds="delete")
        try:
            await watch.next()
            return
        except OutOfRangeError:
            pass  # compacted meanwhile: look whether it is there
        except ResourceExhaustedError:
            await asyncio.sleep(POLL_S)
        finally:
            await watch.close()
        try:
            page = await client.range(pair.key, pair.key + b"\x00", keys_only=True)
        except _PASSING:
            continue
        if not any(each.create_revision == pair.create_revision for each in page):
            return
        revision = page.revision


class Claim:
    """A place in a line. `pair`: its key, as it was created."""

    def __init__(self, client: AsyncClient, line: Line, lease: AsyncLease, pair: KeyValue) -> None:
        self._client = client
        self._line = line
        self._lease = lease
        self._pair = pair
        self._lost = ""
        self._guard: asyncio.Task[None] | None = None
        self._returning: asyncio.Task[None] | None = None
        self._ahead: KeyValue | None = None

    @property
    def key(self) -> bytes:
        """Its key."""
        return self._pair.key

    @property
    def token(self) -> int:
        """The create revision of its key."""
        return self._pair.create_revision

    @property
    def lease(self) -> AsyncLease:
        """The lease of its key."""
        return self._lease

    @classmethod
    async def stake(
        cls, client: AsyncClient, line: Line, ttl_s: float, value: bytes, deadline: Deadline
    ) -> Self:
        """Take a place at the end of a line. What fails, or is cancelled, leaves nothing behind."""
        lease = client.lease(ttl_s)
        try:
            await lease.grant(timeout=deadline.of_call(client))
            lease.keep_alive()
            key = line.key(lease.id)
            txn = client.txn().when(where(key).missing()).then(Put(key, value, lease=lease))
            result = await txn.commit(timeout=deadline.of_call(client))
            if not result.succeeded:
                raise FailedPreconditionError(
                    f"{line.what}: somebody else has put the key {key!r}, which no lease but {lease.id} may"
                    " have; delete it"
                )
        except BaseException:
            await _withdraw(client, lease)
            raise
        return cls(client, line, lease, KeyValue(key, value, result.revision, result.revision, 1, lease.id))

    async def withdraw(self) -> None:
        """Give the place up, without a word of what becomes of that."""
        self._stop_guard()
        await _withdraw(self._client, self._lease)

    async def give_back(self, timeout: float | None) -> None:
        """End the turn. Cancelled, that goes on by itself; called again, it is waited for, or tried again if
        it failed.

        Raises `LockLostError` when the turn had been lost before.
        """
        if self._returning is None:
            self._stop_guard()
            try:
                self.check()
            except LockLostError:
                await _withdraw(self._client, self._lease)
                raise
            await self._return(self._revoke(timeout))
        elif not self._returning.done() or self.is_returned:
            await _outcome(self._returning)
        else:
            await self._return(self._revoke_again(timeout))

    async def _return(self, revoke: Coroutine[Any, Any, None]) -> None:
        task = self._client._spawn(revoke, f"raftstate-return-{self._lease.id}", finishes=True)
        task.add_done_callback(_retrieve)
        self._returning = task
        await _outcome(task)

    async def _revoke(self, timeout: float | None) -> None:
        try:
            await self._lease.revoke(timeout=timeout)
        except LeaseNotFoundError as error:
            self._lost = error.message
            raise self._error(error.message) from error

    async def _revoke_again(self, timeout: float | None) -> None:
        with contextlib.suppress(LeaseNotFoundError):  # it ended by the first revoke, or since
            await self._lease.revoke(timeout=timeout)

    @property
    def is_returned(self) -> bool:
        """Whether it was given back, or found lost when it was."""
        task = self._returning
        if task is None or not task.done() or task.cancelled():
            return False
        return task.exception() is None or isinstance(task.exception(), LockLostError)

    # ---- waiting for the turn

    async def wait_turn(self) -> None:
        """Wait until all that are older have gone. Raises `LockLostError` when the place is lost."""
        turn = asyncio.ensure_future(self._until_first())
        ended = asyncio.ensure_future(self._lease.wait_ended())
        try:
            await asyncio.wait((turn, ended), return_when=asyncio.FIRST_COMPLETED)
            if not turn.done():
                raise self._error(ended.result().message)
            turn.result()
            self.check()
        finally:
            await _end_all(turn, ended)

    async def _until_first(self) -> None:
        while True:
            try:
                pairs, revision = await self._line.read(self._client, keys_only=True)
            except (*_PASSING, OutOfRangeError):
                continue  # as long as the lease lives
            places = [pair.key for pair in pairs if pair.create_revision <= self.token]
            if self.key not in places:
                raise self._error("its key was deleted")
            place = places.index(self.key)
            if place == 0:
                return
            self._ahead = pairs[place - 1]
            await until_deleted(self._client, self._ahead, revision)

    def late(self, timeout_s: float) -> DeadlineError:
        """Return the error for a turn that did not come in time."""
        ahead = self._ahead
        whom = (
            "" if ahead is None else f": {ahead.key!r}, created at revision {ahead.create_revision}, is ahead"
        )
        return DeadlineError(f"{self._line.what} was not free within {timeout_s:g} s{whom}")

    # ---- having it

    def guard(self, lost: Callable[[], None]) -> None:
        """Call `lost` as soon as the turn is known to be, or may be, over, unless it was given back."""
        self._guard = self._client._spawn(self._watch_over(lost), f"raftstate-claim-{self._lease.id}")

    async def _watch_over(self, lost: Callable[[], None]) -> None:
        deleted = asyncio.ensure_future(until_deleted(self._client, self._pair, self.token))
        ended = asyncio.ensure_future(self._lease.wait_ended())
        try:
            await asyncio.wait((deleted, ended), return_when=asyncio.FIRST_COMPLETED)
            # Both at once: the lease ended, and its key was deleted with it.
            self._lost = ended.result().message if ended.done() else _why(deleted)
        except asyncio.CancelledError:
            if self._guard is not asyncio.current_task():
                raise
            self._lost = "the client was closed"
        finally:
            await _end_all(deleted, ended)
        lost()

    def _stop_guard(self) -> None:
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.cancel()

    def check(self) -> None:
        """Return if the turn can't be over, by what this end knows. Raises `LockLostError`."""
        if self._lost:
            raise self._error(self._lost)
        try:
            self._lease.check()
        except LeaseNotFoundError as error:
            raise self._error(error.message) from error

    @property
    def is_lost(self) -> bool:
        """Whether the turn is, or may be, over."""
        try:
            self.check()
        except LockLostError:
            return True
        return False

    def _error(self, why: str) -> LockLostError:
        return LockLostError(f"{self._line.what} is lost: {why}")


def _why(deleted: asyncio.Future[None]) -> str:
    """Return why a watch over a key is at its end."""
    error = deleted.exception()
    return "its key was deleted" if error is None else f"its key can't be watched any more: {error}"


def _retrieve(task: asyncio.Task[None]) -> None:
    """Whoever waited for a task may have been cancelled: nobody is to be told then."""
    if not task.cancelled():
        task.exception()


async def _outcome(task: asyncio.Task[None]) -> None:
    """Wait for a task that goes on when its waiter is cancelled; raise what it raised."""
    await asyncio.wait([task])
    if task.cancelled():
        raise IndefiniteError(
            "the client was closed while the key was deleted; if it was not, it ends with its lease"
        )
    task.result()


async def _end_all(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _withdraw(client: AsyncClient, lease: AsyncLease) -> None:
    """Revoke a lease, also when the caller is cancelled while that is under way."""

    async def revoke() -> None:
        try:
            await lease.close()
        except RaftstateError:
            return  # it is not renewed any more, and ends by itself

    try:
        task = client._spawn(revoke(), f"raftstate-withdraw-{id(lease)}", finishes=True)
    except RaftstateError:
        return
    await asyncio.wait([task], timeout=WITHDRAW_S)


class Deadline:
    """When a caller wants to wait no more: `timeout_s` from now; None: never."""

    def __init__(self, timeout: float | None) -> None:
        self.timeout_s = None if timeout is None else limits.check_timeout(timeout)
        self.at = None if timeout is None else asyncio.get_running_loop().time() + timeout

    def of_call(self, client: AsyncClient) -> float:
        """Return the timeout of a call on the way, in seconds."""
        if self.at is None:
            return client.timeout_s
        left_s = self.at - asyncio.get_running_loop().time()
        return max(0.001, min(client.timeout_s, left_s))


class Holder:
    """What a lock and a leadership have in common: at most one claim at a time, given back at the end.

    Entered as `async with`, its body is cancelled when the claim is lost, and `LockLostError` raised instead;
    a cancellation from outside stays one.
    """

    def __init__(self, client: AsyncClient, line: Line, ttl: float, timeout: float | None) -> None:
        limits.ttl_ms(ttl)
        self._client = client
        self._line = line
        self._ttl_s = ttl
        self._timeout_s = None if timeout is None else limits.check_timeout(timeout)
        self._claim: Claim | None = None
        self._claiming = False
        self._body: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._interrupted = False

    @property
    def token(self) -> int:
        """The fencing token: the create revision of its key. It grows from holder to holder, so that a store
        that has seen a higher one can refuse a lower one. Raises `FailedPreconditionError` when not held.
        """
        return self._held().token

    @property
    def key(self) -> bytes:
        """The key that stands for holding it. Raises `FailedPreconditionError` when not held."""
        return self._held().key

    def held(self) -> Compare:
        """Return a compare for a transaction that must only run while it is held: it holds as long as the key
        is there, whatever is known here.

            await store.txn().when(lock.held()).then(raftstate.Put("k", b"v")).commit()

        Raises:
            FailedPreconditionError: it is not held.
        """
        claim = self._held()
        return where(claim.key).create_revision == claim.token

    def check(self) -> None:
        """Return if it can't have been lost, by what this end knows; asks nobody.

        Raises:
            LockLostError: its key was deleted, its lease has ended, or the last renewal of that is longer ago
                than it lives; for instance because this process was stopped.
            FailedPreconditionError: it is not held.
        """
        self._held().check()

    def _held(self) -> Claim:
        if self._claim is None or self._claim.is_returned:
            raise self._not_held()
        return self._claim

    def _not_held(self) -> FailedPreconditionError:
        return FailedPreconditionError(f"{self._line.what} is not held")

    async def _win(self, value: bytes, timeout: float | None) -> None:
        """Get in line and wait for the turn."""
        if self._claiming or (self._claim is not None and not self._claim.is_lost):
            raise FailedPreconditionError(
                f"{self._line.what} is held, or waited for, by this very object, and can't be twice; end that"
                " first, or make another object"
            )
        deadline = Deadline(self._timeout_s if timeout is None else timeout)
        self._claiming = True
        try:
            if self._claim is not None:
                await self._claim.withdraw()
                self._claim = None
            claim = await Claim.stake(self._client, self._line, self._ttl_s, value, deadline)
            try:
                async with asyncio.timeout_at(deadline.at):
                    await claim.wait_turn()
                self._interrupted = False
                claim.guard(self._lost)
            except TimeoutError:
                await claim.withdraw()
                raise claim.late(deadline.timeout_s or 0) from None
            except BaseException:
                await claim.withdraw()
                raise
            self._claim = claim
        finally:
            self._claiming = False

    async def _give_back(self, timeout: float | None) -> None:
        claim = self._claim
        if claim is None:
            raise self._not_held()
        try:
            await claim.give_back(timeout)
        except LockLostError:
            self._forget(claim)
            raise
        self._forget(claim)

    def _forget(self, claim: Claim) -> None:
        if self._claim is claim:  # nobody has won another meanwhile
            self._claim = None

    # ---- as a context

    async def _enter(self) -> None:
        """Begin the body. Raises `LockLostError` if it was lost since it was won."""
        if self._held().is_lost:
            # No cancellation: that of the task that runs now would reach beyond the body before Python 3.13.
            await self._give_back(None)
            raise self._not_held()
        self._body = asyncio.current_task()
        self._cancelling = self._body.cancelling() if self._body is not None else 0

    def _lost(self) -> None:
        self._interrupted = True
        if self._body is not None:
            self._body.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        body, self._body = self._body, None
        if body is not None and self._interrupted:
            # As asyncio.timeout does it: more cancellations than ours are somebody else's.
            is_ours = body.uncancel() <= self._cancelling
            if isinstance(error, asyncio.CancelledError) and is_ours:
                await self._leave(None, cause=error)
                return
        await self._leave(error)

    async def _leave(self, error: BaseException | None, cause: BaseException | None = None) -> None:
        """Give it back after a body that ended with `error`, which matters more than what is found then."""
        if self._claim is None:
            return
        try:
            await self._give_back(None)
        except LockLostError as lost:
            if error is None:
                raise lost from cause
        except RaftstateError:
            return  # its lease is not renewed any more, and ends by itself
