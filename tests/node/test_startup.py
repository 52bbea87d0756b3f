"""What a start does with a log that does not fit the state beside it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from raftstate.core.types import HardState
from raftstate.errors import DataLossError
from raftstate.node.startup import reset_to_finish
from raftstate.server.stores import fit_log_to_state
from raftstate.store.log import LogStore
from raftstate.store.log_format import encode_record
from tests.store.log_helpers import content, entry, new_log, put, reopen, run
from tests.store.test_log_damage import damage


def a_log(path: Path) -> LogStore:
    """A log that holds entries 1 to 4 of term 1 and 5 to 40 of term 4, 6 of them committed, and that
    was cut at 2."""
    log = new_log(path / "log")
    put(log, run(1, 4, term=1) + run(5, 40, term=4), HardState(5, 2, 6))
    cut = log.compact(2, 10)
    assert cut is not None
    log.publish(cut)
    return log


def decision(path: Path, applied_index: int, applied_term: int) -> HardState | None:
    log = a_log(path)
    try:
        return reset_to_finish(log, applied_index, applied_term)
    finally:
        log.close()


def fit(log: LogStore, applied_index: int, applied_term: int) -> None:
    """Do what a start does with a log beside a state that has applied so much, durably."""
    machine = SimpleNamespace(applied_index=applied_index, applied_term=applied_term)
    fit_log_to_state(log, machine, applied_index)  # type: ignore[arg-type]


@pytest.mark.case(67)
@pytest.mark.parametrize(("applied_index", "applied_term"), [(2, 1), (3, 1), (6, 4), (30, 4), (40, 4)])
def test_a_log_that_holds_the_last_entry_applied_or_was_cut_at_it_stays(
    tmp_path: Path, applied_index: int, applied_term: int
) -> None:
    assert decision(tmp_path, applied_index, applied_term) is None


@pytest.mark.case(83)
@pytest.mark.parametrize("applied_index", [7, 39, 40])
def test_a_longer_log_that_conflicts_with_an_installed_state_begins_anew_and_keeps_term_and_vote(
    tmp_path: Path, applied_index: int
) -> None:
    assert decision(tmp_path, applied_index, 5) == HardState(5, 2, applied_index)


@pytest.mark.case(67)
def test_a_log_that_ends_before_an_installed_state_begins_anew(tmp_path: Path) -> None:
    assert decision(tmp_path, 41, 4) == HardState(5, 2, 41)


@pytest.mark.case(67)
def test_in_a_term_that_the_log_has_not_heard_of_the_node_has_not_voted(tmp_path: Path) -> None:
    assert decision(tmp_path, 100, 6) == HardState(6, 0, 100)


@pytest.mark.case(83)
@pytest.mark.parametrize(("applied_index", "applied_term"), [(1, 1), (2, 2), (5, 1), (6, 5)])
def test_a_state_that_contradicts_what_the_log_knows_to_be_committed_is_no_crash(
    tmp_path: Path, applied_index: int, applied_term: int
) -> None:
    with pytest.raises(DataLossError, match="they are not of one node, or one of them was replaced"):
        decision(tmp_path, applied_index, applied_term)


@pytest.mark.case(67)
@pytest.mark.case(83)
@pytest.mark.parametrize(("applied_index", "applied_term"), [(30, 5), (100, 4)])
def test_a_start_finishes_an_install_once_and_appends_go_on_behind_it(
    tmp_path: Path, applied_index: int, applied_term: int
) -> None:
    log = a_log(tmp_path)
    for _ in range(2):
        fit(log, applied_index, applied_term)
        assert content(log) == (HardState(5, 2, applied_index), applied_index + 1, [])
        log.close()
        log = reopen(tmp_path / "log")
    more = run(applied_index + 1, applied_index + 3, term=6)
    put(log, more, HardState(6, 1, applied_index))
    fit(log, applied_index, applied_term)
    assert content(log) == (HardState(6, 1, applied_index), applied_index + 1, more)
    log.close()


@pytest.mark.case(62)
def test_a_start_cuts_the_log_behind_a_damaged_record_that_was_applied_last(tmp_path: Path) -> None:
    a_log(tmp_path).close()
    _, record = encode_record(entry(8, term=4))
    damage(tmp_path / "log", record, record[:-1] + b"?")
    log = reopen(tmp_path / "log", verify_after=8)
    assert log.damaged == ()
    fit(log, 8, 4)
    assert (log.damaged, log.first_index(), log.last_index(), log.term(8)) == ((), 9, 40, 4)
    log.close()
    for verify_after, kept in ((0, 3), (9, 3)):  # damage that nobody waits for; damage that the state lacks
        other = tmp_path / str(verify_after)
        other.mkdir()
        a_log(other).close()
        _, record = encode_record(entry(9, term=4))
        damage(other / "log", record, record[:-1] + b"?")
        log = reopen(other / "log", verify_after=verify_after)
        fit(log, 8, 4)
        assert log.first_index() == kept
        log.close()
