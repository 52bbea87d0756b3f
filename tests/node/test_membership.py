"""The membership in a simulated world: nodes are added, promoted, removed, replaced, and refused."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from chaos.sim.members import MS, MemberCluster, MemberNode, halted
from chaos.sim.world import was_applied
from raftstate.core.types import ConfState, Message, MessageType
from raftstate.machine.reader import Reader
from raftstate.machine.types import Code, Member
from raftstate.node import member_changes
from raftstate.node.environment import Outcome, Rejected
from raftstate.node.member_changes import (
    AddMember,
    MemberRequest,
    MembersChanged,
    PromoteMember,
    RemoveMembers,
    ReplaceMember,
)


def write(cluster: MemberCluster, prefix: str, count: int) -> None:
    """Have so many writes acknowledged."""
    outcomes = [cluster.put(cluster.elect().id, f"{prefix}/{n}", "v" * 50) for n in range(count)]
    cluster.run_until(lambda: all(outcomes), seconds=30)
    assert all(map(was_applied, outcomes))


def agree(cluster: MemberCluster) -> dict[str, int]:
    """Have all members come to the same state; return how many keys each prefix has there."""
    members = [member.id for member in cluster.elect().driver.applied.members]
    nodes = [cluster.nodes[id] for id in members]
    cluster.run_until(lambda: len({node.driver.applied_index for node in nodes}) == 1, seconds=60)
    assert len({node.machine.digest for node in nodes}) == 1
    page = Reader(nodes[0].tables).range(
        b"a", None, limit=0, keys_only=True, count_only=False, bytes_max=1 << 30
    )
    found: dict[str, int] = {}
    for pair in page.kvs:
        prefix = pair.key.decode().partition("/")[0]
        found[prefix] = found.get(prefix, 0) + 1
    return found


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


@pytest.mark.parametrize("seed", range(5))
def test_a_leader_may_hear_what_its_log_has_stored_after_it_went_over_to_its_own_removal(seed: int) -> None:
    cluster = MemberCluster(3, seed)
    leader = cluster.elect()
    cluster.run_for(0.2)
    leader.disk_delay_ms = 10
    cluster.change(leader.id, RemoveMembers([f"n{leader.id}"]))
    for number in range(60):
        cluster.put(leader.id, f"k{number}")
        cluster.run_for(0.001)
    cluster.run_for(1)
    assert leader.id not in leader.driver.raw.raft.tracker.progress
    assert [str(failure) for failure in leader.failures if "was removed" not in str(failure)] == []


def test_a_node_that_leaves_sends_those_who_ask_it_elsewhere_at_once() -> None:
    cluster = MemberCluster(3, 4)
    leader = cluster.elect()
    cluster.changed(leader.id, RemoveMembers([f"n{leader.id}"]))
    outcomes = cluster.put(leader.id, "k")
    assert isinstance(outcomes[0], Rejected)
    assert outcomes[0].applied_never
    assert "was removed" in outcomes[0].fault.message


@pytest.mark.case(19)
@pytest.mark.parametrize("seed", range(10))
def test_a_wiped_node_comes_back_as_a_new_incarnation_and_votes_when_it_has_caught_up(seed: int) -> None:
    cluster = MemberCluster(3, seed)
    leader = cluster.elect()
    lost = follower_of(cluster)
    write(cluster, "before", 30)
    cluster.crash(lost.id)
    write(cluster, "meanwhile", 30)
    changed = cluster.changed(cluster.elect().id, ReplaceMember(f"n{lost.id}"))
    record = next(member for member in changed.members if member.id == lost.id)
    assert (record.incarnation, record.learner, record.promote) == (2, True, True)
    state = leader.driver.applied.conf_state
    assert (state.learners, lost.id in state.voters) == ((lost.id,), False)
    assert leader.driver.raw.raft.tracker.progress[lost.id].match == 0
    node = cluster.join(record)
    cluster.run_until_voters(1, 2, 3)
    assert (record.incarnation, len(node.installed)) == (2, 1)
    write(cluster, "after", 5)
    assert agree(cluster) == {"before": 30, "meanwhile": 30, "after": 5}


@pytest.mark.case(19)
def test_the_old_incarnation_is_not_believed_and_halts() -> None:
    cluster = MemberCluster(3, 7)
    leader = cluster.elect()
    old = follower_of(cluster)
    other = next(id for id in (1, 2, 3) if id not in (old.id, leader.id))
    cluster.isolate(old.id)
    cluster.run_for(2)
    cluster.changed(cluster.elect().id, ReplaceMember(f"n{old.id}"))
    # What it says from now on counts for nothing, even where it alone would make a majority.
    cluster.cut.clear()
    cluster.isolate(other)
    outcomes = cluster.put(cluster.elect().id, "k", timeout_s=60)
    cluster.run_for(2)
    assert outcomes == []
    assert "was replaced" in halted(old)
    assert "incarnation 2" in halted(old)


def test_a_replacement_that_was_asked_for_twice_is_made_once_if_the_incarnation_is_named() -> None:
    cluster = MemberCluster(3, 8)
    lost = follower_of(cluster)
    cluster.crash(lost.id)
    leader = cluster.elect()
    for already in (False, True):
        changed = cluster.changed(leader.id, ReplaceMember(f"n{lost.id}", incarnation=1))
        record = next(member for member in changed.members if member.id == lost.id)
        assert (changed.already, record.incarnation) == (already, 2)


@pytest.mark.case(21)
def test_a_learner_far_behind_is_not_promoted_by_hand_or_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member_changes, "PROMOTE_LAG_MAX", 5)
    cluster = MemberCluster(3, 9)
    leader = cluster.elect()
    cluster.drop_appends_to = {4}  # it is sent the snapshot, and then no entry
    changed = cluster.changed(leader.id, AddMember("n4", "h4:7101", "h4:7001"))
    refused = cluster.refusal(leader.id, PromoteMember("n4"))
    assert refused.fault.code is Code.FAILED_PRECONDITION
    assert "n4 does not answer the leader" in refused.fault.message
    node = cluster.join(changed.members[-1])
    for n in range(100):
        write(cluster, f"load/{n}", 1)
        cluster.run_for(0.02)
    assert node.membership.admission.joined
    refused = cluster.refusal(leader.id, PromoteMember("n4"))
    assert "entries behind" in refused.fault.message
    assert "the limit is 5; wait until it has caught up" in refused.fault.message
    assert cluster.voters() == (1, 2, 3)
    cluster.drop_appends_to = set()
    cluster.run_until_voters(1, 2, 3, 4)


@pytest.mark.case(22)
def test_a_removal_that_would_lose_the_quorum_is_refused_with_the_reason() -> None:
    cluster = MemberCluster(3, 10)
    leader = cluster.elect()
    dead, alive = (id for id in (1, 2, 3) if id != leader.id)
    cluster.crash(dead)
    cluster.run_for(2)
    refused = cluster.refusal(leader.id, RemoveMembers([f"n{alive}"]))
    assert refused.fault.code is Code.FAILED_PRECONDITION
    assert f"without n{alive} the cluster would lose its quorum" in refused.fault.message
    assert f"2 voters, of which 2 must answer, and 1 do (not n{dead})" in refused.fault.message
    cluster.changed(leader.id, RemoveMembers([f"n{dead}"]))
    assert len(cluster.voters()) == 2
    refused = cluster.refusal(leader.id, RemoveMembers([f"n{leader.id}", f"n{alive}"]))
    assert "no voter would be left" in refused.fault.message


def test_a_replacement_without_a_quorum_of_the_others_is_refused() -> None:
    cluster = MemberCluster(2, 11)
    leader = cluster.elect()
    other = 3 - leader.id
    refused = cluster.refusal(leader.id, ReplaceMember(f"n{other}"))
    assert f"without n{other} 1 of 2 voters answer, and 2 must" in refused.fault.message
    assert "leads" in cluster.refusal(leader.id, ReplaceMember(f"n{leader.id}")).fault.message


@pytest.mark.case(16)
def test_while_a_change_is_under_way_another_waits_and_is_refused_if_it_takes_too_long() -> None:
    cluster = MemberCluster(3, 12)
    leader = cluster.elect()
    add = [AddMember(f"n{number}", f"h{number}:1", f"h{number}:2") for number in (4, 5)]
    first, second = (cluster.change(leader.id, request) for request in add)
    cluster.run_until(lambda: first and second)
    assert all(isinstance(outcome[0], MembersChanged) for outcome in (first, second))
    assert [member.name for member in leader.driver.applied.members] == ["n1", "n2", "n3", "n4", "n5"]
    # Without a quorum the first one can't end.
    for other in (1, 2, 3):
        if other != leader.id:
            cluster.nodes[other].pause()
    began_ns = cluster.time.now_ns
    stuck = cluster.change(leader.id, RemoveMembers(["n4"]), timeout_s=1)
    before = leader.driver.raw.raft.raft_log.last_index()
    refused = cluster.change(leader.id, RemoveMembers(["n5"]), timeout_s=0.2)
    cluster.run_until(lambda: refused)
    assert isinstance(refused[0], Rejected)
    assert refused[0].applied_never
    assert "another membership change is under way" in refused[0].fault.message
    assert leader.driver.raw.raft.raft_log.last_index() == before
    cluster.run_until(lambda: stuck)
    assert isinstance(stuck[0], Rejected)
    assert (stuck[0].applied_never, stuck[0].fault.code) == (False, Code.UNKNOWN_OUTCOME)
    assert cluster.time.now_ns - began_ns < 1_100 * MS


@pytest.mark.case(15)
def test_no_change_begins_before_the_leader_has_committed_an_entry_of_its_term() -> None:
    cluster = MemberCluster(3, 13)
    old = cluster.elect()
    new = follower_of(cluster)
    for node in cluster.nodes.values():
        node.disk_delay_ms = 30
    cluster.crash(old.id)
    cluster.run_until(lambda: new.driver.raw.raft.lead != old.id and cluster.leader())
    leader = cluster.elect()
    raft = leader.driver.raw.raft
    assert raft.raft_log.term_or_zero(raft.raft_log.committed) < raft.term
    before = raft.raft_log.last_index()
    outcomes = cluster.change(leader.id, AddMember("n4", "h4:1", "h4:2"))
    assert raft.raft_log.last_index() == before
    cluster.run_until(lambda: outcomes)
    assert isinstance(outcomes[0], MembersChanged)


@pytest.mark.case(15)
def test_a_leader_that_can_t_commit_an_entry_of_its_term_says_so() -> None:
    cluster = MemberCluster(3, 13)
    leader = cluster.elect()
    cluster.isolate(leader.id)
    raft = leader.driver.raw.raft
    assert raft.raft_log.term_or_zero(raft.raft_log.committed) < raft.term
    outcomes = cluster.change(leader.id, AddMember("n4", "h4:1", "h4:2"), timeout_s=0.1)
    cluster.run_until(lambda: outcomes)
    assert isinstance(outcomes[0], Rejected)
    assert (outcomes[0].applied_never, outcomes[0].fault.code) == (True, Code.NO_LEADER)
    assert "has not committed an entry of it yet" in outcomes[0].fault.message


def test_without_a_leader_a_change_is_refused_for_certain() -> None:
    cluster = MemberCluster(3, 14)
    leader = cluster.elect()
    cluster.isolate(leader.id)
    cluster.run_for(2)
    refused = cluster.refusal(leader.id, RemoveMembers(["n1"]))
    assert refused.fault.code is Code.NO_LEADER


def test_a_change_forwarded_to_a_leader_whose_link_breaks_is_unknown_and_not_sent_again() -> None:
    cluster = MemberCluster(3, 15)
    leader = cluster.elect()
    cluster.run_for(0.1)
    asked = follower_of(cluster)
    cluster.cut.add((leader.id, asked.id))
    outcomes = cluster.change(asked.id, AddMember("n4", "h4:1", "h4:2"))
    cluster.run_for(0.005)
    asked.driver.link_lost(leader.id)
    assert isinstance(outcomes[0], Rejected)
    assert (outcomes[0].applied_never, outcomes[0].fault.code) == (False, Code.UNKNOWN_OUTCOME)
    cluster.cut.clear()
    cluster.run_for(2)
    assert [member.name for member in cluster.elect().driver.applied.members].count("n4") == 1


def test_a_change_that_another_leader_overwrote_is_refused_for_certain() -> None:
    cluster = MemberCluster(3, 16)
    old = cluster.elect()
    cluster.run_for(0.1)
    cluster.isolate(old.id)
    appended = cluster.change(old.id, AddMember("n4", "h4:1", "h4:2"), timeout_s=60)
    cluster.run_until(lambda: (new := cluster.leader()) is not None and new is not old)
    write(cluster, "k", 3)
    cluster.cut.clear()
    cluster.run_until(lambda: appended)
    assert isinstance(appended[0], Rejected)
    assert appended[0].applied_never
    assert cluster.voters() == (1, 2, 3)
    assert old.names == ["n1", "n2", "n3"]


def test_members_change_only_once_all_nodes_run_software_that_knows_how() -> None:
    cluster = MemberCluster(3, 17, machine_version=2)
    for node in cluster.nodes.values():
        node.knows = 2
    leader = cluster.elect()
    for node in cluster.nodes.values():
        node.crash()
        node.start()
    leader = cluster.elect()
    refused = cluster.refusal(leader.id, AddMember("n4", "h4:1", "h4:2"))
    assert refused.fault.code is Code.UNIMPLEMENTED
    assert "machine version 2, and its members change from version 3 on" in refused.fault.message


@pytest.mark.parametrize("at_leader", [True, False])
def test_a_node_that_starts_with_other_addresses_has_them_recorded_and_is_dialled_there(
    at_leader: bool,
) -> None:
    cluster = MemberCluster(3, 18)
    node = cluster.elect() if at_leader else follower_of(cluster)
    cluster.crash(node.id)
    node.addresses = ("other:9", "other:8")
    node.start()
    cluster.run_until(
        lambda: all(
            (record := each.driver.applied.member(node.id)) is not None
            and (record.peer_address, record.client_address) == ("other:9", "other:8")
            for each in cluster.nodes.values()
        )
    )
    assert all(each.changes_seen for each in cluster.nodes.values())
    index = cluster.elect().driver.raw.raft.raft_log.last_index()
    cluster.run_for(3)
    assert cluster.elect().driver.raw.raft.raft_log.last_index() == index  # it is proposed once


def test_who_joins_is_told_where_the_leader_is_by_now() -> None:
    # A store that was embedded has no address in its record. Who was told none could not answer its leader.
    cluster = MemberCluster(1, 18)
    node = cluster.elect()
    cluster.crash(node.id)
    node.addresses = ("other:9", "other:8")
    node.start()
    changed = cluster.changed(cluster.elect().id, AddMember("n2", "h2:1", "h2:2"))
    record = next(member for member in changed.members if member.id == node.id)
    assert (record.peer_address, record.client_address) == ("other:9", "other:8")


def test_a_node_within_a_program_changes_no_members() -> None:
    cluster = MemberCluster(1, 19)
    node = cluster.elect()
    node.membership._place = node.membership._place._replace(alone=True)
    refused = cluster.refusal(node.id, AddMember("n2", "h2:1", "h2:2"))
    assert "raftstate serve --data DIR" in refused.fault.message


@pytest.mark.case(23)
def test_a_member_that_was_cut_off_while_the_members_changed_goes_over_with_the_snapshot() -> None:
    cluster = MemberCluster(3, 20)
    behind = follower_of(cluster)
    cluster.isolate(behind.id)
    cluster.run_for(2)
    cluster.add(4)
    cluster.run_until(lambda: cluster.voters() == (1, 2, 3, 4))
    for n in range(30):
        write(cluster, f"cut/{n}", 1)
    cluster.run_for(0.5)
    leader = cluster.elect()
    assert leader.storage.first_index() > behind.storage.last_index() + 1
    cluster.cut.clear()
    expected = ConfState(voters=(1, 2, 3, 4))
    cluster.run_until(lambda: behind.driver.applied.conf_state == expected)
    assert len(behind.installed) == 1
    assert behind.driver.raw.raft.tracker.conf_state() == expected


@pytest.mark.case(23)
@pytest.mark.parametrize("seed", range(6))
def test_a_cluster_grows_to_five_all_its_first_nodes_are_replaced_and_it_shrinks_to_three(seed: int) -> None:
    """Under load, with crashes and cuts at random: nothing acknowledged is lost, one configuration at the
    end."""
    cluster = MemberCluster(3, seed)
    cluster.elect()
    trouble = Trouble(cluster, seed)
    for number in (4, 5):
        trouble.add(number)
    for lost in (1, 2, 3):
        trouble.replace(lost)
    trouble.remove("n1", "n2")
    trouble.calm()
    assert cluster.voters() == (3, 4, 5)
    write(cluster, "after", 3)
    found = agree(cluster)
    assert found["after"] == 3
    state = Reader(cluster.elect().tables)
    assert [key for key in trouble.acknowledged() if state.get(key.encode()) is None] == []
    assert len(trouble.acknowledged()) > 100
    configurations = {cluster.nodes[id].driver.applied.conf_state for id in (3, 4, 5)} | {
        cluster.nodes[id].driver.raw.raft.tracker.conf_state() for id in (3, 4, 5)
    }
    assert configurations == {ConfState(voters=(3, 4, 5))}
    members = {cluster.nodes[id].driver.applied.members for id in (3, 4, 5)}
    assert len(members) == 1
    (last,) = members
    assert [(member.name, member.incarnation) for member in last] == [("n3", 2), ("n4", 1), ("n5", 1)]


class Trouble:
    """Load, crashes and cuts on a cluster whose members change."""

    def __init__(self, cluster: MemberCluster, seed: int) -> None:
        self.cluster = cluster
        self.random = random.Random(f"trouble/{seed}")
        self.writes: dict[str, list[Outcome]] = {}
        self.over = False
        self.lost: list[MemberNode] = []
        self._load()
        self._disturb()

    def acknowledged(self) -> list[str]:
        return [key for key, outcomes in self.writes.items() if was_applied(outcomes)]

    def calm(self) -> None:
        self.over = True
        self.cluster.cut.clear()
        self.cluster.run_for(3)

    def add(self, number: int) -> None:
        request = AddMember(f"n{number}", f"h{number}:7101", f"h{number}:7001")
        self._until_done(request, lambda: self._member(f"n{number}") is not None)
        self._join(f"n{number}")

    def replace(self, id: int) -> None:
        record = self._member(f"n{id}")
        assert record is not None
        incarnation = record.incarnation
        self.lost.append(self.cluster.nodes[id])
        self.cluster.crash(id)
        request = ReplaceMember(f"n{id}", incarnation=incarnation)
        self._until_done(
            request,
            lambda: (now := self._member(f"n{id}")) is not None and now.incarnation > incarnation,
        )
        self._join(f"n{id}")

    def remove(self, *names: str) -> None:
        self._until_done(RemoveMembers(list(names)), lambda: self._member(names[0]) is None)

    def _until_done(self, request: MemberRequest, done: Callable[[], bool]) -> None:
        """Ask until it is so, as an operator does: after an unknown outcome by looking first."""
        while not done():
            living = [node for node in self.cluster.nodes.values() if node.running]
            if not living:
                self.cluster.run_for(0.1)
                continue
            node = self.random.choice(living)
            outcomes, epoch = self.cluster.change(node.id, request), node.epoch
            self.cluster.run_until(
                lambda node=node, outcomes=outcomes, epoch=epoch: outcomes or node.epoch != epoch, seconds=20
            )
            self.cluster.run_for(0.3)

    def _join(self, name: str) -> None:
        record = self._member(name)
        assert record is not None
        self.cluster.join(record)
        self.cluster.run_until(
            lambda: (now := self._member(name)) is not None and not now.learner, seconds=60
        )

    def _member(self, name: str) -> Member | None:
        """A member as the node that is furthest knows it."""
        living = [node for node in self.cluster.nodes.values() if node.running]
        furthest = max(living, key=lambda node: node.driver.applied_index)
        return next((member for member in furthest.driver.applied.members if member.name == name), None)

    def _load(self) -> None:
        living = [node for node in self.cluster.nodes.values() if node.running]
        if living and not self.over:
            key = f"k/{len(self.writes):05d}"
            self.writes[key] = self.cluster.put(self.random.choice(living).id, key, "v" * 20)
        if not self.over:
            self.cluster.time.call_later(self.random.uniform(0.005, 0.05), self._load)

    def _disturb(self) -> None:
        """Crash one node for a moment, or cut it off, when no other is down."""
        if self.over:
            return
        nodes = [node for node in self.cluster.nodes.values() if not node.failures]
        members = {member.id for node in nodes if node.running for member in node.driver.applied.members}
        down = [id for id in members if not self.cluster.nodes.get(id) or not self.cluster.nodes[id].running]
        living = [node for node in nodes if node.running and node.id in members]
        if not down and not self.cluster.cut and living:
            victim = self.random.choice(living)
            wait_s = self.random.uniform(0.1, 1.5)
            if self.random.random() < 0.5:
                self.cluster.crash(victim.id)
                self.cluster.time.call_later(wait_s, lambda: self._revive(victim))
            else:
                self.cluster.isolate(victim.id)
                self.cluster.time.call_later(wait_s, self.cluster.cut.clear)
        self.cluster.time.call_later(self.random.uniform(0.5, 2), self._disturb)

    def _revive(self, victim: MemberNode) -> None:
        # Unless it was replaced meanwhile, by another process.
        if not victim.alive and self.cluster.nodes[victim.id] is victim and victim not in self.lost:
            victim.start()


def test_a_leader_hands_over_while_a_removal_waits_to_be_applied() -> None:
    cluster = MemberCluster(3, 1)
    leader = cluster.elect()
    cluster.run_for(1)
    leaving = next(id for id in cluster.ids if id != leader.id)
    leader.applier.is_beside = True  # no room on its disk, say
    cluster.change(leader.id, RemoveMembers([f"n{leaving}"]))
    cluster.run_until(lambda: leaving not in leader.driver.raw.raft.tracker.progress)
    assert leaving in leader.driver.applied.conf_state.voters
    leader.driver.fitness.limit("disk", "full", may_lead=False)
    other = next(id for id in cluster.ids if id not in (leader.id, leaving))
    cluster.run_until(lambda: leader.driver.raw.raft.lead == other)


@pytest.mark.case(19)
def test_an_empty_node_outlives_a_leader_that_goes_by_what_its_predecessor_held() -> None:
    cluster = MemberCluster(3, 1)
    leader = cluster.elect()
    done = cluster.put(leader.id, "key")
    cluster.run_until(lambda: done)
    lost = next(id for id in cluster.ids if id != leader.id)
    cluster.crash(lost)
    cluster.run_for(1)
    changed = cluster.changed(leader.id, ReplaceMember(f"n{lost}"))
    fresh = cluster.join(next(member for member in changed.members if member.id == lost))
    raft = leader.driver.raw.raft
    fresh.receive(
        leader.id, Message(MessageType.HEARTBEAT, to=lost, from_=leader.id, term=raft.term, commit=1)
    )
    assert fresh.failures == []
    cluster.run_until_voters(1, 2, 3)
