"""What was committed in a term is in the logs of the leaders of all later terms. Raft paper, figure 3."""

from __future__ import annotations

from collections.abc import Callable

from chaos.invariants import Violation


class LeaderCompleteness:
    """Remembers the last entry that anybody has applied: applied is committed."""

    def __init__(self) -> None:
        self._index = self._term = 0

    def committed(self, index: int, term: int) -> None:
        """An entry was applied somewhere."""
        if index > self._index:
            self._index, self._term = index, term

    def leads(self, node: int, term: int, last_index: int, term_at: Callable[[int], int | None]) -> None:
        """A node begins to lead.

        Args:
            node: who.
            term: that it leads.
            last_index: of its log.
            term_at: the term of an entry of it; None: compacted, which only applied ones are.

        Raises:
            Violation: its log lacks what was committed before.
        """
        if term < self._term:
            return  # it leads an earlier term than the entry's, and will hear of that
        if last_index < self._index:
            raise Violation(
                "leader_completeness",
                f"node {node} leads term {term} with a log up to {last_index}; {self._index} was committed",
            )
        held = term_at(self._index)
        if held is not None and held != self._term:
            raise Violation(
                "leader_completeness",
                f"node {node} leads term {term} and holds entry {self._index} of term {held}; that of term "
                f"{self._term} was committed",
            )
