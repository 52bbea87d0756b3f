"""How all services hand something to the log and take its result."""

from __future__ import annotations

from typing import TypeVar

from raftstate.errors import InvariantError
from raftstate.machine.types import BatchResult, Cancelled, Closed, Item, Refused, Registered
from raftstate.node.service import NodeService
from raftstate.rpc.status import RefusedError

Result = TypeVar("Result", BatchResult, Registered, Cancelled, Closed)


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
        raise RefusedError(result.fault)
    if not isinstance(result, expected):
        raise InvariantError(
            f"{type(item).__name__} was answered with {type(result).__name__}, expected {expected.__name__}"
        )
    return index, revision, result
