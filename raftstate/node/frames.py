"""The peer protocol's frames: a fixed header, then MessagePack.

    offset  size  field
    0       2     magic, b"RS"
    2       1     protocol version
    3       1     kind
    4       4     length of the body in bytes, big-endian
    8       8     xxh3-64 of the first 8 bytes and the body, big-endian

The first frame on a connection is a Hello, and its receiver answers with a Welcome; everything else is one
body of `environment.PeerBody` a frame. Whatever does not fit is `FrameError`, and ends that connection only:
a peer that sends garbage harms nobody else.

Pure functions over bytes; no sockets here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import msgspec
import xxhash

from raftstate.core.types import Message
from raftstate.machine.types import Uint
from raftstate.node.environment import (
    Announce,
    ChangeMembers,
    ChangeMembersReply,
    Digests,
    Forward,
    ForwardReply,
    LeaseStamp,
    PeerBody,
    RecordsReply,
    RecordsRequest,
    RepairChunk,
    RepairOffer,
    RepairPull,
    RepairRequest,
    ReplaceReply,
    ReplaceRequest,
    SnapshotChunk,
    SnapshotFinished,
    SnapshotOffer,
    SnapshotPull,
    SnapshotWithdrawn,
    TransferLeader,
)

PROTOCOL_VERSION = 1
MAGIC = b"RS"
FRAME_BYTES_MAX = 32 << 20
"""Above the largest message that a client may send (20 MiB) and the largest answer that the machine gives (21
MiB), so that whatever was accepted can be passed on."""
HELLO_BYTES_MAX = 4096
"""Before a peer has said who it is, it is not trusted with more memory."""

_HEADER = struct.Struct(">2sBBIQ")
_PREFIX = struct.Struct(">2sBBI")


class FrameError(Exception):
    """What came is no frame of this protocol."""


class Kind(IntEnum):
    """What a frame's body is. Numbers are on the wire: never reuse one."""

    HELLO = 1
    WELCOME = 2
    MESSAGE = 3
    FORWARD = 4
    FORWARD_REPLY = 5
    TRANSFER_LEADER = 6
    LEASE_STAMP = 7
    RECORDS_REQUEST = 30
    RECORDS_REPLY = 31
    REPLACE_REQUEST = 32
    REPLACE_REPLY = 33
    SNAPSHOT_OFFER = 10
    SNAPSHOT_PULL = 11
    SNAPSHOT_CHUNK = 12
    SNAPSHOT_FINISHED = 13
    SNAPSHOT_WITHDRAWN = 14
    CHANGE_MEMBERS = 20
    CHANGE_MEMBERS_REPLY = 21
    ANNOUNCE = 22
    DIGESTS = 40
    REPAIR_REQUEST = 41
    REPAIR_OFFER = 42
    REPAIR_PULL = 43
    REPAIR_CHUNK = 44


class Channel(IntEnum):
    """The two connections of a pair: what is small and urgent must not wait behind what is large."""

    CONTROL = 0
    BULK = 1


class Hello(msgspec.Struct, array_like=True, frozen=True):
    """Who dials, and whom it means to reach. Peers are known by id and incarnation, never by address.

    `machine_version`: the newest that the sender's code knows. Those who don't say know 1. `wiped`: it has
    lost its log, takes no part, and asks for nothing but its replacement.
    """

    cluster_id: int
    from_id: int
    from_incarnation: int
    to_id: int
    channel: Channel
    machine_version: Uint = 1
    wiped: bool = False


class Reason(IntEnum):
    """Why a Hello is refused, for programs. A receiver must bear numbers that it does not know."""

    OTHER = 0
    WRONG_CLUSTER = 1
    NOT_ME = 2
    """The Hello was meant for another node."""
    REMOVED = 3
    """The caller was a member, and is none any more. That is final: ids are not used twice."""
    REPLACED = 4
    """The caller's incarnation was replaced by a later one. That is final, too."""


class Welcome(msgspec.Struct, array_like=True, frozen=True):
    """The answer to a Hello. `refusal` empty: go ahead; else why not, for people. `machine_version`: as in
    Hello. `reason`: one of `Reason`, if refused. `incarnation`: the caller's, as the sender knows it; 0: it
    does not."""

    refusal: str = ""
    machine_version: Uint = 1
    reason: Uint = Reason.OTHER
    incarnation: Uint = 0


