from __future__ import annotations

import pytest

from raftstate.core.progress import Inflights, Progress, ProgressState
from raftstate.errors import InvariantError

PROBE, REPLICATE, SNAPSHOT = ProgressState.PROBE, ProgressState.REPLICATE, ProgressState.SNAPSHOT


def window(*messages: tuple[int, int], size: int = 4, max_bytes: int = 0) -> Inflights:
    inflights = Inflights(size, max_bytes)
    for index, size_bytes in messages:
        inflights.add(index, size_bytes)
    return inflights


def contents(inflights: Inflights) -> tuple[int, int, bool]:
    return inflights.count, inflights.bytes, inflights.full()


def whole_state(progress: Progress) -> dict[str, object]:
    """Every field that differs from those of a fresh Progress; the window as (count, bytes, full)."""
    fresh = Progress(match=0, next=1, inflights=window())
    names = [name for name in Progress.__dataclass_fields__ if name != "inflights"]
    state: dict[str, object] = {
        name: getattr(progress, name) for name in names if getattr(progress, name) != getattr(fresh, name)
    }
    if contents(progress.inflights) != (0, 0, False):
        state["inflights"] = contents(progress.inflights)
    return state


class TestInflights:
    def test_each_message_counts_with_its_bytes(self) -> None:
        assert contents(window((3, 100), (5, 10))) == (2, 110, False)

    def test_the_window_closes_at_its_size(self) -> None:
        assert contents(window((1, 1), (2, 1), size=2)) == (2, 2, True)

    def test_the_last_message_may_exceed_the_bytes_and_closes_the_window(self) -> None:
        inflights = window((1, 99), max_bytes=100)
        assert contents(inflights) == (1, 99, False)
        inflights.add(2, 1000)
        assert contents(inflights) == (2, 1099, True)

    def test_the_window_closes_at_exactly_its_bytes(self) -> None:
        assert contents(window((1, 100), max_bytes=100)) == (1, 100, True)

    @pytest.mark.parametrize(
        ("acknowledged", "left"),
        [
            (0, (3, 60, False)),
            (1, (2, 50, False)),
            (3, (2, 50, False)),
            (4, (1, 30, False)),
            (9, (0, 0, False)),
        ],
    )
    def test_an_acknowledgement_frees_what_ends_at_or_below_it(
        self, acknowledged: int, left: tuple[int, int, bool]
    ) -> None:
        inflights = window((1, 10), (4, 20), (6, 30))
        inflights.free_le(acknowledged)
        assert contents(inflights) == left

    def test_freed_places_are_used_again(self) -> None:
        inflights = window((1, 1), (2, 2), size=2)
        for index in range(3, 9):
            inflights.free_le(index - 2)
            assert contents(inflights) == (1, index - 1, False)
            inflights.add(index, index)
            assert contents(inflights) == (2, 2 * index - 1, True)

    def test_reset_frees_all(self) -> None:
        inflights = window((1, 10), (2, 20), size=2)
        inflights.reset()
        assert contents(inflights) == (0, 0, False)

    def test_adding_to_a_full_window_is_our_bug(self) -> None:
        with pytest.raises(InvariantError, match=r"up to index 3 .* full .* 2 of 2 messages, 2 of 0 bytes"):
            window((1, 1), (2, 1), (3, 1), size=2)

    def test_an_index_that_moves_back_is_our_bug(self) -> None:
        with pytest.raises(InvariantError, match="index 4 sent after one up to index 5"):
            window((5, 1), (4, 1))

    @pytest.mark.parametrize(("size", "max_bytes"), [(0, 0), (-1, 0), (1, -1)])
    def test_a_window_that_never_opens_is_refused(self, size: int, max_bytes: int) -> None:
        with pytest.raises(InvariantError, match=f"size={size}, max_bytes={max_bytes}"):
            Inflights(size, max_bytes)


