"""What a candidate, or pre-candidate, does with a message.

May live here: handlers for these two roles. They wait for votes, and yield to whoever proves to lead their
term.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftstate.core import election, follower, replication
from raftstate.core.errors import ProposalDropped
from raftstate.core.quorum import VoteResult
from raftstate.core.roles import Role
from raftstate.core.types import NONE, Message, MessageType

if TYPE_CHECKING:
    from collections.abc import Callable

    from raftstate.core.raft import Raft


def _handle_proposal(raft: Raft, _message: Message) -> None:
    raise ProposalDropped(
        f"node {raft.id} knows no leader in term {raft.term}; propose again once there is one"
    )


def _handle_leader(raft: Raft, message: Message) -> None:
    # The term gate saw to it that the message is of this term: there is a leader, and it is not this node.
    raft.become_follower(message.term, message.from_)
    follower.HANDLERS[message.type](raft, message)


def handle_vote_response(raft: Raft, message: Message) -> None:
    """Count an answer to the present campaign and act when it is decided."""
    raft.tracker.record_vote(message.from_, not message.reject)
    _granted, _declined, result = raft.tracker.tally_votes()
    if result is VoteResult.WON:
        if raft.state is Role.PRE_CANDIDATE:
            election.run(raft, election.Campaign.ELECTION)
        else:
            raft.become_leader()
            replication.broadcast_append(raft)
    elif result is VoteResult.LOST:
        # `term` and not the answer's: a pre-vote was granted or refused for a term that never began.
        raft.become_follower(raft.term, NONE)


HANDLERS: dict[MessageType, Callable[[Raft, Message], None]] = {
    MessageType.PROP: _handle_proposal,
    MessageType.APP: _handle_leader,
    MessageType.HEARTBEAT: _handle_leader,
    MessageType.SNAP: _handle_leader,
}
