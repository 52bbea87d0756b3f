"""No two nodes apply different entries at the same index (Raft paper, figure 3), and none comes to another
state: the digest after an entry covers its index, term, changes and results, and that of the entry before."""

from __future__ import annotations

from chaos.invariants import Violation


class StateMachineSafety:
    """Remembers what was applied at each index."""

    def __init__(self) -> None:
        self._applied: dict[int, tuple[int, int]] = {}

    def applied(self, node: int, index: int, term: int, digest: int) -> None:
        """A node has applied an entry.

        Raises:
            Violation: another node applied another one, or came to another digest.
        """
        known = self._applied.setdefault(index, (term, digest))
        if known == (term, digest):
            return
        if known[0] != term:
            raise Violation(
                "state_machine_safety",
                f"node {node} applied entry {index} of term {term}; another node one of term {known[0]}",
            )
        raise Violation(
            "state_machine_safety",
            f"node {node} has digest {digest:016x} after entry {index}; another one has {known[1]:016x}",
        )
