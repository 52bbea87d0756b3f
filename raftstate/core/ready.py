"""What a node wants done: to be stored, sent and applied.

May live here: `Ready` and the storage messages made from it. The rules for whoever handles a `Ready`:

Synchronous mode: write `entries`, `hard_state` and `snapshot` (durably if `must_sync`), then send
`messages`, apply `committed_entries`, and call `advance`. Asynchronous mode: send `messages`, of which one
may go to LOCAL_APPEND_THREAD and one to LOCAL_APPLY_THREAD; each of these two does what its messages say,
in order, and passes on their `responses` when it is done (STORAGE_APPEND: durably done). The other fields
then only describe what the messages carry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from raftstate.core.roles import Role
from raftstate.core.types import (
    LOCAL_APPEND_THREAD,
    LOCAL_APPLY_THREAD,
    NONE,
    Entry,
    HardState,
    Message,
    MessageType,
    ReadState,
    Snapshot,
)

if TYPE_CHECKING:
    from raftstate.core.raft import Raft


class SoftState(msgspec.Struct, frozen=True):
    """What changes without being stored."""

    lead: int = NONE
    role: Role = Role.FOLLOWER


class Ready(msgspec.Struct):
    """Work that one node hands out. Nothing in it may be changed by the receiver."""

    soft_state: SoftState | None = None
    """The leader and the role, if either changed."""
    hard_state: HardState | None = None
    """Term, vote and commit index, if any of them changed: one value, to be written in one piece with
    `entries`."""
    read_states: list[ReadState] = []
    """Read-index requests that were answered."""
    entries: list[Entry] = []
    """Entries to write, replacing whatever stands at or after the first of them."""
    snapshot: Snapshot | None = None
    """A snapshot to install in place of the whole log."""
    committed_entries: list[Entry] = []
    """Entries to apply, in order."""
    messages: list[Message] = []
    """Messages to send."""
    must_sync: bool = False
    """Whether what is to be written must be durable before the messages leave; False if only the commit
    index moved. It speaks of entries and hard state, as etcd's does: a snapshot always has to be durable."""


def storage_append(raft: Raft, ready: Ready) -> Message:
    """Return the message that tells the log's writer what to write, and whom to tell when that is durable."""
    message = Message(
        MessageType.STORAGE_APPEND,
        to=LOCAL_APPEND_THREAD,
        from_=raft.id,
        entries=ready.entries,
        snapshot=ready.snapshot,
        responses=raft.messages_after_append,
    )
    if ready.hard_state is not None:
        message.term = ready.hard_state.term
        message.vote = ready.hard_state.vote
        message.commit = ready.hard_state.commit
    response = storage_append_response(raft, ready)
    if response is not None:
        # Last, so that a leader takes its own acknowledgement while the entries' terms are still at hand.
        message.responses.append(response)
    return message


def storage_append_response(raft: Raft, ready: Ready) -> Message | None:
    """Return what tells this node that all handed out so far is durable; None if it needs no telling.

    It vouches for the *last* unstable entry, not for those of this `Ready`, and carries the present term:
    an answer from an earlier term is not believed, because a later write, still under way, may replace what
    it speaks of and be replaced in turn by entries of the same index and term (the ABA race). Since every
    change of term is itself a write, whose answer then speaks for the entries that are still there, none
    stays unstable for ever.
    """
    log = raft.raft_log
    if not log.unstable.entries and ready.snapshot is None:
        return None
    message = Message(
        MessageType.STORAGE_APPEND_RESP,
        to=raft.id,
        from_=LOCAL_APPEND_THREAD,
        term=raft.term,
        snapshot=ready.snapshot,
    )
    if log.unstable.entries:
        last = log.unstable.entries[-1]
        message.index = last.index
        message.log_term = last.term
    return message


def storage_apply(raft: Raft, entries: list[Entry]) -> Message:
    """Return the message that tells the state machine what to apply."""
    return Message(
        MessageType.STORAGE_APPLY,
        to=LOCAL_APPLY_THREAD,
        from_=raft.id,
        entries=entries,
        responses=[storage_apply_response(raft, entries)],
    )


def storage_apply_response(raft: Raft, entries: list[Entry]) -> Message:
    """Return what tells this node that `entries` are applied. What is committed belongs to no term."""
    return Message(MessageType.STORAGE_APPLY_RESP, to=raft.id, from_=LOCAL_APPLY_THREAD, entries=entries)
