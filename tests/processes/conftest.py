"""A cluster of three real node processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from raftstate.supervisor import LocalCluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    cluster = LocalCluster(tmp_path / "cluster", nodes=3, port=0)
    with cluster:
        cluster.wait_for_leader()
        yield cluster
