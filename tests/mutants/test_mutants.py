"""The mutants fit the product as it is, and their runner takes nothing for a catch that is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from raftstate.errors import InvariantError, StorageError
from tests.cases import find
from tests.mutants import MUTANTS, tree
from tests.mutants import __main__ as runner
from tests.mutants.failures import is_proof
from tests.mutants.mutant import DoesNotApply, Edit, Mutant, apply
from tests.mutants.tree import ROOT, Outcome, Verdict

TESTS = """
import pytest
from raftstate.errors import InvariantError

def test_assertion(): assert 1 == 2
def test_nothing_raised():
    with pytest.raises(ValueError):
        pass
def test_invariant(): raise InvariantError("two leaders")
def test_crash(): raise AttributeError("no such attribute")
def test_slow():
    while True:
        pass
"""


@pytest.fixture(scope="module")
def tests_of_cases() -> dict[int, list[str]]:
    return find(ROOT)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"case {mutant.case}")
def test_a_mutant_fits_the_product_and_names_a_test_of_its_case(
    tmp_path: Path, mutant: Mutant, tests_of_cases: dict[int, list[str]]
) -> None:
    for file in {edit.file for edit in mutant.edits}:
        assert file.startswith("raftstate/")
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes((ROOT / file).read_bytes())
    apply(mutant, tmp_path)
    for file in {edit.file for edit in mutant.edits}:
        compile((tmp_path / file).read_text("utf-8"), file, "exec")
    of_case = {test for name in tests_of_cases[mutant.case] for test in (name, name.partition("::")[0])}
    assert {named.partition("[")[0] for named in mutant.caught_by} & of_case


def test_an_edit_that_fits_nowhere_or_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file.py").write_text("a\na\n")
    for old, found in (("b", 0), ("a", 2)):
        with pytest.raises(DoesNotApply, match=rf"stands {found} times in file.py, not once"):
            apply(Mutant(1, "", (Edit("file.py", old, "c"),), ()), tmp_path)


@pytest.mark.parametrize(
    ("error", "proof"),
    [
        (AssertionError("1 == 2"), True),
        (InvariantError("two leaders"), True),
        (pytest.fail.Exception("DID NOT RAISE"), True),
        (pytest.fail.Exception("Timeout (>120.0s) from pytest-timeout."), False),
        (StorageError("the disk failed"), False),
        (TimeoutError(), False),
        (ExceptionGroup("two", [AssertionError(), InvariantError("x")]), True),
        (ExceptionGroup("two", [AssertionError(), KeyError()]), False),
    ],
)
def test_only_what_a_check_found_is_a_proof(error: BaseException, proof: bool) -> None:
    assert is_proof(error) is proof


def test_failures_are_told_with_their_kind(tmp_path: Path) -> None:
    (tmp_path / "test_these.py").write_text(TESTS)
    report = tmp_path / "failures.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.mutants.failures"]
    command += ["--failures", str(report), "--timeout", "1", str(tmp_path / "test_these.py")]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    told = json.loads(report.read_text("utf-8"))
    assert [(each["test"].partition("::")[2], each["type"], each["proof"]) for each in told] == [
        ("test_assertion", "AssertionError", True),
        ("test_nothing_raised", "Failed", True),
        ("test_invariant", "InvariantError", True),
        ("test_crash", "AttributeError", False),
        ("test_slow", "Failed", False),
    ]


def planted(case: int, new: str, old: str = "sound") -> Mutant:
    return Mutant(case, f"mutant {case}", (Edit("raftstate/a.py", old, new),), ("tests/test_a.py",))


@pytest.fixture
def product(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product of one word, whose checks go by that word."""

    def copy(_source: Path, target: Path) -> Path:
        (target / "raftstate").mkdir(parents=True)
        (target / "raftstate" / "a.py").write_text("sound")
        return target

    def fault_free(copied: Path) -> Outcome:
        failed = (copied / "raftstate" / "a.py").read_text() == "broken"
        return Outcome(Verdict.FAULT_FREE_FAILED if failed else Verdict.SURVIVED, cpu_s=1)

    def run_tests(copied: Path, _chosen: object, _scratch: Path, *, mutated: bool = True) -> Outcome:
        verdicts = {"caught": Verdict.CAUGHT, "crashing": Verdict.CRASHED}
        return Outcome(verdicts.get((copied / "raftstate" / "a.py").read_text(), Verdict.SURVIVED), cpu_s=2)

    monkeypatch.setattr(tree, "copy_tree", copy)
    monkeypatch.setattr(tree, "fault_free", fault_free)
    monkeypatch.setattr(tree, "run_tests", run_tests)
    mutants = (
        planted(1, "caught"),
        planted(2, "caught"),
        planted(3, "unseen"),
        planted(4, "crashing"),
        planted(5, "broken"),
        planted(6, "caught", old="gone"),
    )
    monkeypatch.setattr(runner, "MUTANTS", mutants)


