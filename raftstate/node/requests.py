"""Requests on their way to the log: held, proposed or forwarded, and answered exactly once.

    submitted ──> held ─┬─ this node leads ──> proposed ───┬─ its entry is applied ────────────> answered
                        │                                  ├─ another entry has its index ─────> refused
                        │                                  └─ deadline, or a snapshot instead ─> unknown
                        ├─ another node leads ─> forwarded ┬─ reply ───────────────────────────> answered
                        │                                  └─ the link is lost, or deadline ───> unknown
                        └─ deadline, or no leader for too long ────────────────────────────────> refused

A request leaves `held` once. It is never proposed or forwarded a second time, by anyone: only the client
knows whether a second execution would be one too many. What was proposed or sent, and not answered in time,
is *unknown*; what was refused is *not applied*, and never will be.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

import msgspec

from raftstate.core.errors import ProposalDropped
from raftstate.core.rawnode import RawNode
from raftstate.core.roles import Role
from raftstate.core.types import NONE, Entry, EntryType
from raftstate.errors import InvariantError
from raftstate.machine.types import (
    BATCH_BYTES_MAX,
    BATCH_COMMANDS_MAX,
    Batch,
    Code,
    EntryResult,
    Envelope,
    Fault,
    Item,
    Register,
)
from raftstate.measure import Histogram
from raftstate.node.environment import Executed, Forward, ForwardReply, Network, Rejected, Reply
from raftstate.node.room import Gate

HELD_BYTES_MAX = 64 << 20
"""Requests that wait for a leader, or for their turn, take no more memory than this."""
WAIT_NS_MAX = 60_000_000_000
"""However patient the client: what is not committed after a minute is unknown, and is not kept in memory."""
HOLD_NS_MAX = 1_600_000_000
"""How long a request waits for a leader to appear: two of the longest election timeouts. Beyond it none will
appear soon, and the client is told at once rather than at its deadline."""

_encode = msgspec.msgpack.Encoder().encode


class _Stamp(msgspec.Struct, array_like=True):
    """The head of an envelope: what follows is passed over."""

    lease_clock_ms: int


_stamp_decoder = msgspec.msgpack.Decoder(_Stamp)


@dataclass(slots=True, eq=False)
class Tally:
    """What became of the requests of a node's own clients, for whoever watches the node."""

    refused: int = 0
    """Answered *not applied*."""
    unknown: int = 0
    """Answered *unknown*."""
    forwarded: int = 0
    """Sent on to a leader."""
    commit_seconds: Histogram = field(default_factory=Histogram)
    """Of entries that this node proposed: until they were applied here."""


@dataclass(slots=True, eq=False)
class Request:
    """One item and who waits for it. `deadline_ns`, `hold_until_ns`: monotonic."""

    item: Item | None
    """None once it was sent on its way: from then on only the answer counts."""
    commands: int
    size_bytes: int
    deadline_ns: int
    hold_until_ns: int
    reply: Reply | None
    forwarded: bool
    sent_to: int = NONE
    """The node whose log it may be in by now: this one, once proposed, or the leader that it was forwarded
    to."""
    sent_ns: int = 0
    """When it was sent there (monotonic)."""
    tally: Tally = field(default_factory=Tally)

    def answer(self, outcome: Executed | Rejected) -> None:
        """Answer, unless that was done already."""
        reply, self.reply = self.reply, None
        if reply is not None:
            if isinstance(outcome, Rejected) and not self.forwarded:
                if outcome.applied_never:
                    self.tally.refused += 1
                else:
                    self.tally.unknown += 1
            reply(outcome)


def _size(item: Item) -> int:
    return len(item.raw) if isinstance(item, Batch) else 64


