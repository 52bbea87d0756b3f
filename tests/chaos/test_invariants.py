"""Each invariant lets good histories pass, and says what is wrong with the smallest bad one."""

from __future__ import annotations

import pytest

from chaos.invariants import Violation
from chaos.invariants.commit_monotonic import CommitMonotonic
from chaos.invariants.commit_quorum import CommitQuorum
from chaos.invariants.configuration_in_use import ConfigurationInUse
from chaos.invariants.configuration_safety import ConfigurationSafety
from chaos.invariants.durable_promises import DurablePromises
from chaos.invariants.election_safety import ElectionSafety
from chaos.invariants.exactly_once import check_exactly_once
from chaos.invariants.leader_completeness import LeaderCompleteness
from chaos.invariants.leader_stickiness import LeaderStickiness
from chaos.invariants.leadership import HUNG_NS_MAX, TRANSFER_NS_MAX, UNHEARD_NS_MAX, Leadership
from chaos.invariants.leases import Leases
from chaos.invariants.log_matching import LogMatching
from chaos.invariants.session_reads import SessionReads
from chaos.invariants.state_machine_safety import StateMachineSafety

MS = 1_000_000


def test_one_leader_a_term() -> None:
    elections = ElectionSafety()
    elections.leads(1, 1)
    elections.leads(2, 2)
    elections.leads(1, 1)
    with pytest.raises(Violation, match="nodes 2 and 3 both lead term 2"):
        elections.leads(3, 2)


def test_the_same_index_and_term_stand_for_the_same_entry_behind_the_same_one() -> None:
    logs = LogMatching()
    logs.stored(1, 1, 1, 0, b"a")
    logs.stored(1, 2, 1, 1, b"b")
    logs.stored(2, 2, 2, 1, b"c")  # of another term: it may differ
    logs.stored(3, 2, 1, None, b"b")  # behind what is compacted: nothing is known
    with pytest.raises(Violation, match="node 2 stored another entry as 2 of term 1"):
        logs.stored(2, 2, 1, 1, b"x")
    with pytest.raises(Violation, match="behind one of term 3; elsewhere it stands behind one of term 1"):
        logs.stored(3, 2, 1, 3, b"b")


def test_what_is_not_known_of_the_entry_before_is_learned_later() -> None:
    logs = LogMatching()
    logs.stored(1, 5, 2, None, b"a")
    logs.stored(2, 5, 2, 1, b"a")
    with pytest.raises(Violation, match="log_matching"):
        logs.stored(3, 5, 2, 2, b"a")


def test_a_leader_holds_what_was_committed() -> None:
    leaders = LeaderCompleteness()
    leaders.committed(5, 2)
    leaders.leads(1, 3, 5, lambda _: 2)
    leaders.leads(1, 3, 9, lambda _: None)  # compacted
    leaders.leads(2, 1, 0, lambda _: None)  # of an earlier term: it has not heard of it yet
    with pytest.raises(Violation, match="with a log up to 4; 5 was committed"):
        leaders.leads(2, 3, 4, lambda _: 2)
    with pytest.raises(Violation, match="holds entry 5 of term 1; that of term 2 was committed"):
        leaders.leads(2, 3, 6, lambda _: 1)


def test_nodes_apply_the_same_and_come_to_the_same() -> None:
    states = StateMachineSafety()
    states.applied(1, 1, 1, 0xA)
    states.applied(2, 1, 1, 0xA)
    with pytest.raises(Violation, match="applied entry 1 of term 2; another node one of term 1"):
        states.applied(3, 1, 2, 0xA)
    with pytest.raises(Violation, match="digest 000000000000000b after entry 1"):
        states.applied(3, 1, 1, 0xB)


def test_a_commit_index_goes_back_at_a_start_only() -> None:
    commits = CommitMonotonic()
    commits.saw(1, 1, 7)
    commits.saw(1, 1, 7)
    commits.saw(1, 2, 3)
    with pytest.raises(Violation, match="went back from commit index 3 to 2"):
        commits.saw(1, 2, 2)


def test_configurations_in_turn_have_common_voters() -> None:
    configurations = ConfigurationSafety(((1, 2, 3), ()))
    configurations.applied(1, 5, ((1, 2, 3, 4), ()))
    configurations.applied(2, 5, ((1, 2, 3, 4), ()))
    configurations.applied(1, 9, ((2, 5, 6), (1, 2, 3, 4)))
    configurations.applied(1, 10, ((2, 5, 6), ()))
    with pytest.raises(Violation, match="another node by"):
        configurations.applied(3, 5, ((1, 2, 3), ()))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (((1, 2, 3), ()), ((1, 4, 5), ())),
        (((1, 2, 3, 4), ()), ((3, 5), ())),
        (((1, 2, 3), (4, 5, 6)), ((7, 8, 9), ())),
    ],
)
def test_configurations_that_can_decide_apart_are_found_whichever_is_told_first(first, second) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(Violation, match="without a common voter"):
        ConfigurationSafety(first).applied(1, 5, second)
    later = ConfigurationSafety(first)
    later._at[9] = second
    with pytest.raises(Violation, match="without a common voter"):
        later.applied(1, 5, first)


