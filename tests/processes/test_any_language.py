"""Any of three real nodes serves a program that has nothing but grpcio and the .proto files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raftstate.supervisor import LocalCluster
from tests.wire.test_plain_stubs import PROGRAM, generate, run

pytestmark = pytest.mark.processes


async def test_a_plain_grpc_program_can_put_get_and_pipeline_against_any_node(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    await generate(stubs)
    seen = json.loads(await run(str(PROGRAM), *cluster.endpoints, stubs=stubs))["seen"]
    assert list(seen) == cluster.endpoints
    for result in seen.values():
        assert result["single"] == {"value": "one", "read_what_was_written": True, "deleted": 1}
        assert result["pipeline"] == {
            "serials": [1, 1, 2, 2, 3, 4],
            "distinct_answers": 4,
            "all_done": True,
            "versions": [1, 1, 1, 1],
        }
