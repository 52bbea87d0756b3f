"""Who belongs to the cluster, how that changes, and what the leader tracks about each member.

    at most one voter differs:  (1 2 3)  --simple-->  (1 2 3 4)
    anything else:              (1 2 3)  --enter_joint-->  (1 4 5)&&(1 2 3)  --leave_joint-->  (1 4 5)

A change is computed from the active configuration without touching it (`Changer`): the caller installs the
result when the entry that carries the change is applied, not when it is appended. Sections 4.1 to 4.3 of the
Raft thesis; the rules and the texts of refusals are etcd's.

What may live here: configurations, the tracker over them, and functions from one configuration to the next.
No messages, no log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from raftstate.core.progress import Inflights, Progress
from raftstate.core.quorum import JointConfig, MajorityConfig, VoteResult
from raftstate.core.types import (
    NONE,
    ConfChange,
    ConfChangeSingle,
    ConfChangeTransition,
    ConfChangeType,
    ConfChangeV2,
    ConfState,
)
from raftstate.errors import FailedPreconditionError, InvariantError


class ConfChangeError(FailedPreconditionError):
    """A membership change that the active configuration does not allow. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class TrackerConfig:
    """The members, by role. A node has one role: voters (of either half) and learners never overlap."""

    voters: JointConfig = field(default_factory=JointConfig)
    """Who votes. Both halves hold ids only while the configuration is joint."""

    learners: frozenset[int] = frozenset()
    """Who receives the log without a vote."""

    learners_next: frozenset[int] = frozenset()
    """Outgoing voters that become learners when the joint configuration is left; until then they vote."""

    auto_leave: bool = False
    """Whether the leader leaves the joint configuration by itself once it acts. False when not joint."""

    @property
    def joint(self) -> bool:
        """Whether two majorities decide."""
        return bool(self.voters.outgoing)


class ProgressTracker:
    """The active configuration, the progress of its members, and the votes of an election.

    Args:
        max_inflight: how many appends may be in flight to one member.
        max_inflight_bytes: how many bytes of entries may be in flight to one member; 0: no limit.
    """

    __slots__ = ("config", "max_inflight", "max_inflight_bytes", "progress", "votes")

    def __init__(self, max_inflight: int, max_inflight_bytes: int = 0) -> None:
        self.max_inflight = max_inflight
        self.max_inflight_bytes = max_inflight_bytes
        self.config = TrackerConfig()
        self.progress: dict[int, Progress] = {}
        self.votes: dict[int, bool] = {}

    def install(self, config: TrackerConfig, progress: dict[int, Progress]) -> None:
        """Make what a `Changer` or `restore` returned the active configuration."""
        self.config = config
        self.progress = progress

    def conf_state(self) -> ConfState:
        """Return the active configuration as it is stored, ids ascending."""
        config = self.config
        return ConfState(
            voters=tuple(sorted(config.voters.incoming)),
            learners=tuple(sorted(config.learners)),
            voters_outgoing=tuple(sorted(config.voters.outgoing)),
            learners_next=tuple(sorted(config.learners_next)),
            auto_leave=config.auto_leave,
        )

    def is_singleton(self) -> bool:
        """Return whether one voter decides alone."""
        return len(self.config.voters.incoming) == 1 and not self.config.joint

    def voter_nodes(self) -> list[int]:
        """Return the voters of both halves, ascending."""
        return sorted(self.config.voters.ids())

    def visit(self) -> list[tuple[int, Progress]]:
        """Return the members' ids and progress, by ascending id. A copy: `progress` may change meanwhile."""
        return [(node_id, self.progress[node_id]) for node_id in sorted(self.progress)]

    def committed(self) -> int:
        """Return the highest index that the voters have committed; `UNBOUNDED_INDEX` if there are none."""
        # Called for every acknowledgement: one plain dict is the cheapest thing to look up in.
        return self.config.voters.committed_index(
            {node_id: peer.match for node_id, peer in self.progress.items()}
        )

    def quorum_active(self) -> bool:
        """Return whether enough voters were heard from lately to form a quorum."""
        active = {node_id: peer.recent_active for node_id, peer in self.progress.items()}
        return self.config.voters.vote_result(active) is VoteResult.WON

    def reset_votes(self) -> None:
        """Begin another election."""
        self.votes = {}

    def record_vote(self, node_id: int, granted: bool) -> None:
        """Record a node's vote. Its first one stands: a second, of a duplicated message, is ignored."""
        self.votes.setdefault(node_id, granted)

    def tally_votes(self) -> tuple[int, int, VoteResult]:
        """Return how many members granted, how many declined, and how the election stands."""
        answers = [
            self.votes[node_id]
            for node_id, peer in self.progress.items()
            if not peer.is_learner and node_id in self.votes
        ]
        granted = sum(answers)
        return granted, len(answers) - granted, self.config.voters.vote_result(self.votes)


