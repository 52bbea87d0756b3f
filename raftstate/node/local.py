"""The node as the services see it: awaitable calls over the driver's callbacks.

Everything here runs on the event loop; reads that may be long run on one thread beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeVar

from raftstate.core.roles import Role as CoreRole
from raftstate.core.types import NONE
from raftstate.errors import (
    ClosedError,
    DeadlineError,
    FailedPreconditionError,
    IndefiniteError,
    InvalidArgumentError,
    InvariantError,
    NoLeaderError,
    RaftstateError,
    ResourceExhaustedError,
)
from raftstate.machine.machine import Machine
from raftstate.machine.reader import RangePage, Reader
from raftstate.machine.tables import Table
from raftstate.machine.types import Code, Fault, Item, ItemResult, KeyValue, Member
from raftstate.node.driver import Driver
from raftstate.node.environment import Clock, Executed, Outcome, Rejected
from raftstate.node.service import NodeReader, NodeStatus, PeerStatus, ReadConsistency, Role
from raftstate.store.log import LogStore
from raftstate.store.state import StateStore

T = TypeVar("T")

OPEN_READS_MAX = 384
"""Below LMDB's 512 reader slots, of which checkpoints need two: reads must not keep them from one."""
CLOCK_DRIFT = 1.001
"""Two clocks of one machine class run apart by far less than 0.1 %; a staleness bound is widened by it."""
_ERRORS: dict[Code, type[RaftstateError]] = {
    Code.NO_LEADER: NoLeaderError,
    Code.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    Code.FAILED_PRECONDITION: FailedPreconditionError,
}
_ROLES = {
    CoreRole.FOLLOWER: Role.FOLLOWER,
    CoreRole.PRE_CANDIDATE: Role.PRE_CANDIDATE,
    CoreRole.CANDIDATE: Role.CANDIDATE,
    CoreRole.LEADER: Role.LEADER,
}


