from __future__ import annotations

import msgspec
import pytest

from raftstate.core import invariants
from raftstate.core.config import Config, ReadOnlyOption
from raftstate.core.errors import StepLocalMessage
from raftstate.core.progress import ProgressState
from raftstate.core.rawnode import RawNode
from raftstate.core.ready import Ready, SoftState
from raftstate.core.roles import Role
from raftstate.core.types import (
    LOCAL_APPEND_THREAD,
    LOCAL_APPLY_THREAD,
    HardState,
    Message,
    MessageType,
)
from raftstate.errors import ConfigError, InvariantError
from tests.core.nodes import acknowledge, build, elected, entry, leading, stored, work


def everything(node: RawNode) -> object:
    """All that a message could change, in a form that compares by value."""
    status = node.status()
    peers = [
        (node_id, peer.match, peer.next, peer.state, peer.recent_active, peer.msg_app_flow_paused)
        for node_id, peer in status.progress.items()
    ]
    raft = node.raft
    return status.basic, status.config, peers, raft.election_elapsed, raft.raft_log.last_entry_id()


def test_a_ready_of_a_synchronous_node_from_campaign_to_commit() -> None:
    storage = stored(voters=(1,))
    node = build(storage)
    assert not node.has_ready()
    node.campaign()
    campaign = Ready(
        soft_state=SoftState(lead=0, role=Role.CANDIDATE),
        hard_state=HardState(term=1, vote=1, commit=0),
        must_sync=True,
    )
    assert node.ready() == campaign
    node.advance()
    first = Ready(soft_state=SoftState(lead=1, role=Role.LEADER), entries=[entry(1, 1)], must_sync=True)
    assert node.ready() == first
    storage.append(first.entries)
    node.advance()
    commit = Ready(hard_state=HardState(term=1, vote=1, commit=1), committed_entries=[entry(1, 1)])
    assert node.ready() == commit
    node.advance()
    assert not node.has_ready()
    assert node.raft.raft_log.applied == 1


def test_a_ready_of_an_asynchronous_leader_names_all_storage_work_in_messages() -> None:
    storage = stored()
    node = elected(storage)
    acknowledge(node, 2, 1)
    work(node)
    restarted = build(storage, async_storage_writes=True)
    restarted.step(
        Message(
            MessageType.APP, to=1, from_=2, term=2, index=1, log_term=1, entries=[entry(2, 2, b"x")], commit=2
        )
    )
    ready = restarted.ready()
    acknowledgement = Message(MessageType.APP_RESP, to=2, from_=1, term=2, index=2)
    stable = Message(
        MessageType.STORAGE_APPEND_RESP, to=1, from_=LOCAL_APPEND_THREAD, term=2, index=2, log_term=2
    )
    write = Message(
        MessageType.STORAGE_APPEND,
        to=LOCAL_APPEND_THREAD,
        from_=1,
        term=2,
        commit=2,
        entries=[entry(2, 2, b"x")],
        responses=[acknowledgement, stable],
    )
    applied = Message(MessageType.STORAGE_APPLY_RESP, to=1, from_=LOCAL_APPLY_THREAD, entries=[entry(1, 1)])
    apply = Message(
        MessageType.STORAGE_APPLY,
        to=LOCAL_APPLY_THREAD,
        from_=1,
        entries=[entry(1, 1)],
        responses=[applied],
    )
    assert ready.messages == [write, apply], "entry 2 is committed, but not durable here"
    storage.append(write.entries)
    restarted.step(stable)
    restarted.step(applied)
    assert [message.entries for message in restarted.ready().messages] == [[entry(2, 2, b"x")]]


def test_a_commit_alone_needs_no_sync() -> None:
    node = build(stored((1,)))
    node.step(Message(MessageType.HEARTBEAT, to=1, from_=2, term=1, commit=1))
    ready = node.ready()
    assert (ready.hard_state, ready.must_sync) == (HardState(term=1, commit=1), False)


def test_a_sent_message_does_not_change_with_the_log() -> None:
    node = leading()
    node.propose(b"a")
    ready = node.ready()
    sent = [message for message in ready.messages if message.type is MessageType.APP]
    before = msgspec.msgpack.encode((ready.entries, sent))
    node.propose(b"b")
    node.step(
        Message(MessageType.APP, to=1, from_=3, term=9, index=1, log_term=1, entries=[entry(2, 9, b"c")])
    )
    assert msgspec.msgpack.encode((ready.entries, sent)) == before
    assert [len(message.entries) for message in sent] == [1, 1]
    assert sent[0].entries is not sent[1].entries


def test_a_received_message_is_not_changed_by_what_follows() -> None:
    node = build()
    received = Message(MessageType.APP, to=1, from_=2, term=1, entries=[entry(1, 1)])
    node.step(received)
    node.step(Message(MessageType.APP, to=1, from_=2, term=1, index=1, log_term=1, entries=[entry(2, 1)]))
    assert received.entries == [entry(1, 1)]


def test_two_readys_without_advance_are_refused() -> None:
    node = build()
    node.campaign()
    node.ready()
    with pytest.raises(InvariantError, match="twice without advance"):
        node.ready()


def test_advance_is_for_the_synchronous_mode() -> None:
    with pytest.raises(InvariantError, match="asynchronous mode"):
        build(async_storage_writes=True).advance()


