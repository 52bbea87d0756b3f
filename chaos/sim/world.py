"""A small deterministic world for drivers: simulated time, network, disks; the real core, driver, requests,
reads and machine.

The same seed gives the same run. A disk forgets what it has not made durable when its node crashes, and the
state falls back to the last checkpoint.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import msgspec

from chaos.sim.clock import MS, SimTime, SimTimer
from chaos.sim.log_disk import LogDisk, SimLog
from chaos.sim.memory_tables import MemoryTables
from chaos.sim.snapshot_disk import Prepared, SnapshotDisk
from raftstate.core.conf_change import decode_conf_change
from raftstate.core.config import Config
from raftstate.core.membership import next_conf_state
from raftstate.core.rawnode import RawNode
from raftstate.core.roles import Role
from raftstate.core.types import ConfState, Entry, EntryType, HardState, Snapshot, SnapshotMetadata
from raftstate.errors import DataLossError, RaftstateError
from raftstate.machine.layout import META_KEY, meta_row, read_meta
from raftstate.machine.machine import Machine
from raftstate.machine.tables import Table
from raftstate.machine.types import MACHINE_VERSION, Batch, EntryResult, Member
from raftstate.node.driver import Driver, Timing, World
from raftstate.node.environment import (
    Executed,
    Outcome,
    PeerBody,
    PreparedState,
    Rejected,
)
from raftstate.node.integrity import Integrity
from raftstate.node.refill import Refill
from raftstate.node.startup import StartStorage, reset_to_finish
from raftstate.pb.v1 import pipeline_pb2

CLUSTER_ID = 77
TIMING = Timing(heartbeat_ms=15, election_timeout_ms=405)
COLD_NS = 1_000 * MS
"""For how long after its start a node's state is slow."""
LOG_VERIFIED_S = 0.5
"""How long after its start a node knows what of its log, which its state holds durably, is damaged."""

_encode = msgspec.msgpack.Encoder().encode


@cache
def _decoder(body: type) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(body)


