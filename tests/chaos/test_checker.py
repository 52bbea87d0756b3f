"""What the checker judges, what it says of a violation, and what it costs."""

from __future__ import annotations

import ast
import random
import time
from itertools import combinations
from pathlib import Path

import msgspec
import pytest

from chaos.checker import (
    MODELS,
    Budget,
    HistoryError,
    KeyVerdict,
    Outcome,
    Taken,
    Window,
    check_history,
    draw,
)
from chaos.checker.operations import NEVER, Kind, Op
from chaos.checker.register import RegisterHistory, _decide, decide, numbered
from chaos.checker.search import Limits
from chaos.checker.shrink import ALWAYS, _cut, _without
from chaos.checker.verdict import Decision
from chaos.history import Operation
from tests.chaos.good import Store
from tests.chaos.oracle import Shape, all_lists, at, is_linearizable, random_history

WRITE, READ = Shape("write", 1), Shape("read", 1)


def judge(*operations: Operation, model: str = "register") -> Outcome:
    return check_history(operations, model).outcome


def bad_key(operations: list[Operation], model: str = "register", budget: Budget | None = None) -> KeyVerdict:
    (bad,) = check_history(operations, model, budget=budget).of(Outcome.VIOLATION)
    return bad


def test_an_operation_that_ended_precedes_one_that_began_later() -> None:
    assert judge(at(WRITE, 0, 1, 2), at(Shape("read", None), 1, 3, 4)) is Outcome.VIOLATION
    assert judge(at(WRITE, 0, 1, 3), at(Shape("read", None), 1, 2, 4)) is Outcome.VALID


def test_with_times_alone_operations_that_touch_are_concurrent() -> None:
    write = Operation(0, "write", "x", 1, 10, 20, "ok")
    assert judge(write, Operation(1, "read", "x", None, 20, 30, "ok")) is Outcome.VALID
    assert judge(write, Operation(1, "read", "x", None, 21, 30, "ok")) is Outcome.VIOLATION


def test_with_an_order_equal_times_are_in_sequence() -> None:
    write = Operation(0, "write", "x", 1, 10, 20, "ok", invoke_order=1, end_order=2)
    read = Operation(1, "read", "x", None, 20, 30, "ok", invoke_order=3, end_order=4)
    assert judge(write, read) is Outcome.VIOLATION


def test_an_unknown_write_may_happen_at_any_later_time_once_or_never() -> None:
    unknown = at(Shape("write", 1, "info"), 0, 1, 2)
    old, new = Shape("read", None), READ
    assert judge(unknown, at(old, 1, 3, 4)) is Outcome.VALID
    assert judge(unknown, at(old, 1, 3, 4), at(new, 1, 5, 6)) is Outcome.VALID
    assert judge(unknown, at(new, 1, 3, 4), at(old, 1, 5, 6)) is Outcome.VIOLATION
    assert judge(at(new, 1, 1, 2), msgspec.structs.replace(unknown, invoke_order=3)) is Outcome.VIOLATION


def test_a_failed_write_never_happened_and_a_failed_cas_had_its_compare_false() -> None:
    assert judge(at(Shape("write", 1, "fail"), 0, 1, 2), at(READ, 1, 3, 4)) is Outcome.VIOLATION
    failed = Shape("cas", [None, 1], "fail")
    assert judge(at(failed, 0, 1, 2)) is Outcome.VIOLATION
    assert judge(at(failed, 0, 1, 3), at(Shape("write", 2, "info"), 1, 2, 4)) is Outcome.VALID


def test_values_are_those_of_json() -> None:
    for written, read in [
        (1, True),
        (0, False),
        (None, False),
        ("1", 1),
        ([1], [True]),
        ({"a": 1}, {"a": 2}),
    ]:
        assert (
            judge(at(Shape("write", written), 0, 1, 2), at(Shape("read", read), 1, 3, 4)) is Outcome.VIOLATION
        )
    for written, read in [(1, 1.0), ({"a": 1, "b": [2]}, {"b": [2], "a": 1})]:
        assert judge(at(Shape("write", written), 0, 1, 2), at(Shape("read", read), 1, 3, 4)) is Outcome.VALID


