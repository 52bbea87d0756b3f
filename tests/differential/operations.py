"""What a program is made of, and what is answered: plain data, the same for both stores.

Programs name revisions by where they stand (`Reference`), not by number, so that a program from which
operations were dropped still means something.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

TO_THE_END = b"\x00"
"""As range_end: all keys from the first one on."""

Target = Literal["version", "create_revision", "mod_revision", "value", "lease"]
Result = Literal["=", "!=", ">", "<"]
Order = Literal["none", "ascend", "descend"]
SortTarget = Literal["key", "version", "create_revision", "mod_revision", "value"]


@dataclass(frozen=True, slots=True)
class Reference:
    """A number that is known once the operation is about to be sent: never below 1.

    now: `offset` above the current revision; compacted: above that of the last compaction; between: `offset`
    thousandths of the way from there to now; created, modified, version: `offset` above what `key` was last
    seen to have.
    """

    base: Literal["now", "compacted", "between", "created", "modified", "version"]
    offset: int = 0
    key: bytes = b""


Number = int | Reference


# ---- operations


@dataclass(frozen=True, slots=True)
class Put:
    key: bytes
    value: bytes
    lease: int = 0
    prev_kv: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    key: bytes
    range_end: bytes = b""
    prev_kv: bool = False


@dataclass(frozen=True, slots=True)
class Range:
    key: bytes
    range_end: bytes = b""
    limit: int = 0
    revision: Number = 0
    keys_only: bool = False
    count_only: bool = False
    order: Order = "none"
    target: SortTarget = "key"


@dataclass(frozen=True, slots=True)
class Compare:
    key: bytes
    target: Target
    result: Result
    operand: Number | bytes
    range_end: bytes = b""


@dataclass(frozen=True, slots=True)
class Txn:
    compares: tuple[Compare, ...] = ()
    success: tuple[Put | Delete | Range, ...] = ()
    failure: tuple[Put | Delete | Range, ...] = ()


@dataclass(frozen=True, slots=True)
class Compact:
    revision: Number


@dataclass(frozen=True, slots=True)
class Grant:
    id: int
    ttl_s: int


@dataclass(frozen=True, slots=True)
class Revoke:
    id: int


@dataclass(frozen=True, slots=True)
class Renew:
    id: int


@dataclass(frozen=True, slots=True)
class TimeToLive:
    id: int
    keys: bool = True


@dataclass(frozen=True, slots=True)
class Leases:
    pass


@dataclass(frozen=True, slots=True)
class Watch:
    """Opens a watch called `name`. `start` 0: of what comes after it."""

    name: str
    key: bytes
    range_end: bytes = b""
    start: Number = 0
    prev_kv: bool = False
    no_put: bool = False
    no_delete: bool = False


@dataclass(frozen=True, slots=True)
class Collect:
    """Puts and deletes the first key of the watch `name`, and looks at all that it was sent up to there.

    Of no effect when no such watch is open.
    """

    name: str


Request = Put | Delete | Range | Txn | Compact | Grant | Revoke | Renew | TimeToLive | Leases
Operation = Request | Watch | Collect
WRITES = (Put, Delete, Txn, Compact, Grant, Revoke, Renew)


# ---- answers


class KeyValue(NamedTuple):
    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


class PutAnswer(NamedTuple):
    prev_kv: KeyValue | None


class DeleteAnswer(NamedTuple):
    deleted: int
    prev_kvs: list[KeyValue]


class RangeAnswer(NamedTuple):
    kvs: list[KeyValue]
    more: bool
    count: int


class TxnAnswer(NamedTuple):
    succeeded: bool
    responses: list[PutAnswer | DeleteAnswer | RangeAnswer]


class CompactAnswer(NamedTuple):
    pass


class LeaseAnswer(NamedTuple):
    """Of a grant, a renewal, a revoke (`ttl_s` 0) and of a lease's time to live: with its keys, in order."""

    id: int
    ttl_s: int
    keys: list[bytes]


class LeasesAnswer(NamedTuple):
    ids: list[int]


class Event(NamedTuple):
    kind: Literal["put", "delete"]
    kv: KeyValue
    prev_kv: KeyValue | None


class WatchAnswer(NamedTuple):
    """All events up to the end that was waited for.

    `ending`: "finished"; "compacted 17": refused, since its start lies below this revision; "late": the end
    did not come; or the status that broke the stream.
    """

    events: list[Event]
    ending: str


class Refusal(NamedTuple):
    """`kind`: the gRPC status by name. The message is each store's own, and not compared."""

    kind: str
    message: str


Answer = (
    PutAnswer
    | DeleteAnswer
    | RangeAnswer
    | TxnAnswer
    | CompactAnswer
    | LeaseAnswer
    | LeasesAnswer
    | WatchAnswer
    | Refusal
)


class Reply(NamedTuple):
    """`revision`: of the header; None where there is none, as with refusals and watches."""

    revision: int | None
    answer: Answer


# ---- what references mean


class Picture:
    """What one store has told so far, as much as references need."""

    def __init__(self) -> None:
        self.revision = 1
        self.compacted = 1
        self._seen: dict[bytes, KeyValue] = {}

    def learn(self, request: Request, reply: Reply) -> None:
        """Take in what was answered to a request."""
        if reply.revision is not None:
            self.revision = reply.revision
        if isinstance(request, Compact) and isinstance(reply.answer, CompactAnswer):
            assert isinstance(request.revision, int)
            self.compacted = request.revision
        for kv in pairs(reply.answer):
            self.see(kv)

    def see(self, kv: KeyValue) -> None:
        """Take in what some key was, or is."""
        self._seen[kv.key] = kv

    def number(self, number: Number) -> int:
        """Return what a number means now."""
        if isinstance(number, int):
            return number
        kv = self._seen.get(number.key)
        base = {
            "now": self.revision,
            "compacted": self.compacted,
            "between": self.compacted + (self.revision - self.compacted) * number.offset // 1000,
            "created": kv.create_revision if kv else 0,
            "modified": kv.mod_revision if kv else 0,
            "version": kv.version if kv else 0,
        }[number.base]
        return max(1, base if number.base == "between" else base + number.offset)

    def resolve(self, request: Request) -> Request:
        """Return the request with every reference replaced by its number."""
        if isinstance(request, Range | Compact):
            return replace(request, revision=self.number(request.revision))
        if isinstance(request, Txn):
            return Txn(
                tuple(
                    compare
                    if isinstance(compare.operand, bytes)
                    else replace(compare, operand=self.number(compare.operand))
                    for compare in request.compares
                ),
                tuple(map(self._resolve_nested, request.success)),
                tuple(map(self._resolve_nested, request.failure)),
            )
        return request

    def _resolve_nested(self, operation: Put | Delete | Range) -> Put | Delete | Range:
        if isinstance(operation, Range):
            return replace(operation, revision=self.number(operation.revision))
        return operation


def pairs(answer: Answer) -> list[KeyValue]:
    """Return the pairs of an answer that are what some key was, or is."""
    if isinstance(answer, PutAnswer):
        return [answer.prev_kv] if answer.prev_kv else []
    if isinstance(answer, DeleteAnswer):
        return answer.prev_kvs
    if isinstance(answer, RangeAnswer):
        return answer.kvs
    if isinstance(answer, TxnAnswer):
        return [kv for response in answer.responses for kv in pairs(response)]
    if isinstance(answer, WatchAnswer):
        return [event.kv for event in answer.events]
    return []
