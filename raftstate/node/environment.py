"""What a driver needs of the world, as arguments: time, disk, network and a place to apply entries.

The server passes real ones (asyncio, LMDB, TCP); tests pass their own. All callbacks come on the
driver's own thread, and nothing here blocks: whoever implements it takes slow work elsewhere.

Also here: the bodies that travel between peers beside the core's messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from raftstate.core.types import ConfState, Entry, HardState, Message, SnapshotMetadata
from raftstate.machine.types import EntryResult, Fault, Item, ItemResult, Uint
from raftstate.node.member_changes import MemberRequest, MembersChanged

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


class SnapshotOffer(msgspec.Struct, array_like=True, frozen=True, tag=10):
    """A leader has a snapshot for a follower that its log can't help any more. The core's message travels in
    here, and is given to the receiver's core only once the receiver holds all bytes."""

    id: int
    """Unique at the sender for as long as it runs; grows with each offer."""
    message: Message
    size_bytes: int
    """Of the file."""
    raw_bytes: int
    """About what the state takes on the receiver's disk."""


class SnapshotPull(msgspec.Struct, array_like=True, frozen=True, tag=11):
    """The receiver has room for so many bytes from `offset` on. At the file's end, with 0 bytes: it has all
    of it, and is still verifying."""

    id: int
    offset: int
    window_bytes: int


class SnapshotChunk(msgspec.Struct, array_like=True, frozen=True, tag=12):
    """Some bytes of the file, from `offset` on."""

    id: int
    offset: int
    data: bytes


class SnapshotFinished(msgspec.Struct, array_like=True, frozen=True, tag=13):
    """The receiver needs no more of an offer: it is installed or not needed (`ok`), or refused.

    `damaged`: the bytes themselves were wrong, so that nobody else should be sent them.
    """

    id: int
    ok: bool
    reason: str = ""
    damaged: bool = False


class SnapshotWithdrawn(msgspec.Struct, array_like=True, frozen=True, tag=14):
    """The sender gives nothing more of that offer."""

    id: int
    reason: str


class ChangeMembers(msgspec.Struct, array_like=True, frozen=True, tag=20):
    """A node asks the leader to change the membership. Sent once, as Forward is."""

    id: int
    """Unique at the sender for as long as it runs."""
    timeout_ms: int
    request: MemberRequest


class ChangeMembersReply(msgspec.Struct, array_like=True, frozen=True, tag=21):
    """The answer to the ChangeMembers of that id; exactly one of the two is set."""

    id: int
    changed: MembersChanged | None = None
    rejected: Rejected | None = None


class Announce(msgspec.Struct, array_like=True, frozen=True, tag=22):
    """Under which addresses the sender is reached, where its record has others. Sent to everybody, again and
    again: as long as the record is wrong the sender may not hear who leads. It has no answer."""

    peer_address: str
    client_address: str


class RecordsRequest(msgspec.Struct, array_like=True, frozen=True, tag=30):
    """A node asks a peer for entries whose records are damaged in its own log.

    `anchor` is the first entry at or behind them whose term it knows, and `anchor_term` that term.
    """

    first: int
    last: int
    anchor: int
    anchor_term: int


class RecordsReply(msgspec.Struct, array_like=True, frozen=True, tag=31):
    """The answer to a RecordsRequest for `first`: as many of the entries as are at hand, from there on."""

    first: int
    entries: list[Entry]
    anchor: int
    anchor_term: int
    """What the answering node holds there; 0: nothing that it can read."""
    commit: int
    boundary: int
    """The last entry that the answering node has compacted away."""


class ReplaceRequest(msgspec.Struct, array_like=True, frozen=True, tag=32):
    """A node that has lost its log asks for its replacement by an empty one, under a new incarnation.

    `incarnation`: the one that it had.
    """

    incarnation: Uint


class ReplaceReply(msgspec.Struct, array_like=True, frozen=True, tag=33):
    """The answer to a ReplaceRequest: the new incarnation, applied by the leader; or 0, and why not (yet)."""

    incarnation: Uint
    refusal: str = ""


class RepairRequest(msgspec.Struct, array_like=True, frozen=True, tag=41):
    """Asks for a copy of the receiver's state that ends with entry `min_index` or later. Sent again and again
    until an offer, or no offer, is the answer."""

    id: Uint
    """Drawn by the asker for each copy."""
    min_index: Uint


class RepairOffer(msgspec.Struct, array_like=True, frozen=True, tag=42):
    """The answer to the request of that id: a copy (`metadata`), or none yet: it is being made; or none at
    all (`refusal`). The core is told nothing of it."""

    id: Uint
    metadata: SnapshotMetadata | None = None
    size_bytes: Uint = 0
    """Of the file."""
    raw_bytes: Uint = 0
    """About what the state takes on the asker's disk."""
    refusal: str = ""


