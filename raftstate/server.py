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
import faulthandler
import gc
import importlib.metadata
import random
import secrets
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING

from raftstate.address import join_address, split_address
from raftstate.config import ClusterConfig, NodeSettings
from raftstate.core.config import Config
from raftstate.core.rawnode import RawNode
from raftstate.core.roles import Role
from raftstate.core.types import NONE
from raftstate.errors import (
    ConfigError,
    DataLossError,
    FailedPreconditionError,
    RaftstateError,
    StorageError,
)
from raftstate.folder import data_made
from raftstate.logs import get_logger
from raftstate.machine.machine import Machine
from raftstate.machine.types import MACHINE_VERSION, Member
from raftstate.node.admission import Place
from raftstate.node.applier import StateApplier
from raftstate.node.clock import LoopClock
from raftstate.node.defragment import Defragmenter
from raftstate.node.disk import DiskSettings, DiskWatch, reserve_bytes_for
from raftstate.node.driver import Driver, Timing, World
from raftstate.node.environment import Rejected
from raftstate.node.erase import Eraser
from raftstate.node.erase_files import NodeFiles
from raftstate.node.integrity import Integrity
from raftstate.node.known_members import note_members, noted_members
from raftstate.node.links import LinkEvents, LocalPeer, PeerLinks
from raftstate.node.local import LocalNode
from raftstate.node.member_changes import MembersChanged, ReplaceMember
from raftstate.node.membership import Membership
from raftstate.node.rebuild import NodeRepair, StateRebuilder
from raftstate.node.refill import Refill
from raftstate.node.rejoin import Replaced, WipedPeers, ask_for_replacement
from raftstate.node.scrub import Scrubber
from raftstate.node.snapshot_disk import StateSnapshots
from raftstate.node.startup import LogLostError, StartStorage, cut_damage, reset_to_finish
from raftstate.node.state_fetch import Builds, fetch_state
from raftstate.store import replacement
from raftstate.store.directory import DataDirectory, Identity
from raftstate.store.files import disk_failure, is_full
from raftstate.store.log import LogStore
from raftstate.store.log_renewal import must_copy, renew_log
from raftstate.store.log_writer import LogWriter
from raftstate.store.reserve import Reserve
from raftstate.store.space import file_system
from raftstate.store.start import distrust_state
from raftstate.store.state import StateStore

if TYPE_CHECKING:
    from raftstate.ops.server import OpsServer
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
REPLACE_NS_MAX = 5_000_000_000
"""How long the replacement of a node that lost its log may take: it takes milliseconds, or the other voters
are no quorum."""
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
    the disk has failed to write is copied then (`store.log_renewal`, `store.start`).

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
    stores = await open_stores(settings, stop, restarts.distrust)
    if stores is None:
        return
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


async def open_stores(settings: NodeSettings, stop: asyncio.Event, distrust: Set[str]) -> Stores | None:
    """Open a node's data. If its log is lost, have the cluster replace the node first, by an empty one.

    Args:
        settings: of the node.
        stop: ends the wait for that.
        distrust: as `Stores` takes it.

    Returns None when `stop` was set first. Raises what `serve` does when it can't start.
    """
    with contextlib.ExitStack() as opened:
        directory = open_directory(settings)
        opened.callback(directory.close)
        suspect = note_crashes(directory)
        try:
            stores = Stores(settings, directory, distrust=distrust, suspect=suspect)
        except LogLostError as lost:
            log.error("the log is lost; asking to be replaced", node=settings.name, reason=str(lost))
            if not await rejoin(settings, directory, lost.members, stop):
                return None
            stores = Stores(settings, directory, distrust=distrust)
        except StateLostError as lost_state:
            log.error("the state is lost; fetching a copy", node=settings.name, reason=str(lost_state))
            if not await refetch(settings, directory, lost_state.log_boundary, stop):
                return None
            stores = Stores(settings, directory, distrust=distrust)
        opened.pop_all()
        return stores


