"""Who hears a leader elects no other one: a node that was removed, or was cut off, disturbs nobody.

Ongaro, "Consensus: Bridging Theory and Practice" (2014), section 4.2.3: a server that hears from a current
leader within the minimum election timeout grants no vote, unless the leader itself has asked for it.
"""

from __future__ import annotations

from chaos.invariants import Violation


class LeaderStickiness:
    """Remembers who heard a leader when it was asked for its vote."""

    def __init__(self) -> None:
        self._hears: dict[tuple[int, int, int], int] = {}

    def asked(self, node: int, candidate: int, term: int, leader: int) -> None:
        """A node is asked for its vote, or whether it would give it. `leader`: whom it hears, within its
        election timeout; 0: nobody, or that leader has asked for the election.

        A yes may be on its way to the disk while the question comes once more: it is right if once it was.
        """
        if self._hears.get((node, candidate, term)) != 0:
            self._hears[node, candidate, term] = leader

    def granted(self, node: int, candidate: int, term: int) -> None:
        """A node says yes.

        Raises:
            Violation: it heard a leader when it was asked.
        """
        leader = self._hears.get((node, candidate, term), 0)
        if leader:
            raise Violation(
                "leader_stickiness",
                f"node {node} would elect {candidate} in term {term}, and hears leader {leader}",
            )
