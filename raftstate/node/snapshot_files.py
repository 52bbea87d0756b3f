"""This node's own snapshots: which one may be handed out, when one is made, and when it goes.

The core asks for one whenever a follower needs what the log holds no more, and asks again with each heartbeat
that such a follower answers. One file is made at a time, serves all who need it, and goes when nobody has
for a while. While it is made or sent, the log is kept from its index on: a follower that has installed it
goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable

from raftstate.core.errors import SnapshotTemporarilyUnavailable
from raftstate.core.types import Snapshot, SnapshotMetadata
from raftstate.errors import RaftstateError
from raftstate.logs import get_logger
from raftstate.node.environment import SnapshotDisk, SnapshotFile
from raftstate.node.fitness import Fitness

log = get_logger(__name__)

UNUSED_NS = 30_000_000_000
"""A file that nobody was sent for so long is removed. A follower that was refused by its own disk, or whose
link broke, asks again within seconds."""
ASKED_NS = 2_000_000_000
"""Between a file being finished, or a transfer failing, and the core asking again, the log is kept for so
long."""
RETRY_NS = 10_000_000_000
"""After a snapshot could not be made (no space, a damaged row) another one is tried."""
ALARM = "snapshot made"


class OwnSnapshot:
    """A finished file, and how many followers it is being sent to."""

    __slots__ = ("asked_ns", "file", "retired", "users")

    def __init__(self, file: SnapshotFile, now_ns: int) -> None:
        self.file = file
        self.users = 0
        self.asked_ns = now_ns
        """When it was last of use."""
        self.retired = False
        """Whether it is handed out no more; it goes with its last user."""

    @property
    def index(self) -> int:
        """The last log entry that it covers."""
        return self.file.metadata.index


class OwnSnapshots:
    """Makes and keeps the snapshots of this node.

    Args:
        disk: makes files.
        now_ns: a monotonic clock.
        fitness: says whether what this node holds may be shown.
        applied_index: returns the last index applied here.
        log_boundary: returns the last index that the log holds no more.
        why_not: returns why this node has no state to offer; empty: it has one.
    """

    def __init__(
        self,
        disk: SnapshotDisk,
        now_ns: Callable[[], int],
        fitness: Fitness,
        *,
        applied_index: Callable[[], int],
        log_boundary: Callable[[], int],
        why_not: Callable[[], str],
    ) -> None:
        self._disk = disk
        self._now_ns = now_ns
        self._fitness = fitness
        self._applied_index = applied_index
        self._log_boundary = log_boundary
        self._why_not = why_not
        self._newest: OwnSnapshot | None = None
        self._retired: list[OwnSnapshot] = []
        self._cancel: Callable[[], None] | None = None
        """Of the one being made."""
        self._made_from = 0
        """The one being made covers at least this index."""
        self._index_min = 0
        """Those before the last change of the membership are of no use to whom it added."""
        self._retry_ns = 0
        self._stopped = False

    # -- for the core

    def snapshot(self) -> Snapshot:
        """See `core.storage.Storage.snapshot`: the metadata of a file that `use` then finds.

        Raises:
            SnapshotTemporarilyUnavailable: there is none, but one is being made, unless this node may show
                nothing.
        """
        why_not = self._why_not() or self._fitness.why_not_read()
        if why_not:
            raise SnapshotTemporarilyUnavailable(f"this node offers no snapshot: {why_not}")
        self._retire_if_stale()
        now_ns = self._now_ns()
        if self._newest is None:
            self._make(now_ns)
            raise SnapshotTemporarilyUnavailable("a snapshot is being made; ask again")
        self._newest.asked_ns = now_ns
        return Snapshot(metadata=self._newest.file.metadata)

    def use(self, metadata: SnapshotMetadata) -> OwnSnapshot | None:
        """Return the file that the core was told of, and keep it until `release`; None: it is gone."""
        newest = self._newest
        if newest is None or newest.file.metadata != metadata:
            return None
        newest.users += 1
        return newest

    def release(self, snapshot: OwnSnapshot) -> None:
        """Take note that one who was sent it is no longer."""
        snapshot.users -= 1
        snapshot.asked_ns = self._now_ns()
        self._remove_unused()

    # -- life of a file

    def _make(self, now_ns: int) -> None:
        if self._cancel is not None or now_ns < self._retry_ns or self._stopped:
            return
        self._made_from = self._applied_index()
        log.info("snapshot begun", applied=self._made_from)
        self._cancel = self._disk.make(self._made)

    def _made(self, made: SnapshotFile | BaseException) -> None:
        self._cancel = None
        now_ns = self._now_ns()
        if isinstance(made, RaftstateError):
            # The disk is full, or a row is damaged: those who need a snapshot wait, and this node goes on.
            self._retry_ns = now_ns + RETRY_NS
            log.error("snapshot failed", error=str(made))
            self._fitness.limit(ALARM, f"no snapshot can be made for followers that are behind: {made}")
            return
        if isinstance(made, BaseException):
            raise made
        self._fitness.lift(ALARM)
        log.info("snapshot made", index=made.metadata.index, bytes=made.size_bytes)
        self._newest = OwnSnapshot(made, now_ns)
        self._retire_if_stale()

    def _retire_if_stale(self) -> None:
        newest = self._newest
        if newest is not None and newest.index < max(self._log_boundary(), self._index_min):
            self.retire(newest)

    def retire(self, snapshot: OwnSnapshot) -> None:
        """Hand a file out no more."""
        if snapshot is self._newest:
            self._newest = None
        if not snapshot.retired:
            snapshot.retired = True
            self._retired.append(snapshot)
        self._remove_unused()

    def _remove_unused(self) -> None:
        for snapshot in [each for each in self._retired if not each.users]:
            self._retired.remove(snapshot)
            self._disk.remove(snapshot.file)

    def membership_changed(self, applied_index: int) -> None:
        """Take note that a change of the membership was applied, at or before this index."""
        self._index_min = applied_index
        self._retire_if_stale()

    def state_replaced(self) -> None:
        """Take note that this node goes on with another state."""
        self._cancel_making()
        if self._newest is not None:
            self.retire(self._newest)

    def tick(self, now_ns: int) -> None:
        """Let go what nobody wants."""
        newest = self._newest
        if newest is not None and not newest.users and now_ns - newest.asked_ns > UNUSED_NS:
            self.retire(newest)

    def log_needed_from(self) -> int | None:
        """Return the index behind which the log is needed, for a snapshot that is made, or about to be sent;
        None: there is none."""
        needed = [each.index for each in self._retired]
        newest = self._newest
        if newest is not None and (newest.users or self._now_ns() - newest.asked_ns < ASKED_NS):
            needed.append(newest.index)
        if self._cancel is not None:
            needed.append(self._made_from)
        return min(needed, default=None)

    def _cancel_making(self) -> None:
        if self._cancel is not None:
            cancel, self._cancel = self._cancel, None
            cancel()

    def stop(self) -> None:
        """Remove all files."""
        self._stopped = True
        self._cancel_making()
        if self._newest is not None:
            self.retire(self._newest)
        for snapshot in self._retired:
            snapshot.users = 0
        self._remove_unused()
