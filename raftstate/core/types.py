"""The values that the core takes and gives: log entries, messages, hard state, membership.

They are msgspec Structs, and a `Message` is exactly what travels between peers: `array_like` keeps the
encoding small, and the order of the fields is therefore part of the peer protocol. New fields are added at
the end, with a default.

What may live here: data without behaviour. Names follow the Raft paper and etcd's raft, where one exists.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

NONE = 0
"""The id of no node."""

LOCAL_APPEND_THREAD = (1 << 64) - 1
"""The target of STORAGE_APPEND: whoever writes this node's log."""

LOCAL_APPLY_THREAD = (1 << 64) - 2
"""The target of STORAGE_APPLY: whoever applies this node's committed entries."""


class EntryType(IntEnum):
    """What an entry's data is."""

    NORMAL = 0
    CONF_CHANGE = 1
    CONF_CHANGE_V2 = 2


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One record of the replicated log."""

    index: int
    term: int
    type: EntryType = EntryType.NORMAL
    data: bytes = b""


class HardState(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a node must not forget across a restart. All zero: nothing was ever saved."""

    term: int = 0
    vote: int = NONE
    commit: int = 0


class ConfState(msgspec.Struct, array_like=True, frozen=True):
    """A configuration as it is stored: ids in ascending order. `voters_outgoing` non-empty: a joint one."""

    voters: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()
    voters_outgoing: tuple[int, ...] = ()
    learners_next: tuple[int, ...] = ()
    auto_leave: bool = False


class SnapshotMetadata(msgspec.Struct, array_like=True, frozen=True):
    """The last entry that a snapshot covers, and the configuration as of it."""

    conf_state: ConfState = ConfState()
    index: int = 0
    term: int = 0


class Snapshot(msgspec.Struct, array_like=True, frozen=True):
    """A state at one index. `data` is the application's, perhaps a mere reference to where the bytes are."""

    data: bytes = b""
    metadata: SnapshotMetadata = SnapshotMetadata()


class MessageType(IntEnum):
    """Kinds of messages, by etcd's names and numbers."""

    HUP = 0
    BEAT = 1
    PROP = 2
    APP = 3
    APP_RESP = 4
    VOTE = 5
    VOTE_RESP = 6
    SNAP = 7
    HEARTBEAT = 8
    HEARTBEAT_RESP = 9
    UNREACHABLE = 10
    SNAP_STATUS = 11
    CHECK_QUORUM = 12
    TRANSFER_LEADER = 13
    TIMEOUT_NOW = 14
    READ_INDEX = 15
    READ_INDEX_RESP = 16
    PRE_VOTE = 17
    PRE_VOTE_RESP = 18
    STORAGE_APPEND = 19
    STORAGE_APPEND_RESP = 20
    STORAGE_APPLY = 21
    STORAGE_APPLY_RESP = 22
    FORGET_LEADER = 23


class Message(msgspec.Struct, array_like=True):
    """What one node, or one node's storage, says to another. Which fields mean something depends on `type`.

    `term`, `vote` and `commit` carry the hard state in STORAGE_APPEND; `responses` are what its receiver
    passes on, to their `to`, once the write is durable (STORAGE_APPEND) or the entries are applied
    (STORAGE_APPLY).
    """

    type: MessageType
    to: int = NONE
    from_: int = NONE
    term: int = 0
    log_term: int = 0
    index: int = 0
    entries: list[Entry] = []
    commit: int = 0
    vote: int = NONE
    snapshot: Snapshot | None = None
    reject: bool = False
    reject_hint: int = 0
    context: bytes = b""
    responses: list[Message] = []


class ReadState(msgspec.Struct, frozen=True):
    """An answered read-index request: reads registered under `context` may run once `index` is applied."""

    index: int
    context: bytes


class ConfChangeType(IntEnum):
    """What a single change does to one node."""

    ADD_NODE = 0
    REMOVE_NODE = 1
    UPDATE_NODE = 2
    ADD_LEARNER_NODE = 3


class ConfChangeTransition(IntEnum):
    """How a change enters and leaves a joint configuration."""

    AUTO = 0
    JOINT_IMPLICIT = 1
    JOINT_EXPLICIT = 2


class ConfChangeSingle(msgspec.Struct, array_like=True, frozen=True):
    """One step of a change."""

    type: ConfChangeType
    node_id: int


class ConfChange(msgspec.Struct, array_like=True, frozen=True):
    """The simple, one-node form (etcd's v1)."""

    type: ConfChangeType
    node_id: int
    context: bytes = b""


class ConfChangeV2(msgspec.Struct, array_like=True, frozen=True):
    """The general form. With no changes and AUTO it leaves a joint configuration."""

    transition: ConfChangeTransition = ConfChangeTransition.AUTO
    changes: tuple[ConfChangeSingle, ...] = ()
    context: bytes = b""
