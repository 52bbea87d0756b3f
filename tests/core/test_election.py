from __future__ import annotations

import pytest

from raftstate.core.election import TRANSFER_CONTEXT, handle_vote_request
from raftstate.core.errors import ProposalDropped
from raftstate.core.rawnode import RawNode
from raftstate.core.roles import ROLE_CHANGES, Role, check_change
from raftstate.core.types import (
    LOCAL_APPEND_THREAD,
    ConfChange,
    ConfChangeType,
    ConfState,
    HardState,
    Message,
    MessageType,
    Snapshot,
    SnapshotMetadata,
)
from raftstate.errors import InvariantError
from tests.core.nodes import ELECTION_TICKS, build, elected, entry, leading, stored, work


def vote_request(
    kind: MessageType = MessageType.VOTE, *, term: int, index: int = 0, log_term: int = 0, from_: int = 2
) -> Message:
    return Message(kind, to=1, from_=from_, term=term, index=index, log_term=log_term)


def tick_until_campaign(node: RawNode) -> int:
    for ticks in range(1, 3 * ELECTION_TICKS):
        node.tick()
        if node.raft.state is not Role.FOLLOWER:
            return ticks
    raise AssertionError(f"no campaign within {ticks} ticks")


def test_a_follower_campaigns_after_its_timeout_and_asks_every_voter() -> None:
    node = build(stored((1, 1)))
    assert ELECTION_TICKS <= tick_until_campaign(node) < 2 * ELECTION_TICKS
    assert work(node) == [
        Message(MessageType.VOTE, to=2, from_=1, term=2, index=2, log_term=1),
        Message(MessageType.VOTE, to=3, from_=1, term=2, index=2, log_term=1),
    ]


def test_the_random_source_spreads_the_timeouts_over_the_whole_range() -> None:
    node = build()
    timeouts = set()
    for _ in range(300):
        node.campaign()
        timeouts.add(node.raft.randomized_election_ticks)
        work(node)
    assert timeouts == set(range(ELECTION_TICKS, 2 * ELECTION_TICKS))


def test_with_pre_vote_the_term_rises_only_after_a_quorum_promised_its_votes() -> None:
    node = build(stored((1,)), pre_vote=True)
    node.campaign()
    assert (node.raft.state, node.raft.term) == (Role.PRE_CANDIDATE, 1)
    assert work(node) == [
        Message(MessageType.PRE_VOTE, to=2, from_=1, term=2, index=1, log_term=1),
        Message(MessageType.PRE_VOTE, to=3, from_=1, term=2, index=1, log_term=1),
    ]
    node.step(Message(MessageType.PRE_VOTE_RESP, to=1, from_=3, term=2))
    assert (node.raft.state, node.raft.term) == (Role.CANDIDATE, 2)
    assert work(node) == [
        Message(MessageType.VOTE, to=2, from_=1, term=2, index=1, log_term=1),
        Message(MessageType.VOTE, to=3, from_=1, term=2, index=1, log_term=1),
    ]


@pytest.mark.parametrize(
    ("answers", "role"),
    [
        ({2: True}, Role.LEADER),
        ({2: False}, Role.CANDIDATE),
        ({2: False, 3: False}, Role.FOLLOWER),
        ({2: False, 3: True}, Role.LEADER),
    ],
)
def test_an_election_is_decided_by_a_quorum(answers: dict[int, bool], role: Role) -> None:
    node = build()
    node.campaign()
    work(node)
    for voter, granted in answers.items():
        node.step(Message(MessageType.VOTE_RESP, to=1, from_=voter, term=1, reject=not granted))
    assert (node.raft.state, node.raft.term) == (role, 1)


def test_a_repeated_vote_counts_once() -> None:
    node = build(stored(voters=(1, 2, 3, 4, 5)))
    node.campaign()
    work(node)
    for _ in range(3):
        node.step(Message(MessageType.VOTE_RESP, to=1, from_=2, term=1))
    assert node.raft.state is Role.CANDIDATE


@pytest.mark.case(1)
@pytest.mark.case(2)
def test_a_vote_leaves_only_after_its_write_which_holds_term_and_vote_together() -> None:
    node = build(async_storage_writes=True)
    node.step(vote_request(term=7))
    granted = Message(MessageType.VOTE_RESP, to=2, from_=1, term=7)
    ready = node.ready()
    assert ready.hard_state == HardState(term=7, vote=2, commit=0)
    assert ready.must_sync
    assert ready.messages == [
        Message(
            MessageType.STORAGE_APPEND, to=LOCAL_APPEND_THREAD, from_=1, term=7, vote=2, responses=[granted]
        )
    ]


