"""The membership as this node lives it: requests to change it, and what a change means for this node.

A request goes to the leader, which plans it by what it knows at that moment (`member_changes`) and proposes
it; it is answered when its entry is applied. As with writes (`requests`), nobody sends one twice: what was
refused never happened, what was sent and not answered in time is unknown.

    submitted ──> held ─┬─ this node leads ──> planned ─┬─> refused, or nothing to do
                        │                               └─> proposed ┬─ its entry is applied ──────> answered
                        │                                            ├─ another has its index ─────> refused
                        │                                            └─ deadline ──────────────────> unknown
                        ├─ another node leads ─> forwarded ┬─ reply ───────────────────────────────> answered
                        │                                  └─ the link is lost, or deadline ───────> unknown
                        └─ no leader, or another change under way, for too long ───────────────────> refused

On its own the leader promotes learners that have caught up, and takes over the addresses that nodes announce.
A node that was removed, or replaced by a new incarnation, halts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from raftstate.core.errors import ProposalDropped
from raftstate.core.progress import ProgressState
from raftstate.core.roles import Role
from raftstate.core.types import NONE, ConfChange, ConfChangeV2
from raftstate.errors import FailedPreconditionError
from raftstate.logs import get_logger
from raftstate.machine.types import MEMBERSHIP_SINCE, Code, Fault
from raftstate.node.admission import Admission, Place
from raftstate.node.applied import AppliedState
from raftstate.node.driver import Driver
from raftstate.node.environment import (
    Announce,
    ChangeMembers,
    ChangeMembersReply,
    Clock,
    Network,
    Rejected,
)
from raftstate.node.member_changes import (
    MemberRequest,
    MembersChanged,
    PromoteMember,
    UpdateMember,
    View,
    plan,
)
from raftstate.node.parts import DriverPart

log = get_logger(__name__)

HOLD_NS_MAX = 1_600_000_000
"""How long a request waits for a leader, or for the change before it: two of the longest election timeouts,
as writes do. A change takes milliseconds; one that is not through by then has no quorum."""
WAIT_NS_MAX = 60_000_000_000
"""However patient the client: as for writes."""
LOOK_NS = 250_000_000
"""Between two looks for learners that have caught up; two in a row must find the same."""
LOOKS = 2
ANNOUNCE_NS = 500_000_000
"""Between two announcements of addresses: a member that nobody can reach should not stay so for long."""
LINGER_S = 0.3
"""How long a node that was removed goes on: until the others, too, have heard that this is committed, and no
longer, since clients may wait for it."""

Answer = Callable[[MembersChanged | Rejected], None]


@dataclass(slots=True, eq=False)
class _Waiting:
    """A request and who waits for it. Times: monotonic."""

    request: MemberRequest
    deadline_ns: int
    hold_until_ns: int
    reply: Answer | None
    forwarded: bool
    sent_to: int = NONE
    """The leader that it was forwarded to."""

    def answer(self, outcome: MembersChanged | Rejected) -> None:
        reply, self.reply = self.reply, None
        if reply is not None:
            reply(outcome)


@dataclass(slots=True, eq=False)
class _Proposed:
    """A change of this node's making, at `index` of its log in `term`."""

    index: int
    term: int
    ids: tuple[int, ...]
    waiting: _Waiting | None


