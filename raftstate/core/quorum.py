"""Majorities: which index a set of voters has committed, and whether it has granted a vote.

A configuration is one majority, or two that must both agree while membership changes (joint consensus, Raft
thesis, section 4.3). The empty majority agrees with everything, so that a joint configuration with an empty
half behaves like its other half.

What may live here: functions of voter ids, acknowledged indexes and votes. No logs, no progress, no terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

UNBOUNDED_INDEX = (1 << 64) - 1
"""The committed index of no voters: above every real one, so that an empty half holds nothing back."""


class VoteResult(IntEnum):
    """How an election stands; etcd's numbers."""

    PENDING = 1
    """Votes that are still missing decide it."""
    LOST = 2
    """A majority of yes can no longer be reached."""
    WON = 3
    """A majority has said yes."""


class MajorityConfig(frozenset[int]):
    """A set of voter ids of which more than half decide."""

    __slots__ = ()

    def committed_index(self, acked: Mapping[int, int]) -> int:
        """Return the highest index that more than half of the voters have acknowledged.

        Args:
            acked: voter id -> highest index that it has acknowledged. A voter without an entry counts as 0;
                others are ignored.

        Returns:
            That index, or `UNBOUNDED_INDEX` if there are no voters.
        """
        if not self:
            return UNBOUNDED_INDEX
        indexes = [acked.get(voter, 0) for voter in self]
        indexes.sort()
        return indexes[(len(indexes) - 1) // 2]

    def vote_result(self, votes: Mapping[int, bool]) -> VoteResult:
        """Return how the election stands.

        Args:
            votes: voter id -> whether it said yes. A voter without an entry has not answered; others are
                ignored.

        Returns:
            WON, LOST or PENDING; WON if there are no voters.
        """
        if not self:
            return VoteResult.WON
        quorum = len(self) // 2 + 1
        granted = missing = 0
        for voter in self:
            vote = votes.get(voter)
            if vote is None:
                missing += 1
            elif vote:
                granted += 1
        if granted >= quorum:
            return VoteResult.WON
        return VoteResult.PENDING if granted + missing >= quorum else VoteResult.LOST


@dataclass(frozen=True, slots=True)
class JointConfig:
    """Two majorities that must both agree. `outgoing` is empty unless a change of membership is under way."""

    incoming: MajorityConfig = field(default_factory=MajorityConfig)
    """The voters of the new configuration, or of the only one."""

    outgoing: MajorityConfig = field(default_factory=MajorityConfig)
    """The voters of the configuration that is being left."""

    def ids(self) -> frozenset[int]:
        """Return the voters of both halves."""
        return self.incoming | self.outgoing

    def committed_index(self, acked: Mapping[int, int]) -> int:
        """Return the highest index that both halves have committed.

        Args:
            acked: as for `MajorityConfig.committed_index`.

        Returns:
            The lower of the two halves' indexes; `UNBOUNDED_INDEX` if both are empty.
        """
        committed = self.incoming.committed_index(acked)
        if not self.outgoing:
            return committed
        return min(committed, self.outgoing.committed_index(acked))

    def vote_result(self, votes: Mapping[int, bool]) -> VoteResult:
        """Return how the election stands in both halves together.

        Args:
            votes: as for `MajorityConfig.vote_result`.

        Returns:
            WON if both halves are won, LOST if either is lost, else PENDING.
        """
        results = (self.incoming.vote_result(votes), self.outgoing.vote_result(votes))
        if VoteResult.LOST in results:
            return VoteResult.LOST
        return VoteResult.PENDING if VoteResult.PENDING in results else VoteResult.WON
