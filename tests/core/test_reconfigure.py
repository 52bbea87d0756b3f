from __future__ import annotations

import pytest

from raftstate.core.conf_change import LEAVE_JOINT, decode_conf_change, encode_conf_change
from raftstate.core.errors import ProposalDropped, StepPeerNotFound
from raftstate.core.membership import ConfChangeError
from raftstate.core.rawnode import RawNode
from raftstate.core.roles import Role
from raftstate.core.types import (
    ConfChange,
    ConfChangeSingle,
    ConfChangeTransition,
    ConfChangeType,
    ConfChangeV2,
    ConfState,
    Entry,
    EntryType,
    HardState,
    Message,
    MessageType,
    Snapshot,
    SnapshotMetadata,
)
from raftstate.errors import InvariantError
from tests.core.nodes import acknowledge, build, elected, entry, leading, stored, work

ADD_4 = ConfChange(ConfChangeType.ADD_NODE, 4)
REMOVE_1 = ConfChange(ConfChangeType.REMOVE_NODE, 1)
REMOVE_3 = ConfChange(ConfChangeType.REMOVE_NODE, 3)
SWAP_3_FOR_4 = ConfChangeV2(
    changes=(ConfChangeSingle(ConfChangeType.ADD_NODE, 4), ConfChangeSingle(ConfChangeType.REMOVE_NODE, 3))
)


def last_entry(node: RawNode) -> Entry:
    log = node.raft.raft_log
    return log.slice(log.last_index(), log.last_index() + 1, 0)[0]


def acknowledge_by(node: RawNode, *peers: int) -> None:
    for peer in peers:
        acknowledge(node, peer, node.raft.raft_log.last_index())
        work(node)


@pytest.mark.parametrize("change", [ADD_4, SWAP_3_FOR_4, ConfChangeV2(context=b"x")])
def test_a_change_is_read_back_as_it_was_written(change: ConfChange | ConfChangeV2) -> None:
    assert decode_conf_change(encode_conf_change(change)) == change


def test_no_data_is_the_change_that_leaves_a_joint_configuration() -> None:
    assert decode_conf_change(LEAVE_JOINT) == ConfChangeV2()
    with pytest.raises(InvariantError, match="type NORMAL"):
        decode_conf_change(entry(1, 1))


@pytest.mark.case(15)
def test_no_change_while_a_new_leader_has_earlier_entries_to_apply() -> None:
    node = elected(stored((1, 1)))
    node.propose_conf_change(ADD_4)
    assert (last_entry(node).index, last_entry(node).type) == (4, EntryType.NORMAL)
    acknowledge_by(node, 2)
    node.propose_conf_change(ADD_4)
    assert (last_entry(node).index, last_entry(node).type) == (5, EntryType.CONF_CHANGE)


@pytest.mark.case(15)
def test_a_change_takes_effect_only_after_an_entry_of_the_leaders_term_is_committed() -> None:
    node = elected(stored((1,), hard_state=HardState(term=1, commit=1)))
    node.propose_conf_change(REMOVE_3)
    work(node)
    acknowledge(node, 2, 1)
    work(node)
    assert (node.raft.raft_log.committed, sorted(node.raft.tracker.progress)) == (1, [1, 2, 3])
    acknowledge(node, 2, 3)
    work(node)
    assert (node.raft.raft_log.committed, sorted(node.raft.tracker.progress)) == (3, [1, 2])


@pytest.mark.case(16)
def test_a_second_change_is_refused_until_the_first_is_applied() -> None:
    node = leading()
    node.propose_conf_change(ADD_4)
    node.propose_conf_change(REMOVE_3)
    log = node.raft.raft_log
    assert [found.type for found in log.slice(2, 4, 1 << 20)] == [EntryType.CONF_CHANGE, EntryType.NORMAL]
    work(node)
    acknowledge_by(node, 2)
    assert sorted(node.raft.tracker.progress) == [1, 2, 3, 4]
    node.propose_conf_change(REMOVE_3)
    assert last_entry(node).type is EntryType.CONF_CHANGE


@pytest.mark.case(16)
def test_two_changes_in_one_proposal_count_as_two() -> None:
    node = leading()
    changes = [encode_conf_change(ADD_4), encode_conf_change(REMOVE_3)]
    node.step(Message(MessageType.PROP, to=1, from_=2, entries=changes))
    found = node.raft.raft_log.slice(2, 4, 1 << 20)
    assert [item.type for item in found] == [EntryType.CONF_CHANGE, EntryType.NORMAL]
    assert [item.type for item in changes] == [EntryType.CONF_CHANGE, EntryType.CONF_CHANGE]


