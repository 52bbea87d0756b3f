"""Workflows: named chains of checkpoints, each a whole state that can be restored.

A checkpoint is one row, written by one put, under a key that no other writer can have:

    ("workflow", name, "checkpoint", -sequence, writer)

The negated sequence puts the newest first, so that finding it is a range of one key. The writer is random
bits of the object that wrote it. Two writers that don't know of each other therefore never overwrite each
other's checkpoints: both stand in `list`, with the same parent, as a fork.

The row holds the state either whole (a base) or as its difference to a base, never to another delta: any
restore reads two rows at most. A new base is written when the deltas since the last one would together take
more room than it does, which bounds what a chain takes to twice its bases, whatever the states look like.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, overload

import msgspec
import xxhash

from raftstate.errors import DataLossError, InvalidArgumentError, OutOfRangeError
from raftstate.state import codec, delta
from raftstate.state.checkpoints import (
    Checkpoint,
    Record,
    content_of,
    describe,
    id_of_key,
    parse_id,
    read_row,
)
from raftstate.state.store import Row, Store
from raftstate.state.tuples import Element, pack, prefix_range

T = TypeVar("T")
R = TypeVar("R", covariant=True)

ROW_BYTES_MAX = 8 << 20
"""The store's limit on a value."""
NAME_BYTES_MAX = 256
"""A longer name is hashed in keys; the full one stands in the rows."""
LIST_LIMIT_DEFAULT = 100
"""Few enough that their rows, states included, are read at a glance."""
_KEYS_PER_PAGE = 1_000
"""Of keys without values: some 100 KB in a reply."""
_SIBLINGS_MAX = 64
"""How many writers' forks of one sequence are looked at to find the newest."""
_THREAD_BYTES_MIN = 64 << 10
"""Below it, compressing takes less time than handing it to a thread."""


class Restored(msgspec.Struct, Generic[T], frozen=True):
    """A state, and the checkpoint that it comes from."""

    state: T
    checkpoint: Checkpoint


class _Base(NamedTuple):
    id: str
    state: bytes
    payload_bytes: int


class _Loaded(NamedTuple):
    checkpoint: Checkpoint
    state: bytes
    base: _Base
    chain_bytes: int


