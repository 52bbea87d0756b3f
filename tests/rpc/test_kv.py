"""Single requests, over a real channel, to the real machine."""

from __future__ import annotations

import asyncio
import re

import grpc
import pytest

from raftstate.machine.types import Batch
from raftstate.node.service import ReadConsistency
from raftstate.pb.v1 import cluster_pb2, common_pb2, kv_pb2, lease_pb2, pipeline_pb2, txn_pb2
from raftstate.rpc import kv
from raftstate.rpc.serving import time_to_answer_s
from tests.rpc.conftest import Served
from tests.rpc.errors import refusal
from tests.rpc.fake_node import CLUSTER_ID, NODE_ID, TERM, Gate, take


def header(
    *, revision: int, applied_index: int, staleness_bound_us: int | None = None
) -> common_pb2.ResponseHeader:
    return common_pb2.ResponseHeader(
        cluster_id=CLUSTER_ID,
        node_id=NODE_ID,
        revision=revision,
        applied_index=applied_index,
        term=TERM,
        staleness_bound_us=staleness_bound_us,
    )


def pair(key: bytes, value: bytes, create: int, mod: int, version: int) -> common_pb2.KeyValue:
    return common_pb2.KeyValue(
        key=key, value=value, create_revision=create, mod_revision=mod, version=version
    )


async def put(served: Served, key: bytes, value: bytes) -> kv_pb2.PutResponse:
    return await served.kv.Put(kv_pb2.PutRequest(key=key, value=value))


async def test_a_put_is_answered_with_its_revision_and_log_position(served: Served) -> None:
    assert await put(served, b"a", b"1") == kv_pb2.PutResponse(header=header(revision=2, applied_index=1))


async def test_a_write_through_a_node_that_lags_carries_the_writes_own_log_position(served: Served) -> None:
    served.node.applied_lag = 10
    written = await put(served, b"a", b"1")
    assert written.header == header(revision=2, applied_index=1)


async def test_a_put_returns_the_previous_pair_when_asked(served: Served) -> None:
    await put(served, b"a", b"1")
    again = await served.kv.Put(kv_pb2.PutRequest(key=b"a", value=b"2", prev_kv=True))
    assert again == kv_pb2.PutResponse(
        header=header(revision=3, applied_index=2), prev_kv=pair(b"a", b"1", 2, 2, 1)
    )


async def test_a_put_without_a_session_stands_in_the_log_as_a_batch_of_one(served: Served) -> None:
    await served.kv.Put(
        kv_pb2.PutRequest(key=b"a", value=b"1", context=kv_pb2.WriteContext(cluster_id=CLUSTER_ID))
    )
    command = pipeline_pb2.Command(serial=1, put=txn_pb2.PutCommand(key=b"a", value=b"1"))
    batch = pipeline_pb2.CommandBatch(cluster_id=CLUSTER_ID, commands=[command])
    assert served.node.items == [Batch(batch.SerializeToString())]


async def test_get_tells_an_absent_key_from_an_empty_value(served: Served) -> None:
    await put(served, b"empty", b"")
    absent = await served.kv.Get(kv_pb2.GetRequest(key=b"absent"))
    assert absent == kv_pb2.GetResponse(header=header(revision=2, applied_index=1))
    assert not absent.HasField("kv")
    empty = await served.kv.Get(kv_pb2.GetRequest(key=b"empty"))
    assert empty.HasField("kv")
    assert empty.kv == pair(b"empty", b"", 2, 2, 1)


async def test_a_read_carries_the_staleness_bound_only_when_one_is_known(served: Served) -> None:
    plain = await served.kv.Get(kv_pb2.GetRequest(key=b"a"))
    assert not plain.header.HasField("staleness_bound_us")
    served.node.staleness_bound_us = 0
    bounded = await served.kv.Get(kv_pb2.GetRequest(key=b"a"))
    assert bounded.header.HasField("staleness_bound_us")
    served.node.staleness_bound_us = 38_000
    scanned = await served.kv.Range(kv_pb2.RangeRequest(key=b"a"))
    assert scanned.header == header(revision=1, applied_index=0, staleness_bound_us=38_000)


