"""How etcd prints what a node hands out: states, entries, messages, snapshots."""

from __future__ import annotations

import msgspec

from raftstate.core.conf_change import decode_conf_change
from raftstate.core.errors import (
    Compacted,
    Damaged,
    ProposalDropped,
    SnapshotOutOfDate,
    SnapshotTemporarilyUnavailable,
    StepLocalMessage,
    StepPeerNotFound,
    Unavailable,
)
from raftstate.core.membership import conf_change_as_v2
from raftstate.core.ready import Ready, SoftState
from raftstate.core.roles import Role
from raftstate.core.types import (
    LOCAL_APPEND_THREAD,
    LOCAL_APPLY_THREAD,
    NONE,
    ConfChangeSingle,
    ConfChangeType,
    ConfState,
    Entry,
    EntryType,
    HardState,
    Message,
    MessageType,
    ReadState,
    Snapshot,
)
from raftstate.errors import RaftstateError

_ROLE_NAMES = {
    Role.FOLLOWER: "StateFollower",
    Role.CANDIDATE: "StateCandidate",
    Role.LEADER: "StateLeader",
    Role.PRE_CANDIDATE: "StatePreCandidate",
}
_ENTRY_TYPE_NAMES = {
    EntryType.NORMAL: "EntryNormal",
    EntryType.CONF_CHANGE: "EntryConfChange",
    EntryType.CONF_CHANGE_V2: "EntryConfChangeV2",
}
_CHANGE_LETTERS = {
    ConfChangeType.ADD_NODE: "v",
    ConfChangeType.ADD_LEARNER_NODE: "l",
    ConfChangeType.REMOVE_NODE: "r",
    ConfChangeType.UPDATE_NODE: "u",
}
_TARGET_NAMES = {NONE: "None", LOCAL_APPEND_THREAD: "AppendThread", LOCAL_APPLY_THREAD: "ApplyThread"}
_ERROR_TEXTS = {
    ProposalDropped: "raft proposal dropped",
    StepLocalMessage: "raft: cannot step raft local message",
    StepPeerNotFound: "raft: cannot step as peer not found",
    Compacted: "requested index is unavailable due to compaction",
    Unavailable: "requested entry at index is unavailable",
    Damaged: "requested entry is damaged",
    SnapshotOutOfDate: "requested index is older than the existing snapshot",
    SnapshotTemporarilyUnavailable: "snapshot is temporarily unavailable",
}
REFUSALS = tuple(_ERROR_TEXTS)
"""What a node or its storage may answer instead of doing what it was told."""

