"""What is converted in one turn of the loop."""

from __future__ import annotations

import asyncio

import pytest

from raftstate.machine.types import DeleteDone, KeyValue, PutDone, RangeDone, TxnDone
from raftstate.pb.v1 import kv_pb2, pipeline_pb2, txn_pb2
from raftstate.rpc.conversion import pair_count
from raftstate.rpc.pace import PAIRS_A_TURN, Pace
from tests.rpc.conftest import Served


async def test_large_answers_share_no_turn_and_keep_their_order() -> None:
    pace = Pace()
    turn = 0
    spent: list[tuple[int, int]] = []

    async def convert(number: int, pairs: int) -> None:
        await pace.spend(pairs)
        spent.append((number, turn))

    sizes = [10 * PAIRS_A_TURN, PAIRS_A_TURN, PAIRS_A_TURN // 2, PAIRS_A_TURN // 2, PAIRS_A_TURN, 1]
    tasks = [asyncio.create_task(convert(*each)) for each in enumerate(sizes)]
    while not all(task.done() for task in tasks):
        turn += 1
        await asyncio.sleep(0)
    assert [number for number, _ in spent] == list(range(len(sizes)))
    pairs_by_turn: dict[int, list[int]] = {}
    for number, at in spent:
        pairs_by_turn.setdefault(at, []).append(sizes[number])
    assert all(len(pairs) == 1 or sum(pairs) <= PAIRS_A_TURN for pairs in pairs_by_turn.values())


async def test_small_answers_never_wait() -> None:
    pace = Pace()
    for _ in range(PAIRS_A_TURN // 10):
        spending = pace.spend(10)
        try:
            spending.send(None)
        except StopIteration:
            continue
        raise AssertionError("it waits")


async def test_who_gives_up_waiting_for_a_turn_keeps_nobody_waiting() -> None:
    pace = Pace()
    first, second, third = (asyncio.create_task(pace.spend(PAIRS_A_TURN)) for _ in range(3))
    await asyncio.sleep(0)
    second.cancel()
    async with asyncio.timeout(10):
        await asyncio.gather(first, third)
    assert second.cancelled()


async def test_every_answer_that_may_hold_many_pairs_waits_for_its_turn(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent: list[int] = []

    async def spend(_pace: Pace, pairs: int) -> None:
        spent.append(pairs)

    monkeypatch.setattr(Pace, "spend", spend)
    command = pipeline_pb2.Command
    puts = [
        command(serial=serial, put=txn_pb2.PutCommand(key=b"k%d" % serial, prev_kv=True))
        for serial in range(1, 8)
    ]
    everything = txn_pb2.RequestOp(range=txn_pb2.RangeOp(key=b"k", range_end=b"l"))
    txn = txn_pb2.TxnCommand(success=[everything, everything])
    stream = served.pipeline.Write()
    await stream.write(pipeline_pb2.CommandBatch(commands=puts))
    await stream.read()
    assert spent == []
    await stream.write(pipeline_pb2.CommandBatch(commands=[command(serial=8, txn=txn)]))
    await stream.read()
    await served.kv.Txn(kv_pb2.TxnRequest(txn=txn))
    await served.kv.Range(kv_pb2.RangeRequest(key=b"k", range_end=b"l"))
    await served.kv.Delete(kv_pb2.DeleteRequest(key=b"k", range_end=b"l", prev_kv=True))
    assert spent == [14, 14, 7, 7]


def test_all_pairs_of_a_transaction_count() -> None:
    pair = KeyValue(b"k", b"v", 2, 2, 1)
    done = TxnDone(
        True,
        [
            RangeDone([pair, pair], False, 2),
            PutDone(None),
            PutDone(pair),
            DeleteDone(3, [pair, pair, pair]),
        ],
    )
    assert pair_count(done) == 6
