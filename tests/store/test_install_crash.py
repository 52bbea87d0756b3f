"""A crash at any step of an install: the next start has the old state and log, or the new ones."""

from __future__ import annotations

import queue
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from raftstate.core.errors import Compacted, Unavailable
from raftstate.core.types import HardState
from raftstate.errors import RaftstateError
from raftstate.machine.layout import read_meta
from raftstate.machine.verify import check_state
from raftstate.store import generation
from raftstate.store.log import LogStore
from raftstate.store.log_writer import LogWriter
from raftstate.store.state import StateStore
from tests.machine.rig import CLUSTER, batch, entry, put
from tests.machine.test_apply import PROGRAM
from tests.store.install_images import Image, RecordedDisk
from tests.store.log_helpers import content, new_log, reopen, run
from tests.store.log_helpers import put as append
from tests.store.snapshot_helpers import apply_all, new_state, snapshot_of
from tests.store.state_model import Model, rows_in

OLD_INDEX, NEW_INDEX, TERM = 3, len(PROGRAM), 3
OLD_HARD_STATE = HardState(5, 2, 4)
"""Of a log that is longer than the snapshot's index, and conflicts with it."""
OLD_LOG = run(1, 4, term=1) + run(5, 40, term=4)


class Outcomes:
    """What may be found, by the phase that the crash came in."""

    def __init__(self, old: Model, new: Model) -> None:
        self.old, self.new = old, new
        self.newer = new
        """After more was applied and checkpointed."""

    def allowed(self, phase: str) -> list[Model]:
        return {
            "building": [self.old],
            "switching": [self.old, self.new],
            "resetting": [self.new],
            "adopting": [self.new],
            "going on": [self.new, self.newer],
        }[phase]


def start(image: Path) -> tuple[StateStore, LogStore]:
    """Do what a node does: open both, and finish a reset that a crash has cut short."""
    state, log = StateStore.open(image, readers_wait_s=0), reopen(image / "log")
    with state.read() as tables:
        meta = check_state(tables)
    try:
        is_there = log.term(meta.applied_index) == meta.applied_term
    except (Compacted, Unavailable):
        is_there = False
    if not is_there:
        held = log.last_hard_state
        hard_state = HardState(held.term, held.vote, meta.applied_index)
        log.publish(log.reset(hard_state, meta.applied_index, meta.applied_term))
    return state, log


def check(image: Image, directory: Path, outcomes: Outcomes) -> str:
    """Start from an image; return which state was found."""
    image.write(directory)
    try:
        state, log = start(directory)
    except RaftstateError as error:
        pytest.fail(f"a node can't start from what is left {image.step}, while {image.phase}: {error}")
    try:
        found = rows_in(state)
        assert found in outcomes.allowed(image.phase), (image.step, image.phase)
        hard_state, _, entries = content(log)
        assert (hard_state.term, hard_state.vote) == (OLD_HARD_STATE.term, OLD_HARD_STATE.vote)
        if found == outcomes.old:
            assert (hard_state, entries) == (OLD_HARD_STATE, OLD_LOG), image.step
            assert image.phase in ("building", "switching")
        else:
            with state.read() as tables:
                applied = read_meta(tables).applied_index
            assert log.term(applied) == TERM
            assert log.first_index() == NEW_INDEX + 1
            assert all(each.term == TERM for each in entries), image.step
        assert {path.name for path in directory.glob("state-*")} == {state.path.name}
        assert state.durable_applied_index == (
            OLD_INDEX if found == outcomes.old else NEW_INDEX if found == outcomes.new else NEW_INDEX + 1
        )
    finally:
        state.close(clean=False)
        log.close()
    return "old" if found == outcomes.old else "new"


@pytest.mark.case(40)
@pytest.mark.case(48)
@pytest.mark.case(67)
@pytest.mark.case(83)
@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 40))]
)
def test_a_crash_at_any_step_of_an_install_leaves_the_old_or_the_new(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender = new_state(tmp_path / "sender")
    snapshot, new = snapshot_of(sender), rows_in(sender)
    node = new_state(tmp_path / "node", PROGRAM[:OLD_INDEX])
    outcomes = Outcomes(rows_in(node), new)
    log = new_log(tmp_path / "node/log")
    append(log, OLD_LOG, OLD_HARD_STATE)
    disk = RecordedDisk(tmp_path / "node", Random(seed), monkeypatch)

    disk.phase = "building"
    builder = node.build(CLUSTER)
    disk.take("after the beginning")
    half = len(snapshot) // 2
    builder.feed(snapshot[:half])
    disk.take("after half of it")
    builder.feed(snapshot[half:])
    prepared = builder.finish(check_state)
    disk.take("after it is prepared")

    def publish() -> None:
        disk.phase = "switching"
        node.make_current(prepared)
        disk.phase = "resetting"
        disk.take("after the switch")

    posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    writer = LogWriter(log, posted.put, clock_ns=lambda: 0)
    reports: list[BaseException | None] = []
    hard_state = HardState(OLD_HARD_STATE.term, OLD_HARD_STATE.vote, NEW_INDEX)
    writer.install(publish, hard_state, NEW_INDEX, TERM, reports.append)
    posted.get(timeout=30)()
    assert reports == [None]

    disk.phase = "adopting"
    disk.take("before the adoption")
    reader = node.read()
    node.adopt(prepared)
    disk.take("after the adoption")
    with reader:
        pass
    disk.take("after the old generation is gone")

    later = entry(NEW_INDEX + 1, batch(put(1, b"later")), term=TERM)
    writer.append(None, [later], reports.append)
    posted.get(timeout=30)()
    disk.phase = "going on"
    disk.take("before an entry is applied")
    outcomes.newer = dict(new)  # until it is known
    apply_all(node, [later])
    outcomes.newer = rows_in(node)
    disk.take("after a checkpoint")
    monkeypatch.undo()
    writer.close()
    log.close()
    for each in (node, sender):
        each.close(clean=False)

    found = {
        (image.phase, check(image, tmp_path / f"image-{number}", outcomes))
        for number, image in enumerate(disk.images)
    }
    assert found == {
        ("building", "old"),
        ("switching", "old"),
        ("switching", "new"),
        ("resetting", "new"),
        ("adopting", "new"),
        ("going on", "new"),
    }


@pytest.mark.case(40)
def test_the_directory_of_a_new_state_is_durable_before_current_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut would leave otherwise, one in so many times: a CURRENT that names nothing."""
    sender = new_state(tmp_path / "sender")
    node = new_state(tmp_path / "node", PROGRAM[:OLD_INDEX])
    disk = RecordedDisk(tmp_path / "node", Random(1), monkeypatch)
    durable_write = generation.durable_write
    named: list[str] = []

    def write(path: Path, content: bytes) -> None:
        if path.name == "CURRENT":
            named.append(content.decode().strip())
            assert named[-1] in disk.durable_directories
        durable_write(path, content)

    monkeypatch.setattr(generation, "durable_write", write)
    builder = node.build(CLUSTER)
    builder.feed(snapshot_of(sender))
    prepared = builder.finish(check_state)
    assert "state-2" not in named
    node.make_current(prepared)
    node.adopt(prepared)
    assert named == ["state-2"]
    monkeypatch.undo()
    for each in (node, sender):
        each.close(clean=False)
