"""Read-index requests, as a leader serves them.

May live here: whether a request waits, for what, and its answer; the counting of confirmations is
`read_only`'s. A read index is the commit index at the moment the request arrived, and it is only given by a
node that led at that moment or later. Requests may be lost (a change of role or of configuration drops
them, a message may not arrive): whoever asked asks again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftstate.core import replication
from raftstate.core.config import ReadOnlyOption
from raftstate.core.types import NONE, Message, MessageType, ReadState

if TYPE_CHECKING:
    from raftstate.core.raft import Raft


def handle_read_index(raft: Raft, message: Message) -> None:
    """Take a request of this node or a follower; its context is the data of its only entry."""
    if len(message.entries) != 1:
        return
    log = raft.raft_log
    if log.term_or_zero(log.committed) == raft.term:
        _begin(raft, message)
    else:
        # The commit index of a new leader may lag behind what its predecessors acknowledged, even if it is
        # the only voter: a change of the commit index alone is not made durable at once (Raft thesis, 6.4).
        raft.postponed_reads.append(message)


def release_postponed(raft: Raft) -> None:
    """Begin the requests that waited for the first commit in this leader's term, which has come about."""
    if raft.postponed_reads:
        postponed, raft.postponed_reads = raft.postponed_reads, []
        for message in postponed:
            _begin(raft, message)


def answer(raft: Raft, request: Message, index: int) -> None:
    """Give `request` its read index."""
    if request.from_ in (NONE, raft.id):
        raft.read_states.append(ReadState(index=index, context=request.entries[0].data))
    else:
        raft.send(
            Message(MessageType.READ_INDEX_RESP, to=request.from_, index=index, entries=list(request.entries))
        )


def _begin(raft: Raft, message: Message) -> None:
    committed = raft.raft_log.committed
    if raft.tracker.is_singleton() or raft.read_only.option is ReadOnlyOption.LEASE_BASED:
        answer(raft, message, committed)
        return
    raft.read_only.add(committed, message)
    raft.read_only.acknowledge(raft.id, raft.read_only.context())
    replication.broadcast_heartbeat(raft)
