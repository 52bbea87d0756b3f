from __future__ import annotations

from collections.abc import Set

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftstate.core.membership import (
    Changer,
    ConfChangeError,
    ProgressTracker,
    TrackerConfig,
    check_membership,
    conf_change_as_v2,
    enter_joint_rule,
    leaves_joint,
    next_conf_state,
    restore,
)
from raftstate.core.progress import Inflights, Progress
from raftstate.core.quorum import UNBOUNDED_INDEX, JointConfig, MajorityConfig, VoteResult
from raftstate.core.types import (
    ConfChange,
    ConfChangeSingle,
    ConfChangeTransition,
    ConfChangeType,
    ConfChangeV2,
    ConfState,
)
from raftstate.errors import InvariantError
from tests.core.nodes import build, stored

_TYPES = {
    "v": ConfChangeType.ADD_NODE,
    "l": ConfChangeType.ADD_LEARNER_NODE,
    "r": ConfChangeType.REMOVE_NODE,
    "u": ConfChangeType.UPDATE_NODE,
}


def changes(text: str) -> list[ConfChangeSingle]:
    """`v1 l2 r3 u4`: make 1 a voter and 2 a learner, remove 3, update 4."""
    return [ConfChangeSingle(_TYPES[token[0]], int(token[1:])) for token in text.split()]


def tracker_of(conf_state: ConfState, *, last_index: int = 10) -> ProgressTracker:
    tracker = ProgressTracker(max_inflight=8)
    tracker.install(*restore(Changer(tracker, last_index), conf_state))
    return tracker


def peers(progress: dict[int, Progress]) -> dict[int, tuple[int, int, bool, bool]]:
    """Each member as (match, next, recent_active, is_learner)."""
    return {
        node_id: (peer.match, peer.next, peer.recent_active, peer.is_learner)
        for node_id, peer in sorted(progress.items())
    }


def whole_state(tracker: ProgressTracker) -> tuple[ConfState, dict[int, tuple[int, int, bool, bool]]]:
    return tracker.conf_state(), peers(tracker.progress)


def config_of(
    incoming: Set[int],
    outgoing: Set[int] = frozenset(),
    *,
    learners: Set[int] = frozenset(),
    learners_next: Set[int] = frozenset(),
    auto_leave: bool = False,
) -> TrackerConfig:
    voters = JointConfig(MajorityConfig(incoming), MajorityConfig(outgoing))
    return TrackerConfig(voters, frozenset(learners), frozenset(learners_next), auto_leave)


