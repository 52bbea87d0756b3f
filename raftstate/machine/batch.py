"""Runs the commands of one batch, each at most once in its session.

The rule, in the order of the log: what lies below the floor is stale; what has an answer gets that answer;
what lies beyond the window, or above the floor of a session whose answers are over their size, is not run and
not stored; all else runs, and its answer is stored, a refusal too. Without a session nothing is stored.

In either case nothing more is run once the previous pairs that were read for a batch, or are repeated in
its answers, are over their size. The first command is never held back by that, so that a client can go on
with one command at a time; and what has an answer always gets it in full.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from raftstate.errors import InvariantError
from raftstate.machine.keyspace import Keyspace, pair_bytes
from raftstate.machine.layout import StoredAnswers
from raftstate.machine.sessions import Session
from raftstate.machine.types import (
    BATCH_ANSWERS_BYTES_MAX,
    SESSION_BYTES_MAX,
    SESSION_WINDOW,
    Answer,
    BatchResult,
    Code,
    Fault,
)
from raftstate.pb.v1.pipeline_pb2 import CommandBatch
from raftstate.pb.v1.txn_pb2 import DeleteCommand

CANCELLED = Fault(
    Code.CANCELLED, "the client gave this serial up before it was run; it never will be", "serial"
)
_SERIAL_END = 1 << 64


def run_batch(
    keyspace: Keyspace, batch: CommandBatch, faults: Mapping[int, Fault], session: Session | None
) -> tuple[BatchResult, StoredAnswers]:
    """Run the commands of a batch in their order.

    Args:
        keyspace: what they read and write.
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
    repeated = BatchResult([], [], [])
    repeated_bytes = 0
    keyspace.begin_batch()

    for position, command in enumerate(batch.commands):
        serial = command.serial
        if serial in results or serial < floor:
            repeated_bytes += _repeat(repeated, serial, results.get(serial), keyspace.revision, floor)
            continue
        is_full = repeated_bytes + keyspace.pair_bytes > BATCH_ANSWERS_BYTES_MAX
        if is_full or serial >= ceiling or (keyspace.pair_bytes > room_bytes and serial > floor):
            fault = _full_fault(session) if is_full or session is None else _window_fault(serial, session)
            repeated.answers.append(Answer(serial, keyspace.revision, fault))
            continue
        if position in faults:
            answer = Answer(serial, keyspace.revision, faults[position])
        elif command.HasField("put"):
            put = command.put
            previous = keyspace.put(put.key, put.value, put.prev_kv)
            if previous is None:
                results[serial] = keyspace.revision
                serials.append(serial)
                revisions.append(keyspace.revision)
                continue
            answer = Answer(serial, keyspace.revision, prev_kvs=[previous])
        elif command.HasField("delete"):
            answer = _delete(keyspace, serial, command.delete)
        else:
            raise InvariantError(
                f"the operation {command.WhichOneof('op')} passed its check, and nothing runs it"
            )
        results[serial] = answer
        answers.append(answer)

    stored = StoredAnswers(serials, revisions, answers)
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


def _full_fault(session: Session | None) -> Fault:
    return Fault(
        Code.RESOURCE_EXHAUSTED if session is None else Code.WINDOW,
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
) -> int:
    """Add what is known of a serial to the answers; return the size of its previous pairs."""
    if isinstance(stored, int):
        repeated.serials.append(serial)
        repeated.revisions.append(stored)
        return 0
    answer = stored or Answer(serial, revision, stale_fault(serial, floor))
    repeated.answers.append(answer)
    return sum(map(pair_bytes, answer.prev_kvs))


def _delete(keyspace: Keyspace, serial: int, command: DeleteCommand) -> Answer:
    done = keyspace.delete(command.key, command.range_end, command.prev_kv)
    if isinstance(done, Fault):
        return Answer(serial, keyspace.revision, done)
    deleted, pairs = done
    return Answer(serial, keyspace.revision, deleted=deleted, prev_kvs=pairs)
