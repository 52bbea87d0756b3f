"""One running node: the only place where its parts are wired together.

    data directory ┬ log store ─── log writer ┐
                   └ state store ─ machine ───┴ applier ┐
    peer links ─────────────────────────────────────────┼ driver ─ local node ─ gRPC services
    clock, random ──────────────────────────────────────┘

A node runs until it is told to stop, or until its driver halts.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.metadata
import random
import secrets
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from raftstate.address import split_address
from raftstate.config import ClusterConfig, NodeSettings
from raftstate.core.config import Config
from raftstate.core.rawnode import RawNode
from raftstate.core.roles import Role
from raftstate.core.types import NONE
from raftstate.errors import DataLossError, FailedPreconditionError
from raftstate.folder import data_made
from raftstate.logs import get_logger
from raftstate.machine.machine import Machine
from raftstate.machine.types import MACHINE_VERSION, Member
from raftstate.node.applier import StateApplier
from raftstate.node.clock import LoopClock
from raftstate.node.defragment import Defragmenter
from raftstate.node.driver import Driver, Timing, World
from raftstate.node.erase import Eraser
from raftstate.node.erase_files import NodeFiles
from raftstate.node.frames import Hello
from raftstate.node.integrity import Integrity
from raftstate.node.links import LinkEvents, LocalPeer, PeerLinks
from raftstate.node.local import LocalNode
from raftstate.node.rebuild import NodeRepair, StateRebuilder
from raftstate.node.snapshot_disk import StateSnapshots
from raftstate.node.startup import StartStorage, reset_to_finish
from raftstate.store.directory import DataDirectory, Identity
from raftstate.store.log import LogStore
from raftstate.store.log_writer import LogWriter
from raftstate.store.state import StateStore

if TYPE_CHECKING:
    from raftstate.rpc.server import RpcServer

log = get_logger(__name__)

SWITCH_INTERVAL_S = 0.0005
"""How long a thread keeps the interpreter while another waits for it. Python's default of 5 ms is a third of
a heartbeat: with one busy thread it costs the loop 5 ms at p50, with this 1.9 ms at p99."""
MESSAGE_BYTES_MAX = 1 << 20
"""Entries in one message: some 10 ms at 100 MB/s, so that heartbeats on the other connection are not late."""
APPLYING_BYTES_MAX = 256 << 10
"""Committed entries in one portion: some 800 small writes, a few milliseconds of the loop."""
UNCOMMITTED_BYTES_MAX = 64 << 20
"""What a leader holds in memory while no quorum answers; beyond it writes are refused."""
INFLIGHT_BYTES_MAX = 16 << 20
"""What is sent to a follower ahead of its answers: a second's worth over a link of 128 Mbit/s."""
LOG_FOLDER = "log"
HANDOVER_S_MAX = 0.3
"""How long a leader that is told to stop tries to hand leadership over first. It takes some 10 ms when the
other lives, and can't be done when all are told to stop together."""


