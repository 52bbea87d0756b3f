"""The exactly-once rule."""

from __future__ import annotations

import pytest

from raftstate.machine import batch as batch_module
from raftstate.machine import machine as machine_module
from raftstate.machine.batch import CANCELLED
from raftstate.machine.types import (
    SESSION_TTL_MS_DEFAULT,
    SESSION_TTL_MS_MAX,
    SESSION_TTL_MS_MIN,
    SESSION_WINDOW,
    Answer,
    Cancel,
    Cancelled,
    Close,
    Closed,
    Code,
    Expire,
    Register,
    Registered,
    SessionId,
)
from tests.machine.rig import Rig, answers, batch, codes, delete, put, refusal


@pytest.mark.case(36)
def test_a_retried_write_is_applied_once_and_answered_as_the_first_time() -> None:
    rig = Rig()
    sid = rig.register()
    first = rig.write(put(1, b"k", b"1"), delete(2, b"k", prev_kv=True), put(3, b"", b""), session=sid)
    revision, tables = rig.machine.revision, rig.tables.dump()
    rig.write(put(9, b"other"))
    for _ in range(2):
        assert (
            rig.write(put(1, b"k", b"1"), delete(2, b"k", prev_kv=True), put(3, b"", b""), session=sid)
            == first
        )
        rig.reload()
    assert rig.machine.revision == revision + 1
    assert rig.tables.dump()["CHANGES"].keys() - tables["CHANGES"].keys() == {
        (revision + 1).to_bytes(8, "big") + bytes(4)
    }


@pytest.mark.case(36)
def test_a_retry_is_recognised_whatever_batch_it_comes_in() -> None:
    rig = Rig()
    sid = rig.register()
    rig.write(put(2, b"b"), put(1, b"a"), session=sid)
    assert rig.write(put(3, b"c"), put(1, b"a"), session=sid) == {3: Answer(3, 4), 1: Answer(1, 3)}
    assert rig.write(put(2, b"b"), session=sid) == {2: Answer(2, 2)}


def test_without_a_session_serials_mean_nothing() -> None:
    rig = Rig()
    assert rig.write(put(0, b"a")) == {0: Answer(0, 2)}
    assert rig.write(put(0, b"a")) == {0: Answer(0, 3)}


@pytest.mark.case(38)
def test_an_expired_session_is_an_error_and_its_commands_are_not_run() -> None:
    rig = Rig()
    sid = rig.register(ttl_ms=10_000)
    rig.write(put(1, b"k", b"1"), session=sid)
    assert rig.run(Expire(sid, 10_000)) == [Closed()]
    for serials in ((1,), (2, 3)):
        [result] = rig.run(batch(*(put(n, b"k", b"again") for n in serials), session=sid))
        assert refusal(result) == (Code.SESSION_EXPIRED, "session")
    [result] = rig.run(Cancel(sid, 1))
    assert refusal(result) == (Code.SESSION_EXPIRED, "session")
    assert rig.machine.revision == 2
    found = rig.reader.get(b"k")
    assert found is not None
    assert found.value == b"1"


def test_expire_looks_at_the_deadline_again_when_it_is_applied() -> None:
    rig = Rig()
    sid = rig.register(ttl_ms=10_000, lease_ms=1_000)
    rig.write(put(1, b"k"), session=sid, lease_ms=5_000)
    assert rig.machine.expired_sessions(14_999) == []
    assert rig.machine.expired_sessions(15_000) == [sid]
    [early] = rig.run(Expire(sid, 14_999))
    assert refusal(early) == (Code.FAILED_PRECONDITION, "")
    rig.reload()
    assert rig.machine.session_count == 1
    assert rig.run(Expire(sid, 15_000)) == [Closed()]
    assert rig.machine.session_count == 0


def test_any_command_of_a_session_counts_as_hearing_from_it() -> None:
    rig = Rig()
    sid = rig.register(ttl_ms=10_000)
    for lease_ms, item in ((1_000, batch(session=sid)), (2_000, Cancel(sid, 5)), (3_000, Cancel(sid, 5))):
        rig.run(item, lease_ms=lease_ms)
        assert rig.machine.expired_sessions(lease_ms + 9_999) == []
        assert rig.machine.expired_sessions(lease_ms + 10_000) == [sid]