class Requests:
    """All requests at one node.

    `stamps`: returns (lease clock, wall clock) in ms for an envelope. `describe_leader`: a sentence on what
    this node knows of the leader, for refusals.
    """

    def __init__(
        self,
        raw: RawNode,
        network: Network,
        now_ns: Callable[[], int],
        stamps: Callable[[], tuple[int, int]],
        describe_leader: Callable[[], str],
        first_forward_id: int,
    ) -> None:
        self._raw = raw
        self._network = network
        self._now_ns = now_ns
        self._stamps = stamps
        self._describe_leader = describe_leader
        self.gate = Gate()
        """Which writes are proposed here while there is little room."""
        self._held: list[Request] = []
        self._held_bytes = 0
        self._proposed: dict[int, tuple[int, list[Request]]] = {}
        """index -> (term, requests): whose entry stands, or stood, at that index of this node's log."""
        self._forwarded: dict[int, Request] = {}
        self._forward_ids = count(first_forward_id)
        self._deadlines: list[tuple[int, int, Request]] = []
        self._sequence = count()
        self.tally = Tally()

    @property
    def held(self) -> int:
        """How many requests wait for a leader."""
        return len(self._held)

    @property
    def held_bytes(self) -> int:
        """How much memory they take."""
        return self._held_bytes

    @property
    def pending(self) -> int:
        """How many requests were proposed or forwarded, and wait for what becomes of them."""
        return len(self._forwarded) + sum(len(requests) for _, requests in self._proposed.values())

    def submit(
        self, item: Item, commands: int, timeout_ns: int, reply: Reply, *, forwarded: bool = False
    ) -> None:
        """Take a request; `reply` is called exactly once, at the latest soon after its deadline.

        `forwarded`: it came from another node, and is refused rather than forwarded again.
        """
        size = _size(item)
        if self._held_bytes + size > HELD_BYTES_MAX:
            message = (
                f"{self._held_bytes} bytes of requests are waiting at this node, "
                f"the limit is {HELD_BYTES_MAX}; try again later"
            )
            self.tally.refused += not forwarded
            reply(Rejected(Fault(Code.RESOURCE_EXHAUSTED, message), applied_never=True))
            return
        now_ns = self._now_ns()
        deadline_ns = now_ns + min(timeout_ns, WAIT_NS_MAX)
        hold_until_ns = min(deadline_ns, now_ns + HOLD_NS_MAX)
        request = Request(
            item, commands, size, deadline_ns, hold_until_ns, reply, forwarded, tally=self.tally
        )
        self._held.append(request)
        self._held_bytes += size
        heapq.heappush(self._deadlines, (request.hold_until_ns, next(self._sequence), request))

    def flush(self) -> None:
        """Propose or forward what is held, if there is a leader to take it."""
        if not self._held:
            return
        raft = self._raw.raft
        if raft.state is Role.LEADER:
            if raft.lead_transferee == NONE:
                held, self._held, self._held_bytes = self._held, [], 0
                self._propose([request for request in held if request.reply is not None])
        elif raft.lead != NONE:
            held, self._held, self._held_bytes = self._held, [], 0
            for request in held:
                if request.forwarded:
                    message = f"node {raft.id} does not lead any more; {self._describe_leader()}"
                    request.answer(Rejected(Fault(Code.NO_LEADER, message), applied_never=True))
                elif request.reply is not None:
                    self._forward(raft.lead, request)

    def _propose(self, requests: Sequence[Request]) -> None:
        raft = self._raw.raft
        lease_ms, wall_ms = self._stamps()
        now_ns = self._now_ns()
        if not self.gate.is_open:
            requests = [request for request in requests if self._admit(request)]
        for group in fill_entries(requests):
            items = [request.item for request in group if request.item is not None]
            data = _encode(Envelope(lease_ms, wall_ms, items))
            try:
                self._raw.propose(data)
            except ProposalDropped:
                fault = Fault(
                    Code.RESOURCE_EXHAUSTED,
                    "too many bytes wait to be committed at the leader; try again later",
                )
                for request in group:
                    request.answer(Rejected(fault, applied_never=True))
                continue
            for request in group:
                request.item = None
                request.sent_to = raft.id
                request.sent_ns = now_ns
            self.gate.left_bytes -= len(data)
            self._proposed[raft.raft_log.last_index()] = (raft.term, group)

    def _admit(self, request: Request) -> bool:
        """Ask the gate; a part of a batch may be all that it lets through."""
        if request.item is None or request.reply is None:
            return False
        admitted = self.gate.admit(request.item)
        if isinstance(admitted, Fault):
            request.answer(Rejected(admitted, applied_never=True))
            return False
        if admitted.refused:
            request.reply = admitted.reply_through(request.reply)
            request.item, request.commands = admitted.item, admitted.commands
            request.size_bytes = _size(admitted.item)
        return True

    def propose_own(self, items: Sequence[Item]) -> int | None:
        """Propose an entry that nobody waits for; return its index, or None: there is no room for it now."""
        lease_ms, wall_ms = self._stamps()
        try:
            self._raw.propose(_encode(Envelope(lease_ms, wall_ms, list(items))))
        except ProposalDropped:
            return None
        return self._raw.raft.raft_log.last_index()

    def _forward(self, leader: int, request: Request) -> None:
        timeout_ms = max(1, (request.deadline_ns - self._now_ns()) // 1_000_000)
        if request.item is None:
            raise InvariantError("a request is forwarded a second time")
        forward = Forward(next(self._forward_ids), timeout_ms, request.commands, request.item)
        if not self._network.send(leader, forward):
            self._held.append(request)
            self._held_bytes += request.size_bytes
            return
        request.item = None
        request.sent_to = leader
        self.tally.forwarded += 1
        self._forwarded[forward.id] = request

    def applied(self, results: Sequence[EntryResult], *, withheld: str = "") -> None:
        """Answer the requests whose index was applied. `withheld`: why their results must not be shown."""
        if not self._proposed:
            return
        for entry in results:
            term, requests = self._proposed.pop(entry.index, (0, ()))
            if term == entry.term and requests:
                self.tally.commit_seconds.observe_ns(self._now_ns() - requests[0].sent_ns)
            if term == entry.term and withheld:
                for request in requests:
                    self._unknown(request, f"the write was applied, but its result is not shown: {withheld}")
            elif term == entry.term:
                for request, result in zip(requests, entry.items, strict=True):
                    request.answer(Executed(entry.index, entry.revision, result))
            elif requests:
                # Log matching: with another entry committed at this index, the one proposed here never will
                # be.
                message = f"the leader changed before the write was committed (term {term}, now {entry.term})"
                for request in requests:
                    request.answer(Rejected(Fault(Code.NO_LEADER, message), applied_never=True))

    def replied(self, sender: int, reply: ForwardReply) -> None:
        """Take the leader's answer to a forwarded request. Late and repeated ones find nobody waiting."""
        request = self._forwarded.get(reply.id)
        if request is None or request.sent_to != sender:
            return
        del self._forwarded[reply.id]
        outcome = reply.executed or reply.rejected
        if outcome is None:
            outcome = Rejected(
                Fault(Code.UNKNOWN_OUTCOME, "the leader sent an empty answer"), applied_never=False
            )
        request.answer(outcome)

    def passed_over(self, index: int, reason: str) -> None:
        """Entries up to `index` came with a state that was made elsewhere: their results are not known."""
        # Those that are applied here were answered.
        for proposed in [at for at in self._proposed if at <= index]:
            for request in self._proposed.pop(proposed)[1]:
                self._unknown(request, reason)

    def link_lost(self, peer: int) -> None:
        """A connection to or from a peer broke: what was forwarded there may or may not have arrived."""
        for forward_id in [key for key, request in self._forwarded.items() if request.sent_to == peer]:
            self._unknown(
                self._forwarded.pop(forward_id),
                "the connection to the leader was lost after the write was sent",
            )

    def expire(self) -> None:
        """Answer what has waited long enough."""
        now_ns = self._now_ns()
        if not self._deadlines or self._deadlines[0][0] > now_ns:
            return
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            _, _, request = heapq.heappop(self._deadlines)
            if request.reply is None:
                continue
            if request.sent_to == NONE:
                fault = Fault(Code.NO_LEADER, f"no leader took the write in time; {self._describe_leader()}")
                request.answer(Rejected(fault, applied_never=True))
            elif now_ns < request.deadline_ns:
                heapq.heappush(self._deadlines, (request.deadline_ns, next(self._sequence), request))
            else:
                self._unknown(request, "the write was appended, but not committed in time")
        self._held = [request for request in self._held if request.reply is not None]
        self._held_bytes = sum(request.size_bytes for request in self._held)
        self._forwarded = {
            key: request for key, request in self._forwarded.items() if request.reply is not None
        }

    def installed(self) -> None:
        """A snapshot has taken the place of this node's log: nobody will tell here what became of what was
        proposed to it. An entry within the snapshot may be among what was committed; so may none behind it,
        but that takes the log to see, and *unknown* is true of both."""
        for _, requests in self._proposed.values():
            for request in requests:
                self._unknown(
                    request, "this node lost leadership, and was sent a snapshot of the state since"
                )
        self._proposed.clear()

    def stop(self, reason: str) -> None:
        """Answer everything: this node goes on with nothing."""
        for request in self._held:
            request.answer(Rejected(Fault(Code.NO_LEADER, reason), applied_never=True))
        for _, requests in self._proposed.values():
            for request in requests:
                self._unknown(request, reason)
        for request in self._forwarded.values():
            self._unknown(request, reason)
        self._held, self._held_bytes = [], 0
        self._proposed.clear()
        self._forwarded.clear()

    @staticmethod
    def _unknown(request: Request, reason: str) -> None:
        request.answer(Rejected(Fault(Code.UNKNOWN_OUTCOME, reason), applied_never=False))


def fill_entries(requests: Sequence[Request]) -> list[list[Request]]:
    """Group requests into entries, in order: at most 1 MiB and 512 commands each, unless one request alone is
    more.

    A registration ends its entry: the entry's index is the session's id, so there can be only one in it.
    """
    groups: list[list[Request]] = []
    group: list[Request] = []
    size = commands = 0
    for request in requests:
        if group and (
            size + request.size_bytes > BATCH_BYTES_MAX or commands + request.commands > BATCH_COMMANDS_MAX
        ):
            groups.append(group)
            group, size, commands = [], 0, 0
        group.append(request)
        size += request.size_bytes
        commands += request.commands
        if isinstance(request.item, Register):
            groups.append(group)
            group, size, commands = [], 0, 0
    if group:
        groups.append(group)
    return groups


def last_stamp(entries: Sequence[Entry]) -> int | None:
    """Return the lease clock (ms) that the last stamped one of some entries holds; None: none does."""
    for entry in reversed(entries):
        if entry.type is EntryType.NORMAL and entry.data:
            try:
                return _stamp_decoder.decode(entry.data).lease_clock_ms
            except msgspec.DecodeError:
                continue  # the machine passes over such bytes, too
    return None
