"""Mutants: for each case a defect that brings its bug back, and a runner that shows that the checks catch it.

`python -m tests.mutants` runs them. A check that no defect can turn red says nothing.
"""

from __future__ import annotations

from tests.mutants import (
    clients_and_snapshots,
    design,
    elections_and_reads,
    lmdb_and_disk,
    log_and_vote,
    membership,
)
from tests.mutants.mutant import Mutant

CASES = 86

MUTANTS: tuple[Mutant, ...] = (
    *log_and_vote.MUTANTS,
    *membership.MUTANTS,
    *elections_and_reads.MUTANTS,
    *clients_and_snapshots.MUTANTS,
    *lmdb_and_disk.MUTANTS,
    *design.MUTANTS,
)

_cases = [mutant.case for mutant in MUTANTS]
assert sorted(set(_cases)) == _cases, f"one mutant for each case, in their order; got {_cases}"
assert all(1 <= case <= CASES for case in _cases), f"the cases are 1 to {CASES}; got {_cases}"