def note_crashes(directory: DataDirectory) -> bool:
    """Have a crash of this process by a fatal signal (SIGSEGV, SIGBUS, SIGABRT) leave its traces in the data
    directory; return whether the last run did. LMDB trusts the pages that it reads: a damaged one may do it.

    Raises `StorageError` when the file can't be used.
    """
    path = directory.path / "crash"
    try:
        last = path.read_bytes() if path.exists() else b""
        # Open for as long as the process lives: the handler writes to it.
        faulthandler.enable(path.open("wb"))
    except OSError as error:
        raise disk_failure("noting crashes", path, error) from error
    if last:
        log.error("the last run crashed; checking pages", trace=last[:4_000].decode(errors="replace"))
    return bool(last)


async def refetch(
    settings: NodeSettings, directory: DataDirectory, log_boundary: int, stop: asyncio.Event
) -> bool:
    """Get the state from another node; return False if `stop` was set first."""
    identity = directory.identity
    local = LocalPeer(identity.cluster_id, identity.node_id, identity.incarnation, MACHINE_VERSION)
    builds = Builds(directory.path, settings.state_map_bytes, identity.cluster_id)
    try:
        fetching = fetch_state(
            local,
            peer_addresses(settings, noted_members(directory.path, identity.cluster_id)),
            split_address(settings.peer_listener),
            builds,
            min_index=log_boundary,
            seed=secrets.randbits(62),
        )
        return await _unless_stopped(fetching, stop)
    finally:
        builds.close()


