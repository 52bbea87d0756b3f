"""The books of writes, without a network: serials, floor, window, batches, and who may be sent again."""

from __future__ import annotations

import asyncio

import pytest

from raftstate.client.ledger import Advice, Ledger, Write
from raftstate.client.operations import Delete, Put
from raftstate.client.types import DeleteResult, PutResult
from raftstate.errors import ClosedError, DeadlineError, IndefiniteError, NoLeaderError, SessionExpiredError
from raftstate.pb.v1 import common_pb2, pipeline_pb2, txn_pb2

SESSION = common_pb2.SessionId(index=7, nonce=9)
NOW = 100.0
DEADLINE = 105.0


def write(operation: Put | Delete | None = None, *, deadline: float = DEADLINE) -> Write:
    future = asyncio.get_running_loop().create_future()
    return Write(future, operation or Put("k", b"v"), deadline, 5.0)


def add(ledger: Ledger, count: int, value: bytes = b"v") -> list[Write]:
    writes = [write(Put("k", value)) for _ in range(count)]
    for each in writes:
        ledger.add(each)
    return writes


def send(ledger: Ledger) -> pipeline_pb2.CommandBatch | None:
    batch = ledger.next_batch(SESSION, 5, NOW)
    return None if batch is None else batch.message


def sent_serials(ledger: Ledger) -> list[int] | None:
    batch = send(ledger)
    return None if batch is None else [command.serial for command in batch.commands]


def done(*serials: int) -> pipeline_pb2.BatchReply:
    return pipeline_pb2.BatchReply(serials=serials, revisions=[serial + 1 for serial in serials])


def refused(
    code: int, *serials: int, outcome: int = common_pb2.OUTCOME_NOT_APPLIED
) -> pipeline_pb2.BatchReply:
    error = common_pb2.Error(code=code, outcome=outcome, message="no")
    return pipeline_pb2.BatchReply(
        answers=[pipeline_pb2.Answer(serial=each, error=error) for each in serials]
    )


def no_leader(timeout_s: float) -> NoLeaderError:
    return NoLeaderError("no leader")


async def test_a_batch_is_what_the_wire_says_it_is() -> None:
    ledger = Ledger()
    ledger.add(write(Put("k", b"1")))
    ledger.add(write(Delete("k", range_end="z", prev_kv=True), deadline=NOW + 1))
    assert send(ledger) == pipeline_pb2.CommandBatch(
        cluster_id=5,
        session=SESSION,
        floor=1,
        timeout_ms=4_500,
        commands=[
            pipeline_pb2.Command(serial=1, put=txn_pb2.PutCommand(key=b"k", value=b"1")),
            pipeline_pb2.Command(
                serial=2, delete=txn_pb2.DeleteCommand(key=b"k", range_end=b"z", prev_kv=True)
            ),
        ],
    )


async def test_two_batches_fly_at_once_and_the_rest_waits_until_it_fills_one() -> None:
    ledger = Ledger()
    sizes = []
    for count in (1, 1, 1, 511):
        add(ledger, count)
        serials = sent_serials(ledger)
        sizes.append(serials and len(serials))
    assert sizes == [1, 1, None, 512]
    add(ledger, 3)
    assert sent_serials(ledger) is None
    # The full batch is still in flight: one of the two small ones must land first, and the other.
    ledger.accept(done(1))
    assert sent_serials(ledger) is None
    ledger.accept(done(2))
    assert sent_serials(ledger) == [515, 516, 517]


async def test_a_batch_holds_at_most_512_commands_and_1_mib_unless_it_holds_one() -> None:
    ledger = Ledger()
    add(ledger, 513)
    assert [len(sent_serials(ledger) or []) for _ in range(2)] == [512, 1]

    ledger = Ledger()
    add(ledger, 1, bytes(2 << 20))
    add(ledger, 5, bytes(300 << 10))
    batches = []
    while (batch := send(ledger)) is not None:
        batches.append(batch)
        ledger.accept(done(*(command.serial for command in batch.commands)))
    assert [len(batch.commands) for batch in batches] == [1, 3, 2]
    assert all(batch.ByteSize() <= 1 << 20 for batch in batches[1:])