def test_a_candidate_counts_its_own_vote_only_when_that_is_durable() -> None:
    node = build(stored(voters=(1,)), async_storage_writes=True)
    node.campaign()
    (write,) = node.ready().messages
    assert node.raft.state is Role.CANDIDATE
    (own_vote,) = write.responses
    node.step(own_vote)
    assert node.raft.state is Role.LEADER


@pytest.mark.parametrize(
    ("index", "log_term", "granted"),
    [(2, 2, True), (1, 3, True), (3, 2, True), (1, 2, False), (9, 1, False)],
)
def test_a_vote_goes_only_to_a_log_at_least_as_up_to_date(index: int, log_term: int, granted: bool) -> None:
    node = build(stored((1, 2)))
    node.step(vote_request(term=5, index=index, log_term=log_term))
    assert work(node) == [Message(MessageType.VOTE_RESP, to=2, from_=1, term=5, reject=not granted)]
    assert node.raft.vote == (2 if granted else 0)


def test_one_vote_a_term_even_after_a_restart() -> None:
    storage = stored()
    node = build(storage)
    node.step(vote_request(term=1, from_=2))
    work(node)
    restarted = build(storage)
    restarted.step(vote_request(term=1, from_=3))
    restarted.step(vote_request(term=1, from_=2))
    assert work(restarted) == [
        Message(MessageType.VOTE_RESP, to=3, from_=1, term=1, reject=True),
        Message(MessageType.VOTE_RESP, to=2, from_=1, term=1),
    ]


@pytest.mark.case(24)
def test_a_pre_vote_of_a_lower_term_is_refused_with_the_higher_one() -> None:
    node = build(stored((1,), hard_state=HardState(term=5)), pre_vote=True)
    node.step(vote_request(MessageType.PRE_VOTE, term=3, index=9, log_term=2))
    assert work(node) == [Message(MessageType.PRE_VOTE_RESP, to=2, from_=1, term=5, reject=True)]


@pytest.mark.case(24)
def test_a_pre_candidate_that_is_behind_in_term_adopts_the_term_that_refused_it() -> None:
    node = build(stored((1,)), pre_vote=True)
    node.campaign()
    work(node)
    node.step(Message(MessageType.PRE_VOTE_RESP, to=1, from_=2, term=5, reject=True))
    assert (node.raft.state, node.raft.term, node.raft.vote) == (Role.FOLLOWER, 5, 0)


@pytest.mark.case(25)
def test_a_pre_candidate_that_restarts_has_promised_nothing_and_raised_nothing() -> None:
    storage = stored((1,), hard_state=HardState(term=1, vote=3, commit=1))
    node = build(storage, pre_vote=True)
    node.campaign()
    work(node)
    restarted = build(storage, pre_vote=True)
    raft = restarted.raft
    assert (raft.state, raft.term, raft.vote, raft.raft_log.committed) == (Role.FOLLOWER, 1, 3, 1)


@pytest.mark.case(25)
def test_a_node_without_pre_vote_answers_the_pre_votes_of_those_that_have_it() -> None:
    node = build(stored((1,)), pre_vote=False)
    node.step(vote_request(MessageType.PRE_VOTE, term=2, index=1, log_term=1))
    assert work(node) == [Message(MessageType.PRE_VOTE_RESP, to=2, from_=1, term=2)]
    assert (node.raft.term, node.raft.vote) == (1, 0)


@pytest.mark.case(25)
def test_with_pre_vote_an_older_leader_is_told_the_newer_term() -> None:
    """It would never learn it otherwise: with pre-vote nobody asks it for a vote in that term."""
    node = build(stored((1,), hard_state=HardState(term=5)), pre_vote=True)
    node.step(Message(MessageType.HEARTBEAT, to=1, from_=2, term=1))
    assert work(node) == [Message(MessageType.APP_RESP, to=2, from_=1, term=5)]


@pytest.mark.case(26)
def test_a_pre_candidate_has_no_leader_any_more() -> None:
    node = build(pre_vote=True)
    node.step(Message(MessageType.HEARTBEAT, to=1, from_=2, term=1))
    assert node.raft.lead == 2
    work(node)
    node.campaign()
    assert (node.raft.state, node.raft.lead) == (Role.PRE_CANDIDATE, 0)
    with pytest.raises(ProposalDropped):
        node.propose(b"x")
    work(node)
    node.step(vote_request(MessageType.PRE_VOTE, term=2, from_=3))
    assert work(node) == [Message(MessageType.PRE_VOTE_RESP, to=3, from_=1, term=2)]