def test_writes_are_done_once_or_never() -> None:
    check_exactly_once([b"a", b"b", b"u"], done={b"a", b"b"}, never={b"c"})
    with pytest.raises(Violation, match="the write of b'a' was done 2 times"):
        check_exactly_once([b"a", b"a"], done={b"a"}, never=set())
    with pytest.raises(Violation, match="1 acknowledged writes are lost, b'b' among them"):
        check_exactly_once([b"a"], done={b"a", b"b"}, never=set())
    with pytest.raises(Violation, match="1 writes that were refused were done, b'c' among them"):
        check_exactly_once([b"c"], done=set(), never={b"c"})


def test_a_client_reads_nothing_older_than_it_has_seen_of_a_key() -> None:
    reads = SessionReads()
    reads.wrote(1, b"k", 7)
    reads.read(1, b"k", reads.floor(1, b"k"), 7)
    reads.read(2, b"k", reads.floor(2, b"k"), 3)
    reads.read(1, b"other", reads.floor(1, b"other"), 0)
    with pytest.raises(Violation, match="client 1 read b'k' as of revision 6; it had seen 7 before"):
        reads.read(1, b"k", reads.floor(1, b"k"), 6)


def test_a_read_that_began_before_something_newer_was_seen_may_lie_before_it() -> None:
    reads = SessionReads()
    floor = reads.floor(1, b"k")
    reads.wrote(1, b"k", 9)
    reads.read(1, b"k", floor, 5)
    assert reads.floor(1, b"k") == 9


def test_a_lease_lasts_from_when_its_renewal_was_sent() -> None:
    leases = Leases(drift=0.0)
    leases.renewed(1, 1_000 * MS, 2_000)
    with pytest.raises(Violation, match=r"lease 1 ended 1\.0 ms too early"):
        leases.ended(1, 2_999 * MS)
    leases.ended(1, 3_000 * MS)
    leases.renewed(2, 0, 1_000)
    leases.given_up(2)
    leases.ended(2, 1)
    drifting = Leases(drift=0.04)
    drifting.renewed(1, 0, 1_040)
    drifting.ended(1, 1_000 * MS)


def test_a_vote_is_on_disk_before_it_is_given() -> None:
    promises = DurablePromises()
    promises.voted(1, 2, 5, 5, 2)
    promises.voted(1, 2, 5, 6, 0)  # a later term is on disk: no other vote of term 5 can follow
    for term, vote in ((4, 2), (5, 0), (5, 3)):
        with pytest.raises(Violation, match=rf"node 1 votes for 2 in term 5; .* term {term}, vote {vote}"):
            promises.voted(1, 2, 5, term, vote)


def test_what_is_applied_is_in_the_log_on_disk() -> None:
    promises = DurablePromises()
    promises.applied(1, 5, 5)
    with pytest.raises(Violation, match="node 1 has applied entry 6; its log holds entries up to 5 on disk"):
        promises.applied(1, 6, 5)


def acknowledge(**changed: int | None) -> None:
    facts: dict[str, int | None] = {"durable_term": 3, "durable_index": 9, "held_term": 2, "sent_term": 2}
    DurablePromises().acknowledged(1, 8, 3, **(facts | changed))  # type: ignore[arg-type]


def test_what_is_acknowledged_is_on_disk_and_what_the_leader_sent() -> None:
    acknowledge()
    acknowledge(held_term=None)
    acknowledge(sent_term=None)
    for changed in ({"durable_index": 7}, {"durable_term": 2}):
        with pytest.raises(Violation, match="node 1 acknowledges entry 8 in term 3; its disk holds"):
            acknowledge(**changed)
    with pytest.raises(Violation, match="which it holds of term 1; its leader's is of term 2"):
        acknowledge(held_term=1)


