"""Receives a snapshot, and has it installed: one at a time.

    offered ──> pulling: bytes come, and are built into a state beside the one in use
                  └─> verifying ──> prepared: the core is given the message that came with the offer
                                      ├─ it takes it ──> the driver installs it ──> finished
                                      └─ it does not need it any more ──> discarded

Whatever is late, repeated, out of order or of another transfer changes nothing. An offer of a later term
takes the place of an older one; an offer of the same leader that of its earlier one. What was verified is not
made current before the core has asked for it: the core alone knows whether it is newer than what this node
holds.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

from raftstate.core.rawnode import RawNode
from raftstate.core.types import Message, MessageType, SnapshotMetadata
from raftstate.errors import DataLossError, InvariantError, RaftstateError
from raftstate.logs import get_logger
from raftstate.measure import Histogram
from raftstate.node.environment import (
    Network,
    PreparedState,
    SnapshotBuild,
    SnapshotChunk,
    SnapshotDisk,
    SnapshotFinished,
    SnapshotOffer,
    SnapshotPull,
    SnapshotWithdrawn,
)
from raftstate.node.fitness import Fitness

log = get_logger(__name__)

PULL_BYTES = 256 << 10
"""Asked for at once: four chunks, which are on their way while those before them are worked in."""
AHEAD_BYTES = 2 * PULL_BYTES
"""Asked for and not worked in yet, at most; this much of it may be in memory."""
EARLY_MAX = 64
"""Chunks that came before those they follow, and are kept."""
PULL_AGAIN_NS = 500_000_000
"""Without a byte for so long, what was asked for is taken to be lost."""
STALL_NS = 15_000_000_000
"""Without a byte for so long a transfer is given up; longer than its sender waits, so that it is the one to
say so."""
ALARM = "snapshot received"


class _Phase(Enum):
    PULLING = auto()
    VERIFYING = auto()
    PREPARED = auto()
    INSTALLING = auto()


class _Incoming:
    """The snapshot that is being received. Times are monotonic, in ns."""

    def __init__(self, sender: int, offer: SnapshotOffer, build: SnapshotBuild, now_ns: int) -> None:
        self.sender = sender
        self.offer = offer
        self.build = build
        self.phase = _Phase.PULLING
        self.pulled_to = 0
        """All before this offset was asked for."""
        self.received_to = 0
        self.worked_in_to = 0
        self.early: dict[int, bytes] = {}
        """Offset -> bytes that came before those they follow; no more than were asked for."""
        self.prepared: PreparedState | None = None
        self.began_ns = self.asked_ns = self.moved_ns = now_ns

    @property
    def term(self) -> int:
        """Of the leader that offered it."""
        return self.offer.message.term

    @property
    def metadata(self) -> SnapshotMetadata:
        """What is offered."""
        return _metadata(self.offer)


def _metadata(offer: SnapshotOffer) -> SnapshotMetadata:
    snapshot = offer.message.snapshot
    return SnapshotMetadata() if snapshot is None else snapshot.metadata


class SnapshotReceiver:
    """What a node does with snapshots that it is offered.

    Args:
        raw: the core.
        network: to the senders.
        disk: builds states.
        now_ns: a monotonic clock.
        fitness: is told why a snapshot was refused, for operators.
        cluster_id: of this node.
        step: gives the core a message, and takes a turn soon.
    """

    def __init__(
        self,
        raw: RawNode,
        network: Network,
        disk: SnapshotDisk,
        now_ns: Callable[[], int],
        fitness: Fitness,
        cluster_id: int,
        step: Callable[[Message], None],
    ) -> None:
        self._raw = raw
        self._network = network
        self._disk = disk
        self._now_ns = now_ns
        self._fitness = fitness
        self._cluster_id = cluster_id
        self._step = step
        self._incoming: _Incoming | None = None
        self._answered: tuple[int, SnapshotFinished] | None = None
        """(sender, the last answer): it may be lost, and is given again."""
        self._stopped = False
        self.installed_seconds = Histogram()
        """Of snapshots, from the offer until the node went on with them."""
        self.given_up = 0
        """How many were not installed after all."""

    @property
    def is_installing(self) -> bool:
        """Whether the core has asked for an install that is not done yet."""
        incoming = self._incoming
        return incoming is not None and incoming.phase is _Phase.INSTALLING

    # -- what comes in

    def offered(self, sender: int, offer: SnapshotOffer) -> None:
        """A leader offers a snapshot."""
        message = offer.message
        raft = self._raw.raft
        if (
            message.type is not MessageType.SNAP
            or message.from_ != sender
            or message.to != raft.id
            or _metadata(offer).index == 0
            or not message.term  # to the core it would be one of its own
        ):
            log.warning("offer ignored", sender=sender, type=message.type.name, from_=message.from_)
            return
        incoming = self._incoming
        if incoming is not None and (incoming.sender, incoming.offer.id) == (sender, offer.id):
            return
        if self._answered is not None and (self._answered[0], self._answered[1].id) == (sender, offer.id):
            self._network.send(sender, self._answered[1])
            return
        if message.term < raft.term:
            self._answer(sender, offer, f"it is of term {message.term}, this node is in {raft.term}")
            return
        if incoming is not None and not self._gives_way(incoming, sender, offer):
            return
        if not self._needs_bytes(_metadata(offer)):
            # The core answers with what this node holds.
            self._step(message)
            self._answer(sender, offer)
            return
        self._begin(sender, offer)

    def _gives_way(self, incoming: _Incoming, sender: int, offer: SnapshotOffer) -> bool:
        """Give up what is being received for a newer offer, if that is possible, and the offer is newer."""
        newer = offer.message.term > incoming.term or (
            sender == incoming.sender and offer.id > incoming.offer.id
        )
        if not newer:
            return False
        if incoming.phase is _Phase.PULLING:
            self._give_up(incoming, "another one was offered", answer=False)
            return True
        self._answer(sender, offer, "an earlier one is being installed", remember=False)
        return False

    def _needs_bytes(self, metadata: SnapshotMetadata) -> bool:
        raft_log = self._raw.raft.raft_log
        return metadata.index > raft_log.committed and not raft_log.match_term(metadata.index, metadata.term)

    def _begin(self, sender: int, offer: SnapshotOffer) -> None:
        conf_state = _metadata(offer).conf_state
        own = self._raw.raft.id
        if own not in (*conf_state.voters, *conf_state.learners, *conf_state.voters_outgoing):
            self._answer(sender, offer, f"node {own} is no member in it")
            return
        why_not = self._disk.why_no_room(offer.raw_bytes)
        if why_not:
            self._fitness.limit(
                ALARM, f"this node is behind, and can't take the snapshot that it needs: {why_not}"
            )
            self._answer(sender, offer, why_not)
            return
        now_ns = self._now_ns()
        incoming = self._incoming = _Incoming(sender, offer, self._disk.build(), now_ns)
        log.info("snapshot begins", sender=sender, index=incoming.metadata.index, bytes=offer.size_bytes)
        self._pull(incoming)

    def _pull(self, incoming: _Incoming) -> None:
        """Ask for more, as far as there is room for it."""
        size = incoming.offer.size_bytes
        while (
            incoming.pulled_to < size
            and incoming.pulled_to + PULL_BYTES - incoming.worked_in_to <= AHEAD_BYTES
        ):
            self._network.send(
                incoming.sender, SnapshotPull(incoming.offer.id, incoming.pulled_to, PULL_BYTES)
            )
            incoming.pulled_to = min(incoming.pulled_to + PULL_BYTES, size)
            incoming.asked_ns = self._now_ns()

    def chunk(self, sender: int, chunk: SnapshotChunk) -> None:
        """Some bytes of a snapshot."""
        incoming = self._incoming
        if (
            incoming is None
            or (incoming.sender, incoming.offer.id) != (sender, chunk.id)
            or incoming.phase is not _Phase.PULLING
            or not incoming.received_to <= chunk.offset < incoming.pulled_to
            or not chunk.data
            or len(incoming.early) >= EARLY_MAX
        ):
            return  # what was lost is asked for again, what came twice is not needed
        incoming.early[chunk.offset] = chunk.data
        while (data := incoming.early.pop(incoming.received_to, None)) is not None:
            self._take_bytes(incoming, data)
        if self._incoming is incoming:
            incoming.early = {at: data for at, data in incoming.early.items() if at > incoming.received_to}

    def _take_bytes(self, incoming: _Incoming, data: bytes) -> None:
        end = incoming.received_to = incoming.received_to + len(data)
        if end > incoming.offer.size_bytes:
            self._give_up(incoming, f"it has more than the {incoming.offer.size_bytes} bytes offered")
            return
        incoming.pulled_to = max(incoming.pulled_to, end)
        incoming.moved_ns = self._now_ns()

        def worked_in(error: BaseException | None) -> None:
            if self._incoming is not incoming or incoming.phase is not _Phase.PULLING:
                return
            if error is not None:
                self._failed(incoming, error)
                return
            incoming.worked_in_to = end
            if end == incoming.offer.size_bytes:
                self._verify(incoming)
            else:
                self._pull(incoming)

        incoming.build.feed(data, worked_in)

    def withdrawn(self, sender: int, withdrawn: SnapshotWithdrawn) -> None:
        """The sender gives nothing more."""
        incoming = self._incoming
        if (
            incoming is not None
            and (incoming.sender, incoming.offer.id) == (sender, withdrawn.id)
            and incoming.phase is _Phase.PULLING
        ):
            self._give_up(incoming, f"its sender withdrew it: {withdrawn.reason}", answer=False)

    # -- verified and installed

    def _verify(self, incoming: _Incoming) -> None:
        incoming.phase = _Phase.VERIFYING
        self._say_alive(incoming)

        def verified(result: PreparedState | BaseException) -> None:
            if self._incoming is not incoming:
                if not isinstance(result, BaseException):
                    result.discard()
            elif isinstance(result, BaseException):
                self._failed(incoming, result)
            else:
                self._prepared(incoming, result)

        incoming.build.finish(verified)

    def _say_alive(self, incoming: _Incoming) -> None:
        incoming.asked_ns = self._now_ns()
        self._network.send(incoming.sender, SnapshotPull(incoming.offer.id, incoming.offer.size_bytes, 0))

    def _prepared(self, incoming: _Incoming, prepared: PreparedState) -> None:
        offered = incoming.metadata
        if (prepared.cluster_id, prepared.metadata) != (self._cluster_id, offered):
            prepared.discard()
            self._give_up(
                incoming,
                f"its content, cluster {prepared.cluster_id:#x} at {prepared.metadata}, is not what was "
                f"offered: cluster {self._cluster_id:#x} at {offered}",
                damaged=True,
            )
            return
        incoming.prepared = prepared
        incoming.phase = _Phase.PREPARED
        self._step(incoming.offer.message)
        pending = self._raw.raft.raft_log.unstable.snapshot
        if self._incoming is not incoming:
            return  # the node halted
        if pending is None or pending.metadata != offered:
            # It is old by now, or its leader is.
            self._incoming = None
            prepared.discard()
            committed = self._raw.raft.raft_log.committed
            log.info("snapshot not needed", index=offered.index, committed=committed)
            needed = "" if committed >= offered.index else "it came too late: another leader was elected"
            self._answer(incoming.sender, incoming.offer, needed)
            return
        incoming.phase = _Phase.INSTALLING

    def take(self, metadata: SnapshotMetadata) -> PreparedState:
        """Return the state that the core wants installed. It belongs to the caller.

        Raises `InvariantError` when there is none: the core is given no message before there is.
        """
        incoming = self._incoming
        if incoming is None or incoming.prepared is None or incoming.metadata != metadata:
            raise InvariantError(f"the snapshot at index {metadata.index} is to be installed, but not here")
        prepared, incoming.prepared = incoming.prepared, None
        incoming.phase = _Phase.INSTALLING
        return prepared

    def installed(self) -> None:
        """Take note that the node goes on with it."""
        incoming, self._incoming = self._incoming, None
        if incoming is None:
            raise InvariantError("a snapshot was installed that was not received")
        took_s = (self._now_ns() - incoming.began_ns) / 1e9
        self.installed_seconds.observe(took_s)
        log.info("snapshot installed", index=incoming.metadata.index, seconds=round(took_s, 2))
        self._fitness.lift(ALARM)
        self._answer(incoming.sender, incoming.offer)

    # -- ends

    def _failed(self, incoming: _Incoming, error: BaseException) -> None:
        if not isinstance(error, RaftstateError):
            raise error
        self._fitness.limit(ALARM, f"this node is behind, and could not take the snapshot: {error}")
        self._give_up(incoming, str(error), damaged=isinstance(error, DataLossError))

    def _give_up(
        self, incoming: _Incoming, reason: str, *, answer: bool = True, damaged: bool = False
    ) -> None:
        log.warning("snapshot given up", sender=incoming.sender, index=incoming.metadata.index, reason=reason)
        self._incoming = None
        self.given_up += 1
        incoming.build.discard()
        if answer:
            self._answer(incoming.sender, incoming.offer, reason, damaged=damaged)

    def _answer(
        self,
        sender: int,
        offer: SnapshotOffer,
        refusal: str = "",
        *,
        damaged: bool = False,
        remember: bool = True,
    ) -> None:
        finished = SnapshotFinished(offer.id, not refusal, refusal, damaged)
        if remember:
            self._answered = (sender, finished)
        self._network.send(sender, finished)

    def tick(self, now_ns: int) -> None:
        """Ask again for what was lost, and give up what does not come."""
        incoming = self._incoming
        if incoming is None:
            return
        if incoming.phase is _Phase.PULLING:
            if self._raw.raft.term > incoming.term:
                self._give_up(incoming, "another leader was elected")
            elif not self._needs_bytes(incoming.metadata):
                self._give_up(incoming, "the log caught up meanwhile")
            elif now_ns - incoming.moved_ns > STALL_NS:
                self._give_up(incoming, f"no byte of it came in {STALL_NS // 1_000_000_000} s")
            elif now_ns - max(incoming.asked_ns, incoming.moved_ns) > PULL_AGAIN_NS:
                incoming.pulled_to = incoming.received_to
                self._pull(incoming)
                incoming.asked_ns = now_ns
        elif incoming.phase is _Phase.VERIFYING and now_ns - incoming.asked_ns > PULL_AGAIN_NS:
            self._say_alive(incoming)

    def stop(self) -> None:
        """Remove what is not current yet."""
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            if incoming.prepared is not None:
                incoming.prepared.discard()
            incoming.build.discard()