def test_keys_are_judged_apart() -> None:
    stale = at(Shape("read", None), 1, 3, 4)
    verdict = check_history([at(WRITE, 0, 1, 2), msgspec.structs.replace(stale, key="y")], "register")
    assert verdict.outcome is Outcome.VALID
    assert {key.key: key.operations for key in verdict.keys.values()} == {"x": 1, "y": 1}


def test_reads_of_a_lower_consistency_are_counted_and_not_judged() -> None:
    stale = msgspec.structs.replace(at(Shape("read", None), 1, 3, 4), consistency="bounded")
    verdict = check_history([at(WRITE, 0, 1, 2), stale], "register")
    assert (verdict.outcome, verdict.operations, verdict.judged) == (Outcome.VALID, 2, 1)
    assert verdict.not_judged == {"bounded": 1}


@pytest.mark.parametrize(
    ("model", "shape", "reason"),
    [
        ("register", Shape("append", 1), "a register has no append"),
        ("append", Shape("write", 1), "a list has no write"),
        ("append", Shape("cas", [1, 2]), "a list has no cas"),
        ("append", Shape("append", [1]), "an appended element is an integer or a string"),
        ("append", Shape("append", True), "an appended element is an integer or a string"),
        ("append", Shape("read", 5), "a read of a list returns all of it"),
    ],
)
def test_operations_that_a_model_does_not_know_are_refused(model: str, shape: Shape, reason: str) -> None:
    with pytest.raises(HistoryError, match=reason):
        judge(at(shape, 0, 1, 2), model=model)


def test_an_element_that_is_appended_twice_is_refused() -> None:
    append = Shape("append", "a")
    with pytest.raises(HistoryError, match=r"appended to 'x' twice, first by process 0 \(line 1\)"):
        judge(at(append, 0, 1, 2), at(append, 1, 3, 4), model="append")
    again = at(append, 1, 3, 4)
    assert judge(at(Shape("append", "a", "fail"), 0, 1, 2), again, model="append") is Outcome.VALID


def test_an_end_before_the_invoke_is_refused() -> None:
    with pytest.raises(HistoryError, match="ends at 5, begun at 10"):
        judge(Operation(0, "write", "x", 1, 10, 5, "ok"))
    with pytest.raises(HistoryError, match="ends at None"):
        judge(Operation(0, "write", "x", 1, 10, None, "ok"))


STALE = [
    at(WRITE, 0, 1, 2),
    at(Shape("write", 2), 1, 3, 6),
    at(Shape("read", 2), 2, 4, 5),
    at(READ, 3, 7, 8),
]


def test_the_window_of_a_stale_read_is_all_that_shows_it() -> None:
    before = [at(Shape("write", value), 9, 2 * value, 2 * value + 1) for value in range(10, 200)]
    after = [at(Shape("read", 1), 9, place, place + 1) for place in range(600, 700, 2)]
    shifted = [
        msgspec.structs.replace(op, invoke_order=op.invoke_order + 500, end_order=op.end_order + 500)
        for op in STALE
    ]
    window = bad_key(before + shifted + after).window
    assert window is not None
    assert [(op.f, op.value) for op in window.operations] in (
        [("write", 1), ("write", 2), ("read", 1)],
        [("write", 1), ("read", 2), ("read", 1)],
    )
    assert "legal up to the end of the read of process 3, line 508" in window.reason


def test_a_long_chain_of_cas_is_cut_to_what_matters() -> None:
    chain = [at(Shape("cas", [n or None, n + 1]), 0, 2 * n + 1, 2 * n + 2) for n in range(100)]
    window = bad_key([*chain, at(Shape("read", 50), 1, 500, 501)]).window
    assert window is not None
    assert [op.value for op in window.operations] == [[50, 51], 50]
    assert window.taken_for_granted == [Taken("write", 50)]
    assert "taken for granted: a write of 50, at any time, once or not at all" in draw(window)


