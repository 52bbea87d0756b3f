"""What a leader does with a message.

May live here: handlers for this role, and its clock. A leader appends proposals, learns from its peers'
answers how far their logs match, commits what a quorum holds, and answers reads once it is sure that it
still leads. Of a node that is no member it takes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from raftstate.core import reads, replication
from raftstate.core.conf_change import decode_conf_change
from raftstate.core.config import ReadOnlyOption
from raftstate.core.errors import ProposalDropped
from raftstate.core.membership import conf_change_as_v2, leaves_joint
from raftstate.core.progress import Progress, ProgressState
from raftstate.core.types import NONE, Entry, EntryType, Message, MessageType

if TYPE_CHECKING:
    from collections.abc import Callable

    from raftstate.core.raft import Raft


def tick(raft: Raft) -> None:
    """Let one tick pass.

    Every election timeout the quorum is checked and a transfer given up, every heartbeat timeout one is sent.
    """
    raft.heartbeat_elapsed += 1
    raft.election_elapsed += 1
    if raft.election_elapsed >= raft.election_ticks:
        raft.election_elapsed = 0
        # The transfer had an election timeout to finish; from here on proposals are taken again.
        raft.lead_transferee = NONE
        if raft.check_quorum and not _check_quorum(raft):
            return
    if raft.heartbeat_elapsed >= raft.heartbeat_ticks:
        raft.heartbeat_elapsed = 0
        replication.broadcast_heartbeat(raft)


def _check_quorum(raft: Raft) -> bool:
    """Step down if no quorum was heard from since the last check. Returns whether this node still leads."""
    if not raft.tracker.quorum_active():
        raft.become_follower(raft.term, NONE)
        return False
    for node_id in raft.peers:
        raft.tracker.progress[node_id].recent_active = False
    return True


# -- proposals


def _handle_proposal(raft: Raft, message: Message) -> None:
    if not message.entries:
        raise ProposalDropped(f"node {raft.id} got a proposal without entries; propose at least one")
    if raft.id not in raft.tracker.progress:
        raise ProposalDropped(f"node {raft.id} leads, but is no longer a member; propose to the next leader")
    if raft.lead_transferee != NONE:
        raise ProposalDropped(
            f"node {raft.id} is handing over to node {raft.lead_transferee}; propose again in a moment"
        )
    pending_conf_index = raft.pending_conf_index
    entries = _checked_conf_changes(raft, message.entries)
    if not raft.append_entries(entries):
        raft.pending_conf_index = pending_conf_index
        raise ProposalDropped(
            f"{raft.uncommitted_bytes} bytes are uncommitted, the limit is {raft.max_uncommitted_bytes}; "
            "propose again later"
        )
    replication.broadcast_append(raft)


def _checked_conf_changes(raft: Raft, entries: list[Entry]) -> list[Entry]:
    """Return `entries`, with an empty one in place of each configuration change that may not be made now."""
    if all(entry.type is EntryType.NORMAL for entry in entries):
        return entries
    checked = list(entries)
    first = raft.raft_log.last_index() + 1
    for position, entry in enumerate(entries):
        if entry.type is EntryType.NORMAL:
            continue
        try:
            change = conf_change_as_v2(decode_conf_change(entry))
        except msgspec.DecodeError as error:
            raise ProposalDropped(f"a proposed configuration change can't be decoded: {error}") from error
        # One at a time: the next is compared with a configuration that is not known before this one is
        # applied.
        pending = raft.pending_conf_index > raft.raft_log.applied
        fits = leaves_joint(change) is raft.tracker.config.joint
        if (pending or not fits) and not raft.disable_conf_change_validation:
            checked[position] = Entry(index=0, term=0)
        else:
            raft.pending_conf_index = first + position
    return checked


# -- answers of peers


def _of_member(handler: Callable[[Raft, Message, Progress], None]) -> Callable[[Raft, Message], None]:
    """Give `handler` the sender's progress; messages of nodes that are no members are ignored."""

    def handle(raft: Raft, message: Message) -> None:
        progress = raft.tracker.progress.get(message.from_)
        if progress is not None:
            handler(raft, message, progress)

    return handle


