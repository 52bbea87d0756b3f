"""What is committed is on the disks of a quorum, and stays in the logs that hold it.

Raft paper, 5.3 and 5.4.2: a leader commits an entry of its own term that a majority has stored, with joint
consensus a majority of both configurations; those before it with it. Its own copy counts once it is durable
(etcd#14370, openraft#1125). Followers commit what a leader has committed. By log matching nobody who holds a
committed entry has a reason to remove it (databend#3914).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from chaos.invariants import Violation

_KEPT = 4_096
"""Terms of so many committed entries are remembered; logs here are cut long before."""


class CommitQuorum:
    """Remembers the terms of what leaders have committed."""

    def __init__(self) -> None:
        self._last = 0
        self._terms: dict[int, int] = {}

    def led(
        self,
        leader: int,
        term: int,
        entries: Sequence[tuple[int, int]],
        voters: Sequence[Collection[int]],
        holds: Callable[[int, int, int], bool],
    ) -> None:
        """A leader commits.

        Args:
            leader: who.
            term: that it leads.
            entries: (index, term) of what it commits now, ascending.
            voters: of its configuration; with joint consensus of both.
            holds: returns whether a node has (index, term) on its disk.

        Raises:
            Violation: the last of them is of another term, or not on the disks of a quorum.
        """
        index, entry_term = entries[-1]
        if entry_term != term:
            raise Violation(
                "commit_quorum",
                f"node {leader} commits entry {index} of term {entry_term} as leader of term {term}",
            )
        for majority in voters:
            holders = [node for node in majority if holds(node, index, entry_term)]
            if majority and len(holders) <= len(majority) // 2:
                raise Violation(
                    "commit_quorum",
                    f"node {leader} commits entry {index} of term {term}, which is on disk at {holders}, "
                    f"no quorum of {sorted(majority)}",
                )
        for at, held_term in entries:
            self._terms[at] = held_term
            self._terms.pop(at - _KEPT, None)
        self._last = max(self._last, index)

    def followed(self, node: int, index: int, term: int | None) -> None:
        """A node that does not lead learns that its entries up to an index are committed. `term`: of its own
        entry there; None: it has none, a snapshot stands for it.

        Raises:
            Violation: no leader has committed that entry.
        """
        known = self._terms.get(index)
        if index > self._last or (None not in (known, term) and known != term):
            raise Violation(
                "commit_quorum",
                f"node {node} takes entry {index} of term {term} for committed; leaders have committed up to "
                f"{self._last}, and term {known} there",
            )

    def removed(self, node: int, index: int, term: int) -> None:
        """A node removes an entry from its log, and not because its state holds it.

        Raises:
            Violation: it is committed.
        """
        if self._terms.get(index) == term:
            raise Violation(
                "commit_quorum", f"node {node} removes entry {index} of term {term}, which is committed"
            )