async def test_reads_pass_on_the_consistency_that_was_asked_for(served: Served) -> None:
    asked: list[tuple[ReadConsistency, int]] = []

    async def note(consistency: ReadConsistency, max_staleness_ms: int) -> None:
        asked.append((consistency, max_staleness_ms))

    served.node.on_read = note
    await served.kv.Get(kv_pb2.GetRequest(key=b"a"))
    await served.kv.Get(kv_pb2.GetRequest(key=b"a", consistency=common_pb2.CONSISTENCY_BOUNDED))
    await served.kv.Range(
        kv_pb2.RangeRequest(key=b"a", consistency=common_pb2.CONSISTENCY_BOUNDED, max_staleness_ms=200)
    )
    await served.kv.Range(kv_pb2.RangeRequest(key=b"a", consistency=common_pb2.CONSISTENCY_LOCAL))
    assert asked == [
        (ReadConsistency.LINEARIZABLE, 50),
        (ReadConsistency.BOUNDED, 50),
        (ReadConsistency.BOUNDED, 200),
        (ReadConsistency.LOCAL, 50),
    ]


@pytest.mark.parametrize(
    ("order", "target", "keys"),
    [
        (txn_pb2.SORT_ORDER_NONE, txn_pb2.SORT_TARGET_KEY, [b"a", b"b", b"c"]),
        (txn_pb2.SORT_ORDER_ASCEND, txn_pb2.SORT_TARGET_KEY, [b"a", b"b", b"c"]),
        (txn_pb2.SORT_ORDER_DESCEND, txn_pb2.SORT_TARGET_KEY, [b"c", b"b", b"a"]),
        (txn_pb2.SORT_ORDER_ASCEND, txn_pb2.SORT_TARGET_VALUE, [b"c", b"b", b"a"]),
        (txn_pb2.SORT_ORDER_NONE, txn_pb2.SORT_TARGET_VALUE, [b"c", b"b", b"a"]),
        (txn_pb2.SORT_ORDER_DESCEND, txn_pb2.SORT_TARGET_VALUE, [b"a", b"b", b"c"]),
        (txn_pb2.SORT_ORDER_DESCEND, txn_pb2.SORT_TARGET_VERSION, [b"a", b"b", b"c"]),
        (txn_pb2.SORT_ORDER_DESCEND, txn_pb2.SORT_TARGET_CREATE_REVISION, [b"b", b"c", b"a"]),
        (txn_pb2.SORT_ORDER_ASCEND, txn_pb2.SORT_TARGET_MOD_REVISION, [b"c", b"b", b"a"]),
    ],
)
async def test_a_range_comes_in_the_order_asked_for(
    served: Served, order: txn_pb2.SortOrder, target: txn_pb2.SortTarget, keys: list[bytes]
) -> None:
    for key, value in ((b"a", b"9"), (b"c", b"1"), (b"b", b"2"), (b"a", b"3")):
        await put(served, key, value)
    request = kv_pb2.RangeRequest(key=b"a", range_end=b"z", sort_order=order, sort_target=target)
    found = await served.kv.Range(request)
    assert [each.key for each in found.kvs] == keys
    request.limit = 1
    first = await served.kv.Range(request)
    assert ([each.key for each in first.kvs], first.more, first.count) == (keys[:1], True, 3)


async def test_reads_of_the_past(served: Served) -> None:
    await put(served, b"a", b"1")
    await put(served, b"b", b"2")
    await served.kv.Delete(kv_pb2.DeleteRequest(key=b"a"))
    head = header(revision=4, applied_index=3)
    assert await served.kv.Get(kv_pb2.GetRequest(key=b"a")) == kv_pb2.GetResponse(header=head)
    past = await served.kv.Get(kv_pb2.GetRequest(key=b"a", revision=3))
    assert past == kv_pb2.GetResponse(header=head, kv=pair(b"a", b"1", 2, 2, 1))
    found = await served.kv.Range(kv_pb2.RangeRequest(key=b"a", range_end=b"z", revision=2))
    assert found == kv_pb2.RangeResponse(header=head, kvs=[pair(b"a", b"1", 2, 2, 1)], count=1)


