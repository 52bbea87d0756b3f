from __future__ import annotations

import pytest

from raftstate.core.errors import ProposalDropped, SnapshotTemporarilyUnavailable, Unavailable
from raftstate.core.progress import ProgressState
from raftstate.core.rawnode import RawNode
from raftstate.core.roles import Role
from raftstate.core.storage import NO_LIMIT, MemoryStorage, entry_bytes
from raftstate.core.types import (
    ConfState,
    Entry,
    HardState,
    Message,
    MessageType,
    Snapshot,
)
from raftstate.errors import InvariantError
from tests.core.cluster import Cluster
from tests.core.nodes import ELECTION_TICKS, acknowledge, build, elected, entry, leading, stored, work


def append(
    *entries: Entry, term: int = 1, index: int = 0, log_term: int = 0, commit: int = 0, from_: int = 2
) -> Message:
    return Message(
        MessageType.APP,
        to=1,
        from_=from_,
        term=term,
        index=index,
        log_term=log_term,
        entries=list(entries),
        commit=commit,
    )


def whole_log(node: RawNode) -> list[Entry]:
    log = node.raft.raft_log
    return log.slice(log.first_index(), log.last_index() + 1, NO_LIMIT)


def appends_to(messages: list[Message], peer: int) -> list[tuple[int, list[int]]]:
    """Of the appends to `peer`: the index before, and the indexes in each."""
    return [
        (message.index, [entry.index for entry in message.entries])
        for message in messages
        if message.to == peer and message.type is MessageType.APP
    ]


# -- a follower


def test_a_follower_appends_follows_the_commit_index_and_acknowledges() -> None:
    node = build(stored((1,)))
    node.step(append(entry(2, 1, b"a"), entry(3, 1, b"b"), index=1, log_term=1, commit=2))
    ready = node.ready()
    assert ready.entries == [entry(2, 1, b"a"), entry(3, 1, b"b")]
    assert ready.committed_entries == [entry(1, 1), entry(2, 1, b"a")]
    assert ready.hard_state == HardState(term=1, commit=2)
    assert ready.messages == [Message(MessageType.APP_RESP, to=2, from_=1, term=1, index=3)]


def test_an_append_that_does_not_connect_is_rejected_with_a_hint() -> None:
    node = build(stored((1, 1)))
    node.step(append(entry(9, 3), term=3, index=8, log_term=3))
    assert work(node) == [
        Message(MessageType.APP_RESP, to=2, from_=1, term=3, index=8, log_term=1, reject=True, reject_hint=2)
    ]


@pytest.mark.case(8)
def test_a_repeated_or_late_append_leaves_the_suffix_behind_it() -> None:
    node = build()
    first = append(entry(1, 1, b"a"), entry(2, 1, b"b"))
    node.step(first)
    node.step(append(entry(3, 1, b"c"), index=2, log_term=1))
    node.step(append(entry(1, 1, b"a")))
    node.step(append(index=1, log_term=1))
    node.step(first)
    assert work(node) == [
        Message(MessageType.APP_RESP, to=2, from_=1, term=1, index=index) for index in (2, 3, 1, 1, 2)
    ]
    assert whole_log(node) == [entry(1, 1, b"a"), entry(2, 1, b"b"), entry(3, 1, b"c")]


def test_only_what_conflicts_is_replaced() -> None:
    storage = stored((1, 1, 1, 1))
    node = build(storage)
    node.step(append(entry(2, 1), entry(3, 2, b"new"), term=2, index=1, log_term=1))
    ready = node.ready()
    assert ready.entries == [entry(3, 2, b"new")]
    storage.append(ready.entries)
    node.advance()
    assert whole_log(node) == [entry(1, 1), entry(2, 1), entry(3, 2, b"new")]


