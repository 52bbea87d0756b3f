"""Sends snapshots: one transfer for each follower that needs one, at the pace that the follower asks for.

    core: SNAP to F ──> offered ──> F pulls, chunks go ──> F: finished ──> F catches up by the log
                           │               │                    │
                           └───────────────┴── no progress, ────┴──> failed: the core is told, after a pause
                                               refused, or gone

The core's message travels in the offer. The core is told how it ended (`report_snapshot`), or it would wait
for ever for a follower that is not coming. After the install the log is kept for as long as the follower
catches up: else it would be cut behind it, and the follower need the next snapshot, and so on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum, auto

from raftstate.core.progress import ProgressState
from raftstate.core.rawnode import RawNode
from raftstate.core.roles import Role
from raftstate.core.types import Message
from raftstate.logs import get_logger
from raftstate.machine.types import MEMBERSHIP_SINCE
from raftstate.measure import Histogram
from raftstate.node.environment import (
    Network,
    SnapshotChunk,
    SnapshotDisk,
    SnapshotFinished,
    SnapshotOffer,
    SnapshotPull,
    SnapshotWithdrawn,
)
from raftstate.node.snapshot_files import OwnSnapshot, OwnSnapshots

log = get_logger(__name__)

CHUNK_BYTES = 64 << 10
"""In one frame: what else goes to that follower waits for no more than this."""
WINDOW_BYTES_MAX = 1 << 20
"""Read and sent for one pull, however much was asked for."""
PULLS_MAX = 4
"""Of one follower that wait to be answered; it pulls again what was lost."""
OFFER_NS = 500_000_000
"""A follower that was not heard of for so long is offered it again: the offer, or its answer, may be lost."""
STALL_NS = 10_000_000_000
"""A transfer is given up when nothing new was asked for in so long, several times what a link takes to be
dialled again, or a follower to be started: it may be down, and the log is kept for it."""
VERIFY_NS_MIN = 60_000_000_000
VERIFY_NS_PER_MIB = 100_000_000
"""How long a follower that has all bytes, and says that it is alive, may take to verify and install them: ten
times what a slow disk takes."""
FAILED_NS = 1_000_000_000
"""After a transfer failed the core is told so late that refusals do not come with every heartbeat."""
CAUGHT_UP_ENTRIES = 1_000
"""A follower is back when it is no further behind: some 10 ms of the largest load."""


class _Phase(Enum):
    OFFERED = auto()
    CATCHING_UP = auto()
    FAILED = auto()


class _Transfer:
    """What is known of one follower that is sent a snapshot. Times are monotonic, in ns."""

    def __init__(self, id: int, message: Message, snapshot: OwnSnapshot, now_ns: int) -> None:
        self.id = id
        self.message = message
        self.peer = message.to
        self.snapshot = snapshot
        self.phase = _Phase.OFFERED
        self.began_ns = self.moved_ns = now_ns
        """When it last came on."""
        self.heard_ns = self.offered_ns = now_ns
        self.asked_to = 0
        """All before this offset was asked for."""
        self.complete_ns: int | None = None
        """When the follower first said that it has all bytes."""
        self.match = 0
        """Of the follower's log, while it catches up."""
        self.pulls: deque[SnapshotPull] = deque()
        self.reading = False


