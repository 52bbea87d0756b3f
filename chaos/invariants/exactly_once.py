"""A write sent in a session is done exactly once, whatever is retried; a refused one never; one whose outcome
is unknown at most once. Ongaro's dissertation, section 6.3."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from chaos.invariants import Violation


def check_exactly_once(written: Iterable[bytes], done: set[bytes], never: set[bytes]) -> None:
    """Compare a history of all changes with what clients were told.

    Args:
        written: the value of every change that the store has ever made; each write had a value of its own.
        done: the values of writes that were acknowledged.
        never: the values of writes that were refused for certain.

    Raises:
        Violation: an acknowledged one is missing, any is there twice, or a refused one is there.
    """
    times = Counter(written)
    for value, count in times.items():
        if count > 1:
            raise Violation("exactly_once", f"the write of {value!r} was done {count} times")
    lost = done - times.keys()
    if lost:
        raise Violation("exactly_once", f"{len(lost)} acknowledged writes are lost, {min(lost)!r} among them")
    wrong = never & times.keys()
    if wrong:
        raise Violation(
            "exactly_once", f"{len(wrong)} writes that were refused were done, {min(wrong)!r} among them"
        )
