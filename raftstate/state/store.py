"""What the models ask of the store behind them. The async client fulfils it; tests put a dict behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Row(Protocol):
    """A key as of one revision."""

    @property
    def key(self) -> bytes:
        """The whole key."""
        ...

    @property
    def value(self) -> bytes:
        """Its value; empty when only keys were asked for."""
        ...

    @property
    def mod_revision(self) -> int:
        """The revision of the put that wrote this value."""
        ...


class Written(Protocol):
    """The answer to a put."""

    @property
    def revision(self) -> int:
        """The revision that the put made."""
        ...


class Rows(Protocol):
    """The answer to a range."""

    @property
    def kvs(self) -> Sequence[Row]:
        """The pairs, in order of key."""
        ...

    @property
    def more(self) -> bool:
        """Whether the range holds pairs beyond these: by the limit, or because an answer is limited in
        size."""
        ...


class Store(Protocol):
    """The async face of a store. Reads are linearizable; a write is applied exactly once or raises.

    `timeout` is in seconds; None takes the store's own. Errors are `RaftstateError`s, definite or indefinite.
    """

    async def get(self, key: bytes, /, *, timeout: float | None = None) -> Row | None:
        """Return the pair under `key`, or None."""
        ...

    async def put(self, key: bytes, value: bytes, /, *, timeout: float | None = None) -> Written:
        """Write `value` under `key`."""
        ...

    async def range(
        self,
        start: bytes,
        end: bytes,
        /,
        *,
        limit: int,
        keys_only: bool = False,
        timeout: float | None = None,
    ) -> Rows:
        """Return up to `limit` pairs of [start, end)."""
        ...