@pytest.mark.case(26)
def test_a_follower_keeps_its_leader_while_others_ask_for_pre_votes() -> None:
    node = build(pre_vote=True, check_quorum=True)
    node.step(Message(MessageType.HEARTBEAT, to=1, from_=2, term=1))
    work(node)
    node.step(vote_request(MessageType.PRE_VOTE, term=2, from_=3))
    assert (node.raft.lead, node.raft.term, work(node)) == (2, 1, [])


@pytest.mark.case(27)
def test_a_leader_that_hears_from_no_quorum_steps_down() -> None:
    node = leading(check_quorum=True)
    for _ in range(2 * ELECTION_TICKS):
        node.tick()
    assert (node.raft.state, node.raft.lead, node.raft.term) == (Role.FOLLOWER, 0, 1)


@pytest.mark.case(27)
def test_one_answering_peer_of_two_keeps_a_leader_in_office() -> None:
    node = leading(check_quorum=True)
    for _ in range(5 * ELECTION_TICKS):
        node.tick()
        node.step(Message(MessageType.HEARTBEAT_RESP, to=1, from_=2, term=1))
    assert node.raft.state is Role.LEADER


VALID = [
    Message(MessageType.APP, to=1, from_=2, term=1),
    Message(MessageType.HEARTBEAT, to=1, from_=2, term=1),
    Message(MessageType.SNAP, to=1, from_=2, term=1, snapshot=Snapshot()),
    vote_request(term=1),
    vote_request(term=2),
]


@pytest.mark.case(28)
@pytest.mark.parametrize("message", VALID, ids=lambda message: f"{message.type.name} of term {message.term}")
def test_word_from_the_leader_or_a_granted_vote_puts_the_election_off(message: Message) -> None:
    node = build(stored(hard_state=HardState(term=1)))
    for _ in range(ELECTION_TICKS - 1):
        node.tick()
    node.step(message)
    assert node.raft.election_elapsed == 0


@pytest.mark.case(28)
@pytest.mark.parametrize(
    "message",
    [
        Message(MessageType.APP, to=1, from_=2, term=2),
        Message(MessageType.HEARTBEAT, to=1, from_=2, term=2),
        Message(MessageType.SNAP, to=1, from_=2, term=2, snapshot=Snapshot()),
        vote_request(term=2),
        vote_request(term=3),
        vote_request(MessageType.PRE_VOTE, term=4, index=9, log_term=3),
        Message(MessageType.APP_RESP, to=1, from_=2, term=3, index=1),
        Message(MessageType.HEARTBEAT_RESP, to=1, from_=2, term=3),
        Message(MessageType.READ_INDEX, to=1, from_=2, entries=[entry(0, 0)]),
    ],
    ids=lambda message: f"{message.type.name} of term {message.term}",
)
def test_nothing_else_puts_the_election_off(message: Message) -> None:
    """Old leaders, refused candidates, pre-votes and answers that nobody asked for."""
    node = build(stored((3,)))
    for _ in range(ELECTION_TICKS - 1):
        node.tick()
    node.step(message)
    assert node.raft.election_elapsed == ELECTION_TICKS - 1


@pytest.mark.case(18)
@pytest.mark.parametrize("kind", [MessageType.VOTE, MessageType.PRE_VOTE])
def test_a_removed_node_does_not_disturb_followers_that_hear_their_leader(kind: MessageType) -> None:
    node = build(check_quorum=True)
    node.step(Message(MessageType.HEARTBEAT, to=1, from_=2, term=1))
    work(node)
    node.step(vote_request(kind, term=9, index=9, log_term=9, from_=7))
    assert (node.raft.term, node.raft.lead, work(node)) == (1, 2, [])


def test_a_candidate_that_the_leader_itself_chose_is_considered_at_once() -> None:
    node = build(check_quorum=True)
    node.step(Message(MessageType.HEARTBEAT, to=1, from_=2, term=1))
    work(node)
    request = vote_request(term=2, from_=3)
    request.context = TRANSFER_CONTEXT
    node.step(request)
    assert work(node) == [Message(MessageType.VOTE_RESP, to=3, from_=1, term=2)]


def test_a_forgotten_leader_no_longer_protects_itself() -> None:
    node = build(check_quorum=True, pre_vote=True)
    node.step(Message(MessageType.HEARTBEAT, to=1, from_=2, term=1))
    work(node)
    node.forget_leader()
    node.step(vote_request(MessageType.PRE_VOTE, term=2, from_=3))
    assert work(node) == [Message(MessageType.PRE_VOTE_RESP, to=3, from_=1, term=2)]