async def test_the_estimate_of_a_batch_is_never_below_its_size_on_the_wire() -> None:
    ledger = Ledger()
    ledger._serial = (1 << 63) - 600
    add(ledger, 512, bytes(2_000))
    batch = send(ledger)
    assert batch is not None
    assert batch.ByteSize() <= 1 << 20


async def test_the_floor_is_the_lowest_serial_waited_for_and_moves_on() -> None:
    ledger = Ledger()
    writes = add(ledger, 3)
    send(ledger)
    floors = [ledger.floor]
    ledger.accept(done(2))
    floors.append(ledger.floor)
    ledger.accept(done(1))
    floors.append(ledger.floor)
    ledger.give_up(writes[2])
    floors.append(ledger.floor)
    assert floors == [1, 1, 3, 4]


async def test_no_serial_is_sent_beyond_the_window_above_the_floor() -> None:
    ledger = Ledger()
    add(ledger, 5_000)
    sent: list[int] = []
    while serials := sent_serials(ledger):
        sent += serials
        ledger.accept(done(*(serial for serial in serials if serial != 1)))
    assert sent == list(range(1, 4_097))
    ledger.accept(done(1))
    assert sent_serials(ledger) == list(range(4_097, 4_609))


@pytest.mark.case(79)
async def test_what_is_sent_again_goes_first_even_when_the_window_is_full() -> None:
    ledger = Ledger()
    add(ledger, 5_000)
    first = sent_serials(ledger) or []
    ledger.accept(done(*first[1:]))
    while serials := sent_serials(ledger):
        ledger.accept(done(*serials))
    assert ledger.accept(refused(common_pb2.ERROR_CODE_NO_LEADER, 1)) is not None
    assert sent_serials(ledger) == [1]


async def test_what_can_not_wait_goes_before_what_waits_and_behind_what_is_sent_again() -> None:
    ledger = Ledger()
    add(ledger, 5_000)
    first = sent_serials(ledger) or []
    ledger.accept(done(*first[1:]))
    while serials := sent_serials(ledger):
        ledger.accept(done(*serials))
    # The window is full, and only the first write opens it again.
    urgent = write(Put("urgent", b""))
    ledger.accept(refused(common_pb2.ERROR_CODE_WINDOW, 1))
    assert ledger.next_deadline() == DEADLINE
    ledger.batches_in_flight = 8
    assert sent_serials(ledger) is None
    ledger.batches_in_flight = 0
    ledger.add_first(urgent)
    assert sent_serials(ledger) == [1]
    assert sent_serials(ledger) is None
    ledger.accept(done(1))
    batch = send(ledger)
    assert batch is not None
    assert batch.commands[0].put.key == b"urgent"
    assert [command.serial for command in batch.commands] == list(range(4_097, 4_609))
    assert batch.commands[1].put.key == b"k"


async def test_a_write_given_up_is_named_until_the_floor_has_passed_it() -> None:
    ledger = Ledger()
    writes = add(ledger, 3)
    send(ledger)
    ledger.give_up(writes[1])
    add(ledger, 1)
    second = send(ledger)
    ledger.accept(done(1, 3))
    add(ledger, 1)
    third = send(ledger)
    assert second is not None
    assert third is not None
    assert [(batch.floor, list(batch.given_up)) for batch in (second, third)] == [(1, [2]), (4, [])]


async def test_an_answer_after_the_caller_has_gone_and_a_second_answer_change_nothing() -> None:
    ledger = Ledger()
    gone, kept = add(ledger, 2)
    send(ledger)
    gone.future.cancel()
    assert ledger.accept(done(1)) is None
    ledger.give_up(gone)
    ledger.accept(done(2))
    ledger.accept(refused(common_pb2.ERROR_CODE_INVALID, 1, 2))
    assert kept.future.result() == PutResult(3)
    assert (ledger.batches_in_flight, ledger.floor, ledger.has_work) == (0, 3, False)


async def test_a_delete_that_has_nothing_to_say_deleted_nothing() -> None:
    ledger = Ledger()
    delete = write(Delete("k"))
    ledger.add(delete)
    send(ledger)
    ledger.accept(done(1))
    assert delete.future.result() == DeleteResult(2, 0)


async def test_a_broken_stream_sends_all_unanswered_again_in_the_order_of_their_serials() -> None:
    ledger = Ledger()
    add(ledger, 2)
    send(ledger)
    add(ledger, 2)
    send(ledger)
    ledger.accept(done(2))
    add(ledger, 1)
    ledger.stream_broken()
    assert sent_serials(ledger) == [1, 3, 4, 5]
    assert ledger.batches_in_flight == 1


