"""What clients saw is explained by one order of their operations, each at some moment between its invocation
and its end. Herlihy and Wing, "Linearizability: A Correctness Condition for Concurrent Objects", 1990."""

from __future__ import annotations

from collections.abc import Sequence

from chaos.checker import Budget, Operation, Outcome, check_history, draw
from chaos.invariants import Violation

CONFIGURATIONS = 300_000
"""What the search for one key may visit: some seconds. Beyond it nothing is known."""


def check_linearizability(operations: Sequence[Operation]) -> str:
    """Judge the history of some registers.

    Args:
        operations: reads, writes and compare-and-swaps.

    Returns:
        Why nothing is known of it; empty: it is linearizable.

    Raises:
        Violation: it is not; with the smallest part of it that is not.
    """
    verdict = check_history(operations, "register", budget=Budget(CONFIGURATIONS))
    for key in verdict.of(Outcome.VIOLATION):
        if key.window is not None:
            raise Violation("linearizability", f"key {key.key}: {key.window.reason}\n{draw(key.window)}")
    unknown = verdict.of(Outcome.UNKNOWN)
    return f"the checker came to no end with key {unknown[0].key}" if unknown else ""
