"""A client with nothing but grpcio and the code generated from the published .proto files.

    python program.py ADDRESS [ADDRESS ...]

At each address: put, get, and a pipeline in a session, of which one batch is sent twice. Prints what it saw
as JSON.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterator

import grpc
from raftstate.v1 import (
    kv_pb2,
    kv_pb2_grpc,
    pipeline_pb2,
    pipeline_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    txn_pb2,
)

TIMEOUT_S = 20


def single(channel: grpc.Channel, key: bytes) -> dict[str, object]:
    """Put one key, read it back, delete it."""
    kv = kv_pb2_grpc.KVStub(channel)
    put = kv.Put(kv_pb2.PutRequest(key=key, value=b"one"), timeout=TIMEOUT_S)
    got = kv.Get(kv_pb2.GetRequest(key=key), timeout=TIMEOUT_S)
    deleted = kv.Delete(kv_pb2.DeleteRequest(key=key), timeout=TIMEOUT_S)
    return {
        "value": got.kv.value.decode(),
        "read_what_was_written": got.kv.mod_revision == put.header.revision,
        "deleted": deleted.deleted,
    }


def pipelined(channel: grpc.Channel, prefix: bytes) -> dict[str, object]:
    """Write three batches of two, the last of which repeats the first; return what was answered."""
    session = session_pb2_grpc.SessionStub(channel).Register(
        session_pb2.RegisterRequest(nonce=secrets.randbits(64)), timeout=TIMEOUT_S
    )

    def batch(first_serial: int) -> pipeline_pb2.CommandBatch:
        commands = [
            pipeline_pb2.Command(
                serial=serial, put=txn_pb2.PutCommand(key=prefix + b"%d" % serial, value=b"many")
            )
            for serial in (first_serial, first_serial + 1)
        ]
        return pipeline_pb2.CommandBatch(session=session.session, floor=1, commands=commands)

    def batches() -> Iterator[pipeline_pb2.CommandBatch]:
        yield from (batch(1), batch(3), batch(1))

    answers: list[tuple[int, int]] = []
    for reply in pipeline_pb2_grpc.PipelineStub(channel).Write(batches(), timeout=TIMEOUT_S):
        answers += zip(reply.serials, reply.revisions, strict=True)
        answers += ((answer.serial, -answer.error.code) for answer in reply.answers)
    found = kv_pb2_grpc.KVStub(channel).Range(
        kv_pb2.RangeRequest(key=prefix, range_end=prefix + b"\xff"), timeout=TIMEOUT_S
    )
    return {
        "serials": sorted(serial for serial, _ in answers),
        "distinct_answers": len(set(answers)),
        "all_done": all(revision > 0 for _, revision in answers),
        "versions": [kv.version for kv in found.kvs],
    }


def main() -> None:
    """Run against each address given."""
    seen = {}
    for address in sys.argv[1:]:
        with grpc.insecure_channel(address) as channel:
            prefix = secrets.token_hex(8).encode()
            seen[address] = {
                "single": single(channel, prefix + b"-single"),
                "pipeline": pipelined(channel, prefix + b"-"),
            }
    ours = sorted(
        name for name in sys.modules if name.startswith("raftstate") and not name.startswith("raftstate.v1")
    )
    print(json.dumps({"seen": seen, "modules": ours}))


if __name__ == "__main__":
    main()
