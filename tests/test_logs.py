from __future__ import annotations

import json
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


def test_json_is_an_object_a_line_with_who_said_it_and_the_values() -> None:
    program = (
        "import logging, warnings, raftstate.logs\n"
        "raftstate.logs.to_stderr('info', 'json')\n"
        "log = raftstate.logs.get_logger('raftstate.node')\n"
        "log.debug('unheard')\n"
        "log.info('serving', node='n1', applied=7, where={'a': object})\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    log.exception('failed', logger='mine', level=3)\n"
        "logging.getLogger('asyncio').error('a task of %s was lost', 'grpc')\n"
        "logging.getLogger('grpc').info('unheard')\n"
        "warnings.warn('deprecated')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    told = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [list(line)[:4] for line in told] == [["timestamp", "level", "logger", "event"]] * 4
    assert [(line["level"], line["logger"], line["event"]) for line in told[:3]] == [
        ("info", "raftstate.node", "serving"),
        ("error", "raftstate.node", "failed"),
        ("error", "asyncio", "a task of grpc was lost"),
    ]
    assert (told[0]["node"], told[0]["applied"]) == ("n1", 7)
    assert told[0]["timestamp"].endswith("Z")
    assert "ZeroDivisionError" in told[1]["exception"]
    # What an event's own values are called never hides who said it, and how bad it is.
    assert (told[1]["logger_"], told[1]["level_"]) == ("mine", 3)
    assert (told[3]["level"], "deprecated" in told[3]["event"]) == ("warning", True)
