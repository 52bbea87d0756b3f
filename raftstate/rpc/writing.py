"""How all services hand something to the log and take its result."""

from __future__ import annotations

from typing import TypeVar

from raftstate.errors import InvalidArgumentError, InvariantError
from raftstate.machine.command import check_batch, parse_batch
from raftstate.machine.types import (
    Answer,
    Batch,
    BatchResult,
    Cancelled,
    Closed,
    Fault,
    Item,
    LeaseDone,
    Refused,
    Registered,
    TxnDone,
)
from raftstate.node.service import NodeService
from raftstate.pb.v1 import kv_pb2, pipeline_pb2
from raftstate.rpc.status import RefusedError, refusal_of_fault
from raftstate.rpc.validation import check_cluster

SERIAL_WITHOUT_SESSION = 1

Result = TypeVar("Result", BatchResult, Registered, Cancelled, Closed)
Done = TypeVar("Done", TxnDone, LeaseDone)


async def apply_item(
    service: NodeService, item: Item, expected: type[Result], *, commands: int = 1, timeout_s: float
) -> tuple[int, int, Result]:
    """Have an item applied.

    Args:
        service: the node.
        item: checked as far as it can be without the state.
        expected: what applying such an item gives.
        commands: how many commands a batch holds; 1 for other items.
        timeout_s: how long the node may take, in seconds.

    Returns:
        The index of the item's log entry, the store's revision after it, and the result.

    Raises:
        RefusedError: the machine did not run it.
        RaftstateError: as `NodeService.write` says.
    """
    index, revision, result = await service.write(item, commands=commands, timeout_s=timeout_s)
    if isinstance(result, Refused):
        raise RefusedError(refusal_of_fault(result.fault))
    if not isinstance(result, expected):
        raise InvariantError(
            f"{type(item).__name__} was answered with {type(result).__name__}, expected {expected.__name__}"
        )
    return index, revision, result


async def apply_command(
    service: NodeService, command: pipeline_pb2.Command, context: kv_pb2.WriteContext, timeout_s: float
) -> tuple[int, Answer]:
    """Have one command applied, as a batch of its own, which goes the way of all batches.

    Args:
        service: the node.
        command: without a serial; not checked yet.
        context: of the request: its cluster, session and serial, if any.
        timeout_s: how long the node may take, in seconds.

    Returns:
        The index of the command's log entry, and the answer, which holds no fault.

    Raises:
        RefusedError: the command's check, or the machine, refused it.
        WrongClusterError, InvalidArgumentError: so is what the context asks for.
        RaftstateError: as `NodeService.write` says.
    """
    raw = _batch_of_one(service, command, context).SerializeToString()
    # As every node will when it applies it: what is too large, too, is refused before it is in the log.
    batch = parse_batch(raw)
    if isinstance(batch, Fault):
        raise RefusedError(refusal_of_fault(batch))
    check = check_batch(batch, service.machine_version)
    fault = check.fault or check.faults.get(0)
    if fault is not None:
        raise RefusedError(refusal_of_fault(fault))
    index, _, result = await apply_item(service, Batch(raw), BatchResult, timeout_s=timeout_s)
    answer = _only_answer(result)
    if answer.fault is not None:
        raise RefusedError(refusal_of_fault(answer.fault))
    return index, answer


def outcome(done: Done | None) -> Done:
    """Return what an answer says of a command of its kind. Raises `InvariantError` when it says nothing."""
    if done is None:
        raise InvariantError("an answer without a fault does not say what came of its command")
    return done


def _batch_of_one(
    service: NodeService, command: pipeline_pb2.Command, context: kv_pb2.WriteContext
) -> pipeline_pb2.CommandBatch:
    check_cluster(context.cluster_id, service.cluster_id)
    batch = pipeline_pb2.CommandBatch(cluster_id=context.cluster_id, floor=context.floor, commands=[command])
    in_session = context.HasField("session")
    if in_session:
        batch.session.CopyFrom(context.session)
    elif context.serial or context.floor:
        raise InvalidArgumentError(
            "context.serial and context.floor count within a session, and there is none: got serial"
            f" {context.serial}, floor {context.floor}; register a session, or leave them out",
            field="context.session",
        )
    batch.commands[0].serial = context.serial if in_session else SERIAL_WITHOUT_SESSION
    return batch


def _only_answer(result: BatchResult) -> Answer:
    """Return the answer to a batch of one command."""
    count = len(result.serials) + len(result.answers)
    if count != 1:
        raise InvariantError(f"a batch of 1 command got {count} answers")
    if result.serials:
        return Answer(result.serials[0], result.revisions[0])
    return result.answers[0]
