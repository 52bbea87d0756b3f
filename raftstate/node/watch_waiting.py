"""Groups of watches that wait: to be read for from the history, or for the revision that they begin at."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

from raftstate.node.watch_match import Intervals
from raftstate.node.watch_scan import Position
from raftstate.node.watch_stream import Group


class Waiting:
    """Groups that are behind, whose stream has room, and that no slice is being read for.

    Those at the same position move on together, and take along whom they meet: the more there are, the fewer
    slices for each.
    """

    def __init__(self) -> None:
        self._groups: dict[Position, dict[Group, None]] = {}
        """By cursor; first the ones that came to where they are before all others."""

    def __len__(self) -> int:
        """Return how many positions they stand at."""
        return len(self._groups)

    def add(self, group: Group) -> None:
        """Add a group that is behind."""
        if group.cursor is not None:
            self._groups.setdefault(group.cursor, {})[group] = None

    def remove(self, group: Group) -> None:
        """Remove a group, whose cursor has not changed since it was added; or do nothing."""
        groups = None if group.cursor is None else self._groups.get(group.cursor)
        if groups is not None and group.cursor is not None:
            groups.pop(group, None)
            if not groups:
                del self._groups[group.cursor]

    def longest_before(self, revision: int) -> Position | None:
        """Return the position before `revision` that some wait at for the longest."""
        return next((position for position in self._groups if position[0] < revision), None)

    def first_from(self, revision: int) -> Position | None:
        """Return the first position at `revision` or later that some wait at."""
        return min((position for position in self._groups if position[0] >= revision), default=None)

    def take(self, start: Position, reach: int, groups_max: int) -> list[Group]:
        """Remove and return the groups that a slice from `start` on is for: nothing else moves them now.

        `reach`: how many changes the slice has at most, and so revisions.
        """
        end = (start[0] + reach, 0)
        taken: list[Group] = []
        for position in sorted(position for position in self._groups if start <= position < end):
            taken += self._groups[position]
            if len(taken) >= groups_max:
                break
        del taken[groups_max:]
        for group in taken:
            self.remove(group)
            group.scan = taken
        return taken


_STALE_MAX = 64
"""Revisions that a heap may hold for nobody, beside as many as those that some wait for."""


class Later:
    """Groups that are up to date and want nothing before a revision that the tail has yet to come to.

    They stand apart until then: looked for among those that want a change, each would count at every one.
    """

    def __init__(self) -> None:
        self._groups: dict[int, dict[Group, None]] = {}
        """By the revision they begin at."""
        self._revisions: list[int] = []
        """A heap of them, each once. It holds those that nobody waits for any more until they are passed, or
        are as many as the others."""

    @property
    def first(self) -> int | None:
        """The first revision that some wait for."""
        while self._revisions and self._revisions[0] not in self._groups:
            heappop(self._revisions)
        return self._revisions[0] if self._revisions else None

    def add(self, group: Group) -> None:
        """Add a group."""
        groups = self._groups.get(group.first_revision)
        if groups is None:
            groups = self._groups[group.first_revision] = {}
            if len(self._revisions) >= 2 * len(self._groups) + _STALE_MAX:
                self._revisions = sorted(self._groups)  # which is a heap, too
            else:
                heappush(self._revisions, group.first_revision)
        groups[group] = None

    def remove(self, group: Group) -> bool:
        """Remove a group; return whether it was there."""
        groups = self._groups.get(group.first_revision, {})
        if group not in groups:
            return False
        del groups[group]
        if not groups:
            del self._groups[group.first_revision]
        return True

    def take_due(self, revision: int) -> list[Group]:
        """Remove and return the groups that begin at `revision` or before."""
        due: list[Group] = []
        while (first := self.first) is not None and first <= revision:
            due += self._groups.pop(first)
        return due


def finder(groups: list[Group]) -> Callable[[bytes], list[Group]]:
    """Return what finds those of `groups` that want the changes to a key."""
    return Intervals((group.kind[0], group.kind[1], group) for group in groups).find
