"""At most one leader can be elected in a term. Ongaro and Ousterhout, "In Search of an Understandable
Consensus Algorithm" (the Raft paper), figure 3."""

from __future__ import annotations

from chaos.invariants import Violation


class ElectionSafety:
    """Remembers who led each term."""

    def __init__(self) -> None:
        self._leaders: dict[int, int] = {}

    def leads(self, node: int, term: int) -> None:
        """A node says that it leads a term.

        Raises:
            Violation: another one did.
        """
        known = self._leaders.setdefault(term, node)
        if known != node:
            raise Violation("election_safety", f"nodes {known} and {node} both lead term {term}")
