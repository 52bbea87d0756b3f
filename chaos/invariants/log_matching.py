"""If two logs hold an entry with the same index and term, they are the same up to there. Raft paper,
figure 3.

By induction: an index and a term always stand for the same content behind the same previous term.
"""

from __future__ import annotations

from chaos.invariants import Violation


class LogMatching:
    """Remembers what each (index, term) stood for."""

    def __init__(self) -> None:
        self._entries: dict[tuple[int, int], tuple[int | None, bytes]] = {}

    def stored(self, node: int, index: int, term: int, previous_term: int | None, content: bytes) -> None:
        """A node has made an entry durable.

        Args:
            node: who.
            index, term: of the entry.
            previous_term: of the entry before it in the same log; None: it is not known (compacted).
            content: whatever tells its type and payload.

        Raises:
            Violation: another one was stored somewhere under that index and term, or behind another one.
        """
        known = self._entries.get((index, term))
        if known is None:
            self._entries[index, term] = (previous_term, content)
            return
        before, held = known
        if held != content:
            raise Violation(
                "log_matching", f"node {node} stored another entry as {index} of term {term} than was known"
            )
        if before is None:
            self._entries[index, term] = (previous_term, content)
        elif previous_term is not None and before != previous_term:
            raise Violation(
                "log_matching",
                f"node {node} stored entry {index} of term {term} behind one of term {previous_term}; "
                f"elsewhere it stands behind one of term {before}",
            )