def test_an_append_from_before_the_commit_index_is_answered_by_that_index_and_changes_nothing() -> None:
    node = build(stored((1, 1), hard_state=HardState(term=1, commit=2)))
    node.step(append(entry(2, 2), term=2, index=1, log_term=1))
    assert work(node) == [Message(MessageType.APP_RESP, to=2, from_=1, term=2, index=2)]
    assert whole_log(node) == [entry(1, 1), entry(2, 1)]


@pytest.mark.case(10)
def test_what_is_acknowledged_is_what_the_append_verified_and_not_the_suffix_behind_it() -> None:
    node = build(stored((1, 1, 2, 2)))
    node.step(append(entry(2, 1), term=3, index=1, log_term=1))
    node.step(append(term=3, index=1, log_term=1))
    assert [(message.index, message.reject) for message in work(node)] == [(2, False), (1, False)]


@pytest.mark.case(9)
def test_the_commit_index_goes_no_further_than_the_last_entry_this_append_verified() -> None:
    node = build(stored((1, 1, 1, 1)))
    node.step(append(entry(2, 1), term=3, index=1, log_term=1, commit=4))
    assert node.raft.raft_log.committed == 2


@pytest.mark.case(9)
def test_a_commit_index_behind_the_log_in_a_heartbeat_stops_the_node() -> None:
    node = build(stored((1, 1)))
    with pytest.raises(InvariantError, match="told to commit 3, but the last index is 2"):
        node.step(Message(MessageType.HEARTBEAT, to=1, from_=2, term=1, commit=3))


def test_a_heartbeat_is_answered_with_its_context() -> None:
    node = build(stored((1, 1)))
    node.step(Message(MessageType.HEARTBEAT, to=1, from_=2, term=1, commit=1, context=b"round"))
    assert work(node) == [Message(MessageType.HEARTBEAT_RESP, to=2, from_=1, term=1, context=b"round")]
    assert node.raft.raft_log.applied == 1


def test_an_acknowledgement_leaves_only_after_its_write() -> None:
    node = build(async_storage_writes=True)
    node.step(append(entry(1, 1)))
    (write,) = node.ready().messages
    acknowledgement = Message(MessageType.APP_RESP, to=2, from_=1, term=1, index=1)
    assert (write.type, write.entries, write.responses[0]) == (
        MessageType.STORAGE_APPEND,
        [entry(1, 1)],
        acknowledgement,
    )


# -- a leader


@pytest.mark.case(3)
@pytest.mark.case(4)
@pytest.mark.case(5)
def test_a_single_node_commits_its_first_entry_and_a_proposal_only_when_each_is_durable() -> None:
    storage = stored(voters=(1,))
    node = build(storage, async_storage_writes=True)
    node.campaign()
    for response in node.ready().messages[0].responses:
        node.step(response)
    assert node.raft.state is Role.LEADER
    for index in (1, 2):
        if index == 2:
            node.propose(b"x")
        (write,) = node.ready().messages[:1]
        assert (write.entries[0].index, node.raft.raft_log.committed) == (index, index - 1)
        storage.append(write.entries)
        for response in write.responses:
            node.step(response)
        assert node.raft.raft_log.committed == index


@pytest.mark.case(4)
def test_a_new_leader_does_not_count_its_first_entry_before_it_is_durable() -> None:
    node = build()
    node.campaign()
    work(node)
    node.step(Message(MessageType.VOTE_RESP, to=1, from_=2, term=1))
    assert node.raft.state is Role.LEADER
    acknowledge(node, 2, 1)
    assert node.raft.raft_log.committed == 0
    work(node)
    assert node.raft.raft_log.committed == 1


@pytest.mark.case(5)
def test_a_leader_does_not_count_its_own_copy_before_it_is_durable() -> None:
    node = elected()
    acknowledge(node, 2, 1)
    work(node)
    node.propose(b"x")
    acknowledge(node, 2, 2)
    assert node.raft.raft_log.committed == 1
    work(node)
    assert node.raft.raft_log.committed == 2