class TestSimple:
    def test_a_new_member_is_probed_from_the_last_index_and_counts_as_active(self) -> None:
        tracker = tracker_of(ConfState(voters=(1,)), last_index=10)
        config, progress = Changer(tracker, last_index=17).simple(changes("v2 l3"))
        assert config == config_of({1, 2}, learners={3})
        assert peers(progress) == {
            1: (0, 10, True, False),
            2: (0, 17, True, False),
            3: (0, 17, True, True),
        }

    def test_a_member_that_joins_an_empty_log_is_probed_from_index_one(self) -> None:
        _, progress = Changer(ProgressTracker(max_inflight=8), last_index=0).simple(changes("v1"))
        assert peers(progress) == {1: (0, 1, True, False)}

    def test_each_new_member_has_a_window_of_its_own(self) -> None:
        tracker = ProgressTracker(max_inflight=3, max_inflight_bytes=70)
        _, progress = Changer(tracker, last_index=4).simple(changes("v1 l2"))
        windows = [peer.inflights for peer in progress.values()]
        assert [(window.size, window.max_bytes) for window in windows] == [(3, 70), (3, 70)]
        assert windows[0] is not windows[1]

    def test_promotion_and_demotion_keep_what_is_known_of_the_member(self) -> None:
        tracker = tracker_of(ConfState(voters=(1, 2), learners=(3,)), last_index=10)
        tracker.progress[2].maybe_update(20)
        tracker.progress[3].maybe_update(30)
        tracker.install(*Changer(tracker, 40).simple(changes("v3")))
        tracker.install(*Changer(tracker, 40).simple(changes("l2")))
        assert whole_state(tracker) == (
            ConfState(voters=(1, 3), learners=(2,)),
            {1: (0, 10, True, False), 2: (20, 21, True, True), 3: (30, 31, True, False)},
        )

    def test_a_removed_member_is_forgotten(self) -> None:
        tracker = tracker_of(ConfState(voters=(1, 2), learners=(3,)))
        config, progress = Changer(tracker, 10).simple(changes("r2 r3 r9"))
        assert (config, list(progress)) == (config_of({1}), [1])

    def test_an_update_and_node_zero_change_nothing(self) -> None:
        tracker = tracker_of(ConfState(voters=(1, 2)))
        config, progress = Changer(tracker, 99).simple(changes("u1 u7 r0 l0 v0"))
        assert (config, peers(progress)) == (tracker.config, peers(tracker.progress))

    @pytest.mark.parametrize("text", ["v3 v4", "r1 v3", "r1 r2", "l1 l2 v3", "v3 r1 v4"])
    def test_more_than_one_voter_needs_a_joint_configuration(self, text: str) -> None:
        tracker = tracker_of(ConfState(voters=(1, 2, 5)))
        with pytest.raises(
            ConfChangeError, match=r"^more than one voter changed without entering joint config$"
        ):
            Changer(tracker, 10).simple(changes(text))

    @pytest.mark.case(22)
    @pytest.mark.parametrize("text", ["r1", "l1", "r1 l2"])
    def test_the_last_voter_stays(self, text: str) -> None:
        with pytest.raises(ConfChangeError, match=r"^removed all voters$"):
            Changer(tracker_of(ConfState(voters=(1,), learners=(2,))), 10).simple(changes(text))

    def test_a_joint_configuration_must_be_left_first(self) -> None:
        tracker = tracker_of(ConfState(voters=(1,), voters_outgoing=(1, 2)))
        with pytest.raises(ConfChangeError, match=r"^can't apply simple config change in joint config$"):
            Changer(tracker, 10).simple(changes("v3"))


