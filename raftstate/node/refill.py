"""Mends a log with damaged records: fetches exactly those entries from peers, and has them written in place.

A damaged record is rot of something that this node may have acknowledged. An acknowledgement can't be taken
back, and speaks for everything before it, so the entries are not asked for through the core: they are fetched
beside it, and until they are back the node neither leads nor acknowledges anything at or above the first of
them. What a peer holds at an index is what this log held there if

- the peer holds, there or further on, an entry of the same index and term as this log: two logs that agree in
  one entry agree in all before it (Raft paper, 5.3). The *anchor* is the first entry at or behind the damaged
  ones whose term is known here: a sound one, or the last one, whose term the log's meta row tells; or
- it is committed, as this node knows and as the peer does.

If the leader holds another entry there, what stands here from the anchor on was never committed: it sends its
own in their place, as an append, and the core replaces them.

What is durably applied is needed no more: if all that is damaged is, the log is cut behind it. What no peer
holds any more, since all have compacted it, is not to be had: this node's operator is told, and has it begin
anew.

May live here: whom to ask, what to believe, what to do with it. Writing is the log's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from raftstate.core.errors import Compacted, Damaged
from raftstate.core.roles import Role
from raftstate.core.types import NONE, Entry, Message, MessageType
from raftstate.logs import get_logger
from raftstate.machine.types import MEMBERSHIP_SINCE
from raftstate.node.driver import Driver
from raftstate.node.environment import (
    Clock,
    LogDisk,
    Network,
    RecordsReply,
    RecordsRequest,
    Timer,
)
from raftstate.store.files import is_full

log = get_logger(__name__)

LIMIT, LOST = "log", "log: lost entries"
"""The names under which the node's fitness is limited: while records are damaged; and if nobody has them."""
RECORDS_BYTES_MAX = 256 << 10
"""Entries in one answer: a millisecond of the answering loop, however many are asked for."""
REPLY_S = 0.5
"""How long to wait for an answer: longer than a busy loop takes, shorter than a person notices."""
PAUSE_S_MIN = 0.1
PAUSE_S_MAX = 2.0
"""Between two rounds in which no peer could help: it may be down, or behind, for long."""


class _Wanted(NamedTuple):
    """Damaged records side by side, and the anchor behind them."""

    first: int
    last: int
    anchor: int
    anchor_term: int