class LocalNode:
    """Implements `service.NodeService` over a driver, its machine and its two stores.

    `name`, `version`: for status. `clock`: the driver's.
    """

    def __init__(
        self,
        driver: Driver,
        machine: Machine,
        log: LogStore,
        state: StateStore,
        clock: Clock,
        *,
        name: str,
        version: str,
    ) -> None:
        self._driver = driver
        self._machine = machine
        self._log = log
        self._state = state
        self._clock = clock
        self._name = name
        self._version = version
        self._open_reads = 0
        self._reads = ThreadPoolExecutor(1, thread_name_prefix="raftstate-read")
        self._members: dict[int, Member] = {member.id: member for member in machine.members}

    # -- what it is

    @property
    def cluster_id(self) -> int:
        """The cluster that this node is of."""
        return self._machine.cluster_id

    @property
    def node_id(self) -> int:
        """This node."""
        return self._driver.raw.raft.id

    @property
    def machine_version(self) -> int:
        """The rules by which commands are checked at present."""
        return self._machine.machine_version

    @property
    def term(self) -> int:
        """The Raft term at this node."""
        return self._driver.raw.raft.term

    @property
    def applied_index(self) -> int:
        """The last log entry applied here."""
        return self._driver.applied_index

    @property
    def revision(self) -> int:
        """The store's revision here."""
        return self._machine.revision

    @property
    def is_serving(self) -> bool:
        """Whether requests can be answered."""
        return self._driver.running

    def leader(self) -> tuple[int, str]:
        """Return (id, client address) of the leader; (0, "") when none is known."""
        lead = self._driver.raw.raft.lead
        member = self._members.get(lead)
        return (lead, member.client_address) if member is not None else (NONE, "")

    # -- writes

    async def write(self, item: Item, *, commands: int, timeout_s: float) -> tuple[int, int, ItemResult]:
        """See `service.NodeService.write`."""
        waiting: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def reply(outcome: Outcome) -> None:
            if not waiting.done():
                waiting.set_result(outcome)

        self._driver.submit(item, commands, int(timeout_s * 1e9), reply)
        outcome = await waiting
        if isinstance(outcome, Executed):
            return outcome.index, outcome.revision, outcome.result
        raise self._error(outcome)

    def _error(self, rejected: Rejected) -> RaftstateError:
        lead, address = self.leader()
        detail: dict[str, object] = {
            "term": self.term,
            "leader_id": lead,
            "leader_address": address,
            "leader_silent_ms": self._silent_ms(),
        }
        fault = rejected.fault
        if not rejected.applied_never:
            return IndefiniteError(fault.message, field=fault.field, detail=detail)
        if not self._driver.running:
            return ClosedError(fault.message, detail=detail)
        return _ERRORS.get(fault.code, FailedPreconditionError)(
            fault.message, field=fault.field, detail=detail
        )

    def _silent_ms(self) -> int:
        if self._driver.raw.raft.state is CoreRole.LEADER:
            return 0
        return max(0, self._clock.monotonic_ns() - self._driver.leader_heard_ns) // 1_000_000

    # -- reads

    def reader(
        self, consistency: ReadConsistency, *, max_staleness_ms: int, timeout_s: float
    ) -> AbstractAsyncContextManager[NodeReader]:
        """See `service.NodeService.reader`.

        A bounded read is confirmed like a linearizable one: its bound is the time since the confirmation was
        asked for. When that took longer than `max_staleness_ms` it is asked for again.
        """
        return self._open_reader(consistency, max_staleness_ms, timeout_s)

    @asynccontextmanager
    async def _open_reader(
        self, consistency: ReadConsistency, max_staleness_ms: int, timeout_s: float
    ) -> AsyncIterator[NodeReader]:
        if not self._driver.running:
            raise ClosedError("this node is not serving")
        asked_ns = None
        if consistency is ReadConsistency.LINEARIZABLE:
            asked_ns = await self._confirm(timeout_s)
        elif consistency is ReadConsistency.BOUNDED:
            asked_ns = await self._confirm_within(max_staleness_ms, timeout_s)
        if self._open_reads >= OPEN_READS_MAX:
            raise ResourceExhaustedError(
                f"{self._open_reads} reads are under way at this node, its limit; try again, or another node"
            )
        needed = self._driver.applied_index if asked_ns is not None else 0
        self._open_reads += 1
        try:
            with self._state.read() as tables:
                reader = Reader(tables)
                if reader.applied_index < needed:
                    raise InvariantError(
                        f"a read sees index {reader.applied_index}, but {needed} was applied before it began"
                    )
                yield _LocalReader(reader, asked_ns, self._clock, self._reads)
        finally:
            self._open_reads -= 1

    async def _confirm_within(self, max_staleness_ms: int, timeout_s: float) -> int:
        """Confirm until the answer is fresh enough."""
        deadline_ns = self._clock.boot_ns() + int(timeout_s * 1e9)
        while True:
            asked_ns = await self._confirm(timeout_s)
            now_ns = self._clock.boot_ns()
            if _bound_us(now_ns - asked_ns) <= max_staleness_ms * 1000:
                return asked_ns
            timeout_s = (deadline_ns - now_ns) / 1e9
            if timeout_s <= 0:
                raise DeadlineError(
                    f"no read could be confirmed within the asked staleness of {max_staleness_ms} ms, the "
                    f"last took {(now_ns - asked_ns) // 1_000_000} ms; ask for a larger one"
                )

    async def _confirm(self, timeout_s: float) -> int:
        waiting: asyncio.Future[int | Rejected] = asyncio.get_running_loop().create_future()

        def done(outcome: int | Rejected) -> None:
            if not waiting.done():
                waiting.set_result(outcome)

        self._driver.read(int(timeout_s * 1e9), done)
        outcome = await waiting
        if isinstance(outcome, Rejected):
            raise self._error(outcome)
        return outcome

    # -- operations

    def status(self) -> NodeStatus:
        """Return what this node knows."""
        raft = self._driver.raw.raft
        with self._state.read() as tables:
            keys = tables.count(Table.INDEX)
        progress = []
        if raft.state is CoreRole.LEADER:
            progress = [
                PeerStatus(peer, item.match, item.next, item.state.name.lower(), item.recent_active)
                for peer, item in raft.tracker.visit()
                if peer != raft.id
            ]
        alarms = () if self._driver.halted is None else (f"halted: {self._driver.halted}",)
        return NodeStatus(
            name=self._name,
            version=self._version,
            role=Role.LEARNER if raft.is_learner else _ROLES[raft.state],
            leader_id=raft.lead,
            leader_silent_ms=self._silent_ms(),
            term=raft.term,
            commit_index=raft.raft_log.committed,
            applied_index=self._driver.applied_index,
            durable_applied_index=self._state.durable_applied_index,
            first_log_index=raft.raft_log.first_index(),
            last_log_index=raft.raft_log.last_index(),
            revision=self._machine.revision,
            digest=self._machine.digest,
            machine_version=self._machine.machine_version,
            log_bytes=self._log.size_bytes(),
            state_bytes=self._state.size_bytes(),
            sessions=self._machine.session_count,
            keys=keys,
            members=tuple(self._members.values()),
            progress=progress,
            alarms=alarms,
        )

    async def transfer_leader(self, target_id: int, *, timeout_s: float) -> int:
        """See `service.NodeService.transfer_leader`."""
        raft = self._driver.raw.raft
        voters = self._machine.conf_state().voters
        if target_id and target_id not in voters:
            names = ", ".join(
                f"{voter} ({self._members[voter].name})" for voter in voters if voter in self._members
            )
            raise InvalidArgumentError(
                f"node {target_id} is no voter; the voters are {names}", field="target_id"
            )
        before = raft.lead
        if before == NONE:
            raise self._error(
                Rejected(Fault(Code.NO_LEADER, self._driver.describe_leader()), applied_never=True)
            )
        if before == target_id:
            return before
        changed: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def watch(lead: int) -> None:
            if lead not in (NONE, before) and not changed.done():
                changed.set_result(lead)

        self._driver.leader_watchers.append(watch)
        try:
            self._driver.transfer_leader(target_id)
            async with asyncio.timeout(timeout_s):
                return await changed
        except TimeoutError:
            message = (
                f"leadership was not handed over within {timeout_s:.1f} s; {self._driver.describe_leader()}"
            )
            raise FailedPreconditionError(message) from None
        finally:
            self._driver.leader_watchers.remove(watch)

    def close(self) -> None:
        """End the reading thread, after what it is reading now."""
        self._reads.shutdown(cancel_futures=True)


