"""The node as the services see it: awaitable calls over the driver's callbacks.

Everything here runs on the event loop; reads that may be long run on a thread beside it, and what watches
have missed is read on another.
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
    DataLossError,
    DeadlineError,
    FailedPreconditionError,
    IndefiniteError,
    InvalidArgumentError,
    InvariantError,
    NoLeaderError,
    RaftstateError,
    ResourceExhaustedError,
    UnimplementedError,
)
from raftstate.machine.machine import Machine
from raftstate.machine.reader import Reader
from raftstate.machine.tables import Table
from raftstate.machine.types import Code, Fault, Item, ItemResult
from raftstate.node.defragment import Defragmenter
from raftstate.node.driver import Driver
from raftstate.node.environment import Clock, Executed, Outcome, Rejected
from raftstate.node.erase import Eraser
from raftstate.node.member_changes import MemberRequest, MembersChanged
from raftstate.node.membership import Membership
from raftstate.node.reading import LocalReader, bound_us
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
from raftstate.node.watches import WatchHub, beside_on
from raftstate.store.log import LogStore
from raftstate.store.state import StateStore

T = TypeVar("T")

OPEN_READS_MAX = 384
"""Below LMDB's 512 reader slots, of which checkpoints need two: reads must not keep them from one."""
_ERRORS: dict[Code, type[RaftstateError]] = {
    Code.NO_LEADER: NoLeaderError,
    Code.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    Code.FAILED_PRECONDITION: FailedPreconditionError,
    Code.INVALID: InvalidArgumentError,
    Code.UNIMPLEMENTED: UnimplementedError,
}
_ROLES = {
    CoreRole.FOLLOWER: Role.FOLLOWER,
    CoreRole.PRE_CANDIDATE: Role.PRE_CANDIDATE,
    CoreRole.CANDIDATE: Role.CANDIDATE,
    CoreRole.LEADER: Role.LEADER,
}


