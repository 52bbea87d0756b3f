"""Mutants of the cases 36 to 46, clients and snapshots."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = ()