class TestJoint:
    def test_the_outgoing_half_is_kept_until_the_configuration_is_left(self) -> None:
        tracker = tracker_of(ConfState(voters=(1, 2, 3)), last_index=10)
        tracker.install(*Changer(tracker, 20).enter_joint(True, changes("r2 r3 v4 v5 l6")))
        everyone = {
            1: (0, 10, True, False),
            2: (0, 10, True, False),
            3: (0, 10, True, False),
            4: (0, 20, True, False),
            5: (0, 20, True, False),
            6: (0, 20, True, True),
        }
        assert whole_state(tracker) == (
            ConfState(voters=(1, 4, 5), voters_outgoing=(1, 2, 3), learners=(6,), auto_leave=True),
            everyone,
        )
        tracker.install(*Changer(tracker, 30).leave_joint())
        assert whole_state(tracker) == (
            ConfState(voters=(1, 4, 5), learners=(6,)),
            {node_id: peer for node_id, peer in everyone.items() if node_id not in (2, 3)},
        )

    def test_a_demoted_voter_votes_until_the_configuration_is_left(self) -> None:
        tracker = tracker_of(ConfState(voters=(1, 2)), last_index=10)
        tracker.install(*Changer(tracker, 20).enter_joint(False, changes("l2")))
        assert whole_state(tracker) == (
            ConfState(voters=(1,), voters_outgoing=(1, 2), learners_next=(2,)),
            {1: (0, 10, True, False), 2: (0, 10, True, False)},
        )
        tracker.install(*Changer(tracker, 30).leave_joint())
        assert whole_state(tracker) == (
            ConfState(voters=(1,), learners=(2,)),
            {1: (0, 10, True, False), 2: (0, 10, True, True)},
        )

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("l2 v2", config_of({1, 2}, {1, 2})),
            ("l2 r2", config_of({1}, {1, 2})),
            ("r2 l2", config_of({1}, {1, 2}, learners_next={2})),
            ("l2 l2", config_of({1}, {1, 2}, learners_next={2})),
            ("l3 v3", config_of({1, 2, 3}, {1, 2})),
            ("v3 l3", config_of({1, 2}, {1, 2}, learners={3})),
            ("l3 r3", config_of({1, 2}, {1, 2})),
        ],
    )
    def test_the_last_change_of_a_member_decides(self, text: str, expected: TrackerConfig) -> None:
        config, _ = Changer(tracker_of(ConfState(voters=(1, 2))), 10).enter_joint(False, changes(text))
        assert config == expected

    @pytest.mark.parametrize(
        ("conf_state", "text", "refusal"),
        [
            (ConfState(), "v1", "can't make a zero-voter config joint"),
            (ConfState(voters=(1,)), "r1", "removed all voters"),
            (ConfState(voters=(1,), voters_outgoing=(2,)), "v3", "config is already joint"),
        ],
    )
    def test_entering_is_refused(self, conf_state: ConfState, text: str, refusal: str) -> None:
        with pytest.raises(ConfChangeError, match=f"^{refusal}$"):
            Changer(tracker_of(conf_state), 10).enter_joint(False, changes(text))

    def test_only_a_joint_configuration_can_be_left(self) -> None:
        with pytest.raises(ConfChangeError, match=r"^can't leave a non-joint config$"):
            Changer(tracker_of(ConfState(voters=(1,))), 10).leave_joint()


