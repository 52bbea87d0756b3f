"""What a follower does with a message.

May live here: handlers for this role. A follower takes entries, commit indexes and snapshots from its
leader, answers each, and passes on to it what only a leader can do. Only the leader's own messages put off
its election timeout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from raftstate.core import election, reconfigure
from raftstate.core.config import ReadOnlyOption
from raftstate.core.errors import ProposalDropped
from raftstate.core.types import NONE, Message, MessageType, ReadState, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from raftstate.core.raft import Raft


def _heard_from_leader(raft: Raft, message: Message) -> None:
    raft.election_elapsed = 0
    raft.lead = message.from_


def _handle_append(raft: Raft, message: Message) -> None:
    _heard_from_leader(raft, message)
    log = raft.raft_log
    if message.index < log.committed:
        # Late or repeated: everything up to the commit index is known to match.
        raft.send(Message(MessageType.APP_RESP, to=message.from_, index=log.committed))
        return
    last = log.maybe_append(message.index, message.log_term, message.entries, message.commit)
    if last is not None:
        raft.send(Message(MessageType.APP_RESP, to=message.from_, index=last))
        return
    hint = log.find_conflict_by_term(min(message.index, log.last_index()), message.log_term)
    raft.send(
        Message(
            MessageType.APP_RESP,
            to=message.from_,
            index=message.index,
            log_term=hint.term,
            reject=True,
            reject_hint=hint.index,
        )
    )


def _handle_heartbeat(raft: Raft, message: Message) -> None:
    _heard_from_leader(raft, message)
    raft.raft_log.commit_to(message.commit)
    raft.send(Message(MessageType.HEARTBEAT_RESP, to=message.from_, context=message.context))


def _handle_snapshot(raft: Raft, message: Message) -> None:
    _heard_from_leader(raft, message)
    log = raft.raft_log
    restored = reconfigure.restore_snapshot(raft, message.snapshot or Snapshot())
    index = log.last_index() if restored else log.committed
    raft.send(Message(MessageType.APP_RESP, to=message.from_, index=index))


def _handle_proposal(raft: Raft, message: Message) -> None:
    if raft.lead == NONE:
        raise ProposalDropped(
            f"node {raft.id} knows no leader in term {raft.term}; propose again once there is one"
        )
    if raft.disable_proposal_forwarding:
        raise ProposalDropped(
            f"node {raft.id} does not forward proposals; propose to the leader, node {raft.lead}"
        )
    _forward(raft, message)


def _forward(raft: Raft, message: Message) -> None:
    raft.send(msgspec.structs.replace(message, to=raft.lead, term=0))


def _forward_if_led(raft: Raft, message: Message) -> None:
    if raft.lead != NONE:
        _forward(raft, message)


def _handle_forget_leader(raft: Raft, _message: Message) -> None:
    # With lease-based reads the old leader would go on answering while a new one is elected.
    if raft.read_only.option is not ReadOnlyOption.LEASE_BASED:
        raft.lead = NONE


def _handle_timeout_now(raft: Raft, _message: Message) -> None:
    # Never with pre-vote: the leader itself asks for this election.
    election.stand(raft, election.Campaign.TRANSFER)


def _handle_read_index_response(raft: Raft, message: Message) -> None:
    if len(message.entries) == 1:
        raft.read_states.append(ReadState(index=message.index, context=message.entries[0].data))


HANDLERS: dict[MessageType, Callable[[Raft, Message], None]] = {
    MessageType.APP: _handle_append,
    MessageType.HEARTBEAT: _handle_heartbeat,
    MessageType.SNAP: _handle_snapshot,
    MessageType.PROP: _handle_proposal,
    MessageType.READ_INDEX: _forward_if_led,
    MessageType.READ_INDEX_RESP: _handle_read_index_response,
    MessageType.TRANSFER_LEADER: _forward_if_led,
    MessageType.FORGET_LEADER: _handle_forget_leader,
    MessageType.TIMEOUT_NOW: _handle_timeout_now,
}