class SimNode:
    """One node: what survives a crash (storage, checkpoint), and what runs (driver)."""

    def __init__(self, cluster: SimCluster, node_id: int) -> None:
        self.cluster = cluster
        self.id = node_id
        self.storage = SimLog()
        self.needs_snapshot: list[int] = []
        self.checkpoint = MemoryTables()
        Machine.bootstrap(self.checkpoint, CLUSTER_ID, cluster.first_members())
        meta = msgspec.structs.replace(read_meta(self.checkpoint), machine_version=cluster.machine_version)
        self.checkpoint.put(Table.HOT, META_KEY, meta_row(meta))
        self.knows = MACHINE_VERSION
        """The machine version that its code knows, as it tells its peers."""
        self.distrusted = ""
        """What was durably noted of the checkpoint."""
        self.rebuilds = 0
        self.epoch = 0
        self.alive = False
        self.failures: list[BaseException] = []
        self.write_since_ns: int | None = None
        self.disk_delay_ms = 1.0
        self.disk_fails = False
        """Whether the next write of the log fails, though it may have reached the disk."""
        self.log_disk: LogDisk | None = None
        self.clock_rate = 1.0
        """How many of its seconds pass in one of the world's; changed by `set_clock_rate`."""
        self._rate_since_ns = self._local_then_ns = cluster.time.now_ns
        self.wall_offset_ns = 0
        self.paused = False
        self._inbox: list[tuple[int, PeerBody]] = []
        self._late: list[Callable[[], None]] = []
        self.is_switched = False
        """Whether the checkpoint is of a state that the running node has not adopted yet."""
        self.disk_is_full = False
        self.applier_is_stuck = False
        self.crashes_at_install: Callable[[], object] | None = None
        """Called in the midst of the next install, when the state was replaced and the log was not."""
        self.damage_snapshots = False
        self.snapshots_made = 0
        self.installed: list[int] = []
        """Indexes of the snapshots that became current here."""
        self.resets_at_start = 0

    def start(self) -> None:
        self.epoch += 1
        self.alive = True
        self.is_switched = False
        self.tables = self.checkpoint.copy()
        self.machine = Machine(self.tables)
        self.storage.find_damage(after=self.machine.applied_index)
        hard_state = reset_to_finish(self.storage, self.machine.applied_index, self.machine.applied_term)
        if hard_state is not None:
            self.resets_at_start += 1
            self.begin_log_anew(hard_state, self.machine.applied_index, self.machine.applied_term)
        rng = random.Random(f"{self.cluster.seed}/{self.id}/{self.epoch}")
        storage = StartStorage(self.storage, self.machine.conf_state(), self.machine.applied_index)
        config = Config(
            id=self.id,
            storage=storage,
            random=rng,
            election_ticks=TIMING.election_ticks,
            heartbeat_ticks=1,
            applied=self.machine.applied_index,
            async_storage_writes=True,
            max_message_bytes=1 << 20,
            max_applying_bytes=self.cluster.max_applying_bytes,
            max_uncommitted_bytes=1 << 24,
            check_quorum=True,
            pre_vote=True,
            disable_proposal_forwarding=True,
            step_down_on_removal=True,
        )
        epoch = self.epoch
        clock = _EpochClock(self, epoch)
        self.applier = _Applier(self, clock)
        self.log_disk = LogDisk(self, epoch)
        world = World(
            clock=clock,
            network=_Sender(self, epoch),
            log_disk=self.log_disk,
            applier=self.applier,
            random=rng,
            on_halt=self.failures.append,
            snapshot_disk=SnapshotDisk(self, clock),
        )
        self.driver = Driver(
            RawNode(config),
            self.machine,
            world,
            TIMING,
            history_retention_ns=self.cluster.retention_s * 1_000 * MS,
        )
        Refill(
            self.driver,
            world.log_disk,
            world.network,
            clock,
            durable_index=lambda: read_meta(self.checkpoint).applied_index,
            need_snapshot=self.needs_snapshot.append,
        )
        storage.source = self.driver.snapshots.own.snapshot
        self.integrity = Integrity(self.driver, world, _Repair(self, clock), distrusted=self.distrusted)
        self.integrity.start()
        self.driver.start()
        clock.call_later(LOG_VERIFIED_S, self._find_damage)
        if self.cluster.log_margin is not None:
            self._checkpoint_later(clock)
        for other in self.cluster.nodes.values():
            if other is not self and other.alive:
                self.driver.upkeep.met(other.id, other.knows)
                other.driver.upkeep.met(self.id, self.knows)

    def _find_damage(self) -> None:
        self.storage.find_damage()
        self.driver.look_at_log()

    def crash(self) -> None:
        if self.log_disk is not None and self.cluster.crashes_keep_writes:
            self.log_disk.keep_some(self.cluster.random)
        self.alive = False
        self.epoch += 1
        self.write_since_ns = None
        self.paused = False
        self._inbox, self._late = [], []

    def local_ns(self) -> int:
        """This node's monotonic clock."""
        return self._local_then_ns + int((self.cluster.time.now_ns - self._rate_since_ns) * self.clock_rate)

    def set_clock_rate(self, rate: float) -> None:
        """Have this node's clock run faster or slower than the world's from now on."""
        self._local_then_ns, self._rate_since_ns = self.local_ns(), self.cluster.time.now_ns
        self.clock_rate = rate

    def pause(self) -> None:
        """Stop the process: what is sent to it waits in its sockets, and no timer fires."""
        self.paused = True

    def resume(self) -> None:
        """Let the process go on: first with what is overdue, timers among it, then with its sockets."""
        self.paused = False
        late, self._late = self._late, []
        for callback in late:
            callback()
        inbox, self._inbox = self._inbox, []
        for sender, body in inbox:
            self.cluster.deliver(sender, self.id, body)

    def receive(self, sender: int, body: PeerBody) -> None:
        if self.paused:
            self._inbox.append((sender, body))
        else:
            self.driver.receive(sender, body)
            self.driver.turn()

    def call(self, epoch: int, callback: Callable[[], None]) -> None:
        """Call back in the life that `epoch` names, once it is not paused."""
        if self.epoch == epoch:
            if self.paused:
                self._late.append(callback)
            else:
                callback()

    def take_checkpoint(self) -> None:
        if not self.is_switched:
            self.checkpoint = self.tables.copy()

    def cut_log(self, margin: int) -> None:
        """Cut the log behind the checkpoint, as the applier does."""
        durable = read_meta(self.checkpoint).applied_index
        to_index = min(max(durable - margin, 1), durable)
        needed_from = self.driver.snapshots.log_needed_from()
        if needed_from is not None:
            to_index = min(to_index, needed_from)
        if not self.is_switched and to_index >= self.storage.first_index():
            self.storage.compact(to_index)

    def _checkpoint_later(self, clock: _EpochClock) -> None:
        def due() -> None:
            self.take_checkpoint()
            self.cut_log(self.cluster.log_margin or 0)
            self._checkpoint_later(clock)

        clock.call_later(self.cluster.random.uniform(0.05, 0.25), due)

    def begin_log_anew(self, hard_state: HardState, index: int, term: int) -> None:
        self.storage.apply_snapshot(Snapshot(metadata=SnapshotMetadata(index=index, term=term)))
        self.storage.set_hard_state(hard_state)


