"""Where a watch goes on: the rules, without any stream."""

from __future__ import annotations

import random

import pytest

from raftstate.client import watch_inbox
from raftstate.client.watch_inbox import Inbox, decode
from raftstate.pb.v1 import watch_pb2
from tests.client.fake_watch import deletion, put


def inbox(start_revision: int = 0) -> Inbox:
    return Inbox(watch_pb2.WatchCreate(key=b"k", start_revision=start_revision))


def revisions(inbox: Inbox) -> list[int]:
    found = []
    while (event := inbox.take()) is not None:
        found.append(event.revision)
    return found


def test_events_are_decoded_whole() -> None:
    message = deletion(b"b", 8)
    batch = decode([put(b"a", 7, b"1", prev=b"0"), message])
    first, second = batch.events
    assert (first.kind, first.key, first.value, first.revision) == ("put", b"a", b"1", 7)
    assert first.prev_kv is not None
    assert first.prev_kv.value == b"0"
    assert (second.kind, second.key, second.value, second.revision) == ("delete", b"b", b"", 8)
    assert second.prev_kv is None
    assert (batch.first, batch.last, batch.count_of_last) == (7, 8, 1)


def test_a_new_creation_begins_at_the_last_revision_and_passes_over_what_was_received_of_it() -> None:
    box = inbox(5)
    assert box.begin(1).create.start_revision == 5
    box.confirm(5)
    box.receive(decode([put(b"k", 6), put(b"k", 7), put(b"k", 7)]))
    assert box.begin(2).create.start_revision == 7
    box.receive(decode([put(b"k", 7)]))
    box.receive(decode([put(b"k", 7), put(b"k", 7, b"new"), put(b"k", 8)]))
    assert revisions(box) == [6, 7, 7, 7, 8]
    box.begin(3)
    # The one that came before the break counts for the one that breaks, too.
    box.receive(decode([put(b"k", 8), put(b"k", 8)]))
    box.begin(4)
    box.receive(decode([put(b"k", 8), put(b"k", 8), put(b"k", 9)]))
    assert revisions(box) == [8, 9]


def test_a_progress_note_moves_the_resume_point_past_its_revision() -> None:
    box = inbox(5)
    box.receive(decode([put(b"k", 6)]))
    box.advance(6)
    assert box.begin(2).create.start_revision == 7
    box.receive(decode([put(b"k", 7)]))
    assert revisions(box) == [6, 7]


def test_a_node_that_is_behind_moves_nothing_back() -> None:
    box = inbox(5)
    box.advance(9)
    box.advance(3)
    box.receive(decode([put(b"k", 8), put(b"k", 9), put(b"k", 10)]))
    assert revisions(box) == [10]
    assert box.begin(2).create.start_revision == 10


def test_a_watch_from_now_on_begins_where_its_first_node_said_and_asks_again_only_before_that() -> None:
    box = inbox()
    assert box.begin(1).create.start_revision == 0
    assert box.begin(2).create.start_revision == 0
    box.confirm(12)
    assert box.begin(3).create.start_revision == 12
    box.confirm(15)
    assert box.begin(4).create.start_revision == 12


def test_what_was_handed_out_is_told_by_revision() -> None:
    box = inbox(5)
    assert box.handed_out == 4
    box.receive(decode([put(b"k", 7), put(b"k", 9)]))
    assert box.handed_out == 6
    box.take()
    assert box.handed_out == 8
    box.take()
    assert box.handed_out == 8  # there may be others of 9
    box.advance(11)
    assert box.handed_out == 11
    assert inbox().handed_out == 0


def test_events_that_are_dropped_were_not_handed_out() -> None:
    box = inbox(5)
    box.receive(decode([put(b"k", 7), put(b"k", 7), put(b"k", 9)]))
    box.take()
    box.drop()
    assert box.take() is None
    assert box.handed_out == 6
    box = inbox(5)
    box.receive(decode([put(b"k", 7)]))
    box.take()
    box.advance(8)
    box.drop()
    assert box.handed_out == 8


def test_an_inbox_is_full_by_its_bytes_and_wants_more_when_a_fourth_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch_inbox, "BYTES_MAX", 8 * (watch_inbox.EVENT_BYTES + 1))
    box = inbox(2)
    box.receive(decode([put(b"k", revision) for revision in range(2, 9)]))
    assert not box.is_full
    box.receive(decode([put(b"k", 9)]))
    assert box.is_full
    box.parked = True
    for _ in range(5):
        box.take()
    assert not box.wants_more
    box.take()
    assert box.wants_more


def test_however_streams_break_every_event_comes_once() -> None:
    for seed in range(300):
        rng = random.Random(seed)
        history = []
        revision = 1
        for _ in range(rng.randrange(1, 30)):
            revision += rng.randrange(1, 3)
            history += [put(b"k", revision, bytes([part])) for part in range(rng.randrange(1, 5))]
        box = inbox(2)
        got = []
        while len(got) < len(history):
            start = box.begin(1).create.start_revision
            sent = [event for event in history if event.kv.mod_revision >= start]
            sent = sent[: rng.randrange(len(sent) + 1)]
            complete = sent == [event for event in history if event.kv.mod_revision >= start]
            while sent:
                size = rng.randrange(1, len(sent) + 1)
                box.receive(decode(sent[:size]))
                last, sent = sent[size - 1].kv.mod_revision, sent[size:]
                if (not sent and complete) or (
                    sent and sent[0].kv.mod_revision > last and rng.random() < 0.3
                ):
                    box.advance(last)
            while (event := box.take()) is not None:
                got.append((event.revision, event.value))
        assert got == [(event.kv.mod_revision, event.kv.value) for event in history], seed