@dataclass(slots=True)
class _Draft:
    """A configuration while it is being changed.

    Progress objects are replaced, never changed: the active tracker holds them too.
    """

    incoming: set[int]
    outgoing: set[int]
    learners: set[int]
    learners_next: set[int]
    progress: dict[int, Progress]

    def remove(self, node_id: int) -> None:
        self.incoming.discard(node_id)
        self.learners.discard(node_id)
        self.learners_next.discard(node_id)
        if node_id not in self.outgoing:
            self.progress.pop(node_id, None)

    def freeze(self, *, auto_leave: bool) -> tuple[TrackerConfig, dict[int, Progress]]:
        config = TrackerConfig(
            voters=JointConfig(MajorityConfig(self.incoming), MajorityConfig(self.outgoing)),
            learners=frozenset(self.learners),
            learners_next=frozenset(self.learners_next),
            auto_leave=auto_leave,
        )
        check_membership(config, self.progress)
        return config, self.progress


class Changer:
    """Computes the configuration that follows from the active one by a change.

    Every method returns the new configuration and the progress of its members, and leaves the tracker as it
    is; whoever applies the change hands both to `ProgressTracker.install`.

    Args:
        tracker: holds the active configuration.
        last_index: the last index of the log of the node that computes; a node that joins is probed from
            there.

    Raises:
        InvariantError: by every method, if the active or the new configuration contradicts itself.
    """

    __slots__ = ("last_index", "tracker")

    def __init__(self, tracker: ProgressTracker, last_index: int) -> None:
        self.tracker = tracker
        self.last_index = last_index

    def simple(self, changes: Iterable[ConfChangeSingle]) -> tuple[TrackerConfig, dict[int, Progress]]:
        """Change at most one voter, and any number of learners, in one step.

        Args:
            changes: applied in order.

        Returns:
            The new configuration and the progress of its members.

        Raises:
            ConfChangeError: the active configuration is joint, no voter would be left, or more than one would
                differ.
        """
        draft = self._draft()
        if draft.outgoing:
            raise ConfChangeError("can't apply simple config change in joint config")
        self._apply(draft, changes)
        if len(self.tracker.config.voters.incoming ^ draft.incoming) > 1:
            raise ConfChangeError("more than one voter changed without entering joint config")
        return draft.freeze(auto_leave=False)

    def enter_joint(
        self, auto_leave: bool, changes: Iterable[ConfChangeSingle]
    ) -> tuple[TrackerConfig, dict[int, Progress]]:
        """Make the active voters the outgoing half, and change a copy of them as the incoming one.

        Args:
            auto_leave: whether the leader is to leave the joint configuration by itself.
            changes: applied in order.

        Returns:
            The joint configuration and the progress of the members of both halves.

        Raises:
            ConfChangeError: the active configuration is joint or has no voters, or no incoming voter would be
                left.
        """
        draft = self._draft()
        if draft.outgoing:
            raise ConfChangeError("config is already joint")
        if not draft.incoming:
            raise ConfChangeError("can't make a zero-voter config joint")
        draft.outgoing = set(draft.incoming)
        self._apply(draft, changes)
        return draft.freeze(auto_leave=auto_leave)

    def leave_joint(self) -> tuple[TrackerConfig, dict[int, Progress]]:
        """Let the incoming half decide alone; voters that were to become learners do so.

        Returns:
            The new configuration and the progress of its members.

        Raises:
            ConfChangeError: the active configuration is not joint.
        """
        draft = self._draft()
        if not draft.outgoing:
            raise ConfChangeError("can't leave a non-joint config")
        for node_id in draft.learners_next:
            draft.progress[node_id] = replace(draft.progress[node_id], is_learner=True)
        draft.learners |= draft.learners_next
        draft.learners_next.clear()
        for node_id in draft.outgoing - draft.incoming - draft.learners:
            del draft.progress[node_id]
        draft.outgoing.clear()
        return draft.freeze(auto_leave=False)

    def _draft(self) -> _Draft:
        config = self.tracker.config
        check_membership(config, self.tracker.progress)
        return _Draft(
            incoming=set(config.voters.incoming),
            outgoing=set(config.voters.outgoing),
            learners=set(config.learners),
            learners_next=set(config.learners_next),
            progress=dict(self.tracker.progress),
        )

    def _apply(self, draft: _Draft, changes: Iterable[ConfChangeSingle]) -> None:
        for change in changes:
            if change.node_id == NONE:
                continue  # so an application says that it decided against a change after it was committed
            match change.type:
                case ConfChangeType.ADD_NODE:
                    self._make_voter(draft, change.node_id)
                case ConfChangeType.ADD_LEARNER_NODE:
                    self._make_learner(draft, change.node_id)
                case ConfChangeType.REMOVE_NODE:
                    draft.remove(change.node_id)
                case ConfChangeType.UPDATE_NODE:  # pragma: no branch - there is no other type
                    pass  # the application's news about a member; consensus does not depend on it
        if not draft.incoming:
            raise ConfChangeError("removed all voters")

    def _make_voter(self, draft: _Draft, node_id: int) -> None:
        self._track(draft, node_id, is_learner=False)
        draft.learners.discard(node_id)
        draft.learners_next.discard(node_id)
        draft.incoming.add(node_id)

    def _make_learner(self, draft: _Draft, node_id: int) -> None:
        draft.incoming.discard(node_id)
        if node_id in draft.outgoing:
            # It still votes in the outgoing half, and nobody is voter and learner at once: it waits for
            # leave_joint.
            draft.learners_next.add(node_id)
        else:
            self._track(draft, node_id, is_learner=True)
            draft.learners.add(node_id)

    def _track(self, draft: _Draft, node_id: int, *, is_learner: bool) -> None:
        known = draft.progress.get(node_id)
        if known is not None:
            draft.progress[node_id] = replace(known, is_learner=is_learner)
            return
        draft.progress[node_id] = Progress(
            match=0,
            next=max(self.last_index, 1),
            inflights=Inflights(self.tracker.max_inflight, self.tracker.max_inflight_bytes),
            # Else the next check of the quorum could depose the leader before the new member had a chance to
            # answer.
            recent_active=True,
            is_learner=is_learner,
        )


