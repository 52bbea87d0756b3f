"""Any of three real nodes serves a program that has nothing but grpcio and the .proto files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raftstate.supervisor import LocalCluster
from tests.wire.test_plain_stubs import PROGRAM, generate, run

pytestmark = pytest.mark.processes


async def test_a_plain_grpc_program_can_use_every_service_of_any_node(
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
        assert result["claim"] == {
            "succeeded": [True, False],
            "holder": "first",
            "keys_of_the_lease": True,
            "deleted_with_the_lease": 1,
            "is_there_now": False,
            "was_there_then": "first",
        }
        assert result["watch"] == {
            "created": 1,
            "kinds": ["KIND_PUT", "KIND_PUT", "KIND_DELETE"],
            "values": ["1", "2", ""],
            "previous": ["", "1", "2"],
            "canceled": [1],
            "and_nothing_else": True,
        }
