"""From arguments to what goes on the wire."""

from __future__ import annotations

from typing import NamedTuple

from raftstate.client import limits
from raftstate.client.limits import Key
from raftstate.client.types import Consistency, SortBy
from raftstate.errors import InvalidArgumentError
from raftstate.pb.v1 import common_pb2, kv_pb2, txn_pb2

_CONSISTENCIES = {
    "linearizable": common_pb2.CONSISTENCY_LINEARIZABLE,
    "bounded": common_pb2.CONSISTENCY_BOUNDED,
    "local": common_pb2.CONSISTENCY_LOCAL,
    # Any state will do that includes what this client has seen: `reads` adds what that is.
    "session": common_pb2.CONSISTENCY_LOCAL,
}
_SORT_TARGETS = {
    "key": txn_pb2.SORT_TARGET_KEY,
    "version": txn_pb2.SORT_TARGET_VERSION,
    "create": txn_pb2.SORT_TARGET_CREATE_REVISION,
    "mod": txn_pb2.SORT_TARGET_MOD_REVISION,
    "value": txn_pb2.SORT_TARGET_VALUE,
}


class RangeQuery(NamedTuple):
    """What a range is asked for, in a read and in a transaction alike."""

    key: bytes
    range_end: bytes
    limit: int
    revision: int
    sort_order: txn_pb2.SortOrder
    sort_target: txn_pb2.SortTarget
    keys_only: bool
    count_only: bool

    @property
    def by_key(self) -> bool:
        """Whether the keys ascend."""
        return self.sort_order == txn_pb2.SORT_ORDER_NONE

    def fill(self, message: kv_pb2.RangeRequest | txn_pb2.RangeOp) -> None:
        """Write it into a message of the wire."""
        message.key = self.key
        message.range_end = self.range_end
        message.limit = self.limit
        message.revision = self.revision
        message.sort_order = self.sort_order
        message.sort_target = self.sort_target
        message.keys_only = self.keys_only
        message.count_only = self.count_only


def range_query(
    interval: tuple[bytes, bytes],
    limit: int | None,
    revision: int | None,
    sort: SortBy | None,
    descending: bool,
    keys_only: bool,
    count_only: bool,
) -> RangeQuery:
    """Return what a range is asked for. Raises `InvalidArgumentError`."""
    order, target = _sorting(sort, limits.check_flag(descending, "descending"))
    return RangeQuery(
        *interval,
        0 if limit is None else limits.check_count(limit, "limit", 1, limits.COUNT_MAX),
        revision_number(revision),
        order,
        target,
        limits.check_flag(keys_only, "keys_only"),
        limits.check_flag(count_only, "count_only"),
    )


def get_request(
    key: Key, revision: int | None, consistency: Consistency, max_lag_ms: int
) -> kv_pb2.GetRequest:
    """Return the request for one pair. Raises `InvalidArgumentError`."""
    request = kv_pb2.GetRequest(key=limits.encode_key(key), revision=revision_number(revision))
    _set_freshness(request, consistency, max_lag_ms)
    return request


def range_request(query: RangeQuery, consistency: Consistency, max_lag_ms: int) -> kv_pb2.RangeRequest:
    """Return the request for the pairs of an interval. Raises `InvalidArgumentError`."""
    request = kv_pb2.RangeRequest()
    query.fill(request)
    _set_freshness(request, consistency, max_lag_ms)
    return request


def revision_number(revision: int | None) -> int:
    """Return a revision as the wire has it: 0 for None, the latest. Raises `InvalidArgumentError`."""
    return 0 if revision is None else limits.check_count(revision, "revision", 1, limits.REVISION_MAX)


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
    if limits.check_flag(prefix, "prefix"):
        if range_end is not None:
            raise InvalidArgumentError("give range_end or prefix=True, not both", field="range_end")
        return limits.prefix_interval(key)
    return limits.encode_key(key), b"" if range_end is None else limits.encode_bound(range_end, "range_end")


def interval_to_compare(key: Key | None, range_end: Key | None, prefix: Key | None) -> tuple[bytes, bytes]:
    """Return (key, range_end) for one key, for [key, range_end), or for a prefix.

    Raises `InvalidArgumentError`.
    """
    if prefix is not None:
        if key is not None or range_end is not None:
            raise InvalidArgumentError("give key and range_end, or prefix, not both", field="prefix")
        return limits.prefix_interval(prefix)
    if key is None:
        raise InvalidArgumentError("give a key or a prefix; got neither", field="key")
    return interval_to_delete(key, range_end, False)


def _sorting(sort: SortBy | None, descending: bool) -> tuple[txn_pb2.SortOrder, txn_pb2.SortTarget]:
    if sort is not None and (not isinstance(sort, str) or sort not in _SORT_TARGETS):
        known = ", ".join(map(repr, _SORT_TARGETS))
        raise InvalidArgumentError(f"sort must be None or one of {known}, got {sort!r:.80}", field="sort")
    target = _SORT_TARGETS[sort or "key"]
    if descending:
        return txn_pb2.SORT_ORDER_DESCEND, target
    # Ascending by key is the order in which keys are found; asked for by its name, all would be looked at.
    is_found_so = target == txn_pb2.SORT_TARGET_KEY
    return txn_pb2.SORT_ORDER_NONE if is_found_so else txn_pb2.SORT_ORDER_ASCEND, target


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
