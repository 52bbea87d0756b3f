"""The simulator itself: that it repeats, that its plans are what they say, that it finds and explains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chaos.invariants import Violation
from chaos.sim import shrink as shrink_module
from chaos.sim.clients import Slot
from chaos.sim.faults import KINDS, SHAPES, Fault, cuts, plan
from chaos.sim.operators import Operators
from chaos.sim.shrink import shrink
from chaos.sim.simulation import Simulation
from raftstate.machine.sessions import Session
from raftstate.machine.types import Answer

ROOT = Path(__file__).parents[2]


def chaos(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "chaos", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


# -- plans


def test_a_plan_is_of_its_seed_and_has_faults_enough() -> None:
    plans = [plan(seed, 57.6) for seed in range(200)]
    assert plans[7] == plan(7, 57.6)
    assert plans[7] != plans[8]
    assert min(len(faults) for faults in plans) >= 0.3 * 57.6
    assert {fault.kind for faults in plans for fault in faults} == set(KINDS)
    for faults in plans:
        assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)
        assert all(1 <= fault.at_s < 57.6 and 0 <= fault.for_s <= 8 for fault in faults)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [3, 4, 5])
def test_a_partition_cuts_what_its_shape_says(shape: str, size: int) -> None:
    ids = range(1, size + 1)
    pairs = {(a, b) for a in ids for b in ids if a != b}
    cut = cuts(shape, ids, 0.0, leader=2)
    assert cut
    assert cut < pairs
    both_ways = cut == {(b, a) for a, b in cut}
    assert both_ways == (shape not in ("one-way", "leader-deaf", "leader-mute"))
    if shape == "leader-mute":
        assert cut == {(2, node) for node in ids if node != 2}
    if shape == "leader-deaf":
        assert cut == {(node, 2) for node in ids if node != 2}
    if shape == "bridge":
        assert all(pair not in cut for node in ids for pair in ((1, node), (node, 1)))
    if shape == "isolate":
        assert cut == {pair for pair in pairs if 1 in pair}


# -- runs


def test_a_seed_gives_the_same_run_in_any_process() -> None:
    traces = [
        chaos("sim", "--seed-base", "11", "--seconds", "8", "--trace", "-", PYTHONHASHSEED=hash_seed)
        for hash_seed in ("1", "2")
    ]
    assert traces[0].returncode == 0, traces[0].stderr
    assert traces[0].stdout == traces[1].stdout
    assert "fault" in traces[0].stdout
    assert len(traces[0].stdout.splitlines()) > 100


def test_without_faults_everything_is_acknowledged() -> None:
    run = Simulation(3, 20.0, []).go()
    assert run.violation == ""
    assert run.operations >= 200
    outcomes = [event.outcome for event in run.events]
    assert outcomes.count("info") <= 0.05 * len(outcomes)  # an answer in a hundred gets lost
    assert run.installed == {}


def test_figures_are_printed_and_exit_codes_mean_something(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = chaos("sim", "--seeds", "2", "--seed-base", "5", "--seconds", "6", "--json", str(file))
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    assert figures["seeds"] == 2
    assert figures["hours"] == pytest.approx(12 / 3600, abs=1e-4)
    assert figures["violations"] == figures["unknown"] == 0
    assert figures["operations"] > 50
    assert sum(figures["faults"].values()) >= 2
    assert chaos("sim", "--seeds", "none").returncode == 2


def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every crash after a pause be a violation."""
    crash = Operators._crash

    def watched(self: Operators, fault: Fault) -> str | None:
        if any("fault pause" in line for line in self._sim.run.trace):
            raise Violation("planted", "a crash came after a pause")
        return crash(self, fault)

    monkeypatch.setattr(Operators, "_crash", watched)


def test_a_failing_plan_is_made_as_short_as_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch)
    faults = [
        Fault(1.1, "wall-jump", 1.0, 0.1, 0.5),
        Fault(1.2, "pause", 0.5, 0.1, 0.5),
        Fault(1.3, "clock-drift", 1.0, 0.5, 0.5),
        Fault(2.5, "crash", 0.5, 0.9, 0.5),
        Fault(2.6, "transfer", 0.5, 0.9, 0.5),
    ]
    failed = Simulation(1, 4.0, faults).go()
    assert failed.violation == "planted: a crash came after a pause"
    shortest = shrink(failed)
    assert [fault.kind for fault in shortest.faults] == ["pause", "crash"]
    assert "VIOLATION planted" in shortest.trace[-1]


def test_a_plan_is_not_made_shorter_beyond_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch)
    monkeypatch.setattr(shrink_module.time, "monotonic", iter(range(0, 10_000, 100)).__next__)
    faults = [Fault(1.1, "pause", 0.5, 0.1, 0.5), Fault(2.5, "crash", 0.5, 0.9, 0.5)]
    failed = Simulation(1, 4.0, faults).go()
    assert shrink(failed, budget_s=50).faults == faults


# -- what it finds


def found(seeds: range) -> str:
    """Return what the first of some seeds finds that finds anything."""
    for seed in seeds:
        run = Simulation(seed, 30.0).go()
        if run.violation:
            return run.violation
    return ""


def test_reads_that_nobody_confirmed_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Slot, "_read", lambda self, key: self._read_at(key, "read", lambda node, done: done(0))
    )
    assert found(range(1, 6)).partition(":")[0] in ("linearizability", "session_reads")


def test_writes_that_are_done_again_when_they_are_sent_again_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Session.__init__

    class Forgetful(dict[int, int | Answer]):
        def __contains__(self, serial: object) -> bool:
            return False

    def make(self: Session, *fields: Any) -> None:
        made(self, *fields)
        self.results = Forgetful(self.results)

    monkeypatch.setattr(Session, "__init__", make)
    assert found(range(1, 6)).partition(":")[0] in ("exactly_once", "state_machine_safety")
