from __future__ import annotations

import pytest

from raftstate.core.config import ReadOnlyOption
from raftstate.core.rawnode import RawNode
from raftstate.core.roles import Role
from raftstate.core.types import (
    ConfChange,
    ConfChangeType,
    Entry,
    HardState,
    Message,
    MessageType,
    ReadState,
)
from tests.core.nodes import ELECTION_TICKS, acknowledge, build, elected, entry, leading, stored, work


def answered(node: RawNode) -> list[ReadState]:
    """Let the node work; return the reads it answered."""
    states: list[ReadState] = []
    while node.has_ready():
        ready = node.ready()
        node.raft.raft_log.storage.append(ready.entries)  # type: ignore[attr-defined]
        states += ready.read_states
        node.advance()
    return states


def heartbeat_contexts(node: RawNode) -> list[tuple[int, bytes]]:
    return [(m.to, m.context) for m in work(node) if m.type is MessageType.HEARTBEAT]


def confirm(node: RawNode, peer: int, context: bytes) -> None:
    node.step(Message(MessageType.HEARTBEAT_RESP, to=1, from_=peer, term=node.raft.term, context=context))


def test_a_read_is_answered_once_a_quorum_confirmed_a_heartbeat_sent_after_it() -> None:
    node = leading()
    node.read_index(b"r")
    (first, second) = heartbeat_contexts(node)
    assert (first[0], second[0], first[1] == second[1] != b"") == (2, 3, True)
    assert answered(node) == []
    confirm(node, 2, first[1])
    assert answered(node) == [ReadState(index=1, context=b"r")]
    confirm(node, 3, second[1])
    assert answered(node) == []


def test_the_answer_is_the_commit_index_at_the_time_of_the_request() -> None:
    node = leading()
    node.read_index(b"r")
    (first, _second) = heartbeat_contexts(node)
    node.propose(b"x")
    work(node)
    acknowledge(node, 2, 2)
    assert node.raft.raft_log.committed == 2
    confirm(node, 2, first[1])
    assert answered(node) == [ReadState(index=1, context=b"r")]


def test_a_later_round_confirms_all_that_wait() -> None:
    node = leading()
    for context in (b"a", b"b", b"c"):
        node.read_index(context)
    rounds = [context for to, context in heartbeat_contexts(node) if to == 2]
    confirm(node, 2, rounds[1])
    assert answered(node) == [ReadState(1, b"a"), ReadState(1, b"b")]
    confirm(node, 2, rounds[2])
    assert answered(node) == [ReadState(1, b"c")]


def test_a_followers_read_travels_to_the_leader_and_back() -> None:
    follower = build(node_id=2)
    follower.step(Message(MessageType.HEARTBEAT, to=2, from_=1, term=1))
    work(follower)
    follower.read_index(b"r")
    (request,) = work(follower)
    assert request == Message(MessageType.READ_INDEX, to=1, from_=2, entries=[entry(0, 0, b"r")])
    leader = leading()
    leader.step(request)
    (first, _second) = heartbeat_contexts(leader)
    confirm(leader, 3, first[1])
    (response,) = work(leader)
    assert response == Message(
        MessageType.READ_INDEX_RESP, to=2, from_=1, term=1, index=1, entries=[entry(0, 0, b"r")]
    )
    follower.step(response)
    assert answered(follower) == [ReadState(index=1, context=b"r")]


@pytest.mark.case(30)
def test_a_new_leader_answers_no_read_before_it_committed_in_its_term() -> None:
    node = elected(stored((1, 1), hard_state=HardState(term=1, commit=1)))
    node.read_index(b"r")
    assert heartbeat_contexts(node) == []
    acknowledge(node, 2, 3)
    (first, _second) = heartbeat_contexts(node)
    confirm(node, 2, first[1])
    assert answered(node) == [ReadState(index=3, context=b"r")]


@pytest.mark.case(30)
def test_a_single_node_answers_no_read_before_it_committed_in_its_term() -> None:
    """Its stored commit index may lag behind what it acknowledged before it was restarted."""
    storage = stored((1, 1, 1), voters=(1,), hard_state=HardState(term=1, commit=1))
    node = build(storage)
    node.campaign()
    ready = node.ready()
    node.advance()
    assert (node.raft.state, ready.read_states) == (Role.LEADER, [])
    node.read_index(b"r")
    assert not node.raft.read_states
    assert answered(node) == [ReadState(index=4, context=b"r")]