def test_other_entries_of_a_proposal_stand_beside_its_change_as_they_are() -> None:
    node = leading()
    change = encode_conf_change(REMOVE_3)
    proposed = [entry(0, 0, b"a"), change, entry(0, 0, b"b")]
    node.step(Message(MessageType.PROP, to=1, from_=2, entries=proposed))
    appended = node.raft.raft_log.unstable.entries
    assert [(found.index, found.type, found.data) for found in appended] == [
        (2, EntryType.NORMAL, b"a"),
        (3, EntryType.CONF_CHANGE, change.data),
        (4, EntryType.NORMAL, b"b"),
    ]
    assert node.raft.pending_conf_index == 3


def test_a_dropped_change_does_not_block_the_next_one() -> None:
    node = leading(max_uncommitted_bytes=1)
    node.propose(b"x")
    with pytest.raises(ProposalDropped):
        node.propose_conf_change(ADD_4)
    work(node)
    acknowledge_by(node, 2)
    node.propose_conf_change(ADD_4)
    assert last_entry(node).type is EntryType.CONF_CHANGE


def test_a_change_that_cannot_be_decoded_is_refused_before_it_is_in_the_log() -> None:
    node = leading()
    garbage = Entry(index=0, term=0, type=EntryType.CONF_CHANGE, data=b"\xc1")
    with pytest.raises(ProposalDropped, match="can't be decoded"):
        node.step(Message(MessageType.PROP, to=1, from_=2, entries=[garbage]))
    assert node.raft.raft_log.last_index() == 1


@pytest.mark.case(17)
def test_a_configuration_acts_when_it_is_applied_and_not_when_it_is_appended() -> None:
    node = leading()
    node.propose_conf_change(REMOVE_3)
    work(node)
    assert node.raft.tracker.voter_nodes() == [1, 2, 3]
    acknowledge(node, 3, 2)
    assert node.raft.raft_log.committed == 2
    assert node.raft.tracker.voter_nodes() == [1, 2, 3]
    work(node)
    assert node.raft.tracker.voter_nodes() == [1, 2]


@pytest.mark.case(17)
def test_a_change_that_was_truncated_never_acted() -> None:
    node = leading()
    node.propose_conf_change(REMOVE_3)
    work(node)
    node.step(
        Message(MessageType.APP, to=1, from_=3, term=2, index=1, log_term=1, entries=[entry(2, 2)], commit=2)
    )
    work(node)
    assert (node.raft.raft_log.applied, node.raft.tracker.voter_nodes()) == (2, [1, 2, 3])


@pytest.mark.case(20)
def test_a_leader_removes_itself_under_the_old_configuration_its_own_vote_included() -> None:
    node = leading()
    node.propose_conf_change(REMOVE_1)
    node.propose(b"later")
    work(node)
    acknowledge(node, 2, 2)
    assert node.raft.raft_log.committed == 2
    work(node)
    assert node.raft.tracker.voter_nodes() == [2, 3]
    acknowledge(node, 2, 3)
    assert node.raft.raft_log.committed == 2
    acknowledge(node, 3, 3)
    assert node.raft.raft_log.committed == 3
    with pytest.raises(ProposalDropped, match="no longer a member"):
        node.propose(b"x")


@pytest.mark.parametrize(("step_down", "role"), [(True, Role.FOLLOWER), (False, Role.LEADER)])
def test_a_removed_leader_steps_down_if_told_to(step_down: bool, role: Role) -> None:
    node = leading(step_down_on_removal=step_down)
    node.propose_conf_change(REMOVE_1)
    work(node)
    acknowledge_by(node, 2)
    assert node.raft.state is role


def test_several_changes_go_through_a_joint_configuration_which_is_left_by_itself() -> None:
    node = leading()
    node.propose_conf_change(SWAP_3_FOR_4)
    work(node)
    acknowledge(node, 2, 2)
    work(node)
    assert node.status().config.voters.outgoing == {1, 2, 3}
    assert decode_conf_change(last_entry(node)) == ConfChangeV2()
    acknowledge(node, 3, 3)
    assert node.raft.raft_log.committed == 2, "a majority of the incoming half is missing"
    acknowledge(node, 4, 3)
    work(node)
    assert node.raft.tracker.conf_state() == ConfState(voters=(1, 2, 4))


