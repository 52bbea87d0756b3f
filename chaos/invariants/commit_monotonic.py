"""What a node knows to be committed never goes back while it runs (Raft paper, section 5.3: commitIndex
"increases monotonically"). After a restart it may: a commit index alone is not made durable."""

from __future__ import annotations

from chaos.invariants import Violation


class CommitMonotonic:
    """Remembers each node's commit index."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, int]] = {}

    def saw(self, node: int, life: int, commit_index: int) -> None:
        """A node knows that entries up to an index are committed. `life`: another number after each start.

        Raises:
            Violation: it knew more before.
        """
        known = self._known.get(node)
        if known is not None and known[0] == life and commit_index < known[1]:
            raise Violation(
                "commit_monotonic", f"node {node} went back from commit index {known[1]} to {commit_index}"
            )
        self._known[node] = (life, commit_index)
