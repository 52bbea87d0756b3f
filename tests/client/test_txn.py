"""Transactions, compaction and reads of the past, against the real machine."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import raftstate
from raftstate import Delete, DeleteResult, Get, KeyValue, Put, PutResult, Range, RangeResult, where
from raftstate.client.compare import Compare
from raftstate.client.ledger import Ledger, Write
from raftstate.client.operations import RenewLease
from raftstate.client.txn import AsyncTxn, TxnCommand
from raftstate.errors import (
    IndefiniteError,
    InvalidArgumentError,
    LeaseNotFoundError,
    OutOfRangeError,
    ResourceExhaustedError,
)
from raftstate.machine.command import parse_batch
from raftstate.pb.v1 import common_pb2, pipeline_pb2, txn_pb2
from tests.client.fake_cluster import FakeCluster, apply_and_break, break_stream, hold


async def test_a_transaction_does_what_its_compares_decide(store: raftstate.AsyncClient) -> None:
    async def claim(owner: bytes) -> raftstate.TxnResult:
        txn = store.txn().when(where("job").missing()).then(Put("job", owner)).otherwise(Get("job"))
        return await txn.commit()

    assert await claim(b"first") == raftstate.TxnResult(2, True, (PutResult(2),))
    found = KeyValue(b"job", b"first", 2, 2, 1)
    assert await claim(b"second") == raftstate.TxnResult(2, False, (found,))


async def test_every_operation_gives_what_it_gives_alone(store: raftstate.AsyncClient) -> None:
    await store.put_many([("a", b"1"), ("b", b"2"), ("c", b"3")])
    done = await (
        store.txn()
        .then(Put("a", b"x", prev_kv=True), Put("new", b"n", prev_kv=True), Get("a"), Get("absent"))
        .then(Range("a", "c"), Range(prefix="", sort="value", descending=True, limit=2), Get("a", revision=2))
        .then(Range(count_only=True), Range("b", keys_only=True, limit=1), Delete("b", prev_kv=True))
        .then(Delete("absent"), Range(prefix="b"))
        .commit()
    )
    one, two, three = (
        KeyValue(*pair, n, n, 1) for n, pair in enumerate([(b"a", b"1"), (b"b", b"2"), (b"c", b"3")], 2)
    )
    changed, new = KeyValue(b"a", b"x", 2, 5, 2), KeyValue(b"new", b"n", 5, 5, 1)
    assert done.succeeded
    assert done.revision == 5
    assert list(done) == [
        PutResult(5, one),
        PutResult(5, None),
        changed,
        None,
        RangeResult((changed, two), more=False, count=2, revision=5),
        RangeResult((changed, new), more=True, count=4, revision=5, by_key=False),
        one,
        RangeResult((), more=False, count=4, revision=5),
        RangeResult((KeyValue(b"b", b"", 3, 3, 1),), more=True, count=3, revision=5),
        DeleteResult(5, 1, (two,)),
        DeleteResult(5, 0),
        RangeResult((), more=False, count=0, revision=5),
    ]
    assert (len(done), done[2], done[9]) == (12, changed, DeleteResult(5, 1, (two,)))
    assert [pair.key for pair in await store.range()] == [b"a", three.key, b"new"]


async def test_a_transaction_of_nothing_succeeds(store: raftstate.AsyncClient) -> None:
    assert await store.txn().commit() == raftstate.TxnResult(1, True, ())
    done = await store.txn().when(where("k").exists()).commit()
    assert done == raftstate.TxnResult(1, False, ())


@pytest.mark.parametrize(
    ("compare", "holds"),
    [
        (where("k").version == 2, True),
        (where("k").version != 2, False),
        (where("k").version > 1, True),
        (where("k").version < 2, False),
        (where("k").create_revision == 2, True),
        (where("k").mod_revision < 4, True),
        (where("k").lease == 0, True),
        (where("k").value == b"two", True),
        (where("k").value == bytearray(b"one"), False),
        (where("k").value != b"one", True),
        (where("k").value > b"twn", True),
        (where("k").value < b"twn", False),
        (where("k").exists(), True),
        (where("k").missing(), False),
        (where("absent").missing(), True),
        (where("absent").value != b"", False),
        (where(prefix="k").version == 2, True),
        (where(prefix="").mod_revision == 3, False),
        (where(prefix="nothing/").missing(), True),
        (where(prefix="").exists(), True),
        (where("k", range_end="z").mod_revision > 2, True),
    ],
)
async def test_a_compare_holds_or_not(store: raftstate.AsyncClient, compare: Compare, holds: bool) -> None:
    await store.put("k", b"one")
    await store.put("k", b"two")
    await store.put("z", b"")
    assert (await store.txn().when(compare).commit()).succeeded is holds


async def test_all_compares_must_hold(store: raftstate.AsyncClient) -> None:
    txn = store.txn().when(where("a").missing()).when(where("b").missing(), where("c").exists())
    assert not (await txn.commit()).succeeded


async def test_a_transaction_whose_answer_is_lost_is_done_once(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    cluster.faults.extend([break_stream, apply_and_break, apply_and_break])
    txn = store.txn().when(where("k").missing()).then(Put("k", b"1")).otherwise(Put("k", b"twice"))
    assert await txn.commit() == raftstate.TxnResult(2, True, (PutResult(2),))
    assert cluster.executed == [(b"k", b"1")]


@pytest.mark.parametrize("sent", [False, True])
async def test_a_cancelled_transaction_is_not_done_after_a_later_write(
    cluster: FakeCluster, store: raftstate.AsyncClient, sent: bool
) -> None:
    arrived, release = asyncio.Event(), asyncio.Event()
    if sent:
        cluster.faults.append(hold(arrived, release, break_stream))
    commit = asyncio.create_task(store.txn().then(Put("k", b"cancelled")).commit())
    await (arrived.wait() if sent else asyncio.sleep(0))
    commit.cancel()
    with pytest.raises(asyncio.CancelledError):
        await commit
    release.set()
    await store.put("k", b"later")
    for batch in list(cluster.batches):
        cluster.apply(batch)
    assert cluster.executed == [(b"k", b"later")]


async def test_building_a_transaction_sends_nothing(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    store.txn().when(where("k").missing()).then(Put("k", b"1")).otherwise(Delete("k"))
    await store.put("other", b"")
    assert cluster.serials() == [[1]]


async def test_a_refused_transaction_leaves_nothing_and_says_why(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    with pytest.raises(LeaseNotFoundError) as caught:
        await store.txn().then(Put("a", b""), Put("b", b"", lease=77)).commit()
    assert caught.value.definite
    assert caught.value.detail["code"] == "LEASE_NOT_FOUND"
    with pytest.raises(OutOfRangeError, match="lies in the future"):
        await store.txn().then(Put("a", b""), Get("a", revision=100)).commit()
    with pytest.raises(InvalidArgumentError):
        await store.txn().then(Put("a", b"1"), Put("a", b"2")).commit()
    with pytest.raises(InvalidArgumentError):
        await store.txn().otherwise(Put("a", b"1"), Delete("", prefix=True)).commit()
    assert cluster.executed == []


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda txn: txn.when(True), "compare 0 must be made by where()"),
        (lambda txn: txn.when(where("k").exists(), "k"), "compare 1 must be made by where()"),
        (
            lambda txn: txn.then(("k", b"v")),
            "operation 0 must be a Put, Get, Range or Delete of raftstate, got tuple",
        ),
        (
            lambda txn: txn.otherwise(Get("k"), RenewLease(1)),
            "operation 1 must be a Put, Get, Range or Delete",
        ),
        (lambda txn: where("k"), None),
        (lambda txn: where(), "give a key or a prefix; got neither"),
        (lambda txn: where("k", prefix="k"), "not both"),
        (lambda txn: where(""), "key must have 1 to 480 bytes, got 0"),
        (lambda txn: where("k").version == -1, "version must be a whole number from 0"),
        (lambda txn: where("k").version == b"1", "version must be a whole number from 0"),
        (lambda txn: where("k").mod_revision > 1.5, "mod_revision must be a whole number from 0"),
        (lambda txn: where("k").value == "v", "value must be bytes-like, got str"),
        (lambda txn: where("k").lease == "mine", "lease must be a lease, or its id"),
        (lambda txn: 1 < where("k").version < 3, "has no truth value"),
        (lambda txn: where("k").exists() and where("l").exists(), "has no truth value"),
        (lambda txn: Put("k", "v"), "value must be bytes-like, got str"),
        (lambda txn: Put("k", b"v", lease=None), "lease must be a lease, or its id"),
        (lambda txn: Put("k", b"v", prev_kv=1), "prev_kv must be True or False, got 1"),
        (lambda txn: Get("k", revision=0), "revision must be a whole number from 1"),
        (lambda txn: Range("a", prefix="b"), "start must begin with the prefix"),
        (lambda txn: Range(sort="age"), "sort must be None or one of 'key', 'version'"),
        (lambda txn: Range(descending="yes"), "descending must be True or False"),
        (lambda txn: Range(limit=0), "limit must be a whole number from 1"),
        (lambda txn: Delete("k", range_end="l", prefix=True), "not both"),
        (lambda txn: Delete("k", prefix="k/"), "prefix must be True or False, got 'k/'"),
    ],
)
def test_what_is_wrong_is_said_where_it_is_written(build: Any, says: str | None) -> None:
    async def never(command: object, timeout: float | None) -> Any:
        raise AssertionError("sent")

    if says is None:
        build(AsyncTxn(never))
        return
    with pytest.raises(InvalidArgumentError) as caught:
        build(AsyncTxn(never))
    assert says in caught.value.message


async def test_a_transaction_that_is_too_large_is_not_sent(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    many = [Put(f"k{number}", b"") for number in range(1_024)]
    with pytest.raises(InvalidArgumentError, match="at most 1,024 compares and operations in all"):
        await store.txn().when(where("k0").missing()).then(*many).commit()
    large = [Put(f"k{number}", bytes(5 << 20)) for number in range(2)]
    with pytest.raises(InvalidArgumentError, match=r"at most 8,404,992 bytes, got 10,48"):
        await store.txn().otherwise(*large).commit()
    with pytest.raises(InvalidArgumentError, match="timeout"):
        await store.txn().then(Put("k", b"")).commit(timeout=0)
    assert cluster.batches == []


def test_a_node_takes_a_transaction_with_the_longest_key_and_value_and_a_condition() -> None:
    key = "k" * 480
    txn = TxnCommand((where(key).version == 0,), (Put(key, bytes(8 << 20)),), (Get(key),))
    batch = pipeline_pb2.CommandBatch()
    txn.fill(batch.commands.add(serial=1))
    assert parse_batch(batch.SerializeToString()) == batch


def test_operations_say_what_they_are_and_are_equal_by_it() -> None:
    assert Put("k", b"v", lease=7) == Put(b"k", bytearray(b"v"), lease=7) != Put("k", b"v")
    assert repr(Put("k", b"v")) == "Put(key=b'k', value=b'v', lease=0, prev_kv=False)"
    assert Delete("a", prefix=True) == Delete("a", range_end="b")


def sizes() -> list[Any]:
    most, wide = (1 << 64) - 1, b"\xff" * 480
    largest = [
        Put(wide, b"", lease=most, prev_kv=True),
        Delete(wide, range_end=wide, prev_kv=True),
        Get(wide, revision=most),
        Range(
            wide,
            wide,
            limit=most,
            revision=most,
            sort="value",
            descending=True,
            keys_only=True,
            count_only=True,
        ),
    ]
    return [
        *largest[:2],
        TxnCommand((), (), ()),
        TxnCommand((where(wide, range_end=wide).lease > most,) * 100, tuple(largest), tuple(largest)),
        TxnCommand((where(wide).value > wide,), (largest[0],) * 1_000, ()),
    ]


@pytest.mark.parametrize("operation", sizes())
def test_no_command_takes_more_than_its_operation_says(operation: Any) -> None:
    batch = pipeline_pb2.CommandBatch()
    command = batch.commands.add(serial=(1 << 64) - 1)
    operation.fill(command)
    assert batch.ByteSize() <= operation.size_bytes


@pytest.mark.parametrize(
    "answer",
    [
        pipeline_pb2.BatchReply(serials=[1], revisions=[2]),
        pipeline_pb2.BatchReply(
            answers=[pipeline_pb2.Answer(serial=1, txn=txn_pb2.TxnResult(succeeded=True))]
        ),
    ],
)
async def test_an_answer_that_is_none_to_a_transaction_reaches_its_caller_as_unknown(
    answer: pipeline_pb2.BatchReply,
) -> None:
    ledger = Ledger()
    command = TxnCommand((), (Get("k"),), ())
    write = Write(asyncio.get_running_loop().create_future(), command, 105.0, 5.0)
    ledger.add(write)
    ledger.next_batch(common_pb2.SessionId(index=7, nonce=9), 5, 100.0)
    ledger.accept(answer)
    with pytest.raises(IndefiniteError, match="the node answered"):
        write.future.result()


# ---- the past


async def test_reads_of_the_past_end_where_it_was_compacted(store: raftstate.AsyncClient) -> None:
    for value in (b"1", b"2", b"3"):
        await store.put("k", value)
    await store.put("z", b"")
    old = await store.get("k", revision=2)
    assert old is not None
    assert old.value == b"1"
    page = await store.range(revision=3)
    assert [(pair.key, pair.value) for pair in page] == [(b"k", b"2")]
    await store.compact(3)
    assert await store.get("k", revision=3) == KeyValue(b"k", b"2", 2, 3, 2)
    for read in (
        store.get("k", revision=2),
        store.range(revision=2),
        store.compact(3),
        store.get("k", revision=9),
    ):
        with pytest.raises(OutOfRangeError, match="3") as caught:
            await read
        assert caught.value.detail["code"] == "OUT_OF_RANGE"
    with pytest.raises(OutOfRangeError):
        await store.compact(6)


async def test_a_range_is_sorted_before_it_is_cut(store: raftstate.AsyncClient) -> None:
    await store.put_many([("a", b"2"), ("b", b"3"), ("c", b"1")])
    await store.put("a", b"2")

    async def keys(**options: Any) -> str:
        return "".join(pair.key.decode() for pair in await store.range(**options))

    assert await keys(sort="key", limit=2) == await keys(limit=2) == "ab"
    assert await keys(descending=True, limit=2) == await keys(sort="key", descending=True, limit=2) == "cb"
    assert await keys(sort="value") == "cab"
    assert await keys(sort="mod", descending=True) == "acb"
    assert await keys(sort="create") == "abc"
    assert await keys(sort="version", descending=True, limit=1) == "a"


async def test_a_sorted_range_has_no_next_page(store: raftstate.AsyncClient) -> None:
    await store.put_many([("a", b"2"), ("b", b"1")])
    assert (await store.range(sort="value")).next_start is None
    with pytest.raises(InvalidArgumentError, match="has no next page; raise its limit"):
        (await store.range(sort="value", limit=1)).next_start  # noqa: B018
    assert (await store.range(sort="key", limit=1)).next_start == b"a\x00"


async def test_a_range_with_too_many_keys_is_not_sorted(
    cluster: FakeCluster, store: raftstate.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftstate.machine.reader.SORT_KEYS_MAX", 2)
    await store.put_many([(f"k{number}", b"") for number in range(3)])
    with pytest.raises(ResourceExhaustedError):
        await store.range(sort="value")
    assert len(cluster.reads) == 1


async def test_threads_have_transactions_and_compaction_too(cluster: FakeCluster) -> None:
    def use() -> None:
        with raftstate.connect(cluster.url) as store:
            done = store.txn().when(where("k").missing()).then(Put("k", b"1"), Get("k")).commit()
            assert done == raftstate.TxnResult(2, True, (PutResult(2), KeyValue(b"k", b"1", 2, 2, 1)))
            store.put("k", b"2")
            old = store.get("k", revision=2)
            assert old is not None
            assert old.value == b"1"
            assert [pair.value for pair in store.range(revision=2, sort="value", descending=True)] == [b"1"]
            store.compact(3)
            with pytest.raises(OutOfRangeError):
                store.get("k", revision=2)

    await asyncio.to_thread(use)


def test_numbers_are_compared_by_all_six_signs() -> None:
    def of(compare: raftstate.Compare) -> tuple[str, int | bytes]:
        return txn_pb2.Compare.Result.Name(compare.result), compare.operand

    assert of(where("k").version >= 3) == ("RESULT_GREATER", 2)
    assert of(where("k").version <= 3) == ("RESULT_LESS", 4)
    for always in (lambda: where("k").version >= 0, lambda: where("k").version <= (1 << 64) - 1):
        with pytest.raises(InvalidArgumentError, match="always holds"):
            always()
