"""Who leads next: leadership is handed over by a leader that can't do its part, or when it is asked to, and a
follower stands early for a leader that has gone.

Only moves of the core that are safe at any time are made here. What they come to is for the core's elections
to say, and is seen by the leader changing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raftstate.core.rawnode import RawNode
from raftstate.core.roles import Role
from raftstate.core.types import NONE
from raftstate.logs import get_logger
from raftstate.node.environment import Clock, LogDisk, Network, TransferLeader
from raftstate.node.fitness import Fitness

log = get_logger(__name__)

LOG_WRITE_STALL_NS = 400_000_000
"""A leader whose log write has been under way for so long gives leadership up: it can't acknowledge
anything."""
LOG_WRITE_STALLS_UNTIL_STEP_DOWN = 4
"""After so many times that long it steps down, if nobody could take leadership over: those who can't hear of
its stall must be let elect another. Clients then wait for that, rather than for the disk."""
NEED_ELECTION_TIMEOUTS = 10
"""After so many of them without a leader those stand for election, too, who had better not lead."""
EARLY_CAMPAIGN_S = 0.02
"""After the connection to the leader broke: longer than a heartbeat, with which a leader that lives says
so."""
EARLY_CAMPAIGN_STEP_S = 0.05
"""Between the survivors, by rank of their ids: time to win before the next one stands, so that votes do not
split."""


class Succession:
    """How leadership passes on, as one node sees to it. Everything is called on the driver's thread.

    Args:
        raw, clock, network, log_disk, fitness: of the driver.
        election_timeout_ms: of the cluster.
        voters: the voters as they are applied here.
        leader_silent_ns: for how long no leader was heard of.
        guard: runs an action of the core; what it raises ends this node's part, and nothing runs after that.
        turn: takes a turn of the driver at once.
    """

    def __init__(
        self,
        raw: RawNode,
        clock: Clock,
        network: Network,
        log_disk: LogDisk,
        fitness: Fitness,
        *,
        election_timeout_ms: int,
        voters: Callable[[], Sequence[int]],
        leader_silent_ns: Callable[[], int],
        guard: Callable[[Callable[[], object]], None],
        turn: Callable[[], None],
    ) -> None:
        self._raw = raw
        self._clock = clock
        self._network = network
        self._log_disk = log_disk
        self._fitness = fitness
        self._need_ns = NEED_ELECTION_TIMEOUTS * election_timeout_ms * 1_000_000
        self._voters = voters
        self._leader_silent_ns = leader_silent_ns
        self._guard = guard
        self._turn = turn
        self._handed_to = NONE
        """Whom leadership was offered to last, since this node began to lead."""

    def began_to_lead(self) -> None:
        """This node leads from now on."""
        self._handed_to = NONE

    # -- handing over

    @property
    def may_campaign(self) -> bool:
        """Whether this node could do a leader's part now, or must since nobody else does."""
        if self._log_stalled_ns():
            return False
        if self._fitness.may_lead:
            return True
        # Reads go on where all disks are full. Whoever is fit has had its chances by then.
        return self._fitness.may_lead_at_need and self._leader_silent_ns() > self._need_ns

    def look(self) -> bool:
        """At a leader's tick: hand leadership over if this node can't do its part, and other voters can.

        Returns whether it still leads: False when it stepped down, since nobody took it for too long.
        """
        if len(self._voters()) <= 1:
            return True
        stalled_ns = self._log_stalled_ns()
        if stalled_ns > LOG_WRITE_STALLS_UNTIL_STEP_DOWN * LOG_WRITE_STALL_NS:
            log.warning("log write stalled; stepping down", stalled_ms=stalled_ns // 1_000_000)
            self._guard(self._raw.step_down)
            return False
        if self._raw.raft.lead_transferee == NONE and (stalled_ns or not self._fitness.may_lead):
            if stalled_ns:
                log.warning("log write stalled; handing leadership over", stalled_ms=stalled_ns // 1_000_000)
            # Whoever was asked before, and still does not lead, may be no better off.
            self._handed_to = self._most_up_to_date(but=self._handed_to)
            self.transfer(self._handed_to)
        return True

    def transfer(self, target: int) -> None:
        """Hand leadership over, or ask the leader to. `target`: NONE leaves the choice to the leader.

        The driver must take a turn after it, for what is to be sent.
        """
        raft = self._raw.raft
        if raft.state is Role.LEADER:
            chosen = target or self._most_up_to_date()
            if chosen != NONE:
                self._guard(lambda: self._raw.transfer_leader(chosen))
        elif raft.lead != NONE:
            self._network.send(raft.lead, TransferLeader(target))

    def _most_up_to_date(self, *, but: int = NONE) -> int:
        """Return the voter to hand over to; `but`: only if there is no other."""
        tracker = self._raw.raft.tracker
        # Of the core's configuration, which may be ahead of what is applied: only those can take over.
        voters = set(tracker.conf_state().voters) - {self._raw.raft.id}
        # One that does not answer can't take over, however much it held when it was last heard of.
        candidates = [
            (tracker.progress[peer].recent_active, peer != but, tracker.progress[peer].match, peer)
            for peer in sorted(voters)
        ]
        return max(candidates)[3] if candidates else NONE

    def _log_stalled_ns(self) -> int:
        """For how long a write of the log has been under way that takes far too long; 0: none does."""
        since_ns = self._log_disk.outstanding_since_ns
        waited_ns = 0 if since_ns is None else self._clock.monotonic_ns() - since_ns
        return waited_ns if waited_ns > LOG_WRITE_STALL_NS else 0

    # -- standing early

    def leader_gone(self) -> None:
        """The leader that this node follows has probably ended: forget it, and stand for election soon.

        Forgetting it lets this node promise its vote at once, instead of after an election timeout.
        """
        raft = self._raw.raft
        gone = raft.lead
        if gone == NONE or raft.state is not Role.FOLLOWER or raft.is_learner:
            return
        self._guard(self._raw.forget_leader)
        survivors = sorted({*self._voters(), raft.id} - {gone})
        delay_s = EARLY_CAMPAIGN_S + EARLY_CAMPAIGN_STEP_S * survivors.index(raft.id)
        self._clock.call_later(delay_s, self._campaign_if_leaderless)

    def _campaign_if_leaderless(self) -> None:
        raft = self._raw.raft
        if raft.lead == NONE and raft.state is Role.FOLLOWER:
            self._guard(self._raw.campaign)
            self._turn()
