"""Mutants of the cases 24 to 35, elections and reads."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = ()
