"""The membership in a simulated world: nodes are added, promoted, removed, replaced, and refused."""

from __future__ import annotations

import pytest

from raftstate.core.types import ConfState
from raftstate.machine.reader import Reader
from raftstate.node.member_changes import (
    AddMember,
    PromoteMember,
    RemoveMembers,
)
from tests.node.member_world import MS, MemberCluster, MemberNode, halted
from tests.node.world import was_applied


def follower_of(cluster: MemberCluster) -> MemberNode:
    leader = cluster.elect()
    return next(node for node in cluster.nodes.values() if node is not leader and node.running)


@pytest.mark.parametrize("at_leader", [True, False])
def test_a_node_that_was_added_joins_as_a_learner_and_is_promoted_when_it_has_caught_up(
    at_leader: bool,
) -> None:
    cluster = MemberCluster(3, 1)
    asked = cluster.elect() if at_leader else follower_of(cluster)
    changed = cluster.changed(asked.id, AddMember("n4", "h4:7101", "h4:7001"))
    assert changed.ids == [4]
    added = changed.members[-1]
    assert (added.name, added.learner, added.promote, added.incarnation) == ("n4", True, True, 1)
    cluster.run_for(1)
    assert cluster.elect().driver.applied.conf_state == ConfState(voters=(1, 2, 3), learners=(4,))
    node = cluster.join(added)
    cluster.run_until_voters(1, 2, 3, 4)
    assert cluster.elect().driver.applied.member(4) == added.__class__(4, 1, "n4", "h4:7101", "h4:7001")
    outcomes = cluster.put(4, "k", "v")
    cluster.run_until(lambda: outcomes)
    assert was_applied(outcomes)
    cluster.run_until(lambda: Reader(node.tables).get(b"k"))


def test_a_learner_that_is_to_stay_one_stays_one_until_it_is_promoted_by_hand() -> None:
    cluster = MemberCluster(3, 2)
    cluster.elect()
    cluster.add(4, promote=False)
    cluster.run_for(3)
    assert cluster.voters() == (1, 2, 3)
    cluster.changed(follower_of(cluster).id, PromoteMember("n4"))
    cluster.run_until_voters(1, 2, 3, 4)


def test_a_single_node_grows_to_three() -> None:
    cluster = MemberCluster(1, 3)
    cluster.elect()
    cluster.add(2)
    cluster.run_until_voters(1, 2)
    cluster.add(3)
    cluster.run_until_voters(1, 2, 3)
    cluster.crash(cluster.elect().id)
    outcomes = cluster.put(cluster.elect().id, "k")
    cluster.run_until(lambda: outcomes)
    assert was_applied(outcomes)


@pytest.mark.case(18)
@pytest.mark.parametrize("seed", range(5))
def test_a_node_that_was_removed_halts_says_so_and_disturbs_nobody(seed: int) -> None:
    cluster = MemberCluster(4, seed)
    leader = cluster.elect()
    gone = follower_of(cluster)
    cluster.isolate(gone.id)
    cluster.run_for(2)
    leader = cluster.elect()
    changed = cluster.changed(leader.id, RemoveMembers([f"n{gone.id}"]))
    assert changed.ids == [gone.id]
    cluster.run_until_voters(*(id for id in (1, 2, 3, 4) if id != gone.id))
    term = leader.driver.raw.raft.term
    cluster.run_for(2)
    assert gone.running
    cluster.cut.clear()
    cluster.run_for(3)
    assert (cluster.leader(), leader.driver.raw.raft.term) == (leader, term)
    assert "was removed from the cluster" in halted(gone)


@pytest.mark.parametrize("seed", range(5))
def test_several_leave_in_one_joint_change_that_ends_by_itself(seed: int) -> None:
    cluster = MemberCluster(5, seed)
    leader = cluster.elect()
    leaving = [id for id in cluster.ids if id != leader.id][:2]
    changed = cluster.changed(leader.id, RemoveMembers([f"n{id}" for id in leaving]))
    assert [member.id for member in changed.members] == [id for id in (1, 2, 3, 4, 5) if id not in leaving]
    cluster.run_until_voters(*(id for id in (1, 2, 3, 4, 5) if id not in leaving))
    cluster.run_for(1)
    assert all("was removed" in halted(cluster.nodes[id]) for id in leaving)


@pytest.mark.case(20)
@pytest.mark.parametrize("seed", range(20))
def test_a_leader_removes_itself_and_another_leads_soon(seed: int) -> None:
    cluster = MemberCluster(3, seed)
    leader = cluster.elect()
    changed = cluster.changed(leader.id, RemoveMembers([f"n{leader.id}"]))
    began_ns = cluster.time.now_ns
    assert leader.id not in [member.id for member in changed.members]
    cluster.run_until(lambda: (new := cluster.leader()) is not None and new is not leader)
    assert cluster.time.now_ns - began_ns < 200 * MS
    outcomes = cluster.put(cluster.elect().id, "after")
    cluster.run_until(lambda: outcomes)
    assert was_applied(outcomes)
    assert leader.id not in cluster.voters()
    cluster.run_for(1)
    assert "was removed" in halted(leader)
