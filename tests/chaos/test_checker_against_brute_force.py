"""The checker against a judge that tries every order: on all small histories, random and damaged ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

import msgspec
import pytest

from chaos.checker import Outcome, check_history
from chaos.checker.groups import decide_unique
from chaos.checker.operations import INITIAL
from chaos.checker.register import numbered, relevant
from chaos.checker.search import Limits, Search
from chaos.history import Operation
from tests.chaos.good import Store
from tests.chaos.oracle import Shape, all_histories, all_lists, is_linearizable, random_history

BOTH = ("ok", "info")
READS = [Shape("read", value) for value in (None, 1, 2)]
WRITES = [Shape("write", value, outcome) for value in (1, 2) for outcome in BOTH]
CAS = [Shape("cas", [old, new], outcome) for old, new in ((None, 1), (1, 2), (2, 1)) for outcome in BOTH]
FAILED = [Shape("cas", [old, 1], "fail") for old in (None, 1)]
LISTS = [Shape("read", list(order)) for order in all_lists([1, 2])]
APPENDS = [Shape("append", element, outcome) for element in (1, 2) for outcome in ("ok", "info", "fail")]


def assert_judged_alike(histories: Iterable[list[Operation]]) -> None:
    """Judge registers by brute force, as users do, by the search alone and, where that can be, without it."""
    legal = decided = total = 0
    for history in histories:
        expected = is_linearizable(history, "register")
        verdict = check_history(history, "register", explain=False)
        ops = relevant(numbered(history)[0])
        searched = Search(ops, INITIAL).run(Limits(1_000_000))
        unsearched = decide_unique(ops)
        assert verdict.outcome is (Outcome.VALID if expected else Outcome.VIOLATION), history
        assert searched is verdict.outcome, history
        assert unsearched in (None, expected), history
        total += 1
        legal += expected
        decided += unsearched is not None
    assert 0 < legal < total, "both kinds are judged"
    assert 0 < decided < total, "both ways are used"


def assert_lists_judged_alike(histories: Iterable[list[Operation]]) -> None:
    legal = total = 0
    for history in histories:
        appended = [operation.value for operation in history if operation.f == "append"]
        if len(appended) != len(set(appended)):
            continue
        expected = is_linearizable(history, "append")
        verdict = check_history(history, "append", explain=False)
        assert verdict.outcome is (Outcome.VALID if expected else Outcome.VIOLATION), history
        total += 1
        legal += expected
    assert 0 < legal < total, "both kinds are judged"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_all_registers_with_few_operations(count: int) -> None:
    if count == 1:
        for history in all_histories(READS + WRITES + CAS + FAILED, count):
            expected = Outcome.VALID if is_linearizable(history, "register") else Outcome.VIOLATION
            assert check_history(history, "register").outcome is expected
        return
    assert_judged_alike(all_histories(READS + WRITES + CAS[:3] + FAILED[:1], count))


def test_all_registers_with_four_reads_and_writes() -> None:
    assert_judged_alike(all_histories([*READS[1:], WRITES[0], WRITES[3]], 4))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("shapes", [READS + WRITES, CAS[:4] + READS[:2] + FAILED[:1]], ids=["writes", "cas"])
def test_all_registers_with_four_operations(shapes: list[Shape]) -> None:
    assert_judged_alike(all_histories(shapes, 4))


def test_all_lists_with_few_operations() -> None:
    assert_lists_judged_alike(all_histories(LISTS + APPENDS, 2))
    assert_lists_judged_alike(all_histories(LISTS + APPENDS, 3))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_lists_with_four_operations() -> None:
    assert_lists_judged_alike(all_histories(LISTS + APPENDS[:5], 4))


@pytest.mark.parametrize("processes", [1, 3, 6])
@pytest.mark.parametrize(
    "shapes",
    [READS + WRITES, READS + WRITES + CAS, READS + READS + WRITES + CAS + FAILED],
    ids=["writes", "cas", "failed cas"],
)
def test_random_registers(shapes: list[Shape], processes: int) -> None:
    rng = random.Random(processes)
    assert_judged_alike(random_history(rng, shapes, rng.randint(4, 7), processes) for _ in range(700))


@pytest.mark.parametrize("failed", [[], FAILED], ids=["no cas fails", "some fail"])
def test_random_registers_with_many_unknown_outcomes(failed: list[Shape]) -> None:
    rng = random.Random(5)
    unknown = [Shape("write", value, "info") for value in (1, 2, 3)]
    unknown += [Shape("cas", [old, new], "info") for old, new in ((1, 2), (2, 3), (3, 1))]
    unknown.append(Shape("cas", [1, 1], "info"))
    for_sure = [
        Shape("cas", [2, 2]),
        Shape("write", 1),
        Shape("write", 3),
        Shape("write", 9),
        Shape("cas", [2, 1]),
        *failed,
    ]
    shapes = [*unknown, *for_sure, *[Shape("read", value) for value in (1, 2, 3)] * 3]
    assert_judged_alike(random_history(rng, shapes, rng.randint(7, 11), 4) for _ in range(5_000))


def test_random_lists() -> None:
    rng = random.Random(7)
    shapes = [Shape("read", list(order)) for order in all_lists([1, 2, 3])]
    shapes += [
        Shape("append", element, outcome) for element in (1, 2, 3) for outcome in BOTH for _ in range(4)
    ]
    assert_lists_judged_alike(random_history(rng, shapes, rng.randint(3, 6), 4) for _ in range(8_000))


GOOD = {
    "unique values": {"unknown": 0.2, "failed": 0.1},
    "few values": {"values": 2, "unknown": 0.2, "cas": 0.2},
    "cas alone": {"values": 3, "cas": 0.5, "unknown": 0.1},
}


@pytest.mark.parametrize("name", GOOD)
def test_good_registers_are_valid(name: str) -> None:
    for seed in range(100):
        history = Store(seed, processes=4, **GOOD[name]).run(9)  # type: ignore[arg-type]
        assert is_linearizable(history, "register"), "the store is wrong"
        assert check_history(history, "register").outcome is Outcome.VALID


Damage = Callable[[random.Random, list[Operation]], list[Operation] | None]


def changed(history: list[Operation], place: int, **fields: object) -> list[Operation]:
    return [*history[:place], msgspec.structs.replace(history[place], **fields), *history[place + 1 :]]


def pick(rng: random.Random, history: Sequence[Operation], f: str, outcome: str) -> int | None:
    places = [
        place for place, operation in enumerate(history) if (operation.f, operation.outcome) == (f, outcome)
    ]
    return rng.choice(places) if places else None


def stale_read(rng: random.Random, history: list[Operation]) -> list[Operation] | None:
    """One read returns what another one, from any time, returned."""
    one, other = pick(rng, history, "read", "ok"), pick(rng, history, "read", "ok")
    return None if one is None or other is None else changed(history, one, value=history[other].value)


def lost_write(rng: random.Random, history: list[Operation]) -> list[Operation] | None:
    """A write that was acknowledged is gone, but some read saw it."""
    place = pick(rng, history, "write", "ok")
    return None if place is None else history[:place] + history[place + 1 :]


def false_failure(rng: random.Random, history: list[Operation]) -> list[Operation] | None:
    """A write that took effect is said to have failed."""
    place = pick(rng, history, "write", "ok")
    return None if place is None else changed(history, place, outcome="fail")


def false_success(rng: random.Random, history: list[Operation]) -> list[Operation] | None:
    """A cas that failed is said to have been applied."""
    place = pick(rng, history, "cas", "fail")
    return None if place is None else changed(history, place, outcome="ok")


def refused_cas(rng: random.Random, history: list[Operation]) -> list[Operation] | None:
    """A cas that was applied is said to have failed."""
    place = pick(rng, history, "cas", "ok")
    return None if place is None else changed(history, place, outcome="fail")


def late_start(rng: random.Random, history: list[Operation]) -> list[Operation] | None:
    """An operation is said to have begun when it ended, by which time it had long taken effect."""
    place = pick(rng, history, rng.choice(["read", "write"]), "ok")
    if place is None:
        return None
    end = history[place].end_order
    spread = [
        msgspec.structs.replace(op, invoke_order=3 * op.invoke_order, end_order=3 * op.end_order)
        for op in history
    ]
    return changed(spread, place, invoke_order=3 * end - 1)


@pytest.mark.parametrize(
    "damage",
    [stale_read, lost_write, false_failure, false_success, refused_cas, late_start],
    ids=lambda damage: damage.__name__,
)
def test_good_registers_damaged_in_known_ways(damage: Damage) -> None:
    rng = random.Random(3)
    bad = 0
    for seed in range(240):
        good = Store(seed, processes=3, **list(GOOD.values())[seed % 3]).run(9)  # type: ignore[arg-type]
        history = damage(rng, good)
        if history is None:
            continue
        expected = is_linearizable(history, "register")
        outcome = check_history(history, "register", explain=False).outcome
        assert outcome is (Outcome.VALID if expected else Outcome.VIOLATION), history
        bad += not expected
    assert bad >= 10, "this damage does none"


def dropped_element(rng: random.Random, value: list[int]) -> list[int]:
    place = rng.randrange(len(value))
    return value[:place] + value[place + 1 :]


def doubled_element(rng: random.Random, value: list[int]) -> list[int]:
    return [*value, rng.choice(value)]


def swapped_elements(rng: random.Random, value: list[int]) -> list[int]:
    return value[:-2] + value[-2:][::-1]


def foreign_element(rng: random.Random, value: list[int]) -> list[int]:
    return [*value, 1_000]


def older_list(rng: random.Random, value: list[int]) -> list[int]:
    return value[: rng.randrange(len(value))]


@pytest.mark.parametrize(
    "damage",
    [dropped_element, doubled_element, swapped_elements, foreign_element, older_list],
    ids=lambda damage: damage.__name__,
)
def test_good_lists_damaged_in_known_ways(damage: Callable[[random.Random, list[int]], list[int]]) -> None:
    rng = random.Random(4)
    bad = 0
    for seed in range(240):
        history = Store(seed, "append", processes=3, unknown=0.2, failed=0.1).run(9)
        assert check_history(history, "append").outcome is Outcome.VALID
        places = [
            place for place, operation in enumerate(history) if operation.f == "read" and operation.value
        ]
        if not places:
            continue
        place = rng.choice(places)
        history = changed(history, place, value=damage(rng, history[place].value))
        expected = is_linearizable(history, "append")
        outcome = check_history(history, "append", explain=False).outcome
        assert outcome is (Outcome.VALID if expected else Outcome.VIOLATION), history
        bad += not expected
    assert bad >= 10, "this damage does none"