def check_membership(config: TrackerConfig, progress: Mapping[int, Progress]) -> None:
    """Check that a configuration and the progress of its members agree with each other.

    The empty configuration is allowed: every other one is built from it.

    Raises:
        InvariantError: a member has no progress, a node has two roles or is marked with the wrong one, or a
            configuration that is not joint carries what only a joint one may.
    """
    voters = config.voters
    for node_id in sorted(voters.ids() | config.learners | config.learners_next):
        if node_id not in progress:
            raise InvariantError(f"no progress for {node_id}")
    for node_id in sorted(config.learners_next):
        if node_id not in voters.outgoing:
            raise InvariantError(f"{node_id} is in learners_next, but not an outgoing voter")
        if progress[node_id].is_learner:
            raise InvariantError(f"{node_id} is in learners_next, but is already marked as learner")
    for node_id in sorted(config.learners):
        if node_id in voters.ids():
            raise InvariantError(f"{node_id} is both learner and voter")
        if not progress[node_id].is_learner:
            raise InvariantError(f"{node_id} is a learner, but is not marked as one")
    if config.auto_leave and not config.joint:
        raise InvariantError("auto_leave is set, but the configuration is not joint")


def restore(changer: Changer, conf_state: ConfState) -> tuple[TrackerConfig, dict[int, Progress]]:
    """Rebuild a stored configuration, by changes that could have led to it.

    Args:
        changer: over a tracker with an empty configuration, which stays as it is.
        conf_state: what to rebuild.

    Returns:
        The configuration and the progress of its members.

    Raises:
        ConfChangeError: no sequence of changes leads there, for instance because there are learners but no
            voters.
    """
    add, add_learner, remove = (
        ConfChangeType.ADD_NODE,
        ConfChangeType.ADD_LEARNER_NODE,
        ConfChangeType.REMOVE_NODE,
    )
    outgoing = [ConfChangeSingle(add, node_id) for node_id in conf_state.voters_outgoing]
    incoming = [
        *(ConfChangeSingle(remove, node_id) for node_id in conf_state.voters_outgoing),
        *(ConfChangeSingle(add, node_id) for node_id in conf_state.voters),
        *(ConfChangeSingle(add_learner, node_id) for node_id in conf_state.learners),
        *(ConfChangeSingle(add_learner, node_id) for node_id in conf_state.learners_next),
    ]
    scratch = ProgressTracker(changer.tracker.max_inflight, changer.tracker.max_inflight_bytes)
    scratch.install(changer.tracker.config, changer.tracker.progress)
    steps = Changer(scratch, changer.last_index)
    for change in outgoing or incoming:
        scratch.install(*steps.simple([change]))
    if outgoing:
        scratch.install(*steps.enter_joint(conf_state.auto_leave, incoming))
    return scratch.config, scratch.progress


