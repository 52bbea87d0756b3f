"""Who is let in, and what is taken from whom."""

from __future__ import annotations

import pytest

from chaos.sim.members import MemberCluster, MemberNode
from chaos.sim.memory_tables import MemoryTables
from chaos.sim.world import CLUSTER_ID
from raftstate.core.types import ConfChangeSingle, ConfChangeType, ConfChangeV2, Message, MessageType
from raftstate.errors import FailedPreconditionError
from raftstate.machine.machine import Machine
from raftstate.machine.types import Member, MemberChange
from raftstate.node.admission import Admission, Place
from raftstate.node.environment import TransferLeader
from raftstate.node.frames import Channel, Hello, Reason
from raftstate.node.member_changes import RemoveMembers, ReplaceMember, _encode

COUNTED = (
    MessageType.APP_RESP,
    MessageType.HEARTBEAT_RESP,
    MessageType.VOTE_RESP,
    MessageType.PRE_VOTE_RESP,
)
ASKED = (MessageType.VOTE, MessageType.PRE_VOTE, MessageType.TIMEOUT_NOW)
SAID = (MessageType.APP, MessageType.HEARTBEAT, MessageType.READ_INDEX, MessageType.READ_INDEX_RESP)


def taken(node: MemberNode, peer: int, incarnation: int) -> set[MessageType]:
    """The messages that a node takes from a peer under an incarnation."""
    takes = node.membership.admission.takes
    return {kind for kind in MessageType if takes(peer, incarnation, Message(kind))}


def hello(sender: int, incarnation: int = 1, *, to: int = 1, cluster: int = CLUSTER_ID) -> Hello:
    return Hello(cluster, sender, incarnation, to, Channel.BULK)


def replacement(id: int, incarnation: int) -> ConfChangeV2:
    record = Member(id, incarnation, f"n{id}", f"h{id}:1", f"h{id}:2", learner=True, promote=True)
    change = ConfChangeSingle(ConfChangeType.ADD_LEARNER_NODE, id)
    return ConfChangeV2(changes=(change,), context=_encode(MemberChange([record])))


@pytest.mark.case(59)
def test_strangers_are_told_why_they_are_turned_away() -> None:
    admission = MemberCluster(3, 1).nodes[1].membership.admission
    wrong = admission.admit(hello(2, cluster=78))
    assert (wrong.refusal, wrong.reason) == (
        "this node is of cluster 0x4d, the caller of 0x4e",
        Reason.WRONG_CLUSTER,
    )
    other = admission.admit(hello(2, to=3))
    assert (other.refusal, other.reason) == ("this is node 1, the caller means node 3", Reason.NOT_ME)
    assert admission.admit(hello(1)).refusal == "node 1 is this node itself"
    welcome = admission.admit(hello(2))
    assert (welcome.refusal, welcome.incarnation) == ("", 1)


@pytest.mark.case(19)
def test_of_an_incarnation_that_is_replaced_nothing_counts_as_soon_as_that_is_committed() -> None:
    """The entry may be long in being applied; the core goes by the new configuration at once."""
    node = MemberCluster(3, 2).nodes[1]
    assert taken(node, 2, 1) == set(MessageType)
    assert node.membership.admission.went_over(replacement(2, 2)) == [2]
    assert taken(node, 2, 1) == set()
    assert not node.membership.admission.takes(2, 1, TransferLeader(1))
    assert taken(node, 2, 2) == set(MessageType)
    refused = node.membership.admission.admit(hello(2, 1))
    assert (refused.reason, refused.incarnation) == (Reason.REPLACED, 2)
    assert node.membership.admission.went_over(replacement(2, 2)) == []


@pytest.mark.case(19)
@pytest.mark.parametrize(("peer", "incarnation"), [(2, 2), (9, 1)])
def test_a_node_that_is_behind_follows_those_it_has_not_heard_of_and_counts_nothing_of_theirs(
    peer: int, incarnation: int
) -> None:
    """All that it knows may have left meanwhile; but a vote of a new incarnation is not its predecessor's."""
    node = MemberCluster(3, 3).nodes[1]
    assert node.membership.admission.admit(hello(peer, incarnation)).refusal == ""
    assert taken(node, peer, incarnation) == set(MessageType) - set(COUNTED)


@pytest.mark.case(19)
def test_an_empty_node_lets_everybody_of_its_cluster_in_and_does_not_vote() -> None:
    cluster = MemberCluster(3, 4)
    cluster.elect()
    node = cluster.make_node(4)
    node.checkpoint = MemoryTables()
    Machine.blank(node.checkpoint, CLUSTER_ID)
    cluster.nodes[4] = node
    node.start()
    admission = node.membership.admission
    assert [admission.admit(hello(peer, to=4)).refusal for peer in (1, 2, 3, 9)] == [""] * 4
    assert admission.admit(hello(1, to=4, cluster=78)).reason == Reason.WRONG_CLUSTER
    assert taken(node, 1, 1) == set(MessageType) - set(COUNTED) - set(ASKED)
    assert set(SAID) <= taken(node, 1, 1)
    assert not node.driver.fitness.may_lead
    assert "n4 is new to the cluster" in node.driver.fitness.alarms[0]


@pytest.mark.case(18)
def test_a_node_that_was_removed_is_turned_away_and_does_not_start_again() -> None:
    cluster = MemberCluster(3, 5)
    leader = cluster.elect()
    gone = next(node for node in cluster.nodes.values() if node is not leader)
    cluster.changed(leader.id, RemoveMembers([f"n{gone.id}"]))
    cluster.run_for(1)
    refused = leader.membership.admission.admit(hello(gone.id, to=leader.id))
    assert (refused.reason, refused.refusal) == (
        Reason.REMOVED,
        f"node {gone.id} was removed from the cluster",
    )
    assert taken(leader, gone.id, 1) == set()
    place = Place(CLUSTER_ID, gone.id, 1, f"n{gone.id}", "h:1", "h:2")
    with pytest.raises(FailedPreconditionError, match="was removed from the cluster"):
        Admission(leader.driver, place, lambda reason: None)  # as a start with that state would


@pytest.mark.case(19)
def test_a_directory_whose_state_says_that_it_was_replaced_does_not_start() -> None:
    cluster = MemberCluster(3, 6)
    leader = cluster.elect()
    other = next(node for node in cluster.nodes.values() if node is not leader)
    cluster.changed(leader.id, ReplaceMember(f"n{other.id}"))
    cluster.run_for(0.02)
    place = Place(CLUSTER_ID, other.id, 1, f"n{other.id}", "h:1", "h:2")
    with pytest.raises(FailedPreconditionError, match=r"was replaced: this directory is of incarnation 1"):
        Admission(leader.driver, place, lambda reason: None)
