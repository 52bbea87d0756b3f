"""What the checker says of a history."""

from __future__ import annotations

from typing import Any

import msgspec

from chaos.checker.search import Outcome
from chaos.history import Operation


class Decision(msgspec.Struct):
    """What a model found out about a key."""

    outcome: Outcome
    configurations: int = 0
    """How many the search visited; 0 if none was needed."""
    found: Any = None
    """What the model wants to know again when it explains a violation."""


class Taken(msgspec.Struct):
    """An operation that a window takes for granted: it may stand anywhere in it, once, or nowhere."""

    f: str
    value: Any


class Window(msgspec.Struct):
    """Operations of a key that no order makes legal, and of which none can be left out."""

    reason: str
    operations: list[Operation]
    """In order of their invokes."""
    taken_for_granted: list[Taken] = []


class KeyVerdict(msgspec.Struct):
    """What is known of a key."""

    key: str
    outcome: Outcome
    operations: int
    """Those that were judged."""
    configurations: int
    """How many the search visited; 0 if none was needed."""
    window: Window | None = None
    """Of a violation, if an explanation was asked for."""


class Verdict(msgspec.Struct):
    """What is known of a history.

    It is valid if every key is, a violation if any key is one; else unknown.
    """

    model: str
    outcome: Outcome
    operations: int
    judged: int
    """Those that say something about linearizability."""
    not_judged: dict[str, int]
    """consistency -> how many reads have it."""
    keys: dict[str, KeyVerdict]

    def of(self, outcome: Outcome) -> list[KeyVerdict]:
        """Return the keys with an outcome."""
        return [key for key in self.keys.values() if key.outcome is outcome]
