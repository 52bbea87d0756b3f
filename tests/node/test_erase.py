"""The steps from an erase to files that hold nothing of it, over a node that a test plays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from chaos.sim.clock import MS, SimTime
from raftstate.errors import FailedPreconditionError, RaftstateError, StorageError
from raftstate.node.defragment import Rewritten
from raftstate.node.erase import FOLLOWERS_NS_MAX, Eraser
from raftstate.store.erased import read_erased, write_erased


class Node:
    """Implements `ErasedState` and `ErasedFiles`. What takes a while waits in `running` until `finish`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.number = 1
        self.generation().mkdir()
        self.last_erase_index = 0
        self.sweep_pending = False
        self.durable = 100
        self.boundary = 0
        self.lack = False
        self.steps: list[str] = []
        self.running: list[Callable[[object], None]] = []
        self.refusal: RaftstateError | None = None
        self.alarms: list[str] = []
        self.time = SimTime()
        self.eraser = self.restart()

    def restart(self) -> Eraser:
        self.running.clear()
        self.eraser = Eraser(self, self, self.time, self.directory)
        self.eraser.start()
        return self.eraser

    def wait(self, seconds: float) -> None:
        until_ns = self.time.now_ns + int(seconds * 1e9)
        while self.time.now_ns < until_ns:
            self.time.step()

    def finish(self, result: object = None) -> None:
        self.running.pop()(result)

    def finish_all(self) -> list[str]:
        """Let all steps succeed until nothing is left to do; return them."""
        self.steps.clear()
        for _ in range(200):
            self.wait(0.25)
            if self.running:
                step = self.steps[-1]
                if step == "state":
                    clean = 0 if self.sweep_pending else self.last_erase_index
                    self.number += 1
                    self.generation().mkdir()
                    (self.directory / f"state-{self.number - 1}").rename(self.directory / "gone")
                    self.finish(Rewritten(clean, 2, 1))
                    for path in self.directory.glob("gone*"):
                        for each in path.iterdir():
                            each.unlink()
                        path.rmdir()
                else:
                    if step.startswith("cut"):
                        self.boundary = int(step.split()[1])
                    self.finish()
        return self.steps

    # -- ErasedFiles

    def generation(self) -> Path:
        return self.directory / f"state-{self.number}"

    def durable_index(self) -> int:
        return self.durable

    def log_boundary(self) -> int:
        return self.boundary

    def rewrite_state(self, done: Callable[[Rewritten | RaftstateError], None]) -> None:
        self._take("state", done)

    def followers_lack(self, index: int) -> bool:
        return self.lack

    def retire_snapshots(self) -> None:
        self.steps.append("retire")

    def cut_log(self, to_index: int, done: Callable[[BaseException | None], None]) -> None:
        self._take(f"cut {to_index}", done)

    def rewrite_log(self, done: Callable[[BaseException | None], None]) -> None:
        self._take("log", done)

    def write_erased(self, index: int, done: Callable[[BaseException | None], None]) -> None:
        write_erased(self.generation(), index)
        self._take(f"write {index}", done)

    def alarm(self, reason: str) -> None:
        self.alarms.append(reason)

    def _take(self, step: str, done: Callable[..., None]) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.steps.append(step)
        self.running.append(done)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_nothing_is_done_where_nothing_was_erased(node: Node) -> None:
    assert node.finish_all() == []


def test_the_steps_are_taken_in_order_and_then_it_is_said_so(node: Node) -> None:
    node.last_erase_index = 7
    assert node.finish_all() == ["state", "retire", "cut 7", "log", "write 7"]
    assert node.eraser.erased_index == 7
    assert read_erased(node.generation()) == 7
    assert node.alarms[-1] == ""


def test_a_sweep_is_waited_for(node: Node) -> None:
    node.last_erase_index = 7
    node.sweep_pending = True
    node.wait(5)
    assert node.steps == []
    node.sweep_pending = False
    assert node.finish_all()[0] == "state"


def test_a_copy_made_while_a_sweep_was_under_way_is_not_enough(node: Node) -> None:
    node.last_erase_index = 7
    node.wait(3)
    node.finish(Rewritten(0, 1, 1))
    node.wait(1)
    assert node.steps == ["state", "state"]


def test_erasures_in_a_row_are_done_together(node: Node) -> None:
    for index in range(1, 6):
        node.last_erase_index = index
        node.wait(0.5)
    assert node.steps == []
    assert node.finish_all().count("state") == 1
    assert node.eraser.erased_index == 5


def test_erasures_that_never_end_are_not_waited_for(node: Node) -> None:
    for index in range(1, 30):
        node.last_erase_index = index
        node.wait(0.5)
        if node.steps:
            break
    assert node.steps == ["state"]


def test_one_that_comes_meanwhile_is_done_in_the_next_round(node: Node) -> None:
    node.last_erase_index = 7
    node.wait(2)
    node.last_erase_index = 9
    node.finish(Rewritten(7, 1, 1))
    node.finish_all()
    assert node.eraser.erased_index == 9


