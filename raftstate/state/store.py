"""What the models ask of the store behind them. The async client fulfils it; tests put a dict behind it.

Compares and operations of transactions are made by the names of the package: `raftstate.where`,
`raftstate.Put`, `raftstate.Get`, `raftstate.Range` and `raftstate.Delete`.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal, Protocol, Self


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
    def create_revision(self) -> int:
        """The revision of the put that created the key."""
        ...

    @property
    def mod_revision(self) -> int:
        """The revision of the put that wrote this value."""
        ...

    @property
    def version(self) -> int:
        """1 at creation, and one more with each put."""
        ...

    @property
    def lease(self) -> int:
        """The lease that the key is attached to; 0: none."""
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

    @property
    def revision(self) -> int:
        """The store's revision when they were read."""
        ...


class Committed(Protocol):
    """The answer to a transaction."""

    @property
    def revision(self) -> int:
        """The store's revision after it."""
        ...

    @property
    def succeeded(self) -> bool:
        """Whether all compares held."""
        ...

    @property
    def responses(self) -> Sequence[Any]:
        """What each operation of the branch that ran gave: a `Row` or None for a get, `Rows` for a range."""
        ...


class Txn(Protocol):
    """A transaction to be put together. Nothing is sent before it is committed."""

    def when(self, *compares: Any) -> Self:
        """Add conditions, made by `raftstate.where`; all must hold."""
        ...

    def then(self, *operations: Any) -> Self:
        """Add what is done if all compares hold."""
        ...

    def otherwise(self, *operations: Any) -> Self:
        """Add what is done if one does not."""
        ...

    async def commit(self, *, timeout: float | None = None) -> Committed:
        """Do it, all in one step, exactly once."""
        ...


class Lease(Protocol):
    """A lease. Entered, it is granted and kept alive; left, it is revoked, and its keys are deleted."""

    @property
    def id(self) -> int:
        """Its id, once it is granted."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def check(self) -> None:
        """Raise `LeaseNotFoundError` when it has ended, or may have."""
        ...


class Event(Protocol):
    """A change to a key."""

    @property
    def kind(self) -> Literal["put", "delete"]:
        """What was done."""
        ...

    @property
    def key(self) -> bytes:
        """The whole key."""
        ...

    @property
    def value(self) -> bytes:
        """What was put; empty for a delete."""
        ...

    @property
    def revision(self) -> int:
        """The revision that did it."""
        ...


class Watch(Protocol):
    """The changes to some keys, each once and in order, from the moment it is entered."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> Event: ...


class Store(Protocol):
    """The async face of a store. Reads are linearizable; a write is applied exactly once or raises.

    `timeout` is in seconds; None takes the store's own. Errors are `RaftstateError`s, definite or indefinite.
    """

    async def get(
        self, key: bytes, /, *, revision: int | None = None, timeout: float | None = None
    ) -> Row | None:
        """Return the pair under `key`, as of a revision (None: the latest), or None."""
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
        revision: int | None = None,
        keys_only: bool = False,
        timeout: float | None = None,
    ) -> Rows:
        """Return up to `limit` pairs of [start, end), as of a revision (None: the latest)."""
        ...

    def txn(self) -> Txn:
        """Begin a transaction."""
        ...

    def watch(self, *, prefix: bytes, start_revision: int | None = None) -> Watch:
        """Watch all keys that begin with `prefix`, from a revision on (None: from now on)."""
        ...

    def lease(self, ttl: float) -> Lease:
        """Return a lease that lives for `ttl` seconds unless it is kept alive. Nothing is sent yet."""
        ...
