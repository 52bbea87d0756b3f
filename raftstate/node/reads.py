"""What reads wait for: a confirmation that they are linearizable, or an entry to be applied.

Of linearizable reads many share one read-index round.

A read joins the next round, never the one under way: the round's index must have been asked for after the
read began. One round at a time is asked of the core; when it is answered with an index, its reads wait until
that index is applied here. A round that gets no answer (the leader is gone, or has committed nothing in its
term yet) is asked again under a new context: a context is never used twice, so that no late answer can
confirm a read that began after it was asked for (etcd issues 20418 and 21399).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raftstate.core.rawnode import RawNode
from raftstate.core.types import NONE, ReadState
from raftstate.machine.types import Code, Fault
from raftstate.node.environment import Rejected

ROUND_NS_MAX = 100_000_000
"""After so long without an answer a round is asked again: a few round trips under load, well below a client's
patience."""

ReadDone = Callable[[int | Rejected], None]
"""Called with the time (ns) at which the confirming round was asked for, or at which the awaited index was
applied; or with why there is none."""


@dataclass(slots=True, eq=False)
class _Read:
    deadline_ns: int
    done: ReadDone | None
    index: int = 0
    """Of a read that waits for an entry to be applied, and for nothing else."""

    def finish(self, outcome: int | Rejected) -> None:
        done, self.done = self.done, None
        if done is not None:
            done(outcome)


@dataclass(slots=True)
class _Round:
    context: bytes
    asked_ns: int
    reads: list[_Read]


class Reads:
    """All waiting reads at one node.

    `nonce`: 8 random bytes, new at each start; it keeps contexts apart across restarts.
    """

    def __init__(
        self, raw: RawNode, now_ns: Callable[[], int], nonce: bytes, describe_leader: Callable[[], str]
    ) -> None:
        self._raw = raw
        self._now_ns = now_ns
        self._nonce = nonce
        self._describe_leader = describe_leader
        self._sequence = 0
        self._waiting: list[_Read] = []
        self._round: _Round | None = None
        self._confirmed: list[tuple[int, _Round]] = []
        """(read index, round), until the index is applied."""
        self._indexed: list[_Read] = []
        self.rounds_repeated = 0
        """How many rounds got no answer, and were asked for again."""
        self.failed = 0
        """How many reads were refused, since nothing confirmed them, or nothing was applied, in time."""

    @property
    def waiting(self) -> int:
        """How many reads wait for a confirmation, or for an entry to be applied."""
        rounds = [round_ for _, round_ in self._confirmed] + ([self._round] if self._round else [])
        return len(self._waiting) + len(self._indexed) + sum(len(round_.reads) for round_ in rounds)

    def submit(self, timeout_ns: int, done: ReadDone) -> None:
        """Confirm that this node's state includes every write acknowledged before now, then call `done`."""
        self._waiting.append(_Read(self._now_ns() + timeout_ns, done))

    def wait_for(self, index: int, timeout_ns: int, applied_index: int, done: ReadDone) -> None:
        """Wait until the entry at `index` is applied here, then call `done` with the time when it was."""
        read = _Read(self._now_ns() + timeout_ns, done, index)
        if index <= applied_index:
            read.finish(self._now_ns())
        else:
            self._indexed.append(read)

    def flush(self) -> None:
        """Ask for a round if reads wait for one, and someone may answer it."""
        if self._round is None and self._waiting and self._raw.raft.lead != NONE:
            waiting, self._waiting = self._waiting, []
            self._ask(waiting)

    def _ask(self, reads: list[_Read]) -> None:
        self._sequence += 1
        context = self._raw.raft.id.to_bytes(8, "big") + self._nonce + self._sequence.to_bytes(8, "big")
        self._round = _Round(context, self._now_ns(), reads)
        self._raw.read_index(context)

    def confirmed(self, states: list[ReadState], applied_index: int) -> None:
        """Take the core's answers. Answers to contexts that are no longer waited for are dropped."""
        for state in states:
            round_ = self._round
            if round_ is not None and state.context == round_.context:
                self._round = None
                self._confirmed.append((state.index, round_))
        self.applied(applied_index)

    @property
    def wait_for_apply(self) -> bool:
        """Whether reads wait only for entries to be applied."""
        return bool(self._confirmed or self._indexed)

    def applied(self, applied_index: int) -> None:
        """Let go the reads whose index is applied."""
        for read in [read for read in self._indexed if read.index <= applied_index]:
            self._indexed.remove(read)
            read.finish(self._now_ns())
        if not self._confirmed:
            return
        ready = [round_ for index, round_ in self._confirmed if index <= applied_index]
        if ready:
            self._confirmed = [(index, round_) for index, round_ in self._confirmed if index > applied_index]
            for round_ in ready:
                for read in round_.reads:
                    read.finish(round_.asked_ns)

    def expire(self, applied_index: int) -> None:
        """Ask a silent round again, and refuse what has waited too long."""
        now_ns = self._now_ns()
        for read in [read for read in self._indexed if read.deadline_ns <= now_ns]:
            self._indexed.remove(read)
            self.failed += 1
            message = (
                f"the read waited for log index {read.index}, and this node has applied {applied_index}; "
                f"{self._describe_leader()}"
            )
            read.finish(Rejected(Fault(Code.OUT_OF_RANGE, message), applied_never=True))
        for reads in (
            self._waiting,
            *(round_.reads for _, round_ in self._confirmed),
            self._round.reads if self._round else [],
        ):
            for read in reads:
                if read.deadline_ns <= now_ns and read.done is not None:
                    self.failed += 1
                    message = f"the read could not be confirmed in time; {self._describe_leader()}"
                    read.finish(Rejected(Fault(Code.NO_LEADER, message), applied_never=True))
        self._waiting = [read for read in self._waiting if read.done is not None]
        round_ = self._round
        if round_ is not None and now_ns - round_.asked_ns > ROUND_NS_MAX:
            self._round = None
            self.rounds_repeated += 1
            self._waiting[:0] = [read for read in round_.reads if read.done is not None]

    def stop(self, reason: str) -> None:
        """Refuse everything."""
        rejected = Rejected(Fault(Code.NO_LEADER, reason), applied_never=True)
        rounds = [round_ for _, round_ in self._confirmed] + ([self._round] if self._round else [])
        for read in [*self._waiting, *self._indexed, *(read for round_ in rounds for read in round_.reads)]:
            read.finish(rejected)
        self._waiting, self._indexed, self._round, self._confirmed = [], [], None, []
