"""What is refused before a node is asked: bytes that are no request, unknown fields, keys out of bounds,
undefined enum values, another cluster's id.

Commands are judged by the machine's own check; what stands here is for reads, and for the parts of a request
that never reach a command.
"""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from raftstate.errors import InvalidArgumentError, WrongClusterError
from raftstate.machine.command import find_unknown
from raftstate.machine.types import KEY_BYTES_MAX
from raftstate.node.service import ReadConsistency
from raftstate.pb.v1 import kv_pb2

M = TypeVar("M", bound=Message)


def parse(kind: type[M], raw: bytes) -> M:
    """Return the message in `raw`. Raises `InvalidArgumentError` when there is none, or a field that this
    version does not know.

    Dropping an unknown field in silence would answer another question than the one that was asked.
    """
    try:
        message: M = kind.FromString(raw)
    except DecodeError as error:
        raise InvalidArgumentError(
            f"the {len(raw)} bytes of the request are no {kind.DESCRIPTOR.full_name}; generate the stub from"
            " this version's .proto files"
        ) from error
    unknown = find_unknown(message)
    if unknown is not None:
        path, number = unknown
        raise InvalidArgumentError(
            f"unknown field: got field number {number} in {path or kind.DESCRIPTOR.name}, which this node's"
            " version does not know; upgrade the node or leave the field out",
            field=f"{path}.{number}" if path else str(number),
        )
    return message


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
    return _consistency(request.consistency)


def check_range(request: kv_pb2.RangeRequest) -> ReadConsistency:
    """Check a Range and return its consistency. Raises `InvalidArgumentError`."""
    if request.range_end:
        _check_bound("key", request.key)
        _check_bound("range_end", request.range_end)
    else:
        _check_key("key", request.key, KEY_BYTES_MAX)
    return _consistency(request.consistency)


def _check_bound(field: str, bound: bytes) -> None:
    """A bound may be the successor of the longest key, one zero byte longer than it: there the next page of a
    range starts."""
    _check_key(field, bound, KEY_BYTES_MAX + bound.endswith(b"\x00"))


def _check_key(field: str, key: bytes, bytes_max: int) -> None:
    if not 1 <= len(key) <= bytes_max:
        raise InvalidArgumentError(f"{field} must have 1 to {bytes_max} bytes, got {len(key)}", field=field)


def _consistency(value: int) -> ReadConsistency:
    try:
        return ReadConsistency(value)
    except ValueError as error:
        known = ", ".join(f"{each.value} ({each.name.lower()})" for each in ReadConsistency)
        raise InvalidArgumentError(
            f"consistency must be one of {known}, got {value}", field="consistency"
        ) from error
