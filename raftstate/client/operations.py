"""What a command of the pipeline does: operations, and what each makes of its answer.

The ledger knows them by one face, `Operation`. `Put`, `Get`, `Range` and `Delete` are the operations of
transactions, too; `txn` puts those together to one of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol, TypeVar

from raftstate.client import limits, requests
from raftstate.client.limits import BytesLike, HasId, Key
from raftstate.client.results import delete_result, key_value, put_result
from raftstate.client.types import DeleteResult, KeyValue, PutResult, RangeResult, SortBy
from raftstate.errors import IndefiniteError
from raftstate.pb.v1 import pipeline_pb2, txn_pb2

T = TypeVar("T", covariant=True)

_COMMAND_BYTES = 40
"""More than the wire adds to the keys and values of a command: serial, tags and lengths."""
_NUMBERS_BYTES = 48
"""More than the wire takes for the numbers and flags of any operation."""


class Operation(Protocol[T]):
    """What one command does. It may be sent any number of times.

    Its results raise `IndefiniteError` when a node's answer is none to such an operation.
    """

    @property
    def size_bytes(self) -> int:
        """At least what its command takes on the wire."""
        ...

    def fill(self, command: pipeline_pb2.Command) -> None:
        """Write it into a command that holds nothing but its serial."""
        ...

    def done(self, revision: int) -> T:
        """Return the result of a command whose answer says nothing but its revision."""
        ...

    def result(self, answer: pipeline_pb2.Answer) -> T:
        """Return the result that an answer without an error holds."""
        ...


# ---- operations that transactions have, too


@dataclass(init=False, slots=True)
class Put:
    """Stores a value under a key.

    Args:
        key: 1 to 480 bytes; a str counts in UTF-8.
        value: bytes-like, at most 8 MiB.
        lease: attach the key to this lease, given by its handle or id, and to no other; 0 takes it off the
            one that it had.
        prev_kv: return the pair as it was before, too.

    Raises:
        InvalidArgumentError: an argument is not within its limits.
    """

    key: bytes
    value: bytes
    lease: int
    prev_kv: bool
    size_bytes: int = field(repr=False, compare=False)

    def __init__(self, key: Key, value: BytesLike, *, lease: int | HasId = 0, prev_kv: bool = False) -> None:
        self.key = key = limits.encode_key(key)
        self.value = value = limits.encode_value(value)
        self.lease = limits.lease_id(lease) if lease != 0 else 0
        self.prev_kv = prev_kv if prev_kv is False else limits.check_flag(prev_kv, "prev_kv")
        self.size_bytes = len(key) + len(value) + _COMMAND_BYTES

    def fill(self, command: pipeline_pb2.Command | txn_pb2.RequestOp) -> None:
        """See `Operation.fill`."""
        put = command.put
        put.key = self.key
        put.value = self.value
        if self.lease:
            put.lease = self.lease
        if self.prev_kv:
            put.prev_kv = True

    done = staticmethod(PutResult)
    """See `Operation.done`."""

    def result(self, answer: pipeline_pb2.Answer) -> PutResult:
        """See `Operation.result`."""
        return put_result(answer)

    def response(self, response: txn_pb2.ResponseOp, revision: int) -> PutResult:
        """Return what it gave in a transaction."""
        put = response.put
        return PutResult(revision, key_value(put.prev_kv) if put.HasField("prev_kv") else None)


@dataclass(init=False, slots=True)
class Delete:
    """Deletes a key, or all keys of an interval or with a prefix.

    Args:
        key: the key, or the first one of an interval.
        range_end: delete all keys of [key, range_end).
        prefix: delete all keys that begin with `key` ("": every key).
        prev_kv: return the pairs as they were, too.

    Raises:
        InvalidArgumentError: an argument is not within its limits, or they don't go together.
    """

    key: bytes
    range_end: bytes
    prev_kv: bool
    size_bytes: int = field(repr=False, compare=False)

    def __init__(
        self,
        key: Key,
        *,
        range_end: Key | None = None,
        prefix: bool = False,
        prev_kv: bool = False,
    ) -> None:
        self.key, self.range_end = requests.interval_to_delete(key, range_end, prefix)
        self.prev_kv = limits.check_flag(prev_kv, "prev_kv")
        self.size_bytes = len(self.key) + len(self.range_end) + _COMMAND_BYTES

    def fill(self, command: pipeline_pb2.Command | txn_pb2.RequestOp) -> None:
        """See `Operation.fill`."""
        delete = command.delete
        delete.key = self.key
        delete.range_end = self.range_end
        delete.prev_kv = self.prev_kv

    def done(self, revision: int) -> DeleteResult:
        """See `Operation.done`."""
        return DeleteResult(revision, 0)

    def result(self, answer: pipeline_pb2.Answer) -> DeleteResult:
        """See `Operation.result`."""
        return delete_result(answer)

    def response(self, response: txn_pb2.ResponseOp, revision: int) -> DeleteResult:
        """Return what it gave in a transaction."""
        delete = response.delete
        return DeleteResult(revision, delete.deleted, tuple(map(key_value, delete.prev_kvs)))


@dataclass(init=False, slots=True)
class Get:
    """Reads the pair under a key, in a transaction.

    Args:
        key: 1 to 480 bytes; a str counts in UTF-8.
        revision: read as of this revision; None: what the operations before it left.

    Raises:
        InvalidArgumentError: an argument is not within its limits.
    """

    key: bytes
    revision: int
    size_bytes: int = field(repr=False, compare=False)

    def __init__(self, key: Key, *, revision: int | None = None) -> None:
        self.key = limits.encode_key(key)
        self.revision = requests.revision_number(revision)
        self.size_bytes = len(self.key) + _COMMAND_BYTES

    def fill(self, operation: txn_pb2.RequestOp) -> None:
        """Write it into an operation of a transaction."""
        operation.range.key = self.key
        operation.range.revision = self.revision

    def response(self, response: txn_pb2.ResponseOp, revision: int) -> KeyValue | None:
        """Return what it gave in a transaction."""
        kvs = response.range.kvs
        return key_value(kvs[0]) if kvs else None


@dataclass(init=False, slots=True)
class Range:
    """Reads the pairs of an interval, or those under a prefix, in a transaction.

    Arguments are those of `AsyncClient.range`; without a revision it sees what the operations before it left.

    Raises:
        InvalidArgumentError: an argument is not within its limits, or they don't go together.
    """

    query: requests.RangeQuery
    size_bytes: int = field(repr=False, compare=False)

    def __init__(
        self,
        start: Key | None = None,
        end: Key | None = None,
        *,
        prefix: Key | None = None,
        limit: int | None = None,
        revision: int | None = None,
        sort: SortBy | None = None,
        descending: bool = False,
        keys_only: bool = False,
        count_only: bool = False,
    ) -> None:
        interval = requests.interval_to_read(start, end, prefix)
        self.query = requests.range_query(interval, limit, revision, sort, descending, keys_only, count_only)
        self.size_bytes = len(interval[0]) + len(interval[1]) + _COMMAND_BYTES + _NUMBERS_BYTES

    def fill(self, operation: txn_pb2.RequestOp) -> None:
        """Write it into an operation of a transaction."""
        self.query.fill(operation.range)

    def response(self, response: txn_pb2.ResponseOp, revision: int) -> RangeResult:
        """Return what it gave in a transaction."""
        found = response.range
        kvs = tuple(map(key_value, found.kvs))
        return RangeResult(kvs, found.more, found.count, revision, self.query.by_key)


# ---- operations that stand alone


@dataclass(frozen=True, slots=True)
class Compact:
    """Forgets the history before a revision."""

    revision: int

    size_bytes: ClassVar[int] = _COMMAND_BYTES

    def fill(self, command: pipeline_pb2.Command) -> None:
        """See `Operation.fill`."""
        command.compact.revision = self.revision

    def done(self, revision: int) -> None:
        """See `Operation.done`."""

    def result(self, answer: pipeline_pb2.Answer) -> None:
        """See `Operation.result`."""


class Erased(NamedTuple):
    """An erase that was applied."""

    revision: int
    deleted: bool


@dataclass(init=False, slots=True)
class Erase:
    """Deletes a key together with its history.

    Raises `InvalidArgumentError` when the key is not within its limits.
    """

    key: bytes
    size_bytes: int = field(repr=False, compare=False)

    def __init__(self, key: Key) -> None:
        self.key = limits.encode_key(key)
        self.size_bytes = len(self.key) + _COMMAND_BYTES

    def fill(self, command: pipeline_pb2.Command) -> None:
        """See `Operation.fill`."""
        command.erase.key = self.key

    def done(self, revision: int) -> Erased:
        """See `Operation.done`."""
        return Erased(revision, False)

    def result(self, answer: pipeline_pb2.Answer) -> Erased:
        """See `Operation.result`."""
        return Erased(answer.revision, bool(answer.deleted))


class Granted(NamedTuple):
    """A lease that was granted or renewed."""

    id: int
    ttl_ms: int


class _Lease:
    """What grants and renewals have in common: their answer."""

    __slots__ = ()

    size_bytes: ClassVar[int] = _COMMAND_BYTES

    def done(self, revision: int) -> Granted:
        """See `Operation.done`."""
        raise IndefiniteError("the node answered a grant or renewal of a lease without saying of which")

    def result(self, answer: pipeline_pb2.Answer) -> Granted:
        """See `Operation.result`."""
        return Granted(answer.lease.id, answer.lease.ttl_ms)


@dataclass(frozen=True, slots=True)
class GrantLease(_Lease):
    """Grants a lease. `id` 0: the cluster chooses one."""

    id: int
    ttl_ms: int

    def fill(self, command: pipeline_pb2.Command) -> None:
        """See `Operation.fill`."""
        command.lease_grant.id = self.id
        command.lease_grant.ttl_ms = self.ttl_ms


@dataclass(frozen=True, slots=True)
class RenewLease(_Lease):
    """Makes a lease live for its whole time to live from now on."""

    id: int

    def fill(self, command: pipeline_pb2.Command) -> None:
        """See `Operation.fill`."""
        command.lease_renew.id = self.id


@dataclass(frozen=True, slots=True)
class RevokeLease:
    """Ends a lease and deletes its keys; results in how many they were."""

    id: int

    size_bytes: ClassVar[int] = _COMMAND_BYTES

    def fill(self, command: pipeline_pb2.Command) -> None:
        """See `Operation.fill`."""
        command.lease_revoke.id = self.id

    def done(self, revision: int) -> int:
        """See `Operation.done`."""
        return 0

    def result(self, answer: pipeline_pb2.Answer) -> int:
        """See `Operation.result`."""
        return answer.deleted
