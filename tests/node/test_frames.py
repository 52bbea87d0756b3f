"""The peer protocol's frames: what was encoded comes back, and nothing else gets through."""

from __future__ import annotations

import contextlib

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftstate.core.types import ConfState, Entry, Message, MessageType, SnapshotMetadata
from raftstate.machine.types import Batch, BatchResult, Code, Fault, Member
from raftstate.node import frames as frames_module
from raftstate.node.environment import (
    Announce,
    ChangeMembers,
    ChangeMembersReply,
    Digests,
    Executed,
    Forward,
    ForwardReply,
    LeaseStamp,
    Rejected,
    RepairChunk,
    RepairOffer,
    RepairPull,
    RepairRequest,
    TransferLeader,
)
from raftstate.node.frames import (
    FRAME_BYTES_MAX,
    Channel,
    FrameError,
    FrameReader,
    Hello,
    Kind,
    Reason,
    Welcome,
    encode,
)
from raftstate.node.member_changes import (
    AddMember,
    MembersChanged,
    PromoteMember,
    RemoveMembers,
    ReplaceMember,
    UpdateMember,
)

BODIES = [
    Hello(7, 1, 1, 2, Channel.BULK),
    Welcome("wrong cluster"),
    Message(
        MessageType.APP,
        to=2,
        from_=1,
        term=3,
        log_term=2,
        index=9,
        commit=8,
        entries=[Entry(10, 3, data=b"abc"), Entry(11, 3)],
    ),
    Forward(5, 1000, 2, Batch(b"raw")),
    ForwardReply(5, executed=Executed(11, 4, BatchResult([1], [4], []))),
    ForwardReply(6, rejected=Rejected(Fault(Code.NO_LEADER, "none"), applied_never=True)),
    TransferLeader(3),
    LeaseStamp(1_234_567),
    ChangeMembers(1, 5_000, AddMember("n4", "h:2", "h:1", promote=False)),
    ChangeMembers(2, 5_000, PromoteMember("n4")),
    ChangeMembers(3, 5_000, RemoveMembers(["n4", "n5"])),
    ChangeMembers(4, 5_000, ReplaceMember("n4", "h:3", "", incarnation=2)),
    ChangeMembers(5, 5_000, UpdateMember(4, "h:3", "h:4")),
    ChangeMembersReply(1, changed=MembersChanged(9, [Member(4, 1, "n4", "h:2", "h:1")], [4], already=True)),
    ChangeMembersReply(2, rejected=Rejected(Fault(Code.NO_LEADER, "nobody"), applied_never=True)),
    Announce("h:2", "h:1"),
    Digests(2**63 - 1, [(64, 2**64 - 1), (70, 0)]),
    RepairRequest(9, 100),
    RepairOffer(9),
    RepairOffer(9, SnapshotMetadata(ConfState((1, 2), (3,)), 120, 4), 5, 6),
    RepairOffer(9, refusal="it shows nothing itself"),
    RepairPull(9, 1 << 40, 512),
    RepairChunk(9, 1 << 40, b"bytes"),
]


def reader() -> FrameReader:
    return FrameReader(FRAME_BYTES_MAX)


def test_bodies_come_back_as_they_were_sent_in_one_piece() -> None:
    assert list(reader().feed(b"".join(encode(body) for body in BODIES))) == BODIES


@given(st.lists(st.integers(1, 40), min_size=1, max_size=200))
def test_bodies_come_back_however_the_stream_is_cut(cuts: list[int]) -> None:
    stream = b"".join(encode(body) for body in BODIES)
    frames, got, position = reader(), [], 0
    for cut in cuts:
        got += frames.feed(stream[position : position + cut])
        position += cut
    got += frames.feed(stream[position:])
    assert got == BODIES


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_is_an_error_or_an_unfinished_frame_never_a_body(position: int, flip: int) -> None:
    stream = bytearray(encode(BODIES[2]))
    stream[position % len(stream)] ^= flip
    with contextlib.suppress(FrameError):
        assert list(reader().feed(bytes(stream))) == []


@given(st.binary(min_size=16, max_size=200))
def test_garbage_is_an_error(data: bytes) -> None:
    with pytest.raises(FrameError):
        list(reader().feed(b"GET " + data))


def test_an_announced_length_over_the_limit_is_refused_before_its_bytes_arrive() -> None:
    frame = encode(Message(MessageType.APP, entries=[Entry(1, 1, data=b"x" * 5000)]))
    with pytest.raises(FrameError, match="over the limit of 4096"):
        list(FrameReader().feed(frame[:16]))


def test_a_greeting_without_a_machine_version_is_one_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    class OldHello(msgspec.Struct, array_like=True):
        cluster_id: int
        from_id: int
        from_incarnation: int
        to_id: int
        channel: int

    class OldWelcome(msgspec.Struct, array_like=True):
        refusal: str = ""

    monkeypatch.setitem(frames_module._KINDS, OldHello, Kind.HELLO)
    monkeypatch.setitem(frames_module._KINDS, OldWelcome, Kind.WELCOME)
    stream = encode(OldHello(7, 1, 1, 2, 0)) + encode(OldWelcome())  # type: ignore[arg-type]
    assert list(reader().feed(stream)) == [Hello(7, 1, 1, 2, Channel.CONTROL, 1), Welcome("", 1)]
    newer = msgspec.msgpack.encode(Hello(7, 1, 1, 2, Channel.CONTROL, 2))
    assert msgspec.msgpack.decode(newer, type=OldHello) == OldHello(7, 1, 1, 2, 0)


@pytest.mark.parametrize("stamp", [-1, "1", None, 1 << 64])
def test_a_stamp_that_is_no_time_is_refused(stamp: object) -> None:
    body = msgpack.packb([LeaseStamp.__struct_config__.tag, stamp]) if stamp != 1 << 64 else b"\x92\x04\xcf"
    with pytest.raises(FrameError, match="does not decode"):
        frames_module._decode(Kind.LEASE_STAMP, body)


def test_another_protocol_version_is_refused_by_name() -> None:
    frame = bytearray(encode(TransferLeader(1)))
    frame[2] = 9
    with pytest.raises(FrameError, match="protocol version 9; this node speaks 1"):
        list(reader().feed(bytes(frame)))


def test_a_body_too_large_for_any_receiver_is_refused_by_its_sender() -> None:
    with pytest.raises(FrameError, match="over the limit"):
        encode(Forward(1, 1, 1, Batch(b"x" * (FRAME_BYTES_MAX + 1))))


def test_a_welcome_that_says_more_is_read_by_those_who_know_less_and_the_other_way_round() -> None:
    class Earlier(msgspec.Struct, array_like=True, frozen=True):
        refusal: str = ""
        machine_version: int = 1

    told = Welcome("it was replaced", 3, reason=Reason.REPLACED, incarnation=2)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(told), type=Earlier) == Earlier("it was replaced", 3)
    before = msgspec.msgpack.encode(Earlier("no", 2))
    assert msgspec.msgpack.decode(before, type=Welcome) == Welcome("no", 2, Reason.OTHER, 0)
    later = msgspec.msgpack.encode(["no", 9, 77, 1, "more"])
    assert msgspec.msgpack.decode(later, type=Welcome).reason == 77