@pytest.mark.case(80)
async def test_a_new_session_numbers_anew_what_was_refused_and_ends_what_was_lost() -> None:
    ledger = Ledger()
    lost, refused_write = add(ledger, 2)
    send(ledger)
    advice = ledger.accept(refused(common_pb2.ERROR_CODE_SESSION_EXPIRED, 2))
    assert advice is not None
    assert advice[0] is Advice.RENEW
    ledger.stream_broken()
    ledger.session_lost(SessionExpiredError("its session has ended"))
    with pytest.raises(IndefiniteError, match="its session has ended"):
        lost.future.result()
    assert sent_serials(ledger) == [3]
    ledger.accept(done(3))
    assert refused_write.future.result() == PutResult(4)


@pytest.mark.case(79)
async def test_a_write_refused_by_a_full_session_is_sent_again_without_leaving_the_node() -> None:
    ledger = Ledger()
    add(ledger, 2)
    send(ledger)
    assert ledger.accept(refused(common_pb2.ERROR_CODE_WINDOW, 2)) is None
    ledger.accept(done(1))
    batch = send(ledger)
    assert batch is not None
    assert (batch.floor, [command.serial for command in batch.commands]) == (2, [2])


@pytest.mark.case(81)
async def test_a_refusal_without_a_promise_counts_as_a_lost_copy() -> None:
    ledger = Ledger()
    (unsure,) = add(ledger, 1)
    send(ledger)
    unspecified = refused(common_pb2.ERROR_CODE_RESOURCE_EXHAUSTED, 1, outcome=common_pb2.OUTCOME_UNSPECIFIED)
    advice = ledger.accept(unspecified)
    assert advice is not None
    assert advice[0] is Advice.MOVE
    ledger.expire(DEADLINE, no_leader)
    with pytest.raises(IndefiniteError):
        unsure.future.result()


async def test_deadlines_end_each_write_by_what_is_known_of_it() -> None:
    ledger = Ledger()
    in_flight, refused_write = add(ledger, 2)
    send(ledger)
    ledger.accept(refused(common_pb2.ERROR_CODE_NO_LEADER, 2))
    (unsent,) = add(ledger, 1)
    patient = write(deadline=DEADLINE + 1)
    ledger.add(patient)
    ledger.expire(DEADLINE, no_leader)
    assert [type(each.future.exception()) for each in (in_flight, refused_write, unsent)] == [
        IndefiniteError,
        NoLeaderError,
        NoLeaderError,
    ]
    assert not patient.future.done()
    assert ledger.next_deadline() == DEADLINE + 1
    assert sent_serials(ledger) == [3]


@pytest.mark.case(81)
async def test_a_refused_write_is_not_sent_again_when_its_answer_could_miss_the_deadline() -> None:
    ledger = Ledger()
    refused_write, lost = add(ledger, 2)
    send(ledger)
    ledger.accept(refused(common_pb2.ERROR_CODE_NO_LEADER, 1))
    ledger.stream_broken()
    batch = ledger.next_batch(SESSION, 5, DEADLINE - 0.04)
    assert batch is not None
    assert [command.serial for command in batch.message.commands] == [2]
    with pytest.raises(NoLeaderError, match="every attempt within 5 s was refused, the last one with: no"):
        refused_write.future.result()
    assert not lost.future.done()


async def test_a_write_that_waited_behind_others_says_so() -> None:
    ledger = Ledger()
    for _ in range(2):
        ledger.add(write(deadline=DEADLINE + 1))
        send(ledger)
    (unsent,) = add(ledger, 1)
    ledger.expire(DEADLINE, no_leader)
    with pytest.raises(DeadlineError, match="waited 5 s behind 2 others and was not sent"):
        unsent.future.result()


async def test_the_end_of_all_tells_sent_from_unsent() -> None:
    ledger = Ledger()
    (sent,) = add(ledger, 1)
    send(ledger)
    (unsent,) = add(ledger, 1)
    ledger.end_all(ClosedError("closed"))
    assert [type(each.future.exception()) for each in (sent, unsent)] == [IndefiniteError, ClosedError]
    assert (ledger.has_work, ledger.batches_in_flight) == (False, 0)
