"""The list of cases finds every mark, and no mark names a case that there is not."""

from __future__ import annotations

import ast

from tests.cases import ROOT, TITLES, find, marked

MARKED = """
pytestmark = [pytest.mark.processes, pytest.mark.case(1)]

@pytest.mark.case(2)
@pytest.mark.case(3)
def test_a(): ...

@pytest.mark.parametrize("x", [1, pytest.param(2, marks=pytest.mark.case(4))])
async def test_b(x): ...

def helper(): ...

@pytest.mark.case(5)
class TestC:
    @pytest.mark.case(6)
    def test_d(self): ...
"""


def test_marks_are_found_on_tests_parameters_classes_and_modules() -> None:
    assert list(marked(ast.parse(MARKED))) == [
        ("test_a", {1, 2, 3}),
        ("test_b", {1, 4}),
        ("TestC::test_d", {1, 5, 6}),
    ]


def test_every_mark_names_a_case_and_no_case_has_lost_its_tests() -> None:
    found = find(ROOT)
    assert list(TITLES) == list(range(1, 87))
    assert found.keys() == TITLES.keys()
    # What these are about is still to be built: reads with a staleness bound.
    assert {number for number, tests in found.items() if not tests} == {35, 70, 86}
