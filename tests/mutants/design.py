"""Mutants of the cases 61 to 86, what reading the design found."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = ()
