"""Copies of a state for nodes whose own can't be trusted: asked for, not sent by a leader of its own accord.

    asker                                    source, any node that shows what it holds
    RepairRequest(min_index), again and again ──>  a snapshot of that index or later is at hand, or made
    RepairPull(offset, size) ──>                   <── RepairOffer
    built, verified, given to the asker's node     <── RepairChunk ...

The core takes no part, and neither node's log is touched. The source serves what is asked for and remembers
only which file; the asker asks again for what is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from raftstate.core.errors import SnapshotTemporarilyUnavailable
from raftstate.core.types import SnapshotMetadata
from raftstate.errors import FailedPreconditionError, InvariantError, RaftstateError, ResourceExhaustedError
from raftstate.logs import get_logger
from raftstate.node.environment import (
    Clock,
    Network,
    PreparedState,
    RepairChunk,
    RepairOffer,
    RepairPull,
    RepairRequest,
    SnapshotBuild,
    SnapshotDisk,
)
from raftstate.node.snapshot_files import OwnSnapshot, OwnSnapshots

log = get_logger(__name__)

PULL_BYTES = 512 << 10
"""Asked for at once, and in memory."""
CHUNK_BYTES = 64 << 10
"""In one frame: what else goes to that node waits for no more than this."""
ASK_S = 0.5
"""Without an answer for so long, the last question is asked again."""
STALL_NS = 15_000_000_000
"""Without a word for so long, a copy is given up; longer than it takes to restart a node."""
UNUSED_NS = 30_000_000_000
"""A copy that nobody pulls for so long is not kept for its asker."""


@dataclass(slots=True)
class _Serving:
    id: int
    snapshot: OwnSnapshot
    asked_ns: int


class RepairSource:
    """Gives copies of this node's state to others.

    Args:
        own: its snapshots.
        disk: reads their files.
        network: to the peers.
        clock: the node's.
        why_not: returns why nothing of this node may be shown; empty: it may.
    """

    def __init__(
        self,
        own: OwnSnapshots,
        disk: SnapshotDisk,
        network: Network,
        clock: Clock,
        why_not: Callable[[], str],
    ) -> None:
        self._own = own
        self._disk = disk
        self._network = network
        self._clock = clock
        self._why_not = why_not
        self._serving: dict[int, _Serving] = {}
        """By asker."""

    def requested(self, sender: int, request: RepairRequest) -> None:
        """A node asks for a copy."""
        self._drop_unused()
        serving = self._serving.get(sender)
        if serving is not None and (serving.id != request.id or serving.snapshot.index < request.min_index):
            self._drop(sender)
            serving = None
        why_not = self._why_not()
        if why_not:
            self._drop(sender)
            self._network.send(sender, RepairOffer(request.id, refusal=f"it shows nothing itself: {why_not}"))
            return
        if serving is None:
            snapshot = self._at_hand(request.min_index)
            if snapshot is None:
                self._network.send(sender, RepairOffer(request.id))
                return
            serving = self._serving[sender] = _Serving(request.id, snapshot, 0)
            log.info("copy of the state offered", to=sender, index=snapshot.index)
        serving.asked_ns = self._clock.monotonic_ns()
        file = serving.snapshot.file
        self._network.send(sender, RepairOffer(request.id, file.metadata, file.size_bytes, file.raw_bytes))

    def _at_hand(self, min_index: int) -> OwnSnapshot | None:
        """Return a snapshot in use; None: one is being made."""
        try:
            metadata = self._own.snapshot().metadata
            snapshot = self._own.use(metadata)
            if snapshot is not None and snapshot.index < min_index:
                self._own.retire(snapshot)
                self._own.release(snapshot)
                self._own.snapshot()
                return None
        except SnapshotTemporarilyUnavailable:
            return None
        return snapshot

    def pulled(self, sender: int, pull: RepairPull) -> None:
        """A node asks for bytes of what it was offered."""
        serving = self._serving.get(sender)
        if serving is None or serving.id != pull.id or self._why_not():
            refusal = "it is not offered any more"
            self._network.send(sender, RepairOffer(pull.id, refusal=refusal))
            return
        serving.asked_ns = self._clock.monotonic_ns()
        file = serving.snapshot.file
        size = min(pull.size, PULL_BYTES, max(0, file.size_bytes - pull.offset))

        def read(data: bytes | BaseException) -> None:
            if isinstance(data, BaseException):
                self._network.send(sender, RepairOffer(pull.id, refusal=f"it can't be read: {data}"))
                return
            for at in range(0, len(data), CHUNK_BYTES):
                chunk = RepairChunk(pull.id, pull.offset + at, data[at : at + CHUNK_BYTES])
                if not self._network.send(sender, chunk):
                    return  # it is asked for again

        if size:
            self._disk.read(file, pull.offset, size, read)

    def _drop_unused(self) -> None:
        now_ns = self._clock.monotonic_ns()
        for sender, serving in list(self._serving.items()):
            if now_ns - serving.asked_ns > UNUSED_NS:
                self._drop(sender)

    def _drop(self, sender: int) -> None:
        serving = self._serving.pop(sender, None)
        if serving is not None:
            self._own.release(serving.snapshot)

    def tick(self) -> None:
        """Let go what nobody pulls. Called about once a second."""
        self._drop_unused()


class BuildDisk(Protocol):
    """What a `RepairFetch` asks of a `SnapshotDisk`."""

    def why_no_room(self, raw_bytes: int) -> str:
        """See `SnapshotDisk.why_no_room`."""
        ...

    def build(self) -> SnapshotBuild:
        """See `SnapshotDisk.build`."""
        ...


class RepairFetch:
    """Gets a copy of another node's state, and builds it here: one at a time.

    Args:
        disk: builds states.
        network: to the peers.
        clock: the node's.
        cluster_id: of this node.
        first_id: random, so that ids don't meet those of a life before a restart.
    """

    def __init__(
        self, disk: BuildDisk, network: Network, clock: Clock, cluster_id: int, first_id: int
    ) -> None:
        self._disk = disk
        self._network = network
        self._clock = clock
        self._cluster_id = cluster_id
        self._id = first_id
        self._done: Callable[[PreparedState | BaseException], None] | None = None
        self._source = self._min_index = 0
        self._offer: RepairOffer | None = None
        self._build: SnapshotBuild | None = None
        self._received_to = self._asked_to = 0
        self._feeding = 0
        self._verifying = False
        self._heard_ns = self._asked_ns = 0

    def begin(
        self, source: int, min_index: int, done: Callable[[PreparedState | BaseException], None]
    ) -> None:
        """Get a copy from `source` that ends with entry `min_index` or later. `done` is called once: with the
        copy, verified and durable; or with why there is none.

        Raises `InvariantError` while another one is on its way.
        """
        if self._done is not None:
            raise InvariantError("a copy of the state is asked for while another one is on its way")
        self._id += 1
        self._done = done
        self._source, self._min_index = source, min_index
        self._offer = self._build = None
        self._received_to = self._asked_to = self._feeding = 0
        self._verifying = False
        self._heard_ns = self._clock.monotonic_ns()
        self._ask()
        self._look(self._id)

    def cancel(self, why: str) -> None:
        """Give up what is on its way, if anything."""
        if self._done is not None:
            self._end(FailedPreconditionError(why))

    def offered(self, sender: int, offer: RepairOffer) -> None:
        """The source has answered."""
        if self._done is None or sender != self._source or offer.id != self._id:
            return
        self._heard_ns = self._clock.monotonic_ns()
        if offer.refusal:
            self._end(FailedPreconditionError(f"node {sender} gives no copy of its state: {offer.refusal}"))
        elif self._offer is None and offer.metadata is not None:
            no_room = self._disk.why_no_room(offer.raw_bytes)
            if no_room:
                self._end(ResourceExhaustedError(f"there is no room for a copy of the state: {no_room}"))
                return
            self._offer = offer
            self._build = self._disk.build()
            log.info(
                "copy of the state begun", source=sender, index=offer.metadata.index, bytes=offer.size_bytes
            )
            self._ask()

    def chunk(self, sender: int, chunk: RepairChunk) -> None:
        """Some bytes have come."""
        build = self._build
        if build is None or sender != self._source or chunk.id != self._id:
            return
        if chunk.offset != self._received_to or not chunk.data or self._verifying:
            return  # repeated, or something before it is lost: it is asked for again
        self._heard_ns = self._clock.monotonic_ns()
        self._received_to += len(chunk.data)
        self._feeding += 1
        current = self._id

        def fed(error: BaseException | None) -> None:
            if self._id != current or self._done is None:
                return
            self._feeding -= 1
            if error is not None:
                self._end(error)
            elif not self._feeding:
                self._ask_if_all_came()

        build.feed(chunk.data, fed)

    def _ask_if_all_came(self) -> None:
        assert self._offer is not None
        if self._received_to >= self._offer.size_bytes:
            self._finish()
        elif self._received_to >= self._asked_to:
            self._ask()

    def _ask(self) -> None:
        self._asked_ns = self._clock.monotonic_ns()
        if self._offer is None:
            self._network.send(self._source, RepairRequest(self._id, self._min_index))
            return
        size = min(PULL_BYTES, self._offer.size_bytes - self._received_to)
        self._asked_to = self._received_to + size
        self._network.send(self._source, RepairPull(self._id, self._received_to, size))

    def _finish(self) -> None:
        build, offer = self._build, self._offer
        assert build is not None
        assert offer is not None
        self._verifying = True
        current = self._id

        def finished(result: PreparedState | BaseException) -> None:
            if self._id != current or self._done is None:
                if not isinstance(result, BaseException):
                    result.discard()
                return
            if isinstance(result, BaseException):
                self._end(result)
                return
            refusal = self._why_not(result, offer.metadata)
            if refusal:
                result.discard()
                self._end(FailedPreconditionError(refusal))
                return
            done, self._done = self._done, None
            self._build = self._offer = None
            done(result)

        build.finish(finished)

    def _why_not(self, prepared: PreparedState, offered: SnapshotMetadata | None) -> str:
        if prepared.cluster_id != self._cluster_id:
            return f"the copy is of cluster {prepared.cluster_id:#x}, not of {self._cluster_id:#x}"
        if prepared.metadata != offered:
            return f"the copy is {prepared.metadata}, {offered} was offered"
        index = prepared.metadata.index
        if index < self._min_index:
            return f"the copy ends with entry {index}, {self._min_index} or later was asked for"
        return ""

    def _look(self, current: int) -> None:
        """Ask again for what is lost; give up where nothing comes."""
        if self._id != current or self._done is None:
            return
        now_ns = self._clock.monotonic_ns()
        if not self._verifying and not self._feeding:
            if now_ns - self._heard_ns > STALL_NS:
                self._end(RaftstateError(f"node {self._source} has said nothing for {STALL_NS // 10**9} s"))
                return
            if now_ns - max(self._asked_ns, self._heard_ns) >= ASK_S * 1e9:
                self._ask()
        self._clock.call_later(ASK_S, lambda: self._look(current))

    def _end(self, error: BaseException) -> None:
        build, self._build = self._build, None
        self._offer = None
        done, self._done = self._done, None
        if build is not None:
            build.discard()
        if done is not None:
            done(error)
