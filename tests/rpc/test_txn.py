"""Transactions over a real channel, to the real machine: single, and in a pipeline."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from raftstate.errors import IndefiniteError, NoLeaderError
from raftstate.machine.types import Item
from raftstate.pb.v1 import common_pb2, kv_pb2, lease_pb2, pipeline_pb2, session_pb2, txn_pb2
from tests.rpc.conftest import Served
from tests.rpc.errors import refusal
from tests.rpc.fake_node import CLUSTER_ID, NODE_ID, TERM

Op = txn_pb2.RequestOp


def header(*, revision: int, applied_index: int) -> common_pb2.ResponseHeader:
    return common_pb2.ResponseHeader(
        cluster_id=CLUSTER_ID, node_id=NODE_ID, revision=revision, applied_index=applied_index, term=TERM
    )


def pair(key: bytes, value: bytes, create: int, mod: int, version: int) -> common_pb2.KeyValue:
    return common_pb2.KeyValue(
        key=key, value=value, create_revision=create, mod_revision=mod, version=version
    )


def put(key: bytes, value: bytes = b"v", **fields: int) -> Op:
    return Op(put=txn_pb2.PutCommand(key=key, value=value, **fields))  # type: ignore[arg-type]


def delete(key: bytes, range_end: bytes = b"", **fields: int) -> Op:
    return Op(delete=txn_pb2.DeleteCommand(key=key, range_end=range_end, **fields))  # type: ignore[arg-type]


def get(key: bytes, range_end: bytes = b"", **fields: int) -> Op:
    return Op(range=txn_pb2.RangeOp(key=key, range_end=range_end, **fields))  # type: ignore[arg-type]


def version_is(key: bytes, version: int) -> txn_pb2.Compare:
    return txn_pb2.Compare(key=key, version=version)


def request(txn: txn_pb2.TxnCommand) -> kv_pb2.TxnRequest:
    return kv_pb2.TxnRequest(txn=txn)


async def stored(served: Served, key: bytes, value: bytes = b"v") -> None:
    await served.kv.Put(kv_pb2.PutRequest(key=key, value=value))


async def test_the_branch_that_ran_answers_operation_for_operation(served: Served) -> None:
    await stored(served, b"a", b"1")
    await stored(served, b"b", b"2")
    txn = txn_pb2.TxnCommand(
        compares=[version_is(b"a", 1), version_is(b"new", 0)],
        success=[
            put(b"a", b"3", prev_kv=True),
            get(b"a"),
            put(b"new"),
            delete(b"b", prev_kv=True),
            get(b"a", b"z", limit=1),
            delete(b"absent"),
            get(b"absent"),
        ],
        failure=[delete(b"a")],
    )
    done = await served.kv.Txn(request(txn))
    responses = [
        txn_pb2.ResponseOp(put=txn_pb2.PutResult(prev_kv=pair(b"a", b"1", 2, 2, 1))),
        txn_pb2.ResponseOp(range=txn_pb2.RangeResult(kvs=[pair(b"a", b"3", 2, 4, 2)], count=1)),
        txn_pb2.ResponseOp(put=txn_pb2.PutResult()),
        txn_pb2.ResponseOp(delete=txn_pb2.DeleteResult(deleted=1, prev_kvs=[pair(b"b", b"2", 3, 3, 1)])),
        txn_pb2.ResponseOp(range=txn_pb2.RangeResult(kvs=[pair(b"a", b"3", 2, 4, 2)], more=True, count=2)),
        txn_pb2.ResponseOp(delete=txn_pb2.DeleteResult()),
        txn_pb2.ResponseOp(range=txn_pb2.RangeResult()),
    ]
    assert done == kv_pb2.TxnResponse(
        header=header(revision=4, applied_index=3),
        result=txn_pb2.TxnResult(succeeded=True, responses=responses),
    )
    assert [each.WhichOneof("op") for each in done.result.responses] == [
        operation.WhichOneof("op") for operation in txn.success
    ]


async def test_a_compare_that_fails_is_no_error_and_makes_no_revision(served: Served) -> None:
    txn = txn_pb2.TxnCommand(compares=[version_is(b"a", 1)], success=[put(b"a")])
    done = await served.kv.Txn(request(txn))
    assert done == kv_pb2.TxnResponse(
        header=header(revision=1, applied_index=1), result=txn_pb2.TxnResult(succeeded=False)
    )
    assert done.HasField("result")


async def test_a_transaction_with_nothing_in_it_succeeds(served: Served) -> None:
    done = await served.kv.Txn(kv_pb2.TxnRequest(txn=txn_pb2.TxnCommand()))
    assert done == kv_pb2.TxnResponse(
        header=header(revision=1, applied_index=1), result=txn_pb2.TxnResult(succeeded=True)
    )


async def test_a_pipeline_answers_transactions_and_leases_in_full(served: Served) -> None:
    stream = served.pipeline.Write()
    txn = txn_pb2.TxnCommand(success=[put(b"a"), get(b"a")])
    commands = [
        pipeline_pb2.Command(serial=1, txn=txn),
        pipeline_pb2.Command(serial=2, lease_grant=pipeline_pb2.LeaseGrantCommand(id=7, ttl_ms=5_000)),
        pipeline_pb2.Command(serial=3, put=txn_pb2.PutCommand(key=b"b", lease=7)),
        pipeline_pb2.Command(serial=4, lease_renew=pipeline_pb2.LeaseRenewCommand(id=7)),
        pipeline_pb2.Command(serial=5, lease_revoke=pipeline_pb2.LeaseRevokeCommand(id=7)),
        pipeline_pb2.Command(serial=6, compact=pipeline_pb2.CompactCommand(revision=4)),
        pipeline_pb2.Command(serial=7, lease_revoke=pipeline_pb2.LeaseRevokeCommand(id=7)),
    ]
    await stream.write(pipeline_pb2.CommandBatch(commands=commands))
    async with asyncio.timeout(10):
        reply = await stream.read()
    assert isinstance(reply, pipeline_pb2.BatchReply)
    answers = {answer.serial: answer for answer in reply.answers}
    for serial, revision in zip(reply.serials, reply.revisions, strict=True):
        answers[serial] = pipeline_pb2.Answer(serial=serial, revision=revision)
    result = txn_pb2.TxnResult(
        succeeded=True,
        responses=[
            txn_pb2.ResponseOp(put=txn_pb2.PutResult()),
            txn_pb2.ResponseOp(range=txn_pb2.RangeResult(kvs=[pair(b"a", b"v", 2, 2, 1)], count=1)),
        ],
    )
    granted = pipeline_pb2.LeaseResult(id=7, ttl_ms=5_000)
    assert answers[1] == pipeline_pb2.Answer(serial=1, revision=2, txn=result)
    assert answers[2] == pipeline_pb2.Answer(serial=2, revision=2, lease=granted)
    assert answers[3] == pipeline_pb2.Answer(serial=3, revision=3)
    assert answers[4] == pipeline_pb2.Answer(serial=4, revision=3, lease=granted)
    assert answers[5] == pipeline_pb2.Answer(serial=5, revision=4, deleted=1)
    assert answers[6] == pipeline_pb2.Answer(serial=6, revision=4)
    assert (answers[7].error.code, answers[7].error.outcome) == (
        common_pb2.ERROR_CODE_LEASE_NOT_FOUND,
        common_pb2.OUTCOME_NOT_APPLIED,
    )


async def test_a_transaction_in_a_session_is_run_once_however_often_it_is_sent(served: Served) -> None:
    session = (await served.session.Register(session_pb2.RegisterRequest(nonce=9))).session
    txn = txn_pb2.TxnCommand(compares=[version_is(b"a", 0)], success=[put(b"a")], failure=[get(b"a")])
    context = kv_pb2.WriteContext(cluster_id=CLUSTER_ID, session=session, serial=1, floor=1)
    first = await served.kv.Txn(kv_pb2.TxnRequest(txn=txn, context=context))
    again = await served.kv.Txn(kv_pb2.TxnRequest(txn=txn, context=context))
    assert first.result == again.result
    assert first.result.succeeded
    assert served.node.revision == 2
    cancelled = await served.session.Cancel(session_pb2.CancelRequest(session=session, serial=1))
    assert cancelled.answer.txn == first.result


OVERLAPS = [
    ([put(b"a"), put(b"a")], "two puts of one key"),
    ([put(b"a"), delete(b"a")], "a put, then a delete of it"),
    ([delete(b"a", b"c"), put(b"b")], "a range delete, then a put into it"),
]


@pytest.mark.parametrize("branch", ["success", "failure"])
@pytest.mark.parametrize("operations", [row[0] for row in OVERLAPS], ids=[row[1] for row in OVERLAPS])
async def test_writes_of_one_branch_may_not_overlap(
    served: Served, operations: list[Op], branch: str
) -> None:
    txn = txn_pb2.TxnCommand()
    getattr(txn, branch).extend(operations)
    told = await refusal(served.kv.Txn(request(txn)))
    assert (told.status, told.error.code, told.error.outcome) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        common_pb2.ERROR_CODE_INVALID,
        common_pb2.OUTCOME_NOT_APPLIED,
    )
    assert branch in told.error.field
    assert served.node.items == []


async def test_the_same_key_in_both_branches_and_deletes_that_overlap_are_fine(served: Served) -> None:
    await stored(served, b"a")
    txn = txn_pb2.TxnCommand(success=[delete(b"a"), delete(b"a", b"c")], failure=[put(b"a")])
    done = await served.kv.Txn(request(txn))
    assert [each.delete.deleted for each in done.result.responses] == [1, 0]


@pytest.mark.parametrize(
    "txn",
    [
        txn_pb2.TxnCommand(success=[get(b"a")] * 1_025),
        txn_pb2.TxnCommand(compares=[version_is(b"a", 0)] * 1_025),
        txn_pb2.TxnCommand(
            compares=[version_is(b"a", 0)] * 400, success=[get(b"a")] * 400, failure=[get(b"a")] * 225
        ),
    ],
    ids=["operations", "compares", "together"],
)
async def test_a_transaction_has_1024_compares_and_operations_at_most(
    served: Served, txn: txn_pb2.TxnCommand
) -> None:
    told = await refusal(served.kv.Txn(request(txn)))
    assert (told.status, told.error.outcome) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        common_pb2.OUTCOME_NOT_APPLIED,
    )
    assert "1024" in told.text
    assert "1025" in told.text
    assert served.node.items == []


async def test_1024_operations_are_taken(served: Served) -> None:
    txn = txn_pb2.TxnCommand(success=[put(b"%d" % number) for number in range(1_024)])
    assert (await served.kv.Txn(request(txn))).header.revision == 2


@pytest.mark.parametrize(
    ("operation", "status", "says"),
    [
        (put(b"b", lease=7), grpc.StatusCode.NOT_FOUND, "7"),
        (get(b"a", revision=99), grpc.StatusCode.OUT_OF_RANGE, "2 to 3"),
        (get(b"a", revision=1), grpc.StatusCode.OUT_OF_RANGE, "2 to 3"),
    ],
    ids=["no such lease", "future revision", "compacted revision"],
)
async def test_an_operation_that_fails_undoes_its_transaction(
    served: Served, operation: Op, status: grpc.StatusCode, says: str
) -> None:
    await stored(served, b"a", b"1")
    await stored(served, b"a", b"2")
    await served.kv.Compact(kv_pb2.CompactRequest(revision=2))
    told = await refusal(served.kv.Txn(request(txn_pb2.TxnCommand(success=[put(b"x"), operation]))))
    assert (told.status, told.error.outcome) == (status, common_pb2.OUTCOME_NOT_APPLIED)
    assert says in told.text
    assert (await served.kv.Range(kv_pb2.RangeRequest(key=b"x"))).count == 0
    assert served.node.revision == 3


async def test_results_larger_than_a_default_client_takes_reach_one_that_was_told(served: Served) -> None:
    for key in (b"a", b"b"):
        await stored(served, key, bytes(4 << 20))
    txn = request(txn_pb2.TxnCommand(success=[get(b"a"), get(b"b")]))
    options = [("grpc.max_receive_message_length", 20 << 20)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{served.server.port}", options=options) as channel:
        call = channel.unary_unary(
            "/raftstate.v1.KV/Txn", response_deserializer=kv_pb2.TxnResponse.FromString
        )
        done = await call(txn.SerializeToString())
    assert [len(each.range.kvs[0].value) for each in done.result.responses] == [4 << 20] * 2


async def test_results_beyond_the_limit_of_a_command_are_refused(served: Served) -> None:
    for key in (b"a", b"b"):
        await stored(served, key, bytes(5 << 20))
    txn = request(txn_pb2.TxnCommand(success=[put(b"x"), get(b"a"), get(b"b")]))
    told = await refusal(served.kv.Txn(txn))
    assert (told.status, told.error.outcome) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        common_pb2.OUTCOME_NOT_APPLIED,
    )
    assert (await served.kv.Range(kv_pb2.RangeRequest(key=b"x"))).count == 0


@pytest.mark.parametrize(
    ("error", "status", "outcome"),
    [
        (NoLeaderError("nobody leads"), grpc.StatusCode.UNAVAILABLE, common_pb2.OUTCOME_NOT_APPLIED),
        (IndefiniteError("the link was lost"), grpc.StatusCode.UNKNOWN, common_pb2.OUTCOME_UNKNOWN),
    ],
)
async def test_without_a_leader_or_an_answer_each_kind_of_write_is_told_the_truth(
    served: Served, error: Exception, status: grpc.StatusCode, outcome: int
) -> None:
    async def fail(_item: Item) -> None:
        raise error

    served.node.on_write = fail
    for call in (
        served.kv.Txn(request(txn_pb2.TxnCommand(success=[put(b"a")]))),
        served.kv.Compact(kv_pb2.CompactRequest(revision=1)),
        served.lease.Grant(lease_pb2.LeaseGrantRequest(ttl_ms=5_000)),
        served.lease.Renew(lease_pb2.LeaseRenewRequest(id=1)),
        served.lease.Revoke(lease_pb2.LeaseRevokeRequest(id=1)),
    ):
        told = await refusal(call)
        assert (told.status, told.error.outcome) == (status, outcome)


async def test_a_cluster_of_an_older_machine_version_does_not_know_them_yet(served: Served) -> None:
    served.node.machine_version = 1
    for call in (
        served.kv.Txn(request(txn_pb2.TxnCommand(success=[put(b"a")]))),
        served.kv.Compact(kv_pb2.CompactRequest(revision=1)),
        served.lease.Grant(lease_pb2.LeaseGrantRequest(ttl_ms=5_000)),
        served.kv.Put(kv_pb2.PutRequest(key=b"a", lease=7)),
    ):
        told = await refusal(call)
        assert (told.status, told.error.code, told.error.outcome) == (
            grpc.StatusCode.UNIMPLEMENTED,
            common_pb2.ERROR_CODE_UNIMPLEMENTED,
            common_pb2.OUTCOME_NOT_APPLIED,
        )
    assert served.node.items == []
    await stored(served, b"a")


async def test_a_write_over_the_limits_of_a_batch_is_refused_before_it_is_in_the_log(served: Served) -> None:
    half = bytes(5 << 20)
    txn = txn_pb2.TxnCommand(success=[put(b"a", half), put(b"b", half)])
    told = await refusal(served.kv.Txn(request(txn)))
    assert (told.status, told.error.outcome) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        common_pb2.OUTCOME_NOT_APPLIED,
    )
    assert "a batch may have at most 8454144 bytes, got 10485" in told.text
    assert served.node.items == []
