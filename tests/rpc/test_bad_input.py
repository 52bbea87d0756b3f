"""What a client gets for a request that can't be served: status, text and trailer."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from raftstate.pb.v1 import cluster_pb2, common_pb2, kv_pb2, lease_pb2, session_pb2, txn_pb2
from raftstate.pb.v1.txn_pb2 import Compare, RequestOp
from tests.rpc.conftest import Served
from tests.rpc.errors import refusal
from tests.rpc.fake_node import CLUSTER_ID

LONG = b"k" * 481
SESSION = common_pb2.SessionId(index=1, nonce=2)
OTHER_CLUSTER = 0xBAD


def get(key: bytes, range_end: bytes = b"", **fields: int) -> RequestOp:
    return RequestOp(range=txn_pb2.RangeOp(key=key, range_end=range_end, **fields))  # type: ignore[arg-type]


INVALID: list[tuple[str, Message, str, str]] = [
    ("KV/Put", kv_pb2.PutRequest(), "key", "key must have 1 to 480 bytes, got 0"),
    ("KV/Put", kv_pb2.PutRequest(key=LONG), "key", "key must have 1 to 480 bytes, got 481"),
    (
        "KV/Put",
        kv_pb2.PutRequest(key=b"a", value=bytes((8 << 20) + 1)),
        "value",
        "value must have at most 8388608 bytes, got 8388609",
    ),
    (
        "KV/Put",
        kv_pb2.PutRequest(key=b"a", context=kv_pb2.WriteContext(serial=4)),
        "context.session",
        "got serial 4, floor 0; register a session",
    ),
    (
        "KV/Put",
        kv_pb2.PutRequest(key=b"a", context=kv_pb2.WriteContext(session=SESSION)),
        "serial",
        "serial must be at least 1 in a session, got 0",
    ),
    ("KV/Delete", kv_pb2.DeleteRequest(), "key", "key must have 1 to 480 bytes, got 0"),
    ("KV/Delete", kv_pb2.DeleteRequest(key=LONG), "key", "key must have 1 to 480 bytes, got 481"),
    (
        "KV/Delete",
        kv_pb2.DeleteRequest(key=b"a", range_end=LONG),
        "range_end",
        "range_end must have 1 to 480 bytes, got 481",
    ),
    ("KV/Get", kv_pb2.GetRequest(), "key", "key must have 1 to 480 bytes, got 0"),
    ("KV/Get", kv_pb2.GetRequest(key=LONG), "key", "key must have 1 to 480 bytes, got 481"),
    (
        "KV/Get",
        kv_pb2.GetRequest(key=b"k" * 480 + b"\x00"),
        "key",
        "key must have 1 to 480 bytes, got 481",
    ),
    (
        "KV/Get",
        kv_pb2.GetRequest(key=b"a", consistency=9),  # type: ignore[arg-type]
        "consistency",
        "consistency must be one of 0 (linearizable), 1 (bounded), 2 (local), got 9",
    ),
    (
        "KV/Range",
        kv_pb2.RangeRequest(key=b"a", consistency=-1),  # type: ignore[arg-type]
        "consistency",
        "got -1",
    ),
    ("KV/Range", kv_pb2.RangeRequest(range_end=b"z"), "key", "key must have 1 to 480 bytes, got 0"),
    ("KV/Range", kv_pb2.RangeRequest(key=LONG), "key", "key must have 1 to 480 bytes, got 481"),
    (
        "KV/Range",
        kv_pb2.RangeRequest(key=b"a", range_end=LONG),
        "range_end",
        "range_end must have 1 to 480 bytes, got 481",
    ),
    (
        "KV/Range",
        kv_pb2.RangeRequest(key=b"a", sort_order=3),  # type: ignore[arg-type]
        "sort_order",
        "sort_order must be one of 0 (none), 1 (ascend), 2 (descend), got 3",
    ),
    (
        "KV/Range",
        kv_pb2.RangeRequest(key=b"a", sort_target=5),  # type: ignore[arg-type]
        "sort_target",
        "3 (mod_revision), 4 (value), got 5",
    ),
    ("KV/Txn", kv_pb2.TxnRequest(), "txn", "txn is missing"),
    *(
        ("KV/Txn", kv_pb2.TxnRequest(txn=txn), field, says)
        for txn, field, says in (
            (txn_pb2.TxnCommand(compares=[Compare(key=b"a")]), "compares[0].target", "got none"),
            (txn_pb2.TxnCommand(compares=[Compare(version=1)]), "compares[0].key", "bytes, got 0"),
            (
                txn_pb2.TxnCommand(compares=[Compare(key=b"a", version=1, result=4)]),  # type: ignore[arg-type]
                "compares[0].result",
                "got 4",
            ),
            (txn_pb2.TxnCommand(success=[get(b"a"), RequestOp()]), "success[1].op", "got none"),
            (txn_pb2.TxnCommand(failure=[get(b"")]), "failure[0].range.key", "480 bytes, got 0"),
            (txn_pb2.TxnCommand(failure=[get(b"a", LONG)]), "failure[0].range.range_end", "bytes, got 481"),
            (txn_pb2.TxnCommand(success=[get(b"a", sort_order=3)]), "success[0].range.sort_order", "got 3"),
            (txn_pb2.TxnCommand(success=[get(b"a", sort_target=9)]), "success[0].range.sort_target", "got 9"),
            (
                txn_pb2.TxnCommand(success=[RequestOp(put=txn_pb2.PutCommand(key=LONG))]),
                "success[0].put.key",
                "480 bytes, got 481",
            ),
            (
                txn_pb2.TxnCommand(
                    success=[RequestOp(put=txn_pb2.PutCommand(key=b"a", value=bytes((8 << 20) + 1)))]
                ),
                "success[0].put.value",
                "got 8388609",
            ),
            (
                txn_pb2.TxnCommand(success=[RequestOp(delete=txn_pb2.DeleteCommand())]),
                "success[0].delete.key",
                "480 bytes, got 0",
            ),
        )
    ),
    ("KV/Compact", kv_pb2.CompactRequest(), "revision", "revision must be at least 1, got 0"),
    ("KV/Erase", kv_pb2.EraseRequest(), "key", "key must have 1 to 480 bytes, got 0"),
    *(
        ("Lease/Grant", lease_pb2.LeaseGrantRequest(ttl_ms=ttl_ms), "ttl_ms", f"86400000, got {ttl_ms}")
        for ttl_ms in (0, 999, 86_400_001)
    ),
    ("Lease/Revoke", lease_pb2.LeaseRevokeRequest(), "id", "got 0"),
    ("Lease/Renew", lease_pb2.LeaseRenewRequest(), "id", "got 0"),
    (
        "Lease/Renew",
        lease_pb2.LeaseRenewRequest(id=1, context=kv_pb2.WriteContext(floor=4)),
        "context.session",
        "got serial 0, floor 4; register a session",
    ),
    ("Lease/TimeToLive", lease_pb2.LeaseTimeToLiveRequest(), "id", "got 0"),
    (
        "Lease/TimeToLive",
        lease_pb2.LeaseTimeToLiveRequest(id=1, consistency=3),  # type: ignore[arg-type]
        "consistency",
        "got 3",
    ),
    (
        "Lease/List",
        lease_pb2.LeaseListRequest(consistency=3),  # type: ignore[arg-type]
        "consistency",
        "got 3",
    ),
    (
        "Session/Register",
        session_pb2.RegisterRequest(nonce=1, ttl_ms=9_999),
        "ttl_ms",
        "ttl_ms must be 0 (the default) or 10000 to 86400000, got 9999",
    ),
    ("Session/Cancel", session_pb2.CancelRequest(serial=1), "session", "session is missing"),
    (
        "Session/Cancel",
        session_pb2.CancelRequest(session=SESSION),
        "serial",
        "serial must be 1 or more, got 0",
    ),
    ("Session/Close", session_pb2.CloseRequest(), "session", "session is missing"),
]


def caller(served: Served, method: str) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
    return served.channel.unary_unary(f"/raftstate.v1.{method}")


@pytest.mark.parametrize(
    ("method", "request_", "field", "says"),
    INVALID,
    ids=[f"{row[0]}-{row[2]}-{row[3][-12:]}" for row in INVALID],
)
async def test_a_malformed_request_is_refused_with_field_got_and_limit(
    served: Served, method: str, request_: Message, field: str, says: str
) -> None:
    told = await refusal(caller(served, method)(request_.SerializeToString()))
    assert told.status is grpc.StatusCode.INVALID_ARGUMENT
    assert says in told.text
    assert told.text.endswith(f"; outcome=not_applied, field={field}")
    assert told.error == common_pb2.Error(
        code=common_pb2.ERROR_CODE_INVALID,
        outcome=common_pb2.OUTCOME_NOT_APPLIED,
        message=told.text.removesuffix(f"; outcome=not_applied, field={field}"),
        field=field,
    )
    assert served.node.items == []


@pytest.mark.parametrize(
    "method",
    [
        *(f"KV/{name}" for name in ("Put", "Get", "Delete", "Range", "Txn", "Compact", "Erase")),
        *(f"Session/{name}" for name in ("Register", "Cancel", "Close")),
        *(f"Lease/{name}" for name in ("Grant", "Revoke", "Renew", "TimeToLive", "List")),
        *(f"Cluster/{name}" for name in ("Status", "TransferLeader", "Defragment")),
    ],
)
async def test_every_method_refuses_a_field_it_does_not_know_and_bytes_that_are_no_request(
    served: Served, method: str
) -> None:
    unknown = await refusal(caller(served, method)(b"\x9a\x06\x01x"))  # field 99, one byte
    assert (unknown.status, unknown.error.code, unknown.error.field) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        common_pb2.ERROR_CODE_INVALID,
        "99",
    )
    assert "unknown field: got field number 99" in unknown.text
    garbage = await refusal(caller(served, method)(b"\xff\xff\xff"))
    assert (garbage.status, garbage.error.outcome) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        common_pb2.OUTCOME_NOT_APPLIED,
    )
    assert "the 3 bytes of the request are no raftstate.v1." in garbage.text
    assert served.node.items == []


@pytest.mark.case(75)
async def test_an_unknown_field_below_a_known_one_is_refused_and_located(served: Served) -> None:
    context = kv_pb2.WriteContext(cluster_id=CLUSTER_ID).SerializeToString() + b"\x9a\x06\x01x"
    raw = kv_pb2.PutRequest(key=b"a").SerializeToString() + b"\x22" + bytes([len(context)]) + context
    told = await refusal(caller(served, "KV/Put")(raw))
    assert (told.status, told.error.field) == (grpc.StatusCode.INVALID_ARGUMENT, "context.99")
    assert served.node.items == []


@pytest.mark.case(59)
@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("KV/Put", kv_pb2.PutRequest(key=b"a", context=kv_pb2.WriteContext(cluster_id=OTHER_CLUSTER))),
        ("KV/Delete", kv_pb2.DeleteRequest(key=b"a", context=kv_pb2.WriteContext(cluster_id=OTHER_CLUSTER))),
        *(
            (method, kind(context=kv_pb2.WriteContext(cluster_id=OTHER_CLUSTER)))
            for method, kind in (
                ("KV/Compact", kv_pb2.CompactRequest),
                ("KV/Erase", kv_pb2.EraseRequest),
                ("Lease/Grant", lease_pb2.LeaseGrantRequest),
                ("Lease/Revoke", lease_pb2.LeaseRevokeRequest),
                ("Lease/Renew", lease_pb2.LeaseRenewRequest),
            )
        ),
        (
            "KV/Txn",
            kv_pb2.TxnRequest(
                txn=txn_pb2.TxnCommand(), context=kv_pb2.WriteContext(cluster_id=OTHER_CLUSTER)
            ),
        ),
        ("Session/Register", session_pb2.RegisterRequest(nonce=1, cluster_id=OTHER_CLUSTER)),
        ("Session/Cancel", session_pb2.CancelRequest(session=SESSION, serial=1, cluster_id=OTHER_CLUSTER)),
        ("Session/Close", session_pb2.CloseRequest(session=SESSION, cluster_id=OTHER_CLUSTER)),
    ],
)
async def test_a_write_for_another_cluster_never_reaches_the_log(
    served: Served, method: str, request_: Any
) -> None:
    told = await refusal(caller(served, method)(request_.SerializeToString()))
    assert (told.status, told.error.code, told.error.outcome) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        common_pb2.ERROR_CODE_WRONG_CLUSTER,
        common_pb2.OUTCOME_NOT_APPLIED,
    )
    assert "is of cluster 00000000000000c1, the request is for cluster 0000000000000bad" in told.text
    assert served.node.items == []


@pytest.mark.case(75)
@pytest.mark.parametrize(
    ("path", "field"),
    [("compares", "txn.compares.99"), ("success", "txn.success.range.99")],
)
async def test_an_unknown_field_deep_in_a_transaction_is_refused_and_located(
    served: Served, path: str, field: str
) -> None:
    unknown = b"\x9a\x06\x01x"  # field 99, one byte
    if path == "compares":
        compare = Compare(key=b"a", version=1).SerializeToString() + unknown
        txn = b"\x0a" + bytes([len(compare)]) + compare
    else:
        operation = txn_pb2.RangeOp(key=b"a").SerializeToString() + unknown
        request_op = b"\x0a" + bytes([len(operation)]) + operation
        txn = b"\x12" + bytes([len(request_op)]) + request_op
    told = await refusal(caller(served, "KV/Txn")(b"\x0a" + bytes([len(txn)]) + txn))
    assert (told.status, told.error.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert served.node.items == []


async def test_a_message_over_20_mib_is_refused_and_the_connection_goes_on(served: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller(served, "KV/Put")(bytes((20 << 20) + 1))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "20971520" in (caught.value.details() or "")
    assert (await served.kv.Put(kv_pb2.PutRequest(key=b"a"))).header.revision == 2


async def test_an_unknown_method_is_unimplemented(served: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller(served, "KV/Increment")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_status_is_served_in_full(served: Served) -> None:
    status = await served.cluster.Status(cluster_pb2.StatusRequest())
    assert status == cluster_pb2.StatusResponse(
        header=common_pb2.ResponseHeader(
            cluster_id=CLUSTER_ID, node_id=2, revision=9, applied_index=19, term=7
        ),
        name="n2",
        version="1.2.3",
        role=cluster_pb2.ROLE_LEADER,
        leader_id=2,
        commit_index=20,
        last_log_index=21,
        first_log_index=3,
        durable_applied_index=18,
        digest=(1 << 64) - 1,
        machine_version=1,
        log_bytes=4_096,
        state_bytes=8_192,
        sessions=5,
        members=[
            cluster_pb2.Member(
                id=1,
                incarnation=11,
                name="n1",
                peer_address="127.0.0.1:8001",
                client_address="127.0.0.1:7001",
            ),
            cluster_pb2.Member(
                id=2,
                incarnation=12,
                name="n2",
                peer_address="127.0.0.1:8002",
                client_address="127.0.0.1:7002",
            ),
        ],
        progress=[
            cluster_pb2.PeerProgress(
                id=1,
                match_index=20,
                next_index=22,
                state="replicate",
                recently_active=True,
                lag_entries=1,
                lag_ms=9,
            )
        ],
        alarms=["the disk is slow"],
        keys=6,
        compacted_revision=4,
        leases=7,
        watches=8,
        incarnation=12,
        metrics_address="127.0.0.1:7202",
        checkpoint_age_ms=10,
        disk_free_bytes=11,
        log_map_bytes=13,
        state_map_bytes=14,
        wall_clock_ms=15,
        last_erase_index=17,
        erased_index=16,
        state_free_bytes=4_096,
        rebuild="erase",
        rebuild_done_bytes=1,
        rebuild_total_bytes=2,
    )


async def test_leadership_is_handed_to_the_node_named(served: Served) -> None:
    reply = await served.cluster.TransferLeader(cluster_pb2.TransferLeaderRequest(target_id=3), timeout=2)
    assert reply.leader_id == 3
    assert served.node.timeouts_s[0] < 2
