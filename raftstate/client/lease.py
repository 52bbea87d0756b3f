"""Leases: keys that go away with whoever stopped renewing them.

When a lease has ended is the cluster's to say. What this end can say by its own clock is until when it can't
have ended: for its time to live from the moment *before* the last renewal was sent. After that it may have.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from raftstate.client import limits
from raftstate.client.leader import backoff_s
from raftstate.client.methods import TIME_TO_LIVE
from raftstate.client.operations import Granted, GrantLease, RenewLease, RevokeLease
from raftstate.client.results import lease_status
from raftstate.client.types import LeaseStatus
from raftstate.errors import (
    ClosedError,
    FailedPreconditionError,
    InvalidArgumentError,
    LeaseNotFoundError,
    RaftstateError,
)
from raftstate.pb.v1 import lease_pb2

if TYPE_CHECKING:
    from raftstate.client.async_client import AsyncClient
    from raftstate.client.sync_client import Run

_RENEWALS = 3
"""A lease is renewed when this part of its time to live has passed; what is left is for that to be done."""

_DRIFT = 0.001
"""The part of a time to live by which this machine's clock may fall behind the cluster's: twice what time
daemons slew a clock by."""

_BOOT: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_s() -> float:
    """Return CLOCK_BOOTTIME where there is one, in seconds: a lease goes on while this machine sleeps."""
    return time.clock_gettime(_BOOT)


class AsyncLease:
    """A lease of the cluster; made by `AsyncClient.lease`.

        async with store.lease(10) as lease:
            await store.put("workers/7", b"here", lease=lease)

    Entered, it is granted and kept alive in the background until it is left, which revokes it: its keys are
    deleted. If its process ends, or can't reach the cluster for the whole time to live, the cluster does it.

    Args:
        client: whose calls it makes.
        ttl_ms: time to live, in milliseconds; None: that of the lease `lease_id`, which exists.
        lease_id: its id; 0: the cluster chooses one.
        now_s: the clock by which it may have ended, in seconds.
    """

    def __init__(
        self,
        client: AsyncClient,
        ttl_ms: int | None,
        lease_id: int,
        now_s: Callable[[], float] = boot_s,
    ) -> None:
        self._client = client
        self._now_s = now_s
        self._wanted_id = lease_id
        self._id = 0 if ttl_ms is not None else lease_id
        self._ttl_ms = ttl_ms
        self._renewed_s = float("-inf")
        self._lives_until_s: float | None = None
        self._ended = ""
        self._revoked = False
        self._revoke_sent_s = float("-inf")
        self._over = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def id(self) -> int:
        """Its id. Raises `FailedPreconditionError` before it is granted."""
        if not self._id:
            raise FailedPreconditionError(
                "the lease is not granted yet; await its grant(), or use it as `async with`"
            )
        return self._id

    @property
    def ttl_s(self) -> float | None:
        """Its time to live, in seconds; None: of a lease given by its id only, before it was renewed."""
        return None if self._ttl_ms is None else self._ttl_ms / 1_000

    async def __aenter__(self) -> Self:
        if self._id:
            await self.renew()
        else:
            await self.grant()
        self.keep_alive()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.close()
        except RaftstateError:
            # What ended the body matters more, and without renewals the lease ends by itself.
            if error is None:
                raise

    # ---- calls

    async def grant(self, *, timeout: float | None = None) -> Self:
        """Have the cluster grant it. It is not kept alive before `keep_alive` is called.

        Args:
            timeout: in seconds; None: the client's.

        Returns:
            This lease.

        Raises:
            FailedPreconditionError: it was granted before, or another lease has the id that was asked for.
            ResourceExhaustedError: the cluster has 100,000 leases.
            RaftstateError: else as `AsyncClient.put`. If it was granted all the same, it ends by itself.
        """
        if self._id or self._ttl_ms is None:
            raise FailedPreconditionError(f"the lease exists, with id {self._id}; grant another")
        sent_s = self._now_s()
        granted = await self._client._execute(GrantLease(self._wanted_id, self._ttl_ms), timeout, first=True)
        self._id = granted.id
        self._note_renewed(granted, sent_s)
        return self

    async def renew(self, *, timeout: float | None = None) -> None:
        """Make it live for its whole time to live from now on.

        Args:
            timeout: in seconds; None: the client's.

        Raises:
            LeaseNotFoundError: it has ended, or is known to since before.
            RaftstateError: else as `AsyncClient.put`.
        """
        if self._ended:
            raise self._error()
        sent_s = self._now_s()
        try:
            renewed = await self._client._execute(RenewLease(self.id), timeout, first=True)
        except LeaseNotFoundError as error:
            self._end(error.message)
            raise
        self._note_renewed(renewed, sent_s)

    async def revoke(self, *, timeout: float | None = None) -> int:
        """End it, and delete its keys. From the moment of this call it is not kept alive, and taken for ended
        by `check`; if the call fails, until a `renew` succeeds.

        Args:
            timeout: in seconds; None: the client's.

        Returns:
            How many keys were deleted.

        Raises:
            LeaseNotFoundError: it had ended already.
            RaftstateError: else as `AsyncClient.put`; if it was not revoked, it ends by itself.
        """
        revoke = RevokeLease(self.id)
        self._stop()
        self._revoke_sent_s = self._lives_until_s = self._now_s()
        try:
            deleted = await self._client._execute(revoke, timeout, first=True)
        except LeaseNotFoundError as error:
            self._end(error.message)
            raise
        self._revoked = True
        self._end(f"lease {self._id} was revoked")
        return deleted

    async def time_to_live(self, keys: bool = False, *, timeout: float | None = None) -> LeaseStatus:
        """Ask the cluster for its state; this does not renew it.

        Args:
            keys: return the attached keys, too; at most 3 MiB of them.
            timeout: in seconds; None: the client's.

        Returns:
            Its time to live, what is left of it, and its keys.

        Raises:
            LeaseNotFoundError: it has ended.
            RaftstateError: else as `AsyncClient.get`.
        """
        request = lease_pb2.LeaseTimeToLiveRequest(id=self.id, keys=limits.check_flag(keys, "keys"))
        try:
            reply = await self._client._read(TIME_TO_LIVE, request, timeout)
        except LeaseNotFoundError as error:
            self._end(error.message)
            raise
        return lease_status(reply, reply.keys)

    async def close(self) -> None:
        """Revoke it, unless it was never granted or has been revoked.

        Raises `LeaseNotFoundError` when it had ended before; else as `revoke`.
        """
        self._stop()
        if not self._id or self._revoked:
            return
        if self._ended:
            raise self._error()
        await self.revoke()

    # ---- what is known without asking

    def check(self) -> None:
        """Return if it can't have ended, by what this end knows; asks nobody.

        Raises:
            LeaseNotFoundError: it has ended, or may have: its last renewal is longer ago than it lives.
            FailedPreconditionError: it is not granted yet.
        """
        if self._ended:
            raise self._error()
        if self.id and self._lives_until_s is not None and self._now_s() >= self._lives_until_s:
            raise LeaseNotFoundError(self._late())

    async def wait_ended(self) -> LeaseNotFoundError:
        """Wait until it is known to have ended, or, if it is kept alive, may have; return the error that says
        so.
        """
        await self._over.wait()
        return self._error()

    # ---- in the background

    def keep_alive(self) -> None:
        """Renew it in the background from now on: each time a third of its life has passed, and when that
        fails again and again, until it may have ended. `check` tells when it has.

        Raises:
            LeaseNotFoundError: it has ended.
            FailedPreconditionError: it is not granted yet.
        """
        if self._ended:
            raise self._error()
        name = f"raftstate-lease-{self.id}"
        if self._task is None:
            self._task = self._client._spawn(self._keep_alive(), name)
            self._task.add_done_callback(self._keeper_done)

    async def _keep_alive(self) -> None:
        failures = 0
        while not self._ended:
            left_s, due_s = self._schedule()
            if left_s <= 0:
                self._end(self._late())
            elif due_s > 0:
                await asyncio.sleep(min(due_s, left_s))
            elif await self._renew_within(left_s):
                failures = 0
            else:
                failures += 1
                await asyncio.sleep(min(backoff_s(failures), left_s))

    def _keeper_done(self, task: asyncio.Task[None]) -> None:
        if task is self._task and task.cancelled():
            # `_stop` forgets a task before it cancels it, so this was the client's end.
            self._end(f"lease {self._id} is not kept alive any more: the client was closed")

    def _schedule(self) -> tuple[float, float]:
        """Return in how many seconds it may have ended, and in how many it should be renewed."""
        if self._lives_until_s is None:
            return self._client.timeout_s, 0.0
        now_s = self._now_s()
        return self._lives_until_s - now_s, self._renewed_s + self._third_s() - now_s

    def _third_s(self) -> float:
        return (self.ttl_s or self._client.timeout_s) / _RENEWALS

    async def _renew_within(self, timeout_s: float) -> bool:
        """Renew it and return True; False: it could not be done now."""
        try:
            await self.renew(timeout=timeout_s)
        except LeaseNotFoundError:
            return True
        except ClosedError as error:
            self._end(f"lease {self._id} is not kept alive any more: {error.message}")
        except RaftstateError:
            return False
        return True

    def _stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    # ---- inside

    def _note_renewed(self, granted: Granted, sent_s: float) -> None:
        self._ttl_ms = granted.ttl_ms
        if sent_s <= self._revoke_sent_s:
            return  # it was renewed before, or is it ended after?
        self._renewed_s = max(self._renewed_s, sent_s)
        self._lives_until_s = self._renewed_s + granted.ttl_ms / 1_000 * (1 - _DRIFT)

    def _end(self, message: str) -> None:
        if not self._ended:
            self._ended = message
            self._over.set()

    def _error(self) -> LeaseNotFoundError:
        return LeaseNotFoundError(self._ended, field="lease")

    def _late(self) -> str:
        if self._lives_until_s == self._revoke_sent_s:
            return f"lease {self._id} may have ended: it was asked to, and no renewal has succeeded since"
        return f"lease {self._id} may have ended: it was not renewed for its time to live of {self.ttl_s:g} s"


class Lease:
    """The sync face of `AsyncLease`; made by `Client.lease`. Safe to use from threads.

    with store.lease(10) as lease:
        store.put("workers/7", b"here", lease=lease)
    """

    def __init__(self, inner: AsyncLease, run: Run) -> None:
        self._inner = inner
        self._run = run

    @property
    def id(self) -> int:
        """Its id; see `AsyncLease.id`."""
        return self._inner.id

    @property
    def ttl_s(self) -> float | None:
        """Its time to live, in seconds; see `AsyncLease.ttl_s`."""
        return self._inner.ttl_s

    def __enter__(self) -> Self:
        self._run(self._inner.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._inner.__aexit__(kind, error, trace))

    def grant(self, *, timeout: float | None = None) -> Self:
        """Have the cluster grant it; see `AsyncLease.grant`."""
        self._run(self._inner.grant(timeout=timeout))
        return self

    def renew(self, *, timeout: float | None = None) -> None:
        """Make it live for its whole time to live from now on; see `AsyncLease.renew`."""
        self._run(self._inner.renew(timeout=timeout))

    def revoke(self, *, timeout: float | None = None) -> int:
        """End it and delete its keys; see `AsyncLease.revoke`."""
        return self._run(self._inner.revoke(timeout=timeout))

    def time_to_live(self, keys: bool = False, *, timeout: float | None = None) -> LeaseStatus:
        """Ask the cluster for its state; see `AsyncLease.time_to_live`."""
        return self._run(self._inner.time_to_live(keys, timeout=timeout))

    def close(self) -> None:
        """Revoke it, if it lives; see `AsyncLease.close`."""
        self._run(self._inner.close())

    def check(self) -> None:
        """Return if it can't have ended, by what this end knows; see `AsyncLease.check`."""
        self._inner.check()

    def keep_alive(self) -> None:
        """Renew it in the background from now on; see `AsyncLease.keep_alive`."""

        async def start() -> None:
            self._inner.keep_alive()

        self._run(start())


def check_lease(ttl: float | None, lease_id: int | None) -> tuple[int | None, int]:
    """Return a lease's time to live in milliseconds and its id, from the arguments of `AsyncClient.lease`.

    Raises `InvalidArgumentError`.
    """
    if ttl is None and lease_id is None:
        raise InvalidArgumentError(
            "give a ttl in seconds for a new lease, or the id of one that exists; got neither", field="ttl"
        )
    number = 0 if lease_id is None else limits.check_count(lease_id, "id", 1, limits.LEASE_ID_MAX)
    return None if ttl is None else limits.ttl_ms(ttl), number
