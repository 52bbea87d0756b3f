"""Judges a history key by key: a history is linearizable if and only if each key's is (Herlihy and Wing)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Protocol

import msgspec

from chaos.checker.append import AppendHistory
from chaos.checker.register import RegisterHistory
from chaos.checker.search import Limits, Outcome
from chaos.checker.verdict import Decision, KeyVerdict, Verdict, Window
from chaos.history import LINEARIZABLE, Operation

QUICK_CONFIGURATIONS = 20_000
"""What each key gets before any gets more, so that a hard one does not keep others from being judged."""
SHRINK_CONFIGURATIONS = 50_000
"""What each search gets that makes a window smaller."""


class KeyHistory(Protocol):
    """What happened to one key, under a model."""

    def add(self, operation: Operation) -> None:
        """Take one more operation."""

    def decide(self, limits: Limits) -> Decision:
        """Judge all of them."""

    def explain(self, decision: Decision, limits: Limits, seconds: float | None) -> Window:
        """Return the smallest bad window of a violation."""


MODELS: dict[str, type[RegisterHistory] | type[AppendHistory]] = {
    "register": RegisterHistory,
    "append": AppendHistory,
}


class Budget(msgspec.Struct):
    """What a check may take; beyond it the outcome is unknown."""

    configurations: int = 1_000_000
    """How many the search for one key may remember; each takes about 200 bytes."""
    seconds: float | None = None
    """For all keys; None for no limit, so that the same history gets the same verdict on any machine."""
    explain_seconds: float | None = None
    """For the windows of all violations; beyond it they are larger than they need be."""


def check_history(
    operations: Iterable[Operation], model: str, *, budget: Budget | None = None, explain: bool = True
) -> Verdict:
    """Judge whether a history is linearizable.

    Args:
        operations: in any order. Those that are reads of a consistency below linearizable are not judged.
        model: "register" or "append".
        budget: what it may take.
        explain: whether the first violation gets its window.

    Returns:
        The verdict, with all keys in it. A history without operations is valid.

    Raises:
        HistoryError: an operation that the model does not know.
        KeyError: no such model.
    """
    budget = budget or Budget()
    started = time.monotonic()
    histories: dict[str, KeyHistory] = {}
    counts: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    total = 0
    for operation in operations:
        total += 1
        if operation.consistency != LINEARIZABLE:
            skipped[operation.consistency] += 1
            continue
        key = operation.key
        history = histories.get(key)
        if history is None:
            history = histories[key] = MODELS[model](key)
        history.add(operation)
        counts[key] += 1
    decisions = _decide(histories, budget, started)
    keys = {
        key: KeyVerdict(key, decision.outcome, counts[key], decision.configurations)
        for key, decision in decisions.items()
    }
    bad = [key for key, decision in decisions.items() if decision.outcome is Outcome.VIOLATION]
    if bad and explain:
        limits = Limits(max(SHRINK_CONFIGURATIONS, keys[bad[0]].configurations))
        keys[bad[0]].window = histories[bad[0]].explain(decisions[bad[0]], limits, budget.explain_seconds)
    return Verdict(model, _overall(decisions), total, sum(counts.values()), dict(skipped), keys)


def _decide(histories: dict[str, KeyHistory], budget: Budget, started: float) -> dict[str, Decision]:
    """Judge each key quickly, then those that need more, each with an equal share of the time left."""
    end = None if budget.seconds is None else started + budget.seconds
    quick = Limits(min(QUICK_CONFIGURATIONS, budget.configurations), end)
    decisions = {}
    for key, history in histories.items():
        decisions[key] = Decision(Outcome.UNKNOWN) if quick.passed() else history.decide(quick)
    hard = [key for key, decision in decisions.items() if decision.outcome is Outcome.UNKNOWN]
    if budget.configurations <= quick.configurations:
        return decisions
    for number, key in enumerate(hard):
        limits = Limits(budget.configurations)
        if end is not None:
            now = time.monotonic()
            if now >= end:
                break
            limits.deadline = now + (end - now) / (len(hard) - number)
        decisions[key] = histories[key].decide(limits)
    return decisions


def _overall(decisions: dict[str, Decision]) -> Outcome:
    outcomes = {decision.outcome for decision in decisions.values()}
    for outcome in (Outcome.VIOLATION, Outcome.UNKNOWN):
        if outcome in outcomes:
            return outcome
    return Outcome.VALID
