"""Each invariant lets good histories pass, and says what is wrong with the smallest bad one."""

from __future__ import annotations

import pytest

from chaos.invariants import Violation
from chaos.invariants.commit_monotonic import CommitMonotonic
from chaos.invariants.configuration_safety import ConfigurationSafety
from chaos.invariants.election_safety import ElectionSafety
from chaos.invariants.exactly_once import check_exactly_once
from chaos.invariants.leader_completeness import LeaderCompleteness
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