class _EpochClock:
    """The world's clock, as long as the node lives: a crash forgets its timers."""

    def __init__(self, node: SimNode, epoch: int) -> None:
        self._node, self._epoch = node, epoch
        self._time = node.cluster.time

    def monotonic_ns(self) -> int:
        return self._node.local_ns()

    def boot_ns(self) -> int:
        return self._node.local_ns()

    def wall_ns(self) -> int:
        return self._time.wall_ns() + self._node.wall_offset_ns

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> SimTimer:
        return self._time.call_later(delay_s / self._node.clock_rate, self._living(callback))

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._time.call_soon(self._living(callback))

    def _living(self, callback: Callable[[], None]) -> Callable[[], None]:
        return lambda: self._node.call(self._epoch, callback)


class _Sender:
    def __init__(self, node: SimNode, epoch: int) -> None:
        self._node, self._epoch = node, epoch

    def send(self, to: int, body: PeerBody) -> bool:
        cluster, sender = self._node.cluster, self._node.id
        receiver = cluster.nodes.get(to)
        if receiver is None or not receiver.alive or not self._node.alive:
            return False
        if cluster.on_send is not None:
            cluster.on_send(self._node, to, body)
        sent = _encode(body)
        decode = _decoder(type(body)).decode
        delay_s = cluster.random.uniform(0.0001, 0.002)
        epoch = self._epoch
        delays = cluster.tamper(sender, to, body) if cluster.tamper is not None else [delay_s]

        def arrive() -> None:
            # Peers see a reset when a node dies: after that nothing of it is on its way any more.
            if self._node.epoch == epoch:
                cluster.deliver(sender, to, decode(sent))

        for delay_s in delays:
            cluster.time.call_later(delay_s, arrive)
        return True


class _HandOut(NamedTuple):
    entries: Sequence[Entry]
    conf_states: Mapping[int, ConfState]
    done: Callable[[list[EntryResult]], None]


class _Applier:
    """Applies at once, or lazily after some milliseconds; slowly, for a while after the start. Damage has it
    wait for another state; where the disk is full it takes back what it has made of some entries, and tries
    again."""

    def __init__(self, node: SimNode, clock: _EpochClock) -> None:
        self._node, self._clock = node, clock
        self._waiting: list[_HandOut] = []
        self.is_beside = False
        self._cold_until_ns = node.cluster.time.now_ns + COLD_NS if node.cluster.apply_delay_s else 0
        self._next_ns = 0

    def apply(
        self,
        entries: Sequence[Entry],
        conf_states: Mapping[int, ConfState],
        done: Callable[[list[EntryResult]], None],
        *,
        lazily: bool,
    ) -> None:
        self._waiting.append(_HandOut(entries, conf_states, done))
        if lazily:
            self._clock.call_later(0.005, self.hurry)
        else:
            self.hurry()

    def hurry(self) -> None:
        node = self._node
        while self._waiting and not self.is_beside and not node.applier_is_stuck:
            now_ns = node.cluster.time.now_ns
            if now_ns < self._next_ns:
                return
            if now_ns < self._cold_until_ns:
                delay_s = node.cluster.random.uniform(0, node.cluster.apply_delay_s)
                self._next_ns = now_ns + round(delay_s * 0.95e9)  # by a clock that may be slow
                self._clock.call_later(delay_s, self.hurry)
            first = self._waiting[0]
            kept = node.tables.copy() if node.disk_is_full else None
            try:
                results = node.machine.apply(node.tables, first.entries, first.conf_states)
            except DataLossError as error:
                self.is_beside = True
                if not node.integrity.damaged(error):
                    raise
                return
            if kept is not None and node.cluster.random.random() < 0.7:
                node.tables = kept
                node.machine.load(kept)
                self._clock.call_later(0.02, self.hurry)
                return
            self._waiting.pop(0)
            first.done(results)

    def exchange(self, tables: MemoryTables, index: int) -> None:
        """Go over to another state, which has applied at least as much, made from a copy as of `index`."""
        self._node.tables = tables
        self._node.machine.adopt(tables)
        self._node.driver.state_rebuilt(index)
        self.is_beside = False
        self._clock.call_soon(self.hurry)

    def adopt(self, prepared: PreparedState, done: Callable[[], None]) -> None:
        assert isinstance(prepared, Prepared)

        def adopt() -> None:
            self._waiting.clear()
            node = self._node
            node.tables = prepared.tables
            node.machine.adopt(node.tables)
            self.is_beside = False
            node.is_switched = False
            done()

        # Something else may be under way.
        self._clock.call_later(self._node.cluster.random.choice([0.0, 0.001, 0.02]), adopt)


