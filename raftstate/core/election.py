"""Elections: when to stand, whom to ask, whom to vote for.

May live here: what every role does alike about elections; counting the answers is `candidate`'s. With
pre-vote a node first asks who would vote for it, in the term after its own and without entering it, so that
a node that was cut off does not come back with a higher term and depose a leader that everyone else hears
(Raft thesis, 9.6).
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from raftstate.core.roles import Role
from raftstate.core.types import NONE, EntryType, Message, MessageType
from raftstate.errors import InvariantError

if TYPE_CHECKING:
    from raftstate.core.raft import Raft

TRANSFER_CONTEXT = b"CampaignTransfer"
"""The context of a vote request made on the leader's own wish: it is considered even by nodes that still
hear that leader."""


class Campaign(Enum):
    """Why, and so how, a node stands for election."""

    PRE_ELECTION = "pre-election"
    ELECTION = "election"
    TRANSFER = "transfer"


def tick(raft: Raft) -> None:
    """Let one tick pass for a node that does not lead."""
    raft.election_elapsed += 1
    if raft.election_elapsed >= raft.randomized_election_ticks and promotable(raft):
        raft.election_elapsed = 0
        raft.step(Message(MessageType.HUP, from_=raft.id))


def promotable(raft: Raft) -> bool:
    """Whether this node may stand at all: it is a voter, not waiting for a snapshot to become durable, and
    its application lets it."""
    progress = raft.tracker.progress.get(raft.id)
    return (
        raft.may_campaign
        and progress is not None
        and not progress.is_learner
        and not raft.raft_log.has_next_or_in_progress_snapshot()
    )


def handle_hup(raft: Raft, _message: Message) -> None:
    """Stand for election: the timeout passed, or the application wants it."""
    stand(raft, Campaign.PRE_ELECTION if raft.pre_vote else Campaign.ELECTION)


def stand(raft: Raft, campaign: Campaign) -> None:
    """Begin `campaign`, if this node may lead and does not.

    A configuration that is committed but not applied forbids it: this node would not know who votes.
    """
    if raft.state is Role.LEADER or not promotable(raft) or _has_unapplied_conf_change(raft):
        return
    run(raft, campaign)


def _has_unapplied_conf_change(raft: Raft) -> bool:
    log = raft.raft_log
    return any(entry.type is not EntryType.NORMAL for entry in log.scan(log.applied + 1, log.committed + 1))


def run(raft: Raft, campaign: Campaign) -> None:
    """Become (pre-)candidate and ask every voter; the own vote counts, like any other, when it is durable."""
    if campaign is Campaign.PRE_ELECTION:
        raft.become_pre_candidate()
        request, response, term = MessageType.PRE_VOTE, MessageType.PRE_VOTE_RESP, raft.term + 1
    else:
        raft.become_candidate()
        request, response, term = MessageType.VOTE, MessageType.VOTE_RESP, raft.term
    last = raft.raft_log.last_entry_id()
    for node_id in raft.tracker.voter_nodes():
        if node_id == raft.id:
            raft.send(Message(response, to=node_id, term=term))
        else:
            context = TRANSFER_CONTEXT if campaign is Campaign.TRANSFER else b""
            raft.send(
                Message(request, to=node_id, term=term, index=last.index, log_term=last.term, context=context)
            )


def handle_vote_request(raft: Raft, message: Message) -> None:
    """Grant or refuse a vote or pre-vote.

    Learners vote too: one that was promoted may not have heard of it, and the candidate that asks it knows
    better. A granted answer carries the request's term, which for a pre-vote is not this node's; a refusal
    carries this node's.
    """
    pre_vote = message.type is MessageType.PRE_VOTE
    response = MessageType.PRE_VOTE_RESP if pre_vote else MessageType.VOTE_RESP
    may_vote = (
        raft.vote == message.from_
        or (raft.vote == NONE and raft.lead == NONE)
        or (pre_vote and message.term > raft.term)
    )
    if not (may_vote and raft.raft_log.is_up_to_date(message.index, message.log_term)):
        raft.send(Message(response, to=message.from_, term=raft.term, reject=True))
        return
    raft.send(Message(response, to=message.from_, term=message.term))
    if not pre_vote:
        if message.term != raft.term:
            raise InvariantError(f"node {raft.id}: a vote for term {message.term} given in term {raft.term}")
        raft.election_elapsed = 0
        raft.vote = message.from_
