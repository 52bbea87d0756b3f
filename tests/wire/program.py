"""A client with nothing but grpcio and the code generated from the published .proto files.

    python program.py ADDRESS [ADDRESS ...]

At each address: put, get, a pipeline in a session, of which one batch is sent twice, a transaction that two
want to win, a lease that is revoked, and a watch of all that. Prints what it saw as JSON.
"""

from __future__ import annotations

import json
import queue
import secrets
import sys
from collections.abc import Iterator

import grpc
from raftstate.v1 import (
    kv_pb2,
    kv_pb2_grpc,
    lease_pb2,
    lease_pb2_grpc,
    pipeline_pb2,
    pipeline_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    txn_pb2,
    watch_pb2,
    watch_pb2_grpc,
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


def claimed(channel: grpc.Channel, key: bytes) -> dict[str, object]:
    """Have two workers claim a key by a transaction, the first one under a lease, which then ends."""
    kv, leases = kv_pb2_grpc.KVStub(channel), lease_pb2_grpc.LeaseStub(channel)
    lease = leases.Grant(lease_pb2.LeaseGrantRequest(ttl_ms=60_000), timeout=TIMEOUT_S)

    def claim(worker: bytes) -> kv_pb2.TxnResponse:
        txn = txn_pb2.TxnCommand(
            compares=[txn_pb2.Compare(key=key, version=0)],
            success=[txn_pb2.RequestOp(put=txn_pb2.PutCommand(key=key, value=worker, lease=lease.id))],
            failure=[txn_pb2.RequestOp(range=txn_pb2.RangeOp(key=key))],
        )
        return kv.Txn(kv_pb2.TxnRequest(txn=txn), timeout=TIMEOUT_S)

    first, second = claim(b"first"), claim(b"second")
    before = first.header.revision
    left = leases.TimeToLive(lease_pb2.LeaseTimeToLiveRequest(id=lease.id, keys=True), timeout=TIMEOUT_S)
    revoked = leases.Revoke(lease_pb2.LeaseRevokeRequest(id=lease.id), timeout=TIMEOUT_S)
    now = kv.Get(kv_pb2.GetRequest(key=key), timeout=TIMEOUT_S)
    then = kv.Get(kv_pb2.GetRequest(key=key, revision=before), timeout=TIMEOUT_S)
    return {
        "succeeded": [first.result.succeeded, second.result.succeeded],
        "holder": second.result.responses[0].range.kvs[0].value.decode(),
        "keys_of_the_lease": list(left.keys) == [key],
        "deleted_with_the_lease": revoked.deleted,
        "is_there_now": now.HasField("kv"),
        "was_there_then": then.kv.value.decode(),
    }


def watched(channel: grpc.Channel, prefix: bytes) -> dict[str, object]:
    """Watch a prefix, change keys below it, and end the watch."""
    kv = kv_pb2_grpc.KVStub(channel)
    requests: queue.SimpleQueue[watch_pb2.WatchRequest | None] = queue.SimpleQueue()
    stream = watch_pb2_grpc.WatchStub(channel).Watch(iter(requests.get, None), timeout=TIMEOUT_S)
    create = watch_pb2.WatchCreate(watch_id=1, key=prefix, range_end=prefix + b"\xff", prev_kv=True)
    requests.put(watch_pb2.WatchRequest(create=create))
    created = next(stream).created[0].watch_id
    kv.Put(kv_pb2.PutRequest(key=prefix + b"a", value=b"1"), timeout=TIMEOUT_S)
    kv.Put(kv_pb2.PutRequest(key=b"elsewhere", value=b"1"), timeout=TIMEOUT_S)
    kv.Put(kv_pb2.PutRequest(key=prefix + b"a", value=b"2"), timeout=TIMEOUT_S)
    kv.Delete(kv_pb2.DeleteRequest(key=prefix + b"a"), timeout=TIMEOUT_S)
    events: list[watch_pb2.Event] = []
    while len(events) < 3:
        events += (event for group in next(stream).events for event in group.events)
    requests.put(watch_pb2.WatchRequest(cancel=watch_pb2.WatchCancel(watch_id=1)))
    canceled = [each.watch_id for each in next(stream).canceled]
    requests.put(None)
    return {
        "created": created,
        "kinds": [watch_pb2.Event.Kind.Name(event.kind) for event in events],
        "values": [event.kv.value.decode() for event in events],
        "previous": [event.prev_kv.value.decode() for event in events],
        "canceled": canceled,
        "and_nothing_else": list(stream) == [],
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
                "claim": claimed(channel, prefix + b"-claim"),
                "watch": watched(channel, prefix + b"-watch/"),
            }
    ours = sorted(
        name for name in sys.modules if name.startswith("raftstate") and not name.startswith("raftstate.v1")
    )
    print(json.dumps({"seen": seen, "modules": ours}))


if __name__ == "__main__":
    main()
