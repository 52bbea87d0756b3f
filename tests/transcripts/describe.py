"""How etcd prints a configuration, progress and acknowledged indexes; its transcripts hold these texts."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from raftstate.core.membership import TrackerConfig
from raftstate.core.progress import Progress, ProgressState
from raftstate.core.quorum import UNBOUNDED_INDEX, JointConfig, VoteResult

_STATE_NAMES = {
    ProgressState.PROBE: "StateProbe",
    ProgressState.REPLICATE: "StateReplicate",
    ProgressState.SNAPSHOT: "StateSnapshot",
}
_VOTE_RESULT_NAMES = {
    VoteResult.PENDING: "VotePending",
    VoteResult.LOST: "VoteLost",
    VoteResult.WON: "VoteWon",
}


def describe_index(index: int) -> str:
    return "∞" if index == UNBOUNDED_INDEX else str(index)


def describe_vote_result(result: VoteResult) -> str:
    return _VOTE_RESULT_NAMES[result]


def describe_ids(ids: Collection[int]) -> str:
    return "(" + " ".join(f"{node_id:x}" for node_id in sorted(ids)) + ")"


def describe_voters(voters: JointConfig) -> str:
    halves = [voters.incoming, voters.outgoing] if voters.outgoing else [voters.incoming]
    return "&&".join(describe_ids(half) for half in halves)


def describe_config(config: TrackerConfig) -> str:
    parts = [f"voters={describe_voters(config.voters)}"]
    if config.learners:
        parts.append(f"learners={describe_ids(config.learners)}")
    if config.learners_next:
        parts.append(f"learners_next={describe_ids(config.learners_next)}")
    if config.auto_leave:
        parts.append("autoleave")
    return " ".join(parts)


def describe_progress(progress: Progress) -> str:
    parts = [_STATE_NAMES[progress.state], f"match={progress.match}", f"next={progress.next}"]
    if progress.is_learner:
        parts.append("learner")
    if progress.is_paused():
        parts.append("paused")
    if progress.pending_snapshot:
        parts.append(f"pendingSnap={progress.pending_snapshot}")
    if not progress.recent_active:
        parts.append("inactive")
    if progress.inflights.count:
        parts.append(f"inflight={progress.inflights.count}" + ("[full]" if progress.inflights.full() else ""))
    return " ".join(parts)


def describe_progress_map(progress: Mapping[int, Progress]) -> str:
    return "".join(f"{node_id}: {describe_progress(progress[node_id])}\n" for node_id in sorted(progress))


def describe_acked(voters: Collection[int], acked: Mapping[int, int]) -> str:
    """Plot who acknowledged what: a voter's bar is as long as the number of voters behind it."""
    if not voters:
        return "<empty majority quorum>"
    width = len(voters)
    rows = [" " * width + "    idx\n"]
    for voter in sorted(voters):
        index = acked.get(voter, 0)
        behind = sum(acked.get(other, 0) < index for other in voters)
        bar = "x" * behind + ">" if voter in acked else "?"
        rows.append(f"{bar:{width + 1}} {index:5d}    (id={voter:x})\n")
    return "".join(rows)
