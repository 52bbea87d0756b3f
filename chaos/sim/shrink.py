"""Makes a failing plan shorter, by delta debugging (Zeller and Hildebrandt, "Simplifying and Isolating
Failure-Inducing Input", 2002): parts of it are left out for as long as the run fails in the same way."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from chaos.sim.faults import Fault
from chaos.sim.simulation import Run, Simulation

BUDGET_S = 120.0
"""Of real time: what is found by then is printed."""


def shrink(failed: Run, *, budget_s: float = BUDGET_S) -> Run:
    """Return a run of the same seed that fails as `failed` does, with as few faults as were found enough."""
    until = time.monotonic() + budget_s
    best = failed
    invariant = failed.violation.partition(":")[0]

    def fails(faults: Sequence[Fault]) -> bool:
        nonlocal best
        if time.monotonic() > until:
            return False
        run = Simulation(failed.seed, failed.seconds, faults).go()
        if run.violation.partition(":")[0] != invariant:
            return False
        best = run
        return True

    _delta_debug(list(failed.faults), fails)
    return best


def _delta_debug(faults: list[Fault], fails: Callable[[Sequence[Fault]], bool]) -> None:
    parts = 2
    while len(faults) >= 1:
        size = max(1, len(faults) // parts)
        chunks = [faults[at : at + size] for at in range(0, len(faults), size)]
        for number in range(len(chunks)):
            rest = [fault for at, chunk in enumerate(chunks) if at != number for fault in chunk]
            if fails(rest):
                faults, parts = rest, max(parts - 1, 2)
                break
        else:
            if size == 1:
                return
            parts = min(len(faults), parts * 2)