def test_a_leader_commits_what_a_quorum_of_each_configuration_has_on_disk_in_its_own_term() -> None:
    disks = {(1, 7): 3, (2, 7): 3, (3, 7): 2, (4, 7): 3, (5, 7): 1}

    def holds(node: int, index: int, term: int) -> bool:
        return disks.get((node, index)) == term

    CommitQuorum().led(1, 3, [(6, 2), (7, 3)], ((1, 2, 3), ()), holds)
    CommitQuorum().led(1, 3, [(7, 3)], ((1, 2, 3), (2, 4, 5)), holds)
    with pytest.raises(Violation, match=r"on disk at \[1\], no quorum of \[1, 3, 5\]"):
        CommitQuorum().led(1, 3, [(7, 3)], ((1, 3, 5), ()), holds)
    with pytest.raises(Violation, match=r"on disk at \[1\], no quorum of \[1, 3, 5\]"):
        CommitQuorum().led(1, 3, [(7, 3)], ((1, 2, 3), (1, 3, 5)), holds)
    with pytest.raises(Violation, match="commits entry 7 of term 2 as leader of term 3"):
        CommitQuorum().led(1, 3, [(7, 2)], ((1, 2, 3), ()), lambda *_: True)


def test_followers_commit_what_leaders_have_and_nobody_removes_it() -> None:
    commits = CommitQuorum()
    commits.led(1, 3, [(6, 2), (7, 3)], ((1,), ()), lambda *_: True)
    commits.followed(2, 6, 2)
    commits.followed(2, 7, None)
    commits.followed(2, 3, 1)  # long before anybody looked
    for index, term in ((8, 3), (7, 2)):
        with pytest.raises(Violation, match=f"node 2 takes entry {index} of term {term} for committed"):
            commits.followed(2, index, term)
    commits.removed(2, 7, 2)
    commits.removed(2, 8, 3)
    with pytest.raises(Violation, match="node 2 removes entry 7 of term 3, which is committed"):
        commits.removed(2, 7, 3)


def test_a_leader_that_hears_no_quorum_leads_for_a_while_at_most() -> None:
    heard = {2: 50 * MS, 3: 0}
    voters = ((1, 2, 3), ())
    Leadership().leads(1, 50 * MS + UNHEARD_NS_MAX - 1, 0, heard, voters)
    Leadership().leads(1, 60 * MS + UNHEARD_NS_MAX, 70 * MS, heard, voters)  # it began only then
    Leadership().leads(1, 1 << 60, 0, {}, ((1,), ()))
    with pytest.raises(Violation, match=r"node 1 leads, and of \[1, 2, 3\] only \[1\] were heard of"):
        Leadership().leads(1, 50 * MS + UNHEARD_NS_MAX, 0, heard, voters)
    with pytest.raises(Violation, match=r"of \[1, 3, 4\] only \[1\]"):
        Leadership().leads(1, UNHEARD_NS_MAX, 0, heard, ((1, 2, 3), (1, 3, 4)))


def test_a_transfer_ends_and_so_does_the_lead_of_one_who_can_not_write() -> None:
    leadership = Leadership()
    leadership.hands_over(1, 0, 4, 2)
    leadership.hands_over(1, TRANSFER_NS_MAX, 4, 2)
    leadership.hands_over(1, TRANSFER_NS_MAX + 1, 4, 3)  # another one
    leadership.hands_over(1, TRANSFER_NS_MAX + 2, 4, 0)
    leadership.hands_over(1, TRANSFER_NS_MAX + 3, 4, 3)
    with pytest.raises(Violation, match=r"hands leadership of term 4 over to 3 for 2.0 s"):
        leadership.hands_over(1, 2 * TRANSFER_NS_MAX + 4, 4, 3)
    leadership.writes(1, HUNG_NS_MAX)
    with pytest.raises(Violation, match=r"node 1 leads, and its log has not been written for 3.0 s"):
        leadership.writes(1, HUNG_NS_MAX + 1)


def test_who_hears_a_leader_votes_for_nobody() -> None:
    stickiness = LeaderStickiness()
    stickiness.granted(1, 2, 5)
    stickiness.asked(1, 2, 5, 3)
    with pytest.raises(Violation, match="node 1 would elect 2 in term 5, and hears leader 3"):
        stickiness.granted(1, 2, 5)
    stickiness.granted(1, 2, 6)
    stickiness.asked(1, 2, 5, 0)  # asked again, later
    stickiness.granted(1, 2, 5)
    stickiness.asked(1, 2, 5, 3)  # and again, before the yes is sent
    stickiness.granted(1, 2, 5)


def test_a_node_goes_by_what_its_state_has_applied() -> None:
    configurations = ConfigurationInUse()
    configurations.goes_by(1, ((1, 2), ()), ((1, 2), ()))
    with pytest.raises(Violation, match="goes by voters"):
        configurations.goes_by(1, ((1, 2, 3), ()), ((1, 2), ()))
    configurations.appended(1, 9, [9])
    with pytest.raises(Violation, match=r"appends a change .* at 9, not having applied those at \[7\]"):
        configurations.appended(1, 9, [7, 9])
    configurations.campaigns(1, [])
    with pytest.raises(Violation, match=r"campaigns before it has applied the changes at \[4\]"):
        configurations.campaigns(1, [4])