@pytest.mark.case(7)
def test_an_entry_of_an_earlier_term_commits_only_with_one_of_the_present_term() -> None:
    """Figure 8 of the Raft paper: a quorum holds entry 2, and yet it may be overwritten."""
    node = elected(stored((1, 2), voters=(1, 2, 3, 4, 5), hard_state=HardState(term=3)))
    for peer in (2, 3):
        acknowledge(node, peer, 2)
    assert node.raft.raft_log.committed == 0
    for peer in (2, 3):
        acknowledge(node, peer, 3)
    assert node.raft.raft_log.committed == 3


@pytest.mark.case(10)
def test_match_moves_by_acknowledgements_only_and_never_back() -> None:
    node = leading()
    for data in (b"a", b"b", b"c"):
        node.propose(data)
    work(node)
    progress = node.raft.tracker.progress[2]
    assert (progress.match, progress.next) == (1, 5)
    acknowledge(node, 2, 3)
    acknowledge(node, 2, 2)
    assert (progress.match, progress.next) == (3, 5)
    rejection = Message(
        MessageType.APP_RESP, to=1, from_=2, term=1, index=2, reject=True, reject_hint=0, log_term=0
    )
    node.step(rejection)
    assert (progress.match, progress.next, progress.state) == (3, 5, ProgressState.REPLICATE)
    node.step(Message(MessageType.APP_RESP, to=1, from_=2, term=1, index=4, reject=True, reject_hint=0))
    assert (progress.match, progress.next, progress.state) == (3, 4, ProgressState.PROBE)


@pytest.mark.case(11)
def test_a_report_of_a_write_from_an_earlier_term_is_not_believed() -> None:
    """The ABA race: what was written is in memory again, but a write that replaces it is under way."""
    node = build(async_storage_writes=True)
    written = []
    for term, leader in ((1, 2), (2, 3), (3, 2)):
        node.step(append(entry(1, 1 if term != 2 else 2, b"x"), term=term, from_=leader))
        written.append(node.ready().messages[-1])
    assert [message.entries for message in written] == [
        [entry(1, 1, b"x")],
        [entry(1, 2, b"x")],
        [entry(1, 1, b"x")],
    ]
    for number, unstable in ((0, 1), (1, 1), (2, 0)):
        node.step(written[number].responses[-1])
        assert len(node.raft.raft_log.unstable.entries) == unstable


@pytest.mark.case(12)
def test_a_step_down_in_the_middle_of_an_append_leaves_the_new_leaders_log() -> None:
    storage = stored((1,))
    node = build(storage, async_storage_writes=True)
    node.campaign()
    node.ready()
    for voter in (2, 3):
        node.step(Message(MessageType.VOTE_RESP, to=1, from_=voter, term=2))
    node.propose(b"mine")
    mine = next(message for message in node.ready().messages if message.type is MessageType.STORAGE_APPEND)
    node.step(append(entry(2, 3, b"theirs"), term=3, index=1, log_term=1, from_=3))
    theirs = node.ready().messages[-1]
    for write in (mine, theirs):
        storage.append(write.entries)
        for response in write.responses:
            if response.to == 1:
                node.step(response)
    assert (node.raft.state, node.raft.uncommitted_bytes) == (Role.FOLLOWER, 0)
    assert whole_log(node) == storage.entries(1, 3, NO_LIMIT) == [entry(1, 1), entry(2, 3, b"theirs")]
    assert node.raft.raft_log.unstable.entries == []


class UnreadableStorage(MemoryStorage):
    """A log whose entry 2 can't be read while `broken`."""

    broken = False

    def entries(self, lo: int, hi: int, max_bytes: int) -> list[Entry]:
        if self.broken and lo <= 2 < hi:
            raise Unavailable("entry 2 is damaged")
        return super().entries(lo, hi, max_bytes)


