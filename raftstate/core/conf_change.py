"""How a configuration change stands in an entry.

May live here: the encoding, no more; what a change means is `raftstate.core.membership`'s business. An
entry without data is the empty `ConfChangeV2`, which leaves a joint configuration: it weighs nothing, so
that no size limit can hold a cluster in one.
"""

from __future__ import annotations

import msgspec

from raftstate.core.types import ConfChange, ConfChangeV2, Entry, EntryType
from raftstate.errors import InvariantError

_decode_v1 = msgspec.msgpack.Decoder(ConfChange).decode
_decode_v2 = msgspec.msgpack.Decoder(ConfChangeV2).decode
_encode = msgspec.msgpack.Encoder().encode

LEAVE_JOINT = Entry(index=0, term=0, type=EntryType.CONF_CHANGE_V2)
"""What a leader proposes to leave a joint configuration by itself."""


def encode_conf_change(change: ConfChange | ConfChangeV2) -> Entry:
    """Return an entry, still without index and term, that carries `change`."""
    entry_type = EntryType.CONF_CHANGE if isinstance(change, ConfChange) else EntryType.CONF_CHANGE_V2
    return Entry(index=0, term=0, type=entry_type, data=_encode(change))


def decode_conf_change(entry: Entry) -> ConfChange | ConfChangeV2:
    """Return the change that `entry` carries.

    Raises:
        msgspec.DecodeError: its data is no such change.
        InvariantError: it is of another type.
    """
    if entry.type is EntryType.CONF_CHANGE:
        return _decode_v1(entry.data)
    if entry.type is EntryType.CONF_CHANGE_V2:
        return _decode_v2(entry.data) if entry.data else ConfChangeV2()
    raise InvariantError(f"entry {entry.index} is of type {entry.type.name}, not a configuration change")