def test_the_floor_drops_answers_and_what_lies_below_it_is_stale() -> None:
    rig = Rig()
    sid = rig.register()
    rig.write(put(1, b"a"), put(2, b"b"), session=sid)
    rig.write(put(3, b"c"), session=sid)
    found = rig.write(put(1, b"a"), put(2, b"b"), put(3, b"c"), session=sid, floor=3)
    assert codes(found) == {1: Code.STALE, 2: Code.STALE, 3: None}
    assert found[3] == Answer(3, 4)
    assert len(rig.hot_keys(b"A")) == 1
    # A floor never goes back.
    assert codes(rig.write(put(2, b"b"), session=sid, floor=1)) == {2: Code.STALE}
    assert rig.machine.revision == 4


def test_a_floor_far_above_every_answer_is_no_more_work_than_the_answers() -> None:
    rig = Rig()
    sid = rig.register()
    rig.write(put(1, b"a"), session=sid)
    highest = (1 << 64) - 1
    assert rig.write(put(highest, b"b"), session=sid, floor=highest) == {highest: Answer(highest, 3)}
    assert len(rig.hot_keys(b"A")) == 1


def test_a_row_of_answers_stays_until_all_of_it_lies_below_the_floor() -> None:
    rig = Rig()
    sid = rig.register()
    rig.write(put(1, b"a"), put(10, b"b"), session=sid)
    rig.write(put(2, b"c"), session=sid)
    rig.write(session=sid, floor=5)
    assert len(rig.hot_keys(b"A")) == 1
    rig.reload()
    assert codes(rig.write(put(1, b"a"), put(10, b"b"), session=sid)) == {1: Code.STALE, 10: None}
    rig.write(session=sid, floor=11)
    assert rig.hot_keys(b"A") == []


@pytest.mark.case(79)
def test_beyond_the_window_nothing_runs_and_nothing_is_stored_until_the_floor_rises() -> None:
    rig = Rig()
    sid = rig.register()
    last = SESSION_WINDOW
    assert codes(rig.write(put(last, b"a"), put(last + 1, b"b"), session=sid)) == {
        last: None,
        last + 1: Code.WINDOW,
    }
    assert codes(rig.write(put(last + 1, b"b"), session=sid, floor=2)) == {last + 1: None}
    assert rig.machine.revision == 3


@pytest.mark.case(79)
def test_a_full_window_never_blocks_the_lowest_serial() -> None:
    rig = Rig()
    sid = rig.register()
    for start in range(2, SESSION_WINDOW + 1, 500):
        commands = [put(n, b"k") for n in range(start, min(start + 500, SESSION_WINDOW + 1))]
        assert set(codes(rig.write(*commands, session=sid)).values()) == {None}
    assert codes(rig.write(put(SESSION_WINDOW + 1, b"k"), put(1, b"k"), session=sid)) == {
        SESSION_WINDOW + 1: Code.WINDOW,
        1: None,
    }


@pytest.mark.case(79)
def test_over_its_bytes_a_session_runs_the_lowest_serial_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "SESSION_BYTES_MAX", 1_000)
    rig = Rig()
    sid = rig.register()
    rig.write(put(0, b"k", b"." * 600))
    # Serial 2 and 3 fill it within one batch; 4 is refused; 1 stands at the floor.
    heavy = [put(n, b"k", b"." * 600, prev_kv=True) for n in (2, 3, 4, 1)]
    assert codes(rig.write(*heavy, session=sid)) == {2: None, 3: None, 4: Code.WINDOW, 1: None}
    assert codes(rig.write(put(5, b"k"), put(2, b"k"), session=sid)) == {5: Code.WINDOW, 2: None}
    rig.reload()
    assert codes(rig.write(put(5, b"k"), session=sid, floor=2)) == {5: Code.WINDOW}
    assert codes(rig.write(put(6, b"k"), session=sid, floor=5)) == {6: None}


