from __future__ import annotations

from raftstate.node.lag import SAMPLE_NS, SAMPLES_MAX, LogAges

S = 1_000_000_000


def test_a_follower_is_as_old_as_the_first_entry_that_it_lacks() -> None:
    ages = LogAges()
    for second, last_index in ((1, 10), (2, 20), (3, 30)):
        ages.note(second * S, last_index)
    assert [ages.behind_ns(5 * S, match) for match in (0, 9, 10, 19, 20, 29, 30, 31)] == [
        4 * S,
        4 * S,
        3 * S,
        3 * S,
        2 * S,
        2 * S,
        0,
        0,
    ]


def test_notes_are_no_closer_than_they_need_be_and_bounded() -> None:
    ages = LogAges()
    for index in range(1, 3 * SAMPLES_MAX):
        ages.note(index * SAMPLE_NS // 2, index)
    assert len(ages._samples) == SAMPLES_MAX
    assert ages.behind_ns(2 * SAMPLES_MAX * SAMPLE_NS, 0) >= (SAMPLES_MAX - 1) * SAMPLE_NS
    ages.clear()
    assert ages.behind_ns(9 * S, 0) == 0


def test_a_log_that_rests_makes_no_follower_older() -> None:
    ages = LogAges()
    for second in range(100):
        ages.note(second * S, 10)
    assert ages.behind_ns(100 * S, 10) == 0
    assert ages.behind_ns(100 * S, 9) == 100 * S
