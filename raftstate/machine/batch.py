"""Runs the commands of one batch, each at most once in its session.

The rule, in the order of the log: what lies below the floor is stale; what has an answer gets that answer;
what lies beyond the window, or above the floor of a session whose answers are over their size, is not run and
not stored; all else runs, and its answer is stored, a refusal too. Without a session nothing is stored.

In either case nothing more is run once the pairs that were read for a batch, or are repeated in its
answers, are over their size or number. The first command is never held back by that, so that a client can
go on with one command at a time; and what has an answer always gets it in full.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from raftstate.errors import InvariantError
from raftstate.machine.budget import answer_bytes, answer_pairs, names
from raftstate.machine.keyspace import Keyspace
from raftstate.machine.layout import StoredAnswers
from raftstate.machine.sessions import Session, without_pairs
from raftstate.machine.step import Step
from raftstate.machine.txn import run_txn
from raftstate.machine.types import (
    BATCH_ANSWERS_BYTES_MAX,
    BATCH_PAIRS_MAX,
    SESSION_BYTES_MAX,
    SESSION_WINDOW,
    Answer,
    BatchResult,
    Code,
    Fault,
    LeaseDone,
)
from raftstate.pb.v1.pipeline_pb2 import Command, CommandBatch, LeaseGrantCommand
from raftstate.pb.v1.txn_pb2 import DeleteCommand

CANCELLED = Fault(
    Code.CANCELLED, "the client gave this serial up before it was run; it never will be", "serial"
)
_SERIAL_END = 1 << 64


class Place(msgspec.Struct, frozen=True):
    """Where a batch stands in the log, and when.

    `item`: the number of the batch in its entry.
    """

    cluster_id: int
    index: int
    item: int
    lease_clock_ms: int


def run_batch(
    keyspace: Keyspace,
    place: Place,
    batch: CommandBatch,
    faults: Mapping[int, Fault],
    session: Session | None,
) -> tuple[BatchResult, StoredAnswers]:
    """Run the commands of a batch in their order.

    Args:
        keyspace: what they read and write.
        place: where the batch stands.
        batch: as parsed and checked.
        faults: what the checks found, by position.
        session: with the batch's floor and given-up serials applied. Its results are extended here.

    Returns:
        The result of the batch, and the answers that are new in the session.
    """
    if session is None:
        results: dict[int, int | Answer] = {}
        floor, ceiling, room_bytes = 0, _SERIAL_END, BATCH_ANSWERS_BYTES_MAX
    else:
        results, floor, ceiling = session.results, session.floor, session.floor + SESSION_WINDOW
        room_bytes = SESSION_BYTES_MAX - session.stored_bytes
    # What ran now (and is stored), and what did not.
    serials: list[int] = []
    revisions: list[int] = []
    answers: list[Answer] = []
    forgotten: dict[int, Answer] = {}
    repeated = BatchResult([], [], [])
    repeated_bytes = repeated_pairs = 0
    has_many_pairs = False
    budget = keyspace.budget
    budget.begin_batch()

    for position, command in enumerate(batch.commands):
        serial = command.serial
        if serial in results or serial < floor:
            own_bytes, own_pairs = _repeat(repeated, serial, results.get(serial), keyspace.revision, floor)
            repeated_bytes += own_bytes
            repeated_pairs += own_pairs
            has_many_pairs = budget.has_many_pairs(repeated_pairs)
            continue
        run_bytes = budget.answer_bytes
        is_full = has_many_pairs or repeated_bytes + run_bytes > BATCH_ANSWERS_BYTES_MAX
        if is_full or serial >= ceiling or (run_bytes > room_bytes and serial > floor):
            if is_full or session is None:
                fault = _full_fault(session, has_many_pairs)
            else:
                fault = _window_fault(serial, session)
            repeated.answers.append(Answer(serial, keyspace.revision, fault))
            continue
        if position in faults:
            answer = Answer(serial, keyspace.revision, faults[position])
        elif command.HasField("put"):
            put = command.put
            previous = keyspace.put(put.key, put.value, put.prev_kv, put.lease)
            if previous is None:
                revision = results[serial] = keyspace.revision
                serials.append(serial)
                revisions.append(revision)
                continue
            if isinstance(previous, Fault):
                answer = Answer(serial, keyspace.revision, previous)
            else:
                answer = Answer(serial, keyspace.revision, prev_kvs=[previous])
        elif command.HasField("erase"):
            answer = _erase(keyspace, serial, command.erase.key)
            forgotten |= _forgotten(command.erase.key, answers)
        else:
            answer = _run(keyspace, place, command)
        has_many_pairs = budget.has_many_pairs(repeated_pairs)
        results[serial] = answer
        answers.append(answer)

    results |= forgotten
    stored = StoredAnswers(serials, revisions, [forgotten.get(each.serial, each) for each in answers])
    result = BatchResult(
        serials + repeated.serials, revisions + repeated.revisions, answers + repeated.answers
    )
    return result, stored


def give_up(session: Session, serials: Iterable[int], revision: int) -> list[Answer]:
    """Make sure that serials which were not run never will be; those below the floor are stale as it is.

    Returns the answers that this added to the session.
    """
    added = []
    for serial in serials:
        if serial >= session.floor and serial not in session.results:
            answer = session.results[serial] = Answer(serial, revision, CANCELLED)
            added.append(answer)
    return added


def window_refusal(session: Session, serials: Iterable[int]) -> Fault | None:
    """Return the refusal of serials to give up, when one lies beyond the window: it could not be stored."""
    highest = max(serials, default=0)
    return _window_fault(highest, session) if highest >= session.floor + SESSION_WINDOW else None


def stale_fault(serial: int, floor: int) -> Fault:
    """Return the refusal of a serial whose answer the client has said it does not wait for."""
    return Fault(
        Code.STALE, f"serial {serial} lies below the session's floor of {floor}; not run now", "serial"
    )


def _full_fault(session: Session | None, has_many_pairs: bool) -> Fault:
    code = Code.RESOURCE_EXHAUSTED if session is None else Code.WINDOW
    if has_many_pairs:
        return Fault(
            code,
            f"the pairs read or repeated for this batch are more than {BATCH_PAIRS_MAX // 2}; not run; send "
            "it first in a batch",
        )
    return Fault(
        code,
        f"the previous pairs read or repeated for this batch have more than {BATCH_ANSWERS_BYTES_MAX} bytes; "
        "not run; send it first in a batch",
        "prev_kv",
    )


def _window_fault(serial: int, session: Session) -> Fault:
    if serial >= session.floor + SESSION_WINDOW:
        message = (
            f"serial {serial} lies {SESSION_WINDOW} or more above the session's floor of {session.floor}"
        )
    else:
        message = f"the session's stored answers have more than {SESSION_BYTES_MAX} bytes"
    return Fault(
        Code.WINDOW, f"{message}; not run; await the answer to serial {session.floor} first", "serial"
    )


def _repeat(
    repeated: BatchResult, serial: int, stored: int | Answer | None, revision: int, floor: int
) -> tuple[int, int]:
    """Add what is known of a serial to the answers; return (size, number) of its pairs."""
    if isinstance(stored, int):
        repeated.serials.append(serial)
        repeated.revisions.append(stored)
        return 0, 0
    answer = stored or Answer(serial, revision, stale_fault(serial, floor))
    repeated.answers.append(answer)
    return answer_bytes(answer), len(answer_pairs(answer))


def _run(keyspace: Keyspace, place: Place, command: Command) -> Answer:
    """Run any command but a put."""
    operation = command.WhichOneof("op")
    leases = keyspace.leases
    done: Answer | Fault
    match operation:
        case "delete":
            done = _delete(keyspace, command.serial, command.delete)
        case "txn":
            txn = run_txn(keyspace, command.txn)
            done = txn if isinstance(txn, Fault) else Answer(command.serial, keyspace.revision, txn=txn)
        case "compact":
            done = compact(keyspace, command.compact.revision) or Answer(command.serial, keyspace.revision)
        case "lease_grant":
            done = _grant(keyspace, place, command.serial, command.lease_grant)
        case "lease_revoke":
            done = _revoke(keyspace, command.serial, command.lease_revoke.id)
        case "lease_renew":
            lease = leases.find(command.lease_renew.id)
            if isinstance(lease, Fault):
                done = lease
            else:
                leases.renew(lease, place.lease_clock_ms)
                done = Answer(command.serial, keyspace.revision, lease=LeaseDone(lease.id, lease.ttl_ms))
        case _:
            raise InvariantError(f"the operation {operation} passed its check, and nothing runs it")
    return Answer(command.serial, keyspace.revision, done) if isinstance(done, Fault) else done


def _delete(keyspace: Keyspace, serial: int, command: DeleteCommand) -> Answer | Fault:
    step = Step(keyspace, looks_at_tables=bool(command.range_end))
    done = step.delete(command.key, command.range_end, command.prev_kv)
    if isinstance(done, Fault):
        return done
    deleted, pairs = done
    return Answer(serial, keyspace.revision, deleted=deleted, prev_kvs=pairs)


def _erase(keyspace: Keyspace, serial: int, key: bytes) -> Answer:
    was_there = keyspace.erase(key)
    return Answer(serial, keyspace.revision, deleted=int(was_there))


def _forgotten(key: bytes, answers: Iterable[Answer]) -> dict[int, Answer]:
    """Return, by serial, what is to be stored for those answers of a batch that hold a key erased after them.

    They are sent as they are, this once.
    """
    return {answer.serial: without_pairs(answer) for answer in answers if names(answer, (key,))}


def compact(keyspace: Keyspace, revision: int) -> Fault | None:
    """Forget the history before a revision, or return why that can't be done."""
    lowest = keyspace.compacted_revision + 1
    if lowest <= revision <= keyspace.revision:
        keyspace.compacted_revision = revision
        return None
    why = "lies in the future" if revision > keyspace.revision else "is compacted already"
    valid = f"{lowest} to {keyspace.revision}" if lowest <= keyspace.revision else "none until the next write"
    return Fault(
        Code.OUT_OF_RANGE, f"revision {revision} {why}; nothing compacted; valid are {valid}", "revision"
    )


def _grant(keyspace: Keyspace, place: Place, serial: int, command: LeaseGrantCommand) -> Answer | Fault:
    id = command.id or keyspace.leases.choose_id(place.cluster_id, place.index, place.item, serial)
    lease = keyspace.leases.grant(id, place.lease_clock_ms, command.ttl_ms)
    if isinstance(lease, Fault):
        return lease
    return Answer(serial, keyspace.revision, lease=LeaseDone(lease.id, lease.ttl_ms))


def _revoke(keyspace: Keyspace, serial: int, id: int) -> Answer | Fault:
    lease = keyspace.leases.find(id)
    if isinstance(lease, Fault):
        return lease
    fault = keyspace.budget.meet_lease(lease.key_count)
    if fault is not None:
        return fault
    step = Step(keyspace, looks_at_tables=False)
    deleted = step.revoke(lease)
    return Answer(serial, keyspace.revision, deleted=deleted)
