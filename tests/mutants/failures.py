"""A pytest plugin that writes what failed, and by which kind of exception, to a file.

Loaded with `-p tests.mutants.failures --failures FILE`. FILE becomes a JSON list, one object a failure:
`test`, `type`, `message` (its first line), and `proof`: whether the failure shows that a check *found*
something. An assertion does, and so does an invariant; an exception of any other type shows that something
broke.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raftstate.errors import InvariantError

_FOUND = (AssertionError, InvariantError, pytest.fail.Exception)
_TIME_LIMIT = "Timeout "
"""How the message of pytest-timeout begins, which fails a test by `pytest.fail`, too."""


def is_proof(error: BaseException) -> bool:
    """Whether `error` shows that a check found something; of a group, whether each of it does."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_proof(each) for each in error.exceptions)
    return isinstance(error, _FOUND) and not str(error).startswith(_TIME_LIMIT)


class Failures:
    """Collects the failures of a session.

    Args:
        file: what they are written to at its end.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._failures: list[dict[str, Any]] = []

    def pytest_exception_interact(
        self, node: pytest.Item | pytest.Collector, call: pytest.CallInfo[object]
    ) -> None:
        if call.excinfo is None:
            return
        error = call.excinfo.value
        self._failures.append(
            {
                "test": node.nodeid,
                "type": type(error).__name__,
                "message": (str(error).strip().splitlines() or [""])[0],
                "proof": is_proof(error),
            }
        )

    def pytest_sessionfinish(self) -> None:
        self._file.write_text(json.dumps(self._failures), "utf-8")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--failures", type=Path, required=True, metavar="FILE", help="what failed, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Failures(config.getoption("--failures")))
