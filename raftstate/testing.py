"""pytest fixtures for programs that use raftstate. In a conftest.py:

    pytest_plugins = ["raftstate.testing"]

Then a test takes `raftstate_store`, a client of a fresh embedded store (fast: no process, no port), or
`raftstate_cluster`, three fresh node processes with free ports, for tests that kill or restart nodes:

    def test_a_job_is_done_once(raftstate_store):
        raftstate_store.put("jobs/1", b"queued")

    def test_a_job_survives_the_leader(raftstate_cluster):
        with raftstate.connect(raftstate_cluster.url) as store: ...
        raftstate_cluster.kill(raftstate_cluster.wait_for_leader())

For asyncio, `raftstate_url` is the URL of a fresh embedded store, for `raftstate.connect_async`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from raftstate.client import Client, connect
from raftstate.supervisor import LocalCluster


@pytest.fixture
def raftstate_url(tmp_path: Path) -> str:
    """The URL of an embedded store of this test's own, empty at first. It opens with the first client."""
    return f"embedded:{tmp_path / 'raftstate-store'}"


@pytest.fixture
def raftstate_store(raftstate_url: str) -> Iterator[Client]:
    """A client of an embedded store of this test's own, empty at first."""
    with connect(raftstate_url) as store:
        yield store


@pytest.fixture
def raftstate_cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    """Three node processes of this test's own, with a leader, on free ports of the loopback interface.

    `.url` is what `raftstate.connect` takes; `.kill(name)`, `.restart(name)` and `.wait_for_leader()` do what
    they say.
    """
    with LocalCluster(tmp_path / "raftstate-cluster", nodes=3, port=0) as cluster:
        cluster.wait_for_leader()
        yield cluster