_KINDS: dict[type, Kind] = {
    Hello: Kind.HELLO,
    Welcome: Kind.WELCOME,
    Message: Kind.MESSAGE,
    Forward: Kind.FORWARD,
    ForwardReply: Kind.FORWARD_REPLY,
    TransferLeader: Kind.TRANSFER_LEADER,
    LeaseStamp: Kind.LEASE_STAMP,
    RecordsRequest: Kind.RECORDS_REQUEST,
    RecordsReply: Kind.RECORDS_REPLY,
    ReplaceRequest: Kind.REPLACE_REQUEST,
    ReplaceReply: Kind.REPLACE_REPLY,
    SnapshotOffer: Kind.SNAPSHOT_OFFER,
    SnapshotPull: Kind.SNAPSHOT_PULL,
    SnapshotChunk: Kind.SNAPSHOT_CHUNK,
    SnapshotFinished: Kind.SNAPSHOT_FINISHED,
    SnapshotWithdrawn: Kind.SNAPSHOT_WITHDRAWN,
    ChangeMembers: Kind.CHANGE_MEMBERS,
    ChangeMembersReply: Kind.CHANGE_MEMBERS_REPLY,
    Announce: Kind.ANNOUNCE,
    Digests: Kind.DIGESTS,
    RepairRequest: Kind.REPAIR_REQUEST,
    RepairOffer: Kind.REPAIR_OFFER,
    RepairPull: Kind.REPAIR_PULL,
    RepairChunk: Kind.REPAIR_CHUNK,
}
_encode = msgspec.msgpack.Encoder().encode
_DECODERS: dict[Kind, msgspec.msgpack.Decoder[Any]] = {
    kind: msgspec.msgpack.Decoder(type_) for type_, kind in _KINDS.items()
}


def encode(body: PeerBody | Hello | Welcome) -> bytes:
    """Return the frame of a body. Raises `FrameError` when it is larger than any receiver takes."""
    payload = _encode(body)
    if len(payload) > FRAME_BYTES_MAX:
        raise FrameError(f"a frame of {len(payload)} bytes is over the limit of {FRAME_BYTES_MAX}")
    prefix = _PREFIX.pack(MAGIC, PROTOCOL_VERSION, _KINDS[type(body)], len(payload))
    checksum = xxhash.xxh3_64(prefix)
    checksum.update(payload)
    return prefix + checksum.intdigest().to_bytes(8, "big") + payload


class FrameReader:
    """Cuts a byte stream into bodies.

    `bytes_max` limits the next frames, and may be raised once the sender is known.
    """

    def __init__(self, bytes_max: int = HELLO_BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[PeerBody | Hello | Welcome]:
        """Yield the bodies that are complete with `data`.

        Raises `FrameError` on the first byte that can't be right.
        """
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= _HEADER.size:
                magic, version, kind, length, checksum = _HEADER.unpack_from(buffer, start)
                self._check_header(magic, version, kind, length)
                end = start + _HEADER.size + length
                if len(buffer) < end:
                    break
                body = bytes(buffer[start + _HEADER.size : end])
                hasher = xxhash.xxh3_64(bytes(buffer[start : start + _PREFIX.size]))
                hasher.update(body)
                if hasher.intdigest() != checksum:
                    raise FrameError(f"checksum mismatch in a frame of kind {kind} and {length} bytes")
                start = end
                yield _decode(kind, body)
        finally:
            del buffer[:start]

    def _check_header(self, magic: bytes, version: int, kind: int, length: int) -> None:
        if magic != MAGIC:
            raise FrameError(f"not a frame: it begins with {magic!r}, not {MAGIC!r}")
        if version != PROTOCOL_VERSION:
            raise FrameError(f"peer protocol version {version}; this node speaks {PROTOCOL_VERSION}")
        if kind not in _DECODERS:
            raise FrameError(f"unknown kind of frame: {kind}")
        if length > self.bytes_max:
            raise FrameError(f"a frame of {length} bytes is over the limit of {self.bytes_max}")


def _decode(kind: int, body: bytes) -> PeerBody | Hello | Welcome:
    try:
        decoded: PeerBody | Hello | Welcome = _DECODERS[Kind(kind)].decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise FrameError(f"the body of a frame of kind {kind} does not decode: {error}") from error
    return decoded