def as_operations(window: Window) -> list[Operation]:
    granted = [
        Operation(-1, "write", "x", taken.value, 0, None, "info", invoke_order=0)  # type: ignore[arg-type]
        for taken in window.taken_for_granted
    ]
    return granted + window.operations


def test_windows_of_registers_are_illegal_and_none_of_their_reads_can_be_left_out() -> None:
    rng = random.Random(11)
    shapes = [Shape("read", value) for value in (None, 1, 2, 3)]
    shapes += [Shape("write", value, outcome) for value in (1, 2, 3) for outcome in ("ok", "info")]
    shapes += [Shape("cas", [1, 2]), Shape("cas", [2, 3], "info"), Shape("cas", [2, 1], "fail")]
    windows = 0
    for _ in range(600):
        history = random_history(rng, shapes, 7, 4)
        window = next(iter(check_history(history, "register").keys.values())).window
        if window is None:
            continue
        windows += 1
        operations = as_operations(window)
        assert not is_linearizable(operations, "register")
        for operation in window.operations:
            if operation.f == "read" or operation.outcome == "fail":
                rest = [other for other in operations if other is not operation]
                assert is_linearizable(rest, "register"), (window, operation)
    assert windows > 100


def from_op(op: Op, values: list[object]) -> Operation:
    outcome = "info" if op.end == NEVER else "fail" if op.kind is Kind.CAS_FAILED else "ok"
    operation = op.operation or Operation(0, "write", "x", values[op.new], 0)
    return msgspec.structs.replace(operation, invoke_order=op.invoke, end_order=op.end, outcome=outcome)


def test_no_step_of_shrinking_makes_a_legal_history_illegal() -> None:
    kept = 0
    for seed in range(300):
        history = Store(seed, processes=5, values=3, cas=0.3, unknown=0.2).run(7)
        ops, values = numbered(history)
        smaller = [_without(ops, some) for size in (1, 2) for some in combinations(ops, size)]
        smaller += [_cut(ops, instant) for instant in range(16)]
        smaller += [
            [*ops[:n], Op(Kind.WRITE, -1, op.new, ALWAYS, NEVER, None), *ops[n + 1 :]]
            for n, op in enumerate(ops)
            if op.writes
        ]
        for some in smaller:
            kept += bool(some) and len(some) < len(ops)
            assert is_linearizable([from_op(op, values) for op in some], "register"), (history, some)
    assert kept > 1_000


@pytest.mark.parametrize(
    ("operations", "reason", "shown"),
    [
        (
            [Shape("append", 1), Shape("append", 2), Shape("read", [2]), Shape("read", [1])],
            "element 1 was",
            [2, 3],
        ),
        ([Shape("append", 1), Shape("append", 2), Shape("read", [2, 1])], "2 stands before 1", [0, 1, 2]),
        ([Shape("append", 1), Shape("read", [1, 1])], "1 was appended once, and read twice", [0, 1]),
        ([Shape("append", 1), Shape("read", [1, 7])], "7 was read, but never appended", [1]),
        ([Shape("append", 1, "fail"), Shape("read", [1])], "1 was read, but its append failed", [0, 1]),
        ([Shape("append", 1), Shape("read", None)], "an element that had been appended before", [0, 1]),
        ([Shape("append", 1, "info"), Shape("read", [1]), Shape("read", [])], "what a read had", [1, 2]),
        ([Shape("read", [1]), Shape("append", 1)], "1 was read before its append began", [0, 1]),
        ([Shape("append", 1), Shape("read", [True])], "something that is never appended", [1]),
    ],
)
def test_a_bad_list_is_explained(operations: list[Shape], reason: str, shown: list[int]) -> None:
    history = [at(shape, n, 2 * n + 1, 2 * n + 2) for n, shape in enumerate(operations)]
    window = bad_key(history, "append").window
    assert window is not None
    assert reason in window.reason
    assert [operation.process for operation in window.operations] == shown


