"""Snapshots at their edges: reports that come late, and what must never be asked for or taken."""

from __future__ import annotations

import pytest

from raftstate.core import reconfigure
from raftstate.core.progress import ProgressState
from raftstate.core.types import (
    ConfState,
    Message,
    MessageType,
    Snapshot,
    SnapshotMetadata,
)
from raftstate.errors import InvariantError
from tests.core.nodes import acknowledge, build, leading, stored, work
from tests.core.test_replication import lagging, rejection


def snapshot(index: int, term: int) -> Snapshot:
    return Snapshot(b"state", SnapshotMetadata(ConfState(voters=(1, 2, 3)), index, term))


def test_an_acknowledgement_from_before_the_leaders_log_does_not_end_the_wait_for_a_snapshot() -> None:
    node, _storage = lagging()
    node.step(rejection())
    work(node)
    progress = node.raft.tracker.progress[2]
    # The leader's log begins at 4: behind entry 2 there is nothing that it could send.
    acknowledge(node, 2, 2)
    assert (progress.state, progress.match, work(node)) == (ProgressState.SNAPSHOT, 2, [])
    acknowledge(node, 2, 3)
    assert progress.state is ProgressState.REPLICATE


def test_a_late_report_on_a_snapshot_changes_nothing() -> None:
    node, _storage = lagging()
    node.step(rejection())
    work(node)
    acknowledge(node, 2, 3)
    work(node)
    progress = node.raft.tracker.progress[2]
    before = (progress.state, progress.match, progress.next, progress.msg_app_flow_paused)
    node.report_snapshot(2, ok=False)
    assert (progress.state, progress.match, progress.next, progress.msg_app_flow_paused) == before
    assert before[0] is ProgressState.REPLICATE


def test_a_peer_that_waits_for_a_snapshot_goes_on_waiting_when_it_is_unreachable() -> None:
    node, _storage = lagging()
    node.step(rejection())
    work(node)
    node.report_unreachable(2)
    progress = node.raft.tracker.progress[2]
    assert (progress.state, progress.pending_snapshot) == (ProgressState.SNAPSHOT, 3)


def test_a_compacted_log_without_a_snapshot_stops_the_leader() -> None:
    storage = stored((1, 1, 1))
    node = leading(storage)
    storage.compact(3)
    node.raft.tracker.progress[2].become_probe()
    node.raft.tracker.progress[2].match, node.raft.tracker.progress[2].next = 0, 4
    with pytest.raises(InvariantError, match=r"node 2 needs entry 1, .* begins at 4, .* snapshot is empty"):
        node.step(rejection())


def test_an_installed_snapshot_counts_as_applied_though_its_write_was_handed_out_in_an_older_term() -> None:
    node = build(async_storage_writes=True)
    node.step(Message(MessageType.SNAP, to=1, from_=2, term=1, snapshot=snapshot(9, 1)))
    (write,) = (sent for sent in node.ready().messages if sent.type is MessageType.STORAGE_APPEND)
    node.step(Message(MessageType.HEARTBEAT, to=1, from_=3, term=2))
    node.raft.raft_log.storage.apply_snapshot(snapshot(9, 1))  # type: ignore[attr-defined]
    for response in write.responses:
        if response.to == 1:
            node.step(response)
    log = node.raft.raft_log
    assert (node.raft.term, log.applied, log.unstable.snapshot) == (2, 9, None)


def test_only_a_follower_takes_a_snapshot() -> None:
    node = leading()
    with pytest.raises(InvariantError, match="a LEADER in term 1 got the snapshot at 9"):
        reconfigure.restore_snapshot(node.raft, snapshot(9, 1))
