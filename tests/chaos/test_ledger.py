"""Recorded simulations add up, and never repeat a seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.sim import ledger

FIGURES = {"seeds": 5, "hours": 0.08, "operations": 100, "faults": {"crash": 2, "pause": 1}, "violations": 0,
           "unknown": 1}  # fmt: skip


def test_runs_add_up_and_go_on_behind_one_another(tmp_path: Path) -> None:
    path = tmp_path / "ledger" / "sim.jsonl"
    assert ledger.next_seed(path) == ledger.FIRST_SEED
    ledger.append(path, ledger.FIRST_SEED, FIGURES)
    assert ledger.next_seed(path) == ledger.FIRST_SEED + 5
    ledger.append(path, ledger.FIRST_SEED + 5, FIGURES)
    ledger.append(path, 7, FIGURES)  # by hand
    assert ledger.next_seed(path) == ledger.FIRST_SEED + 10
    assert ledger.totals(path) == ledger.Totals(3, 15, pytest.approx(0.24), 300, 9, 0, 3)
    assert {"date", "commit", "machine", "seed_base"} <= ledger.read(path)[0].keys()


def test_a_line_that_is_no_run_is_named(tmp_path: Path) -> None:
    path = tmp_path / "sim.jsonl"
    path.write_text('{"seed_base": 1, "seeds": 2}\n{"seeds": 3}\n')
    with pytest.raises(ValueError, match=r"sim\.jsonl, line 2, is no recorded run"):
        ledger.read(path)
