from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from raftstate.cli import cluster, erase, kv, lease, lock, main, member, status, txn, watch
from tests.cli.fake_client import FakeClient


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


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    """What the commands talk to in place of a cluster."""
    fake = FakeClient()

    @contextmanager
    def open_client(url: str | None, timeout: float) -> Iterator[FakeClient]:
        fake.opened.append((url, timeout))
        yield fake

    monkeypatch.delenv("RAFTSTATE_URL", raising=False)
    for module in (kv, cluster, erase, lease, lock, member, status, txn, watch):
        monkeypatch.setattr(module, "open_client", open_client)
    return fake
