"""One configuration at each index, and every two in turn have a common voter in any two of their quorums.

Ongaro, "Consensus: Bridging Theory and Practice" (2014), section 4.1, and the correction of 2015 (raft-dev,
"bug in single-server membership changes"): two configurations that follow one another must not be able to
decide apart.
"""

from __future__ import annotations

from itertools import combinations

from chaos.invariants import Violation

Voters = tuple[tuple[int, ...], tuple[int, ...]]
"""Incoming and outgoing voters; the latter are empty unless the configuration is joint."""


class ConfigurationSafety:
    """Remembers the configurations that were applied, by index."""

    def __init__(self, first: Voters) -> None:
        self._at: dict[int, Voters] = {0: first}

    def applied(self, node: int, index: int, voters: Voters) -> None:
        """A node goes by a configuration from the entry at an index on.

        Raises:
            Violation: another one goes by another from there, or it could decide apart from the one before.
        """
        known = self._at.get(index)
        if known is not None:
            if known != voters:
                raise Violation(
                    "configuration_safety",
                    f"node {node} goes by {voters} from entry {index} on; another node by {known}",
                )
            return
        before = self._at[max(at for at in self._at if at < index)]
        after = min((at for at in self._at if at > index), default=None)
        self._require_common_voter(before, voters, index)
        if after is not None:
            self._require_common_voter(voters, self._at[after], after)
        self._at[index] = voters

    def _require_common_voter(self, before: Voters, voters: Voters, index: int) -> None:
        if not _meet(before, voters):
            raise Violation(
                "configuration_safety",
                f"quorums of {before} and of {voters}, which takes its place at entry {index}, can decide "
                "without a common voter",
            )


def _meet(one: Voters, other: Voters) -> bool:
    """Whether each quorum of one configuration has a voter of each quorum of another one."""
    return all(set(first) & set(second) for first in _quorums(one) for second in _quorums(other))


def _quorums(voters: Voters) -> list[tuple[int, ...]]:
    """The smallest quorums: of a joint configuration a majority of each half."""
    incoming, outgoing = (_majorities(half) for half in voters)
    if not voters[1]:
        return incoming
    return [(*one, *other) for one in incoming for other in outgoing]


def _majorities(voters: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(combinations(voters, len(voters) // 2 + 1))
