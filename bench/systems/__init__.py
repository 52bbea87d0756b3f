"""The systems that can be measured.

Each is a class that starts a fresh, durable instance on loopback and gives a `put`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol


class Store(Protocol):
    """A running system, seen by the load generator."""

    settings: str
    """How it was set up, for the report."""

    async def put(self, key: bytes, value: bytes) -> object:
        """Write one pair; return when it is acknowledged."""
        ...


Starter = Callable[[Path], AbstractAsyncContextManager[Store]]


def starters() -> dict[str, Starter]:
    """Return what can be measured here, by name."""
    from bench.systems.raftstate import start_raftstate

    return {"raftstate": start_raftstate}
