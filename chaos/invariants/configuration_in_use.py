"""Each node goes by the configuration that its state has applied, and by no other.

A change acts when it is applied (etcd raft's rule, unlike the paper's), so one that is truncated never acted
(canonical/raft#250); a leader has one at a time in its log that it has not applied (Ongaro 2014, 4.3;
pysyncobj, whose guard is dead code, splits); and nobody campaigns while one waits that is known to be
committed.
"""

from __future__ import annotations

from collections.abc import Collection

from chaos.invariants import Violation
from chaos.invariants.configuration_safety import Voters


class ConfigurationInUse:
    """Judges each sight by itself."""

    def goes_by(self, node: int, used: Voters, applied: Voters) -> None:
        """A node counts votes and acknowledgements by one configuration, and its state holds one.

        Raises:
            Violation: they differ.
        """
        if used != applied:
            raise Violation(
                "configuration_in_use",
                f"node {node} goes by voters {used}; its state has applied {applied}",
            )

    def appended(self, leader: int, index: int, unapplied: Collection[int]) -> None:
        """A leader has appended a change at an index. `unapplied`: of all changes that it has not applied.

        Raises:
            Violation: another one is among them.
        """
        if set(unapplied) - {index}:
            raise Violation(
                "configuration_in_use",
                f"leader {leader} appends a change of the membership at {index}, not having applied those at "
                f"{sorted(set(unapplied) - {index})}",
            )

    def campaigns(self, node: int, unapplied: Collection[int]) -> None:
        """A node asks for votes. `unapplied`: the changes that it knows to be committed and has not applied.

        Raises:
            Violation: there are some.
        """
        if unapplied:
            raise Violation(
                "configuration_in_use",
                f"node {node} campaigns before it has applied the changes at {sorted(unapplied)}, which are "
                "committed",
            )