class TestInvariant:
    @pytest.mark.parametrize(("match", "next_index"), [(0, 0), (5, 5), (6, 5), (-1, 1)])
    def test_next_is_above_match(self, match: int, next_index: int) -> None:
        with pytest.raises(
            InvariantError, match=f"match={match}, next={next_index}; must be 0 <= match < next"
        ):
            Progress(match=match, next=next_index, inflights=window())

    def test_a_snapshot_below_match_is_our_bug(self) -> None:
        progress = Progress(match=5, next=6, inflights=window())
        with pytest.raises(InvariantError, match="match=5, next=5"):
            progress.become_snapshot(4)


class TestBecome:
    def test_probe_out_of_replicate_takes_back_what_was_assumed(self) -> None:
        progress = Progress(
            match=1,
            next=5,
            inflights=window((4, 10)),
            state=REPLICATE,
            sent_commit=4,
            recent_active=True,
            msg_app_flow_paused=True,
            is_learner=True,
        )
        progress.become_probe()
        assert whole_state(progress) == {
            "match": 1,
            "next": 2,
            "sent_commit": 1,
            "recent_active": True,
            "is_learner": True,
        }

    def test_probe_after_a_finished_snapshot_goes_on_behind_it(self) -> None:
        progress = Progress(
            match=1, next=11, inflights=window(), state=SNAPSHOT, pending_snapshot=10, sent_commit=10
        )
        progress.become_probe()
        assert whole_state(progress) == {"match": 1, "next": 11, "sent_commit": 10}

    def test_probe_after_a_failed_snapshot_goes_back_to_match(self) -> None:
        progress = Progress(match=1, next=11, inflights=window(), state=SNAPSHOT, sent_commit=10)
        progress.become_probe()
        assert whole_state(progress) == {"match": 1, "next": 2, "sent_commit": 1}

    def test_replicate_sends_from_behind_match(self) -> None:
        progress = Progress(match=1, next=5, inflights=window(), sent_commit=1, msg_app_flow_paused=True)
        progress.become_replicate()
        assert whole_state(progress) == {"match": 1, "next": 2, "state": REPLICATE, "sent_commit": 1}

    def test_snapshot_goes_on_behind_it_and_counts_its_index_as_sent_commit(self) -> None:
        progress = Progress(
            match=1, next=5, inflights=window((4, 1)), state=REPLICATE, msg_app_flow_paused=True
        )
        progress.become_snapshot(10)
        assert whole_state(progress) == {
            "match": 1,
            "next": 11,
            "state": SNAPSHOT,
            "sent_commit": 10,
            "pending_snapshot": 10,
        }


class TestSentEntries:
    def test_replicate_moves_next_and_fills_the_window_up_to_the_last_entry(self) -> None:
        progress = Progress(match=1, next=2, inflights=window(), state=REPLICATE)
        progress.sent_entries(3, 30)
        in_flight = {"match": 1, "next": 5, "state": REPLICATE, "inflights": (1, 30, False)}
        assert whole_state(progress) == in_flight
        progress.inflights.free_le(3)
        assert whole_state(progress) == in_flight
        progress.inflights.free_le(4)
        assert whole_state(progress) == {"match": 1, "next": 5, "state": REPLICATE}

    def test_replicate_pauses_when_the_window_is_full(self) -> None:
        progress = Progress(match=1, next=2, inflights=window(size=1), state=REPLICATE)
        progress.sent_entries(1, 10)
        assert whole_state(progress) == {
            "match": 1,
            "next": 3,
            "state": REPLICATE,
            "msg_app_flow_paused": True,
            "inflights": (1, 10, True),
        }

    def test_an_empty_append_through_a_full_window_is_a_probe_and_pauses_again(self) -> None:
        progress = Progress(match=1, next=3, inflights=window((2, 10), size=1), state=REPLICATE)
        progress.sent_entries(0, 0)
        assert whole_state(progress) == {
            "match": 1,
            "next": 3,
            "state": REPLICATE,
            "msg_app_flow_paused": True,
            "inflights": (1, 10, True),
        }

    @pytest.mark.parametrize(("count", "paused"), [(0, {}), (1, {"msg_app_flow_paused": True})])
    def test_a_probe_with_entries_pauses_and_moves_nothing(
        self, count: int, paused: dict[str, object]
    ) -> None:
        progress = Progress(match=1, next=5, inflights=window())
        progress.sent_entries(count, 10)
        assert whole_state(progress) == {"match": 1, "next": 5, **paused}

    def test_nothing_is_sent_to_a_peer_that_waits_for_a_snapshot(self) -> None:
        progress = Progress(match=1, next=11, inflights=window(), state=SNAPSHOT, pending_snapshot=10)
        with pytest.raises(InvariantError, match=r"2 entries from index 11 .* waits for snapshot 10"):
            progress.sent_entries(2, 20)


