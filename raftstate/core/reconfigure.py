"""Changes of configuration, as they take effect on this node.

May live here: going over to a configuration, by a change that is applied, by a snapshot, or at the start.
What the next configuration is comes from `membership`; what it means for the role, the commit index and the
reads that wait is decided here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftstate.core import reads, replication
from raftstate.core.membership import (
    Changer,
    ProgressTracker,
    TrackerConfig,
    after_change,
    restore,
)
from raftstate.core.progress import Inflights, Progress
from raftstate.core.roles import Role
from raftstate.core.types import NONE, ConfChange, ConfChangeV2, ConfState, Snapshot
from raftstate.errors import InvariantError

if TYPE_CHECKING:
    from raftstate.core.raft import Raft


def apply_conf_change(raft: Raft, change: ConfChange | ConfChangeV2) -> ConfState:
    """Go over to the configuration that `change`, committed and now applied, leads to.

    Returns:
        The new configuration.

    Raises:
        ConfChangeError: `change` does not fit the present configuration, which is as it was.
    """
    config, progress = after_change(Changer(raft.tracker, raft.raft_log.last_index()), change)
    return _switch_to(raft, config, progress)


def restore_configuration(raft: Raft, conf_state: ConfState) -> None:
    """Go over to a stored configuration, whatever the present one is.

    Raises:
        ConfChangeError: no sequence of changes leads there.
        InvariantError: what was restored is not what was stored.
    """
    raft.tracker = ProgressTracker(raft.tracker.max_inflight, raft.tracker.max_inflight_bytes)
    config, progress = restore(Changer(raft.tracker, raft.raft_log.last_index()), conf_state)
    restored = _switch_to(raft, config, progress)
    if restored != _sorted(conf_state):
        raise InvariantError(
            f"node {raft.id}: the stored configuration is {conf_state}, restored was {restored}"
        )


def restart_progress(raft: Raft, node_id: int) -> None:
    """Begin anew with a learner whose log was lost.

    Raises:
        InvariantError: `node_id` is a voter, or no member.
    """
    known = raft.tracker.progress.get(node_id)
    if known is None or not known.is_learner:
        raise InvariantError(f"node {raft.id}: the progress of node {node_id}, no learner, is not forgotten")
    raft.tracker.progress[node_id] = Progress(
        match=0,
        next=raft.raft_log.last_index() + 1,
        inflights=Inflights(raft.tracker.max_inflight, raft.tracker.max_inflight_bytes),
        is_learner=True,
        recent_active=True,
    )


def _sorted(conf_state: ConfState) -> ConfState:
    return ConfState(
        voters=tuple(sorted(conf_state.voters)),
        learners=tuple(sorted(conf_state.learners)),
        voters_outgoing=tuple(sorted(conf_state.voters_outgoing)),
        learners_next=tuple(sorted(conf_state.learners_next)),
        auto_leave=conf_state.auto_leave,
    )


def restore_snapshot(raft: Raft, snapshot: Snapshot) -> bool:
    """Replace log and configuration by `snapshot`'s, if it tells anything new.

    A snapshot whose last entry this log holds only moves the commit index: the suffix behind it stays.

    Returns:
        Whether the log was replaced.
    """
    metadata = snapshot.metadata
    log = raft.raft_log
    if metadata.index <= log.committed:
        return False
    if raft.state is not Role.FOLLOWER:
        raise InvariantError(
            f"node {raft.id}: a {raft.state.name} in term {raft.term} got the snapshot at {metadata.index}"
        )
    conf_state = metadata.conf_state
    if raft.id not in (*conf_state.voters, *conf_state.learners, *conf_state.voters_outgoing):
        # It was sent to a member; a configuration without this node is no ground to stand on.
        return False
    if log.match_term(metadata.index, metadata.term):
        log.commit_to(metadata.index)
        return False
    log.restore(snapshot)
    restore_configuration(raft, conf_state)
    return True


def _switch_to(raft: Raft, config: TrackerConfig, progress: dict[int, Progress]) -> ConfState:
    raft.tracker.install(config, progress)
    raft.peers = tuple(sorted(progress.keys() - {raft.id}))
    # What the old voters confirmed says nothing about the new ones.
    raft.read_only.drop()
    conf_state = raft.tracker.conf_state()
    own = progress.get(raft.id)
    raft.is_learner = own is not None and own.is_learner
    if raft.state is not Role.LEADER:
        return conf_state
    if own is None or own.is_learner:
        if raft.step_down_on_removal:
            raft.become_follower(raft.term, NONE)
        return conf_state
    if replication.maybe_commit(raft):
        reads.release_postponed(raft)
        replication.broadcast_append(raft)
    else:
        # A new member must not have to wait for the next proposal or heartbeat.
        for node_id in raft.peers:
            replication.maybe_send_append(raft, node_id, send_if_empty=False)
    if raft.lead_transferee not in config.voters.ids():
        raft.lead_transferee = NONE
    return conf_state
