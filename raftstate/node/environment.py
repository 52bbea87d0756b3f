"""What a driver needs of the world, as arguments: time, disk, network and a place to apply entries.

The server passes real ones (asyncio, LMDB, TCP); tests pass their own. All callbacks come on the
driver's own thread, and nothing here blocks: whoever implements it takes slow work elsewhere.

Also here: the bodies that travel between peers beside the core's messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from raftstate.core.types import ConfState, Entry, HardState, Message
from raftstate.machine.types import EntryResult, Fault, Item, ItemResult, Uint

Done = Callable[[BaseException | None], None]


class TransferLeader(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """A request to hand leadership to `target` (0: to the voter whose log is the most up to date). It has no
    answer: the asker sees the leader change, or does not."""

    target: int


class Forward(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """A follower asks the leader to do something. Sent once: no forwarder ever sends a command again."""

    id: int
    """Unique at the sender for as long as it runs."""
    timeout_ms: int
    commands: int
    """How many commands the item holds, so that the leader can fill its entries without parsing it."""
    item: Item


class Executed(msgspec.Struct, array_like=True, frozen=True):
    """A committed and applied item: the index of its entry, the revision after it, and the result."""

    index: int
    revision: int
    result: ItemResult


class Rejected(msgspec.Struct, array_like=True, frozen=True):
    """An item that has no result.

    `applied_never`: it is certain that it was not, and will not be, applied.
    """

    fault: Fault
    applied_never: bool


class ForwardReply(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """The answer to the Forward of that id; exactly one of the two is set."""

    id: int
    executed: Executed | None = None
    rejected: Rejected | None = None


class LeaseStamp(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """A leader's lease clock, for its peers: whoever leads next goes on from it, though no entry was stamped
    for a while."""

    lease_clock_ms: Uint


class Digests(msgspec.Struct, array_like=True, frozen=True, tag=40):
    """What the machine's digest was at some indexes, ascending.

    `life`: drawn anew whenever the sender's state was not made by applying alone (a start, an install, a
    repair): what it said before is then of another state, and void.
    """

    life: Uint
    points: list[tuple[Uint, Uint]]


PeerBody = Message | Forward | ForwardReply | TransferLeader | LeaseStamp | Digests
Outcome = Executed | Rejected
Reply = Callable[[Outcome], None]


class Timer(Protocol):
    """A pending call."""

    def cancel(self) -> None:
        """Forget the call; harmless when it was made."""
        ...


class Clock(Protocol):
    """Time, and calls in time."""

    def monotonic_ns(self) -> int:
        """Return a time that never goes back and is not slewed."""
        ...

    def boot_ns(self) -> int:
        """Return a time that never goes back and runs on while the machine sleeps."""
        ...

    def wall_ns(self) -> int:
        """Return the time of day, for display only."""
        ...

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call back once after `delay_s` seconds."""
        ...

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call back after the events that are waiting now."""
        ...


class LogDisk(Protocol):
    """Writes the log. Requests become durable in the order in which they were given."""

    def append(self, hard_state: HardState | None, entries: Sequence[Entry], done: Done) -> None:
        """Call `done(None)` once this and all earlier requests are durable.

        Or call it with what went wrong: then no later request will be durable either.
        """
        ...

    @property
    def outstanding_since_ns(self) -> int | None:
        """When the oldest request that is not durable yet was given, in the clock's time; None: all are."""
        ...


class Applier(Protocol):
    """Applies committed entries, in order."""

    def apply(
        self,
        entries: Sequence[Entry],
        conf_states: Mapping[int, ConfState],
        done: Callable[[list[EntryResult]], None],
        *,
        lazily: bool,
    ) -> None:
        """Apply entries; call `done` with their results once readers can see them. A failure halts the node.

        `lazily`: nobody waits for them, so they may wait a moment for more to share a transaction with.
        """
        ...

    @property
    def is_beside(self) -> bool:
        """Whether entries are being applied on a thread: nobody else may use the machine meanwhile."""
        ...

    def hurry(self) -> None:
        """Apply at once what was left to wait: somebody waits for it now."""
        ...


class Network(Protocol):
    """Sends to peers. Nothing is promised but that what arrives is what was sent."""

    def send(self, to: int, body: PeerBody) -> bool:
        """Send, and return True; or return False when it is certain that nothing was sent."""
        ...