class AsyncWorkflow:
    """A workflow's checkpoints in a store. Safe to use from several tasks; their checkpoints form one chain.

    Args:
        store: where it stands.
        name: of the workflow; not empty.
        now: the clock for `created_at`.
        writer: random bits that no other object uses.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        writer: bytes | None = None,
    ) -> None:
        self.name = name
        self._store = store
        self._now = now
        self._writer = writer or secrets.token_bytes(8)
        self._prefix: tuple[Element, ...] = ("workflow", _name_component(name), "checkpoint")
        self._lock = asyncio.Lock()
        self._sequence: int | None = None
        """The highest that this object knows to be taken; None: to be looked up."""
        self._last: _Loaded | None = None
        """What it last restored or made: the parent of the next."""

    async def checkpoint(
        self, state: object, metadata: object = None, *, timeout: float | None = None
    ) -> Checkpoint:
        """Save a state. When this returns, a majority of the nodes has it on disk.

        The first call of an object that has restored nothing continues from the newest checkpoint there is.

        Args:
            state: see `raftstate.state.codec` for what it may hold.
            metadata: the same, small: it is returned by `list`.
            timeout: seconds for each request to the store.

        Raises:
            InvalidArgumentError: the state holds what can't be saved, or is too large (64 MiB encoded, 8 MiB
                stored).
            IndefiniteError: the answer was lost. If the checkpoint was saved it stands in `list`; the next
                call saves its state beside it, under another id.
        """
        encoded = codec.encode(state)
        if len(encoded) > delta.STATE_BYTES_MAX:
            raise InvalidArgumentError(
                f"the state takes {len(encoded):,} bytes encoded; the limit is {delta.STATE_BYTES_MAX:,}."
                " Keep large data elsewhere and its address in the state",
                field="state",
            )
        raw_metadata = codec.encode(metadata, "metadata")
        async with self._lock:
            if self._sequence is None:
                await self._find_place(timeout)
            sequence = (self._sequence or 0) + 1
            checkpoint_id = f"{sequence}-{self._writer.hex()}"
            record, base = await self._make_record(checkpoint_id, encoded, raw_metadata)
            row = msgspec.msgpack.encode(record)
            if len(row) > ROW_BYTES_MAX:
                raise _too_large(record)
            # Taken before the put: if its answer is lost, the key may be too.
            self._sequence = sequence
            written = await self._store.put(self._key(sequence, self._writer), row, timeout=timeout)
            made = describe(checkpoint_id, written.revision, record, len(row))
            self._last = _Loaded(made, encoded, base, record.chain_bytes)
            return made

    @overload
    async def restore(
        self, id: str | None = None, *, revision: int | None = None, timeout: float | None = None
    ) -> Restored[Any] | None: ...
    @overload
    async def restore(
        self,
        id: str | None = None,
        *,
        type: type[T],
        revision: int | None = None,
        timeout: float | None = None,
    ) -> Restored[T] | None: ...
    async def restore(
        self,
        id: str | None = None,
        *,
        type: Any = Any,
        revision: int | None = None,
        timeout: float | None = None,
    ) -> Restored[Any] | None:
        """Return a saved state: the newest, the one of `id`, or the newest as of a revision of the store.

        It becomes the parent of the next checkpoint. Where a fork has several newest ones, the one written
        last counts.

        Args:
            id: a `Checkpoint.id` of this workflow.
            type: what the state is to be made an instance of (a dataclass, a Struct, ...); without it, plain
                data.
            revision: of the store.
            timeout: seconds for each request to the store.

        Returns:
            None when the workflow has no checkpoint (as of that revision).

        Raises:
            OutOfRangeError: there is no checkpoint with that id.
            InvalidArgumentError: both id and revision were given, one of them is malformed, or the state is
                not one of `type`.
            DataLossError: what is stored does not match its checksum.
        """
        if id is not None and revision is not None:
            raise InvalidArgumentError("give an id or a revision, not both", field="revision")
        if id is not None and not isinstance(id, str):
            raise InvalidArgumentError(
                f"id must be the str of a Checkpoint.id, got {id!r:.80}; give revision= by its name",
                field="id",
            )
        if revision is not None:
            _check_whole(revision, "revision", 0)
        async with self._lock:
            newest = id is None and revision is None
            found = id if id is not None else await self._find(revision, timeout)
            if found is None:
                return None
            loaded = await self._load(found, timeout)
            state = codec.decode(loaded.state, type)
            self._last = loaded
            # After a step back the newest sequence is not known; the next checkpoint must still come after
            # it.
            self._sequence = parse_id(found)[0] if newest else None
            return Restored(state, loaded.checkpoint)

    async def list(
        self, limit: int = LIST_LIMIT_DEFAULT, *, timeout: float | None = None
    ) -> list[Checkpoint]:
        """Return up to `limit` checkpoints, the newest first."""
        _check_whole(limit, "limit", 1)
        start, end = prefix_range(self._prefix)
        found: list[Checkpoint] = []
        more = True
        while more and len(found) < limit:
            rows = await self._store.range(start, end, limit=limit - len(found), timeout=timeout)
            found += [self._read_row(row)[0] for row in rows.kvs]
            more = rows.more
            if rows.kvs:
                start = rows.kvs[-1].key + b"\x00"
        return found

    async def _find_place(self, timeout: float | None) -> None:
        newest = await self._find(None, timeout)
        if newest is not None and self._last is None:
            self._last = await self._load(newest, timeout)
        self._sequence = parse_id(newest)[0] if newest is not None else 0

    async def _find(self, revision: int | None, timeout: float | None) -> str | None:
        """Return the id of the newest checkpoint (as of `revision`), or None."""
        start, end = prefix_range(self._prefix)
        limit, more = (_SIBLINGS_MAX if revision is None else _KEYS_PER_PAGE), True
        best: tuple[int, int, str] | None = None
        while more:
            rows = await self._store.range(start, end, limit=limit, keys_only=True, timeout=timeout)
            for row in rows.kvs:
                checkpoint_id = id_of_key(row.key)
                if revision is None or row.mod_revision <= revision:
                    place = (parse_id(checkpoint_id)[0], row.mod_revision, checkpoint_id)
                    best = max(best, place) if best is not None else place
            if best is not None or not rows.kvs:
                break
            start, more = rows.kvs[-1].key + b"\x00", rows.more
        return best[2] if best is not None else None

    async def _load(self, checkpoint_id: str, timeout: float | None) -> _Loaded:
        checkpoint, record = await self._fetch(checkpoint_id, timeout)
        if record.base is None:
            state = await _in_thread(record.size, content_of, checkpoint_id, record, b"")
            return _Loaded(checkpoint, state, _Base(checkpoint_id, state, len(record.payload)), 0)
        base = self._last.base if self._last is not None else None
        if base is None or base.id != record.base:
            _, base_record = await self._fetch(record.base, timeout)
            base_state = await _in_thread(base_record.size, content_of, record.base, base_record, b"")
            base = _Base(record.base, base_state, len(base_record.payload))
        state = await _in_thread(record.size, content_of, checkpoint_id, record, base.state)
        return _Loaded(checkpoint, state, base, record.chain_bytes)

    async def _fetch(self, checkpoint_id: str, timeout: float | None) -> tuple[Checkpoint, Record]:
        row = await self._store.get(self._key(*parse_id(checkpoint_id)), timeout=timeout)
        if row is None:
            raise OutOfRangeError(f"workflow {self.name!r} has no checkpoint {checkpoint_id!r}", field="id")
        return self._read_row(row)

    def _read_row(self, row: Row) -> tuple[Checkpoint, Record]:
        checkpoint, record = read_row(row.key, row.value, row.mod_revision)
        if record.workflow != self.name:
            raise DataLossError(
                f"checkpoint {checkpoint.id} is of workflow {record.workflow!r}, not {self.name!r}"
            )
        return checkpoint, record

    async def _make_record(self, checkpoint_id: str, encoded: bytes, metadata: bytes) -> tuple[Record, _Base]:
        """Return the row's content, and the base that it builds on (itself, for a base)."""
        last, parent, base, chain_bytes = self._last, None, None, 0
        if last is not None:
            parent, base = last.checkpoint.id, last.base
            payload = await _in_thread(len(encoded), delta.compress, encoded, base.state)
            chain_bytes = last.chain_bytes + len(payload)
        if base is None or chain_bytes > base.payload_bytes:
            payload = await _in_thread(len(encoded), delta.compress, encoded)
            base, chain_bytes = _Base(checkpoint_id, encoded, len(payload)), 0
        record = Record(
            workflow=self.name,
            parent=parent,
            base=base.id if base.id != checkpoint_id else None,
            created_at=self._now(),
            size=len(encoded),
            checksum=xxhash.xxh3_128_digest(encoded),
            chain_bytes=chain_bytes,
            metadata=metadata,
            payload=payload,
        )
        return record, base

    def _key(self, sequence: int, writer: bytes) -> bytes:
        return pack((*self._prefix, -sequence, writer))