class Membership(DriverPart):
    """The membership at one node. Everything is called on the driver's thread; nothing blocks.

    `on_changed`: called when other members, or other addresses, are to be dialled. Raises
    FailedPreconditionError when the state says that this node is no member any more.
    """

    def __init__(
        self, driver: Driver, network: Network, clock: Clock, place: Place, on_changed: Callable[[], None]
    ) -> None:
        self._driver = driver
        self._raw = driver.raw
        self._network = network
        self._clock = clock
        self._place = place
        self._on_changed = on_changed
        self._held: list[_Waiting] = []
        self._proposed: list[_Proposed] = []
        self._forwarded: dict[int, _Waiting] = {}
        self._ids = count(clock.monotonic_ns())  # not those of this node's life before a restart
        self.admission = Admission(driver, place, self._leave)
        self._heard_ns: dict[int, int] = {}
        self._looks: dict[int, int] = {}
        self._look_due_ns = self._announce_due_ns = 0
        self._leaving = False
        driver.parts.append(self)
        driver.membership_watchers.append(self._applied)
        driver.on(ChangeMembers, self._receive_request)
        driver.on(ChangeMembersReply, self._receive_reply)
        driver.on(Announce, self._receive_announcement)

    # -- requests

    def submit(
        self, request: MemberRequest, timeout_ns: int, reply: Answer, *, forwarded: bool = False
    ) -> None:
        """Have the membership changed; `reply` is called exactly once, at the latest soon after the deadline.

        `forwarded`: it came from another node, and is not passed on again.
        """
        if not self._driver.running:
            reply(_refused(Code.NO_LEADER, "this node is not running"))
            return
        if self._place.alone:
            reply(
                _refused(
                    Code.FAILED_PRECONDITION,
                    "this store runs within a program, where no other node can reach it; close it, serve its "
                    "directory with `raftstate serve --data DIR`, and ask again there",
                )
            )
            return
        now_ns = self._clock.monotonic_ns()
        deadline_ns = now_ns + min(timeout_ns, WAIT_NS_MAX)
        hold_until_ns = min(deadline_ns, now_ns + HOLD_NS_MAX)
        self._held.append(_Waiting(request, deadline_ns, hold_until_ns, reply, forwarded))
        self._flush()

    def _flush(self) -> None:
        """Propose or forward what is held, if it can be now."""
        if not self._held:
            return
        raft = self._raw.raft
        if raft.state is Role.LEADER:
            # Whoever joins is told the members as they are then, and hears of no change before it reaches the
            # leader: so where that is goes first.
            self._announce(self._clock.monotonic_ns())
            while self._held and self._why_not_now() is None:
                self._propose(self._held.pop(0))
        elif raft.lead != NONE:
            held, self._held = self._held, []
            for waiting in held:
                self._forward(raft.lead, waiting)

    def _why_not_now(self) -> Fault | None:
        """Return why the leader can't begin a change at this moment."""
        raft = self._raw.raft
        raft_log = raft.raft_log
        if raft.lead_transferee != NONE:
            return Fault(Code.NO_LEADER, "leadership is being handed over; try again in a moment")
        if raft_log.term_or_zero(raft_log.applied) != raft.term:
            # Ongaro 2015: before that, an earlier leader's change could still be committed beside this one.
            return Fault(
                Code.NO_LEADER,
                f"node {raft.id} leads term {raft.term}, but has not committed an entry of it yet; try again "
                "in a moment, and if that does not help, bring more voters back",
            )
        if raft.pending_conf_index > raft_log.applied or raft.tracker.config.joint:
            return Fault(
                Code.FAILED_PRECONDITION,
                "another membership change is under way, and there can be one at a time; try again when it "
                "is through",
            )
        return None

    def _propose(self, waiting: _Waiting) -> None:
        outcome = self._begin(waiting.request, waiting)
        if isinstance(outcome, Fault):
            waiting.answer(Rejected(outcome, applied_never=True))

    def _begin(self, request: MemberRequest, waiting: _Waiting | None) -> Fault | None:
        """Plan and propose a change; None: it is on its way, or there was nothing to do."""
        planned = plan(self._view(), request)
        if isinstance(planned, Fault):
            return planned
        if planned.change is None:
            if waiting is not None:
                waiting.answer(self._changed(self._driver.applied_index, planned.ids, already=True))
            return None
        raft = self._raw.raft
        try:
            self._raw.propose_conf_change(planned.change)
        except ProposalDropped as error:
            return Fault(
                Code.RESOURCE_EXHAUSTED, f"the leader has no room for it now: {error}; try again later"
            )
        index = raft.raft_log.last_index()
        if raft.pending_conf_index != index:
            # The core has put an empty entry in its place: it never allows two at once.
            return Fault(Code.FAILED_PRECONDITION, "another membership change is under way; try again")
        log.info("membership change proposed", index=index, request=repr(request))
        self._proposed.append(_Proposed(index, raft.term, planned.ids, waiting))
        self._driver.schedule_turn()
        return None

    def _forward(self, leader: int, waiting: _Waiting) -> None:
        raft = self._raw.raft
        if waiting.forwarded:
            what = f"node {raft.id} does not lead; {self._driver.describe_leader()}"
            waiting.answer(_refused(Code.NO_LEADER, what))
            return
        knows = self._driver.upkeep.knows(leader)
        if 0 < knows < MEMBERSHIP_SINCE:
            waiting.answer(_refused(Code.UNIMPLEMENTED, f"node {leader}, which leads, runs older software"))
            return
        if knows:
            timeout_ms = max(1, (waiting.deadline_ns - self._clock.monotonic_ns()) // 1_000_000)
            id = next(self._ids)
            if self._network.send(leader, ChangeMembers(id, timeout_ms, waiting.request)):
                waiting.sent_to = leader
                self._forwarded[id] = waiting
                return
        self._held.append(waiting)

    def _receive_request(self, sender: int, body: ChangeMembers) -> None:
        def reply(outcome: MembersChanged | Rejected) -> None:
            if isinstance(outcome, Rejected):
                self._network.send(sender, ChangeMembersReply(body.id, rejected=outcome))
            else:
                self._network.send(sender, ChangeMembersReply(body.id, changed=outcome))

        if self._raw.raft.state is not Role.LEADER:
            what = f"node {self._place.node_id} does not lead; {self._driver.describe_leader()}"
            reply(_refused(Code.NO_LEADER, what))
            return
        self.submit(body.request, body.timeout_ms * 1_000_000, reply, forwarded=True)

    def _receive_reply(self, sender: int, body: ChangeMembersReply) -> None:
        waiting = self._forwarded.get(body.id)
        if waiting is None or waiting.sent_to != sender:
            return
        del self._forwarded[body.id]
        waiting.answer(body.changed or body.rejected or _unknown("the leader sent an empty answer"))

    def _changed(self, index: int, ids: tuple[int, ...], *, already: bool = False) -> MembersChanged:
        return MembersChanged(index, list(self._driver.applied.members), list(ids), already)

    def _resolve(self) -> None:
        """Answer for what was proposed here, and is decided now."""
        raft_log = self._raw.raft.raft_log
        applied = self._driver.applied
        for proposed in list(self._proposed):
            if proposed.index > self._driver.applied_index:
                continue
            term = raft_log.term_or_zero(proposed.index)
            waiting = proposed.waiting
            leaves_joint = bool(applied.conf_state.voters_outgoing) and term == proposed.term
            if leaves_joint and waiting is not None and self._clock.monotonic_ns() < waiting.deadline_ns:
                continue  # whoever asked wants to see the result; should it take too long, it stands as well
            self._proposed.remove(proposed)
            if waiting is None:
                continue
            if term == proposed.term:
                waiting.answer(self._changed(proposed.index, proposed.ids))
            elif term:
                what = (
                    f"the leader changed before the change was committed (term {proposed.term}, now {term})"
                )
                waiting.answer(_refused(Code.NO_LEADER, what))
            else:
                waiting.answer(
                    _unknown("the log was cut behind the change before it could be told from others")
                )

    def _expire(self) -> None:
        now_ns = self._clock.monotonic_ns()
        for waiting in [each for each in self._held if each.hold_until_ns <= now_ns]:
            self._held.remove(waiting)
            fault = self._why_not_now() if self._raw.raft.state is Role.LEADER else None
            if fault is None:
                what = f"no leader took the change in time; {self._driver.describe_leader()}"
                fault = Fault(Code.NO_LEADER, what)
            waiting.answer(Rejected(fault, applied_never=True))
        for id in [id for id, each in self._forwarded.items() if each.deadline_ns <= now_ns]:
            self._forwarded.pop(id).answer(_unknown("the leader was asked, and did not answer in time"))
        for proposed in self._proposed:
            asking = proposed.waiting
            if asking is not None and asking.deadline_ns <= now_ns:
                asking.answer(_unknown("the change was appended to the log, but not committed in time"))

    # -- what the driver tells

    def ticked(self) -> None:
        """See `DriverPart.ticked`."""
        self._note_heard()
        self._resolve()
        self._expire()
        self._flush()
        now_ns = self._clock.monotonic_ns()
        if self._raw.raft.state is Role.LEADER:
            if now_ns >= self._look_due_ns:
                self._look_due_ns = now_ns + LOOK_NS
                self._look_for_promotions()
        else:
            self._looks.clear()
        if now_ns >= self._announce_due_ns:
            self._announce(now_ns)

    def link_lost(self, peer: int) -> None:
        """See `DriverPart.link_lost`."""
        for id in [id for id, waiting in self._forwarded.items() if waiting.sent_to == peer]:
            self._forwarded.pop(id).answer(
                _unknown("the connection to the leader was lost after the change was sent")
            )

    def stopped(self, reason: str) -> None:
        """See `DriverPart.stopped`."""
        held, self._held = self._held, []
        for waiting in held:
            waiting.answer(_refused(Code.NO_LEADER, reason))
        proposed, self._proposed = self._proposed, []
        forwarded, self._forwarded = self._forwarded, {}
        for each in (*(one.waiting for one in proposed), *forwarded.values()):
            if each is not None:
                each.answer(_unknown(reason))

    def went_over(self, change: ConfChange | ConfChangeV2) -> None:
        """See `DriverPart.went_over`.

        What a member promised under an earlier incarnation is forgotten here, before anything can be counted
        by the new configuration.
        """
        for id in self.admission.went_over(change):
            progress = self._raw.raft.tracker.progress.get(id)
            if progress is not None and progress.is_learner:
                self._raw.restart_progress(id)
            self._heard_ns.pop(id, None)

    def _applied(self, before: AppliedState) -> None:
        """A membership change, or a snapshot in its stead, is applied."""
        applied = self._driver.applied
        self.admission.applied(applied)
        self._on_changed()
        self._resolve()
        lead = self._raw.raft.lead
        if before.member(lead) is not None and applied.member(lead) is None:
            # It removed itself, and has stepped down.
            self._driver.succession.leader_gone()
        gone = self.admission.why_gone()
        if gone:
            self._leave(gone)

    def _leave(self, reason: str) -> None:
        """Halt in a moment: what is committed here should be applied and answered first, and heard by the
        others."""
        if not self._leaving:
            self._leaving = True
            log.warning("no member any more", node=self._place.node_id, reason=reason)
            self._driver.fitness.limit("membership", reason, may_lead=False)
            self._driver.retire(reason)
            self._clock.call_later(LINGER_S, lambda: self._driver.halt(FailedPreconditionError(reason)))

    # -- the leader's own

    def _view(self) -> View:
        self._note_heard()
        raft = self._raw.raft
        applied = self._driver.applied
        lately_ns = self._clock.monotonic_ns() - self._driver.timing.election_timeout_ms * 1_000_000
        progress = dict(raft.tracker.visit())
        return View(
            own_id=raft.id,
            conf_state=applied.conf_state,
            members=applied.members,
            last_member_id=applied.last_member_id,
            machine_version=applied.machine_version,
            commit_index=raft.raft_log.committed,
            match={id: each.match for id, each in progress.items()},
            healthy=frozenset(
                id for id in progress if id == raft.id or self._heard_ns.get(id, lately_ns) > lately_ns
            ),
            replicating=frozenset(
                id for id, each in progress.items() if each.state is ProgressState.REPLICATE
            ),
        )

    def _note_heard(self) -> None:
        """Note who was heard from. The core keeps that for an election timeout and then begins anew: at such
        a moment nobody seems to be there."""
        raft = self._raw.raft
        if raft.state is not Role.LEADER:
            self._heard_ns.clear()
            return
        now_ns = self._clock.monotonic_ns()
        for id, progress in raft.tracker.progress.items():
            # Of a member that was just added the core supposes that it answers.
            if progress.recent_active and (progress.match or not progress.is_learner):
                self._heard_ns[id] = now_ns

    def _look_for_promotions(self) -> None:
        if self._why_not_now() is not None or self._driver.applied.machine_version < MEMBERSHIP_SINCE:
            return
        view = self._view()
        ready = {
            member.id: member
            for member in view.members
            if member.learner
            and member.promote
            and not isinstance(plan(view, PromoteMember(member.name)), Fault)
        }
        self._looks = {id: self._looks.get(id, 0) + 1 for id in ready}
        for id, member in ready.items():
            if self._looks[id] >= LOOKS:
                self._begin(PromoteMember(member.name), None)
                return  # one change at a time

    # -- addresses

    def _announce(self, now_ns: int) -> None:
        """Have the own record changed, if it holds other addresses than this node has by now."""
        self._announce_due_ns = now_ns + ANNOUNCE_NS
        place = self._place
        applied = self._driver.applied
        record = applied.member(place.node_id)
        if (
            record is None
            or place.alone
            or record.incarnation != place.incarnation
            or applied.machine_version < MEMBERSHIP_SINCE
            or (record.peer_address, record.client_address) == (place.peer_address, place.client_address)
        ):
            return
        body = Announce(place.peer_address, place.client_address)
        if self._raw.raft.state is Role.LEADER:
            self._take_over(place.node_id, body)
            return
        for member in applied.members:
            if self._driver.upkeep.knows(member.id) >= MEMBERSHIP_SINCE:
                self._network.send(member.id, body)

    def _receive_announcement(self, sender: int, body: Announce) -> None:
        if self._raw.raft.state is Role.LEADER:
            self._take_over(sender, body)

    def _take_over(self, id: int, body: Announce) -> None:
        if self._why_not_now() is not None:
            return  # it is announced again
        fault = self._begin(UpdateMember(id, body.peer_address, body.client_address), None)
        if fault is not None:
            log.warning("addresses not taken over", node=id, reason=fault.message)


def _refused(code: Code, message: str) -> Rejected:
    return Rejected(Fault(code, message), applied_never=True)


def _unknown(message: str) -> Rejected:
    return Rejected(Fault(Code.UNKNOWN_OUTCOME, message), applied_never=False)
