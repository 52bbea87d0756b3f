"""The settings of one Raft instance.

May live here: the settings, their defaults and the check that they fit together. Nothing here changes after
`RawNode` is built.
"""

from __future__ import annotations

import random as random_module
from dataclasses import dataclass, field
from enum import IntEnum

from raftstate.core.storage import NO_LIMIT, Storage
from raftstate.core.types import LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD, NONE
from raftstate.errors import ConfigError


class ReadOnlyOption(IntEnum):
    """How a read-index request is confirmed."""

    SAFE = 0
    """By a round of heartbeats that a quorum answers."""
    LEASE_BASED = 1
    """By the leader's belief that it still leads: wrong as soon as clocks drift. Needs `check_quorum`."""


@dataclass(slots=True)
class Config:
    """What a `RawNode` is built from.

    Sizes are in bytes, times in ticks; `NO_LIMIT` turns a size limit off.
    """

    id: int
    """This node's id: not 0, and none of the two ids that stand for the local storage threads."""

    storage: Storage
    """Where the log, the hard state and the configuration are read from. The core never writes to it."""

    random: random_module.Random = field(default_factory=random_module.Random)
    """Where election timeouts are drawn from. The same seed and the same inputs give the same run."""

    election_ticks: int = 10
    """Ticks without word from a leader after which a follower stands for election; the actual timeout is
    drawn from [election_ticks, 2 * election_ticks)."""

    heartbeat_ticks: int = 1
    """Ticks between two heartbeats of a leader. Less than `election_ticks`."""

    applied: int = 0
    """The index that the application has durably applied; set on restart, so that nothing at or below it is
    handed out again."""

    async_storage_writes: bool = False
    """Whether storage work leaves as STORAGE_APPEND and STORAGE_APPLY messages, answered by their
    `responses`, instead of through `Ready` and `advance`. Messages to one storage thread must be handled in
    order, and none may be lost."""

    max_message_bytes: int = NO_LIMIT
    """Most bytes of entries in one append message; a single larger entry still travels. 0: one entry a
    message."""

    max_applying_bytes: int = 0
    """Most bytes of committed entries handed out and not yet reported applied. 0: the same as
    `max_message_bytes`."""

    max_uncommitted_bytes: int = 0
    """Most bytes of payload in the uncommitted tail of a leader's log before proposals are dropped. 0: no
    limit."""

    max_inflight_messages: int = 256
    """Most append messages on their way to one peer."""

    max_inflight_bytes: int = 0
    """Most bytes of entries on their way to one peer; not less than `max_message_bytes`. 0: no limit."""

    check_quorum: bool = False
    """Whether a leader that hears from no quorum for an election timeout steps down, and followers that
    hear from a leader ignore candidates."""

    pre_vote: bool = False
    """Whether a node asks for promises of votes before it raises its term (Raft thesis, 9.6)."""

    read_only: ReadOnlyOption = ReadOnlyOption.SAFE
    """How read-index requests are confirmed."""

    disable_proposal_forwarding: bool = False
    """Whether a follower drops proposals instead of passing them on to its leader."""

    disable_conf_change_validation: bool = False
    """Whether a leader appends configuration changes without comparing them with its present configuration.
    Only for those who serialise and check changes themselves."""

    step_down_on_removal: bool = False
    """Whether a leader that applies its own removal, or its demotion to a learner, becomes a follower."""

    def validate(self) -> None:
        """Raise `ConfigError` if a setting is wrong or two do not fit together."""
        if self.id in (NONE, LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD):
            raise ConfigError(f"id {self.id} is reserved; choose another", field="id")
        if self.heartbeat_ticks <= 0:
            raise ConfigError(
                f"heartbeat_ticks is {self.heartbeat_ticks}; it must be at least 1", field="heartbeat_ticks"
            )
        if self.election_ticks <= self.heartbeat_ticks:
            raise ConfigError(
                f"election_ticks is {self.election_ticks}; it must be greater than heartbeat_ticks "
                f"({self.heartbeat_ticks})",
                field="election_ticks",
            )
        if self.max_inflight_messages <= 0:
            raise ConfigError(
                f"max_inflight_messages is {self.max_inflight_messages}; it must be at least 1",
                field="max_inflight_messages",
            )
        if 0 < self.max_inflight_bytes < self.max_message_bytes:
            raise ConfigError(
                f"max_inflight_bytes is {self.max_inflight_bytes}; it must be 0 or at least "
                f"max_message_bytes ({self.max_message_bytes})",
                field="max_inflight_bytes",
            )
        if self.read_only is ReadOnlyOption.LEASE_BASED and not self.check_quorum:
            raise ConfigError(
                "lease-based reads need check_quorum; switch it on or use ReadOnlyOption.SAFE",
                field="read_only",
            )