class _Repair:
    """Implements `integrity.StateRepair`: a checkpoint of another node comes after a while, and the log is
    replayed on it."""

    def __init__(self, node: SimNode, clock: _EpochClock) -> None:
        self._node, self._clock = node, clock

    def mark(self, reason: str) -> None:
        self._clock.call_later(0.002, lambda: setattr(self._node, "distrusted", reason))

    def hold_log(self) -> int:
        return self._node.storage.first_index() - 1

    def let_log_go(self) -> None:
        pass

    def rebuild(
        self,
        prepared: PreparedState,
        check: Callable[[int, int], None],
        done: Callable[[BaseException | None], None],
    ) -> None:
        assert isinstance(prepared, Prepared)
        node, tables = self._node, prepared.tables
        index = prepared.metadata.index

        def wait() -> None:
            applied = node.driver.applied_index
            if node.applier.is_beside:
                known = min(node.driver.raw.raft.raft_log.committed, node.storage.last_index())
                applied = max(applied, known)
            if applied < index:
                self._clock.call_later(0.005, wait)
            else:
                self._clock.call_later(node.cluster.random.uniform(0, 0.02), exchange)

        def exchange() -> None:
            machine = Machine(tables)
            for at in range(index + 1, node.driver.applied_index + 1):
                [entry] = node.storage.entries(at, at + 1, 1 << 30)
                states = {}
                if entry.type is not EntryType.NORMAL:
                    states[at] = next_conf_state(machine.conf_state(), decode_conf_change(entry))
                machine.apply(tables, [entry], states)
            try:
                check(machine.applied_index, machine.digest)
            except RaftstateError as error:
                done(error)
                return
            node.checkpoint, node.distrusted = tables.copy(), ""
            node.rebuilds += 1
            node.applier.exchange(tables, index)
            done(None)

        wait()