def test_learners_and_strangers_do_not_campaign() -> None:
    for storage in (stored(voters=(2, 3), learners=(1,)), stored(voters=(2, 3))):
        node = build(storage)
        for _ in range(3 * ELECTION_TICKS):
            node.tick()
        assert (node.raft.state, node.raft.term, work(node)) == (Role.FOLLOWER, 0, [])


def test_learners_vote_for_they_may_have_been_promoted_without_knowing() -> None:
    node = build(stored(voters=(2, 3), learners=(1,)))
    node.step(vote_request(term=1))
    assert work(node) == [Message(MessageType.VOTE_RESP, to=2, from_=1, term=1)]


@pytest.mark.case(63)
def test_no_campaign_before_a_committed_configuration_is_applied() -> None:
    leader = leading()
    leader.propose_conf_change(ConfChange(ConfChangeType.ADD_NODE, 4))
    change = leader.raft.raft_log.unstable.entries[0]
    storage = stored((1,), hard_state=HardState(term=1, commit=2))
    storage.append([change])
    node = build(storage)
    node.campaign()
    assert node.raft.state is Role.FOLLOWER
    work(node)
    assert sorted(node.raft.tracker.progress) == [1, 2, 3, 4]
    node.campaign()
    assert node.raft.state is Role.CANDIDATE


def test_no_campaign_while_a_snapshot_is_not_durable() -> None:
    node = build()
    metadata = SnapshotMetadata(ConfState(voters=(1, 2, 3)), index=5, term=1)
    node.step(Message(MessageType.SNAP, to=1, from_=2, term=1, snapshot=Snapshot(metadata=metadata)))
    node.campaign()
    assert node.raft.state is Role.FOLLOWER
    work(node)
    node.campaign()
    assert node.raft.state is Role.CANDIDATE


def test_a_leader_of_the_same_term_ends_a_candidacy() -> None:
    node = build()
    node.campaign()
    work(node)
    node.step(Message(MessageType.APP, to=1, from_=3, term=1, entries=[entry(1, 1)]))
    assert (node.raft.state, node.raft.lead) == (Role.FOLLOWER, 3)
    assert work(node) == [Message(MessageType.APP_RESP, to=3, from_=1, term=1, index=1)]


def test_a_new_leader_appends_an_empty_entry_and_sends_it() -> None:
    node = build(stored((1,)))
    node.campaign()
    work(node)
    node.step(Message(MessageType.VOTE_RESP, to=1, from_=2, term=2))
    first = entry(2, 2)
    assert work(node) == [
        Message(MessageType.APP, to=2, from_=1, term=2, index=1, log_term=1, entries=[first]),
        Message(MessageType.APP, to=3, from_=1, term=2, index=1, log_term=1, entries=[first]),
    ]


def test_campaigning_as_leader_changes_nothing() -> None:
    node = elected()
    node.campaign()
    assert (node.raft.state, node.raft.term, node.has_ready()) == (Role.LEADER, 1, False)


@pytest.mark.parametrize("old", list(Role))
@pytest.mark.parametrize("new", list(Role))
def test_roles_change_as_the_table_says(old: Role, new: Role) -> None:
    legal = {
        Role.FOLLOWER: "FPC",
        Role.PRE_CANDIDATE: "FPC",
        Role.CANDIDATE: "FPCL",
        Role.LEADER: "F",
    }[old]
    assert (new in ROLE_CHANGES[old]) == (new.name[0] in legal)
    if new.name[0] not in legal:
        with pytest.raises(InvariantError, match=f"a {old.name} can't become a {new.name}"):
            check_change(1, 1, old, new)


def test_a_follower_cannot_be_made_leader() -> None:
    with pytest.raises(InvariantError, match="a FOLLOWER can't become a LEADER"):
        build().raft.become_leader()


def test_a_node_that_may_not_campaign_neither_stands_by_itself_nor_when_told_to_and_votes() -> None:
    node = build(stored((1, 1)))
    node.raft.may_campaign = False
    with pytest.raises(AssertionError, match="no campaign"):
        tick_until_campaign(node)
    node.campaign()
    node.step(Message(MessageType.TIMEOUT_NOW, to=1, from_=2, term=1))
    assert (node.raft.state, work(node)) == (Role.FOLLOWER, [])
    node.step(vote_request(term=2, index=2, log_term=1))
    assert [message.reject for message in work(node)] == [False]
    node.raft.may_campaign = True
    tick_until_campaign(node)


def test_a_vote_for_another_term_than_the_present_one_stops_the_node() -> None:
    node = build(stored((1,)))
    # The term gate of `step` lets no such request through.
    with pytest.raises(InvariantError, match="a vote for term 3 given in term 1"):
        handle_vote_request(node.raft, vote_request(term=3, index=1, log_term=1))