@pytest.mark.case(13)
def test_a_leader_that_cannot_read_its_own_log_sends_nothing_and_resumes_later() -> None:
    storage = UnreadableStorage()
    storage.apply_snapshot(stored().snapshot())
    storage.append([entry(1, 1), entry(2, 1), entry(3, 1)])
    storage.set_hard_state(HardState(term=1))
    node = elected(storage)
    storage.broken = True
    rejection = Message(
        MessageType.APP_RESP, to=1, from_=2, term=2, index=3, reject=True, reject_hint=1, log_term=1
    )
    node.step(rejection)
    assert (work(node), node.raft.tracker.progress[2].next) == ([], 2)
    storage.broken = False
    node.step(Message(MessageType.HEARTBEAT_RESP, to=1, from_=2, term=2))
    assert appends_to(work(node), 2) == [(1, [2, 3, 4])]


@pytest.mark.case(14)
def test_a_follower_with_a_long_conflicting_tail_catches_up_in_few_rounds() -> None:
    """Sixty entries of two terms that nobody else has, against sixty others: a round per term, not per
    entry."""
    cluster = Cluster(seed=1, check_quorum=False, pre_vote=False)
    own, other = cluster.members[1].storage, cluster.members[2].storage
    own.append([entry(index, 2 if index < 30 else 4) for index in range(2, 62)])
    own.set_hard_state(HardState(term=4, commit=1))
    for storage in (other, cluster.members[3].storage):
        storage.append([entry(index, 3 if index < 40 else 5) for index in range(2, 62)])
        storage.set_hard_state(HardState(term=5, commit=1))
    for node_id in (1, 2, 3):
        cluster.crash(node_id)
        cluster.members[node_id].storage.set_hard_state(HardState(term=5, commit=1))
        cluster.start(node_id)
    cluster.members[2].node.campaign()
    cluster.settle()
    rejections = [m for m in cluster.delivered if m.type is MessageType.APP_RESP and m.reject]
    assert len(rejections) <= 3
    assert cluster.logs()[1] == cluster.logs()[2]


def test_an_unknown_follower_is_probed_one_message_at_a_time() -> None:
    node = elected()
    for data in (b"a", b"b"):
        node.propose(data)
    assert appends_to(work(node), 2) == []
    acknowledge(node, 2, 1)
    assert appends_to(work(node), 2) == [(1, [2, 3])]


def test_the_window_bounds_the_appends_under_way_in_number() -> None:
    node = leading(max_inflight_messages=2)
    for data in (b"a", b"b", b"c"):
        node.propose(data)
    assert appends_to(work(node), 2) == [(1, [2]), (2, [3])]
    acknowledge(node, 2, 2)
    assert appends_to(work(node), 2) == [(3, [4])]


def test_the_window_bounds_the_appends_under_way_in_bytes() -> None:
    node = leading(max_inflight_bytes=100, max_message_bytes=100)
    for _ in range(3):
        node.propose(b"x" * 60)
    assert appends_to(work(node), 2) == [(1, [2]), (2, [3])]


def test_a_full_window_lets_one_empty_append_out_after_each_heartbeat_answer() -> None:
    node = leading(max_inflight_messages=1)
    node.propose(b"a")
    node.propose(b"b")
    assert appends_to(work(node), 2) == [(1, [2])]
    node.step(Message(MessageType.HEARTBEAT_RESP, to=1, from_=2, term=1))
    assert appends_to(work(node), 2) == [(2, [])]


def test_appends_are_cut_at_the_message_size_but_never_empty() -> None:
    limit = 2 * entry_bytes(entry(2, 1, b"x" * 10))
    node = elected(max_message_bytes=limit)
    node.propose_entries([b"x" * 10] * 3 + [b"y" * 200])
    work(node)
    acknowledge(node, 2, 1)
    assert appends_to(work(node), 2) == [(1, [2, 3]), (3, [4]), (4, [5])]


