"""The judgement over watches: it counts what is missing, repeated, out of order or foreign."""

from __future__ import annotations

from array import array

from bench.watch_load import Records, Verdict, Written, judge, lags_ms

WRITTEN = Written(
    prefixes=2,
    # Number 0 was a transaction of two puts; number 2 is of prefix 0, and 1 and 3 are of prefix 1.
    acknowledged={0: (2, 100), 1: (2, 100), 2: (3, 100), 4: (4, 100)},
    unknown={6},
    refused={8},
)


def records(*events: tuple[int, int, int], watches: int = 1) -> Records:
    fields = array("q")
    for watch, revision, serial in events:
        fields.extend((watch, revision, serial, 3_000_100))
    return Records(watches, fields)


def test_each_event_once_and_in_order_is_sound() -> None:
    seen = records((0, 2, 0), (1, 3, 2), (0, 2, 1), (0, 4, 4), watches=2)
    verdict = judge(seen, WRITTEN)
    assert verdict == Verdict(delivered=4, missing=0, disordered=0, foreign=0)
    assert verdict.is_sound


def test_a_write_of_unknown_outcome_may_come_or_not() -> None:
    seen = records((0, 2, 0), (0, 2, 1), (0, 4, 4), (1, 3, 2), (1, 5, 6), watches=2)
    assert judge(seen, WRITTEN).is_sound


def test_what_is_missing_is_counted_for_each_watch() -> None:
    assert judge(records((0, 2, 0), (2, 2, 0), watches=3), WRITTEN) == Verdict(2, 2 + 1 + 2, 0, 0)


def test_what_came_twice_or_too_early_is_disordered() -> None:
    seen = records((0, 2, 1), (0, 2, 0), (0, 4, 4), (0, 4, 4))
    assert judge(seen, WRITTEN) == Verdict(delivered=4, missing=1, disordered=2, foreign=0)


def test_refused_writes_other_prefixes_and_other_revisions_are_foreign() -> None:
    seen = records((0, 2, 0), (0, 2, 1), (0, 3, 2), (0, 4, 8), (0, 5, 4))
    assert judge(seen, WRITTEN) == Verdict(delivered=5, missing=1, disordered=0, foreign=3)


def test_the_lag_is_from_the_acknowledgement() -> None:
    assert lags_ms(records((0, 2, 0), (0, 5, 6)), WRITTEN) == [3.0]