class SimCluster:
    """Nodes 1..size, and the network between them. `cut` holds the ordered pairs that lose everything.

    `machine_version`: of the cluster at first. `retention_s`: how long it keeps its history; 0: for ever.
    `log_margin`: how many entries of the log are kept behind checkpoints, which are then taken all the time;
    None: checkpoints are up to the test, and the log is not cut.
    """

    def __init__(
        self,
        size: int,
        seed: int,
        *,
        machine_version: int = MACHINE_VERSION,
        retention_s: int = 0,
        log_margin: int | None = None,
    ) -> None:
        self.log_margin = log_margin
        self.on_send: Callable[[Any, int, PeerBody], None] | None = None
        """Told (node, to, body) of what is sent."""
        self.tamper: Callable[[int, int, PeerBody], list[float]] | None = None
        """Given (from, to, body), returns after how many seconds it arrives: [] is lost, two come twice."""
        self.max_applying_bytes = 1 << 18
        """Of committed entries: so much is handed to the applier at once."""
        self.apply_delay_s = 0.0
        """How long a hand-out may wait for its turn on a node's cold disk, soon after its start."""
        self.crashes_keep_writes = False
        """Whether a crash loses all that was under way to the log, or some of the last of it."""
        self.seed = seed
        self.machine_version = machine_version
        self.retention_s = retention_s
        self.random = random.Random(seed)
        self.time = SimTime()
        self.ids = tuple(range(1, size + 1))
        self.cut: set[tuple[int, int]] = set()
        self.nodes: dict[int, SimNode] = {}
        for node_id in self.ids:
            self.nodes[node_id] = self.make_node(node_id)
        for node in self.nodes.values():
            node.start()

    def make_node(self, node_id: int) -> SimNode:
        return SimNode(self, node_id)

    def first_members(self) -> list[Member]:
        return [Member(i, 1, f"n{i}", f"peer{i}", f"client{i}") for i in self.ids]

    def deliver(self, sender: int, to: int, body: PeerBody) -> None:
        node = self.nodes[to]
        if node.alive and (sender, to) not in self.cut:
            node.receive(sender, body)

    def isolate(self, node_id: int) -> None:
        others = [other for other in self.ids if other != node_id]
        self.cut |= {(node_id, other) for other in others} | {(other, node_id) for other in others}

    def crash(self, node_id: int) -> None:
        """Kill a node: its peers see their connections reset."""
        self.nodes[node_id].crash()
        for other in self.ids:
            if other != node_id and self.nodes[other].alive:
                self.nodes[other].driver.link_lost(node_id)

    def run_until(self, condition: Callable[[], object], seconds: float = 10) -> None:
        end_ns = self.time.now_ns + int(seconds * 1e9)
        while not condition():
            assert self.time.now_ns < end_ns, f"not within {seconds} simulated seconds"
            self.time.step()

    def run_for(self, seconds: float) -> None:
        end_ns = self.time.now_ns + int(seconds * 1e9)
        self.time.call_later(seconds, lambda: None)  # time passes even where nothing happens
        while self.time.now_ns < end_ns:
            self.time.step()

    def leader(self) -> SimNode | None:
        """The leader of the highest term that a majority follows."""
        living = [node for node in self.nodes.values() if node.alive]
        leaders = [node for node in living if node.driver.raw.raft.state is Role.LEADER]
        for node in sorted(leaders, key=lambda item: -item.driver.raw.raft.term):
            followers = [other for other in living if other.driver.raw.raft.lead == node.id]
            if len(followers) > len(self.ids) // 2:
                return node
        return None

    def elect(self) -> SimNode:
        self.run_until(self.leader)
        leader = self.leader()
        assert leader is not None
        return leader

    def put(
        self, node_id: int, key: str, value: str = "", timeout_s: float = 5.0, *, lease: int = 0
    ) -> list[Outcome]:
        """Submit a put at a node; the returned list gets its one outcome."""
        batch = pipeline_pb2.CommandBatch()
        put = batch.commands.add(serial=1).put
        put.key, put.value, put.lease = key.encode(), value.encode(), lease
        return self.submit(node_id, batch, timeout_s)

    def grant(self, node_id: int, ids: Sequence[int], ttl_ms: int) -> list[Outcome]:
        batch = pipeline_pb2.CommandBatch()
        for lease in ids:
            grant = batch.commands.add(serial=lease).lease_grant
            grant.id, grant.ttl_ms = lease, ttl_ms
        return self.submit(node_id, batch)

    def renew(self, node_id: int, lease: int) -> list[Outcome]:
        batch = pipeline_pb2.CommandBatch()
        batch.commands.add(serial=1).lease_renew.id = lease
        return self.submit(node_id, batch)

    def submit(self, node_id: int, batch: pipeline_pb2.CommandBatch, timeout_s: float = 5.0) -> list[Outcome]:
        """Submit a batch at a node; it waits in a socket while the node is paused."""
        node = self.nodes[node_id]
        outcomes: list[Outcome] = []
        item = Batch(batch.SerializeToString())
        node.call(
            node.epoch,
            lambda: node.driver.submit(item, len(batch.commands), int(timeout_s * 1e9), outcomes.append),
        )
        return outcomes

    def read(self, node_id: int, timeout_s: float = 5.0) -> list[int | Rejected]:
        outcomes: list[int | Rejected] = []
        self.nodes[node_id].driver.read(int(timeout_s * 1e9), outcomes.append)
        return outcomes


def was_applied(outcomes: list[Outcome]) -> bool:
    return len(outcomes) == 1 and isinstance(outcomes[0], Executed)