def test_proposals_are_all_or_nothing_at_the_limit_of_uncommitted_bytes() -> None:
    node = leading(max_uncommitted_bytes=10)
    node.propose(b"x" * 20)
    with pytest.raises(ProposalDropped, match="20 bytes are uncommitted, the limit is 10"):
        node.propose_entries([b"y", b"z"])
    node.propose(b"")
    work(node)
    for peer in (2, 3):
        acknowledge(node, peer, 3)
    work(node)
    assert node.raft.uncommitted_bytes == 0
    node.propose_entries([b"y", b"z"])
    assert [found.data for found in whole_log(node)] == [b"", b"x" * 20, b"", b"y", b"z"]


def test_several_entries_of_one_proposal_travel_in_one_append() -> None:
    node = leading()
    node.propose_entries([b"a", b"b"])
    assert appends_to(work(node), 3) == [(1, [2, 3])]


def test_a_proposal_without_entries_is_refused() -> None:
    with pytest.raises(ProposalDropped, match="propose at least one"):
        leading().propose_entries([])


def test_proposals_need_a_leader_and_are_forwarded_to_it() -> None:
    node = build()
    with pytest.raises(ProposalDropped):
        node.propose(b"x")
    node.step(Message(MessageType.HEARTBEAT, to=1, from_=2, term=1))
    work(node)
    node.propose(b"x")
    assert work(node) == [Message(MessageType.PROP, to=2, from_=1, entries=[entry(0, 0, b"x")])]


def test_forwarding_can_be_switched_off() -> None:
    node = build(disable_proposal_forwarding=True)
    node.step(Message(MessageType.HEARTBEAT, to=1, from_=2, term=1))
    work(node)
    with pytest.raises(ProposalDropped, match="propose to the leader, node 2"):
        node.propose(b"x")
    assert work(node) == []


def test_heartbeats_carry_no_commit_index_that_the_peer_is_not_known_to_hold() -> None:
    node = leading()
    node.propose(b"x")
    work(node)
    acknowledge(node, 2, 2)
    work(node)
    node.tick()
    assert work(node) == [
        Message(MessageType.HEARTBEAT, to=2, from_=1, term=1, commit=2),
        Message(MessageType.HEARTBEAT, to=3, from_=1, term=1, commit=1),
    ]


def test_heartbeats_leave_every_heartbeat_ticks() -> None:
    node = leading(heartbeat_ticks=3)
    sent = []
    for _ in range(6):
        node.tick()
        sent.append(len(work(node)))
    assert sent == [0, 0, 2, 0, 0, 2]


def test_an_unreachable_peer_is_probed_again() -> None:
    node = leading()
    node.propose(b"x")
    work(node)
    node.report_unreachable(2)
    progress = node.raft.tracker.progress[2]
    assert (progress.state, progress.next) == (ProgressState.PROBE, 2)


# -- snapshots


def lagging() -> tuple[RawNode, MemoryStorage]:
    """A leader whose log begins at 4, and node 2, which has just said that its log is empty."""
    storage = stored((1, 1, 1))
    node = leading(storage)
    storage.create_snapshot(3, None, b"state")
    storage.compact(3)
    progress = node.raft.tracker.progress[2]
    progress.become_probe()
    progress.match, progress.next = 0, 4
    return node, storage


def rejection() -> Message:
    return Message(MessageType.APP_RESP, to=1, from_=2, term=2, index=3, reject=True, reject_hint=0)


def test_a_peer_behind_the_log_gets_a_snapshot_and_then_the_rest() -> None:
    node, storage = lagging()
    node.step(rejection())
    assert work(node) == [Message(MessageType.SNAP, to=2, from_=1, term=2, snapshot=storage.snapshot())]
    node.propose(b"x")
    assert appends_to(work(node), 2) == []
    acknowledge(node, 2, 3)
    assert appends_to(work(node), 2) == [(3, [4, 5])]