class Run(Protocol):
    """Runs a coroutine of the async client to its end, from another thread."""

    def __call__(self, coroutine: Coroutine[Any, Any, T], /) -> T:
        """Return what it returns; raise what it raises."""
        ...


class Workflow:
    """The sync face of an `AsyncWorkflow`, whose methods it runs in the loop of a client. Safe to use from
    threads.

    Args:
        inner: the workflow.
        run: runs a coroutine in the loop that `inner` belongs to.
    """

    def __init__(self, inner: AsyncWorkflow, run: Run) -> None:
        self.name = inner.name
        self._inner = inner
        self._run = run

    def checkpoint(
        self, state: object, metadata: object = None, *, timeout: float | None = None
    ) -> Checkpoint:
        """Save a state. See `AsyncWorkflow.checkpoint`."""
        return self._run(self._inner.checkpoint(state, metadata, timeout=timeout))

    @overload
    def restore(
        self, id: str | None = None, *, revision: int | None = None, timeout: float | None = None
    ) -> Restored[Any] | None: ...
    @overload
    def restore(
        self,
        id: str | None = None,
        *,
        type: type[T],
        revision: int | None = None,
        timeout: float | None = None,
    ) -> Restored[T] | None: ...
    def restore(
        self,
        id: str | None = None,
        *,
        type: Any = Any,
        revision: int | None = None,
        timeout: float | None = None,
    ) -> Restored[Any] | None:
        """Return a saved state, or None. See `AsyncWorkflow.restore`."""
        return self._run(self._inner.restore(id, type=type, revision=revision, timeout=timeout))

    def list(self, limit: int = LIST_LIMIT_DEFAULT, *, timeout: float | None = None) -> list[Checkpoint]:
        """Return up to `limit` checkpoints, the newest first."""
        return self._run(self._inner.list(limit, timeout=timeout))


def _name_component(name: str) -> Element:
    """Return what stands in keys for a workflow's name. Raises InvalidArgumentError."""
    if not isinstance(name, str) or not name:
        raise InvalidArgumentError(
            f"a workflow's name must be a str that is not empty, got {name!r:.80}", field="name"
        )
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(
            f"a workflow's name must be text that UTF-8 can hold, got {name!r:.80}", field="name"
        ) from None
    return name if len(raw) <= NAME_BYTES_MAX else hashlib.blake2b(raw, digest_size=20).digest()


def _check_whole(number: int, field: str, least: int) -> None:
    if not isinstance(number, int) or isinstance(number, bool) or number < least:
        raise InvalidArgumentError(
            f"{field} must be a whole number from {least} up, got {number!r:.80}", field=field
        )


def _too_large(record: Record) -> InvalidArgumentError:
    """Return the error for a row beyond the limit of a value, which blames what takes most of it."""
    limit = f"the limit of both together is {ROW_BYTES_MAX:,}"
    if len(record.metadata) > len(record.payload):
        return InvalidArgumentError(
            f"the metadata takes {len(record.metadata):,} bytes; {limit}, the state compressed."
            " Keep metadata small: it is not compressed, and list returns it",
            field="metadata",
        )
    return InvalidArgumentError(
        f"the state takes {len(record.payload):,} bytes compressed ({record.size:,} before), its metadata"
        f" {len(record.metadata):,}; {limit}. Keep large data elsewhere and its address in the state",
        field="state",
    )


async def _in_thread(size_bytes: int, function: Callable[..., R], *args: Any) -> R:
    """Call a function that works on so many bytes where it can't hold up the loop for long."""
    return await asyncio.to_thread(function, *args) if size_bytes >= _THREAD_BYTES_MIN else function(*args)
