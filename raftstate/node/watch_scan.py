"""Reads a bounded slice of the history, and says which of its changes which watches want.

The same for the newest changes, read on the event loop, and for those that a watch has missed, which may be
read on a thread: nothing here changes what others see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

from raftstate.errors import DataLossError
from raftstate.machine.history import changes_from, key_value, previous_pair
from raftstate.machine.layout import Change, ChangeKind, Meta
from raftstate.machine.tables import ReadTables
from raftstate.machine.types import KeyValue
from raftstate.node.service import WatchEvent

Position = tuple[int, int]
"""(revision, sub) of a change, or of the next one after it: all before it were read."""

EVENT_OVERHEAD_BYTES = 400
"""What an event takes in memory beside its keys and values: the objects around them. More than it takes on
the wire."""

_DELETE = ChangeKind.DELETE


class Wanting(Protocol):
    """What is looked at of those who want changes. It does not change while they do."""

    prev_kv: bool
    no_put: bool
    no_delete: bool


W = TypeVar("W", bound=Wanting)


class Held:
    """An event that pending news hold: of any number of streams, but it is in memory once."""

    __slots__ = ("event", "holders", "size_bytes")

    def __init__(self, event: WatchEvent) -> None:
        self.event = event
        self.holders = 0
        """Streams that have yet to hand it out."""
        size = EVENT_OVERHEAD_BYTES + len(event.kv.key) + len(event.kv.value)
        if event.prev_kv is not None:
            size += len(event.prev_kv.key) + len(event.prev_kv.value)
        self.size_bytes = size


class Found(NamedTuple, Generic[W]):
    """A change that is wanted."""

    position: Position
    wanted_by: list[W]
    plain: Held | None
    """For those who want no previous pair; None: there are none."""
    full: Held | DataLossError | None
    """For those who do; an error: the previous pair is damaged."""


@dataclass(frozen=True, slots=True)
class SliceLimits:
    """How much of the history a slice reads, at least one change. Whichever is reached first ends it."""

    changes: int
    size_bytes: int
    """Of what was read: keys and values."""
    matches: int
    """How often a change was wanted."""

    def less(self, read: Slice[W]) -> SliceLimits | None:
        """Return what is left of it after a slice; None: nothing."""
        left = SliceLimits(
            self.changes - read.changes, self.size_bytes - read.size_bytes, self.matches - read.matches
        )
        return left if min(left.changes, left.size_bytes, left.matches) > 0 else None


@dataclass(slots=True)
class Slice(Generic[W]):
    """What `read_slice` read."""

    position: Position
    """The next to read."""
    found: list[Found[W]] = field(default_factory=list)
    at_end: bool = False
    """Whether all was read that was asked for."""
    error: DataLossError | None = None
    """Why it could not be read on: a row at `position`, or after it but no later than `damaged_revision`, is
    damaged or missing."""
    damaged_revision: int = 0
    changes: int = 0
    size_bytes: int = 0
    matches: int = 0
    """How much was read, as `SliceLimits` counts it."""


def read_slice(
    tables: ReadTables,
    meta: Meta,
    start: Position,
    until: Position | None,
    find: Callable[[bytes], list[W]],
    limits: SliceLimits,
) -> Slice[W]:
    """Read changes in order, and find those that are wanted.

    Args:
        tables: where they stand.
        meta: as of `tables`.
        start: the first to read.
        until: the first not to read; None: read all that there is.
        find: who wants the changes to a key.
        limits: when to stop before.
    """
    end = (meta.revision + 1, 0) if until is None else until
    result: Slice[W] = Slice(start)
    if start >= end:
        result.at_end = True
        return result
    changes = size_bytes = matches = 0
    try:
        for revision, sub, change in changes_from(tables, *start):
            if (revision, sub) >= end:
                break
            result.position = (revision, sub + 1)
            found = _found(tables, meta, (revision, sub), change, find(change.key))
            if found is not None:
                result.found.append(found)
                matches += len(found.wanted_by)
                size_bytes += 0 if found.full is None else _previous_bytes(found.full)
            changes += 1
            size_bytes += len(change.key) + len(change.value)
            if changes >= limits.changes or size_bytes >= limits.size_bytes or matches >= limits.matches:
                return result
        else:
            last, sub = result.position
            if last < meta.revision or not sub:
                raise DataLossError(
                    f"the changes end before {last}.{sub}, but the state is at revision {meta.revision}"
                )
    except DataLossError as error:
        revision, sub = result.position
        result.error = error
        # Nothing tells how many changes a revision has: the one that lacks may be the first of the next.
        result.damaged_revision = min(revision + 1 if sub else revision, meta.revision)
        return result
    finally:
        result.changes, result.size_bytes, result.matches = changes, size_bytes, matches
    result.position = end
    result.at_end = True
    return result


def _found(
    tables: ReadTables, meta: Meta, position: Position, change: Change, matching: list[W]
) -> Found[W] | None:
    if not matching:
        return None
    if change.kind == _DELETE:
        wanted_by = [each for each in matching if not each.no_delete]
    else:
        wanted_by = [each for each in matching if not each.no_put]
    if not wanted_by:
        return None
    with_previous = sum(each.prev_kv for each in wanted_by)
    plain = Held(_event(position[0], change, None)) if with_previous < len(wanted_by) else None
    full: Held | DataLossError | None = None
    if with_previous:
        try:
            previous = previous_pair(tables, position[0], change, meta.compacted_revision)
            full = Held(_event(position[0], change, previous))
        except DataLossError as error:
            full = error
    return Found(position, wanted_by, plain, full)


def _event(revision: int, change: Change, previous: KeyValue | None) -> WatchEvent:
    if change.kind == _DELETE:
        return WatchEvent(True, KeyValue(change.key, b"", 0, revision, 0, 0), previous)
    return WatchEvent(False, key_value(change, revision), previous)


def _previous_bytes(full: Held | DataLossError) -> int:
    if isinstance(full, DataLossError) or full.event.prev_kv is None:
        return 0
    return len(full.event.prev_kv.value)
