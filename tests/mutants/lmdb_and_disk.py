"""Mutants of the cases 47 to 60, LMDB and the disk."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = ()
