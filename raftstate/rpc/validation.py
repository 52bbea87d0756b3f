"""What is refused before a node is asked: bytes that are no request, unknown fields, keys out of bounds,
undefined enum values, another cluster's id.

Commands are judged by the machine's own check; what stands here is for reads, and for the parts of a request
that never reach a command.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from raftstate.errors import InvalidArgumentError, WrongClusterError
from raftstate.machine.command import find_unknown
from raftstate.machine.reader import Sort, SortTarget
from raftstate.machine.txn import sort_of
from raftstate.machine.types import KEY_BYTES_MAX, covers
from raftstate.node.service import ReadConsistency
from raftstate.pb.v1 import kv_pb2, watch_pb2

M = TypeVar("M", bound=Message)
E = TypeVar("E", bound=IntEnum)


class SortOrder(IntEnum):
    """Which way a range is sorted. The numbers are those of the wire's SortOrder."""

    NONE = 0
    ASCEND = 1
    DESCEND = 2


def parse(kind: type[M], raw: bytes) -> M:
    """Return the message in `raw`. Raises `InvalidArgumentError` when there is none, or a field that this
    version does not know."""
    message = decode(kind, raw)
    check_known(message)
    return message


def decode(kind: type[M], raw: bytes) -> M:
    """Return the message in `raw`. Raises `InvalidArgumentError` when there is none."""
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        raise InvalidArgumentError(
            f"the {len(raw)} bytes of the request are no {kind.DESCRIPTOR.full_name}; generate the stub from"
            " this version's .proto files"
        ) from error


def check_known(message: Message) -> None:
    """Raise `InvalidArgumentError` when a message holds, at any depth, a field not known to this version.

    Dropping one in silence would answer another question than the one that was asked.
    """
    unknown = find_unknown(message)
    if unknown is not None:
        path, number = unknown
        raise InvalidArgumentError(
            f"unknown field: got field number {number} in {path or message.DESCRIPTOR.name}, which this"
            " node's version does not know; upgrade the node or leave the field out",
            field=f"{path}.{number}" if path else str(number),
        )


def check_cluster(asked: int, cluster_id: int) -> None:
    """Raise `WrongClusterError` when a request names another cluster. 0 names none."""
    if asked not in (0, cluster_id):
        raise WrongClusterError(
            f"this node is of cluster {cluster_id:016x}, the request is for cluster {asked:016x}, and was not"
            " run; check the addresses that the client was given",
            field="cluster_id",
        )


def check_get(request: kv_pb2.GetRequest) -> ReadConsistency:
    """Check a Get and return its consistency. Raises `InvalidArgumentError`."""
    _check_key("key", request.key, KEY_BYTES_MAX)
    return check_consistency(request.consistency)


def check_range(request: kv_pb2.RangeRequest) -> ReadConsistency:
    """Check a Range, but for its order, and return its consistency. Raises `InvalidArgumentError`."""
    _check_interval(request.key, request.range_end)
    return check_consistency(request.consistency)


def check_watch(create: watch_pb2.WatchCreate) -> None:
    """Check what a watch wants, but for its id, which is the node's affair.

    Raises `InvalidArgumentError`. What could never have an event is refused, too: it is a mistake.
    """
    _check_interval(create.key, create.range_end)
    start, end = covers(create.key, create.range_end)
    if end is not None and end <= start:
        raise InvalidArgumentError(
            f"range_end must lie above key, or nothing can happen between them: got key {start!r}, range_end"
            f" {end!r}",
            field="range_end",
        )
    if create.no_put and create.no_delete:
        raise InvalidArgumentError(
            "no_put and no_delete leave nothing to watch; set one of them at most", field="no_delete"
        )


def check_consistency(value: int) -> ReadConsistency:
    """Return how fresh a read must be by its request. Raises `InvalidArgumentError`."""
    return _check_enum(ReadConsistency, "consistency", value)


def check_sort(order: int, target: int) -> Sort | None:
    """Return the order of pairs that a Range asks for, as `sort_of`. Raises `InvalidArgumentError`."""
    return sort_of(
        _check_enum(SortOrder, "sort_order", order), _check_enum(SortTarget, "sort_target", target)
    )


def _check_interval(key: bytes, range_end: bytes) -> None:
    if range_end:
        _check_bound("key", key)
        _check_bound("range_end", range_end)
    else:
        _check_key("key", key, KEY_BYTES_MAX)


def _check_bound(field: str, bound: bytes) -> None:
    """A bound may be the successor of the longest key, one zero byte longer than it: there the next page of a
    range starts."""
    _check_key(field, bound, KEY_BYTES_MAX + bound.endswith(b"\x00"))


def _check_key(field: str, key: bytes, bytes_max: int) -> None:
    if not 1 <= len(key) <= bytes_max:
        raise InvalidArgumentError(f"{field} must have 1 to {bytes_max} bytes, got {len(key)}", field=field)


def _check_enum(kind: type[E], field: str, value: int) -> E:
    try:
        return kind(value)
    except ValueError as error:
        known = ", ".join(f"{each.value} ({each.name.lower()})" for each in kind)
        raise InvalidArgumentError(f"{field} must be one of {known}, got {value}", field=field) from error
