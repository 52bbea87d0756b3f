"""What stands in a log entry, against an independent MessagePack implementation."""

from __future__ import annotations

import msgpack
import msgspec
from hypothesis import given
from hypothesis import strategies as st

from raftstate.machine.types import Batch, Cancel, Close, Envelope, Expire, Register, SessionId

uints = st.integers(0, (1 << 64) - 1)
session_ids = st.builds(SessionId, uints, uints)
items = st.one_of(
    st.builds(Batch, st.binary(max_size=300)),
    st.builds(Register, uints, uints, uints),
    st.builds(Cancel, session_ids, uints, uints),
    st.builds(Close, session_ids, uints),
    st.builds(Expire, session_ids, uints),
)
envelopes = st.builds(Envelope, uints, uints, st.lists(items, max_size=4))
TAGS = {Batch: 1, Register: 2, Cancel: 3, Close: 4, Expire: 5}


def plain(value: object) -> object:
    """An envelope as nested lists, tags in front: what its bytes should say."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    if not isinstance(value, msgspec.Struct):
        return value
    tag = [TAGS[type(value)]] if type(value) in TAGS else []
    return tag + [plain(getattr(value, name)) for name in value.__struct_fields__]


@given(envelopes)
def test_an_envelope_reads_the_same_in_msgpack_and_back(envelope: Envelope) -> None:
    ours = msgspec.msgpack.encode(envelope)
    assert msgpack.unpackb(ours) == plain(envelope)
    assert msgspec.msgpack.decode(msgpack.packb(plain(envelope)), type=Envelope) == envelope