def test_answers_without_a_session_are_limited_in_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "BATCH_ANSWERS_BYTES_MAX", 1_000)
    rig = Rig()
    rig.write(put(1, b"k", b"." * 600))
    found = rig.write(*(put(n, b"k", b"." * 600, prev_kv=True) for n in (1, 2, 3)))
    assert codes(found) == {1: None, 2: None, 3: Code.RESOURCE_EXHAUSTED}
    assert rig.machine.revision == 4


@pytest.mark.case(79)
def test_over_the_bytes_of_its_answers_a_batch_runs_nothing_more_but_repeats_in_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch_module, "BATCH_ANSWERS_BYTES_MAX", 1_000)
    rig = Rig()
    sid = rig.register()
    rig.write(put(0, b"k", b"." * 600))
    stored = rig.write(*(put(n, b"k", b"." * 600, prev_kv=True) for n in (2, 3)), session=sid)
    again = rig.write(*(put(n, b"k", prev_kv=True) for n in (2, 3, 1, 4)), session=sid)
    assert codes(again) == {2: None, 3: None, 1: Code.WINDOW, 4: Code.WINDOW}
    assert {serial: again[serial] for serial in stored} == stored
    # Nothing of that was stored, and the lowest serial goes on by standing first.
    assert codes(rig.write(put(1, b"k", prev_kv=True), put(2, b"k"), put(3, b"k"), session=sid)) == {
        1: None,
        2: None,
        3: None,
    }


@pytest.mark.case(71)
def test_a_cancelled_write_that_arrives_late_is_not_applied() -> None:
    rig = Rig()
    sid = rig.register()
    assert rig.run(Cancel(sid, 2)) == [Cancelled(None)]
    assert rig.run(Cancel(sid, 2)) == [Cancelled(None)]
    rig.reload()
    found = rig.write(put(2, b"k"), put(3, b"k"), session=sid)
    assert found == {2: Answer(2, 1, CANCELLED), 3: Answer(3, 2)}
    assert len(rig.hot_keys(b"A")) == 2


@pytest.mark.case(71)
def test_a_cancel_of_what_has_run_returns_its_answer() -> None:
    rig = Rig()
    sid = rig.register()
    rig.write(put(1, b"k"), delete(2, b"k"), put(3, b""), session=sid)
    assert rig.run(Cancel(sid, 1), Cancel(sid, 2)) == [
        Cancelled(Answer(1, 2)),
        Cancelled(Answer(2, 3, deleted=1)),
    ]
    [refused] = rig.run(Cancel(sid, 3))
    assert isinstance(refused, Cancelled)
    assert refused.answer is not None
    assert codes({3: refused.answer}) == {3: Code.INVALID}


@pytest.mark.case(71)
def test_given_up_serials_are_cancelled_before_the_batch_runs_and_those_with_an_answer_keep_it() -> None:
    rig = Rig()
    sid = rig.register()
    rig.write(put(1, b"k"), session=sid)
    rig.write(put(4, b"k"), session=sid, given_up=[1, 2, 3])
    rig.reload()
    found = rig.write(*(put(n, b"k") for n in (1, 2, 3, 5)), session=sid, given_up=[5])
    assert codes(found) == {1: None, 2: Code.CANCELLED, 3: Code.CANCELLED, 5: Code.CANCELLED}
    assert rig.machine.revision == 3


@pytest.mark.case(71)
def test_what_lies_outside_the_window_cannot_be_cancelled() -> None:
    rig = Rig()
    sid = rig.register()
    rig.write(session=sid, floor=3)
    results = rig.run(
        Cancel(sid, 2),
        Cancel(sid, 3 + SESSION_WINDOW),
        batch(put(4, b"k"), session=sid, given_up=[3 + SESSION_WINDOW]),
        batch(put(4, b"k"), session=sid, given_up=[2]),
    )
    assert [refusal(result) for result in results[:3]] == [
        (Code.STALE, "serial"),
        (Code.WINDOW, "serial"),
        (Code.WINDOW, "serial"),
    ]
    assert answers(results[3]) == {4: Answer(4, 2)}


