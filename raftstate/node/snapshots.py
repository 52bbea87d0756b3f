"""Snapshots, as a driver has them: those that this node makes and sends, and the one that it receives.

Bytes travel beside the core: it hands out a message with the metadata alone (`snapshot_sender`), and on the
other node takes it once the bytes are there, verified and durable (`snapshot_receiver`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raftstate.core.rawnode import RawNode
from raftstate.core.types import Message
from raftstate.node.environment import (
    Network,
    SnapshotChunk,
    SnapshotDisk,
    SnapshotFinished,
    SnapshotOffer,
    SnapshotPull,
    SnapshotWithdrawn,
)
from raftstate.node.fitness import Fitness
from raftstate.node.snapshot_files import OwnSnapshots
from raftstate.node.snapshot_receiver import SnapshotReceiver
from raftstate.node.snapshot_sender import SnapshotSender


class Snapshots:
    """All about snapshots at one node.

    Args:
        raw: the core.
        network: to the peers.
        disk: makes files and states.
        now_ns: a monotonic clock.
        fitness: the driver's.
        cluster_id: of this node.
        first_id: of the offers; random.
        applied_index: returns the last index applied here.
        is_blank: returns whether this node holds no state yet.
        knows: returns the newest machine version that a peer's code knows.
        step: gives the core a message, and takes a turn soon.
    """

    def __init__(
        self,
        raw: RawNode,
        network: Network,
        disk: SnapshotDisk,
        now_ns: Callable[[], int],
        fitness: Fitness,
        *,
        cluster_id: int,
        first_id: int,
        applied_index: Callable[[], int],
        is_blank: Callable[[], bool],
        knows: Callable[[int], int],
        step: Callable[[Message], None],
    ) -> None:
        self.cluster_id = cluster_id
        self._now_ns = now_ns
        self._is_blank = is_blank
        self.receiver = SnapshotReceiver(raw, network, disk, now_ns, fitness, cluster_id, step)
        self.own = OwnSnapshots(
            disk,
            now_ns,
            fitness,
            applied_index=applied_index,
            log_boundary=lambda: raw.raft.raft_log.first_index() - 1,
            why_not=self._why_no_state,
        )
        self.sender = SnapshotSender(raw, network, disk, self.own, now_ns, knows, first_id)
        self.handlers: dict[type, Callable[[int, Any], None]] = {
            SnapshotOffer: self.receiver.offered,
            SnapshotPull: self.sender.pulled,
            SnapshotChunk: self.receiver.chunk,
            SnapshotFinished: self.sender.finished,
            SnapshotWithdrawn: self.receiver.withdrawn,
        }
        """What is called with (sender, body) of which body."""

    def _why_no_state(self) -> str:
        if self._is_blank():
            return "it holds no state itself yet"
        return "it is about to install one itself" if self.receiver.is_installing else ""

    def tick(self) -> None:
        """Look after everything that may have come to a halt. Called with every heartbeat."""
        now_ns = self._now_ns()
        self.sender.tick(now_ns)
        self.receiver.tick(now_ns)
        self.own.tick(now_ns)

    def log_needed_from(self) -> int | None:
        """Return the index up to which the log may be cut, for the sake of followers that are sent a snapshot
        or are about to be; None: there are none."""
        needed = (self.sender.log_needed_from(), self.own.log_needed_from())
        return min((index for index in needed if index is not None), default=None)

    def installed(self) -> None:
        """Take note that this node goes on with the state that it received."""
        self.own.state_replaced()
        self.receiver.installed()

    def stop(self) -> None:
        """End everything, and remove all files."""
        self.sender.stop()
        self.receiver.stop()
        self.own.stop()