def next_conf_state(conf_state: ConfState, change: ConfChange | ConfChangeV2) -> ConfState:
    """Return the stored configuration that follows from another one by a change.

    For those who look ahead, or apply entries again beside a core. What a core makes of the same change is
    the same.

    Raises:
        ConfChangeError: the change does not fit; or `conf_state` can't exist.
    """
    tracker = ProgressTracker(max_inflight=1)
    if conf_state != ConfState():
        tracker.install(*restore(Changer(tracker, 0), conf_state))
    tracker.install(*after_change(Changer(tracker, 0), change))
    return tracker.conf_state()


def after_change(
    changer: Changer, change: ConfChange | ConfChangeV2
) -> tuple[TrackerConfig, dict[int, Progress]]:
    """Return what follows from the active configuration by a change, in the way that the change asks for.

    Raises:
        ConfChangeError: it does not fit.
    """
    general = conf_change_as_v2(change)
    auto_leave, joint = enter_joint_rule(general)
    if leaves_joint(general):
        return changer.leave_joint()
    if joint:
        return changer.enter_joint(auto_leave, general.changes)
    return changer.simple(general.changes)


def conf_change_as_v2(change: ConfChange | ConfChangeV2) -> ConfChangeV2:
    """Return the general form of a change; a change in that form is returned as it is."""
    if isinstance(change, ConfChangeV2):
        return change
    return ConfChangeV2(changes=(ConfChangeSingle(change.type, change.node_id),), context=change.context)


def enter_joint_rule(change: ConfChangeV2) -> tuple[bool, bool]:
    """Return (auto_leave, ok): whether a joint configuration is left by itself, and is used at all.

    It does if that was asked for, or if there is more than one change: some such changes could do without,
    but which ones depends on the configuration they meet.
    """
    ok = change.transition is not ConfChangeTransition.AUTO or len(change.changes) > 1
    return ok and change.transition is not ConfChangeTransition.JOINT_EXPLICIT, ok


def leaves_joint(change: ConfChangeV2) -> bool:
    """Return whether a change asks to leave the joint configuration: it is empty, its context aside."""
    return change.transition is ConfChangeTransition.AUTO and not change.changes
