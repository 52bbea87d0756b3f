"""Which writes a leader takes while there is little room left.

Nothing is parsed as long as there is room: bytes are counted, and that is all that it costs then. Once there
is little, batches are looked into, and what takes room is refused, command by command: what stands beside it
in the same batch goes on.

May live here: how a part of a batch is refused. What takes room is said in `machine.room`, when there is
little in `node.disk`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

from msgspec.structs import replace

from raftstate.machine.room import part
from raftstate.machine.types import Answer, Batch, BatchResult, Code, Fault, Item
from raftstate.node.environment import Executed, Outcome, Reply


class Writes(IntEnum):
    """What a leader takes; more of it the lower the number."""

    ALL = 0
    FREEING = 1
    """What takes no room to speak of, or makes some: deletions, compactions, renewals and ends of leases and
    sessions, and new sessions, without which clients could do none of it."""
    NONE = 2


UNLIMITED = 1 << 62


@dataclass(frozen=True, slots=True)
class Admitted:
    """What may be proposed of an item."""

    item: Item
    commands: int = 0
    """How many the item holds, if some were taken out of it."""
    refused: list[Answer] = field(default_factory=list)
    """Answers to those that were taken out."""

    def reply_through(self, reply: Reply) -> Reply:
        """Return a reply that answers those that were taken out, too."""

        def tell(outcome: Outcome) -> None:
            if isinstance(outcome, Executed) and isinstance(outcome.result, BatchResult):
                result = outcome.result
                answers = [*result.answers, *self.refused]
                outcome = replace(outcome, result=replace(result, answers=answers))
            reply(outcome)

        return tell


class Gate:
    """Lets writes through, or refuses them. Belongs to the driver's thread."""

    def __init__(self) -> None:
        self.writes = Writes.ALL
        self.reason = ""
        """Why not all of them: a sentence for users, which says what still works, and what to do."""
        self.left_bytes = UNLIMITED
        """How many bytes of entries may be proposed before somebody must look at the room again."""
        self.look: Callable[[], object] | None = None
        """Looks, and sets all of these anew."""

    @property
    def is_open(self) -> bool:
        """Whether everything is let through; it may look at the room first."""
        if self.left_bytes <= 0 and self.look is not None:
            self.look()
        return self.writes is Writes.ALL

    def set(self, writes: Writes, reason: str, left_bytes: int) -> None:
        """Say which writes are taken from now on, and for how long that holds."""
        self.writes, self.reason, self.left_bytes = writes, reason, left_bytes

    def admit(self, item: Item) -> Admitted | Fault:
        """Decide on an item that is about to be proposed: what of it may be, or why nothing."""
        if self.writes is Writes.ALL:
            return Admitted(item)
        fault = Fault(Code.RESOURCE_EXHAUSTED, self.reason)
        if self.writes is Writes.NONE:
            return fault
        if not isinstance(item, Batch):
            return Admitted(item)
        parted = part(item.raw)
        if not parted.taking:
            return Admitted(item)
        if not parted.rest_commands:
            return fault
        return Admitted(
            Batch(parted.rest), parted.rest_commands, [Answer(serial, 0, fault) for serial in parted.taking]
        )
