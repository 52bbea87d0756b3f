"""Whether this node's state can be trusted, and what is done when it can't.

    a row is damaged, or missing   (a read, an apply or the scrub has met it)  ──┐
    this node is odd               (a majority's digest is another one)        ──┴─> quarantined
    quarantined ── a copy from a node that is right, the log replayed on it ──> its digest is compared
                                                                                ├─ agrees ──> trusted again
                                                                                └─ odd ─────> another attempt

A quarantined node shows nothing and does not lead, but it keeps its log, votes and acknowledges: its log is
as good as any. What it holds is replaced only by the state of a node that agreed with it, where it is known
to be damaged, or of a majority of the voters. Without either nobody is rebuilt: who is right can't be told.

A sole voter has nobody to hand over to. It says what it knows, and answers what it can verify.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from raftstate.errors import DataLossError, FailedPreconditionError
from raftstate.logs import get_logger
from raftstate.machine.types import MEMBERSHIP_SINCE
from raftstate.node.digests import DigestExchange, Odd
from raftstate.node.driver import Driver, World
from raftstate.node.environment import (
    Digests,
    PreparedState,
    RepairChunk,
    RepairOffer,
    RepairPull,
    RepairRequest,
    Timer,
)
from raftstate.node.repair_transfer import RepairFetch, RepairSource

log = get_logger(__name__)

TELL_S = 1.0
"""From one look at digests to the next: an odd node is noticed after two, while 64 entries are applied in
between, or none."""
ATTEMPTS_MAX = 8
"""Rebuilds that are tried before a person must look; those that no node could be found for do not count."""
PAUSE_S_MIN = 1.0
PAUSE_S_MAX = 60.0
"""Between two attempts: twice as long after each."""
_LIMIT = "state"
_DISPUTE = "digest"
_REPLACE = "replace this node (`raftstate member replace`)"


class StateRepair(Protocol):
    """Replaces the state of a node that runs. All calls and callbacks are on the driver's thread."""

    def hold_log(self) -> int:
        """Keep the log as it is, until the next `rebuild` is done, or `let_log_go`; return its boundary: a
        copy must hold all up to there."""
        ...

    def let_log_go(self) -> None:
        """No copy comes after all."""
        ...

    def rebuild(
        self,
        prepared: PreparedState,
        check: Callable[[int, int], None],
        done: Callable[[BaseException | None], None],
    ) -> None:
        """Bring a copy up to date from the log, and go over to it; or discard it.

        Args:
            prepared: the copy.
            check: called with the index that it was brought to, and its digest there; may raise to refuse it.
            done: called once: with why this node did not go over to it; or with None, in the same turn in
                which it did.
        """
        ...

    def mark(self, reason: str) -> None:
        """Note durably, soon, that the present state can't be trusted: for the next start."""
        ...


