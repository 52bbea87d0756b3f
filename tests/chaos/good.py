"""Histories that are right by construction: a simulated store, where each operation acts while it is open."""

from __future__ import annotations

import heapq
import itertools
import random
from typing import Any

from chaos.history import Operation, Recorder

MEAN_NS = 1_000_000
"""How long an operation takes, on average."""
LATE_NS = 50 * MEAN_NS
"""How long one whose outcome is unknown may still be on its way."""


class Store:
    """A store that is right, its clients, and what these saw.

    Args:
        seed: of everything that is random.
        model: "register" or "append".
        processes: clients, each with one operation at a time.
        keys: over how many keys they spread.
        values: how many there are of a register; None for a new one with each write.
        unknown: share of changes whose outcome is unknown; half of them take effect, some of them late.
        failed: share of writes and appends that certainly do nothing.
        cas: share of a register's operations.
        reads: share of operations.
    """

    def __init__(
        self,
        seed: int,
        model: str = "register",
        *,
        processes: int = 5,
        keys: int = 1,
        values: int | None = None,
        unknown: float = 0.0,
        failed: float = 0.0,
        cas: float = 0.0,
        reads: float = 0.5,
    ) -> None:
        self._rng = random.Random(seed)
        self._model = model
        self._keys = [f"k{number}" for number in range(keys)]
        self._values = values
        self._unknown, self._failed, self._cas, self._reads = unknown, failed, cas, reads
        self._states: dict[str, Any] = dict.fromkeys(self._keys)
        self._unique = itertools.count(1)
        self._turn = itertools.count()
        self._events: list[tuple[int, int, str, Any]] = []
        self._recorder = Recorder()
        for process in range(processes):
            self._at(self._rng.randrange(MEAN_NS), "begin", process)

    def run(self, count: int) -> list[Operation]:
        """Return a history of so many operations, in order of their invokes."""
        begun = 0
        while self._events:
            now, _, what, subject = heapq.heappop(self._events)
            if what == "effect":
                self._take_effect(*subject)
            elif what == "end":
                operation, result = subject
                self._end(operation, result, now)
            elif begun < count:
                begun += 1
                self._begin(subject, now)
        return self._recorder.operations

    def _at(self, time_ns: int, what: str, subject: Any) -> None:
        heapq.heappush(self._events, (time_ns, next(self._turn), what, subject))

    def _begin(self, process: int, now: int) -> None:
        rng = self._rng
        key = rng.choice(self._keys)
        f, value = self._choose(key)
        operation = self._recorder.invoke(process, f, key, value, now)  # type: ignore[arg-type]
        took = 1 + int(rng.expovariate(1 / MEAN_NS))
        result: dict[str, Any] = {"outcome": "ok"}
        if f != "read" and rng.random() < self._unknown:
            result["outcome"] = "info"
            if rng.random() < 0.5:
                self._at(now + rng.randint(1, rng.choice([took, LATE_NS])), "effect", (operation, {}))
        elif f in ("write", "append") and rng.random() < self._failed:
            result["outcome"] = "fail"
        else:
            self._at(now + rng.randint(1, took), "effect", (operation, result))
        self._at(now + took, "end", (operation, result))

    def _choose(self, key: str) -> tuple[str, Any]:
        rng = self._rng
        if rng.random() < self._reads:
            return "read", None
        new = next(self._unique) if self._values is None else rng.randrange(self._values)
        if self._model == "append":
            return "append", new
        if rng.random() < self._cas / (1 - self._reads):
            blind = self._values is not None and rng.random() < 0.3
            return "cas", [rng.randrange(self._values or 1) if blind else self._states[key], new]
        return "write", new

    def _take_effect(self, operation: Operation, result: dict[str, Any]) -> None:
        state = self._states[operation.key]
        if operation.f == "read":
            result["value"] = list(state or ()) if self._model == "append" else state
        elif operation.f == "append":
            self._states[operation.key] = [*(state or ()), operation.value]
        elif operation.f == "write":
            self._states[operation.key] = operation.value
        elif state == operation.value[0]:
            self._states[operation.key] = operation.value[1]
        else:
            result["outcome"] = "fail"

    def _end(self, operation: Operation, result: dict[str, Any], now: int) -> None:
        self._recorder.end(operation, result["outcome"], now, result.get("value"))
        self._at(now + self._rng.randrange(MEAN_NS), "begin", operation.process)