@pytest.mark.parametrize(
    "kind",
    [
        MessageType.HUP,
        MessageType.BEAT,
        MessageType.UNREACHABLE,
        MessageType.SNAP_STATUS,
        MessageType.CHECK_QUORUM,
        MessageType.STORAGE_APPEND,
        MessageType.STORAGE_APPEND_RESP,
        MessageType.STORAGE_APPLY,
        MessageType.STORAGE_APPLY_RESP,
    ],
)
def test_a_peer_may_not_send_what_is_for_a_nodes_own_use(kind: MessageType) -> None:
    with pytest.raises(StepLocalMessage, match=f"a {kind.name} .* from node 2"):
        build().step(Message(kind, to=1, from_=2))


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("kind", list(MessageType))
def test_no_message_of_an_older_term_changes_a_nodes_state(role: Role, kind: MessageType) -> None:
    node = build(
        stored((1,), hard_state=HardState(term=4)), check_quorum=True, pre_vote=role is Role.PRE_CANDIDATE
    )
    if role is not Role.FOLLOWER:
        node.campaign()
    if role is Role.LEADER:
        work(node)
        node.step(Message(MessageType.VOTE_RESP, to=1, from_=2, term=5))
    work(node)
    assert node.raft.state is role
    before = everything(node)
    node.raft.step(Message(kind, to=1, from_=2, term=1, index=1, log_term=1, entries=[entry(2, 1)], commit=1))
    assert everything(node) == before


def test_a_status_is_a_copy() -> None:
    node = leading()
    status = node.status()
    node.propose(b"x")
    work(node)
    assert {node_id: (peer.match, peer.state) for node_id, peer in status.progress.items()} == {
        1: (1, ProgressState.REPLICATE),
        2: (1, ProgressState.REPLICATE),
        3: (1, ProgressState.REPLICATE),
    }
    assert [peer.inflights.count for peer in status.progress.values()] == [0, 0, 0]
    assert status.basic.hard_state == HardState(term=1, vote=1, commit=1)
    assert status.basic.soft_state == SoftState(lead=1, role=Role.LEADER)


def test_a_follower_knows_no_progress() -> None:
    assert build().status().progress == {}


def test_application_is_paced_by_bytes_across_readys() -> None:
    storage = stored(tuple([1] * 6))
    node = build(storage, async_storage_writes=True, max_applying_bytes=10)
    node.step(Message(MessageType.HEARTBEAT, to=1, from_=2, term=1, commit=6))
    applied = []
    for _ in range(3):
        (work_message,) = [m for m in node.ready().messages if m.type is MessageType.STORAGE_APPLY]
        applied.append([item.index for item in work_message.entries])
        assert not node.has_ready()
        node.step(work_message.responses[0])
    assert applied == [[1, 2], [3, 4], [5, 6]]


# -- settings


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"id": 0}, "id"),
        ({"id": LOCAL_APPLY_THREAD}, "id"),
        ({"heartbeat_ticks": 0}, "heartbeat_ticks"),
        ({"election_ticks": 2, "heartbeat_ticks": 2}, "election_ticks"),
        ({"max_inflight_messages": 0}, "max_inflight_messages"),
        ({"max_inflight_bytes": 10, "max_message_bytes": 11}, "max_inflight_bytes"),
        ({"read_only": ReadOnlyOption.LEASE_BASED}, "read_only"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(settings: dict[str, object], field: str) -> None:
    config = Config(id=1, storage=stored())
    for name, value in settings.items():
        setattr(config, name, value)
    with pytest.raises(ConfigError) as refusal:
        RawNode(config)
    assert refusal.value.field == field


# -- invariants


def break_order(node: RawNode) -> None:
    node.raft.raft_log.applied = node.raft.raft_log.committed + 1


def break_boundary(node: RawNode) -> None:
    storage = node.raft.raft_log.storage
    storage.append([entry(2, 1), entry(3, 1)])  # type: ignore[attr-defined]
    node.raft.raft_log.unstable.offset = 4
    storage.compact(3)  # type: ignore[attr-defined]


def lower_term(node: RawNode) -> None:
    node.raft.term -= 1


def lower_commit(node: RawNode) -> None:
    node.raft.raft_log.committed = node.raft.raft_log.applied = node.raft.raft_log.applying = 0


def change_vote(node: RawNode) -> None:
    node.raft.vote = 2


def follow_another(node: RawNode) -> None:
    node.raft.lead = 2


def match_too_much(node: RawNode) -> None:
    node.raft.tracker.progress[2].match = 9


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (break_order, "applied 2, applying 1, committed 1, last index 1"),
        (break_boundary, "the log begins at 4, but only 1 is applied"),
        (lower_term, "the term fell from 1 to 0"),
        (lower_commit, "the commit index fell from 1 to 0"),
        (change_vote, "the vote changed from 1 to 2"),
        (follow_another, "leads term 1, but takes 2 for its leader"),
        (match_too_much, "of node 2 match is 9, next 2; the last index is 1"),
    ],
)
def test_a_broken_invariant_is_found_at_the_next_ready(damage: object, said: str) -> None:
    node = leading()
    invariants.check(node.raft, HardState(1, 1, 1))
    damage(node)  # type: ignore[operator]
    with pytest.raises(InvariantError, match=said):
        node.ready()


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (Message(MessageType.VOTE, to=2), "a VOTE needs a term, got 0"),
        (Message(MessageType.APP, to=2, term=4), "a APP is sent in term 1, it came with term 4"),
        (Message(MessageType.HEARTBEAT, to=1), "a HEARTBEAT to itself, 1"),
    ],
)
def test_a_message_that_must_never_leave_stops_the_node(message: Message, said: str) -> None:
    node = leading()
    with pytest.raises(InvariantError, match=said):
        node.raft.send(message)
    assert node.raft.messages == []


def test_a_report_that_nothing_was_applied_changes_nothing() -> None:
    node = leading()
    before = everything(node)
    node.step(Message(MessageType.STORAGE_APPLY_RESP, to=1, from_=LOCAL_APPLY_THREAD))
    assert (everything(node), node.has_ready()) == (before, False)