async def test_compaction_takes_the_history_before_it_and_leaves_the_rest(served: Served) -> None:
    for value in (b"1", b"2", b"3", b"4"):
        await put(served, b"a", value)
    compacted = await served.kv.Compact(kv_pb2.CompactRequest(revision=3))
    assert compacted == kv_pb2.CompactResponse(header=header(revision=5, applied_index=5))
    assert (await served.kv.Get(kv_pb2.GetRequest(key=b"a", revision=3))).kv.value == b"2"
    for read in (
        served.kv.Get(kv_pb2.GetRequest(key=b"a", revision=2)),
        served.kv.Range(kv_pb2.RangeRequest(key=b"a", revision=2)),
        served.kv.Get(kv_pb2.GetRequest(key=b"a", revision=6)),
        served.kv.Range(kv_pb2.RangeRequest(key=b"a", revision=6, count_only=True)),
        served.kv.Compact(kv_pb2.CompactRequest(revision=3)),
        served.kv.Compact(kv_pb2.CompactRequest(revision=6)),
    ):
        told = await refusal(read)
        assert (told.status, told.error.code, told.error.outcome) == (
            grpc.StatusCode.OUT_OF_RANGE,
            common_pb2.ERROR_CODE_OUT_OF_RANGE,
            common_pb2.OUTCOME_NOT_APPLIED,
        )
        assert told.error.field == "revision"
        assert re.search(r"\b[34] to 5\b", told.error.message), "the valid range"
        assert told.error.message in told.text


async def test_reads_pass_on_the_log_index_that_they_must_include(served: Served) -> None:
    await served.kv.Get(kv_pb2.GetRequest(key=b"a", min_applied_index=17))
    await served.kv.Range(kv_pb2.RangeRequest(key=b"a", min_applied_index=(1 << 64) - 1))
    await served.kv.Get(kv_pb2.GetRequest(key=b"a"))
    assert served.node.min_applied == [17, (1 << 64) - 1, 0]


async def test_a_put_attaches_its_key_to_a_lease(served: Served) -> None:
    await served.lease.Grant(lease_pb2.LeaseGrantRequest(id=7, ttl_ms=60_000))
    await served.kv.Put(kv_pb2.PutRequest(key=b"a", lease=7))
    assert (await served.kv.Get(kv_pb2.GetRequest(key=b"a"))).kv.lease == 7
    told = await refusal(served.kv.Put(kv_pb2.PutRequest(key=b"a", lease=8)))
    assert (told.status, told.error.code) == (
        grpc.StatusCode.NOT_FOUND,
        common_pb2.ERROR_CODE_LEASE_NOT_FOUND,
    )


async def test_delete_of_one_key_of_none_and_of_a_range(served: Served) -> None:
    for key in (b"a", b"b", b"c"):
        await put(served, key, b"v")
    absent = await served.kv.Delete(kv_pb2.DeleteRequest(key=b"zz"))
    assert absent == kv_pb2.DeleteResponse(header=header(revision=4, applied_index=4))
    one = await served.kv.Delete(kv_pb2.DeleteRequest(key=b"a"))
    assert one == kv_pb2.DeleteResponse(header=header(revision=5, applied_index=5), deleted=1)
    rest = await served.kv.Delete(kv_pb2.DeleteRequest(key=b"a", range_end=b"z", prev_kv=True))
    assert rest == kv_pb2.DeleteResponse(
        header=header(revision=6, applied_index=6),
        deleted=2,
        prev_kvs=[pair(b"b", b"v", 3, 3, 1), pair(b"c", b"v", 4, 4, 1)],
    )


async def test_range_by_limit_keys_count_and_open_end(served: Served) -> None:
    for key in (b"a", b"b", b"c"):
        await put(served, key, b"v")
    head = header(revision=4, applied_index=3)
    a, b, c = (pair(key, b"v", n, n, 1) for n, key in enumerate((b"a", b"b", b"c"), start=2))
    limited = await served.kv.Range(kv_pb2.RangeRequest(key=b"a", range_end=b"z", limit=2))
    assert limited == kv_pb2.RangeResponse(header=head, kvs=[a, b], more=True, count=3)
    keys = await served.kv.Range(kv_pb2.RangeRequest(key=b"b", range_end=b"\x00", keys_only=True))
    for each in (b, c):
        each.value = b""
    assert keys == kv_pb2.RangeResponse(header=head, kvs=[b, c], count=2)
    counted = await served.kv.Range(kv_pb2.RangeRequest(key=b"a", range_end=b"c", count_only=True))
    assert counted == kv_pb2.RangeResponse(header=head, count=2)
    alone = await served.kv.Range(kv_pb2.RangeRequest(key=b"a"))
    assert alone == kv_pb2.RangeResponse(header=head, kvs=[a], count=1)