MESSAGE_TYPE_NAMES = {kind: "Msg" + kind.name.title().replace("_", "") for kind in MessageType}
_ESCAPES = {0x07: "\\a", 0x08: "\\b", 0x0C: "\\f", 0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t", 0x0B: "\\v"}
_ESCAPES |= {ord("\\"): "\\\\", ord('"'): '\\"'}


def describe_refusal(error: RaftstateError) -> str:
    return _ERROR_TEXTS[type(error)]


def describe_role(role: Role) -> str:
    return _ROLE_NAMES[role]


def quote(data: bytes) -> str:
    """Quote as Go's %q does: what can be printed stands for itself."""
    quoted = []
    # Bytes that are no UTF-8 arrive as lone surrogates, each of which stands for one byte.
    for character in data.decode("utf-8", "surrogateescape"):
        code = ord(character)
        if code in _ESCAPES:
            quoted.append(_ESCAPES[code])
        elif 0xDC80 <= code <= 0xDCFF:
            quoted.append(f"\\x{code - 0xDC00:02x}")
        elif character.isprintable():
            quoted.append(character)
        elif code < 0x80:
            quoted.append(f"\\x{code:02x}")
        else:
            quoted.append(f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return '"' + "".join(quoted) + '"'


def _describe_list(values: tuple[int, ...]) -> str:
    return "[" + " ".join(map(str, values)) + "]"


def describe_hard_state(state: HardState) -> str:
    vote = f" Vote:{state.vote}" if state.vote else ""
    return f"Term:{state.term}{vote} Commit:{state.commit}"


def describe_soft_state(state: SoftState) -> str:
    return f"Lead:{state.lead} State:{describe_role(state.role)}"


def describe_conf_state(state: ConfState) -> str:
    return (
        f"Voters:{_describe_list(state.voters)} VotersOutgoing:{_describe_list(state.voters_outgoing)} "
        f"Learners:{_describe_list(state.learners)} LearnersNext:{_describe_list(state.learners_next)} "
        f"AutoLeave:{str(state.auto_leave).lower()}"
    )


def describe_snapshot(snapshot: Snapshot) -> str:
    metadata = snapshot.metadata
    return f"Index:{metadata.index} Term:{metadata.term} ConfState:{describe_conf_state(metadata.conf_state)}"


def describe_changes(changes: tuple[ConfChangeSingle, ...]) -> str:
    return " ".join(f"{_CHANGE_LETTERS[change.type]}{change.node_id}" for change in changes)


def describe_entry(entry: Entry) -> str:
    if entry.type is EntryType.NORMAL:
        data = quote(entry.data)
    else:
        try:
            data = describe_changes(conf_change_as_v2(decode_conf_change(entry)).changes)
        except msgspec.DecodeError as error:
            data = str(error)
    return f"{entry.term}/{entry.index} {_ENTRY_TYPE_NAMES[entry.type]}" + (f" {data}" if data else "")


def describe_entries(entries: list[Entry]) -> str:
    return "".join(f"{describe_entry(entry)}\n" for entry in entries)


def describe_message(message: Message, indent: str = "") -> str:
    text = (
        f"{indent}{_describe_target(message.from_)}->{_describe_target(message.to)} "
        f"{MESSAGE_TYPE_NAMES[message.type]} Term:{message.term} Log:{message.log_term}/{message.index}"
    )
    if message.reject:
        text += f" Rejected (Hint: {message.reject_hint})"
    if message.commit:
        text += f" Commit:{message.commit}"
    if message.vote:
        text += f" Vote:{message.vote}"
    if len(message.entries) == 1:
        text += f" Entries:[{describe_entry(message.entries[0])}]"
    elif message.entries:
        text += " Entries:["
        text += "".join(f"\n{indent}  {describe_entry(entry)}" for entry in message.entries)
        text += f"\n{indent}]"
    if message.snapshot is not None and message.snapshot.metadata.index:
        text += f"\n{indent}  Snapshot: {describe_snapshot(message.snapshot)}"
    if message.responses:
        text += " Responses:["
        text += "".join("\n" + describe_message(response, indent + "  ") for response in message.responses)
        text += f"\n{indent}]"
    return text


def _describe_target(node_id: int) -> str:
    return _TARGET_NAMES.get(node_id, f"{node_id:x}")


def _describe_read_state(state: ReadState) -> str:
    return "{" + f"{state.index} [{' '.join(map(str, state.context))}]" + "}"


def describe_ready(ready: Ready) -> str:
    text = ""
    if ready.soft_state is not None:
        text += describe_soft_state(ready.soft_state) + "\n"
    if ready.hard_state is not None:
        text += f"HardState {describe_hard_state(ready.hard_state)}\n"
    if ready.read_states:
        text += f"ReadStates [{' '.join(map(_describe_read_state, ready.read_states))}]\n"
    if ready.entries:
        text += "Entries:\n" + describe_entries(ready.entries)
    if ready.snapshot is not None:
        text += f"Snapshot {describe_snapshot(ready.snapshot)}\n"
    if ready.committed_entries:
        text += "CommittedEntries:\n" + describe_entries(ready.committed_entries)
    if ready.messages:
        text += "Messages:\n" + "".join(f"{describe_message(message)}\n" for message in ready.messages)
    return f"Ready MustSync={str(ready.must_sync).lower()}:\n{text}" if text else "<empty Ready>"
