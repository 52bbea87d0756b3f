"""Who can't lead gives leadership up.

Ongaro, "Consensus: Bridging Theory and Practice" (2014), section 6.2: a leader steps down when an election
timeout passes without a round of heartbeats to a majority (CheckQuorum); 3.10: a transfer that does not
finish within an election timeout is aborted. And ours: a leader whose write of the log hangs hands over after
400 ms, and after four times that steps down if nobody took it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from chaos.invariants import Violation

UNHEARD_NS_MAX = 2_000_000_000
"""Two election timeouts may pass before it looks; the rest is for clocks that run slow, and for stalls."""
TRANSFER_NS_MAX = 2_000_000_000
HUNG_NS_MAX = 3_000_000_000


class Leadership:
    """Looks at leaders again and again. Times are the world's, in ns."""

    def __init__(self) -> None:
        self._transfers: dict[int, tuple[tuple[int, int], int]] = {}

    def leads(
        self,
        node: int,
        now_ns: int,
        since_ns: int,
        heard_ns: Mapping[int, int],
        voters: Sequence[Collection[int]],
    ) -> None:
        """A node leads.

        Args:
            node: who.
            now_ns: now.
            since_ns: when it began to, or its process went on after a pause.
            heard_ns: node -> when something of it arrived last.
            voters: of its configuration; with joint consensus of both.

        Raises:
            Violation: it has heard of no quorum for too long.
        """
        for majority in voters:
            heard = [
                other
                for other in majority
                if other == node or now_ns - max(heard_ns.get(other, 0), since_ns) < UNHEARD_NS_MAX
            ]
            if majority and len(heard) <= len(majority) // 2:
                raise Violation(
                    "leadership",
                    f"node {node} leads, and of {sorted(majority)} only {heard} were heard of within "
                    f"{UNHEARD_NS_MAX / 1e9:.0f} s",
                )

    def hands_over(self, node: int, now_ns: int, term: int, target: int) -> None:
        """A leader has a transfer under way; `target` 0: none.

        Raises:
            Violation: it has had that one for too long.
        """
        if not target:
            self._transfers.pop(node, None)
            return
        known, since_ns = self._transfers.get(node, ((0, 0), 0))
        if known != (term, target):
            self._transfers[node] = (term, target), now_ns
        elif now_ns - since_ns > TRANSFER_NS_MAX:
            raise Violation(
                "leadership",
                f"node {node} hands leadership of term {term} over to {target} for "
                f"{(now_ns - since_ns) / 1e9:.1f} s, and takes no writes meanwhile",
            )

    def writes(self, node: int, pending_ns: int) -> None:
        """A leader's oldest write of its log has been under way for so long.

        Raises:
            Violation: it leads nevertheless.
        """
        if pending_ns > HUNG_NS_MAX:
            raise Violation(
                "leadership",
                f"node {node} leads, and its log has not been written for {pending_ns / 1e9:.1f} s",
            )