def _bound_us(elapsed_ns: int) -> int:
    """Return how stale a read can be at most (us), so long after its confirmation was asked for."""
    return int(elapsed_ns / 1000 * CLOCK_DRIFT) + 1000


class _LocalReader:
    """Implements `service.NodeReader` over one read transaction."""

    def __init__(
        self, reader: Reader, asked_ns: int | None, clock: Clock, executor: ThreadPoolExecutor
    ) -> None:
        self._reader = reader
        self._asked_ns = asked_ns
        self._clock = clock
        self._executor = executor

    @property
    def revision(self) -> int:
        return self._reader.revision

    @property
    def applied_index(self) -> int:
        return self._reader.applied_index

    @property
    def staleness_bound_us(self) -> int | None:
        if self._asked_ns is None:
            return None
        return _bound_us(self._clock.boot_ns() - self._asked_ns)

    async def get(self, key: bytes) -> KeyValue | None:
        return self._reader.get(key)

    async def range(
        self,
        start: bytes,
        end: bytes | None,
        *,
        limit: int,
        keys_only: bool,
        count_only: bool,
        bytes_max: int,
    ) -> RangePage:
        return await self._beside(
            lambda: self._reader.range(
                start, end, limit=limit, keys_only=keys_only, count_only=count_only, bytes_max=bytes_max
            )
        )

    async def _beside(self, call: Callable[[], T]) -> T:
        """Run on the reading thread.

        The transaction must outlive the call, so a cancelled caller still waits for it.
        """
        job = self._executor.submit(call)
        running = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            if not job.cancel():
                await asyncio.wait([running])
            raise