class Integrity:
    """Watches over the state of one node.

    Args:
        driver: of the node.
        world: the driver's.
        repair: replaces the state.
        distrusted: what `StateRepair.mark` has noted of this state in an earlier run; empty: nothing.
    """

    def __init__(
        self,
        driver: Driver,
        world: World,
        repair: StateRepair,
        *,
        distrusted: str = "",
    ) -> None:
        self._driver = driver
        self._clock = world.clock
        self._random = world.random
        self._repair = repair
        self._reason = ""
        """Why this node is quarantined; empty: it is not."""
        self._majority: frozenset[int] = frozenset()
        """The nodes that agreed on a digest that is not this node's."""
        self._rebuilding = self._rebuilt = self._pausing = False
        self._attempts = 0
        self._next_source = 0
        self._last_error = ""
        self._timer: Timer | None = None
        self.exchange = DigestExchange(
            driver.raw.raft.id,
            self._life(),
            send=world.network.send,
            peers=self._peers,
            conf_state=lambda: driver.raw.raft.tracker.conf_state(),
            on_odd=self._odd,
        )
        own = driver.snapshots.own
        why_not = driver.fitness.why_not_read
        self._source = RepairSource(own, world.snapshot_disk, world.network, world.clock, why_not)
        self._fetch = RepairFetch(
            world.snapshot_disk,
            world.network,
            world.clock,
            driver.snapshots.cluster_id,
            world.random.getrandbits(62),
        )
        driver.on(Digests, self.exchange.received)
        driver.on(RepairRequest, self._source.requested)
        driver.on(RepairOffer, self._fetch.offered)
        driver.on(RepairPull, self._source.pulled)
        driver.on(RepairChunk, self._fetch.chunk)
        driver.result_watchers.append(self.exchange.applied)
        driver.install_watchers.append(self.state_replaced)
        if distrusted:
            self._quarantine(distrusted, mark=False)

    def start(self) -> None:
        """Begin to compare."""
        self._timer = self._clock.call_later(TELL_S, self._look)

    def stop(self) -> None:
        """Give up a copy that is on its way, and its files: they would take room on the disk until somebody
        collected them, and a node may start again in this process. The driver was stopped."""
        self._fetch.cancel("this node is stopping")

    @property
    def quarantined(self) -> bool:
        """Whether this node's state is not to be trusted."""
        return bool(self._reason)

    # -- what is found

    def damaged(self, error: DataLossError, *, hidden: bool = False) -> bool:
        """The state was found to be damaged.

        Args:
            error: where, and how.
            hidden: no read would notice: keys are missing that nothing leads to.

        Returns whether it will be rebuilt; False: there is no other node to do that from.
        """
        alone = self._is_alone()
        if alone:
            self._say_alone(error.message, may_read=not hidden)
        elif self._rebuilt:
            self._repair.mark(error.message)
            self._failed(f"the rebuilt state is damaged as well: {error.message}")
        else:
            self._quarantine(f"this node's state is damaged: {error.message}", mark=True)
        return not alone

    def state_replaced(self) -> None:
        """The state is another one, of a snapshot: what was known of it is void."""
        self.exchange.replaced(self._life())
        if self._reason:
            self._rebuilt = True  # it was verified when it was made; the digest must agree yet
            self._fetch.cancel("a snapshot was installed meanwhile")
            self._tell_operators()

    def _odd(self, odd: Odd) -> None:
        majority = "/".join(map(str, sorted(odd.majority)))
        self._majority = odd.majority
        if self._rebuilt:
            self._repair.mark(f"its state differs from that of nodes {majority}")
            self._failed(
                f"the rebuilt state differs from nodes {majority} at log index {odd.log_index} as well"
            )
            return
        what = f"this node's state differs from that of nodes {majority}, a majority, at log index"
        self._quarantine(f"{what} {odd.log_index}", mark=True)

    def _is_alone(self) -> bool:
        state = self._driver.raw.raft.tracker.conf_state()
        others = {*state.voters, *state.voters_outgoing, *state.learners} - {self._driver.raw.raft.id}
        return not others

    def _say_alone(self, what: str, *, may_read: bool) -> None:
        log.error("state damaged", error=what, may_read=may_read)
        shown = "rows are verified when they are read" if may_read else "nothing is shown any more"
        self._driver.fitness.limit(
            _LIMIT,
            f"this node's state is damaged ({what}), and no other node holds it; {shown}: restore a backup, "
            "or save what can be read",
            may_read=may_read,
        )

    # -- quarantine and rebuild

    def _quarantine(self, reason: str, *, mark: bool) -> None:
        if self._reason:
            return
        self._reason = reason
        self._rebuilt = False
        self._attempts = 0
        log.error("quarantined", node=self._driver.raw.raft.id, reason=reason)
        if mark:
            self._repair.mark(reason)
        self._driver.snapshots.own.state_replaced()  # copies of it are no better
        self._tell_operators()
        self._driver.schedule_turn()
        self._clock.call_soon(self._rebuild)

    def _tell_operators(self) -> None:
        what = "it shows nothing, and is rebuilt from another node"
        if self._attempts >= ATTEMPTS_MAX:
            what = f"{self._attempts} rebuilds failed, the last one: {self._last_error}; {_REPLACE}"
        elif self._rebuilt:
            what = "it was rebuilt, and shows nothing until its digest agrees with a majority's"
        elif self._last_error:
            what += f"; the last attempt failed: {self._last_error}"
        self._driver.fitness.limit(_LIMIT, f"{self._reason}; {what}", may_lead=False, may_read=False)

    def _rebuild(self) -> None:
        """Begin to rebuild, if there is need, and a node to do it from."""
        if not self._reason or self._rebuilding or self._rebuilt or self._attempts >= ATTEMPTS_MAX:
            return
        if not self._driver.running:
            return
        connected = set(self._peers())
        sources = sorted((self._majority or set(self.exchange.sources())) & connected)
        if not sources:
            # The next look tries again.
            self._last_error = "no node is connected that is known to be right"
            self._tell_operators()
            return
        lead = self._driver.raw.raft.lead
        # Whoever leads has enough to do.
        sources.sort(key=lambda node: node == lead)
        source = sources[self._next_source % len(sources)]
        self._next_source += 1
        self._rebuilding = True
        log.info("rebuild of the state begins", source=source, attempt=self._attempts + 1)
        self._fetch.begin(source, self._repair.hold_log(), self._fetched)

    def _fetched(self, copy: PreparedState | BaseException) -> None:
        if isinstance(copy, BaseException):
            self._repair.let_log_go()
            self._rebuild_ended(copy)
        else:
            self._repair.rebuild(copy, self._check, self._rebuild_ended)

    def _check(self, index: int, digest: int) -> None:
        """Compare a copy with who is known to be right: the majority, or, where nodes did not differ and rows
        are damaged, this node itself."""
        if self._rebuilt:
            raise FailedPreconditionError("a snapshot was installed meanwhile")
        if self.exchange.contradicts(index, digest, self._majority):
            raise DataLossError(
                f"the copy's digest at log index {index} is {digest:016x}, not what it must be"
            )

    def _rebuild_ended(self, error: BaseException | None) -> None:
        self._rebuilding = False
        if error is not None:
            if not self._rebuilt:
                self._failed(str(error))
            return
        self._rebuilt = True
        self._driver.snapshots.own.state_replaced()
        self.exchange.replaced(self._life())
        log.info("state rebuilt", applied=self._driver.applied_index)
        self._tell_operators()

    def _failed(self, why: str) -> None:
        self._rebuilt = False
        self._attempts += 1
        self._last_error = why
        log.warning("rebuild of the state failed", attempt=self._attempts, reason=why)
        self._tell_operators()
        pause_s = min(PAUSE_S_MAX, PAUSE_S_MIN * 2 ** (self._attempts - 1))
        self._pausing = True
        self._clock.call_later(pause_s, self._pause_over)

    def _pause_over(self) -> None:
        self._pausing = False
        self._rebuild()

    def _trusted_again(self) -> None:
        log.info("quarantine lifted", agreed_index=self.exchange.agreed_index)
        self._reason = self._last_error = ""
        self._majority = frozenset()
        self._rebuilt = False
        self._driver.fitness.lift(_LIMIT)

    # -- digests

    def _look(self) -> None:
        if not self._driver.running:
            return
        self._timer = self._clock.call_later(TELL_S, self._look)
        self._source.tick()
        self.exchange.tell(self._driver.applied_index, self._driver.applied.digest)
        dispute = self.exchange.dispute()
        if dispute and not self._reason:
            self._driver.fitness.limit(_DISPUTE, dispute)
        else:
            self._driver.fitness.lift(_DISPUTE)
        if self._rebuilt and self.exchange.agreed_index:
            self._trusted_again()
        elif not self._pausing:
            self._rebuild()

    def _peers(self) -> list[int]:
        knows = self._driver.upkeep.knows
        state = self._driver.raw.raft.tracker.conf_state()
        members = {*state.voters, *state.voters_outgoing, *state.learners, *state.learners_next}
        own = self._driver.raw.raft.id
        return [peer for peer in sorted(members) if peer != own and knows(peer) >= MEMBERSHIP_SINCE]

    def _life(self) -> int:
        return self._random.getrandbits(63)
