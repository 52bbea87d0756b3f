"""What one watch has received, and from where it goes on: no I/O and no clock.

    revision, seen    the resume point: every event below `revision` was received, and `seen` events of it

A new creation of the watch, on whichever node, begins at `revision` and passes over the first `seen` events:
those of one revision always come in the same order. A progress note moves the point past its revision. So
nothing is missed and nothing comes twice, wherever a stream breaks; and what lies below the point is never
taken, whoever sends it.

The loop's thread puts events in; one other thread may take them out.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

from raftstate.client.results import key_value
from raftstate.client.types import KeyValue
from raftstate.errors import RaftstateError
from raftstate.pb.v1 import watch_pb2

BYTES_MAX = 4 << 20
"""A watch with events of so many bytes that nobody has taken is not sent more."""
REFILL_PART = 4
"""It is sent more when a fourth of that is left: the first of them arrive before the last is taken."""

EVENT_BYTES = 250
"""What an event takes in memory beside its keys and values, so that 16,000 small ones fill an inbox."""

EventKind = Literal["put", "delete"]


class WatchEvent(msgspec.Struct, frozen=True):
    """One change to a key.

    `kv`: the pair as put; of a deletion its key and, as `mod_revision`, the revision of the deletion.
    `prev_kv`: the pair before, if asked for, if there was one, and if it is not compacted.
    """

    kind: EventKind
    kv: KeyValue
    prev_kv: KeyValue | None = None

    @property
    def key(self) -> bytes:
        """The key that was changed."""
        return self.kv.key

    @property
    def value(self) -> bytes:
        """What was put; empty for a deletion."""
        return self.kv.value

    @property
    def revision(self) -> int:
        """The revision that made the change."""
        return self.kv.mod_revision


class Batch(NamedTuple):
    """Events in the order of their revisions, with what every watch that gets them needs to know of them.

    `count_of_last`: how many of them are of the revision `last`.
    """

    events: Sequence[WatchEvent]
    first: int
    last: int
    count_of_last: int
    bytes: int


def batch_of(events: Sequence[WatchEvent]) -> Batch:
    """Return events, of which there must be at least one, as a batch."""
    last = events[-1].kv.mod_revision
    count = 0
    for event in reversed(events):
        if event.kv.mod_revision != last:
            break
        count += 1
    return Batch(events, events[0].kv.mod_revision, last, count, sum(map(_bytes_of, events)))


def decode(messages: Sequence[watch_pb2.Event]) -> Batch:
    """Return events as they came, of which there must be at least one."""
    return batch_of(
        [
            WatchEvent(
                "delete" if message.kind else "put",
                key_value(message.kv),
                key_value(message.prev_kv) if message.HasField("prev_kv") else None,
            )
            for message in messages
        ]
    )


def _bytes_of(event: WatchEvent) -> int:
    kv, prev_kv = event.kv, event.prev_kv
    count = len(kv.key) + len(kv.value) + EVENT_BYTES
    return count if prev_kv is None else count + len(prev_kv.key) + len(prev_kv.value)


class Inbox:
    """One watch of a client. `request`: what it wants, as first asked.

    `watch_id` is that of its present creation; 0: it has none. `parked`: it was ended at the node until its
    events are taken. `error`: why no more will come. `attempts`: how often in sequence it could not be
    created. `news` is set when there is something to look at.
    """

    __slots__ = (
        "_bytes_in",
        "_bytes_out",
        "_handed_out",
        "_skip",
        "attempts",
        "created",
        "error",
        "events",
        "news",
        "parked",
        "request",
        "revision",
        "seen",
        "watch_id",
    )

    def __init__(self, request: watch_pb2.WatchCreate) -> None:
        self.request = request
        self.revision: int = request.start_revision
        self.seen = 0
        self.events: deque[WatchEvent] = deque()
        self.news = asyncio.Event()
        self.watch_id = 0
        self.created = False
        self.parked = False
        self.error: RaftstateError | None = None
        self.attempts = 0
        self._skip = 0
        self._handed_out: int | None = None
        # Two counters, each written by one thread only.
        self._bytes_in = 0
        self._bytes_out = 0

    # ---- from the node

    def begin(self, watch_id: int) -> watch_pb2.WatchRequest:
        """Return the request that creates the watch from its resume point. A start that no node has promised
        yet is asked for as it was first: from now on.
        """
        self.watch_id = watch_id
        self._skip = self.seen
        request = watch_pb2.WatchRequest(create=self.request)
        request.create.watch_id = watch_id
        request.create.start_revision = self.revision
        return request

    def confirm(self, start_revision: int) -> None:
        """A node has created it. The first one that does says where a watch from now on begins."""
        if not self.revision:
            self.revision = start_revision
        self.created = True
        self.attempts = 0
        self.news.set()

    def receive(self, batch: Batch) -> None:
        """Take events, without those that it has had."""
        if batch.first < self.revision or (self._skip and batch.first == self.revision):
            unseen = self._unseen(batch.events)
            if not unseen:
                return
            batch = batch_of(unseen)
        self._skip = 0
        seen_before = self.seen if batch.last == self.revision else 0
        self._bytes_in += batch.bytes
        # The events first: whoever reads the resume point must find all below it.
        self.events.extend(batch.events)
        self.seen = batch.count_of_last + seen_before
        self.revision = batch.last
        self.news.set()

    def _unseen(self, events: Sequence[WatchEvent]) -> list[WatchEvent]:
        unseen = []
        for event in events:
            revision = event.kv.mod_revision
            if revision < self.revision:
                continue
            if revision == self.revision and self._skip:
                self._skip -= 1
                continue
            unseen.append(event)
        return unseen

    def advance(self, revision: int) -> None:
        """All events up to a revision have come. A node that is behind the resume point says nothing new."""
        if revision >= self.revision:
            self.revision = revision + 1
            self.seen = self._skip = 0

    def end(self, error: RaftstateError) -> None:
        """No more will come, for this reason; the first one counts."""
        if self.error is None:
            self.error = error
        self.parked = False
        self.news.set()

    # ---- to the consumer

    @property
    def is_full(self) -> bool:
        """Whether it holds as much as it may."""
        return self._bytes_in - self._bytes_out >= BYTES_MAX

    @property
    def wants_more(self) -> bool:
        """Whether it was parked, and has been emptied since."""
        return self.parked and self._bytes_in - self._bytes_out <= BYTES_MAX // REFILL_PART

    @property
    def handed_out(self) -> int:
        """The last revision of which, as of all before it, every event was taken."""
        if self._handed_out is not None:
            return self._handed_out
        # Read before the events: what it promises stood there by then.
        received = self.revision
        try:
            return self.events[0].kv.mod_revision - 1
        except IndexError:
            return max(0, received - 1)

    def take(self) -> WatchEvent | None:
        """Return the next event; None: there is none now."""
        try:
            event = self.events.popleft()
        except IndexError:
            return None
        self._bytes_out += _bytes_of(event)
        return event

    def drop(self) -> None:
        """Forget the events that were not taken; nothing more comes. They were not handed out."""
        # First, so that what another thread takes meanwhile is at worst handed out twice.
        self._handed_out = self.handed_out
        self.events.clear()