def test_a_joint_configuration_that_was_asked_for_is_left_when_asked() -> None:
    node = leading()
    explicit = ConfChangeV2(ConfChangeTransition.JOINT_EXPLICIT, SWAP_3_FOR_4.changes)
    node.propose_conf_change(explicit)
    work(node)
    acknowledge_by(node, 2)
    assert node.raft.raft_log.last_index() == 2
    node.propose_conf_change(ADD_4)
    assert last_entry(node).type is EntryType.NORMAL
    node.propose_conf_change(ConfChangeV2())
    assert last_entry(node).type is EntryType.CONF_CHANGE_V2


def test_leaving_what_is_not_joint_is_refused() -> None:
    node = leading()
    node.propose_conf_change(ConfChangeV2())
    assert last_entry(node).type is EntryType.NORMAL


def test_a_change_that_does_not_fit_when_it_is_applied_leaves_the_configuration() -> None:
    node = leading(stored(voters=(1,)))
    with pytest.raises(ConfChangeError, match="removed all voters"):
        node.apply_conf_change(REMOVE_1)
    assert node.raft.tracker.conf_state() == ConfState(voters=(1,))


def test_a_new_member_is_probed_at_once() -> None:
    node = leading()
    node.propose_conf_change(ADD_4)
    work(node)
    acknowledge(node, 2, 2)
    sent = [(message.type, message.to) for message in work(node) if message.to == 4]
    assert sent == [(MessageType.APP, 4)]


def test_a_smaller_quorum_commits_what_waited_for_the_larger_one() -> None:
    node = leading(stored(voters=(1, 2, 3, 4)))
    node.propose(b"x")
    work(node)
    acknowledge(node, 2, 2)
    assert node.raft.raft_log.committed == 1
    node.apply_conf_change(ConfChange(ConfChangeType.REMOVE_NODE, 4))
    assert node.raft.raft_log.committed == 2


def test_a_transfer_to_a_node_that_is_removed_is_given_up() -> None:
    node = leading()
    node.propose(b"x")
    work(node)
    node.transfer_leader(3)
    node.apply_conf_change(REMOVE_3)
    assert node.raft.lead_transferee == 0


def test_a_transfer_to_a_node_that_stays_goes_on_over_a_change_of_members() -> None:
    node = leading()
    node.propose(b"x")
    work(node)
    node.transfer_leader(2)
    node.apply_conf_change(REMOVE_3)
    assert node.raft.lead_transferee == 2


def test_answers_of_nodes_that_are_no_members_are_refused() -> None:
    node = leading()
    with pytest.raises(StepPeerNotFound, match="node 9"):
        acknowledge(node, 9, 1)


# -- snapshots


def snapshot(index: int, term: int, voters: tuple[int, ...] = (1, 2, 3)) -> Snapshot:
    return Snapshot(b"state", SnapshotMetadata(ConfState(voters=voters), index, term))


def receive(node: RawNode, received: Snapshot) -> list[Message]:
    node.step(Message(MessageType.SNAP, to=1, from_=2, term=node.raft.term, snapshot=received))
    return work(node)


def test_a_snapshot_ahead_of_the_log_replaces_it_and_the_configuration() -> None:
    storage = stored((1, 1))
    node = build(storage)
    received = snapshot(9, 1, voters=(1, 2, 4))
    assert receive(node, received) == [Message(MessageType.APP_RESP, to=2, from_=1, term=1, index=9)]
    assert (storage.first_index(), storage.last_index(), storage.snapshot()) == (10, 9, received)
    assert node.raft.tracker.conf_state() == ConfState(voters=(1, 2, 4))
    assert (node.raft.raft_log.committed, node.raft.raft_log.applied) == (9, 9)


@pytest.mark.case(61)
def test_a_snapshot_within_the_log_commits_up_to_it_and_keeps_the_suffix() -> None:
    storage = stored((1, 1, 1))
    node = build(storage)
    assert receive(node, snapshot(2, 1)) == [Message(MessageType.APP_RESP, to=2, from_=1, term=1, index=2)]
    assert (storage.first_index(), storage.last_index(), node.raft.raft_log.committed) == (1, 3, 2)


@pytest.mark.case(43)
def test_an_older_snapshot_is_ignored() -> None:
    storage = stored((1, 1, 1), hard_state=HardState(term=1, commit=3))
    node = build(storage)
    assert receive(node, snapshot(2, 1)) == [Message(MessageType.APP_RESP, to=2, from_=1, term=1, index=3)]
    assert (storage.last_index(), node.raft.raft_log.committed) == (3, 3)


