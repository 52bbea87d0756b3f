"""The driver: moves a core. Messages, ticks and requests go in; appends, applies, frames and answers come
out.

One turn: hand waiting requests and reads to the core, then take each Ready apart. Messages to peers leave
first, then the log write is begun, so that leader and followers write at the same time; acknowledgements and
votes travel as `responses` of the write and leave when it is durable. Committed entries go to the applier, at
most one portion a turn, so that sockets and timers get theirs.

Whatever can't be gone on from (a failed log write, a broken invariant) halts the driver: everything that
waits is answered, nothing more is acknowledged, and `on_halt` is told why.

No socket, thread, clock or random source is used here but those that were passed in.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from raftstate.core.conf_change import decode_conf_change
from raftstate.core.errors import Damaged, StepLocalMessage, StepPeerNotFound
from raftstate.core.membership import ConfChangeError
from raftstate.core.progress import ProgressState
from raftstate.core.rawnode import RawNode
from raftstate.core.roles import Role
from raftstate.core.storage import NO_LIMIT
from raftstate.core.types import (
    LOCAL_APPEND_THREAD,
    LOCAL_APPLY_THREAD,
    NONE,
    ConfChange,
    ConfChangeV2,
    ConfState,
    Entry,
    EntryType,
    HardState,
    Message,
    MessageType,
    Snapshot,
)
from raftstate.errors import InvariantError
from raftstate.logs import get_logger
from raftstate.machine.machine import Machine
from raftstate.machine.types import Code, EntryResult, Fault, Item
from raftstate.node.applied import AppliedState
from raftstate.node.clock import LeaseClock
from raftstate.node.environment import (
    Applier,
    Clock,
    Forward,
    ForwardReply,
    LeaseStamp,
    LogDisk,
    Network,
    Outcome,
    PeerBody,
    Rejected,
    Reply,
    SnapshotDisk,
    TransferLeader,
)
from raftstate.node.fitness import Fitness
from raftstate.node.frames import FrameError
from raftstate.node.installs import Installs
from raftstate.node.lag import LogAges
from raftstate.node.parts import DriverPart
from raftstate.node.reads import ReadDone, Reads
from raftstate.node.requests import Requests, last_stamp
from raftstate.node.snapshots import Snapshots
from raftstate.node.succession import Succession
from raftstate.node.upkeep import LEASES_SINCE, Upkeep

log = get_logger(__name__)

STAMP_TICKS = 10
"""A leader tells its lease clock with every tenth heartbeat while anything lives by it: whoever leads next
has missed little of it."""
HOLD_COMMIT_S = 0.004
"""How long news of a commit waits for an append that carries it along. It is half of all messages otherwise,
and no client waits for it; a read on a follower hears of the commit with its round's heartbeat."""
_NOT_FOR_PEERS = frozenset({MessageType.PROP, MessageType.FORGET_LEADER, MessageType.SNAP})
"""Beside the core's own list of local messages. Forwarding proposals is the node's affair, not the core's,
and a snapshot's message travels in an offer: the core must not have it before the bytes are here."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The cluster's times: all its nodes must use the same."""

    heartbeat_ms: int
    """A tick: between two heartbeats of a leader. A staleness bound can't be tighter."""
    election_timeout_ms: int
    """The core draws each election timeout from [this, 2 x this)."""

    @property
    def election_ticks(self) -> int:
        """The election timeout in heartbeats."""
        return max(2, round(self.election_timeout_ms / self.heartbeat_ms))


@dataclass(frozen=True, slots=True)
class World:
    """Everything outside of the driver that it uses."""

    clock: Clock
    network: Network
    log_disk: LogDisk
    applier: Applier
    random: random.Random
    on_halt: Callable[[BaseException], None]
    snapshot_disk: SnapshotDisk


