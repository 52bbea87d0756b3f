"""What a leader knows about one peer's log, and how fast it may send to it.

    probe        the peer's last index is not known: one append at a time, until one is accepted
    replicate    appends are sent ahead of the answers, as far as the in-flight window allows
    snapshot     what the peer needs is compacted away: nothing is sent until it has a snapshot

`match` moves only by acknowledgements, and only forward; `next` is what was assumed when sending, and may be
taken back.

What may live here: the state of one peer and the rules that change it. Which message to send, and when, is
the leader's business.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import IntEnum

from raftstate.errors import InvariantError


class ProgressState(IntEnum):
    """How the leader talks to a peer; etcd's numbers."""

    PROBE = 0
    REPLICATE = 1
    SNAPSHOT = 2


class Inflights:
    """The appends that were sent to a peer and not yet acknowledged, limited in number and bytes.

    The limit in bytes is soft: a message is accepted as long as those before it are below the limit, so that
    one larger than the limit can be sent at all.

    Args:
        size: how many messages may be in flight, at least 1.
        max_bytes: how many bytes of entries may be in flight before the window closes; 0: no limit.

    Raises:
        InvariantError: `size` is below 1 or `max_bytes` below 0.
    """

    __slots__ = ("_bytes", "_messages", "max_bytes", "size")

    def __init__(self, size: int, max_bytes: int = 0) -> None:
        if size < 1 or max_bytes < 0:
            raise InvariantError(
                f"in-flight window: size={size}, max_bytes={max_bytes}; must be size >= 1, max_bytes >= 0"
            )
        self.size = size
        self.max_bytes = max_bytes
        self._messages: deque[tuple[int, int]] = deque()
        self._bytes = 0

    @property
    def count(self) -> int:
        """How many messages are in flight."""
        return len(self._messages)

    @property
    def bytes(self) -> int:
        """How many bytes of entries are in flight."""
        return self._bytes

    def full(self) -> bool:
        """Return whether no more may be sent for now."""
        return len(self._messages) >= self.size or 0 < self.max_bytes <= self._bytes

    def add(self, index: int, size_bytes: int) -> None:
        """Record a message as sent.

        Args:
            index: the index of its last entry, not below that of the message before.
            size_bytes: the bytes of its entries.

        Raises:
            InvariantError: the window is full, or `index` moves back.
        """
        if self.full():
            raise InvariantError(
                f"append up to index {index} sent into a full in-flight window: "
                f"{self.count} of {self.size} messages, {self._bytes} of {self.max_bytes} bytes"
            )
        if self._messages and index < self._messages[-1][0]:
            raise InvariantError(
                f"append up to index {index} sent after one up to index {self._messages[-1][0]}"
            )
        self._messages.append((index, size_bytes))
        self._bytes += size_bytes

    def free_le(self, index: int) -> None:
        """Forget the messages whose last entry is at or below `index`: they were acknowledged."""
        messages = self._messages
        while messages and messages[0][0] <= index:
            self._bytes -= messages.popleft()[1]

    def reset(self) -> None:
        """Forget all messages."""
        self._messages.clear()
        self._bytes = 0


