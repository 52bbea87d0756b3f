"""Mutants of the cases 1 to 14, the log and the vote."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = ()