@pytest.mark.parametrize(
    ("sent_commit", "index", "can"),
    [(3, 4, True), (3, 3, False), (4, 3, False), (8, 20, True), (9, 20, False), (10, 20, False)],
)
def test_a_commit_index_is_worth_sending_while_it_can_move_the_peers(
    sent_commit: int, index: int, can: bool
) -> None:
    progress = Progress(match=1, next=10, inflights=window(), sent_commit=sent_commit)
    assert progress.can_bump_commit(index) is can


@pytest.mark.case(10)
@pytest.mark.parametrize(
    ("index", "news", "match", "next_index"),
    [(2, False, 3, 6), (3, False, 3, 6), (4, True, 4, 6), (5, True, 5, 6), (8, True, 8, 9)],
)
def test_an_acknowledgement_moves_match_forward_only(
    index: int, news: bool, match: int, next_index: int
) -> None:
    progress = Progress(match=3, next=6, inflights=window(), state=REPLICATE, msg_app_flow_paused=True)
    assert progress.maybe_update(index) is news
    paused = {} if news else {"msg_app_flow_paused": True}
    assert whole_state(progress) == {"match": match, "next": next_index, "state": REPLICATE, **paused}


@pytest.mark.case(10)
@pytest.mark.parametrize(
    ("rejected", "counts", "next_index", "sent_commit"),
    [(4, False, 10, 8), (5, False, 10, 8), (6, True, 6, 5), (9, True, 6, 5)],
)
def test_a_rejection_in_replicate_goes_back_to_match_unless_it_is_late(
    rejected: int, counts: bool, next_index: int, sent_commit: int
) -> None:
    progress = Progress(match=5, next=10, inflights=window(), state=REPLICATE, sent_commit=8)
    assert progress.maybe_decr_to(rejected, rejected) is counts
    assert whole_state(progress) == {
        "match": 5,
        "next": next_index,
        "state": REPLICATE,
        "sent_commit": sent_commit,
    }


@pytest.mark.case(10)
@pytest.mark.parametrize(
    ("match", "next_index", "rejected", "hint", "new_next"),
    [
        (0, 10, 5, 5, None),
        (0, 10, 10, 5, None),
        (0, 10, 9, 9, 9),
        (0, 2, 1, 1, 1),
        (0, 1, 0, 0, 1),
        (0, 10, 9, 2, 3),
        (0, 10, 9, 0, 1),
        (4, 10, 9, 2, 5),
    ],
)
def test_a_rejected_probe_moves_next_to_the_hint_but_never_to_match(
    match: int, next_index: int, rejected: int, hint: int, new_next: int | None
) -> None:
    progress = Progress(
        match=match, next=next_index, inflights=window(), sent_commit=9, msg_app_flow_paused=True
    )
    assert progress.maybe_decr_to(rejected, hint) is (new_next is not None)
    expected = (
        Progress(match=match, next=next_index, inflights=window(), sent_commit=9, msg_app_flow_paused=True)
        if new_next is None
        else Progress(match=match, next=new_next, inflights=window(), sent_commit=new_next - 1)
    )
    assert whole_state(progress) == whole_state(expected)


@pytest.mark.parametrize(
    ("state", "flow_paused", "paused"),
    [
        (PROBE, False, False),
        (PROBE, True, True),
        (REPLICATE, False, False),
        (REPLICATE, True, True),
        (SNAPSHOT, False, True),
        (SNAPSHOT, True, True),
    ],
)
def test_a_peer_is_paused_while_it_waits_for_a_snapshot_or_its_flow_is(
    state: ProgressState, flow_paused: bool, paused: bool
) -> None:
    progress = Progress(match=0, next=1, inflights=window(), state=state, msg_app_flow_paused=flow_paused)
    assert progress.is_paused() is paused