class Refill:
    """Watches a driver's log, and mends it. Belongs to the driver's thread.

    Args:
        driver: of this node. This registers what peers say about records with it.
        log_disk: what it writes its log with.
        network: to the peers.
        clock: the node's.
        durable_index: returns the last index that the state holds durably.
        need_snapshot: called when entries up to the given index can't be had from any peer's log any more.
            Called again and again while it is so.
    """

    def __init__(
        self,
        driver: Driver,
        log_disk: LogDisk,
        network: Network,
        clock: Clock,
        *,
        durable_index: Callable[[], int],
        need_snapshot: Callable[[int], None],
    ) -> None:
        self._driver = driver
        self._disk = log_disk
        self._network = network
        self._clock = clock
        self._durable_index = durable_index
        self._need_snapshot = need_snapshot
        self._wanted: _Wanted | None = None
        """What was asked for, of `_asked`, and is not answered."""
        self._asked = NONE
        self._tried: set[int] = set()
        """Peers that could not help with what is wanted now."""
        self._compacted: set[int] = set()
        """Those of them that have compacted it."""
        self._holding: set[int] = set()
        """Those of them that have not."""
        self._writing = False
        self._before: Sequence[int] = ()
        """What was damaged when the write under way was begun."""
        self._timer: Timer | None = None
        self._pause_s = PAUSE_S_MIN
        driver.on(RecordsRequest, self._answer)
        driver.on(RecordsReply, self._answered)
        driver.damage_watchers.append(self._changed)

    # -- as the one with the damage

    def _changed(self, damaged: Sequence[int]) -> None:
        if not damaged:
            self._forget()
            self._driver.fitness.lift(LIMIT)
            self._driver.fitness.lift(LOST)
            log.info("log mended", node=self._id)
            return
        self._driver.fitness.limit(LIMIT, self._reason(damaged), may_lead=False)
        self._work()

    @property
    def _id(self) -> int:
        return self._driver.raw.raft.id

    def _reason(self, damaged: Sequence[int]) -> str:
        what = (
            f"{len(damaged)} of this node's log records are damaged, the first is entry {damaged[0]}: it "
            "does not lead, and acknowledges nothing from there on"
        )
        if self._driver.raw.raft.peers:
            return f"{what}, until it has them again from the other nodes; nothing needs to be done"
        return (
            f"{what}. No other node holds them: stop this node, and go on without them by `raftstate recover "
            "DIR --accept-loss`, or restore a copy of its folder"
        )

    def _forget(self) -> None:
        self._wanted, self._asked = None, NONE
        self._tried.clear()
        self._compacted.clear()
        self._holding.clear()
        self._pause_s = PAUSE_S_MIN
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._clock.call_later(delay_s, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        if self._wanted is not None:
            self._tried.add(self._asked)
            self._wanted = None
        if self._driver.running:
            self._work()

    def _work(self) -> None:
        """Take the next step: cut the log, or ask somebody, or wait."""
        damaged = self._disk.damaged
        if not damaged or self._writing or self._wanted is not None:
            return
        if self._cut(damaged[-1]):
            return
        # What is applied durably will be cut off, as soon as nothing behind it is damaged.
        durable_index = self._durable_index()
        wanted = self._next([index for index in damaged if index > durable_index] or damaged)
        peer = self._next_peer()
        if peer != NONE:
            request = RecordsRequest(*wanted)
            self._wanted, self._asked = wanted, peer
            self._network.send(peer, request)  # what is lost is asked for again, of another one
            self._wait(REPLY_S)
            return
        if self._compacted and not self._holding:
            self._need_snapshot(damaged[-1])
        self._tried.clear()
        self._compacted.clear()
        self._holding.clear()
        self._pause()

    def _pause(self) -> None:
        self._wait(self._pause_s)
        self._pause_s = min(self._pause_s * 2, PAUSE_S_MAX)

    def _cut(self, last: int) -> bool:
        """Cut the log behind the last damaged entry, if all up to the next one is durably applied."""
        at_end = last == self._driver.raw.raft.raft_log.storage.last_index()
        boundary = last if at_end else last + 1
        if boundary > self._durable_index():
            return False
        log.warning("damaged log records were applied already; the log is cut", boundary=boundary)
        self._writing, self._before = True, self._disk.damaged
        self._disk.compact(boundary, self._written)
        return True

    def _next(self, damaged: Sequence[int]) -> _Wanted:
        """The first damaged records that stand side by side. All of them, and the anchor, are durable."""
        storage = self._driver.raw.raft.raft_log.storage
        first = last = damaged[0]
        for index in damaged[1:]:
            if index != last + 1:
                break
            last = index
        anchor = min(last + 1, storage.last_index())
        try:
            return _Wanted(first, last, anchor, storage.term(anchor))
        except Damaged:
            # Found just now; the log knows it from here on.
            return self._next(self._disk.damaged)

    def _next_peer(self) -> int:
        """The leader first; NONE: all were tried, or speak an older protocol."""
        raft = self._driver.raw.raft
        able = [
            peer
            for peer in raft.peers
            if peer not in self._tried and self._driver.upkeep.knows(peer) >= MEMBERSHIP_SINCE
        ]
        return raft.lead if raft.lead in able else able[0] if able else NONE

    def _answered(self, sender: int, reply: RecordsReply) -> None:
        wanted = self._wanted
        if wanted is None or (sender, reply.first, reply.anchor) != (
            self._asked,
            wanted.first,
            wanted.anchor,
        ):
            return
        self._wanted = None
        entries, anchor = self._believed(wanted, reply)
        if entries:
            self._writing, self._before = True, self._disk.damaged
            self._disk.refill(entries, anchor, self._written)
            return
        self._tried.add(sender)
        (self._compacted if reply.boundary >= wanted.first else self._holding).add(sender)
        self._work()

    def _believed(
        self, wanted: _Wanted, reply: RecordsReply
    ) -> tuple[Sequence[Entry], tuple[int, int] | None]:
        """Those of the entries that this log held for certain, and the anchor that says so."""
        entries = reply.entries
        for index, entry in enumerate(entries, wanted.first):
            if entry.index != index or index > wanted.last:
                log.warning("records that were not asked for", first=wanted.first, got=entry.index)
                return (), None
        if reply.anchor_term and reply.anchor_term == wanted.anchor_term:
            return entries, (wanted.anchor, wanted.anchor_term)
        committed = min(self._driver.raw.raft.raft_log.committed, reply.commit)
        return [entry for entry in entries if entry.index <= committed], None

    def _written(self, error: BaseException | None) -> None:
        self._writing = False
        if not self._driver.running:
            return
        if error is not None and is_full(error):
            self._pause()  # nothing was written, and there will be room again
            return
        if error is not None:
            self._driver.halt(error)
            return
        if self._disk.damaged is self._before:
            self._pause()  # the log has moved on meanwhile
            return
        self._forget()
        self._driver.look_at_log()  # which goes on with what is left

    # -- as the one that is asked

    def _answer(self, sender: int, request: RecordsRequest) -> None:
        raft = self._driver.raw.raft
        raft_log = raft.raft_log
        entries: list[Entry] = []
        anchor_term = 0
        try:
            anchor_term = raft_log.term_or_zero(request.anchor)
            end = min(request.last, raft_log.last_index()) + 1
            if raft_log.first_index() <= request.first < end:
                entries = raft_log.slice(request.first, end, RECORDS_BYTES_MAX)
        except (Compacted, Damaged) as error:
            # It has them no more, or not better than the one that asks.
            if isinstance(error, Damaged):
                self._driver.met_damage(error)
        boundary = raft_log.first_index() - 1
        self._network.send(
            sender,
            RecordsReply(request.first, entries, request.anchor, anchor_term, raft_log.committed, boundary),
        )
        # Terms never decrease along a log: what stands before the anchor has no higher one there.
        another = anchor_term not in (0, request.anchor_term)
        if raft.state is Role.LEADER and entries and (another or entries[-1].term > request.anchor_term):
            self._replace(sender, request)

    def _replace(self, sender: int, request: RecordsRequest) -> None:
        """As leader, send a peer what stands here from its damaged records to its anchor: it holds other
        entries there, which were never committed."""
        raft = self._driver.raw.raft
        raft_log = raft.raft_log
        previous = request.first - 1
        try:
            previous_term = raft_log.term(previous)
            end = min(request.anchor, raft_log.last_index()) + 1
            entries = raft_log.slice(request.first, end, RECORDS_BYTES_MAX)
        except (Compacted, Damaged):
            return
        append = Message(
            MessageType.APP,
            to=sender,
            from_=raft.id,
            term=raft.term,
            log_term=previous_term,
            index=previous,
            entries=entries,
            commit=raft_log.committed,
        )
        self._network.send(sender, append)
