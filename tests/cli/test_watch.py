"""watch."""

from __future__ import annotations

import json

import pytest

from raftstate.cli import watch as watch_command
from raftstate.client import KeyValue, WatchEvent
from raftstate.errors import DeadlineError, OutOfRangeError
from tests.cli.conftest import Run
from tests.cli.fake_client import FakeClient

BEGUN = "raftstate: watching; interrupt to stop\n"
BEFORE = KeyValue(b"k", b"was\n", 2, 2, 1)
EVENTS = [
    WatchEvent("put", KeyValue(b"k", b"a\tb\xff", 2, 3, 2), BEFORE),
    WatchEvent("delete", KeyValue(b"k", b"", 0, 4, 0), None),
]


def test_a_change_is_a_line_until_it_is_interrupted(run: Run, client: FakeClient) -> None:
    client.events = EVENTS
    assert run("watch", "k") == (0, b"3\tput\tk\ta\\tb\\xff\n4\tdelete\tk\n", BEGUN)
    assert run("watch", "k", "--prev").out == (
        b"3\tput\tk\ta\\tb\\xff\twas was\\n\n4\tdelete\tk\twas nothing\n"
    )


def test_changes_as_json_are_an_object_a_line(run: Run, client: FakeClient) -> None:
    client.events = EVENTS
    put, delete = map(json.loads, run("watch", "k", "--json").out.splitlines())
    assert (put["kind"], put["revision"], put["value_base64"]) == ("put", 3, "YQli/w==")
    assert put["prev_kv"]["value"] == "was\n"
    assert (delete["kind"], delete["revision"], delete["key"]) == ("delete", 4, "k")
    assert "value" not in delete
    assert "prev_kv" not in delete


def test_what_is_watched_comes_from_the_arguments(run: Run, client: FakeClient) -> None:
    run("watch", "\udcff")
    run("watch", "")
    run("watch", "k", "--exact", "--revision", "5", "--prev")
    assert client.calls == [
        (None, {"prefix": b"\xff", "start_revision": None, "prev_kv": False}),
        (None, {"prefix": b"", "start_revision": None, "prev_kv": False}),
        (b"k", {"prefix": None, "start_revision": 5, "prev_kv": True}),
    ]


def test_a_count_that_was_not_reached_is_no_success(run: Run, client: FakeClient) -> None:
    client.events = EVENTS
    assert run("watch", "k", "--count", "2").code == 0
    assert run("watch", "k", "--count", "1").out == b"3\tput\tk\ta\\tb\\xff\n"
    code, out, _ = run("watch", "k", "--count", "3")
    assert (code, out.count(b"\n")) == (130, 2)


def test_a_watch_that_fails_says_why_after_what_it_saw(run: Run, client: FakeClient) -> None:
    client.events = EVENTS
    client.ending = OutOfRangeError("revision 5 is compacted")
    code, out, err = run("watch", "k")
    assert (code, out.count(b"\n"), err) == (1, 2, BEGUN + "raftstate: revision 5 is compacted\n")


def test_a_watch_without_news_ends_when_nobody_reads_any_more(
    run: Run, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.ending = DeadlineError("nothing came")
    gone = iter([False, False, True])
    monkeypatch.setattr(watch_command, "reader_has_gone", lambda: next(gone))
    assert run("watch", "k") == (1, b"", BEGUN)
    assert list(gone) == []
