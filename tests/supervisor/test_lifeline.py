from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from raftstate.lifeline import Lifeline, watch

CHILD = """
import signal, sys
from raftstate.lifeline import watch
if sys.argv[2] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
watch(int(sys.argv[1]), grace_s=0.0)
print("watching", flush=True)
while True:
    signal.pause()
"""


def child(lifeline: Lifeline, manner: str = "plain") -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(lifeline.child_fd), manner],
        pass_fds=[lifeline.child_fd],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"watching\n"
    return process


def test_a_child_is_asked_to_stop_when_its_parent_lets_go() -> None:
    with Lifeline() as lifeline:
        process = child(lifeline)
        assert process.poll() is None
    assert process.wait(10) == -signal.SIGTERM


def test_a_child_that_does_not_stop_is_ended() -> None:
    with Lifeline() as lifeline:
        process = child(lifeline, "stubborn")
    assert process.wait(10) == 1


def test_children_do_not_keep_each_other_alive() -> None:
    with Lifeline() as lifeline:
        first, second = child(lifeline), child(lifeline)
    assert [first.wait(10), second.wait(10)] == [-signal.SIGTERM] * 2


def test_closing_twice_closes_once() -> None:
    lifeline = Lifeline()
    lifeline.close()
    reused, other = os.pipe()
    lifeline.close()
    os.fstat(reused)
    os.close(reused)
    os.close(other)


def test_watching_what_is_not_open_fails_at_once() -> None:
    fd, other = os.pipe()
    os.close(fd)
    os.close(other)
    with pytest.raises(OSError, match="Bad file descriptor"):
        watch(fd)