async def test_a_range_too_large_for_a_default_client_is_cut_and_says_so(served: Served) -> None:
    keys = [b"%02d" % number for number in range(5)]
    for key in keys:
        await put(served, key, bytes(1 << 20))
    first = await served.kv.Range(kv_pb2.RangeRequest(key=b"0", range_end=b"1"))
    assert ([kv.key for kv in first.kvs], first.more, first.count) == (keys[:2], True, 5)
    next_key = first.kvs[-1].key + b"\x00"
    second = await served.kv.Range(kv_pb2.RangeRequest(key=next_key, range_end=b"1"))
    assert ([kv.key for kv in second.kvs], second.more, second.count) == (keys[2:4], True, 3)


async def test_a_range_of_many_small_pairs_is_cut_so_that_it_does_not_hold_up_the_node(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv, "RANGE_PAIRS_MAX", 2)
    for key in (b"a", b"b", b"c"):
        await put(served, key, b"v")
    for limit in (0, 3, (1 << 64) - 1):
        page = await served.kv.Range(kv_pb2.RangeRequest(key=b"a", range_end=b"z", limit=limit))
        assert ([each.key for each in page.kvs], page.more, page.count) == ([b"a", b"b"], True, 3)


async def test_the_next_page_may_start_behind_the_longest_key(served: Served) -> None:
    longest = b"k" * 480
    await put(served, longest, b"v")
    await put(served, b"l", b"v")
    page = await served.kv.Range(kv_pb2.RangeRequest(key=longest + b"\x00", range_end=b"z"))
    assert [kv.key for kv in page.kvs] == [b"l"]


async def test_the_largest_value_passes(served: Served) -> None:
    value = b"x" * (8 << 20)
    await put(served, b"large", value)
    options = [("grpc.max_receive_message_length", 20 << 20)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{served.server.port}", options=options) as channel:
        got = await channel.unary_unary(
            "/raftstate.v1.KV/Get", response_deserializer=kv_pb2.GetResponse.FromString
        )(kv_pb2.GetRequest(key=b"large").SerializeToString())
    assert got.kv.value == value


@pytest.mark.parametrize(
    ("remaining_s", "timeout_s"), [(None, 5.0), (10.0, 9.75), (1.0, 0.9), (0.1, 0.09), (0.0, 0.0)]
)
def test_the_node_is_given_less_time_than_the_client_waits(
    remaining_s: float | None, timeout_s: float
) -> None:
    assert time_to_answer_s(remaining_s) == pytest.approx(timeout_s)


async def test_each_kind_of_request_passes_on_its_deadline(served: Served) -> None:
    await served.kv.Put(kv_pb2.PutRequest(key=b"a"), timeout=3)
    await served.kv.Get(kv_pb2.GetRequest(key=b"a"), timeout=3)
    await served.kv.Get(kv_pb2.GetRequest(key=b"a"))
    given, read, without = served.node.timeouts_s
    assert 2 < given < 2.9
    assert 2 < read < 2.9
    assert without == 5.0


async def test_a_cancelled_call_ends_its_waiting_and_nothing_else(served: Served) -> None:
    gate = Gate()
    served.node.on_write = gate
    call = served.kv.Put(kv_pb2.PutRequest(key=b"a", value=b"1"))
    other = asyncio.ensure_future(put(served, b"b", b"2"))
    await take(gate.entered, 2)
    call.cancel()
    await take(gate.left, 1)
    gate.open()
    assert (await other).header.revision == 2


async def test_an_erase_answers_whether_the_key_was_there_and_ends_its_past(served: Served) -> None:
    await served.kv.Put(kv_pb2.PutRequest(key=b"k", value=b"v"))  # 2
    erased = await served.kv.Erase(kv_pb2.EraseRequest(key=b"k"))
    assert erased == kv_pb2.EraseResponse(header=header(revision=4, applied_index=2), deleted=1)
    told = await refusal(served.kv.Get(kv_pb2.GetRequest(key=b"k", revision=2)))
    assert told.status is grpc.StatusCode.OUT_OF_RANGE
    again = await served.kv.Erase(kv_pb2.EraseRequest(key=b"k"))
    assert (again.deleted, again.header.revision) == (0, 5)


async def test_files_are_defragmented_by_request(served: Served) -> None:
    response = await served.cluster.Defragment(cluster_pb2.DefragmentRequest())
    assert response.state_bytes == 8_192
