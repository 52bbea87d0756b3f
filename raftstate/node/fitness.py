"""What keeps a node from leading, or from showing what it holds.

Each part of a node that finds something wrong says so here under a name of its own, and takes it back when it
is mended: a damaged log, a full disk, a state that others disagree with. Everything else asks here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple


class Limit(NamedTuple):
    """One thing that is wrong. `reason`: a sentence for operators, which says what to do."""

    reason: str
    may_lead: bool
    may_read: bool
    """Whether what this node holds may be shown: to clients' reads and watches, and to peers as a
    snapshot."""
    at_need: bool = False
    """Whether it may lead nevertheless where nobody who is better off does."""


class Fitness:
    """What a node may do. Belongs to the driver's thread."""

    def __init__(self) -> None:
        self._limits: dict[str, Limit] = {}
        self._watchers: list[Callable[[], None]] = []

    def watch(self, callback: Callable[[], None]) -> None:
        """Have `callback` called at each change."""
        self._watchers.append(callback)

    def limit(
        self,
        what: str,
        reason: str,
        *,
        may_lead: bool = True,
        may_read: bool = True,
        at_need: bool = False,
    ) -> None:
        """Say what is wrong, in place of what was said under the same name before.

        Args:
            what: a name: "disk", "log", "state".
            reason: for operators: what is wrong, and what to do.
            may_lead: whether this node may lead nevertheless.
            may_read: whether what it holds may be shown.
            at_need: whether it may lead, nevertheless, where nobody who is better off does.
        """
        limit = Limit(reason, may_lead, may_read, at_need)
        if self._limits.get(what) != limit:
            self._limits[what] = limit
            self._tell()

    def lift(self, what: str) -> None:
        """Say that it is mended; harmless when nothing was wrong."""
        if self._limits.pop(what, None) is not None:
            self._tell()

    @property
    def may_lead(self) -> bool:
        """Whether this node may stand for election, and go on leading."""
        return all(limit.may_lead for limit in self._limits.values())

    @property
    def may_lead_at_need(self) -> bool:
        """Whether this node may stand for election where nobody else has led for a while."""
        return all(limit.may_lead or limit.at_need for limit in self._limits.values())

    @property
    def may_read(self) -> bool:
        """Whether what this node holds may be shown."""
        return all(limit.may_read for limit in self._limits.values())

    @property
    def limits(self) -> Mapping[str, Limit]:
        """What is wrong, by its name."""
        return dict(self._limits)

    @property
    def alarms(self) -> tuple[str, ...]:
        """All reasons."""
        return tuple(limit.reason for limit in self._limits.values())

    def why_not_read(self) -> str:
        """Return the reasons why nothing may be shown; empty: it may."""
        return "; ".join(limit.reason for limit in self._limits.values() if not limit.may_read)

    def _tell(self) -> None:
        for watcher in list(self._watchers):
            watcher()
