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
from collections.abc import Callable, Set
from pathlib import Path
from typing import TYPE_CHECKING

from raftstate.address import split_address
from raftstate.config import ClusterConfig, NodeSettings
from raftstate.core.config import Config
from raftstate.core.rawnode import RawNode
from raftstate.core.roles import Role
from raftstate.core.types import NONE
from raftstate.errors import DataLossError, FailedPreconditionError, StorageError
from raftstate.folder import data_made
from raftstate.logs import get_logger
from raftstate.machine.machine import Machine
from raftstate.machine.types import MACHINE_VERSION, Member
from raftstate.node.applier import StateApplier
from raftstate.node.clock import LoopClock
from raftstate.node.disk import DiskSettings, DiskWatch, reserve_bytes_for
from raftstate.node.driver import Driver, Timing, World
from raftstate.node.frames import Hello
from raftstate.node.links import LinkEvents, LocalPeer, PeerLinks
from raftstate.node.local import LocalNode
from raftstate.node.startup import StartStorage, check_state_fits_log
from raftstate.store.directory import DataDirectory, Identity
from raftstate.store.files import is_full
from raftstate.store.log import LogStore
from raftstate.store.log_copy import must_copy, renew_log
from raftstate.store.log_writer import LogWriter
from raftstate.store.reserve import Reserve
from raftstate.store.space import file_system
from raftstate.store.start import distrust_state
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
LOG_MARGIN_BYTES = 2 << 30
"""Bytes of entries kept behind the last checkpoint: what a follower that was down may need. A quarter of the
log's map if that is less."""
LOG_FOLDER = "log"
LOG_MARGIN_PART = 16
"""But no more than one part in so many of a small disk."""
RESTART_S_MIN, RESTART_S_MAX = 0.2, 10.0
"""Between the end of a node that its disk has stopped and its next start: short at first, since its followers
can do with it; a disk that needs people won't be back sooner by being asked."""
HANDOVER_S_MAX = 0.3
"""How long a leader that is told to stop tries to hand leadership over first. It takes some 10 ms when the
other lives, and can't be done when all are told to stop together."""