@pytest.mark.parametrize(("ok", "follows"), [(True, 3), (False, 0)])
def test_a_reported_snapshot_is_followed_by_a_probe_after_the_next_heartbeat(ok: bool, follows: int) -> None:
    node, _storage = lagging()
    node.step(rejection())
    work(node)
    node.report_snapshot(2, ok)
    progress = node.raft.tracker.progress[2]
    assert (progress.state, progress.next, work(node)) == (ProgressState.PROBE, follows + 1, [])
    node.step(Message(MessageType.HEARTBEAT_RESP, to=1, from_=2, term=2))
    kinds = [message.type for message in work(node)]
    assert kinds == [MessageType.APP if ok else MessageType.SNAP]


def test_no_snapshot_goes_to_a_peer_that_was_not_heard_from() -> None:
    node, _storage = lagging()
    progress = node.raft.tracker.progress[2]
    progress.next, progress.recent_active = 1, False
    node.propose(b"x")
    assert [message.to for message in work(node)] == [3]


def test_a_snapshot_that_is_not_ready_is_asked_for_again() -> None:
    class BusyStorage(MemoryStorage):
        busy = True

        def snapshot(self) -> Snapshot:
            if self.busy:
                raise SnapshotTemporarilyUnavailable("being made")
            return super().snapshot()

    storage = BusyStorage()
    storage.apply_snapshot(stored().snapshot())
    node = leading(storage)
    storage.create_snapshot(1, ConfState(voters=(1, 2, 3)), b"state")
    storage.compact(1)
    progress = node.raft.tracker.progress[2]
    progress.become_probe()
    progress.match, progress.next = 0, 1
    node.step(Message(MessageType.HEARTBEAT_RESP, to=1, from_=2, term=1))
    assert work(node) == []
    storage.busy = False
    node.step(Message(MessageType.HEARTBEAT_RESP, to=1, from_=2, term=1))
    assert [message.type for message in work(node)] == [MessageType.SNAP]


# -- leader transfer


def test_leadership_is_handed_over_at_once_to_a_peer_that_has_everything() -> None:
    node = leading()
    node.transfer_leader(2)
    assert work(node) == [Message(MessageType.TIMEOUT_NOW, to=2, from_=1, term=1)]
    with pytest.raises(ProposalDropped, match="handing over to node 2"):
        node.propose(b"x")


def test_a_peer_that_lags_is_caught_up_before_it_is_handed_leadership() -> None:
    node = leading()
    node.propose(b"x")
    work(node)
    node.transfer_leader(2)
    assert appends_to(work(node), 2) == [(2, [])]
    acknowledge(node, 2, 2)
    assert Message(MessageType.TIMEOUT_NOW, to=2, from_=1, term=1) in work(node)


def test_the_target_of_a_transfer_campaigns_at_once_and_without_pre_vote() -> None:
    node = build(stored((1,)), pre_vote=True)
    node.step(Message(MessageType.TIMEOUT_NOW, to=1, from_=2, term=1))
    assert (node.raft.state, node.raft.term) == (Role.CANDIDATE, 2)
    assert {message.context for message in work(node)} == {b"CampaignTransfer"}


@pytest.mark.case(29)
def test_a_transfer_that_does_not_finish_within_an_election_timeout_is_given_up() -> None:
    node = leading()
    node.transfer_leader(2)
    for _ in range(ELECTION_TICKS - 1):
        node.tick()
    with pytest.raises(ProposalDropped):
        node.propose(b"x")
    node.tick()
    node.propose(b"x")
    assert node.raft.lead_transferee == 0
    assert appends_to(work(node), 2) == [(1, [2])]


def test_learners_and_strangers_are_not_handed_leadership() -> None:
    node = leading(stored(voters=(1, 2), learners=(3,)))
    for target in (3, 9, 1):
        node.transfer_leader(target)
    assert (work(node), node.raft.lead_transferee) == ([], 0)
