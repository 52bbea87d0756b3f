"""What a leader sends to its peers: entries, snapshots, heartbeats.

May live here: choosing and sending one message by what is known of a peer (`Progress`), and the loops over
all peers. A peer that lacks an entry which this log no longer holds gets a snapshot. A leader that can't
read its own log sends nothing in its place: a gap would be worse than silence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftstate.core.errors import Compacted, Damaged, SnapshotTemporarilyUnavailable, Unavailable
from raftstate.core.progress import Progress, ProgressState
from raftstate.core.storage import payload_bytes
from raftstate.core.types import Entry, Message, MessageType
from raftstate.errors import InvariantError

if TYPE_CHECKING:
    from raftstate.core.raft import Raft


def broadcast_append(raft: Raft) -> None:
    """Send what is missing, or at least the commit index, to every peer that is not paused."""
    for node_id in raft.peers:
        send_append(raft, node_id)


def send_append(raft: Raft, to: int) -> None:
    """Send to `to` what it misses, or at least the commit index, unless it is paused."""
    maybe_send_append(raft, to, send_if_empty=True)


def maybe_send_append(raft: Raft, to: int, *, send_if_empty: bool) -> bool:
    """Send the next entries to `to`, or a snapshot in their place.

    Args:
        raft: the leader.
        to: a member.
        send_if_empty: whether a message without entries is worth sending, for the commit index in it.

    Returns:
        Whether a message was sent; False too if the log could not be read.
    """
    progress = raft.tracker.progress[to]
    if progress.is_paused():
        return False
    log = raft.raft_log
    previous = progress.next - 1
    try:
        previous_term = log.term(previous)
        entries: list[Entry] = []
        # With a full window only the empty message goes out: if all those in flight were lost, its answer
        # is what restarts the flow.
        if progress.state is not ProgressState.REPLICATE or not progress.inflights.full():
            entries = log.entries_from(progress.next, raft.max_message_bytes)
    except Compacted:
        return _maybe_send_snapshot(raft, to, progress)
    except (Unavailable, Damaged):
        return False
    if not entries and not send_if_empty:
        return False
    raft.send(
        Message(
            MessageType.APP,
            to=to,
            log_term=previous_term,
            index=previous,
            entries=entries,
            commit=log.committed,
        )
    )
    progress.sent_entries(len(entries), payload_bytes(entries))
    progress.sent_commit = log.committed
    return True


def _maybe_send_snapshot(raft: Raft, to: int, progress: Progress) -> bool:
    if not progress.recent_active:
        # Nobody there to install it; a heartbeat's answer will say when there is.
        return False
    try:
        snapshot = raft.raft_log.snapshot()
    except SnapshotTemporarilyUnavailable:
        return False
    if snapshot.metadata.index == 0:
        raise InvariantError(
            f"node {raft.id}: node {to} needs entry {progress.next}, the log begins at "
            f"{raft.raft_log.first_index()}, and the storage's snapshot is empty"
        )
    progress.become_snapshot(snapshot.metadata.index)
    raft.send(Message(MessageType.SNAP, to=to, snapshot=snapshot))
    return True


def broadcast_heartbeat(raft: Raft) -> None:
    """Send a heartbeat to every peer; an answer confirms the read-index requests that wait now."""
    context = raft.read_only.context()
    committed = raft.raft_log.committed
    for node_id in raft.peers:
        progress = raft.tracker.progress[node_id]
        # Never beyond what the peer is known to hold: a heartbeat checks no log.
        commit = min(progress.match, committed)
        raft.send(Message(MessageType.HEARTBEAT, to=node_id, commit=commit, context=context))
        progress.sent_commit = commit


def maybe_commit(raft: Raft) -> bool:
    """Commit, as leader, what a quorum holds, if it is of the present term.

    Returns:
        Whether the commit index moved.
    """
    return raft.raft_log.maybe_commit(raft.tracker.committed(), raft.term)
