"""What the applied entries have made of the state, for those who only look at it."""

from __future__ import annotations

from typing import NamedTuple

from raftstate.core.types import ConfState
from raftstate.machine.machine import Machine
from raftstate.machine.types import Member


class AppliedState(NamedTuple):
    """A machine between two transactions.

    The machine itself is between two states while entries are applied on a thread, and may fall back to where
    it was before: what a client or a peer is told must be committed, and of one moment.
    """

    revision: int
    compacted_revision: int
    digest: int
    machine_version: int
    lease_clock_ms: int
    sessions: int
    leases: int
    conf_state: ConfState
    members: tuple[Member, ...]
    last_member_id: int
    last_erase_index: int

    @classmethod
    def of(cls, machine: Machine) -> AppliedState:
        """Return the state of a machine that nobody is changing."""
        return cls(
            machine.revision,
            machine.compacted_revision,
            machine.digest,
            machine.machine_version,
            machine.lease_clock_ms,
            machine.session_count,
            machine.lease_count,
            machine.conf_state(),
            tuple(machine.members),
            machine.last_member_id,
            machine.last_erase_index,
        )

    def member(self, id: int) -> Member | None:
        """Return the record of a member; None: there is no such member."""
        return next((member for member in self.members if member.id == id), None)

    @property
    def is_blank(self) -> bool:
        """Whether this is the state of a node that joins, and was sent none yet: every cluster has voters."""
        return not self.conf_state.voters

    @property
    def needs_lease_clock(self) -> bool:
        """Whether anything lives by the lease clock."""
        return bool(self.sessions or self.leases)
