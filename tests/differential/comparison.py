"""When two answers are the same.

Equal in everything, but for what is each store's own affair:
- the text of a refusal; its kind must be equal;
- which of several pairs that are equal in the target of a sort comes first. If a limit cuts through such
  pairs, any of them may be the ones returned;
- of a watch that starts at the very revision of the last compaction, the deletions of that revision: etcd 3.4
  drops them with the history before (etcd-io/etcd#18089), ours keeps them.
"""

from __future__ import annotations

from itertools import groupby

from tests.differential.operations import (
    Answer,
    Range,
    RangeAnswer,
    Refusal,
    Reply,
    Request,
    Txn,
    TxnAnswer,
    WatchAnswer,
)


def same(request: Request, one: Reply, other: Reply) -> bool:
    """Return whether both replies to a request say the same."""
    return one.revision == other.revision and _same_answer(request, one.answer, other.answer)


def same_watch(start: int, compacted: int, one: WatchAnswer, other: WatchAnswer) -> bool:
    """Return whether both were sent the same from `start` on. `compacted`: the revision of the last
    compaction when the watches were opened."""
    if "late" in (one.ending, other.ending):
        return False
    if start != compacted:
        return one == other
    return _without_deletions_at(start, one) == _without_deletions_at(start, other)


def _same_answer(request: Request, one: Answer, other: Answer) -> bool:
    match request, one, other:
        case _, Refusal(), Refusal():
            return one.kind == other.kind
        case Range(), RangeAnswer(), RangeAnswer():
            return _same_range(request, one, other)
        case Txn(), TxnAnswer(), TxnAnswer():
            if one.succeeded != other.succeeded or len(one.responses) != len(other.responses):
                return False
            branch = request.success if one.succeeded else request.failure
            return all(map(_same_answer, branch, one.responses, other.responses))
        case _:
            return type(one) is type(other) and one == other


def _same_range(asked: Range, one: RangeAnswer, other: RangeAnswer) -> bool:
    if asked.target == "key":
        return one == other
    if (one.more, one.count, len(one.kvs)) != (other.more, other.count, len(other.kvs)):
        return False

    # Without values, a sort by value is a single tie here: `runner` looks at its order.
    places = [getattr(kv, asked.target) for kv in one.kvs]
    if places != [getattr(kv, asked.target) for kv in other.kvs]:
        return False
    end = 0
    for _, tied in groupby(places):
        start, end = end, end + len(list(tied))
        is_cut = one.more and end == len(places)
        if not is_cut and sorted(one.kvs[start:end]) != sorted(other.kvs[start:end]):
            return False
    return True


def _without_deletions_at(revision: int, answer: WatchAnswer) -> WatchAnswer:
    kept = [event for event in answer.events if event.kind != "delete" or event.kv.mod_revision != revision]
    return answer._replace(events=kept)