class SnapshotSender:
    """The transfers of a leader.

    Args:
        raw: the core.
        network: to the followers.
        disk: reads the files.
        own: the files.
        now_ns: a monotonic clock.
        knows: returns the newest machine version that a peer's code knows.
        first_id: random, so that ids don't meet those of a life before a restart.
    """

    def __init__(
        self,
        raw: RawNode,
        network: Network,
        disk: SnapshotDisk,
        own: OwnSnapshots,
        now_ns: Callable[[], int],
        knows: Callable[[int], int],
        first_id: int,
    ) -> None:
        self._raw = raw
        self._network = network
        self._disk = disk
        self._own = own
        self._now_ns = now_ns
        self._knows = knows
        self._next_id = first_id
        self._transfers: dict[int, _Transfer] = {}
        """By follower."""
        self.sent_seconds = Histogram()
        """Of snapshots, from the offer until the follower had installed them."""
        self.failed = 0
        """How many were not sent after all."""

    @property
    def under_way(self) -> int:
        """How many followers are being sent one."""
        return sum(transfer.phase is _Phase.OFFERED for transfer in self._transfers.values())

    # -- the core's side

    def send(self, message: Message) -> None:
        """Take a SNAP message of the core on its way."""
        peer = message.to
        if peer in self._transfers:
            self._end(self._transfers[peer], "another one is sent")
        snapshot = self._own.use(message.snapshot.metadata) if message.snapshot is not None else None
        if snapshot is None:
            self._raw.report_snapshot(peer, ok=False)  # it went between the core's look and this one
            return
        now_ns = self._now_ns()
        transfer = self._transfers[peer] = _Transfer(self._next_id, message, snapshot, now_ns)
        self._next_id += 1
        log.info("snapshot offered", to=peer, index=snapshot.index, bytes=snapshot.file.size_bytes)
        self._offer(transfer, now_ns)

    def _offer(self, transfer: _Transfer, now_ns: int) -> None:
        transfer.offered_ns = now_ns
        # Older code takes the frame for garbage. It is offered once the peer runs newer, or is given up.
        if self._knows(transfer.peer) >= MEMBERSHIP_SINCE:
            file = transfer.snapshot.file
            offer = SnapshotOffer(transfer.id, transfer.message, file.size_bytes, file.raw_bytes)
            self._network.send(transfer.peer, offer)

    # -- the follower's side

    def pulled(self, peer: int, pull: SnapshotPull) -> None:
        """A follower asks for bytes."""
        transfer = self._transfers.get(peer)
        if transfer is None or transfer.id != pull.id or transfer.phase is not _Phase.OFFERED:
            self._network.send(peer, SnapshotWithdrawn(pull.id, "it is not being sent any more"))
            return
        now_ns = self._now_ns()
        transfer.heard_ns = now_ns
        size = transfer.snapshot.file.size_bytes
        if pull.offset >= size:
            if transfer.complete_ns is None:
                transfer.complete_ns = now_ns
            return
        end = min(pull.offset + min(pull.window_bytes, WINDOW_BYTES_MAX), size)
        if pull.offset < 0 or end <= pull.offset:
            return
        if end > transfer.asked_to:
            transfer.asked_to = end
            transfer.moved_ns = now_ns
        if len(transfer.pulls) < PULLS_MAX:
            transfer.pulls.append(pull)
            self._read_next(transfer)

    def _read_next(self, transfer: _Transfer) -> None:
        if transfer.reading or not transfer.pulls:
            return
        transfer.reading = True
        pull = transfer.pulls.popleft()

        def read(data: bytes | BaseException) -> None:
            transfer.reading = False
            if self._transfers.get(transfer.peer) is not transfer or transfer.phase is not _Phase.OFFERED:
                return
            if isinstance(data, BaseException):
                self._own.retire(transfer.snapshot)
                self._fail(transfer, f"its file can't be read: {data}")
                return
            for at in range(0, len(data), CHUNK_BYTES):
                chunk = SnapshotChunk(transfer.id, pull.offset + at, data[at : at + CHUNK_BYTES])
                if not self._network.send(transfer.peer, chunk):
                    break  # it is pulled again
            self._read_next(transfer)

        self._disk.read(transfer.snapshot.file, pull.offset, min(pull.window_bytes, WINDOW_BYTES_MAX), read)

    def finished(self, peer: int, finished: SnapshotFinished) -> None:
        """A follower needs no more of an offer."""
        transfer = self._transfers.get(peer)
        if transfer is None or transfer.id != finished.id or transfer.phase is not _Phase.OFFERED:
            return
        if finished.ok:
            self._raw.report_snapshot(peer, ok=True)
            self._catch_up(transfer)
            return
        if finished.damaged:
            # Whatever is wrong with it, the next one is made anew from the state.
            self._own.retire(transfer.snapshot)
        self._fail(transfer, f"node {peer} refuses it: {finished.reason}", tell=False)

    # -- time

    def tick(self, now_ns: int) -> None:
        """Look after all transfers."""
        raft = self._raw.raft
        for transfer in list(self._transfers.values()):
            progress = raft.tracker.progress.get(transfer.peer)
            if raft.state is not Role.LEADER or raft.term != transfer.message.term or progress is None:
                self._end(transfer, "its sender does not lead any more, or the receiver is no member")
            elif transfer.phase is _Phase.FAILED:
                if now_ns - transfer.moved_ns >= FAILED_NS:
                    self._end(transfer, "")
                    self._raw.report_snapshot(transfer.peer, ok=False)
            elif transfer.phase is _Phase.CATCHING_UP:
                self._look_at_match(transfer, progress.match, now_ns)
            elif (
                progress.state is not ProgressState.SNAPSHOT
                or progress.pending_snapshot != transfer.snapshot.index
            ):
                # It acknowledged something that this log goes on from: the install, or an older append.
                if progress.match < transfer.snapshot.index:
                    self._end(transfer, "the log is enough")
                else:
                    self._catch_up(transfer)
            else:
                self._look_at_transfer(transfer, now_ns)

    def _look_at_transfer(self, transfer: _Transfer, now_ns: int) -> None:
        if transfer.snapshot.index < self._raw.raft.raft_log.first_index() - 1:
            self._own.retire(transfer.snapshot)
            self._fail(transfer, "the log was cut behind it meanwhile")
        elif transfer.complete_ns is not None:
            mib = transfer.snapshot.file.raw_bytes >> 20
            patience_ns = VERIFY_NS_MIN + mib * VERIFY_NS_PER_MIB
            if now_ns - transfer.heard_ns > STALL_NS or now_ns - transfer.complete_ns > patience_ns:
                self._fail(transfer, "it was not installed in time")
        elif now_ns - transfer.moved_ns > STALL_NS:
            self._fail(transfer, f"nothing more was asked for in {STALL_NS // 1_000_000_000} s")
        quiet_since_ns = max(transfer.heard_ns, transfer.offered_ns)
        if transfer.phase is _Phase.OFFERED and now_ns - quiet_since_ns > OFFER_NS:
            self._offer(transfer, now_ns)

    def _look_at_match(self, transfer: _Transfer, match: int, now_ns: int) -> None:
        if match > transfer.match:
            transfer.match, transfer.moved_ns = match, now_ns
        behind = self._raw.raft.raft_log.committed - max(match, transfer.snapshot.index)
        if behind <= CAUGHT_UP_ENTRIES or now_ns - transfer.moved_ns > STALL_NS:
            took_s = (now_ns - transfer.began_ns) / 1e9
            log.info("follower caught up", node=transfer.peer, behind=behind, seconds=round(took_s, 2))
            self._end(transfer, "")

    def _catch_up(self, transfer: _Transfer) -> None:
        transfer.phase = _Phase.CATCHING_UP
        transfer.moved_ns = self._now_ns()
        self.sent_seconds.observe_ns(transfer.moved_ns - transfer.began_ns)
        transfer.pulls.clear()

    def _fail(self, transfer: _Transfer, reason: str, *, tell: bool = True) -> None:
        log.warning("snapshot not sent", to=transfer.peer, index=transfer.snapshot.index, reason=reason)
        if tell:
            self._network.send(transfer.peer, SnapshotWithdrawn(transfer.id, reason))
        self.failed += 1
        transfer.phase = _Phase.FAILED
        transfer.moved_ns = self._now_ns()
        transfer.pulls.clear()

    def _end(self, transfer: _Transfer, reason: str) -> None:
        del self._transfers[transfer.peer]
        if transfer.phase is _Phase.OFFERED and reason:
            self._network.send(transfer.peer, SnapshotWithdrawn(transfer.id, reason))
        self._own.release(transfer.snapshot)

    def log_needed_from(self) -> int | None:
        """Return the index behind which the log is needed by those who are sent a snapshot, or catch up after
        one; None: there are none."""
        return min(
            (
                max(transfer.snapshot.index, transfer.match)
                for transfer in self._transfers.values()
                if transfer.phase is not _Phase.FAILED
            ),
            default=None,
        )

    def stop(self) -> None:
        """End all transfers; the followers find out."""
        for transfer in list(self._transfers.values()):
            self._end(transfer, "its sender is stopping")
