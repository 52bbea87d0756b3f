"""What a node can tell about itself.

May live here: copies of the state for people and metrics. Nothing in a status changes with the node.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import msgspec

from raftstate.core.membership import TrackerConfig
from raftstate.core.progress import Progress
from raftstate.core.ready import SoftState
from raftstate.core.roles import Role
from raftstate.core.types import NONE, HardState

if TYPE_CHECKING:
    from raftstate.core.raft import Raft


class BasicStatus(msgspec.Struct, frozen=True):
    """A node's own state: cheap to make."""

    id: int
    hard_state: HardState
    soft_state: SoftState
    applied: int
    lead_transferee: int = NONE
    """To whom leadership is being handed over, if this node leads and that is under way."""


class Status(msgspec.Struct, frozen=True):
    """A node's own state, its configuration and, if it leads, what it knows of every member."""

    basic: BasicStatus
    config: TrackerConfig
    progress: dict[int, Progress]
    """By ascending id; empty unless this node leads."""


def basic_status(raft: Raft) -> BasicStatus:
    """Return the state of `raft` without its peers."""
    return BasicStatus(
        id=raft.id,
        hard_state=HardState(raft.term, raft.vote, raft.raft_log.committed),
        soft_state=SoftState(raft.lead, raft.state),
        applied=raft.raft_log.applied,
        lead_transferee=raft.lead_transferee,
    )


def status(raft: Raft) -> Status:
    """Return the state of `raft`, with a copy of all progress if it leads."""
    progress = {}
    if raft.state is Role.LEADER:
        progress = {node_id: copy.deepcopy(peer) for node_id, peer in raft.tracker.visit()}
    return Status(basic=basic_status(raft), config=raft.tracker.config, progress=progress)
