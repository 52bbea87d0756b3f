"""The load: a seeded stream of keys, and a closed loop of workers that measures each request.

Closed: each of C workers sends its next request when the last one is answered, so that latency and throughput
belong together (throughput = C / mean latency), and a stalled system is not sent more.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

from bench.systems import Store

VALUE_BYTES = 256


class UsageError(Exception):
    """An option has no meaning."""


@dataclass(frozen=True)
class Keys:
    """Which keys are written: "uniform:N" over N prefilled ones, or "sequential"."""

    spec: str

    def __post_init__(self) -> None:
        kind, _, size = self.spec.partition(":")
        if not (self.spec == "sequential" or (kind == "uniform" and size.isdigit() and int(size) > 0)):
            raise UsageError(f"--keys is {self.spec!r}; it must be uniform:N with N > 0, or sequential")

    def prefilled(self) -> list[bytes]:
        """Return the keys that exist before the measurement."""
        if self.spec == "sequential":
            return []
        return [b"bench/%08d" % number for number in range(int(self.spec.partition(":")[2]))]

    def stream(self, seed: int) -> Iterator[bytes]:
        """Yield keys without end: the same seed gives the same keys to every system."""
        if self.spec == "sequential":
            number = 0
            while True:
                yield b"bench/%012d" % number
                number += 1
        keys = self.prefilled()
        draw = random.Random(seed).choices
        while True:
            yield from draw(keys, k=4096)


@dataclass(frozen=True)
class Measurement:
    """What one run gave."""

    ops_per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float


async def prefill(store: Store, keys: Keys, seed: int) -> None:
    """Write every prefilled key once."""
    value = random.Random(seed).randbytes(VALUE_BYTES)
    pending = iter(keys.prefilled())

    async def worker() -> None:
        for key in pending:
            await store.put(key, value)

    await asyncio.gather(*(worker() for _ in range(256)))


async def run_puts(store: Store, keys: Keys, concurrency: int, seconds: float, seed: int) -> Measurement:
    """Put for `seconds` with `concurrency` workers, after a second of warm-up."""
    stream = keys.stream(seed)
    rng = random.Random(seed)
    values = [rng.randbytes(VALUE_BYTES) for _ in range(64)]
    latencies: list[float] = []
    start = time.perf_counter() + 1.0
    end = start + seconds

    async def worker(number: int) -> None:
        now = time.perf_counter
        value = values[number % len(values)]
        while (began := now()) < end:
            await store.put(next(stream), value)
            if began >= start:
                latencies.append(now() - began)

    await asyncio.gather(*(worker(number) for number in range(concurrency)))
    elapsed = time.perf_counter() - start
    latencies.sort()
    return Measurement(
        ops_per_s=len(latencies) / elapsed,
        p50_ms=statistics.median(latencies) * 1e3,
        p99_ms=latencies[int(len(latencies) * 0.99)] * 1e3,
        max_ms=latencies[-1] * 1e3,
    )