class RepairPull(msgspec.Struct, array_like=True, frozen=True, tag=43):
    """Asks for some bytes of the copy that was offered under that id."""

    id: Uint
    offset: Uint
    size: Uint


class RepairChunk(msgspec.Struct, array_like=True, frozen=True, tag=44):
    """Some bytes of it."""

    id: Uint
    offset: Uint
    data: bytes


PeerBody = (
    Message
    | Forward
    | ForwardReply
    | TransferLeader
    | LeaseStamp
    | SnapshotOffer
    | SnapshotPull
    | SnapshotChunk
    | SnapshotFinished
    | SnapshotWithdrawn
    | ChangeMembers
    | ChangeMembersReply
    | Announce
    | RecordsRequest
    | RecordsReply
    | ReplaceRequest
    | ReplaceReply
    | Digests
    | RepairRequest
    | RepairOffer
    | RepairPull
    | RepairChunk
)
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

    def install(
        self, publish: Callable[[], None], hard_state: HardState, index: int, term: int, done: Done
    ) -> None:
        """In order with the appends: call `publish`, which may block, then begin the log anew behind the
        boundary (`index`, `term`), and save `hard_state`, whose commit index is `index`. `done` as for
        `append`."""
        ...

    @property
    def damaged(self) -> Sequence[int]:
        """The indexes of the records known to be damaged, ascending; another object whenever that has
        changed."""
        ...

    def refill(self, entries: Sequence[Entry], anchor: tuple[int, int] | None, done: Done) -> None:
        """Write damaged records anew, in place, if the log still holds the `anchor` (index, term); None: they
        are committed. What is sound stays as it is. `done` as for `append`."""
        ...

    def compact(self, to_index: int, done: Done) -> None:
        """Remove the entries up to `to_index`, which are durably applied; `done` as for `append`."""
        ...

    @property
    def outstanding_since_ns(self) -> int | None:
        """When the oldest request that is not durable yet was given, in the clock's time; None: all are."""
        ...


class PreparedState(Protocol):
    """A whole state on this node's disk, verified and durable, that is not the current one."""

    @property
    def cluster_id(self) -> int:
        """The cluster that it is of."""
        ...

    @property
    def metadata(self) -> SnapshotMetadata:
        """Up to where it is applied, and its configuration."""
        ...

    def discard(self) -> None:
        """Remove it. Harmless once it is current: then it stays."""
        ...


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """A snapshot of this node's state, ready to be sent."""

    name: str
    metadata: SnapshotMetadata
    size_bytes: int
    raw_bytes: int
    """About what the state takes on disk."""


class SnapshotBuild(Protocol):
    """A state being built of a snapshot's bytes, beside the one in use. What was asked for is done in order;
    an error is final."""

    def feed(self, data: bytes, done: Done) -> None:
        """Take the next bytes; `done` comes when they are worked in."""
        ...

    def finish(self, done: Callable[[PreparedState | BaseException], None]) -> None:
        """All bytes were given: verify everything, and make it durable."""
        ...

    def discard(self) -> None:
        """Give it up, and remove what there is; no `done` comes any more. Harmless after `finish` is done."""
        ...


class SnapshotDisk(Protocol):
    """Makes snapshots of this node's state, and states of other nodes' snapshots."""

    def make(self, done: Callable[[SnapshotFile | BaseException], None]) -> Callable[[], None]:
        """Write a snapshot of the state as it is now; return what cancels that: then no `done` comes."""
        ...

    def read(
        self, file: SnapshotFile, offset: int, size: int, done: Callable[[bytes | BaseException], None]
    ) -> None:
        """Read a part of a file."""
        ...

    def remove(self, file: SnapshotFile) -> None:
        """Remove a file that was made."""
        ...

    def why_no_room(self, raw_bytes: int) -> str:
        """Return why a state of so many bytes has no room on the disk, for people; empty: it has."""
        ...

    def build(self) -> SnapshotBuild:
        """Begin to build a state. One at a time."""
        ...

    def make_current(self, prepared: PreparedState) -> None:
        """Let the next start open `prepared`, durably. Blocks; may be called on any thread."""
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

    def adopt(self, prepared: PreparedState, done: Callable[[], None]) -> None:
        """Go on with a state that has become current. What waits to be applied is part of it, and forgotten;
        `done` comes once readers see it, and the machine is loaded from it."""
        ...


class Network(Protocol):
    """Sends to peers. Nothing is promised but that what arrives is what was sent."""

    def send(self, to: int, body: PeerBody) -> bool:
        """Send, and return True; or return False when it is certain that nothing was sent."""
        ...