def test_windows_of_lists_are_illegal_whenever_the_other_appends_happened() -> None:
    rng = random.Random(12)
    shapes = [Shape("read", list(order)) for order in all_lists([1, 2])] + [Shape("read", [1, 3, 1])]
    appends = [
        Shape("append", element, outcome) for element in (1, 2, 3) for outcome in ("ok", "info", "fail")
    ]
    windows = 0
    for _ in range(1_500):
        history = random_history(rng, shapes + appends * 2, 6, 4)
        happened = [op for op in history if op.f == "append" and op.outcome != "fail"]
        if len(happened) != len({op.value for op in happened}):
            continue
        window = next(iter(check_history(history, "append").keys.values())).window
        if window is None:
            continue
        windows += 1
        granted = [
            at(Shape("append", op.value, "info"), -1, 0, 0) for op in happened if op not in window.operations
        ]
        assert 1 <= len(window.operations) <= 3
        assert all(op in history for op in window.operations)
        assert not is_linearizable(granted + window.operations, "append"), window
    assert windows > 300


def test_an_append_that_is_missing_beside_a_later_one_is_explained() -> None:
    history = [
        at(Shape("append", 1), 0, 2, 3),
        at(Shape("append", 2), 1, 4, 5),
        at(Shape("read", [2]), 2, 1, 6),
    ]
    window = bad_key(history, "append").window
    assert window is not None
    assert window.reason == "1 was appended before 2, but was not there with it"
    assert [operation.process for operation in window.operations] == [2, 0, 1]


def test_a_window_is_drawn_with_a_lane_for_each_process() -> None:
    history = [
        Operation(0, "write", "x", 1, 1_000_000, 1_500_000, "ok", invoke_order=1, end_order=2),
        Operation(0, "write", "x", 2, 2_000_000, None, "info", invoke_order=3),
        Operation(4, "read", "x", 2, 3_000_000, 4_000_000, "ok", invoke_order=4, end_order=6),
        Operation(0, "read", "x", 1, 4_500_000, 5_000_000, "ok", invoke_order=7, end_order=8),
    ]
    window = bad_key(history).window
    assert window is not None
    assert draw(window).splitlines() == [
        "    line             ms  process 0           process 0, unknown  process 4",
        "       1       0.000000  ┬ write 1",
        "       2       0.500000  ┴ ok",
        "       3       1.000000                      ┬ write 2",
        "       4       2.000000                      │                   ┬ read",
        "       6       3.000000                      │                   ┴ ok: 2",
        "       7       3.500000  ┬ read              │",
        "       8       4.000000  ┴ ok: 1             │",
        "                                             ┆",
        "times in ms since 1000000 ns",
    ]


def test_of_long_values_the_end_is_drawn_and_of_long_windows_the_last_part() -> None:
    operations = [at(Shape("write", "v" * 50 + str(n)), 0, 2 * n + 1, 2 * n + 2) for n in range(60)]
    drawing = draw(Window("", operations))
    assert 'v59"' in drawing
    assert 'v10"' not in drawing
    assert "not drawn: 20 operations before these" in drawing
    assert max(map(len, drawing.splitlines())) < 80


HARD = Store(5, values=3, cas=0.3, unknown=0.1).run(400)