class Driver:
    """Runs `raw` in `world`. All methods are called on one thread, and none blocks."""

    def __init__(
        self,
        raw: RawNode,
        machine: Machine,
        world: World,
        timing: Timing,
        *,
        history_retention_ns: int = 0,
    ) -> None:
        self._tick_ns = timing.heartbeat_ms * 1_000_000
        self.timing = timing
        self.history_retention_ns = history_retention_ns
        self.raw = raw
        self._machine = machine
        self._world = world
        self._clock = world.clock
        now_ns = world.clock.monotonic_ns()
        self._lease_clock = LeaseClock(now_ns, machine.lease_clock_ms)
        self.requests = Requests(
            raw,
            world.network,
            world.clock.monotonic_ns,
            self._stamps,
            self.describe_leader,
            # Ids must not meet those of this node's life before a restart: an answer to one of them may still
            # be on its way.
            first_forward_id=world.random.getrandbits(62),
        )
        self.upkeep = Upkeep(
            raw,
            machine,
            self._lease_clock,
            self.requests.propose_own,
            history_retention_ns=history_retention_ns,
        )
        nonce = world.random.getrandbits(64).to_bytes(8, "big")
        self.reads = Reads(raw, world.clock.boot_ns, nonce, self.describe_leader)
        self.applied_index = raw.raft.raft_log.applied
        self.applied = AppliedState.of(machine)
        """As of `applied_index`."""
        self._unapplied: dict[int, Message] = {}
        """What was given to the applier and is not applied yet, by its last index."""
        self._turn_scheduled = False
        self._taking_turn = False
        self.halted: BaseException | None = None
        self._retired = ""
        self._stopped = False
        self._role = raw.raft.state
        self._lead = raw.raft.lead
        self.last_leader = NONE
        self.leader_heard_ns = now_ns
        self.leader_changes = 0
        """How often this node came to know a leader, other than the one before or after none."""
        self.ticked_ns = now_ns
        """When the last tick was (monotonic)."""
        self.log_ages = LogAges()
        """On a leader: how old what its followers lack is."""
        self._tick_due_ns = now_ns
        self._ticks_until_stamp = 0
        self._held_commits: dict[int, Message] = {}
        self._holding = False
        self.has_watches: Callable[[], bool] = lambda: False
        """Whether somebody wants to be told at once of what is applied."""
        self.leader_watchers: list[Callable[[int], None]] = []
        """Called with the new leader's id (NONE: none) at each change."""
        self.membership_watchers: list[Callable[[AppliedState], None]] = []
        """Called with what was applied before, once a change of the membership is."""
        self.damage_watchers: list[Callable[[Sequence[int]], None]] = []
        """Called with the indexes of the log's damaged records at each change."""
        self._damaged: Sequence[int] = ()
        self.parts: list[DriverPart] = []
        """What stands beside this driver, and is told what happens."""
        self.install_watchers: list[Callable[[], None]] = []
        """Called when a snapshot's state has taken the place of this node's."""
        self.result_watchers: list[Callable[[Sequence[EntryResult]], None]] = []
        """Called with the results of the entries that were applied, before anybody is answered."""
        self.fitness = Fitness()
        """What keeps this node from leading or being read."""
        self.succession = Succession(
            raw,
            world.clock,
            world.network,
            world.log_disk,
            self.fitness,
            election_timeout_ms=timing.election_timeout_ms,
            voters=lambda: self.applied.conf_state.voters,
            leader_silent_ns=lambda: world.clock.monotonic_ns() - self.leader_heard_ns,
            guard=self._guard,
            turn=self.turn,
        )
        self._installs = Installs(world.log_disk, world.snapshot_disk, world.applier)
        self.snapshots = Snapshots(
            raw,
            world.network,
            world.snapshot_disk,
            world.clock.monotonic_ns,
            self.fitness,
            cluster_id=machine.cluster_id,
            first_id=world.random.getrandbits(62),
            applied_index=lambda: self.applied_index,
            is_blank=lambda: self.applied.is_blank,
            knows=self.upkeep.knows,
            step=self._step_snapshot,
        )
        self.membership_watchers.append(lambda _: self.snapshots.own.membership_changed(self.applied_index))
        self._handlers: dict[type, Callable[[int, Any], None]] = {
            Message: self._receive_message,
            Forward: self._receive_forward,
            ForwardReply: self.requests.replied,
            LeaseStamp: lambda sender, stamp: self._go_by(sender, stamp.lease_clock_ms),
            TransferLeader: self._receive_transfer,
        }
        for body, handler in self.snapshots.handlers.items():
            self.on(body, self._guarded(handler))

    # -- life

    def start(self) -> None:
        """Begin to tick. A sole voter leads at once: it has nobody to wait for."""
        self.look_at_log()
        self.raw.raft.may_campaign = self.fitness.may_lead
        if self.applied.conf_state.voters == (self.raw.raft.id,):
            self._guard(self.raw.campaign)
        self._schedule_tick()
        self.schedule_turn()

    def stop(self) -> None:
        """End: answer everything, and do nothing more."""
        self._stopped = True
        self._answer_all("this node is stopping")

    def retire(self, reason: str) -> None:
        """Take no more requests: this node is about to end its part, and who asks it would only lose time."""
        self._retired = reason

    def halt(self, error: BaseException) -> None:
        """End this node's part for good: it can't go on, and `error` says why."""
        self._halt(error)

    def _halt(self, error: BaseException) -> None:
        if self.halted is None:
            self.halted = error
            self._answer_all(f"this node has halted: {error}")
            self._world.on_halt(error)

    def _answer_all(self, reason: str) -> None:
        self.requests.stop(reason)
        self.reads.stop(reason)
        self.snapshots.stop()
        for part in self.parts:
            part.stopped(reason)

    @property
    def running(self) -> bool:
        """Whether the driver takes part."""
        return self.halted is None and not self._stopped

    # -- the log's damage

    def met_damage(self, error: Damaged) -> None:
        """A read of the log met a damaged record. What wanted it did not happen, and is asked for again."""
        log.error("damaged log record", node=self.raw.raft.id, error=str(error))
        self.look_at_log()

    def look_at_log(self) -> None:
        """Go by what is known of the log's damage now."""
        damaged = self._world.log_disk.damaged
        if damaged is self._damaged:
            return
        self._damaged = damaged
        raft_log = self.raw.raft.raft_log
        ahead = [index for index in damaged if index > raft_log.applying]
        raft_log.readable_to = ahead[0] - 1 if ahead else NO_LIMIT
        for watcher in list(self.damage_watchers):
            watcher(damaged)
        if not damaged and self.raw.raft.state is Role.LEADER:
            # Its own acknowledgements were held back; no append need follow that would bring another one.
            self._acknowledge_own(raft_log.unstable.offset - 1)
        self.schedule_turn()

    def _acknowledge_own(self, index: int) -> None:
        raft = self.raw.raft
        own = raft.id
        response = Message(MessageType.APP_RESP, to=own, from_=own, term=raft.term, index=index)
        self._guard(lambda: self._step_own(response))

    @property
    def is_installing(self) -> bool:
        """Whether a snapshot takes the place of the state, and has not yet."""
        return self._installs.is_under_way

    # -- what comes in

    def submit(self, item: Item, commands: int, timeout_ns: int, reply: Reply) -> None:
        """Have an item applied; `reply` is called once."""
        if not self.running or self._retired:
            reply(self._not_running())
            return
        self.requests.submit(item, commands, timeout_ns, reply)
        self.schedule_turn()

    def read(self, timeout_ns: int, done: ReadDone) -> None:
        """Confirm a linearizable read; `done` is called once."""
        if not self.running or self._retired:
            done(self._not_running())
            return
        self.reads.submit(timeout_ns, done)
        self.schedule_turn()

    def wait_for(self, index: int, timeout_ns: int, done: ReadDone) -> None:
        """Wait until the entry at `index` is applied here; `done` is called once."""
        if not self.running or self._retired:
            done(self._not_running())
            return
        self._world.applier.hurry()
        self.reads.wait_for(index, timeout_ns, self.applied_index, done)

    def _not_running(self) -> Rejected:
        reason = self._retired or "this node is not running"
        return Rejected(Fault(Code.NO_LEADER, reason), applied_never=True)

    def receive(self, sender: int, body: PeerBody) -> None:
        """Take what a peer sent. `turn` must follow, once everything that arrived together was given."""
        if self.running:
            self._handlers[type(body)](sender, body)

    def on(self, kind: type, handler: Callable[[int, Any], None]) -> None:
        """Have `handler` called with (sender, body) for each body of a type that this driver itself does not
        know: a part of the node registers what it takes."""
        self._handlers[kind] = handler

    @property
    def committed_index(self) -> int:
        """The last entry that is known here to be committed."""
        return self.raw.raft.raft_log.committed

    def state_rebuilt(self, index: int) -> None:
        """The state was made anew, from a copy as of `index`: what is known of it is taken from it again.

        If `index` is beyond what was applied here, the entries up to there are still to come from the core;
        the machine passes over them, and what it would have answered is not known.
        """
        self.applied = AppliedState.of(self._machine)
        self.requests.passed_over(index, "this node's state was rebuilt, and the write may be in it")
        self.schedule_turn()

    def _guarded(self, handler: Callable[[int, Any], None]) -> Callable[[int, Any], None]:
        return lambda sender, body: self._guard(lambda: handler(sender, body))

    def _receive_transfer(self, _sender: int, transfer: TransferLeader) -> None:
        if self.raw.raft.state is Role.LEADER:
            # Otherwise dropped: two nodes with old news of each other would play ball with it.
            self.transfer_leader(transfer.target)

    def _receive_message(self, sender: int, message: Message) -> None:
        # To the core a message without a term is this node's own, and bound by none.
        is_own = not message.term and message.type is not MessageType.READ_INDEX
        is_ours = message.from_ == sender and message.to == self.raw.raft.id
        if is_own or not is_ours or message.type in _NOT_FOR_PEERS:
            log.warning(
                "message ignored",
                sender=sender,
                type=message.type.name,
                from_=message.from_,
                to=message.to,
                term=message.term,
            )
            return
        if self.applied.is_blank and message.type is MessageType.APP and message.index == 0:
            # A node that joins has no state to apply the first entries to: the leader's log may begin with
            # them, and its state did not. It is answered nothing until the leader has a snapshot to send.
            return
        if (
            self.applied.is_blank
            and message.type is MessageType.HEARTBEAT
            and message.commit > self.raw.raft.raft_log.last_index()
        ):
            # Of a leader that has not heard yet that this node begins anew: it goes by what an earlier
            # incarnation acknowledged.
            return
        self._guard(lambda: self._step_peer(message))
        if sender == self.raw.raft.lead:
            self.leader_heard_ns = self._clock.monotonic_ns()
            if message.type is MessageType.APP and message.term == self.raw.raft.term:
                self._go_by(sender, last_stamp(message.entries))

    def _go_by(self, sender: int, stamp_ms: int | None) -> None:
        """Set the lease clock by a stamp, if it is the leader's."""
        if sender == self.raw.raft.lead and stamp_ms is not None:
            self._lease_clock.set(self._clock.monotonic_ns(), stamp_ms)

    def _step_peer(self, message: Message) -> None:
        try:
            self.raw.step(message)
        except (StepLocalMessage, StepPeerNotFound) as error:
            log.warning("message ignored", sender=message.from_, type=message.type.name, error=str(error))

    def _receive_forward(self, sender: int, forward: Forward) -> None:
        def reply(outcome: Outcome) -> None:
            if isinstance(outcome, Rejected):
                self._world.network.send(sender, ForwardReply(forward.id, rejected=outcome))
                return
            try:
                self._world.network.send(sender, ForwardReply(forward.id, executed=outcome))
            except FrameError as error:
                # The machine's limits keep answers below a frame; if one is not, that is no reason to halt.
                log.error("answer not sent", to=sender, index=outcome.index, error=str(error))
                fault = Fault(
                    Code.UNKNOWN_OUTCOME, f"the write was applied, but its answer is too large: {error}"
                )
                self._world.network.send(
                    sender, ForwardReply(forward.id, rejected=Rejected(fault, applied_never=False))
                )

        if self.raw.raft.state is not Role.LEADER:
            # Not passed on again: two nodes with old news of each other would play ball with it.
            message = f"node {self.raw.raft.id} does not lead any more; {self.describe_leader()}"
            reply(Rejected(Fault(Code.NO_LEADER, message), applied_never=True))
            return
        self.requests.submit(
            forward.item, forward.commands, forward.timeout_ms * 1_000_000, reply, forwarded=True
        )

    def link_lost(self, peer: int) -> None:
        """A connection to or from `peer` was closed or reset, as happens at once when its process dies."""
        if not self.running:
            return
        self.requests.link_lost(peer)
        self.upkeep.lost(peer)
        self._guard(lambda: self.raw.report_unreachable(peer))
        for part in self.parts:
            self._guard(lambda part=part: part.link_lost(peer))  # type: ignore[misc]
        if peer == self.raw.raft.lead:
            # A leader that lives says so with its next heartbeat; PreVote keeps this harmless when only one
            # connection broke.
            self.succession.leader_gone()
        self.schedule_turn()

    def transfer_leader(self, target: int) -> None:
        """Hand leadership over, or ask the leader to. Whether it happened is seen by the leader changing."""
        self.succession.transfer(target)
        self.schedule_turn()

    # -- time

    def _schedule_tick(self) -> None:
        self._tick_due_ns = self._clock.monotonic_ns() + self._tick_ns
        self._clock.call_later(self._tick_ns / 1e9, self._tick_timer)

    def _tick_timer(self) -> None:
        if not self.running:
            return
        late_ns = self._clock.monotonic_ns() - self._tick_due_ns
        if late_ns > self._tick_ns:
            # After a stall what waits in the sockets comes first: a heartbeat among it means that the leader
            # lives. The loop polls its sockets between two turns, so the tick takes the turn after the next.
            # One tick is counted, however long it was.
            self._clock.call_soon(lambda: self._clock.call_soon(self._tick))
        else:
            self._tick()

    def _tick(self) -> None:
        if not self.running:
            return
        self.ticked_ns = self._clock.monotonic_ns()
        self._lease_clock.step(self.ticked_ns)
        self.look_at_log()
        if not self._world.applier.is_beside:
            self.upkeep.note_revision(self.ticked_ns)
        self.raw.raft.may_campaign = self.succession.may_campaign
        self._guard(self.raw.tick)
        self.requests.expire()
        self.reads.expire(self.applied_index)
        self._guard(self.snapshots.tick)
        if self.raw.raft.state is Role.LEADER:
            self._lead_tick()
        for part in self.parts:
            self._guard(part.ticked)
        self._schedule_tick()
        self.turn()

    def _lead_tick(self) -> None:
        now_ns = self._clock.monotonic_ns()
        self.leader_heard_ns = now_ns
        self.log_ages.note(now_ns, self.raw.raft.raft_log.last_index())
        if not self.succession.look():
            return
        if not self._world.applier.is_beside:
            self._guard(lambda: self.upkeep.look(now_ns, self.applied_index))
        self._ticks_until_stamp -= 1
        if self._ticks_until_stamp <= 0:
            self._ticks_until_stamp = STAMP_TICKS
            self._send_stamp()

    def _send_stamp(self) -> None:
        # Code that knows no leases takes the stamp for garbage, and closes the connection.
        if self.applied.machine_version >= LEASES_SINCE and self.applied.needs_lease_clock:
            stamp = LeaseStamp(self.lease_clock_ms())
            for peer in self.raw.raft.tracker.progress:
                if peer != self.raw.raft.id:
                    self._world.network.send(peer, stamp)

    def follower_lag_ns(self, match_index: int) -> int:
        """Return how long ago the first entry was appended that a member with this match lacks; 0: it has
        all. On a leader."""
        return self.log_ages.behind_ns(self._clock.monotonic_ns(), match_index)

    def log_write_pending_ns(self) -> int:
        """Return for how long the oldest write of the log has been under way; 0: none is."""
        since_ns = self._world.log_disk.outstanding_since_ns
        return 0 if since_ns is None else max(0, self._clock.monotonic_ns() - since_ns)

    def lease_clock_ms(self) -> int:
        """Return the lease clock as this node has it: on a follower an estimate, rather too low."""
        return self._lease_clock.step(self._clock.monotonic_ns())

    def _stamps(self) -> tuple[int, int]:
        """Return what an envelope is stamped with: lease clock and wall clock, in ms."""
        return self.lease_clock_ms(), self._clock.wall_ns() // 1_000_000

    # -- turns

    def schedule_turn(self) -> None:
        """Take a turn soon: requests that arrive together share an entry."""
        if not self._turn_scheduled:
            self._turn_scheduled = True
            self._clock.call_soon(self.turn)

    def turn(self) -> None:
        """Hand over what waits, and take apart what the core has ready."""
        self._turn_scheduled = False
        if self._taking_turn:
            return  # the turn under way goes on for as long as anything is ready
        self._taking_turn = True
        try:
            self._guard(self._take_turn)
        finally:
            self._taking_turn = False

    def _take_turn(self) -> None:
        raw = self.raw
        self._note_leader()  # what a new leader proposes first is stamped by its clock as it is from then on
        self._guard(self.requests.flush)
        self._guard(self.reads.flush)
        applied_before = self.applied_index
        while raw.has_ready():
            if self.applied_index != applied_before:
                self.schedule_turn()
                return
            try:
                ready = raw.ready()
            except Damaged as error:
                # From now on the core hands out nothing behind that entry, and the rest of what is ready.
                self.met_damage(error)
                self.schedule_turn()
                return
            if ready.read_states:
                self.reads.confirmed(ready.read_states, self.applied_index)
                if self.reads.wait_for_apply:
                    self._world.applier.hurry()
            for message in ready.messages:
                self._dispatch(message)
            self._note_leader()

    def _dispatch(self, message: Message) -> None:
        if message.to == LOCAL_APPEND_THREAD:
            self._append(message)
        elif message.to == LOCAL_APPLY_THREAD:
            self._apply(message)
        elif message.type is MessageType.APP:
            self._send_append(message)
        elif message.type is MessageType.SNAP:
            self.snapshots.sender.send(message)
        else:
            self._world.network.send(message.to, message)

    def _send_append(self, message: Message) -> None:
        peer = message.to
        # A newer append says all that one held back would have said.
        self._held_commits.pop(peer, None)
        if not message.entries and self._only_tells_commit(peer):
            self._held_commits[peer] = message
            if not self._holding:
                self._holding = True
                self._clock.call_later(HOLD_COMMIT_S, self._send_held_commits)
        elif not self._world.network.send(peer, message):
            self.raw.report_unreachable(peer)

    def _only_tells_commit(self, peer: int) -> bool:
        """Whether an append without entries to a peer is mere news: it is not asked where its log matches."""
        raft = self.raw.raft
        progress = raft.tracker.progress.get(peer)
        return (
            raft.state is Role.LEADER and progress is not None and progress.state is ProgressState.REPLICATE
        )

    def _send_held_commits(self) -> None:
        self._holding = False
        held, self._held_commits = self._held_commits, {}
        if self.running:
            for peer, message in held.items():
                self._world.network.send(peer, message)

    def _append(self, message: Message) -> None:
        hard_state = None
        if message.term or message.vote or message.commit:
            hard_state = HardState(message.term, message.vote, message.commit)
        responses = message.responses

        def done(error: BaseException | None) -> None:
            if error is not None:
                if self.running:  # otherwise it was given up, since the node stops
                    self._halt(error)
                return
            self.look_at_log()
            if not self._installs.keep_back(responses):
                self._guard(lambda: self._respond(responses))
                self.turn()

        if message.snapshot is not None:
            self._install(message.snapshot, hard_state)
        self._world.log_disk.append(hard_state, message.entries, done)

    def _install(self, snapshot: Snapshot, hard_state: HardState | None) -> None:
        """Begin to install what the core wants in place of the log. What comes with it is written behind it,
        and answered when this node goes on with the new state."""
        if hard_state is None:
            raise InvariantError("the core wants a snapshot installed, and the commit index did not move")
        prepared = self.snapshots.receiver.take(snapshot.metadata)
        index = snapshot.metadata.index
        self._installs.begin(
            prepared, hard_state, lambda: self._guard(lambda: self._installed(index)), self._halt
        )

    def _installed(self, index: int) -> None:
        self.look_at_log()  # what was damaged may have gone with the log
        before = self.applied
        self.applied_index = index
        self.applied = AppliedState.of(self._machine)
        self._lease_clock.raise_to(self.applied.lease_clock_ms)
        for watcher in self.install_watchers:
            watcher()
        self.requests.installed()
        self._respond(self._installs.end())
        # What the applier had not come to is in the new state. The core waits for word of it nevertheless.
        unapplied, self._unapplied = self._unapplied, {}
        for message in unapplied.values():
            self._respond(message.responses)
        self.snapshots.installed()
        if (before.conf_state, before.members) != (self.applied.conf_state, self.applied.members):
            self._membership_changed(before)
        self.reads.applied(index)
        self.schedule_turn()

    def _step_snapshot(self, message: Message) -> None:
        """Give the core a snapshot's message: its bytes are here, or not needed."""
        self._guard(lambda: self.raw.step(message))
        self.turn()

    def _respond(self, responses: Sequence[Message]) -> None:
        own = self.raw.raft.id
        for response in responses:
            if not self.running:
                return
            if self._damaged and response.type is MessageType.APP_RESP and not response.reject:
                # It would vouch for everything up to its index.
                index = min(response.index, self._damaged[0] - 1)
                response = msgspec.structs.replace(response, index=index)
            if response.to == own:
                self._step_own(response)
            else:
                self._world.network.send(response.to, response)

    def _step_own(self, response: Message) -> None:
        try:
            self.raw.step(response)
        except Damaged as error:
            self.met_damage(error)
        except StepPeerNotFound:
            # It has gone over to a configuration without itself meanwhile, and counts for nothing there.
            log.debug("own response ignored", type=response.type.name)

    def _apply(self, message: Message) -> None:
        entries = message.entries
        conf_states: dict[int, ConfState] = {}
        for entry in entries:
            if entry.type is not EntryType.NORMAL:
                conf_states[entry.index] = self._go_over(entry)
        self._unapplied[entries[-1].index] = message

        def done(results: list[EntryResult]) -> None:
            del self._unapplied[entries[-1].index]
            before = self.applied
            self.applied_index = entries[-1].index
            self.applied = AppliedState.of(self._machine)
            if conf_states:
                self._guard(lambda: self._membership_changed(before))
            self._guard(lambda: self._applied(message.responses, results))
            self.schedule_turn()

        waited_for = self.reads.wait_for_apply or self.has_watches()
        lazily = self.raw.raft.state is not Role.LEADER and not waited_for
        self._world.applier.apply(entries, conf_states, done, lazily=lazily)

    def _go_over(self, entry: Entry) -> ConfState:
        """Go over to the configuration that an entry leads to, and return it."""
        change: ConfChange | ConfChangeV2 = decode_conf_change(entry)
        try:
            conf_state = self.raw.apply_conf_change(change)
        except ConfChangeError as error:
            # Leaders compare a change before they propose it. Whatever this one is, it fits on no node.
            log.error("membership change without effect", index=entry.index, error=str(error))
            return self.raw.raft.tracker.conf_state()
        for part in self.parts:
            part.went_over(change)
        return conf_state

    def _membership_changed(self, before: AppliedState) -> None:
        log.info("members", members=[f"{m.name}{' (learner)' * m.learner}" for m in self.applied.members])
        for watcher in list(self.membership_watchers):
            watcher(before)

    def _applied(self, responses: Sequence[Message], results: Sequence[EntryResult]) -> None:
        self._respond(responses)
        self._lease_clock.raise_to(self.applied.lease_clock_ms)
        for watcher in self.result_watchers:
            watcher(results)
        # What a state that can't be trusted made of a write may be no true answer to it.
        self.requests.applied(results, withheld=self.fitness.why_not_read())
        self.reads.applied(self.applied_index)
        if self.raw.raft.state is Role.LEADER:
            self.upkeep.applied(self._clock.monotonic_ns(), self.applied_index)

    def _note_leader(self) -> None:
        raft = self.raw.raft
        if raft.state is not self._role:
            if raft.state is Role.LEADER:
                self._become_leader()
            self._role = raft.state
        if raft.lead != self._lead:
            self._lead = raft.lead
            if raft.lead != NONE:
                self.leader_changes += 1
                self.last_leader = raft.lead
                self.leader_heard_ns = self._clock.monotonic_ns()
                log.info("leader", node=raft.id, leader=raft.lead, term=raft.term)
            for watcher in list(self.leader_watchers):
                watcher(raft.lead)

    def _become_leader(self) -> None:
        now_ns = self._clock.monotonic_ns()
        self.succession.began_to_lead()
        self._lease_clock.raise_to(max(self.applied.lease_clock_ms, self._last_log_stamp_ms()))
        self.upkeep.began_to_lead(now_ns)
        self.log_ages.clear()

    def _last_log_stamp_ms(self) -> int:
        """Return the last stamp in the log beyond what is applied; 0 when there is none. Entries without one
        (of new leaders, and of changes of the membership) come singly."""
        raft_log = self.raw.raft.raft_log
        for index in range(raft_log.last_index(), self.applied_index, -1):
            try:
                stamp_ms = last_stamp(raft_log.slice(index, index + 1, 0))
            except Damaged as error:
                self.met_damage(
                    error
                )  # it hands over at once; its clock may be late, which ends nothing early
                continue
            if stamp_ms is not None:
                return stamp_ms
        return 0

    def describe_leader(self) -> str:
        """Return what this node knows of the leader, for people."""
        raft = self.raw.raft
        if raft.state is Role.LEADER:
            return f"node {raft.id} leads term {raft.term}, but hears from no majority"
        silent_ms = (self._clock.monotonic_ns() - self.leader_heard_ns) // 1_000_000
        if raft.lead != NONE:
            return f"node {raft.id} follows node {raft.lead} in term {raft.term}, heard of {silent_ms} ms ago"
        if self.last_leader == NONE:
            return f"node {raft.id} is in term {raft.term} and has seen no leader since it started"
        seen = f"last saw a leader, node {self.last_leader}, {silent_ms} ms ago"
        return f"node {raft.id} is in term {raft.term} and {seen}"

    def _guard(self, action: Callable[[], object]) -> None:
        """Run an action of the core or the store.

        What it raises is no result but the end of this node's part; unless it is a damaged record of the log,
        which is mended beside the core.
        """
        if not self.running:
            return
        try:
            action()
        except Damaged as error:
            self.met_damage(error)
        except Exception as error:  # noqa: BLE001 - not swallowed: it halts the node
            self._halt(error)