async def _unless_stopped(work: Coroutine[object, object, None], stop: asyncio.Event) -> bool:
    """Wait for `work`, or give it up when `stop` is set; return whether it was done."""
    working = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait([working, stopped], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return False
        working.result()
        return True
    finally:
        for task in (working, stopped):
            task.cancel()
        await asyncio.gather(working, stopped, return_exceptions=True)


async def rejoin(
    settings: NodeSettings, directory: DataDirectory, members: Sequence[Member], stop: asyncio.Event
) -> bool:
    """Have the cluster replace this node, and make its data anew; return False if `stop` was set first."""
    identity = directory.identity
    local = LocalPeer(
        identity.cluster_id, identity.node_id, identity.incarnation, MACHINE_VERSION, wiped=True
    )
    addresses = peer_addresses(settings, members)
    listen = split_address(settings.peer_listener)
    asking = asyncio.ensure_future(ask_for_replacement(local, addresses, listen, secrets.randbits(64)))
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait([asking, stopped], return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            return False
        incarnation = asking.result()
    finally:
        for task in (asking, stopped):
            task.cancel()
        await asyncio.gather(asking, stopped, return_exceptions=True)
    log.warning("replaced; beginning anew", node=settings.name, incarnation=incarnation)
    replacement.begin(directory, incarnation)
    replacement.finish(directory, lambda path: make_blank(settings, path))
    return True


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

    `directory`: locked already; None: it is opened here. `distrust`: what is to be copied before it is
    opened, as if the marker of a failed disk stood there. `suspect`: the last run crashed, and a damaged page
    may be why. `with_reserve`: keep a reserve of disk space, as the settings say.

    Raises what `serve` does when it can't start; `LogLostError` if other nodes may replace this one.
    """

    def __init__(
        self,
        settings: NodeSettings,
        directory: DataDirectory | None = None,
        *,
        distrust: Set[str] = frozenset(),
        suspect: bool = False,
        with_reserve: bool = True,
    ) -> None:
        with contextlib.ExitStack() as opened:
            if directory is None:
                directory = open_directory(settings)
                opened.callback(directory.close)
            self.directory = directory
            disk = file_system(directory.path)
            reserve_bytes = reserve_bytes_for(settings.disk_reserve_bytes, disk) if with_reserve else 0
            self.reserve = Reserve(directory.path, reserve_bytes)
            self.log_margin_bytes = min(
                settings.log_margin_bytes, settings.log_map_bytes // 4, disk.total_bytes // LOG_MARGIN_PART
            )
            if disk.free_bytes < self.reserve.size_bytes:
                self.reserve.release()  # a start writes little, but it does
            if "state" in distrust:
                distrust_state(directory.path)
            must_renew = "log" in distrust or must_copy(directory.path)
            if must_renew:
                self.reserve.release()  # the copy needs the room; it is made anew when there is some
            try:
                self.state = StateStore.open(
                    directory.path, map_bytes=settings.state_map_bytes, suspect=suspect
                )
                opened.callback(self.state.close, clean=False)
                with self.state.read() as tables:
                    self.machine = Machine(tables)
            except (DataLossError, FailedPreconditionError) as error:
                # If the log is lost, too, there is nothing to keep.
                known = noted_members(directory.path, directory.identity.cluster_id)
                log_store = open_log(settings, directory, known, must_renew=must_renew)
                boundary = log_store.first_index() - 1
                log_store.close()
                raise state_is_lost(error, settings, known, boundary) from error
            self.log = open_log(settings, directory, self.machine.members, must_renew=must_renew)
            opened.callback(self.log.close)
            fit_log_to_state(self.log, self.machine, self.state.durable_applied_index)
            check_sole_copy(self.log, self.machine, settings.node_id)
            opened.pop_all()  # they stay open
        self.clean = False
        """Whether the state was checkpointed at the end; the node says so when it has."""

    def close(self) -> None:
        """Close everything."""
        self.log.close()
        self.state.close(clean=self.clean)
        self.directory.close()


def check_sole_copy(log_store: LogStore, machine: Machine, node_id: int) -> None:
    """Raise `DataLossError` if a record is damaged that the state lacks, and that no other node can hold."""
    damaged = log_store.first_damaged_index
    if damaged is not None and {member.id for member in machine.members} <= {node_id}:
        raise DataLossError(
            f"entry {damaged} of this node's log is damaged on disk. It was acknowledged, perhaps, the state "
            f"ends with entry {machine.applied_index}, and no other node holds it: restore a copy of this "
            "node's folder, or go on without it, and all that came after it, by `raftstate recover DIR "
            "--accept-loss`"
        )


class StateLostError(DataLossError):
    """The state can't be opened, while the log can; other nodes may have it.

    `log_boundary`: what the log holds begins behind it.
    """

    def __init__(self, message: str, log_boundary: int) -> None:
        super().__init__(message)
        self.log_boundary = log_boundary


def state_is_lost(
    error: RaftstateError, settings: NodeSettings, members: Sequence[Member], log_boundary: int
) -> DataLossError:
    """Return what to raise for a state that can't be opened, beside a log that can. `members`: as far as they
    are known otherwise."""
    if {member.id for member in members or settings.cluster.members} - {settings.node_id}:
        return StateLostError(error.message, log_boundary)
    return DataLossError(
        f"{error.message}. No other node holds it: restore a copy of this node's folder, or see what "
        "`raftstate check DIR` says of it",
        detail=error.detail,
    )


def open_log(
    settings: NodeSettings, directory: DataDirectory, members: Sequence[Member], *, must_renew: bool
) -> LogStore:
    """Open the log. `members`: as the state beside it knows them. `must_renew`: its disk failed a write, so
    that it goes on in new files.

    Raises `LogLostError` when it is lost, and other nodes may replace this one; else what `LogStore.open`
    does.
    """
    path = directory.path / LOG_FOLDER
    try:
        if must_renew:
            log.warning("copying the log, since the disk failed a write of it", node=settings.name)
            renew_log(path, map_bytes=settings.log_map_bytes)
        return LogStore.open(path, map_bytes=settings.log_map_bytes)
    except DataLossError as error:
        known = {member.id for member in members or settings.cluster.members}
        if known - {settings.node_id}:
            raise LogLostError(error.message, members) from error
        raise DataLossError(
            f"{error.message}. No other node holds what it held: restore a copy of this node's folder, or go "
            "on with the state as of its last checkpoint, and without what came after it, by `raftstate "
            "recover DIR --accept-loss`",
            detail=error.detail,
        ) from error


def make_blank(settings: NodeSettings, directory: Path) -> None:
    """Make, durably, the data of a node that joins its cluster: an empty log, and a state without members."""
    LogStore.open(directory / LOG_FOLDER, map_bytes=settings.log_map_bytes, create=True).close()
    state = StateStore.create(directory, settings.state_map_bytes)
    with state.write() as tables:
        Machine.blank(tables, settings.cluster.cluster_id)
    state.checkpoint(0)
    state.close(clean=True)


def fit_log_to_state(log_store: LogStore, machine: Machine, durable_index: int) -> None:
    """Finish an install that a crash cut short, cut off damage to what was applied, and see to it that the
    log does not hold the first entry of all: whoever needs that one joins, and needs a snapshot instead.

    Raises:
        DataLossError: log and state don't fit.
        StorageError: the log can't be written.
    """
    hard_state = reset_to_finish(log_store, machine.applied_index, machine.applied_term)
    if hard_state is not None:
        log.warning("finishing an install", applied=machine.applied_index, last_index=log_store.last_index())
        log_store.publish(log_store.reset(hard_state, machine.applied_index, machine.applied_term))
    cut_damage(log_store, machine.applied_index, machine.applied_term)
    if durable_index >= 1:
        cut = log_store.compact(1, 1)
        if cut is not None:
            log_store.publish(cut)


def open_directory(settings: NodeSettings) -> DataDirectory:
    """Open the data directory, or create it if this is the very first start and the settings say so."""
    path = settings.data_path
    member = settings.member
    identity = Identity(
        cluster_id=settings.cluster.cluster_id,
        node_id=member.id,
        incarnation=member.incarnation,
        name=member.name,
    )
    if (path / "identity").exists():
        directory = DataDirectory.open(path, identity)
        try:
            replacement.finish(directory, lambda fresh: make_blank(settings, fresh))
        except BaseException:
            directory.close()
            raise
        data_made(settings)  # again, if a crash came between the two
        return directory
    if not settings.bootstrap:
        name = identity.name
        raise FailedPreconditionError(
            f"{path} holds no data of node {name}, and a node that lost its data must not come back under "
            "its old identity: what it has acknowledged would be gone. Have it replaced: `raftstate member "
            f"replace {name} --out DIR` on any machine that reaches the cluster, then start DIR. If this is "
            "the very first start of a new cluster or member, give --bootstrap"
        )

    def populate(directory: Path) -> None:
        LogStore.open(directory / LOG_FOLDER, map_bytes=settings.log_map_bytes, create=True).close()
        state = StateStore.create(directory, settings.state_map_bytes)
        members = initial_members(settings.cluster)
        with state.write() as tables:
            if settings.join:
                Machine.blank(tables, settings.cluster.cluster_id)
            else:
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
        default_metrics: whether to open a port for metrics, too, where the settings say nothing of one.
    """

    def __init__(
        self,
        settings: NodeSettings,
        stores: Stores,
        on_halt: Callable[[], None],
        *,
        listen_clients: bool = True,
        listen_peers: bool = True,
        default_metrics: bool = True,
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
        self._snapshot_disk = StateSnapshots(stores.state, stores.directory.path, machine.cluster_id)
        self._applier = StateApplier(
            machine,
            stores.state,
            self._log_writer,
            clock,
            self._halt,
            adopt=self._snapshot_disk.adopt,
            log_margin_bytes=stores.log_margin_bytes,
            log_margin_entries=settings.log_margin_entries,
            log_boundary=stores.log.first_index() - 1,
        )
        member = settings.member
        self._links = PeerLinks(
            LocalPeer(
                settings.cluster.cluster_id,
                member.id,
                stores.directory.identity.incarnation,
                MACHINE_VERSION,
            ),
            peer_addresses(settings, machine.members or self._noted_members()),
            LinkEvents(
                body=lambda sender, body: self.driver.receive(sender, body),
                turn=lambda: self.driver.turn(),
                met=lambda peer, version: self.driver.upkeep.met(peer, version),
                lost=lambda peer: self.driver.link_lost(peer),
                refused=lambda peer, welcome: self.membership.admission.refused(peer, welcome),
                admit=lambda hello: self.membership.admission.admit(hello),
                takes=lambda peer, incarnation, body: self.membership.admission.takes(
                    peer, incarnation, body
                ),
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
        place = Place(
            settings.cluster.cluster_id,
            member.id,
            stores.directory.identity.incarnation,
            member.name,
            settings.own_peer_address,
            settings.client_address,
            alone=not listen_peers,
        )
        self.membership = Membership(self.driver, self._links, clock, place, self._members_changed)
        storage.source = self.driver.snapshots.own.snapshot
        self._applier.hold_log_from(self._log_needed_from)
        self.service = LocalNode(
            self.driver,
            self.membership,
            machine,
            stores.log,
            stores.state,
            clock,
            name=member.name,
            version=importlib.metadata.version("raftstate"),
        )
        self.service.checkpoint_age_ns = lambda: self._applier.checkpoint_age_ns
        WipedPeers(self.driver, self._links, self._replace_wiped)
        Refill(
            self.driver,
            self._log_writer,
            self._links,
            clock,
            durable_index=lambda: stores.state.durable_applied_index,
            need_snapshot=self._need_snapshot,
        )
        self._rebuilder = StateRebuilder(stores.state, stores.log, self._applier, self.driver, self._halt)
        self._repair = NodeRepair(self._rebuilder, stores.state, stores.log)
        self.integrity = Integrity(self.driver, world, self._repair, distrusted=stores.state.distrusted())
        self._applier.on_damage = self.integrity.damaged
        self.service.scrub_times = lambda: self._scrubber.times_ms()
        self._scrubber = Scrubber(
            machine,
            stores.state,
            stores.log,
            self._applier,
            clock,
            rate_bytes_per_s=settings.scrub_rate_bytes_per_s,
            on_damage=lambda error, hidden: self.integrity.damaged(error, hidden=hidden),
            on_log_damage=self.driver.look_at_log,
            may_scrub=lambda: not self.integrity.quarantined and not self.driver.is_installing,
        )
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
            self.driver,
            stores.state,
            stores.log,
            self._log_writer,
            self._defragmenter,
            cut_index=lambda: self._applier.cut_index(closely=True),
        )
        self._eraser = Eraser(machine, self._erase_files, clock, stores.directory.path)
        self._defragmenter.erased_index = lambda: self._eraser.erased_index
        self.service.defragmenter, self.service.eraser = self._defragmenter, self._eraser
        self._applier.on_adopted(self._eraser.state_installed)
        self._applier.on_exchanged(self._eraser.state_exchanged)
        self._applier.on_applied(self.service.watch_hub.applied)
        self._applier.on_adopted(self.service.watch_hub.state_replaced)
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
        if self._rpc is not None:
            rpc = self._rpc
            self.driver.leader_watchers.append(lambda _leader: rpc.health_changed())
            self.driver.fitness.watch(rpc.health_changed)
        self._clock = clock
        self._default_metrics = default_metrics
        self._ops: OpsServer | None = None

    async def start(self) -> None:
        """Open the ports and take part."""
        self._note_members(self._stores.machine.members)
        if self._listen_peers:
            host, port = split_address(self._settings.peer_listener)
            await self._links.start(host, port)
        self._applier.start()
        self.disk_watch.start()
        self.driver.start()
        self._defragmenter.start()
        self._eraser.start()
        self.integrity.start()
        self._scrubber.start()
        if self._rpc is not None:
            await self._rpc.start()
        await self._start_ops()
        log.info(
            "serving",
            node=self._settings.name,
            client=self._settings.client_listener if self._rpc is not None else None,
            peer=self._settings.peer_listener if self._listen_peers else None,
            metrics=self.service.metrics_address or None,
            applied=self._stores.machine.applied_index,
        )

    async def _start_ops(self) -> None:
        """Open the port for metrics and probes."""
        settings = self._settings
        listener = settings.metrics_listener
        if listener is None or not (self._default_metrics or settings.listen_metrics):
            return
        # Here, so that a node without that port need not load what serves it.
        from raftstate.ops.metric import Parts
        from raftstate.ops.server import OpsServer

        parts = Parts(
            name=settings.name,
            version=importlib.metadata.version("raftstate"),
            driver=self.driver,
            service=self.service,
            applier=self._applier,
            links=self._links,
            log=self._stores.log,
            log_writer=self._log_writer,
            state=self._stores.state,
            meter=self._rpc.meter if self._rpc is not None else None,
        )
        host, port = listener
        ops = OpsServer(parts, self._clock.monotonic_ns)
        try:
            bound = await ops.start(host, port)
        except ConfigError as error:
            await ops.close()
            if settings.listen_metrics is not None:
                raise
            # Nobody asked for this port by name: a node that served before it knew of metrics still does.
            log.warning("no metrics", reason=str(error))
            return
        self._ops = ops
        self.service.metrics_address = join_address(host, bound)

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
        self.integrity.stop()
        # Before the services wait for what is under way: a stream of watches has no end of its own.
        self.service.watch_hub.close()
        try:
            if self._rpc is not None:
                await self._rpc.stop_serving()
                await self._rpc.stop(grace_s=1.0)
            await self._links.close()
            if self._ops is not None:
                await self._ops.close()
        finally:
            self.disk_watch.close()
            try:
                self._log_writer.close()
            except StorageError as error:
                # Only the commit index was still to be written, and the leader tells it again.
                log.warning("commit index not saved", node=self._settings.name, reason=str(error))
            finally:
                self.service.close()
                await self._defragmenter.close()
                await self._repair.close()
                await self._scrubber.close()
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

    def _replace_wiped(self, record: Member, replaced: Replaced) -> None:
        def done(outcome: MembersChanged | Rejected) -> None:
            if isinstance(outcome, Rejected):
                replaced(outcome.fault.message)
            else:
                found = next((member for member in outcome.members if member.id == record.id), None)
                replaced(found or f"{record.name} was removed meanwhile")

        self.membership.submit(ReplaceMember(record.name), REPLACE_NS_MAX, done)

    def _need_snapshot(self, min_index: int) -> None:
        log.warning(
            "no peer's log holds the damaged entries any more; a state that contains them is needed",
            node=self._settings.name,
            min_index=min_index,
        )

    def _members_changed(self) -> None:
        members = self.driver.applied.members
        self._note_members(members)
        self._links.set_peers(peer_addresses(self._settings, members or self._noted_members()))

    def _noted_members(self) -> list[Member]:
        identity = self._stores.directory.identity
        return noted_members(self._stores.directory.path, identity.cluster_id)

    def _note_members(self, members: Sequence[Member]) -> None:
        if members:
            identity = self._stores.directory.identity
            note_members(self._stores.directory.path, identity.cluster_id, members)


def peer_addresses(settings: NodeSettings, members: Sequence[Member]) -> dict[int, tuple[str, ...]]:
    """Return where a node dials the others.

    Args:
        settings: of the node. What they say of a member by its name comes first and alone.
        members: as the node has applied them; none: it is new, and goes by the members of its settings.

    Returns:
        For each other member host:ports to try in turn: that of its record, and that of the settings' list if
        that is another one, since a cluster whose nodes all moved while they were down has no leader who
        could record it.
    """
    configured = {member.id: member for member in settings.cluster.members}
    known = members or configured.values()
    found: dict[int, tuple[str, ...]] = {}
    for member in known:
        if member.id == settings.node_id:
            continue
        mapped = settings.peer_addresses.get(member.name)
        listed = configured.get(member.id)
        others = [listed.peer_address] if listed is not None and listed.name == member.name else []
        found[member.id] = (
            (mapped,) if mapped is not None else tuple(dict.fromkeys((member.peer_address, *others)))
        )
    return found


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
