"""The mutants fit the product as it is, and their runner takes nothing for a catch that is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from raftstate.errors import InvariantError, StorageError
from tests.cases import find
from tests.mutants import MUTANTS
from tests.mutants.failures import is_proof
from tests.mutants.mutant import DoesNotApply, Edit, Mutant, apply
from tests.mutants.tree import ROOT

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