@pytest.mark.case(31)
def test_a_context_used_again_confirms_no_read_that_came_before() -> None:
    node = leading()
    node.read_index(b"same")
    (first, _) = heartbeat_contexts(node)
    confirm(node, 2, first[1])
    assert answered(node) == [ReadState(1, b"same")]
    node.propose(b"x")
    work(node)
    acknowledge(node, 2, 2)
    work(node)
    node.read_index(b"same")
    work(node)
    confirm(node, 2, first[1])
    confirm(node, 3, first[1])
    assert answered(node) == []


@pytest.mark.case(31)
def test_answers_to_rounds_before_a_step_down_confirm_nothing_afterwards() -> None:
    node = leading()
    node.read_index(b"old")
    (first, _) = heartbeat_contexts(node)
    node.step(Message(MessageType.HEARTBEAT, to=1, from_=3, term=2))
    work(node)
    node.campaign()
    work(node)
    node.step(Message(MessageType.VOTE_RESP, to=1, from_=2, term=3))
    work(node)
    acknowledge(node, 2, 2)
    work(node)
    node.read_index(b"new")
    work(node)
    confirm(node, 2, first[1])
    assert answered(node) == []


def test_an_answer_of_an_older_term_confirms_nothing() -> None:
    node = leading(stored((1,)))
    node.read_index(b"r")
    (first, _) = heartbeat_contexts(node)
    node.step(Message(MessageType.HEARTBEAT_RESP, to=1, from_=2, term=1, context=first[1]))
    assert answered(node) == []


def test_learners_confirm_nothing() -> None:
    node = leading(stored(voters=(1, 2, 3), learners=(4,)))
    node.read_index(b"r")
    (first, *_) = heartbeat_contexts(node)
    confirm(node, 4, first[1])
    assert answered(node) == []


def test_a_change_of_members_drops_the_reads_that_wait_and_what_was_confirmed() -> None:
    node = leading()
    node.read_index(b"dropped")
    (first, _) = heartbeat_contexts(node)
    node.apply_conf_change(ConfChange(ConfChangeType.ADD_NODE, 4))
    for peer in (2, 3, 4):
        confirm(node, peer, first[1])
    assert answered(node) == []
    node.read_index(b"r")
    contexts = dict(heartbeat_contexts(node))
    confirm(node, 2, contexts[2])
    assert answered(node) == []
    confirm(node, 3, contexts[3])
    assert answered(node) == [ReadState(1, b"r")]


def test_reads_postponed_at_an_election_are_released_by_a_change_of_members_that_commits() -> None:
    node = elected()
    node.read_index(b"r")
    node.apply_conf_change(ConfChange(ConfChangeType.REMOVE_NODE, 3))
    acknowledge(node, 2, 1)
    (only,) = heartbeat_contexts(node)
    confirm(node, 2, only[1])
    assert answered(node) == [ReadState(1, b"r")]


def test_without_a_leader_a_read_is_dropped() -> None:
    node = build()
    node.read_index(b"r")
    assert not node.has_ready()


def test_a_single_voter_answers_at_once() -> None:
    node = leading(stored(voters=(1,), learners=(2,)))
    node.read_index(b"r")
    assert answered(node) == [ReadState(1, b"r")]


def test_lease_based_reads_are_answered_at_once_and_keep_their_leader() -> None:
    node = leading(check_quorum=True, read_only=ReadOnlyOption.LEASE_BASED)
    node.read_index(b"r")
    assert answered(node) == [ReadState(1, b"r")]
    follower = build(check_quorum=True, read_only=ReadOnlyOption.LEASE_BASED)
    follower.step(Message(MessageType.HEARTBEAT, to=1, from_=2, term=1))
    follower.forget_leader()
    assert follower.raft.lead == 2


@pytest.mark.case(32)
def test_a_leader_that_was_cut_off_and_replaced_answers_no_read() -> None:
    node = leading(check_quorum=True)
    node.read_index(b"r")
    assert answered(node) == []
    node.step(Message(MessageType.APP_RESP, to=1, from_=2, term=2))
    assert (node.raft.state, answered(node)) == (Role.FOLLOWER, [])
    for _ in range(ELECTION_TICKS):
        node.tick()
    assert answered(node) == []


@pytest.mark.parametrize("entries", [[], [entry(0, 0, b"a"), entry(0, 0, b"b")]])
def test_a_request_or_answer_that_does_not_hold_one_context_is_ignored(entries: list[Entry]) -> None:
    leader = leading()
    leader.step(Message(MessageType.READ_INDEX, to=1, from_=2, entries=entries))
    assert work(leader) == []
    follower = build()
    follower.step(Message(MessageType.HEARTBEAT, to=1, from_=2, term=1))
    work(follower)
    follower.step(Message(MessageType.READ_INDEX_RESP, to=1, from_=2, term=1, index=1, entries=entries))
    assert not follower.has_ready()