class LocalNode:
    """Implements `service.NodeService` over a driver and its two stores.

    `machine`: the driver's, of which what never changes is taken. `name`, `version`: for status. `clock`: the
    driver's.
    """

    def __init__(
        self,
        driver: Driver,
        membership: Membership,
        machine: Machine,
        log: LogStore,
        state: StateStore,
        clock: Clock,
        *,
        name: str,
        version: str,
    ) -> None:
        self._driver = driver
        self._membership = membership
        self._cluster_id = machine.cluster_id
        self._log = log
        self._state = state
        self._clock = clock
        self._name = name
        self._version = version
        self._committed_at_start = driver.committed_index
        """What an earlier life knew, durably: no read shows less."""
        self._open_reads = 0
        self._reads = ThreadPoolExecutor(1, thread_name_prefix="raftstate-read")
        self._watch_reads = ThreadPoolExecutor(1, thread_name_prefix="raftstate-watch")
        self.watch_hub = WatchHub(
            state.read,
            clock,
            beside_on(self._watch_reads),
            self._confirm,
            on_damage=lambda error: self.on_damage(error),
        )
        """Wants to be told what is applied (`StateApplier.on_applied`), and closed first of all."""
        self.metrics_address = ""
        """host:port of this node's metrics, once they are served; empty: they are not."""
        self.checkpoint_age_ns: Callable[[], int] = lambda: 0
        """Tells for how long, at most, something is applied that no durable checkpoint has."""
        self.defragmenter: Defragmenter | None = None
        self.eraser: Eraser | None = None
        """Set before the node serves."""
        driver.has_watches = lambda: self.watch_hub.watch_count > 0
        self.on_damage: Callable[[DataLossError], object] = lambda _: None
        """Told of what a read or a watch found damaged."""
        self.scrub_times: Callable[[], tuple[int, int]] = lambda: (0, 0)
        """Returns (age, period) of the last pass of the scrub, in ms."""
        driver.fitness.watch(self._fitness_changed)

    # -- what it is

    @property
    def cluster_id(self) -> int:
        """The cluster that this node is of."""
        return self._cluster_id

    @property
    def node_id(self) -> int:
        """This node."""
        return self._driver.raw.raft.id

    @property
    def machine_version(self) -> int:
        """The rules by which commands are checked at present."""
        return self._driver.applied.machine_version

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
        return self._driver.applied.revision

    @property
    def is_serving(self) -> bool:
        """Whether requests can be answered."""
        return self._driver.running

    @property
    def may_read(self) -> bool:
        """Whether what this node holds may be shown."""
        return self._driver.fitness.may_read and not self._driver.applied.is_blank

    def leader(self) -> tuple[int, str]:
        """Return (id, client address) of the leader; (0, "") when none is known."""
        lead = self._driver.raw.raft.lead
        member = self._driver.applied.member(lead)
        return (lead, member.client_address) if member is not None else (NONE, "")

    @property
    def open_reads(self) -> int:
        """How many reads are under way, each with a reader slot of the state."""
        return self._open_reads

    @property
    def leader_silent_ms(self) -> int:
        """How long ago the leader was last heard of, in ms; 0 on the leader itself."""
        return self._silent_ms()

    # -- writes

    async def write(self, item: Item, *, commands: int, timeout_s: float) -> tuple[int, int, ItemResult]:
        """See `service.NodeService.write`."""
        waiting: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._driver.submit(item, commands, int(timeout_s * 1e9), _resolver(waiting))
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
        self,
        consistency: ReadConsistency,
        *,
        max_staleness_ms: int,
        timeout_s: float,
        min_applied_index: int = 0,
    ) -> AbstractAsyncContextManager[NodeReader]:
        """See `service.NodeService.reader`.

        A bounded read is confirmed like a linearizable one: its bound is the time since the confirmation was
        asked for. When that took longer than `max_staleness_ms` it is asked for again.
        """
        return self._open_reader(consistency, max_staleness_ms, timeout_s, min_applied_index)

    @asynccontextmanager
    async def _open_reader(
        self, consistency: ReadConsistency, max_staleness_ms: int, timeout_s: float, min_applied_index: int
    ) -> AsyncIterator[NodeReader]:
        if not self._driver.running:
            raise ClosedError("this node is not serving")
        self._require_shown()
        self._require_state()
        asked_ns = await self._freshen(consistency, max_staleness_ms, timeout_s, min_applied_index)
        if self._open_reads >= OPEN_READS_MAX:
            raise ResourceExhaustedError(
                f"{self._open_reads} reads are under way at this node, its limit; try again, or another node"
            )
        self._require_shown()
        needed = self._driver.applied_index if asked_ns is not None else min_applied_index
        self._open_reads += 1
        try:
            with self._state.read() as tables:
                try:
                    reader = Reader(tables)
                except DataLossError as error:
                    self.on_damage(error)
                    raise
                if reader.applied_index < needed:
                    raise InvariantError(
                        f"a read sees index {reader.applied_index}, but {needed} was applied before it began"
                    )
                yield LocalReader(
                    reader,
                    asked_ns,
                    self._clock,
                    self._driver.lease_clock_ms,
                    self._reads,
                    self._require_shown,
                    self.on_damage,
                )
        finally:
            self._open_reads -= 1

    def _require_shown(self) -> None:
        if not self._driver.fitness.may_read:
            raise DataLossError(f"this node shows nothing: {self._driver.fitness.why_not_read()}")

    def _fitness_changed(self) -> None:
        if self._driver.fitness.may_read:
            self.watch_hub.show()
        else:
            self.watch_hub.withhold(
                DataLossError(f"this node shows nothing: {self._driver.fitness.why_not_read()}")
            )

    async def _freshen(
        self, consistency: ReadConsistency, max_staleness_ms: int, timeout_s: float, min_applied_index: int
    ) -> int | None:
        """Wait until the state here is as a read wants it.

        Returns the boot time (ns) at which the confirmation was asked for; None: none was wanted.
        """
        deadline_ns = self._clock.boot_ns() + int(timeout_s * 1e9)
        if consistency is ReadConsistency.LINEARIZABLE:
            # Its index is mostly beyond the one that is asked for, too.
            asked_ns = await self._confirm(timeout_s)
            await self._wait_for(min_applied_index, deadline_ns)
            return asked_ns
        await self._wait_for(max(min_applied_index, self._replayed_to()), deadline_ns)
        if consistency is ReadConsistency.BOUNDED:
            return await self._confirm_within(max_staleness_ms, deadline_ns)
        return None

    def _replayed_to(self) -> int:
        """Return what must be applied before anything is shown. Raises `DataLossError` where that can't be: a
        record of the log is damaged, and other nodes are asked for it."""
        index, damaged = self._committed_at_start, self._log.first_damaged_index
        if damaged is not None and self._driver.applied_index < damaged <= index:
            raise DataLossError(
                f"this node has applied {self._driver.applied_index} of the {index} entries that it knew to "
                f"be committed, and entry {damaged} of its log is damaged; until it is mended, read elsewhere"
            )
        return index

    async def _wait_for(self, index: int, deadline_ns: int) -> None:
        """Wait until a log entry is applied here."""
        if index <= self._driver.applied_index:
            return
        waiting: asyncio.Future[int | Rejected] = asyncio.get_running_loop().create_future()
        timeout_ns = max(0, deadline_ns - self._clock.boot_ns())
        self._driver.wait_for(index, timeout_ns, _resolver(waiting))
        outcome = await waiting
        if isinstance(outcome, Rejected):
            if self._driver.running:
                raise DeadlineError(outcome.fault.message)
            raise self._error(outcome)

    async def _confirm_within(self, max_staleness_ms: int, deadline_ns: int) -> int:
        """Confirm until the answer is fresh enough."""
        while True:
            asked_ns = await self._confirm(max(0, deadline_ns - self._clock.boot_ns()) / 1e9)
            now_ns = self._clock.boot_ns()
            if bound_us(now_ns - asked_ns) <= max_staleness_ms * 1000:
                return asked_ns
            if now_ns >= deadline_ns:
                raise DeadlineError(
                    f"no read could be confirmed within the asked staleness of {max_staleness_ms} ms, the "
                    f"last took {(now_ns - asked_ns) // 1_000_000} ms; ask for a larger one"
                )

    async def _confirm(self, timeout_s: float) -> int:
        waiting: asyncio.Future[int | Rejected] = asyncio.get_running_loop().create_future()
        self._driver.read(int(timeout_s * 1e9), _resolver(waiting))
        outcome = await waiting
        if isinstance(outcome, Rejected):
            raise self._error(outcome)
        return outcome

    def _require_state(self) -> None:
        """Raise `NoLeaderError` on a node that joins: it has nothing to show before a snapshot has come."""
        if self._driver.applied.is_blank:
            raise NoLeaderError("this node joins its cluster, and holds no state yet; ask another node")

    def watches(self) -> NodeWatches:
        """See `service.NodeService.watches`."""
        self._require_state()
        return self.watch_hub.open()

    # -- operations

    def status(self) -> NodeStatus:
        """Return what this node knows."""
        raft = self._driver.raw.raft
        applied = self._driver.applied
        with self._state.read() as tables:
            keys = tables.count(Table.INDEX)
        member = applied.member(raft.id)
        defragmenter, eraser = self.defragmenter, self.eraser
        scrub_age_ms, scrub_period_ms = self.scrub_times()
        alarms = self._driver.fitness.alarms
        if self._driver.halted is not None:
            alarms = (f"halted: {self._driver.halted}", *alarms)
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
            revision=applied.revision,
            digest=applied.digest,
            machine_version=applied.machine_version,
            log_bytes=self._log.size_bytes(),
            state_bytes=self._state.size_bytes(),
            sessions=applied.sessions,
            keys=keys,
            compacted_revision=applied.compacted_revision,
            leases=applied.leases,
            watches=self.watch_hub.watch_count,
            members=applied.members,
            progress=self._progress(),
            alarms=alarms,
            incarnation=member.incarnation if member is not None else 0,
            metrics_address=self.metrics_address,
            checkpoint_age_ms=self.checkpoint_age_ns() // 1_000_000,
            disk_free_bytes=self._state.disk_free_bytes(),
            log_map_bytes=self._log.map_bytes,
            state_map_bytes=self._state.map_bytes,
            wall_clock_ms=self._clock.wall_ns() // 1_000_000,
            last_erase_index=applied.last_erase_index,
            erased_index=0 if eraser is None else eraser.erased_index,
            state_free_bytes=0 if defragmenter is None else defragmenter.free_bytes(),
            rebuild="" if defragmenter is None else defragmenter.why,
            rebuild_done_bytes=0 if defragmenter is None else defragmenter.done_bytes,
            rebuild_total_bytes=0 if defragmenter is None else defragmenter.total_bytes,
            scrub_age_ms=scrub_age_ms,
            scrub_period_ms=scrub_period_ms,
        )

    def _progress(self) -> list[PeerStatus]:
        raft = self._driver.raw.raft
        if raft.state is not CoreRole.LEADER:
            return []
        last = raft.raft_log.last_index()
        return [
            PeerStatus(
                peer,
                item.match,
                item.next,
                item.state.name.lower(),
                item.recent_active,
                lag_entries=max(0, last - item.match),
                lag_ms=self._driver.follower_lag_ns(item.match) // 1_000_000,
            )
            for peer, item in raft.tracker.visit()
            if peer != raft.id
        ]

    def defragment(self) -> int:
        """See `service.NodeService.defragment`."""
        if self.defragmenter is None:
            raise ClosedError("this node is starting")
        return self.defragmenter.begin("defragment", lambda _: None)

    async def transfer_leader(self, target_id: int, *, timeout_s: float) -> int:
        """See `service.NodeService.transfer_leader`."""
        raft = self._driver.raw.raft
        voters = self._driver.applied.conf_state.voters
        if target_id and target_id not in voters:
            names = ", ".join(
                f"{member.id} ({member.name})"
                for member in self._driver.applied.members
                if member.id in voters
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

    # -- members

    async def members(self, *, timeout_s: float) -> MemberList:
        """See `service.NodeService.members`."""
        await self._confirm(timeout_s)
        return MemberList(
            members=self._driver.applied.members,
            leader_id=self._driver.raw.raft.lead,
            commit_index=self._driver.raw.raft.raft_log.committed,
            progress=self._progress(),
        )

    async def change_members(self, request: MemberRequest, *, timeout_s: float) -> MembersChanged:
        """See `service.NodeService.change_members`."""
        waiting: asyncio.Future[MembersChanged | Rejected] = asyncio.get_running_loop().create_future()
        self._membership.submit(request, int(timeout_s * 1e9), _resolver(waiting))
        outcome = await waiting
        if isinstance(outcome, Rejected):
            raise self._error(outcome)
        return outcome

    def cluster_times(self) -> ClusterTimes:
        """See `service.NodeService.cluster_times`."""
        timing = self._driver.timing
        retention_s = self._driver.history_retention_ns // 1_000_000_000
        return ClusterTimes(timing.heartbeat_ms, timing.election_timeout_ms, retention_s)

    def close(self) -> None:
        """End the watches, and the reading threads after what they are reading now."""
        self.watch_hub.close()
        self._reads.shutdown(cancel_futures=True)
        self._watch_reads.shutdown(cancel_futures=True)


def _resolver(waiting: asyncio.Future[T]) -> Callable[[T], None]:
    """Return what resolves a future, unless it was cancelled meanwhile."""

    def resolve(outcome: T) -> None:
        if not waiting.done():
            waiting.set_result(outcome)

    return resolve
