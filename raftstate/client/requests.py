"""From arguments to what goes on the wire."""

from __future__ import annotations

from raftstate.client import limits
from raftstate.client.limits import Key
from raftstate.client.types import Consistency
from raftstate.errors import InvalidArgumentError
from raftstate.pb.v1 import common_pb2, kv_pb2

_CONSISTENCIES = {
    "linearizable": common_pb2.CONSISTENCY_LINEARIZABLE,
    "bounded": common_pb2.CONSISTENCY_BOUNDED,
    "local": common_pb2.CONSISTENCY_LOCAL,
}


def get_request(key: Key, consistency: Consistency, max_lag_ms: int) -> kv_pb2.GetRequest:
    """Return the request for one pair. Raises `InvalidArgumentError`."""
    request = kv_pb2.GetRequest(key=limits.encode_key(key))
    _set_freshness(request, consistency, max_lag_ms)
    return request


def range_request(
    interval: tuple[bytes, bytes],
    limit: int | None,
    keys_only: bool,
    count_only: bool,
    consistency: Consistency,
    max_lag_ms: int,
) -> kv_pb2.RangeRequest:
    """Return the request for the pairs of an interval. Raises `InvalidArgumentError`."""
    request = kv_pb2.RangeRequest(
        key=interval[0], range_end=interval[1], keys_only=keys_only, count_only=count_only
    )
    if limit is not None:
        request.limit = limits.check_count(limit, "limit", 1, limits.COUNT_MAX)
    _set_freshness(request, consistency, max_lag_ms)
    return request


def interval_to_read(start: Key | None, end: Key | None, prefix: Key | None) -> tuple[bytes, bytes]:
    """Return (key, range_end) for [start, end), None being open, or for a prefix from `start` on.

    Raises `InvalidArgumentError`.
    """
    if prefix is not None:
        return _interval_of_prefix(start, end, prefix)
    first = limits.ALL_KEYS if start is None else limits.encode_bound(start, "start")
    return first, limits.ALL_KEYS if end is None else limits.encode_bound(end, "end")


def _interval_of_prefix(start: Key | None, end: Key | None, prefix: Key) -> tuple[bytes, bytes]:
    if end is not None:
        raise InvalidArgumentError("give start and end, or prefix, not end and prefix", field="prefix")
    first, last = limits.prefix_interval(prefix)
    if start is None:
        return first, last
    bound = limits.encode_bound(start, "start")
    if not bound.startswith(limits.encode_text(prefix, "prefix")):
        raise InvalidArgumentError(
            f"start must begin with the prefix {prefix!r} when both are given, got {start!r}", field="start"
        )
    return bound, last


def interval_to_delete(key: Key, range_end: Key | None, prefix: bool) -> tuple[bytes, bytes]:
    """Return (key, range_end) for one key, for [key, range_end), or for the prefix `key`.

    Raises `InvalidArgumentError`.
    """
    if prefix:
        if range_end is not None:
            raise InvalidArgumentError("give range_end or prefix=True, not both", field="range_end")
        return limits.prefix_interval(key)
    return limits.encode_key(key), b"" if range_end is None else limits.encode_bound(range_end, "range_end")


def _set_freshness(
    request: kv_pb2.GetRequest | kv_pb2.RangeRequest, consistency: Consistency, max_lag_ms: int
) -> None:
    if not isinstance(consistency, str) or consistency not in _CONSISTENCIES:
        known = ", ".join(map(repr, _CONSISTENCIES))
        raise InvalidArgumentError(
            f"consistency must be one of {known}, got {consistency!r}", field="consistency"
        )
    request.consistency = _CONSISTENCIES[consistency]
    if consistency == "bounded":
        request.max_staleness_ms = limits.check_count(max_lag_ms, "max_lag_ms", 1, limits.LAG_MS_MAX)
