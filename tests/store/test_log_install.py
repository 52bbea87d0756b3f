"""An installed snapshot passes the thread of the log in the order of the appends: the state first, then the
log."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raftstate.core.types import HardState
from raftstate.errors import ClosedError, InvariantError, StorageError
from tests.store.log_helpers import content, run
from tests.store.test_log_writer import Loop, transaction_id


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    made = Loop(tmp_path / "log")
    yield made
    made.close()


def install(
    loop: Loop, index: int, term: int, hard_state: HardState, publish: Callable[[], None] = lambda: None
) -> None:
    loop.writer.install(publish, hard_state, index, term, loop.report("install"))


def test_the_state_is_published_before_the_log_is_reset_and_both_before_the_report(loop: Loop) -> None:
    loop.append("entries", run(1, 5), HardState(1, 1, 2))
    loop.run_until(1)
    seen: list[object] = []
    loop.now_ns = 2_000
    loop.writer.install(
        lambda: seen.append(("published", loop.log._meta.last_index, loop.log._hard_state)),
        HardState(2, 2, 50),
        50,
        2,
        lambda error: seen.append((error, content(loop.log))),
    )
    assert loop.writer.outstanding_since_ns == 2_000
    loop.posted.get(timeout=30)()
    assert seen == [("published", 5, HardState(1, 1, 2)), (None, (HardState(2, 2, 50), 51, []))]
    assert loop.writer.outstanding_since_ns is None


def test_what_was_handed_over_before_and_after_is_not_mixed_with_it(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = loop.hold_commits(monkeypatch)
    loop.append("hold", run(1, 3), HardState(1, 1, 0))
    held.wait_for_one()
    before = transaction_id(loop.log)
    last_before: list[int] = []
    loop.append("a", run(4, 5))
    loop.append("b", run(6, 6), HardState(2, 0, 3))
    install(loop, 50, 2, HardState(2, 2, 50), lambda: last_before.append(loop.log._meta.last_index))
    loop.append("c", run(51, 52, term=2))
    loop.append("d", run(53, 53, term=2), HardState(2, 2, 51))
    held.let_go(4)
    assert loop.run_until(6) == [(name, None) for name in ("hold", "a", "b", "install", "c", "d")]
    assert last_before == [6], "what was handed over before is in the log when the state is published"
    assert held.commits == 4
    assert transaction_id(loop.log) == before + 4
    assert content(loop.log) == (HardState(2, 2, 51), 51, run(51, 53, term=2))


@pytest.mark.case(41)
def test_two_installs_in_a_row_are_done_in_order(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    held = loop.hold_commits(monkeypatch)
    published: list[int] = []
    loop.append("hold", run(1, 3), HardState(1, 1, 0))
    held.wait_for_one()
    install(loop, 50, 2, HardState(2, 2, 50), lambda: published.append(50))
    install(loop, 60, 2, HardState(2, 2, 60), lambda: published.append(60))
    held.let_go(3)
    assert loop.run_until(3) == [("hold", None), ("install", None), ("install", None)]
    assert published == [50, 60]
    assert content(loop.log) == (HardState(2, 2, 60), 61, [])


@pytest.mark.case(43)
def test_an_install_of_an_older_snapshot_stops_the_writer_before_anything_is_published(loop: Loop) -> None:
    published: list[int] = []
    loop.append("entries", run(1, 9), HardState(1, 1, 8))
    install(loop, 7, 1, HardState(1, 1, 7), lambda: published.append(7))
    loop.append("later", run(10, 10))
    reports = loop.run_until(3)
    assert isinstance(reports[1][1], InvariantError)
    assert isinstance(reports[2][1], StorageError)
    assert "the commit index went back from 8 to 7" in str(reports[2][1])
    assert (published, content(loop.log)[2]) == ([], run(1, 9))


def test_a_commit_index_that_waits_to_ride_goes_with_the_install(loop: Loop) -> None:
    loop.append("entries", run(1, 9), HardState(1, 1, 0))
    loop.run_until(1)
    loop.append("commit", [], HardState(1, 1, 8))
    install(loop, 50, 1, HardState(1, 1, 50))
    loop.append("commit", [], HardState(1, 1, 50))
    loop.append("more", run(51, 51))
    assert [error for _, error in loop.run_until(5)] == [None] * 5
    assert content(loop.log) == (HardState(1, 1, 50), 51, run(51, 51))


def test_a_commit_index_alone_is_not_reported_before_the_install_that_it_follows(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = loop.hold_commits(monkeypatch)
    install(loop, 50, 1, HardState(1, 1, 50))
    held.wait_for_one()
    loop.append("commit", [], HardState(1, 1, 50))
    assert loop.reports == []
    held.let_go()
    assert loop.run_until(2) == [("install", None), ("commit", None)]


@pytest.mark.case(53)
@pytest.mark.parametrize("step", ["publish", "reset"])
def test_a_failed_install_fails_all_that_come_after(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    loop.append("good", run(1, 2), HardState(1, 1, 0))
    loop.run_until(1)
    published: list[int] = []

    def publish() -> None:
        if step == "publish":
            raise StorageError("CURRENT can't be written", detail={"errno": errno.EIO})
        published.append(50)

    held = loop.hold_commits(monkeypatch)
    held.error = OSError(errno.EIO, "Input/output error")
    held.let_go(10)
    install(loop, 50, 2, HardState(2, 2, 50), publish)
    install(loop, 60, 2, HardState(2, 2, 60), lambda: published.append(60))
    loop.append("later", run(61, 61, term=2))
    reports = loop.run_until(4)
    assert [type(error) for _, error in reports] == [type(None)] + [StorageError] * 3
    says = "CURRENT can't be written" if step == "publish" else "Input/output error"
    assert all(says in str(error) for _, error in reports[1:])
    assert published == ([] if step == "publish" else [50]), "and nothing after the failure"
    assert content(loop.log) == (HardState(1, 1, 0), 1, run(1, 2))


@pytest.mark.case(6)
def test_an_install_after_a_failed_append_is_not_begun(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    held = loop.hold_commits(monkeypatch)
    held.error = OSError(errno.EIO, "Input/output error")
    published: list[int] = []
    loop.append("failing", run(1, 1), HardState(1, 1, 0))
    held.wait_for_one()
    install(loop, 50, 2, HardState(2, 2, 50), lambda: published.append(50))
    held.let_go()
    assert [type(error) for _, error in loop.run_until(2)] == [StorageError] * 2
    assert published == []


@pytest.mark.case(64)
def test_a_compaction_that_waits_does_not_reach_behind_the_new_boundary(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = 2_000
    loop.append("entries", run(1, last), HardState(1, 1, last))
    loop.run_until(1)
    held = loop.hold_commits(monkeypatch)
    loop.writer.compact(1_500, loop.report("compacted"))
    held.wait_for_one()
    install(loop, 3_000, 2, HardState(2, 2, 3_000))
    loop.append("more", run(3_001, 3_002, term=2))
    held.let_go(10)
    reports = loop.run_until(4)
    assert sorted(reports[1:], key=str) == [("compacted", None), ("install", None), ("more", None)]
    assert content(loop.log) == (HardState(2, 2, 3_000), 3_001, run(3_001, 3_002, term=2))


def test_an_install_that_waits_is_done_before_the_writer_ends(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = loop.hold_commits(monkeypatch)
    loop.append("a", run(1, 1), HardState(1, 1, 0))
    held.wait_for_one()
    install(loop, 50, 2, HardState(2, 2, 50))
    loop.append("b", run(51, 51, term=2))
    held.let_go(3)
    loop.writer.close()
    assert loop.run_until(3) == [("a", None), ("install", None), ("b", None)]
    with pytest.raises(ClosedError):
        install(loop, 60, 2, HardState(2, 2, 60))
    assert content(loop.log) == (HardState(2, 2, 50), 51, run(51, 51, term=2))
