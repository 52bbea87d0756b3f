from __future__ import annotations

import threading

from raftstate.measure import Histogram, doubling


def test_an_observation_belongs_to_the_first_bound_that_it_does_not_exceed() -> None:
    histogram = Histogram((1.0, 2.0, 4.0))
    for value in (0.5, 1.0, 1.1, 4.0, 4.1, 100.0):
        histogram.observe(value)
    assert histogram.snapshot() == ((1.0, 2.0, 4.0), (2, 1, 1, 2), 110.7)


def test_times_are_given_in_nanoseconds_and_kept_in_seconds() -> None:
    histogram = Histogram(doubling(0.001, 3))
    histogram.observe_ns(1_500_000)
    assert histogram.snapshot() == ((0.001, 0.002, 0.004), (0, 1, 0, 0), 0.0015)


def test_what_threads_observe_at_once_is_all_counted() -> None:
    histogram = Histogram()
    threads = [
        threading.Thread(target=lambda: [histogram.observe(1.0) for _ in range(2_000)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    snapshot = histogram.snapshot()
    assert (sum(snapshot.counts), snapshot.sum) == (8_000, 8_000.0)
