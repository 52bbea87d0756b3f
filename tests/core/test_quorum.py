from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftstate.core.quorum import UNBOUNDED_INDEX, JointConfig, MajorityConfig, VoteResult

NODE_IDS = st.integers(min_value=1, max_value=9)
VOTERS = st.frozensets(NODE_IDS, max_size=7)
ACKED = st.dictionaries(NODE_IDS, st.integers(min_value=0, max_value=12))
VOTES = st.dictionaries(NODE_IDS, st.booleans())


def dumb_committed_index(voters: frozenset[int], acked: Mapping[int, int]) -> int:
    """Try every index from above: the first one that more than half have reached is committed."""
    if not voters:
        return UNBOUNDED_INDEX
    for index in range(max(acked.values(), default=0), 0, -1):
        reached = [voter for voter in voters if voter in acked and acked[voter] >= index]
        if len(reached) * 2 > len(voters):
            return index
    return 0


def dumb_vote_result(voters: frozenset[int], votes: Mapping[int, bool]) -> VoteResult:
    """Complete the missing votes once with yes and once with no: decided is what comes out the same."""

    def wins(missing: bool) -> bool:
        return not voters or 2 * sum(votes.get(voter, missing) for voter in voters) > len(voters)

    if wins(missing=False):
        return VoteResult.WON
    return VoteResult.PENDING if wins(missing=True) else VoteResult.LOST


@settings(max_examples=300, deadline=None)
@given(voters=VOTERS, acked=ACKED)
def test_a_majority_commits_what_its_dumb_twin_commits(voters: frozenset[int], acked: dict[int, int]) -> None:
    assert MajorityConfig(voters).committed_index(acked) == dumb_committed_index(voters, acked)


@settings(max_examples=300, deadline=None)
@given(incoming=VOTERS, outgoing=VOTERS, acked=ACKED)
def test_a_joint_configuration_commits_what_both_halves_commit(
    incoming: frozenset[int], outgoing: frozenset[int], acked: dict[int, int]
) -> None:
    config = JointConfig(MajorityConfig(incoming), MajorityConfig(outgoing))
    assert config.committed_index(acked) == min(
        dumb_committed_index(incoming, acked), dumb_committed_index(outgoing, acked)
    )


@settings(max_examples=300, deadline=None)
@given(voters=VOTERS, votes=VOTES)
def test_a_majority_decides_as_its_dumb_twin_decides(voters: frozenset[int], votes: dict[int, bool]) -> None:
    assert MajorityConfig(voters).vote_result(votes) is dumb_vote_result(voters, votes)


@settings(max_examples=300, deadline=None)
@given(incoming=VOTERS, outgoing=VOTERS, votes=VOTES)
def test_a_joint_configuration_wins_only_in_both_halves_and_loses_in_either(
    incoming: frozenset[int], outgoing: frozenset[int], votes: dict[int, bool]
) -> None:
    halves = {dumb_vote_result(incoming, votes), dumb_vote_result(outgoing, votes)}
    expected = next(
        result for result in (VoteResult.LOST, VoteResult.PENDING, VoteResult.WON) if result in halves
    )
    config = JointConfig(MajorityConfig(incoming), MajorityConfig(outgoing))
    assert config.vote_result(votes) is expected


@pytest.mark.parametrize(
    ("matches", "committed"),
    [
        ((7,), 7),
        ((7, 5), 5),
        ((7, 5, 6), 6),
        ((9, 9, 1), 9),
        ((4, 3, 2, 1), 2),
        ((9, 8, 7, 6, 5), 7),
        ((1, 2, 3, 4, 5, 6, 7), 4),
    ],
)
def test_the_committed_index_is_the_one_that_more_than_half_have_reached(
    matches: tuple[int, ...], committed: int
) -> None:
    acked = dict(enumerate(matches, start=1))
    assert MajorityConfig(acked).committed_index(acked) == committed


def test_a_configuration_without_voters_commits_everything_and_wins_every_vote() -> None:
    empty = JointConfig()
    assert (empty.committed_index({1: 5}), empty.vote_result({1: False})) == (UNBOUNDED_INDEX, VoteResult.WON)


def test_the_voters_of_a_joint_configuration_are_those_of_both_halves() -> None:
    config = JointConfig(MajorityConfig({1, 2, 4}), MajorityConfig({1, 2, 3}))
    assert config.ids() == {1, 2, 3, 4}
