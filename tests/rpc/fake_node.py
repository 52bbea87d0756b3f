"""A node of one: the real machine over tables in memory, no log and no peers, with faults on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import msgspec

from chaos.sim.memory_tables import MemoryTables
from raftstate.core.types import Entry
from raftstate.machine.machine import Machine
from raftstate.machine.reader import LeaseStatus, RangePage, Reader, Sort
from raftstate.machine.types import Envelope, Item, ItemResult, KeyValue, Member
from raftstate.node.member_changes import MemberRequest, MembersChanged
from raftstate.node.service import (
    ClusterTimes,
    MemberList,
    NodeReader,
    NodeStatus,
    NodeWatches,
    PeerStatus,
    ReadConsistency,
    Role,
)
from tests.rpc.fake_watches import FakeWatches

CLUSTER_ID = 0xC1
NODE_ID = 2
TERM = 7
MEMBERS = (
    Member(1, 11, "n1", "127.0.0.1:8001", "127.0.0.1:7001"),
    Member(2, 12, "n2", "127.0.0.1:8002", "127.0.0.1:7002"),
)

Hook = Callable[[Item], Awaitable[None]]


class FakeNode:
    """Implements `NodeService`.

    `on_write`, `on_read`: run before a request is served; may wait, or raise what it is to fail with.
    `applied_lag`: how many entries this node is behind what `write` answers for, as a node that forwards is.
    `items`, `commands`: all that was given to `write`. `timeouts_s`: how long each request was to take.
    `min_applied`: from which log index on each read was to be. `streams`: the watches of each stream so far.
    `watches_error`: what the next stream of watches is refused with. `member_requests`: all changes of
    members that were asked for; each is answered with `changed`, or fails with `members_error`.
    """

    def __init__(self) -> None:
        self.cluster_id = CLUSTER_ID
        self.node_id = NODE_ID
        self.term = TERM
        self.is_serving = True
        self.may_read = True
        self.leader_id = NODE_ID
        self.on_write: Hook | None = None
        self.on_read: Callable[[ReadConsistency, int], Awaitable[None]] | None = None
        self.staleness_bound_us: int | None = None
        self.applied_lag = 0
        self.items: list[Item] = []
        self.commands: list[int] = []
        self.timeouts_s: list[float] = []
        self.min_applied: list[int] = []
        self.streams: list[FakeWatches] = []
        self.watches_error: Exception | None = None
        self.member_requests: list[MemberRequest] = []
        self.members_error: Exception | None = None
        self.changed = MembersChanged(7, list(MEMBERS), [1])
        self.tables = MemoryTables()
        Machine.bootstrap(self.tables, CLUSTER_ID, MEMBERS)
        self._machine = Machine(self.tables)
        self.machine_version = self._machine.machine_version

    @property
    def applied_index(self) -> int:
        return max(0, self._machine.applied_index - self.applied_lag)

    @property
    def revision(self) -> int:
        return self._machine.revision

    @property
    def compacted_revision(self) -> int:
        return self._machine.compacted_revision

    async def write(self, item: Item, *, commands: int, timeout_s: float) -> tuple[int, int, ItemResult]:
        self.items.append(item)
        self.commands.append(commands)
        self.timeouts_s.append(timeout_s)
        if self.on_write is not None:
            await self.on_write(item)
        index = self._machine.applied_index + 1
        data = msgspec.msgpack.encode(Envelope(1_000 * index, 1_000 * index, [item]))
        (result,) = self._machine.apply(self.tables, [Entry(index, TERM, data=data)])
        for watches in self.streams:
            watches.wake()
        return index, result.revision, result.items[0]

    def reader(
        self,
        consistency: ReadConsistency,
        *,
        max_staleness_ms: int,
        timeout_s: float,
        min_applied_index: int = 0,
    ) -> AbstractAsyncContextManager[NodeReader]:
        self.timeouts_s.append(timeout_s)
        self.min_applied.append(min_applied_index)
        return self._open_reader(consistency, max_staleness_ms)

    @asynccontextmanager
    async def _open_reader(
        self, consistency: ReadConsistency, max_staleness_ms: int
    ) -> AsyncIterator[NodeReader]:
        if self.on_read is not None:
            await self.on_read(consistency, max_staleness_ms)
        yield FakeReader(Reader(self.tables), self.staleness_bound_us, self._machine.lease_clock_ms)

    def watches(self) -> NodeWatches:
        if self.watches_error is not None:
            raise self.watches_error
        self.streams.append(FakeWatches(self))
        return self.streams[-1]

    def status(self) -> NodeStatus:
        return NodeStatus(
            name="n2",
            version="1.2.3",
            role=Role.LEADER,
            leader_id=NODE_ID,
            leader_silent_ms=0,
            term=TERM,
            commit_index=20,
            applied_index=19,
            durable_applied_index=18,
            first_log_index=3,
            last_log_index=21,
            revision=9,
            digest=(1 << 64) - 1,
            machine_version=1,
            log_bytes=4_096,
            state_bytes=8_192,
            sessions=5,
            keys=6,
            compacted_revision=4,
            leases=7,
            watches=8,
            members=MEMBERS,
            progress=(PeerStatus(1, 20, 22, "replicate", recently_active=True, lag_entries=1, lag_ms=9),),
            alarms=("the disk is slow",),
            incarnation=12,
            metrics_address="127.0.0.1:7202",
            checkpoint_age_ms=10,
            disk_free_bytes=11,
            log_map_bytes=13,
            state_map_bytes=14,
            wall_clock_ms=15,
            last_erase_index=17,
            erased_index=16,
            state_free_bytes=4_096,
            rebuild="erase",
            rebuild_done_bytes=1,
            rebuild_total_bytes=2,
        )

    async def members(self, *, timeout_s: float) -> MemberList:
        self.timeouts_s.append(timeout_s)
        if self.members_error is not None:
            raise self.members_error
        return MemberList(MEMBERS, NODE_ID, 20, self.status().progress)

    async def change_members(self, request: MemberRequest, *, timeout_s: float) -> MembersChanged:
        self.timeouts_s.append(timeout_s)
        self.member_requests.append(request)
        if self.members_error is not None:
            raise self.members_error
        return self.changed

    def cluster_times(self) -> ClusterTimes:
        return ClusterTimes(15, 400, 3_600)

    async def transfer_leader(self, target_id: int, *, timeout_s: float) -> int:
        self.timeouts_s.append(timeout_s)
        return target_id or 1

    def defragment(self) -> int:
        return 8_192

    def leader(self) -> tuple[int, str]:
        return self.leader_id, "127.0.0.1:7002" if self.leader_id else ""


class FakeReader:
    """Implements `NodeReader`."""

    def __init__(self, reader: Reader, staleness_bound_us: int | None, clock_ms: int) -> None:
        self._reader = reader
        self._clock_ms = clock_ms
        self.revision = reader.revision
        self.applied_index = reader.applied_index
        self.staleness_bound_us = staleness_bound_us

    async def get(self, key: bytes, *, revision: int = 0) -> KeyValue | None:
        return self._reader.get(key, revision=revision)

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
        return self._reader.range(
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

    async def lease(self, lease_id: int, *, keys_bytes_max: int) -> tuple[LeaseStatus, list[bytes]] | None:
        found = self._reader.lease(lease_id, self._clock_ms)
        if found is None:
            return None
        return found, self._reader.lease_keys(lease_id, keys_bytes_max) if keys_bytes_max else []

    async def leases(self, *, above: int, limit: int) -> tuple[list[LeaseStatus], bool]:
        return self._reader.leases(above, limit, self._clock_ms)


class Gate:
    """A hook that holds writes until it is opened. `entered`, `left`: the items that came, and that went."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self.entered: asyncio.Queue[Item] = asyncio.Queue()
        self.left: asyncio.Queue[Item] = asyncio.Queue()

    async def __call__(self, item: Item) -> None:
        self.entered.put_nowait(item)
        try:
            await self._open.wait()
        finally:
            self.left.put_nowait(item)

    def open(self) -> None:
        self._open.set()


async def take(queue: asyncio.Queue[Item], count: int) -> None:
    """Wait until so many more writes came to a gate, or went from it."""
    async with asyncio.timeout(10):
        for _ in range(count):
            await queue.get()
