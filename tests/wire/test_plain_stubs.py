"""The wire contract, used as a stranger would: the .proto files, grpcio-tools, grpcio."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from raftstate.rpc.server import build_server
from tests.rpc.fake_node import FakeNode

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("program.py")


async def run(*arguments: str, stubs: Path) -> str:
    """Run Python with `stubs` as the first place to import from; return what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(stubs)},
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def generate(target: Path) -> None:
    protos = sorted(str(path) for path in (ROOT / "proto" / "raftstate" / "v1").glob("*.proto"))
    options = (f"-I{ROOT / 'proto'}", f"--python_out={target}", f"--grpc_python_out={target}")
    await run("-m", "grpc_tools.protoc", *options, *protos, stubs=target)
    # Only because this interpreter has an installed package of the same name, which this one hides.
    (target / "raftstate" / "__init__.py").touch()


async def test_a_program_with_grpcio_and_the_proto_files_can_use_every_service(tmp_path: Path) -> None:
    await generate(tmp_path)
    server = build_server(FakeNode(), host="127.0.0.1", port=0)
    await server.start()
    try:
        address = f"127.0.0.1:{server.port}"
        seen = json.loads(await run(str(PROGRAM), address, stubs=tmp_path))
    finally:
        await server.stop(0)
    assert seen == {
        "seen": {
            address: {
                "single": {"value": "one", "read_what_was_written": True, "deleted": 1},
                "pipeline": {
                    "serials": [1, 1, 2, 2, 3, 4],
                    "distinct_answers": 4,
                    "all_done": True,
                    "versions": [1, 1, 1, 1],
                },
                "claim": {
                    "succeeded": [True, False],
                    "holder": "first",
                    "keys_of_the_lease": True,
                    "deleted_with_the_lease": 1,
                    "is_there_now": False,
                    "was_there_then": "first",
                },
                "watch": {
                    "created": 1,
                    "kinds": ["KIND_PUT", "KIND_PUT", "KIND_DELETE"],
                    "values": ["1", "2", ""],
                    "previous": ["", "1", "2"],
                    "canceled": [1],
                    "and_nothing_else": True,
                },
            }
        },
        "modules": ["raftstate"],
    }
