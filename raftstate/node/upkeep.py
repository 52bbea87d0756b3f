"""What a leader proposes of its own accord: ticks of the lease clock, the end of what has expired, compaction
by age, and a newer machine version.

Nobody waits for any of it, and all of it may be proposed again: the machine checks each anew when it is
applied. So nothing is kept here that another leader would need, but for one thing: how old which revision is.
Every node notes that for itself, in memory, so that a new leader need not wait for the history to grow old
once more. After a restart it does, and compacts later than it might.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from raftstate.core.rawnode import RawNode
from raftstate.machine.machine import Machine
from raftstate.machine.types import (
    BATCH_COMMANDS_MAX,
    MACHINE_VERSION,
    CompactTo,
    Expire,
    ExpireLease,
    Item,
    MoveTo,
)
from raftstate.node.clock import LeaseClock

GRACE_NS = 2_000_000_000
"""Nothing expires for so long after an election or a stall: renewals may wait in the sockets."""
LOOK_NS = 250_000_000
"""Between two looks for what has expired: small beside the second that leases are granted in."""
TICK_NS = 1_000_000_000
"""Between two ticks of the lease clock, while anything lives by it."""
LEASE_ENTRIES_MAX = 4
"""Entries that end leases and are not applied yet: enough to keep the log busy, few beside what clients
write."""
LEASE_KEYS_AT_ONCE_MAX = 2_000
"""Keys of the leases that one entry ends, unless a single one has more: as many as are deleted on the
loop."""
LEASES_SINCE = 2
"""The machine version that knows leases, compaction and what leaders propose for them."""
FIRST_REVISION = 1
"""Of a store that nothing was written to."""
SAMPLES_MAX = 100
"""So precise is the age of a revision: a hundredth of what is kept."""
SAMPLE_NS_MIN = 1_000_000_000
"""But no more precise than this."""

Propose = Callable[[Sequence[Item]], int | None]
"""Proposes an entry of these items; returns its index, or None: there is no room for it now."""


class RevisionAges:
    """Which revision was the latest at what time, back to `retention_ns` ago.

    A hundredth of that time, but at least a second, is its precision: what it says is older by up to as much.
    """

    def __init__(self, retention_ns: int) -> None:
        self._retention_ns = retention_ns
        self._interval_ns = max(SAMPLE_NS_MIN, retention_ns // SAMPLES_MAX)
        self._due_ns: int | None = None
        self._samples: deque[tuple[int, int]] = deque()
        """(monotonic time, revision), both ascending."""

    def note(self, now_ns: int, revision: int) -> None:
        """Note the latest revision, if it is time to."""
        if self._due_ns is not None and now_ns < self._due_ns:
            return
        self._due_ns = now_ns + self._interval_ns
        if not self._samples or self._samples[-1][1] != revision:
            self._samples.append((now_ns, revision))

    def revision_before(self, now_ns: int) -> int | None:
        """Return a revision that was the latest `retention_ns` before `now_ns`, or somewhat earlier; None
        when none is known to be so old. What lies further back is forgotten."""
        samples = self._samples
        kept_ns = now_ns - self._retention_ns
        while len(samples) > 1 and samples[1][0] <= kept_ns:
            samples.popleft()
        return samples[0][1] if samples and samples[0][0] <= kept_ns else None


class Upkeep:
    """The proposals of a leader.

    Args:
        raw: the core.
        machine: says what lives, and what is due. Only `met`, `lost` and `began_to_lead` may be called while
            it applies on a thread.
        lease_clock: this node's; what is due by it may end.
        propose: proposes an entry; called while this node leads.
        history_retention_ns: how old a revision is when its history may be forgotten; 0: never.
    """

    def __init__(
        self,
        raw: RawNode,
        machine: Machine,
        lease_clock: LeaseClock,
        propose: Propose,
        *,
        history_retention_ns: int,
    ) -> None:
        self._raw = raw
        self._machine = machine
        self._lease_clock = lease_clock
        self._propose = propose
        self._ages = RevisionAges(history_retention_ns) if history_retention_ns else None
        self._versions: dict[int, int] = {}
        """Member -> the newest machine version that its code knows, of those there is a connection with."""
        self.began_to_lead(0)

    # -- on every node

    def note_revision(self, now_ns: int) -> None:
        """Note how old the latest revision is, if it is time to."""
        if self._ages is not None:
            self._ages.note(now_ns, self._machine.revision)

    def met(self, peer: int, machine_version: int) -> None:
        """A peer has said which machine version its code knows."""
        self._versions[peer] = machine_version

    def lost(self, peer: int) -> None:
        """A connection with a peer broke: it may come back with other code, and says so then."""
        self._versions.pop(peer, None)

    def knows(self, peer: int) -> int:
        """Return the newest machine version that a peer's code knows; 0: there is no connection with it."""
        return self._versions.get(peer, 0)

    # -- on a leader

    def began_to_lead(self, now_ns: int) -> None:
        """This node leads from now (monotonic) on. What an earlier leader proposed is not its concern."""
        self._leads_since_ns = now_ns
        self._look_due_ns = self._tick_due_ns = 0
        # The last entry proposed of each kind: while it is under way, nothing of its kind is proposed twice.
        self._tick_index = self._leases_index = self._compaction_index = self._move_index = 0

    def look(self, now_ns: int, applied_index: int) -> None:
        """Propose what is due. Called with every heartbeat."""
        if now_ns < self._look_due_ns:
            return
        self._look_due_ns = now_ns + LOOK_NS
        if self._move_index <= applied_index:
            self._propose_move()
        if self._machine.machine_version >= LEASES_SINCE:
            if self._compaction_index <= applied_index:
                self._propose_compaction(now_ns)
            if self._leases_index <= applied_index:
                self._end_leases(now_ns)
        lives = self._machine.session_count or self._machine.lease_count
        if now_ns >= self._tick_due_ns and lives and self._tick_index <= applied_index:
            self._tick_due_ns = now_ns + TICK_NS
            self._propose_tick(now_ns)

    def applied(self, now_ns: int, applied_index: int) -> None:
        """Entries up to this one were applied: if they ended all the leases that they should, others may be
        due."""
        if 0 < self._leases_index <= applied_index:
            self._end_leases(now_ns)

    def _end_leases(self, now_ns: int) -> None:
        self._leases_index = 0
        if not self._may_expire(now_ns):
            return
        clock_ms = self._lease_clock.step(now_ns)
        due = deque(self._machine.expired_leases(clock_ms))
        for _ in range(LEASE_ENTRIES_MAX):
            if not due:
                return
            index = self._propose([ExpireLease(id, clock_ms) for id in self._take_leases(due)])
            if index is None:
                return  # the next look finds the rest again
            self._leases_index = index

    def _take_leases(self, due: deque[int]) -> list[int]:
        """Take as many of the leases as one entry should end, but at least one."""
        taken = [due.popleft()]
        keys = self._machine.lease_key_count(taken[0])
        while due and len(taken) < BATCH_COMMANDS_MAX:
            keys += self._machine.lease_key_count(due[0])
            if keys > LEASE_KEYS_AT_ONCE_MAX:
                break
            taken.append(due.popleft())
        return taken

    def _may_expire(self, now_ns: int) -> bool:
        return now_ns >= max(self._leads_since_ns, self._lease_clock.stalled_ns) + GRACE_NS

    def _propose_tick(self, now_ns: int) -> None:
        # One at a time: what the last one expires would be proposed again.
        clock_ms = self._lease_clock.step(now_ns)
        items: list[Item] = []
        if self._may_expire(now_ns):
            due = self._machine.expired_sessions(clock_ms)[:BATCH_COMMANDS_MAX]
            items = [Expire(session, clock_ms) for session in due]
        self._tick_index = self._propose(items) or 0

    def _propose_compaction(self, now_ns: int) -> None:
        revision = self._ages.revision_before(now_ns) if self._ages is not None else None
        # Before the first change there is nothing to forget.
        if revision is not None and revision > max(FIRST_REVISION, self._machine.compacted_revision):
            self._compaction_index = self._propose([CompactTo(revision)]) or 0

    def _propose_move(self) -> None:
        """Propose the newest machine version that all members know, once all of them are connected."""
        known = min([MACHINE_VERSION, *(self._versions.get(peer, 0) for peer in self._others())])
        if known > self._machine.machine_version:
            self._move_index = self._propose([MoveTo(known)]) or 0

    def _others(self) -> Iterable[int]:
        state = self._machine.conf_state()
        members = {*state.voters, *state.learners, *state.voters_outgoing, *state.learners_next}
        return members - {self._raw.raft.id}