def test_a_search_beyond_its_budget_is_unknown() -> None:
    needed = check_history(HARD, "register").keys["k0"].configurations
    assert needed > 100
    assert check_history(HARD, "register", budget=Budget(needed)).outcome is Outcome.VALID
    verdict = check_history(HARD, "register", budget=Budget(needed // 2))
    assert verdict.outcome is Outcome.UNKNOWN
    assert [key.key for key in verdict.of(Outcome.UNKNOWN)] == ["k0"]


def test_what_is_too_hard_is_searched_without_the_cas_that_failed_but_only_a_violation_is_believed() -> None:
    good = numbered(Store(12, values=3, cas=0.3, unknown=0.1, processes=8).run(60))[0]
    assert decide(good, Limits(22))[0] is Outcome.VALID
    assert decide(good, Limits(20))[0] is Outcome.UNKNOWN
    history = Store(17, values=4, cas=0.3, unknown=0.1, processes=4).run(60)
    reads = [n for n, op in enumerate(history) if op.f == "read" and op.outcome == "ok"]
    history[reads[-3]] = msgspec.structs.replace(history[reads[-3]], value=history[reads[5]].value)
    bad = numbered(history)[0]
    assert _decide(bad, Limits(31))[0] is Outcome.UNKNOWN
    assert decide(bad, Limits(31))[0] is Outcome.VIOLATION


def test_values_that_repeat_with_time_between_them_need_no_search() -> None:
    shapes = [Shape("write", 1), READ, Shape("write", None), Shape("read", None)] * 50
    history = [at(shape, n % 3, 2 * n + 1, 2 * n + 2) for n, shape in enumerate(shapes)]
    verdict = check_history(history, "register")
    assert (verdict.outcome, verdict.keys["x"].configurations) == (Outcome.VALID, 0)
    assert bad_key(history[:102] + history[103:]).configurations == 0


def test_when_time_is_up_what_was_not_judged_is_unknown() -> None:
    assert check_history(HARD, "register", budget=Budget(seconds=-1.0)).outcome is Outcome.UNKNOWN


def test_a_violation_counts_for_more_than_a_key_that_is_unknown() -> None:
    verdict = check_history([*HARD, *STALE], "register", budget=Budget(50))
    assert verdict.outcome is Outcome.VIOLATION
    assert {key.key: key.outcome for key in verdict.keys.values()} == {
        "k0": Outcome.UNKNOWN,
        "x": Outcome.VIOLATION,
    }


def test_a_key_that_was_too_hard_for_a_quick_look_is_searched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    class Spied(RegisterHistory):
        def decide(self, limits: Limits) -> Decision:
            tries.append((self._key, limits.configurations))
            return super().decide(limits)

    monkeypatch.setattr("chaos.checker.check.QUICK_CONFIGURATIONS", 50)
    monkeypatch.setitem(MODELS, "register", Spied)
    assert check_history([*HARD, *STALE[:2]], "register", budget=Budget(9_000)).outcome is Outcome.VALID
    assert tries == [("k0", 50), ("x", 50), ("k0", 9_000)], "none waits for the one that is hard"


@pytest.mark.parametrize("values", [None, 5])
@pytest.mark.parametrize("cas", [0.0, 0.2])
def test_fifty_clients_with_many_unknown_outcomes_on_one_key_are_decided(
    values: int | None, cas: float
) -> None:
    history = Store(1, processes=50, unknown=0.4, values=values, cas=cas).run(2_000)
    assert sum(operation.outcome == "info" for operation in history) > 300
    assert check_history(history, "register", budget=Budget(20_000)).outcome is Outcome.VALID


@pytest.mark.parametrize("cas", [0.0, 0.2])
def test_a_stale_read_among_fifty_clients_is_found_and_shown(cas: float) -> None:
    history = Store(2, processes=50, unknown=0.3, cas=cas).run(2_000)
    reads = [n for n, op in enumerate(history) if op.f == "read" and op.outcome == "ok" and op.value]
    history[reads[-1]] = msgspec.structs.replace(history[reads[-1]], value=history[reads[0]].value)
    window = bad_key(history, budget=Budget(20_000)).window
    assert window is not None
    assert len(window.operations) + len(window.taken_for_granted) <= 6


@pytest.mark.parametrize("model", ["register", "append"])
def test_thousands_of_operations_take_a_fraction_of_a_second(model: str) -> None:
    history = Store(1, model, processes=10, keys=10, unknown=0.05, cas=0.1, failed=0.02).run(10_000)
    started = time.process_time()
    assert check_history(history, model).outcome is Outcome.VALID
    assert time.process_time() - started < 1.5, "of processor time; about 0.15 is usual"


def test_the_checker_and_histories_know_nothing_of_raftstate() -> None:
    root = Path(__file__).parents[2] / "chaos"
    for path in [root / "history.py", *sorted((root / "checker").glob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] != "raftstate", path
                assert not name.startswith("chaos") or name.startswith(("chaos.checker", "chaos.history")), (
                    path
                )