async def serve(settings: NodeSettings, *, ready: Callable[[], None] | None = None) -> None:
    """Run a node until SIGTERM, SIGINT or cancellation.

    Args:
        settings: everything that it needs to know.
        ready: called once its ports are open; there may be no leader yet.

    Raises:
        ConfigError, WrongClusterError, FailedPreconditionError, DataLossError, StorageError: it can't start.
        RaftstateError: it halted; the message says why, and what to do.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    stores = Stores(settings)
    try:
        node = Node(settings, stores, stop.set)
        try:
            await node.start()
            # What lives now lives as long as the node: the collector need not look at it again and again.
            gc.collect()
            gc.freeze()
            if ready is not None:
                ready()
            await stop.wait()
            await node.hand_over()
        finally:
            await node.stop()
    finally:
        stores.close()
    if node.failure is not None:
        raise node.failure


class Stores:
    """A node's data directory and what is in it, opened by this process alone.

    Raises what `serve` does when it can't start.
    """

    def __init__(self, settings: NodeSettings) -> None:
        cluster = settings.cluster
        member = settings.member
        identity = Identity(
            cluster_id=cluster.cluster_id, node_id=member.id, incarnation=member.incarnation, name=member.name
        )
        with contextlib.ExitStack() as opened:
            self.directory = open_directory(settings, identity)
            opened.callback(self.directory.close)
            self.state = StateStore.open(self.directory.path, map_bytes=settings.state_map_bytes)
            opened.callback(self.state.close, clean=False)
            with self.state.read() as tables:
                self.machine = Machine(tables)
            self.log = LogStore.open(self.directory.path / LOG_FOLDER, map_bytes=settings.log_map_bytes)
            opened.callback(self.log.close)
            check_log_is_whole(self.log)
            fit_log_to_state(self.log, self.machine, self.state.durable_applied_index)
            opened.pop_all()  # they stay open
        self.clean = False
        """Whether the state was checkpointed at the end; the node says so when it has."""

    def close(self) -> None:
        """Close everything."""
        self.log.close()
        self.state.close(clean=self.clean)
        self.directory.close()


def check_log_is_whole(log_store: LogStore) -> None:
    """Raise `DataLossError` if a record of the log is damaged: what it held was acknowledged, so this node
    must not take part without it."""
    damaged = log_store.first_damaged_index
    if damaged is not None:
        raise DataLossError(
            f"entry {damaged} of this node's log is damaged on disk, and was not served; the other nodes "
            "hold it: replace this node's data directory"
        )


def fit_log_to_state(log_store: LogStore, machine: Machine, durable_index: int) -> None:
    """Finish an install that a crash cut short, and see to it that the log does not hold the first entry of
    all: whoever needs that one joins, and needs a snapshot instead.

    Raises:
        DataLossError: log and state don't fit.
        StorageError: the log can't be written.
    """
    hard_state = reset_to_finish(log_store, machine.applied_index, machine.applied_term)
    if hard_state is not None:
        log.warning("finishing an install", applied=machine.applied_index, last_index=log_store.last_index())
        log_store.publish(log_store.reset(hard_state, machine.applied_index, machine.applied_term))
    if durable_index >= 1:
        cut = log_store.compact(1, 1)
        if cut is not None:
            log_store.publish(cut)


def open_directory(settings: NodeSettings, identity: Identity) -> DataDirectory:
    """Open the data directory, or create it if this is the very first start and the settings say so."""
    path = settings.data_path
    if (path / "identity").exists():
        directory = DataDirectory.open(path, identity)
        data_made(settings)  # again, if a crash came between the two
        return directory
    if not settings.bootstrap:
        raise FailedPreconditionError(
            f"{path} holds no data of node {identity.name!r}. If this is the very first start of a new "
            "cluster, give --bootstrap; a node that lost its data must not come back under its old identity"
        )

    def populate(directory: Path) -> None:
        LogStore.open(directory / LOG_FOLDER, map_bytes=settings.log_map_bytes, create=True).close()
        state = StateStore.create(directory, settings.state_map_bytes)
        members = initial_members(settings.cluster)
        with state.write() as tables:
            Machine.bootstrap(tables, settings.cluster.cluster_id, members)
        state.checkpoint(0)
        state.close(clean=True)

    directory = DataDirectory.create(path, identity, populate)
    data_made(settings)
    return directory


def initial_members(cluster: ClusterConfig) -> list[Member]:
    """Return the members of a new cluster, as its state records them."""
    return [
        Member(member.id, member.incarnation, member.name, member.peer_address, member.client_address)
        for member in cluster.members
    ]


class Node:
    """A node's moving parts. `start`, then `hand_over` and `stop`.

    Args:
        settings: of the node.
        stores: opened; the caller closes them after `stop`.
        on_halt: called when the node can't go on; `failure` then says why.
        listen_clients, listen_peers: whether to open these ports; a node within a program needs neither.
    """

    def __init__(
        self,
        settings: NodeSettings,
        stores: Stores,
        on_halt: Callable[[], None],
        *,
        listen_clients: bool = True,
        listen_peers: bool = True,
    ) -> None:
        self.failure: BaseException | None = None
        self._settings = settings
        self._stores = stores
        self._on_halt = on_halt
        loop = asyncio.get_running_loop()
        clock = LoopClock(loop)
        rng = random.Random(secrets.randbits(64))
        machine = stores.machine
        self._log_writer = LogWriter(stores.log, loop.call_soon_threadsafe, clock_ns=clock.monotonic_ns)
        self._snapshot_disk = StateSnapshots(stores.state, stores.directory.path, machine.cluster_id)
        self._applier = StateApplier(
            machine,
            stores.state,
            self._log_writer,
            clock,
            self._halt,
            adopt=self._snapshot_disk.adopt,
            log_margin_bytes=min(settings.log_margin_bytes, settings.log_map_bytes // 4),
            log_margin_entries=settings.log_margin_entries,
            log_boundary=stores.log.first_index() - 1,
        )
        member = settings.member
        self._links = PeerLinks(
            LocalPeer(settings.cluster.cluster_id, member.id, member.incarnation, MACHINE_VERSION),
            {other.id: settings.peer_address(other) for other in settings.cluster.members},
            self._admit,
            LinkEvents(
                body=lambda sender, body: self.driver.receive(sender, body),
                turn=lambda: self.driver.turn(),
                met=lambda peer, version: self.driver.upkeep.met(peer, version),
                lost=lambda peer: self.driver.link_lost(peer),
            ),
            seed=rng.getrandbits(64),
        )
        world = World(
            clock, self._links, self._log_writer, self._applier, rng, self._halt, self._snapshot_disk
        )
        timing = Timing(settings.cluster.heartbeat_ms, settings.cluster.election_timeout_ms)
        storage = StartStorage(stores.log, machine.conf_state(), machine.applied_index)
        raw = RawNode(core_config(member.id, storage, timing, machine.applied_index, rng))
        retention_ns = settings.cluster.history_retention_s * 1_000_000_000
        self.driver = Driver(raw, machine, world, timing, history_retention_ns=retention_ns)
        storage.source = self.driver.snapshots.own.snapshot
        self._applier.hold_log_from(self._log_needed_from)
        self.service = LocalNode(
            self.driver,
            machine,
            stores.log,
            stores.state,
            clock,
            name=member.name,
            version=importlib.metadata.version("raftstate"),
        )
        self._rebuilder = StateRebuilder(stores.state, stores.log, self._applier, self.driver, self._halt)
        self._repair = NodeRepair(self._rebuilder, stores.state, stores.log)
        self.integrity = Integrity(self.driver, world, self._repair, distrusted=stores.state.distrusted())
        self._applier.on_damage = self.integrity.damaged
        self.service.on_damage = self.integrity.damaged
        self._defragmenter = Defragmenter(
            stores.state,
            self._rebuilder,
            clock,
            stores.directory.path,
            why_not=self._why_not_copied,
            on_halt=self._halt,
            bytes_min=settings.defragment_bytes_min,
        )
        self._erase_files = NodeFiles(
            self.driver, stores.state, stores.log, self._log_writer, self._defragmenter
        )
        self._eraser = Eraser(machine, self._erase_files, clock, stores.directory.path)
        self._defragmenter.erased_index = lambda: self._eraser.erased_index
        self.service.defragmenter, self.service.eraser = self._defragmenter, self._eraser
        self._applier.on_adopted(self._eraser.state_installed)
        self._applier.on_exchanged(self._eraser.state_exchanged)
        self._applier.on_applied(self.service.watch_hub.applied)
        self._applier.on_adopted(self.service.watch_hub.state_replaced)
        self._applier.hold_sweep_while(self.service.watch_hub.needs_before)
        self._listen_peers = listen_peers
        self._rpc = _rpc_server(self.service, settings) if listen_clients else None

    async def start(self) -> None:
        """Open the ports and take part."""
        if self._listen_peers:
            host, port = split_address(self._settings.peer_listener)
            await self._links.start(host, port)
        self._applier.start()
        self.driver.start()
        self._defragmenter.start()
        self._eraser.start()
        self.integrity.start()
        if self._rpc is not None:
            await self._rpc.start()
        log.info(
            "serving",
            node=self._settings.name,
            client=self._settings.client_listener if self._rpc is not None else None,
            peer=self._settings.peer_listener if self._listen_peers else None,
            applied=self._stores.machine.applied_index,
        )

    async def hand_over(self) -> None:
        """If this node leads others, let one of them lead before it goes: a stop is no failure."""
        raft = self.driver.raw.raft
        if (
            self.driver.running
            and raft.state is Role.LEADER
            and len(self._stores.machine.conf_state().voters) > 1
        ):
            try:
                await self.service.transfer_leader(NONE, timeout_s=HANDOVER_S_MAX)
            except FailedPreconditionError as error:
                log.warning("stopping while leading", reason=str(error))

    async def stop(self) -> None:
        """Take no more part, let go of ports and threads, and checkpoint the state."""
        self.driver.stop()
        self._eraser.close()
        self._rebuilder.close()
        # Before the services wait for what is under way: a stream of watches has no end of its own.
        self.service.watch_hub.close()
        try:
            if self._rpc is not None:
                await self._rpc.set_serving(False)
                await self._rpc.stop(grace_s=1.0)
            await self._links.close()
        finally:
            try:
                self._log_writer.close()
            finally:
                self.service.close()
                await self._defragmenter.close()
                await self._repair.close()
                clean = await self._applier.close()
                self._rebuilder.join()
                self._erase_files.close()
                self._snapshot_disk.close()
                # A state that was installed, and not adopted any more, is what the next start opens.
                self._stores.clean = (
                    clean
                    and self.failure is None
                    and self._stores.state.is_settled
                    and not self.driver.is_installing
                )

    def _why_not_copied(self) -> str:
        if self.driver.is_installing or self.driver.applied.is_blank:
            return "another node's state is being installed here"
        return self.driver.fitness.why_not_read()

    def _log_needed_from(self) -> int | None:
        """For whose sake the log is not cut: followers that are sent a snapshot, as long as there is room."""
        if self._stores.log.size_bytes() > self._settings.log_map_bytes // 2:
            return None
        return self.driver.snapshots.log_needed_from()

    def _halt(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error
            log.error("halted", node=self._settings.name, error=str(error), kind=type(error).__name__)
            self._on_halt()

    def _admit(self, hello: Hello) -> str:
        local = self._settings.cluster
        if hello.cluster_id != local.cluster_id:
            return f"this node is of cluster {local.cluster_id:#x}, the caller of {hello.cluster_id:#x}"
        if hello.to_id != self._settings.node_id:
            return f"this is node {self._settings.node_id}, the caller means node {hello.to_id}"
        known = {member.id: member.incarnation for member in self.driver.applied.members}
        if hello.from_id == hello.to_id or hello.from_id not in known:
            return f"node {hello.from_id} is no other member of this cluster"
        if hello.from_incarnation != known[hello.from_id]:
            return (
                f"node {hello.from_id} has incarnation {known[hello.from_id]}, "
                f"the caller says {hello.from_incarnation}: it was replaced"
            )
        return ""


def _rpc_server(service: LocalNode, settings: NodeSettings) -> RpcServer:
    # Here, so that a node without a port need not load what serves one.
    from raftstate.rpc.server import build_server

    host, port = split_address(settings.client_listener)
    return build_server(service, host=host, port=port, insecure=settings.insecure)


def core_config(
    node_id: int, storage: StartStorage, timing: Timing, applied_index: int, rng: random.Random
) -> Config:
    """Return the core's settings as the product uses it."""
    return Config(
        id=node_id,
        storage=storage,
        random=rng,
        election_ticks=timing.election_ticks,
        heartbeat_ticks=1,
        applied=applied_index,
        async_storage_writes=True,
        max_message_bytes=MESSAGE_BYTES_MAX,
        max_applying_bytes=APPLYING_BYTES_MAX,
        max_uncommitted_bytes=UNCOMMITTED_BYTES_MAX,
        max_inflight_bytes=INFLIGHT_BYTES_MAX,
        check_quorum=True,
        pre_vote=True,
        disable_proposal_forwarding=True,
        step_down_on_removal=True,
    )
