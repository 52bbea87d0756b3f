"""One running node: its parts, how they are wired together, and in which order they start and stop.

Whatever a part needs of another is handed to it here, and nowhere else: the parts know each other by no more
than what they are given.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import random
import secrets
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from raftstate.address import split_address
from raftstate.config import NodeSettings
from raftstate.core.rawnode import RawNode
from raftstate.core.roles import Role
from raftstate.core.types import NONE
from raftstate.errors import FailedPreconditionError, StorageError
from raftstate.logs import get_logger
from raftstate.machine.types import MACHINE_VERSION, Member
from raftstate.node.admission import Place
from raftstate.node.applier import StateApplier
from raftstate.node.clock import LoopClock
from raftstate.node.defragment import Defragmenter
from raftstate.node.disk import DiskSettings, DiskWatch
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
from raftstate.node.refill import LOST, Refill
from raftstate.node.rejoin import Replaced, WipedPeers
from raftstate.node.scrub import Scrubber
from raftstate.node.snapshot_disk import StateSnapshots
from raftstate.node.startup import StartStorage
from raftstate.server.configured import core_config, peer_addresses
from raftstate.server.ports import client_server, open_metrics
from raftstate.server.stores import Stores
from raftstate.store.log_writer import LogWriter

if TYPE_CHECKING:
    from raftstate.ops.server import OpsServer
    from raftstate.rpc.server import RpcServer

log = get_logger(__name__)

REPLACE_NS_MAX = 5_000_000_000
"""How long the replacement of a node that lost its log may take: it takes milliseconds, or the other voters
are no quorum."""
HANDOVER_S_MAX = 0.3
"""How long a leader that is told to stop tries to hand leadership over first. It takes some 10 ms when the
other lives, and can't be done when all are told to stop together."""


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
        self._listen_peers = listen_peers
        self._default_metrics = default_metrics
        self._ops: OpsServer | None = None
        loop = asyncio.get_running_loop()
        self._clock = LoopClock(loop)
        # Each of these takes what the ones before it have made.
        self._make_writers(loop)
        self._make_driver(random.Random(secrets.randbits(64)))
        self._make_membership()
        self._make_service()
        self._make_repair()
        self._make_renewal()
        self._serve_watches()
        self._watch_disk()
        self._rpc = self._make_rpc() if listen_clients else None

    # -- wiring

    def _make_writers(self, loop: asyncio.AbstractEventLoop) -> None:
        """What writes to the log and to the state while the node runs."""
        settings, stores = self._settings, self._stores
        self._log_writer = LogWriter(
            stores.log,
            loop.call_soon_threadsafe,
            clock_ns=self._clock.monotonic_ns,
            release=stores.reserve.release,
        )
        self._snapshot_disk = StateSnapshots(stores.state, stores.directory.path, stores.machine.cluster_id)
        self._applier = StateApplier(
            stores.machine,
            stores.state,
            self._log_writer,
            self._clock,
            self._halt,
            adopt=self._snapshot_disk.adopt,
            log_margin_bytes=stores.log_margin_bytes,
            log_margin_entries=settings.log_margin_entries,
            log_boundary=stores.log.first_index() - 1,
        )

    def _make_driver(self, rng: random.Random) -> None:
        """The core, over what this node has on disk, and the driver that moves it."""
        settings, machine = self._settings, self._stores.machine
        self._links = self._make_links(seed=rng.getrandbits(64))
        self._world = World(
            self._clock,
            self._links,
            self._log_writer,
            self._applier,
            rng,
            self._halt,
            self._snapshot_disk,
        )
        timing = Timing(settings.cluster.heartbeat_ms, settings.cluster.election_timeout_ms)
        storage = StartStorage(self._stores.log, machine.conf_state(), machine.applied_index)
        raw = RawNode(core_config(settings.node_id, storage, timing, machine.applied_index, rng))
        retention_ns = settings.cluster.history_retention_s * 1_000_000_000
        self.driver = Driver(raw, machine, self._world, timing, history_retention_ns=retention_ns)
        storage.source = self.driver.snapshots.own.snapshot
        self._applier.hold_log_from(self._log_needed_from)

    def _make_links(self, *, seed: int) -> PeerLinks:
        """Return the links to the peers. What they bring goes to parts that are made later."""
        settings, stores = self._settings, self._stores
        return PeerLinks(
            LocalPeer(
                settings.cluster.cluster_id,
                settings.node_id,
                stores.directory.identity.incarnation,
                MACHINE_VERSION,
            ),
            peer_addresses(settings, stores.machine.members or self._noted_members()),
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
            seed=seed,
        )

    def _make_membership(self) -> None:
        """Who the members are, which of them this node is, and whom it lets in."""
        settings = self._settings
        place = Place(
            settings.cluster.cluster_id,
            settings.node_id,
            self._stores.directory.identity.incarnation,
            settings.name,
            settings.own_peer_address,
            settings.client_address,
            alone=not self._listen_peers,
        )
        self.membership = Membership(self.driver, self._links, self._clock, place, self._members_changed)

    def _make_service(self) -> None:
        """What clients are served by, whatever carries their calls."""
        stores = self._stores
        self.service = LocalNode(
            self.driver,
            self.membership,
            stores.machine,
            stores.log,
            stores.state,
            self._clock,
            name=self._settings.name,
            version=importlib.metadata.version("raftstate"),
        )
        self.service.checkpoint_age_ns = lambda: self._applier.checkpoint_age_ns

    def _make_repair(self) -> None:
        """What finds damage, here and at peers, and mends it."""
        stores = self._stores
        WipedPeers(self.driver, self._links, self._replace_wiped)
        Refill(
            self.driver,
            self._log_writer,
            self._links,
            self._clock,
            durable_index=lambda: stores.state.durable_applied_index,
            need_snapshot=self._need_snapshot,
        )
        self._rebuilder = StateRebuilder(stores.state, stores.log, self._applier, self.driver, self._halt)
        self._repair = NodeRepair(self._rebuilder, stores.state, stores.log)
        self.integrity = Integrity(
            self.driver, self._world, self._repair, distrusted=stores.state.distrusted()
        )
        self._applier.on_damage = self.service.on_damage = self.integrity.damaged
        self._scrubber = Scrubber(
            stores.machine,
            stores.state,
            stores.log,
            self._applier,
            self._clock,
            rate_bytes_per_s=self._settings.scrub_rate_bytes_per_s,
            on_damage=lambda error, hidden: self.integrity.damaged(error, hidden=hidden),
            on_log_damage=self.driver.look_at_log,
            on_log_lost=self.driver.halt,
            may_scrub=lambda: not self.integrity.quarantined and not self.driver.is_installing,
        )
        self.service.scrub_times = self._scrubber.times_ms

    def _make_renewal(self) -> None:
        """What makes the state's and the log's files anew: to give room back, and to let go of what was
        erased."""
        stores = self._stores
        self._defragmenter = Defragmenter(
            stores.state,
            self._rebuilder,
            self._clock,
            stores.directory.path,
            why_not=self._why_not_copied,
            on_halt=self._halt,
            bytes_min=self._settings.defragment_bytes_min,
        )
        self._erase_files = NodeFiles(
            self.driver,
            stores.state,
            stores.log,
            self._log_writer,
            self._defragmenter,
            cut_index=lambda: self._applier.cut_index(closely=True),
        )
        self._eraser = Eraser(stores.machine, self._erase_files, self._clock, stores.directory.path)
        self._defragmenter.erased_index = lambda: self._eraser.erased_index
        self.service.defragmenter, self.service.eraser = self._defragmenter, self._eraser
        self._applier.on_adopted(self._eraser.state_installed)
        self._applier.on_exchanged(self._eraser.state_exchanged)

    def _serve_watches(self) -> None:
        """Have watches hear of what is applied."""
        hub = self.service.watch_hub
        self._applier.on_applied(hub.applied)
        self._applier.on_adopted(hub.state_replaced)
        self._applier.hold_sweep_while(hub.needs_before)

    def _watch_disk(self) -> None:
        """Have the node mind how much room its disk has, and how it writes."""
        settings, stores = self._settings, self._stores
        self.disk_watch = DiskWatch(
            self.driver,
            stores.log,
            stores.state,
            self._log_writer,
            self._applier,
            stores.reserve,
            self._clock,
            path=stores.directory.path,
            settings=DiskSettings(
                settings.disk_soft_floor_bytes, settings.disk_hard_floor_bytes, settings.quota_bytes
            ),
        )

    def _make_rpc(self) -> RpcServer:
        """Return what serves the clients' port, not open yet."""
        rpc = client_server(self.service, self._settings)
        self.driver.leader_watchers.append(lambda _leader: rpc.health_changed())
        self.driver.fitness.watch(rpc.health_changed)
        return rpc

    # -- life

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
        opened = await open_metrics(settings, listener, parts, self._clock.monotonic_ns)
        if opened is not None:
            self._ops, self.service.metrics_address = opened

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

    # -- what parts ask of the node

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
        # As much of the log as is damaged, and no more, is beyond what the others can send: rare enough to be
        # left to an operator, since to begin anew takes a vote from the cluster for a while.
        self.driver.fitness.limit(
            LOST,
            f"damaged entries of this node's log, up to {min_index}, can't be had from the other nodes any "
            "more: they have compacted them. Let it begin anew: stop it, move its data away, and `raftstate "
            f"member replace {self._settings.name} --out DIR`",
            may_lead=False,
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
