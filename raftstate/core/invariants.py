"""What must hold of a node at every `Ready`, checked in production.

May live here: checks over one state, and over a state and the hard state before it. They cost a few
comparisons; what only a proof or a look at the whole cluster can show is the tests' business. A violation
is a bug of ours or a storage that lost something: the node must not go on from it.

      boundary <= applied <= applying <= committed <= last index (a pending snapshot is ahead of `applied`)
      term and commit index never fall; a vote given in a term stays given     (Raft paper, figure 2)
      a leader follows itself, and no peer is known to hold what it does not   (Raft paper, 5.4)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftstate.core.roles import Role
from raftstate.core.types import NONE, HardState
from raftstate.errors import InvariantError

if TYPE_CHECKING:
    from raftstate.core.raft import Raft


def check(raft: Raft, before: HardState) -> None:
    """Check `raft` as it is now, and against the hard state `before`, which was the last to be handed out.

    Raises:
        InvariantError: something does not hold; it says what, with both numbers.
    """
    _check_log(raft)
    _check_progress_of_time(raft, before)
    if raft.state is Role.LEADER:
        _check_leader(raft)


def _check_log(raft: Raft) -> None:
    log = raft.raft_log
    last = log.last_index()
    if not log.applied <= log.applying <= log.committed <= last:
        raise InvariantError(
            f"node {raft.id}: out of order: applied {log.applied}, applying {log.applying}, "
            f"committed {log.committed}, last index {last}"
        )
    if log.unstable.snapshot is None and log.first_index() > log.applied + 1:
        raise InvariantError(
            f"node {raft.id}: the log begins at {log.first_index()}, but only {log.applied} is applied: "
            "what lies between is lost"
        )


def _check_progress_of_time(raft: Raft, before: HardState) -> None:
    if raft.term < before.term:
        raise InvariantError(f"node {raft.id}: the term fell from {before.term} to {raft.term}")
    if raft.raft_log.committed < before.commit:
        raise InvariantError(
            f"node {raft.id}: the commit index fell from {before.commit} to {raft.raft_log.committed}"
        )
    if raft.term == before.term and before.vote not in (NONE, raft.vote):
        raise InvariantError(
            f"node {raft.id}, term {raft.term}: the vote changed from {before.vote} to {raft.vote}"
        )


def _check_leader(raft: Raft) -> None:
    if raft.lead != raft.id:
        raise InvariantError(f"node {raft.id} leads term {raft.term}, but takes {raft.lead} for its leader")
    last = raft.raft_log.last_index()
    for node_id, progress in raft.tracker.progress.items():
        if not 0 <= progress.match < progress.next or progress.match > last:
            raise InvariantError(
                f"node {raft.id}: of node {node_id} match is {progress.match}, next {progress.next}; "
                f"the last index is {last}"
            )