NODE_IDS = st.integers(min_value=1, max_value=9)
SINGLE_CHANGES = st.builds(ConfChangeSingle, st.sampled_from(ConfChangeType), NODE_IDS)
# Node 1 stays a voter, so that no sequence runs into an empty configuration half-way.
CHANGES_BUT_OF_NODE_1 = st.lists(
    st.builds(ConfChangeSingle, st.sampled_from(ConfChangeType), st.integers(min_value=2, max_value=9)),
    max_size=9,
)
COMMANDS = st.lists(
    st.tuples(
        st.sampled_from(["simple", "enter", "enter and leave", "leave"]), st.lists(SINGLE_CHANGES, max_size=4)
    ),
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(setup=st.frozensets(NODE_IDS, max_size=5), steps=CHANGES_BUT_OF_NODE_1, auto_leave=st.booleans())
def test_changes_one_by_one_and_through_a_joint_configuration_end_the_same(
    setup: frozenset[int], steps: list[ConfChangeSingle], auto_leave: bool
) -> None:
    start = ConfState(voters=tuple(sorted(setup | {1})))
    one_by_one, joint = tracker_of(start, last_index=10), tracker_of(start, last_index=10)
    for step in steps:
        one_by_one.install(*Changer(one_by_one, 10).simple([step]))
    joint.install(*Changer(joint, 10).enter_joint(auto_leave, steps))
    joint.install(*Changer(joint, 10).leave_joint())
    assert whole_state(joint) == whole_state(one_by_one)


def assert_consistent(config: TrackerConfig, progress: dict[int, Progress]) -> None:
    """What must hold of every configuration that a change can lead to, in sets."""
    voters = config.voters.incoming | config.voters.outgoing
    assert config.voters.incoming
    assert not voters & config.learners
    assert config.learners_next <= config.voters.outgoing - config.voters.incoming
    assert set(progress) == voters | config.learners
    assert {node_id for node_id, peer in progress.items() if peer.is_learner} == config.learners
    assert config.voters.outgoing or not config.auto_leave


@settings(max_examples=300, deadline=None)
@given(commands=COMMANDS, auto_leave=st.booleans())
def test_any_sequence_of_changes_keeps_roles_and_progress_consistent(
    commands: list[tuple[str, list[ConfChangeSingle]]], auto_leave: bool
) -> None:
    tracker = tracker_of(ConfState(voters=(1, 2, 3), learners=(4,)))
    for last_index, (command, steps) in enumerate(commands, start=20):
        changer = Changer(tracker, last_index)
        before, voters_before = whole_state(tracker), tracker.config.voters.incoming
        try:
            if command == "simple":
                result = changer.simple(steps)
                assert len(result[0].voters.incoming ^ voters_before) <= 1
            elif command == "leave":
                result = changer.leave_joint()
                assert result[0].voters == JointConfig(voters_before)
            else:
                result = changer.enter_joint(auto_leave, steps)
                assert result[0].voters.outgoing == voters_before
                assert result[0].auto_leave is auto_leave
        except ConfChangeError:
            assert whole_state(tracker) == before
            continue
        assert whole_state(tracker) == before
        assert_consistent(*result)
        tracker.install(*result)
        if command == "enter and leave":
            tracker.install(*changer.leave_joint())
            assert_consistent(tracker.config, tracker.progress)


@st.composite
def conf_states(draw: st.DrawFn) -> ConfState:
    """Any configuration that can be reached; some of the voters that are to go become learners."""
    ids = draw(st.permutations(range(1, 13)))
    voters, learners, removed = ids[: draw(st.integers(1, 5))], ids[5 : 5 + draw(st.integers(0, 4))], ids[9:]
    removed = removed[: draw(st.integers(0, 3))]
    outgoing = voters[: draw(st.integers(0, len(voters)))] + removed
    return ConfState(
        voters=tuple(sorted(voters)),
        learners=tuple(sorted(learners)),
        voters_outgoing=tuple(sorted(outgoing)),
        learners_next=tuple(sorted(removed[: draw(st.integers(0, len(removed)))])),
        auto_leave=bool(outgoing) and draw(st.booleans()),
    )


@settings(max_examples=200, deadline=None)
@given(conf_state=conf_states())
def test_a_stored_configuration_is_restored_as_it_was(conf_state: ConfState) -> None:
    empty = ProgressTracker(max_inflight=8)
    config, progress = restore(Changer(empty, last_index=10), conf_state)
    assert whole_state(empty) == (ConfState(), {})
    assert_consistent(config, progress)
    empty.install(config, progress)
    assert empty.conf_state() == conf_state


def test_the_empty_configuration_is_restored_as_empty() -> None:
    assert restore(Changer(ProgressTracker(max_inflight=8), last_index=10), ConfState()) == (
        TrackerConfig(),
        {},
    )


def test_learners_without_voters_can_not_be_restored() -> None:
    with pytest.raises(ConfChangeError, match=r"^removed all voters$"):
        tracker_of(ConfState(learners=(1,)))


@pytest.mark.parametrize(
    ("config", "learners", "contradiction"),
    [
        (config_of({1, 9}), set(), "no progress for 9"),
        (config_of({1}, learners_next={2}), set(), "2 is in learners_next, but not an outgoing voter"),
        (
            config_of({1}, {2}, learners_next={2}),
            {2},
            "2 is in learners_next, but is already marked as learner",
        ),
        (config_of({1}, {2}, learners={2}), {2}, "2 is both learner and voter"),
        (config_of({1, 2}, learners={2}), {2}, "2 is both learner and voter"),
        (config_of({1}, learners={2}), set(), "2 is a learner, but is not marked as one"),
        (config_of({1}, auto_leave=True), set(), "auto_leave is set, but the configuration is not joint"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_our_bug(
    config: TrackerConfig, learners: set[int], contradiction: str
) -> None:
    progress = {
        node_id: Progress(match=0, next=1, inflights=Inflights(8), is_learner=node_id in learners)
        for node_id in (1, 2)
    }
    with pytest.raises(InvariantError, match=f"^{contradiction}$"):
        check_membership(config, progress)
    tracker = ProgressTracker(max_inflight=8)
    tracker.install(config, progress)
    with pytest.raises(InvariantError, match=f"^{contradiction}$"):
        Changer(tracker, 10).leave_joint()


class TestProgressTracker:
    def test_members_are_listed_by_role_and_in_order(self) -> None:
        tracker = tracker_of(
            ConfState(voters=(7, 9, 1), voters_outgoing=(1, 3), learners=(8, 2), learners_next=(3,))
        )
        assert tracker.voter_nodes() == [1, 3, 7, 9]
        assert [node_id for node_id, _ in tracker.visit()] == [1, 2, 3, 7, 8, 9]
        assert all(peer is tracker.progress[node_id] for node_id, peer in tracker.visit())
        assert tracker.conf_state() == ConfState(
            voters=(1, 7, 9), voters_outgoing=(1, 3), learners=(2, 8), learners_next=(3,)
        )

    @pytest.mark.parametrize(
        ("conf_state", "singleton"),
        [
            (ConfState(), False),
            (ConfState(voters=(1,)), True),
            (ConfState(voters=(1,), learners=(2, 3)), True),
            (ConfState(voters=(1, 2)), False),
            (ConfState(voters=(1,), voters_outgoing=(1,)), False),
        ],
    )
    def test_one_voter_in_a_configuration_that_is_not_joint_decides_alone(
        self, conf_state: ConfState, singleton: bool
    ) -> None:
        assert tracker_of(conf_state).is_singleton() is singleton

    def test_learners_do_not_count_for_the_committed_index(self) -> None:
        tracker = tracker_of(ConfState(voters=(1, 2, 3), learners=(4, 5)))
        for node_id, match in [(1, 20), (2, 15), (4, 20), (5, 20)]:
            tracker.progress[node_id].maybe_update(match)
        assert tracker.committed() == 15

    def test_a_joint_configuration_commits_what_both_halves_have(self) -> None:
        tracker = tracker_of(ConfState(voters=(1, 2), voters_outgoing=(1, 3)))
        for node_id, match in [(1, 20), (2, 18), (3, 13)]:
            tracker.progress[node_id].maybe_update(match)
        assert tracker.committed() == 13

    def test_an_empty_tracker_commits_everything(self) -> None:
        assert ProgressTracker(max_inflight=8).committed() == UNBOUNDED_INDEX

    @pytest.mark.case(27)
    @pytest.mark.parametrize(
        ("active", "quorum"), [({1}, False), ({1, 4, 5}, False), ({1, 3}, True), ({1, 2, 3}, True)]
    )
    def test_the_quorum_is_active_while_most_voters_were_heard_from(
        self, active: set[int], quorum: bool
    ) -> None:
        tracker = tracker_of(ConfState(voters=(1, 2, 3), learners=(4, 5)))
        for node_id, peer in tracker.visit():
            peer.recent_active = node_id in active
        assert tracker.quorum_active() is quorum

    def test_the_first_vote_of_a_node_stands(self) -> None:
        tracker = tracker_of(ConfState(voters=(1, 2, 3)))
        tracker.record_vote(1, False)
        tracker.record_vote(1, True)
        tracker.record_vote(2, True)
        assert tracker.tally_votes() == (1, 1, VoteResult.PENDING)
        tracker.record_vote(3, True)
        assert tracker.tally_votes() == (2, 1, VoteResult.WON)

    def test_votes_of_learners_and_strangers_do_not_count(self) -> None:
        tracker = tracker_of(ConfState(voters=(1, 2, 3), learners=(4, 5)))
        for node_id in (1, 4, 5, 9):
            tracker.record_vote(node_id, True)
        assert tracker.tally_votes() == (1, 0, VoteResult.PENDING)

    def test_an_election_that_can_not_be_won_is_lost(self) -> None:
        tracker = tracker_of(ConfState(voters=(1, 2, 3)))
        tracker.record_vote(1, True)
        tracker.record_vote(2, False)
        tracker.record_vote(3, False)
        assert tracker.tally_votes() == (1, 2, VoteResult.LOST)

    def test_a_new_election_begins_without_votes(self) -> None:
        tracker = tracker_of(ConfState(voters=(1,)))
        tracker.record_vote(1, True)
        tracker.reset_votes()
        assert tracker.tally_votes() == (0, 0, VoteResult.PENDING)


AUTO, IMPLICIT, EXPLICIT = ConfChangeTransition


@pytest.mark.parametrize(
    ("transition", "text", "auto_leave_and_ok"),
    [
        (AUTO, "", (False, False)),
        (AUTO, "v1", (False, False)),
        (AUTO, "v1 v2", (True, True)),
        (IMPLICIT, "", (True, True)),
        (IMPLICIT, "v1", (True, True)),
        (EXPLICIT, "v1", (False, True)),
        (EXPLICIT, "v1 v2", (False, True)),
    ],
)
def test_a_joint_configuration_is_used_when_asked_for_or_for_several_changes(
    transition: ConfChangeTransition, text: str, auto_leave_and_ok: tuple[bool, bool]
) -> None:
    assert enter_joint_rule(ConfChangeV2(transition, tuple(changes(text)))) == auto_leave_and_ok


@pytest.mark.parametrize(
    ("change", "leaves"),
    [
        (ConfChangeV2(), True),
        (ConfChangeV2(context=b"why"), True),
        (ConfChangeV2(EXPLICIT), False),
        (ConfChangeV2(changes=tuple(changes("u1"))), False),
    ],
)
def test_an_empty_change_leaves_a_joint_configuration(change: ConfChangeV2, leaves: bool) -> None:
    assert leaves_joint(change) is leaves


def test_the_simple_form_of_a_change_says_the_same_in_the_general_form() -> None:
    general = ConfChangeV2(changes=(ConfChangeSingle(ConfChangeType.ADD_NODE, 4),), context=b"why")
    assert conf_change_as_v2(ConfChange(ConfChangeType.ADD_NODE, 4, b"why")) == general
    assert conf_change_as_v2(general) is general


@pytest.mark.parametrize(
    "changes",
    [
        [("add", 4)],
        [("learn", 4), ("add", 4), ("remove", 1)],
        [("learn", 2)],
        [("add", 4), ("add", 5), ("remove", 1), ("learn", 2)],
    ],
)
def test_what_follows_from_a_stored_configuration_is_what_a_core_makes_of_the_same_changes(
    changes: list[tuple[str, int]],
) -> None:
    kinds = {
        "add": ConfChangeType.ADD_NODE,
        "learn": ConfChangeType.ADD_LEARNER_NODE,
        "remove": ConfChangeType.REMOVE_NODE,
    }
    singles = tuple(ConfChangeSingle(kinds[kind], node_id) for kind, node_id in changes)
    for way in ([ConfChangeV2(changes=(single,)) for single in singles], [ConfChangeV2(changes=singles)]):
        node = build(stored())
        state = node.raft.tracker.conf_state()
        for change in way:
            before = state
            state = next_conf_state(state, change)
            assert state == node.apply_conf_change(change) != before
            if state.voters_outgoing:
                state = next_conf_state(state, ConfChangeV2())
                assert state == node.apply_conf_change(ConfChangeV2())


def test_a_change_that_does_not_fit_a_stored_configuration_is_refused() -> None:
    with pytest.raises(ConfChangeError):
        next_conf_state(ConfState(voters=(1,)), ConfChange(ConfChangeType.REMOVE_NODE, 1))
    assert next_conf_state(ConfState(), ConfChange(ConfChangeType.ADD_NODE, 1)) == ConfState(voters=(1,))