def _handle_append_response(raft: Raft, message: Message, progress: Progress) -> None:
    progress.recent_active = True
    if message.reject:
        _handle_rejection(raft, message, progress)
        return
    index = message.index
    probe_confirmed = progress.match == index and progress.state is ProgressState.PROBE
    if not progress.maybe_update(index) and not probe_confirmed:
        return
    if progress.state is ProgressState.PROBE:
        progress.become_replicate()
    elif progress.state is ProgressState.SNAPSHOT:
        if progress.match + 1 >= raft.raft_log.first_index():
            # Whatever snapshot it installed, its log now reaches into this one.
            progress.become_probe()
            progress.become_replicate()
    else:
        progress.inflights.free_le(index)

    node_id = message.from_
    own = node_id == raft.id
    if replication.maybe_commit(raft):
        reads.release_postponed(raft)
        replication.broadcast_append(raft)
    elif not own and progress.can_bump_commit(raft.raft_log.committed):
        replication.send_append(raft, node_id)
    if own:
        return
    # The answer may have opened the window for more than one message.
    while replication.maybe_send_append(raft, node_id, send_if_empty=False):
        pass
    if node_id == raft.lead_transferee and progress.match == raft.raft_log.last_index():
        raft.send(Message(MessageType.TIMEOUT_NOW, to=node_id))


def _handle_rejection(raft: Raft, message: Message, progress: Progress) -> None:
    hint = message.reject_hint
    if message.log_term:
        # The peer named the term at its hint: entries of ours with a higher term can't be in its log.
        hint = raft.raft_log.find_conflict_by_term(hint, message.log_term).index
    if progress.maybe_decr_to(message.index, hint):
        if progress.state is ProgressState.REPLICATE:
            progress.become_probe()
        replication.send_append(raft, message.from_)


def _handle_heartbeat_response(raft: Raft, message: Message, progress: Progress) -> None:
    progress.recent_active = True
    progress.msg_app_flow_paused = False
    if progress.match < raft.raft_log.last_index() or progress.state is ProgressState.PROBE:
        replication.send_append(raft, message.from_)
    if message.context and raft.read_only.option is ReadOnlyOption.SAFE:
        raft.read_only.acknowledge(message.from_, message.context)
        for request, index in raft.read_only.take_confirmed(raft.tracker.config.voters):
            reads.answer(raft, request, index)


def _handle_snapshot_status(_raft: Raft, message: Message, progress: Progress) -> None:
    if progress.state is not ProgressState.SNAPSHOT:
        return
    if message.reject:
        progress.pending_snapshot = 0
    progress.become_probe()
    # If it arrived, wait for the peer's acknowledgement; if not, for a heartbeat's answer.
    progress.msg_app_flow_paused = True


def _handle_unreachable(_raft: Raft, _message: Message, progress: Progress) -> None:
    if progress.state is ProgressState.REPLICATE:
        # What was sent ahead is probably lost.
        progress.become_probe()


def _handle_transfer_leader(raft: Raft, message: Message, progress: Progress) -> None:
    target = message.from_
    if progress.is_learner or target == raft.lead_transferee:
        return
    raft.lead_transferee = NONE
    if target == raft.id:
        return
    # The transfer must finish within one election timeout from here.
    raft.election_elapsed = 0
    raft.lead_transferee = target
    if progress.match == raft.raft_log.last_index():
        raft.send(Message(MessageType.TIMEOUT_NOW, to=target))
    else:
        replication.send_append(raft, target)


HANDLERS: dict[MessageType, Callable[[Raft, Message], None]] = {
    MessageType.PROP: _handle_proposal,
    MessageType.READ_INDEX: reads.handle_read_index,
    MessageType.APP_RESP: _of_member(_handle_append_response),
    MessageType.HEARTBEAT_RESP: _of_member(_handle_heartbeat_response),
    MessageType.SNAP_STATUS: _of_member(_handle_snapshot_status),
    MessageType.UNREACHABLE: _of_member(_handle_unreachable),
    MessageType.TRANSFER_LEADER: _of_member(_handle_transfer_leader),
}