def test_a_log_that_is_cut_already_is_rewritten_nevertheless(node: Node) -> None:
    node.last_erase_index = 7
    node.boundary = 9
    assert node.finish_all() == ["state", "retire", "log", "write 7"]


def test_the_log_is_not_cut_before_a_crash_can_not_take_the_state_back(node: Node) -> None:
    node.last_erase_index = 7
    node.durable = 6
    node.finish_all()
    assert not any(step.startswith("cut") for step in node.steps)
    node.durable = 7
    node.finish_all()
    assert node.eraser.erased_index == 7


def test_followers_are_waited_for_but_not_for_ever(node: Node) -> None:
    node.last_erase_index = 7
    node.lack = True
    node.wait(2)
    node.finish(Rewritten(7, 1, 1))
    node.wait(FOLLOWERS_NS_MAX / 1e9 - 1)
    assert node.steps == ["state", "retire"]
    node.wait(2)
    assert node.steps == ["state", "retire", "cut 7"]


@pytest.mark.parametrize("name", ["state-9", "snapshot-5", "log.copy", "aside"])
def test_what_is_left_over_is_waited_for_and_named(node: Node, name: str) -> None:
    node.last_erase_index = 7
    left = node.directory / name
    left.touch()
    steps = node.finish_all()
    assert not any(step.startswith("write") for step in steps)
    assert name in node.alarms[-1]
    left.unlink()
    assert node.finish_all() == ["write 7"]
    assert node.alarms[-1] == ""


def test_a_snapshot_that_is_made_afterwards_is_none_of_its_business(node: Node) -> None:
    node.last_erase_index = 7
    node.wait(2)
    node.finish(Rewritten(7, 1, 1))
    node.wait(0.5)
    assert node.steps == ["state", "retire", "cut 7"]
    (node.directory / "snapshot-8").touch()
    node.boundary = 7
    node.finish()
    node.finish_all()
    assert node.eraser.erased_index == 7


def test_a_restart_goes_on_and_one_after_the_end_has_nothing_to_do(node: Node) -> None:
    node.last_erase_index = 7
    node.wait(2)
    assert node.steps == ["state"]
    node.restart()
    node.finish_all()
    assert node.eraser.erased_index == 7
    node.restart()
    assert node.eraser.erased_index == 7
    assert node.finish_all() == []


def test_a_failure_is_told_and_tried_again_later(node: Node) -> None:
    node.last_erase_index = 7
    node.refusal = FailedPreconditionError("another rebuild is under way")
    node.wait(2)
    assert node.alarms == [
        "what was erased is still in files of this node: another rebuild is under way",
    ]
    node.refusal = None
    node.wait(3)
    assert node.steps == []
    node.wait(3)
    node.finish(StorageError("the disk is full"))
    assert "the disk is full" in node.alarms[-1]
    node.wait(8)
    assert node.steps == ["state"]
    node.wait(4)
    assert node.steps == ["state", "state"]
    node.running.pop()(Rewritten(7, 1, 1))
    node.finish_all()
    assert node.eraser.erased_index == 7


def test_a_state_from_another_node_is_seen_to_again(node: Node) -> None:
    node.last_erase_index = 7
    node.finish_all()
    node.number += 1
    node.generation().mkdir()
    (node.directory / f"state-{node.number - 1}" / "erased").unlink()
    (node.directory / f"state-{node.number - 1}").rmdir()
    node.sweep_pending = True
    node.eraser.state_installed()
    assert node.eraser.erased_index == 0
    node.wait(2)
    node.sweep_pending = False
    assert node.finish_all() == ["state", "retire", "log", "write 7"]


def test_one_that_was_swept_when_it_was_sent_needs_no_rewriting(node: Node) -> None:
    node.last_erase_index = 7
    node.boundary = 8
    node.eraser.state_installed()
    assert node.finish_all() == ["retire", "log", "write 7"]


def test_what_ends_after_the_state_was_replaced_counts_for_nothing(node: Node) -> None:
    node.last_erase_index = 7
    node.wait(2)
    node.sweep_pending = True
    node.eraser.state_installed()
    node.finish(Rewritten(7, 1, 1))
    node.sweep_pending = False
    node.steps.clear()
    node.wait(1)
    assert node.steps == ["state"]


def test_a_damaged_file_is_none(tmp_path: Path) -> None:
    assert read_erased(tmp_path) == 0
    write_erased(tmp_path, 1 << 40)
    assert read_erased(tmp_path) == 1 << 40
    for damaged in (b"", b"x" * 20, (tmp_path / "erased").read_bytes() + b"x"):
        (tmp_path / "erased").write_bytes(damaged)
        assert read_erased(tmp_path) == 0


def test_time_between_looks_is_short(node: Node) -> None:
    node.last_erase_index = 7
    before_ns = node.time.now_ns
    while not node.steps:
        node.time.step()
    assert node.time.now_ns - before_ns < 1_500 * MS