@dataclass(slots=True)
class Progress:
    """One peer as the leader sees it.

    Raises:
        InvariantError: on construction and by every method, if `0 <= match < next` would not hold.
    """

    match: int
    """The index up to which the peer's log is known to equal the leader's. Invariant: 0 <= match < next."""

    next: int
    """The index of the next entry to send; what lies between `match` and it is in flight. Above `match`."""

    inflights: Inflights
    """The window of appends in flight; used in state REPLICATE."""

    state: ProgressState = ProgressState.PROBE
    """How the leader talks to the peer."""

    sent_commit: int = 0
    """The highest commit index sent. Taken back, to below `next`, when what was sent may be lost."""

    pending_snapshot: int = 0
    """In state SNAPSHOT the index of the snapshot that was sent, else 0."""

    recent_active: bool = False
    """Whether the peer was heard from since the last check of the quorum. Always true of the leader."""

    msg_app_flow_paused: bool = False
    """Whether appends wait for the next heartbeat response: a probe is out, or the window is full."""

    is_learner: bool = False
    """Whether the peer has no vote."""

    def __post_init__(self) -> None:
        self._check()

    def _check(self) -> None:
        if not 0 <= self.match < self.next:
            raise InvariantError(
                f"progress of a peer: match={self.match}, next={self.next}; must be 0 <= match < next"
            )

    def reset_state(self, state: ProgressState) -> None:
        """Enter `state` with nothing pending, nothing in flight and no pause."""
        self.msg_app_flow_paused = False
        self.pending_snapshot = 0
        self.state = state
        self.inflights.reset()

    def become_probe(self) -> None:
        """Probe from behind what is known to match, or from behind a pending snapshot if that is further."""
        after_snapshot = self.pending_snapshot + 1 if self.state is ProgressState.SNAPSHOT else 0
        self.reset_state(ProgressState.PROBE)
        self.next = max(self.match + 1, after_snapshot)
        self.sent_commit = min(self.sent_commit, self.next - 1)
        self._check()

    def become_replicate(self) -> None:
        """Send ahead, from behind what is known to match."""
        self.reset_state(ProgressState.REPLICATE)
        self.next = self.match + 1
        self._check()

    def become_snapshot(self, index: int) -> None:
        """Wait for the peer to install the snapshot of `index`.

        Raises:
            InvariantError: the peer is known to match beyond that index.
        """
        self.reset_state(ProgressState.SNAPSHOT)
        self.pending_snapshot = index
        self.next = index + 1
        self.sent_commit = index
        self._check()

    def sent_entries(self, count: int, size_bytes: int) -> None:
        """Record that an append was sent which begins at `next`.

        Args:
            count: how many entries it carries, possibly 0.
            size_bytes: their bytes together.

        Raises:
            InvariantError: the peer waits for a snapshot, or its in-flight window was full already.
        """
        if self.state is ProgressState.REPLICATE:
            if count > 0:
                self.next += count
                self.inflights.add(self.next - 1, size_bytes)
            self.msg_app_flow_paused = self.inflights.full()
        elif self.state is ProgressState.PROBE:
            # An empty append does not pause: heartbeats and commit indexes may still follow it (as in etcd).
            if count > 0:
                self.msg_app_flow_paused = True
        else:
            raise InvariantError(
                f"append of {count} entries from index {self.next} sent to a peer "
                f"that waits for snapshot {self.pending_snapshot}"
            )

    def can_bump_commit(self, index: int) -> bool:
        """Return whether sending commit index `index` can move the peer's, given what was sent before."""
        return index > self.sent_commit and self.sent_commit < self.next - 1

    def maybe_update(self, index: int) -> bool:
        """Take an acknowledgement.

        Args:
            index: the highest index that the peer confirmed.

        Returns:
            False if that was known already, so that nothing changed; else True.
        """
        if index <= self.match:
            return False
        self.match = index
        self.next = max(self.next, index + 1)
        self.msg_app_flow_paused = False
        self._check()
        return True

    def maybe_decr_to(self, rejected: int, match_hint: int) -> bool:
        """Take a rejected append and choose where to send from next.

        Args:
            rejected: the index that the rejected append followed.
            match_hint: the highest index at which the two logs may agree, by the peer's answer.

        Returns:
            False if the rejection is of an append that no longer matters, so that nothing changed; else True.
        """
        if self.state is ProgressState.REPLICATE:
            if rejected <= self.match:
                return False
            self.next = self.match + 1
        else:
            # Outside REPLICATE one append is out at a time, so that a rejection of any other is a late one.
            if rejected != self.next - 1:
                return False
            self.next = max(min(rejected, match_hint + 1), self.match + 1)
            self.msg_app_flow_paused = False
        self.sent_commit = min(self.sent_commit, self.next - 1)
        self._check()
        return True

    def is_paused(self) -> bool:
        """Return whether entries are held back for now."""
        return self.state is ProgressState.SNAPSHOT or self.msg_app_flow_paused