@pytest.mark.usefixtures("product")
def test_only_what_is_caught_counts_and_the_last_line_says_how_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    assert runner.main(["--only", "1,2,3,4,5,6,7", "--by", "unit", "--json", str(report)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "2/7 caught"
    told = json.loads(report.read_text("utf-8"))
    assert [(each["case"], each["verdict"], each["cpu_s"]) for each in told["mutants"]] == [
        (1, "caught", 3),
        (2, "caught", 3),
        (3, "survived", 3),
        (4, "crashed", 3),
        (5, "fault-free failed", 1),
        (6, "does not apply", 0),
        (7, "has no mutant", 0),
    ]
    assert (told["caught"], told["of"], told["cpu_s"]["median"]) == (2, 7, 3)
    assert runner.main(["--only", "2,1", "--by", "unit"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2/2 caught"


@pytest.mark.usefixtures("product")
def test_without_green_checks_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    red = Outcome(Verdict.CAUGHT, "tests/test_a.py: AssertionError")
    monkeypatch.setattr(tree, "run_tests", lambda *_arguments, **_settings: red)
    assert runner.main(["--only", "1", "--by", "unit"]) == 2
    told = capsys.readouterr()
    assert (told.out, "not green before any mutant: tests/test_a.py: AssertionError" in told.err) == (
        "",
        True,
    )


@pytest.mark.parametrize("only", ["", "1,x", "0", "87"])
def test_cases_that_there_are_not_are_refused(only: str) -> None:
    with pytest.raises(SystemExit) as refused:
        runner.main(["--only", only])
    assert refused.value.code == 2


SIMULATOR = """
import json, sys

COMMANDS = {{"sim": None}}
if __name__ == "__main__":
    assert sys.argv[1:-1] == "sim --seeds 60 --seed-base 1 --stop-at-first --no-shrink --json".split()
    violations = {violations}
    if violations is not None:
        with open(sys.argv[-1], "w") as file:
            json.dump({{"seeds": 3, "violations": violations, "broken": {broken}}}, file)
    sys.exit({status})
"""


@pytest.mark.parametrize(
    ("violations", "broken", "status", "verdict"),
    [
        (2, 0, 1, Verdict.CAUGHT),
        (2, 1, 1, Verdict.CAUGHT),
        (2, 2, 1, Verdict.CRASHED),  # exceptions only: nothing was found, something broke
        (0, 0, 0, Verdict.SURVIVED),
        (0, 0, 1, Verdict.CRASHED),  # something else went wrong, an unknown verdict perhaps
        (None, 0, 1, Verdict.CRASHED),
    ],
)
def test_the_simulator_catches_by_a_violation(
    tmp_path: Path, violations: int | None, broken: int, status: int, verdict: Verdict
) -> None:
    copied = tmp_path / "tree"
    (copied / "chaos").mkdir(parents=True)
    assert not tree.has_sim(copied)
    (copied / "chaos" / "__main__.py").write_text(
        SIMULATOR.format(violations=violations, broken=broken, status=status)
    )
    assert tree.has_sim(copied)
    assert tree.sim(copied, tmp_path / "scratch").verdict is verdict
