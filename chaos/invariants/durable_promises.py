"""What a node promises, or shows, is on its disk first: a vote, an acknowledged entry, the term of either,
and what its state has applied.

Raft paper, figure 2: term, vote and log are "updated on stable storage before responding to RPCs". And what
is acknowledged is what the leader sent: its log holds the same entry there.
"""

from __future__ import annotations

from chaos.invariants import Violation


class DurablePromises:
    """Judges each promise by what is durable at the moment in which it is sent."""

    def voted(self, node: int, candidate: int, term: int, durable_term: int, durable_vote: int) -> None:
        """A node grants its vote.

        Raises:
            Violation: after a crash it could give another one in that term.
        """
        if durable_term < term or (durable_term == term and durable_vote != candidate):
            raise Violation(
                "durable_promises",
                f"node {node} votes for {candidate} in term {term}; on its disk stands term {durable_term}, "
                f"vote {durable_vote}",
            )

    def applied(self, node: int, index: int, durable_index: int) -> None:
        """A node has applied all entries up to an index: its state may be durable, and so shown, at any time.

        Raises:
            Violation: its own log does not hold them yet. A crash could leave a state that is ahead of it.
        """
        if index > durable_index:
            raise Violation(
                "durable_promises",
                f"node {node} has applied entry {index}; its log holds entries up to {durable_index} on disk",
            )

    def acknowledged(
        self,
        node: int,
        index: int,
        term: int,
        *,
        durable_term: int,
        durable_index: int,
        held_term: int | None,
        sent_term: int | None,
    ) -> None:
        """A node acknowledges all entries up to an index.

        Args:
            node: who.
            index: the last entry that it vouches for.
            term: of the leader that it tells so.
            durable_term: the term on its disk.
            durable_index: the last entry on its disk.
            held_term: the term of that entry there; None: it has been compacted.
            sent_term: the term of the leader's own entry at that index; None: it is compacted, or the leader
                does not lead that term any more.

        Raises:
            Violation: it does not hold what it vouches for.
        """
        if durable_term < term or durable_index < index:
            raise Violation(
                "durable_promises",
                f"node {node} acknowledges entry {index} in term {term}; its disk holds entries up to "
                f"{durable_index} and term {durable_term}",
            )
        if None not in (held_term, sent_term) and held_term != sent_term:
            raise Violation(
                "durable_promises",
                f"node {node} acknowledges entry {index}, which it holds of term {held_term}; its leader's "
                f"is of term {sent_term}",
            )
