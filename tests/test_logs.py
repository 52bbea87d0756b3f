from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from raftstate.logs import get_logger


def test_any_handler_gets_a_sentence_and_ours_the_values(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "raftstate.test")
    get_logger("raftstate.test").info("leader", node=1, share="50%")
    [record] = caplog.records
    assert record.getMessage() == "leader node=1 share=50%"
    assert (record.event, record.values) == ("leader", {"node": 1, "share": "50%"})  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("set_up", "told"),
    [
        ("", "halted why=x\n"),
        ("raftstate.logs.to_stderr('info')", "[info     ] serving                        node=n1\n"),
    ],
)
def test_a_program_hears_warnings_only_and_a_server_all_of_it_on_stderr(set_up: str, told: str) -> None:
    program = (
        f"import raftstate.logs\n{set_up}\nlog = raftstate.logs.get_logger('raftstate.node')\n"
        "log.info('serving', node='n1')\nlog.warning('halted', why='x')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == ""
    assert told in ended.stderr
    assert ("serving" in ended.stderr) == bool(set_up)
