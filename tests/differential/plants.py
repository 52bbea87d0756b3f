"""Small wrong behaviours, put between the runner and our node: a differential test that misses one is worth
nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from tests.differential.operations import (
    Compact,
    Compare,
    Delete,
    DeleteAnswer,
    LeaseAnswer,
    Put,
    PutAnswer,
    Range,
    RangeAnswer,
    Reply,
    Request,
    Revoke,
    TimeToLive,
    Txn,
    Watch,
    WatchAnswer,
)
from tests.differential.store import OpenWatch, Ours


class Planted:
    """A store that does one thing wrong: a plant overrides what it spoils."""

    def __init__(self, ours: Ours) -> None:
        self._ours = ours

    def begin(self, request: Request) -> Callable[[], Reply]:
        """As `Ours.begin`."""
        wait = self._ours.begin(self.spoil_request(request))
        return lambda: self.spoil_reply(request, wait())

    def watch(self, watch: Watch, start: int) -> OpenWatch:
        """As `Ours.watch`."""
        return _PlantedWatch(self._ours.watch(watch, start), self.spoil_events)

    def spoil_request(self, request: Request) -> Request:
        """Return what is sent in place of the request."""
        return request

    def spoil_reply(self, request: Request, reply: Reply) -> Reply:
        """Return what is answered in place of the reply."""
        return reply

    def spoil_events(self, answer: WatchAnswer) -> WatchAnswer:
        """Return what a watch is sent in place of the answer."""
        return answer


class _PlantedWatch(NamedTuple):
    opened: OpenWatch
    spoil: Callable[[WatchAnswer], WatchAnswer]

    def collect(self, until: int) -> WatchAnswer:
        return self.spoil(self.opened.collect(until))

    def close(self) -> None:
        self.opened.close()


class UnsortedRanges(Planted):
    """Ranges come in the order of their keys, whatever was asked for."""

    def spoil_request(self, request: Request) -> Request:
        return replace(request, order="none", target="key") if isinstance(request, Range) else request


class MoreAtTheLimit(Planted):
    """A range of exactly as many keys as its limit claims that there are more."""

    def spoil_reply(self, request: Request, reply: Reply) -> Reply:
        answer = reply.answer
        if (
            isinstance(request, Range)
            and isinstance(answer, RangeAnswer)
            and request.limit == len(answer.kvs) > 0
        ):
            return reply._replace(answer=answer._replace(more=True))
        return reply


class VersionGoesOnAfterDelete(Planted):
    """A key that was deleted by itself and put again has version 2."""

    def __init__(self, ours: Ours) -> None:
        super().__init__(ours)
        self._deleted: set[bytes] = set()

    def spoil_reply(self, request: Request, reply: Reply) -> Reply:
        answer = reply.answer
        if isinstance(request, Delete) and isinstance(answer, DeleteAnswer) and answer.deleted == 1:
            self._deleted.add(request.key)
        if not isinstance(answer, RangeAnswer):
            return reply
        kvs = [kv._replace(version=kv.version + (kv.key in self._deleted)) for kv in answer.kvs]
        return reply._replace(answer=answer._replace(kvs=kvs))


class SwappedBranch(Planted):
    """A transaction with one compare, of a version to be less than a number, runs the other branch."""

    def spoil_request(self, request: Request) -> Request:
        match request:
            case Txn((Compare(target="version", result="<"),), success, failure):
                return replace(request, success=failure, failure=success)
        return request


class CompareOfAbsentKeyHolds(Planted):
    """Compares of a value to differ are left out, as if they held for a key that is not there."""

    def spoil_request(self, request: Request) -> Request:
        if not isinstance(request, Txn):
            return request
        kept = [
            compare for compare in request.compares if (compare.target, compare.result) != ("value", "!=")
        ]
        return replace(request, compares=tuple(kept))


class NoPrevKv(Planted):
    """Puts don't return the pair before."""

    def spoil_reply(self, request: Request, reply: Reply) -> Reply:
        return reply._replace(answer=PutAnswer(None)) if isinstance(reply.answer, PutAnswer) else reply


class CompactsOneTooFew(Planted):
    """A compaction leaves one revision more than it should."""

    def spoil_request(self, request: Request) -> Request:
        if isinstance(request, Compact):
            assert isinstance(request.revision, int)
            return Compact(request.revision - 1)
        return request


class RevokeMakesNoRevision(Planted):
    """A revoke of a lease with keys is answered with the revision before it."""

    def __init__(self, ours: Ours) -> None:
        super().__init__(ours)
        self._revision = 1

    def spoil_reply(self, request: Request, reply: Reply) -> Reply:
        before, self._revision = self._revision, reply.revision or self._revision
        return reply._replace(revision=before) if isinstance(request, Revoke) and reply.revision else reply


class LeaseStaysAttached(Planted):
    """A put without a lease leaves the key with the one that a put by itself gave it before."""

    def __init__(self, ours: Ours) -> None:
        super().__init__(ours)
        self._leases: dict[bytes, int] = {}

    def spoil_request(self, request: Request) -> Request:
        if isinstance(request, Put) and request.lease:
            self._leases[request.key] = request.lease
        elif isinstance(request, Put) and request.key in self._leases:
            return replace(request, lease=self._leases.pop(request.key))
        return request


class LeaseForgetsAKey(Planted):
    """A lease with several keys names all but one of them."""

    def spoil_reply(self, request: Request, reply: Reply) -> Reply:
        answer = reply.answer
        if isinstance(request, TimeToLive) and isinstance(answer, LeaseAnswer) and len(answer.keys) > 1:
            return reply._replace(answer=answer._replace(keys=answer.keys[:-1]))
        return reply


class WatchLosesAnEvent(Planted):
    """Of several events of one revision, a watch is not sent the last."""

    def spoil_events(self, answer: WatchAnswer) -> WatchAnswer:
        events = answer.events
        revisions = [event.kv.mod_revision for event in events] + [0]
        is_last = [one != other for one, other in pairwise(revisions)]
        kept = [
            event
            for number, event in enumerate(events)
            if number == 0 or not is_last[number] or is_last[number - 1]
        ]
        return answer._replace(events=kept)


PLANTS: dict[str, type[Planted]] = {
    "unsorted-ranges": UnsortedRanges,
    "more-at-the-limit": MoreAtTheLimit,
    "version-goes-on-after-delete": VersionGoesOnAfterDelete,
    "swapped-branch": SwappedBranch,
    "compare-of-absent-key-holds": CompareOfAbsentKeyHolds,
    "no-prev-kv": NoPrevKv,
    "compacts-one-too-few": CompactsOneTooFew,
    "revoke-makes-no-revision": RevokeMakesNoRevision,
    "lease-stays-attached": LeaseStaysAttached,
    "lease-forgets-a-key": LeaseForgetsAKey,
    "watch-loses-an-event": WatchLosesAnEvent,
}
