from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from raftstate.cli import main


class Result(NamedTuple):
    code: int
    out: bytes
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Run the command line in this process, as the installed command would."""

    def run_command(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["raftstate", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfdbinary.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return Result(code, out, err.decode())

    return run_command
