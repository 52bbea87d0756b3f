"""Mutants of the cases 15 to 23, changes of the membership."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = ()
