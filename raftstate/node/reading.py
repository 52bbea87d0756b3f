"""Reads of one state: what is short on the loop, what may be long on a thread beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from raftstate.errors import DataLossError
from raftstate.machine.reader import LeaseStatus, RangePage, Reader, Sort
from raftstate.machine.types import KeyValue
from raftstate.node.environment import Clock

T = TypeVar("T")

CLOCK_DRIFT = 1.001
"""Two clocks of one machine class run apart by far less than 0.1 %; a staleness bound is widened by it."""


def bound_us(elapsed_ns: int) -> int:
    """Return how stale a read can be at most (us), so long after its confirmation was asked for."""
    return int(elapsed_ns / 1000 * CLOCK_DRIFT) + 1000


class LocalReader:
    """Implements `service.NodeReader` over one read transaction.

    Args:
        reader: of that transaction.
        asked_ns: the boot time at which the reads were asked to be confirmed; None: they are not confirmed.
        clock: the node's.
        lease_clock_ms: returns the lease clock as the node has it.
        executor: one thread, for what may be long.
        require_shown: raises when what this node holds must not be shown (any more).
        on_damage: told of what a read found damaged.
    """

    def __init__(
        self,
        reader: Reader,
        asked_ns: int | None,
        clock: Clock,
        lease_clock_ms: Callable[[], int],
        executor: ThreadPoolExecutor,
        require_shown: Callable[[], None],
        on_damage: Callable[[DataLossError], object],
    ) -> None:
        self._reader = reader
        self._asked_ns = asked_ns
        self._clock = clock
        self._lease_clock_ms = lease_clock_ms
        self._executor = executor
        self._require_shown = require_shown
        self._on_damage = on_damage

    @property
    def revision(self) -> int:
        """The store's revision that these reads see."""
        return self._reader.revision

    @property
    def applied_index(self) -> int:
        """The index of the last log entry that these reads see."""
        return self._reader.applied_index

    @property
    def staleness_bound_us(self) -> int | None:
        """See `service.NodeReader.staleness_bound_us`."""
        if self._asked_ns is None:
            return None
        return bound_us(self._clock.boot_ns() - self._asked_ns)

    async def get(self, key: bytes, *, revision: int = 0) -> KeyValue | None:
        """See `service.NodeReader.get`. In the past, too, it takes a few rows, and stays on the loop."""
        try:
            found = self._reader.get(key, revision=revision)
        except DataLossError as error:
            self._on_damage(error)
            raise
        self._require_shown()
        return found

    async def range(
        self,
        start: bytes,
        end: bytes | None,
        *,
        limit: int,
        keys_only: bool,
        count_only: bool,
        bytes_max: int,
        revision: int = 0,
        sort: Sort | None = None,
        skip_count: bool = False,
    ) -> RangePage:
        """See `service.NodeReader.range`."""
        return await self._beside(
            lambda: self._reader.range(
                start,
                end,
                limit=limit,
                keys_only=keys_only,
                count_only=count_only,
                bytes_max=bytes_max,
                revision=revision,
                sort=sort,
                skip_count=skip_count,
            )
        )

    async def lease(self, lease_id: int, *, keys_bytes_max: int) -> tuple[LeaseStatus, list[bytes]] | None:
        """See `service.NodeReader.lease`."""
        try:
            status = self._reader.lease(lease_id, self._lease_clock_ms())
        except DataLossError as error:
            self._on_damage(error)
            raise
        self._require_shown()
        if status is None:
            return None
        keys: list[bytes] = []
        if keys_bytes_max:
            keys = await self._beside(lambda: self._reader.lease_keys(lease_id, keys_bytes_max))
        return status, keys

    async def leases(self, *, above: int, limit: int) -> tuple[list[LeaseStatus], bool]:
        """See `service.NodeReader.leases`."""
        clock_ms = self._lease_clock_ms()
        return await self._beside(lambda: self._reader.leases(above, limit, clock_ms))

    async def _beside(self, call: Callable[[], T]) -> T:
        """Run on the reading thread.

        The transaction must outlive the call, so a cancelled caller still waits for it.
        """
        job = self._executor.submit(call)
        running = asyncio.wrap_future(job)
        try:
            found = await asyncio.shield(running)
        except asyncio.CancelledError:
            if not job.cancel():
                await asyncio.wait([running])
            raise
        except DataLossError as error:
            self._on_damage(error)
            raise
        self._require_shown()
        return found