async def serve(settings: NodeSettings, *, ready: Callable[[], None] | None = None) -> None:
    """Run a node until SIGTERM, SIGINT or cancellation.

    A node that its disk has stopped is started again, by the rules for starts, for as long as it takes: what
    the disk has failed to write is copied then (`store.log_copy`, `store.start`).

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
    restarts = Restarts(settings)
    while True:
        try:
            await _serve_once(settings, stop, restarts, ready)
        except StorageError as error:
            if not restarts.may_follow(error):
                raise
            await restarts.wait(stop)
            if stop.is_set():
                raise
        else:
            return
        gc.unfreeze()


async def _serve_once(
    settings: NodeSettings, stop: asyncio.Event, restarts: Restarts, ready: Callable[[], None] | None
) -> None:
    """Run a node until it is told to stop. Raises as `serve`, and what it halted for."""
    stores = Stores(settings, distrust=restarts.distrust)
    halted = asyncio.Event()
    try:
        node = Node(settings, stores, halted.set)
        try:
            await node.start()
            # What lives now lives as long as the node: the collector need not look at it again and again.
            gc.collect()
            gc.freeze()
            if ready is not None and not restarts.has_run:
                ready()
            restarts.started()
            await either(stop, halted)
            await node.hand_over()
        finally:
            await node.stop()
    finally:
        stores.close()
    if node.failure is not None:
        raise node.failure


async def either(*events: asyncio.Event) -> None:
    """Wait until one of some events is set."""
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


class Restarts:
    """When to start a node again that its disk has stopped, within the same process."""

    def __init__(self, settings: NodeSettings) -> None:
        self.settings = settings
        self.has_run = False
        """Whether the node has run already."""
        self.distrust: set[str] = set()
        """What the disk has failed to write in this process in such a way that it must be copied ("log",
        "state"), though the marker that says so could perhaps not be written."""
        self._pause_s = RESTART_S_MIN

    def started(self) -> None:
        """The node runs: what was wrong is mended."""
        self.has_run = True
        self.distrust.clear()
        self._pause_s = RESTART_S_MIN

    def may_follow(self, failure: StorageError) -> bool:
        """Whether to try again. Not if the node has never run and nothing says that its disk had failed
        before: then whoever starts it for the first time must hear of it."""
        if "distrust" in failure.detail:
            self.distrust.add(str(failure.detail["distrust"]))
        if not self.has_run and (not is_full(failure) or not must_copy(self.settings.data_path)):
            return False
        log.error(
            "the disk has stopped this node; it starts again",
            node=self.settings.name,
            reason=str(failure),
            in_s=self._pause_s,
        )
        return True

    async def wait(self, stop: asyncio.Event) -> None:
        """Wait before the next start, longer each time, or until `stop` is set."""
        pause_s, self._pause_s = self._pause_s, min(RESTART_S_MAX, 2 * self._pause_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await stop.wait()


class Stores:
    """A node's data directory and what is in it, opened by this process alone.

    `distrust`: what is to be copied before it is opened, as if the marker of a failed disk stood there.
    `with_reserve`: keep a reserve of disk space, as the settings say.

    Raises what `serve` does when it can't start.
    """

    def __init__(
        self, settings: NodeSettings, *, distrust: Set[str] = frozenset(), with_reserve: bool = True
    ) -> None:
        cluster = settings.cluster
        member = settings.member
        identity = Identity(
            cluster_id=cluster.cluster_id, node_id=member.id, incarnation=member.incarnation, name=member.name
        )
        with contextlib.ExitStack() as opened:
            self.directory = open_directory(settings, identity)
            opened.callback(self.directory.close)
            disk = file_system(self.directory.path)
            reserve_bytes = reserve_bytes_for(settings.disk_reserve_bytes, disk) if with_reserve else 0
            self.reserve = Reserve(self.directory.path, reserve_bytes)
            self.log_margin_bytes = min(
                LOG_MARGIN_BYTES, settings.log_map_bytes // 4, disk.total_bytes // LOG_MARGIN_PART
            )
            if disk.free_bytes < self.reserve.size_bytes:
                self.reserve.release()  # a start writes little, but it does
            if "state" in distrust:
                distrust_state(self.directory.path)
            if "log" in distrust or must_copy(self.directory.path):
                self.reserve.release()  # the copy needs the room; it is made anew when there is some
                log.warning("copying the log, since the disk failed a write of it", node=settings.name)
                renew_log(self.directory.path / LOG_FOLDER, map_bytes=settings.log_map_bytes)
            self.state = StateStore.open(self.directory.path, map_bytes=settings.state_map_bytes)
            opened.callback(self.state.close, clean=False)
            with self.state.read() as tables:
                self.machine = Machine(tables)
            self.log = LogStore.open(self.directory.path / LOG_FOLDER, map_bytes=settings.log_map_bytes)
            opened.callback(self.log.close)
            check_log_is_whole(self.log)
            check_state_fits_log(self.log, self.machine.applied_index, self.machine.applied_term)
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
        self._log_writer = LogWriter(
            stores.log,
            loop.call_soon_threadsafe,
            clock_ns=clock.monotonic_ns,
            release=stores.reserve.release,
        )
        self._applier = StateApplier(
            machine,
            stores.state,
            self._log_writer,
            clock,
            self._halt,
            log_margin_bytes=stores.log_margin_bytes,
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
        world = World(clock, self._links, self._log_writer, self._applier, rng, self._halt)
        timing = Timing(settings.cluster.heartbeat_ms, settings.cluster.election_timeout_ms)
        storage = StartStorage(stores.log, machine.conf_state(), machine.applied_index)
        raw = RawNode(core_config(member.id, storage, timing, machine.applied_index, rng))
        retention_ns = settings.cluster.history_retention_s * 1_000_000_000
        self.driver = Driver(raw, machine, world, timing, history_retention_ns=retention_ns)
        self.service = LocalNode(
            self.driver,
            machine,
            stores.log,
            stores.state,
            clock,
            name=member.name,
            version=importlib.metadata.version("raftstate"),
        )
        self._applier.on_applied(self.service.watch_hub.applied)
        self._applier.hold_sweep_while(self.service.watch_hub.needs_before)
        self.disk_watch = DiskWatch(
            self.driver,
            stores.log,
            stores.state,
            self._log_writer,
            self._applier,
            stores.reserve,
            clock,
            path=stores.directory.path,
            settings=DiskSettings(
                settings.disk_soft_floor_bytes, settings.disk_hard_floor_bytes, settings.quota_bytes
            ),
        )
        self._listen_peers = listen_peers
        self._rpc = _rpc_server(self.service, settings) if listen_clients else None

    async def start(self) -> None:
        """Open the ports and take part."""
        if self._listen_peers:
            host, port = split_address(self._settings.peer_listener)
            await self._links.start(host, port)
        self._applier.start()
        self.disk_watch.start()
        self.driver.start()
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
        # Before the services wait for what is under way: a stream of watches has no end of its own.
        self.service.watch_hub.close()
        try:
            if self._rpc is not None:
                await self._rpc.set_serving(False)
                await self._rpc.stop(grace_s=1.0)
            await self._links.close()
        finally:
            self.disk_watch.close()
            try:
                self._log_writer.close()
            except StorageError as error:
                # Only the commit index was still to be written, and the leader tells it again.
                log.warning("commit index not saved", node=self._settings.name, reason=str(error))
            finally:
                self.service.close()
                self._stores.clean = await self._applier.close() and self.failure is None

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
        known = {member.id: member.incarnation for member in self._stores.machine.members}
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