@pytest.mark.case(78)
def test_both_parts_of_a_session_id_and_the_cluster_id_are_checked() -> None:
    rig = Rig()
    sid = rig.register(nonce=7)
    stranger = SessionId(sid.index, 8)
    results = rig.run(
        batch(put(1, b"k"), session=stranger),
        batch(put(1, b"k"), session=SessionId(sid.index + 1, 7)),
        batch(put(1, b"k"), session=sid, cluster_id=0xBAD),
        batch(put(1, b"k"), cluster_id=0xBAD),
        Cancel(stranger, 1),
        Cancel(sid, 1, cluster_id=0xBAD),
        Close(sid, cluster_id=0xBAD),
        Register(1, 0, cluster_id=0xBAD),
    )
    assert [refusal(result)[0] for result in results] == [
        Code.SESSION_EXPIRED,
        Code.SESSION_EXPIRED,
        Code.WRONG_CLUSTER,
        Code.WRONG_CLUSTER,
        Code.SESSION_EXPIRED,
        Code.WRONG_CLUSTER,
        Code.WRONG_CLUSTER,
        Code.WRONG_CLUSTER,
    ]
    assert rig.run(Close(stranger), Expire(stranger, 1 << 60)) == [Closed(), Closed()]
    assert (rig.machine.session_count, rig.machine.revision) == (1, 1)
    [result] = rig.run(batch(put(1, b"k"), session=sid, cluster_id=rig.machine.cluster_id))
    assert answers(result) == {1: Answer(1, 2)}


def test_a_closed_session_leaves_no_row_behind() -> None:
    rig = Rig()
    sid, other = rig.register(1), rig.register(2)
    rig.write(put(1, b"a"), session=sid)
    rig.write(put(2, b"a"), put(9, b"b"), session=sid)
    rig.write(put(1, b"c"), session=other)
    assert rig.run(Close(sid), Close(sid)) == [Closed(), Closed()]
    assert len(rig.hot_keys(b"S")) == len(rig.hot_keys(b"A")) == 1
    assert rig.write(put(1, b"c"), session=other) == {1: Answer(1, 5)}


@pytest.mark.parametrize(
    ("asked_ms", "given_ms"),
    [
        (0, SESSION_TTL_MS_DEFAULT),
        (SESSION_TTL_MS_MIN, SESSION_TTL_MS_MIN),
        (SESSION_TTL_MS_MAX, SESSION_TTL_MS_MAX),
    ],
)
def test_a_session_is_its_log_index_and_its_nonce(asked_ms: int, given_ms: int) -> None:
    rig = Rig()
    assert rig.run(Register(1 << 63, asked_ms)) == [Registered(SessionId(1, 1 << 63), given_ms)]


@pytest.mark.parametrize("ttl_ms", [1, SESSION_TTL_MS_MIN - 1, SESSION_TTL_MS_MAX + 1, (1 << 64) - 1])
def test_a_time_to_live_out_of_bounds_is_refused(ttl_ms: int) -> None:
    rig = Rig()
    [result] = rig.run(Register(1, ttl_ms))
    assert refusal(result) == (Code.INVALID, "ttl_ms")
    assert rig.machine.session_count == 0


def test_an_entry_opens_one_session_and_a_cluster_a_limited_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "SESSIONS_MAX", 2)
    rig = Rig()
    opened, second = rig.run(Register(1, 0), Register(2, 0))
    assert opened == Registered(SessionId(1, 1), SESSION_TTL_MS_DEFAULT)
    assert refusal(second) == (Code.RESOURCE_EXHAUSTED, "")
    rig.register(3)
    [third] = rig.run(Register(4, 0))
    assert refusal(third) == (Code.RESOURCE_EXHAUSTED, "")
    assert rig.machine.session_count == 2


def test_a_batch_costs_the_same_rows_however_full_its_session_is() -> None:
    rig = Rig()
    sid = rig.register()
    costs = []
    for n in range(8):
        before = rig.tables.writes
        rig.write(*(put(1 + n * 100 + i, b"k%d" % i) for i in range(100)), session=sid)
        costs.append(rig.tables.writes - before)
    # 100 changes and 100 index rows; the session's own row, one row of answers, meta and bucket sums.
    assert costs == [204] * 8
