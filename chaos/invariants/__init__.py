"""What must hold, whatever happens: a module for each invariant, with its source.

    election_safety        at most one leader a term
    log_matching           entries with the same index and term are the same, and so is all before them
    leader_completeness    a leader's log holds what was committed in earlier terms
    state_machine_safety   no two nodes apply different entries at an index, nor come to different digests
    commit_monotonic       what a node knows to be committed never goes back while it runs
    commit_quorum          what is committed is on the disks of a quorum, and stays in the logs that hold it
    durable_promises       votes, and acknowledged entries, are on disk before anybody hears of them
    leader_stickiness      who hears a leader elects no other one
    leadership             who can't lead gives leadership up
    configuration_safety   one configuration at each index, and no two in turn without a common voter
    configuration_in_use   each node goes by the configuration that its state has applied
    exactly_once           an acknowledged write was done once, a refused one never, others at most once
    linearizability        what clients saw is explained by one order of their operations
    session_reads          a client never reads older than what it has read or written
    leases                 no lease ends while its holder may count on it

Each is told what happens, in plain numbers, and raises `Violation` at the first thing that must not be. None
knows where it is told from.
"""

from __future__ import annotations


class Violation(AssertionError):  # noqa: N818 - it is what was looked for, not a fault of who looked
    """An invariant did not hold.

    Args:
        invariant: its module's name.
        what: what was seen, with both numbers.
    """

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(f"{invariant}: {what}")
        self.invariant = invariant
