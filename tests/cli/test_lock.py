"""lock, with commands that really run."""

from __future__ import annotations

import json
import os
import select
from pathlib import Path

import pytest

from raftstate.cli import lock as lock_command
from raftstate.errors import DeadlineError, LockLostError
from tests.cli.conftest import Run
from tests.cli.fake_client import FakeClient


@pytest.fixture
def held(client: FakeClient) -> FakeClient:
    """A client whose lock is held to the end."""
    client.is_over = lambda: False
    return client


def test_a_command_runs_under_the_lock_and_its_exit_code_is_that_of_lock(run: Run, held: FakeClient) -> None:
    script = 'echo "$RAFTSTATE_LOCK_TOKEN $RAFTSTATE_LOCK_KEY"; exit 42'
    assert run("lock", "l", "--", "sh", "-c", script) == (42, b"7 l/0000000000000001\n", "")
    assert held.calls == [("l", {"ttl": 10.0, "timeout": None}), "acquire", "release"]


def test_name_and_times_come_from_the_arguments(run: Run, held: FakeClient) -> None:
    assert run("lock", "\udcff", "--ttl", "3", "--wait", "0.5", "true").code == 0
    assert held.calls[0] == (b"\xff", {"ttl": 3.0, "timeout": 0.5})


def test_a_command_that_a_signal_ended_is_told_as_by_a_shell(run: Run, held: FakeClient) -> None:
    assert run("lock", "l", "--", "sh", "-c", "kill -KILL $$").code == 137


def test_a_command_that_can_not_be_run_is_told_as_by_a_shell(
    run: Run, held: FakeClient, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert run("lock", "l", str(tmp_path / "absent")) == (
        127,
        b"",
        f"raftstate: can't run {tmp_path / 'absent'}: No such file or directory\n",
    )
    assert run("lock", "l", str(file)) == (126, b"", f"raftstate: can't run {file}: Permission denied\n")
    assert held.calls.count("release") == 2


def test_the_command_and_what_it_started_are_told_to_end_when_the_lock_is_lost(
    run: Run, client: FakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At a terminal the command stands in the group of these tests.
    monkeypatch.setattr(lock_command, "_is_in_foreground", lambda: False)
    os.mkfifo(tmp_path / "output")
    output = os.open(tmp_path / "output", os.O_RDONLY | os.O_NONBLOCK)
    client.ending = LockLostError("lock 'l' is lost: its key was deleted")
    client.is_over = lambda: bool(select.select([output], [], [], 0)[0])
    # The trap first: what is begun has the lock lost at once.
    script = 'trap "echo told; exit 9" TERM; (echo begun; exec sleep 60) > "$0" & wait'
    code, out, err = run("lock", "l", "--", "sh", "-c", script, str(tmp_path / "output"))
    assert (code, out) == (1, b"told\n")
    assert err == "raftstate: lock 'l' is lost: its key was deleted; telling the command to end\n"
    assert client.calls[-1] == "release"
    # At its end: nobody has it open any more.
    os.set_blocking(output, True)
    with open(output, "rb") as lines:
        assert lines.read() == b"begun\n"


def test_a_lock_that_was_not_free_in_time_runs_nothing(run: Run, client: FakeClient) -> None:
    client.failure = DeadlineError("lock 'l' was not free")
    assert run("lock", "l", "--wait", "1", "--", "echo", "ran") == (
        1,
        b"",
        "raftstate: lock 'l' was not free\n",
    )


def test_without_a_command_it_is_held_until_interrupted(run: Run, client: FakeClient) -> None:
    assert run("lock", "l") == (0, b"7\n", "")
    assert client.calls[1:] == ["acquire", "release"]
    held = {"token": 7, "key": "l/0000000000000001"}
    assert json.loads(run("lock", "l", "--json").out) == held


def test_a_lock_that_is_lost_without_a_command_is_told(run: Run, client: FakeClient) -> None:
    client.ending = LockLostError("lock 'l' is lost: its key was deleted")
    assert run("lock", "l") == (1, b"7\n", "raftstate: lock 'l' is lost: its key was deleted\n")