@pytest.mark.case(43)
def test_a_snapshot_older_than_the_log_s_boundary_is_ignored() -> None:
    """The log can't tell any more that it held the snapshot's last entry."""
    storage = stored((1, 1, 1, 1), hard_state=HardState(term=1, commit=3))
    storage.create_snapshot(3, None, b"")
    storage.compact(3)
    node = build(storage, applied=3)
    assert receive(node, snapshot(2, 1)) == [Message(MessageType.APP_RESP, to=2, from_=1, term=1, index=3)]
    log = node.raft.raft_log
    assert (log.first_index(), log.last_index(), log.committed, log.applied) == (4, 4, 3, 3)


def test_a_snapshot_without_this_node_is_ignored() -> None:
    node = build(stored((1,)))
    receive(node, snapshot(9, 1, voters=(2, 3)))
    assert node.raft.raft_log.last_index() == 1


def test_nothing_is_applied_past_a_snapshot_that_is_not_installed() -> None:
    node = build(stored((1, 1)), async_storage_writes=True)
    node.step(Message(MessageType.SNAP, to=1, from_=2, term=1, snapshot=snapshot(9, 1)))
    (write,) = node.ready().messages
    node.step(
        Message(
            MessageType.APP, to=1, from_=2, term=1, index=9, log_term=1, entries=[entry(10, 1)], commit=10
        )
    )
    assert [message.type for message in node.ready().messages] == [MessageType.STORAGE_APPEND]
    storage = node.raft.raft_log.storage
    storage.apply_snapshot(snapshot(9, 1))  # type: ignore[attr-defined]
    for response in write.responses:
        if response.to == 1:
            node.step(response)
    assert node.raft.raft_log.applied == 9


# -- the start


def test_a_stored_joint_configuration_is_restored_whole() -> None:
    joint = ConfState(
        voters=(1, 2, 4), learners=(5,), voters_outgoing=(1, 2, 3), learners_next=(3,), auto_leave=True
    )
    storage = stored()
    storage.apply_snapshot(Snapshot(metadata=SnapshotMetadata(joint, 3, 1)))
    node = build(storage)
    assert node.raft.tracker.conf_state() == joint
    assert node.raft.peers == (2, 3, 4, 5)


def test_a_stored_configuration_that_names_a_node_twice_is_refused() -> None:
    with pytest.raises(InvariantError, match=r"the stored configuration is .*\(2, 1, 2\).* restored was"):
        build(stored(voters=(2, 1, 2)))


def test_what_is_applied_was_committed_even_if_that_was_not_written_down() -> None:
    node = build(stored((1, 1, 1), hard_state=HardState(term=1, commit=1)), applied=2)
    log = node.raft.raft_log
    assert (log.committed, log.applied, log.applying) == (2, 2, 2)


def test_a_log_that_ends_before_what_was_committed_or_applied_is_refused() -> None:
    for commit, applied in ((3, 0), (0, 3)):
        with pytest.raises(InvariantError, match="3 is committed or applied, but the stored log ends at 2"):
            build(stored((1, 1), hard_state=HardState(term=1, commit=commit)), applied=applied)


def test_a_stored_term_below_that_of_the_log_is_refused() -> None:
    with pytest.raises(InvariantError, match="the stored term is 1, but the log ends in term 2"):
        build(stored((1, 2), hard_state=HardState(term=1)))


def test_the_progress_of_a_learner_whose_log_was_lost_begins_anew() -> None:
    node = leading(stored((1,), learners=(4,)))
    acknowledge_by(node, 4)
    assert node.raft.tracker.progress[4].match == node.raft.raft_log.last_index()
    node.restart_progress(4)
    progress = node.raft.tracker.progress[4]
    assert (progress.match, progress.next, progress.is_learner) == (
        0,
        node.raft.raft_log.last_index() + 1,
        True,
    )
    # The empty log rejects the next append; before, that was a late answer to an old one, and ignored.
    node.propose(b"x")
    work(node)
    rejection = Message(
        MessageType.APP_RESP, to=1, from_=4, term=node.raft.term, index=progress.next - 1, reject=True
    )
    node.step(rejection)
    assert [(message.to, message.index) for message in work(node)] == [(4, 0)]


@pytest.mark.parametrize("node_id", [2, 9])
def test_the_progress_of_a_voter_or_a_stranger_is_never_forgotten(node_id: int) -> None:
    node = leading()
    before = dict(node.raft.tracker.progress)
    with pytest.raises(InvariantError, match=f"node {node_id}"):
        node.restart_progress(node_id)
    assert node.raft.tracker.progress == before
