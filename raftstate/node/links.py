"""Peer links: two TCP connections to each peer, dialled by the sender; the peer dials its own for the way
back.

A connection carries bodies one way. Its dialler says Hello, the other end answers Welcome (or why not), and
from then on frames flow. The control connection carries what is small and urgent, the bulk one entries and
forwarded requests. A connection that is lost is dialled again; nothing is ever sent twice, and nothing is
queued for a peer that is not connected: Raft repeats what it must.

A way of its own for each direction lets a proxy between any two nodes cut one direction alone, and needs no
rule on who dials.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import msgspec

from raftstate.address import split_address
from raftstate.core.types import Message, MessageType
from raftstate.errors import ConfigError
from raftstate.logs import get_logger
from raftstate.node.environment import (
    Announce,
    ChangeMembers,
    ChangeMembersReply,
    Digests,
    LeaseStamp,
    PeerBody,
    RepairOffer,
    RepairPull,
    RepairRequest,
    SnapshotFinished,
    SnapshotOffer,
    SnapshotPull,
    SnapshotWithdrawn,
)
from raftstate.node.frames import (
    FRAME_BYTES_MAX,
    Channel,
    FrameError,
    FrameReader,
    Hello,
    Reason,
    Welcome,
    encode,
)

log = get_logger(__name__)

HELLO_TIMEOUT_S = 2.0
"""For connect and greeting: what takes longer is no link to hold elections over."""
DIAL_DELAY_S_MIN = 0.02
"""About a heartbeat: a peer that was restarted is met again before anyone stands for election."""
DIAL_DELAY_S_MAX = 0.5
"""A peer that is down costs two dials a second, and is noticed within one when it comes back."""
REFUSED_DELAY_S = 2.0
"""A refusal (another cluster, another incarnation) stays until somebody changes the settings."""
UNACKNOWLEDGED_MS_MAX = 3_000
"""After a partition a connection is dialled again, rather than wait for the kernel's next retransmission,
which may be minutes away. Several election timeouts, so that a slow moment is no loss."""
WRITE_BUFFER_BYTES_MAX = 64 << 20
"""Four times what the core sends ahead of a peer's answers (`server.configured.INFLIGHT_BYTES_MAX`). A peer
with more to take is too slow, and messages to it are dropped rather than kept in memory."""
_BULK = frozenset({MessageType.APP, MessageType.SNAP})
_URGENT = (
    LeaseStamp,
    SnapshotOffer,
    SnapshotPull,
    SnapshotFinished,
    SnapshotWithdrawn,
    ChangeMembers,
    ChangeMembersReply,
    Announce,
    Digests,
    RepairRequest,
    RepairOffer,
    RepairPull,
)
"""Bodies beside the core's messages that are small, and waited for."""


@dataclass(frozen=True, slots=True)
class LocalPeer:
    """Who this node is, to its peers."""

    cluster_id: int
    node_id: int
    incarnation: int
    machine_version: int
    """The newest that this node's code knows."""
    wiped: bool = False
    """Whether it has lost its log, and asks for its replacement."""


@dataclass(frozen=True, slots=True)
class LinkEvents:
    """What the links tell, and ask: all called on the loop."""

    body: Callable[[int, PeerBody], None]
    """(from, body): a body arrived. Raising FrameError closes its connection."""
    turn: Callable[[], None]
    """All bodies that arrived together were given."""
    met: Callable[[int, int], None]
    """(peer, machine version): a connection to or from a peer was made, whose code knows that version."""
    lost: Callable[[int], None]
    """(peer): a connection to or from it broke (it was reset or closed: silence is not noticed here)."""
    refused: Callable[[int, Welcome], None]
    """(peer, its answer): a peer turned this node away."""
    admit: Callable[[Hello], Welcome]
    """Asked who is let in: with a `refusal` the caller is turned away. Its machine version is filled in
    here."""
    takes: Callable[[int, int, PeerBody], bool]
    """Asked (from, incarnation, body): whether a body that came over a connection of that incarnation is
    passed on."""


@dataclass(slots=True)
class Traffic:
    """What went between this node and a peer, since the start."""

    sent_bytes: int = 0
    received_bytes: int = 0
    not_sent: int = 0
    """Bodies that were not sent: there was no connection, or too much waited on it."""


class PeerLinks:
    """Implements `environment.Network` over TCP.

    `addresses`: node id -> host:ports at which *this* node may reach it, tried in turn: a map of its own, so
    that a proxy can stand between any two.
    """

    def __init__(
        self,
        local: LocalPeer,
        addresses: Mapping[int, Sequence[str]],
        events: LinkEvents,
        seed: int,
    ) -> None:
        self._local = local
        self._addresses = {peer: tuple(each) for peer, each in addresses.items() if peer != local.node_id}
        self._events = events
        self._random = random.Random(seed)
        self._outbound: dict[tuple[int, Channel], asyncio.Transport] = {}
        self._inbound: set[_Inbound] = set()
        self._dialers: dict[tuple[int, Channel], asyncio.Task[None]] = {}
        self._server: asyncio.Server | None = None
        self._closing = False
        self.traffic: defaultdict[int, Traffic] = defaultdict(Traffic)
        """Peer -> what was sent and received."""

    async def start(self, host: str, port: int) -> int:
        """Listen, begin to dial, and return the port listened on (`port` 0: a free one)."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(lambda: _Inbound(self), host, port)
        except OSError as error:
            raise ConfigError(
                f"can't listen for peers on {host}:{port}: {error}; another process may be there, or the "
                "address not be this machine's",
                field="listen_peer",
            ) from error
        for peer in sorted(self._addresses):
            self._begin_to_dial(peer)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    def set_peers(self, addresses: Mapping[int, Sequence[str]]) -> None:
        """Dial these peers from now on, and no others.

        The connections to those who are not among them any more, or have other addresses, are dropped, and so
        are those of peers that would not be admitted now.
        """
        wanted = {peer: tuple(each) for peer, each in addresses.items() if peer != self._local.node_id}
        before, self._addresses = self._addresses, wanted
        if self._server is None or self._closing:
            return
        for peer in sorted(before.keys() | wanted.keys()):
            if before.get(peer) != wanted.get(peer):
                self._stop_dialling(peer)
                if peer in wanted:
                    self._begin_to_dial(peer)
        for inbound in list(self._inbound):
            if inbound.hello is not None and self._events.admit(inbound.hello).refusal:
                inbound.abort()  # it dials again, and is told why

    def _begin_to_dial(self, peer: int) -> None:
        loop = asyncio.get_running_loop()
        for channel in Channel:
            self._dialers[peer, channel] = loop.create_task(self._dial_forever(peer, channel))

    def _stop_dialling(self, peer: int) -> None:
        for channel in Channel:
            dialer = self._dialers.pop((peer, channel), None)
            if dialer is not None:
                dialer.cancel()
            # At once: from here on nothing is sent to where it was.
            transport = self._outbound.pop((peer, channel), None)
            if transport is not None:
                transport.abort()

    def send(self, to: int, body: PeerBody) -> bool:
        """Send a body; False: it was certainly not sent."""
        urgent = body.type not in _BULK if isinstance(body, Message) else isinstance(body, _URGENT)
        channel = Channel.CONTROL if urgent else Channel.BULK
        transport = self._outbound.get((to, channel))
        traffic = self.traffic[to]
        # Between the loss of a connection and the turn of its dialler the transport is still here, and
        # uvloop's raises when written to.
        if transport is None or transport.is_closing():
            traffic.not_sent += 1
            return False
        if transport.get_write_buffer_size() > WRITE_BUFFER_BYTES_MAX:
            traffic.not_sent += 1
            return False
        frame = encode(body)
        transport.write(frame)
        traffic.sent_bytes += len(frame)
        return True

    def connected(self, peer: int) -> bool:
        """Whether both connections to a peer stand."""
        return all((peer, channel) in self._outbound for channel in Channel)

    async def close(self) -> None:
        """Close all connections and stop dialling."""
        self._closing = True
        for task in self._dialers.values():
            task.cancel()
        await asyncio.gather(*self._dialers.values(), return_exceptions=True)
        for transport in list(self._outbound.values()):
            transport.abort()
        for inbound in list(self._inbound):
            inbound.abort()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _dial_forever(self, peer: int, channel: Channel) -> None:
        delay_s = DIAL_DELAY_S_MIN
        addresses = self._addresses[peer]
        turn = 0
        while True:
            address = addresses[turn % len(addresses)]
            try:
                if await self._dial(peer, channel, address):
                    delay_s = DIAL_DELAY_S_MIN
            except (OSError, TimeoutError, FrameError) as error:
                log.debug("peer not reached", peer=peer, channel=channel.name.lower(), error=str(error))
                turn += 1
            except _RefusedError as error:
                log.warning(
                    "peer refuses this node", peer=peer, address=address, reason=error.welcome.refusal
                )
                delay_s = REFUSED_DELAY_S
                if error.welcome.reason in (Reason.NOT_ME, Reason.WRONG_CLUSTER):
                    turn += 1  # somebody else has that address now
                self._events.refused(peer, error.welcome)
            except Exception:
                # A bug; without this way to the peer the node would be worse off than with another try.
                log.exception("dialling failed", peer=peer, channel=channel.name.lower())
            await asyncio.sleep(delay_s * self._random.uniform(0.5, 1.0))
            delay_s = min(delay_s * 2, max(DIAL_DELAY_S_MAX, delay_s))

    async def _dial(self, peer: int, channel: Channel, address: str) -> bool:
        """Dial, and stay until the connection is lost. Returns True when it had been welcomed."""
        loop = asyncio.get_running_loop()
        host, port = split_address(address)
        local = self._local
        hello = Hello(
            local.cluster_id,
            local.node_id,
            local.incarnation,
            peer,
            channel,
            local.machine_version,
            local.wiped,
        )
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            transport, outbound = await loop.create_connection(_Outbound, host, port)
            try:
                transport.write(encode(hello))
                welcome = await outbound.welcome
            except BaseException:
                outbound.welcome.cancel()
                transport.abort()
                raise
        if welcome.refusal:
            transport.abort()
            raise _RefusedError(welcome)
        _notice_silent_death(transport)
        self._outbound[peer, channel] = transport
        try:
            self._events.met(peer, welcome.machine_version)
            await outbound.lost
        finally:
            if self._outbound.get((peer, channel)) is transport:
                del self._outbound[peer, channel]
            transport.abort()
            if not self._closing:
                self._events.lost(peer)
        return True


def _notice_silent_death(transport: asyncio.Transport) -> None:
    """Have the kernel give a connection up whose bytes are not acknowledged for `UNACKNOWLEDGED_MS_MAX`."""
    connection = transport.get_extra_info("socket")
    option = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux; elsewhere the system's own patience counts
    if connection is not None and option is not None:
        connection.setsockopt(socket.IPPROTO_TCP, option, UNACKNOWLEDGED_MS_MAX)


class _RefusedError(Exception):
    """The peer answered Hello with a refusal."""

    def __init__(self, welcome: Welcome) -> None:
        super().__init__(welcome.refusal)
        self.welcome = welcome


class _Outbound(asyncio.Protocol):
    """The dialled end: it only ever receives the Welcome."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._reader = FrameReader()
        self.welcome: asyncio.Future[Welcome] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._reader.feed(data):
                if not isinstance(body, Welcome) or self.welcome.done():
                    raise FrameError(
                        f"unexpected {type(body).__name__} on a connection that this node dialled"
                    )
                self.welcome.set_result(body)
        except FrameError as error:
            self._end(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc or ConnectionResetError("the peer closed the connection"))

    def _end(self, error: Exception) -> None:
        if not self.welcome.done():
            self.welcome.set_exception(error)
            # Nobody may be there to hear it: the dialler was stopped meanwhile.
            self.welcome.exception()
        if not self.lost.done():
            self.lost.set_result(None)
        if self._transport is not None:
            self._transport.close()


class _Inbound(asyncio.Protocol):
    """The accepted end: Hello first, then bodies."""

    def __init__(self, links: PeerLinks) -> None:
        self._links = links
        self._reader = FrameReader()
        self.hello: Hello | None = None
        self._transport: asyncio.Transport | None = None
        self._hello_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the interface without the base class.
        self._transport = cast(asyncio.Transport, transport)
        self._links._inbound.add(self)
        self._hello_timer = asyncio.get_running_loop().call_later(HELLO_TIMEOUT_S, self.abort)

    def data_received(self, data: bytes) -> None:
        links = self._links
        try:
            for body in self._reader.feed(data):
                hello = self.hello
                if hello is None:
                    self._greet(body)
                elif isinstance(body, Hello | Welcome):
                    raise FrameError(f"a second {type(body).__name__}")
                elif links._events.takes(hello.from_id, hello.from_incarnation, body):
                    links._events.body(hello.from_id, body)
        except FrameError as error:
            peer = None if self.hello is None else self.hello.from_id
            log.warning("peer connection closed", peer=peer, error=str(error))
            self.abort()
        if self.hello is not None:
            links.traffic[self.hello.from_id].received_bytes += len(data)
        links._events.turn()

    def connection_lost(self, exc: Exception | None) -> None:
        self._links._inbound.discard(self)
        if self._hello_timer is not None:
            self._hello_timer.cancel()
        # One that lost its log takes no part; another incarnation of it may be connected.
        if self.hello is not None and not self.hello.wiped and not self._links._closing:
            self._links._events.lost(self.hello.from_id)

    def abort(self) -> None:
        """Drop the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def _greet(self, body: object) -> None:
        assert self._transport is not None
        assert self._hello_timer is not None
        if not isinstance(body, Hello):
            raise FrameError(f"the first frame is {type(body).__name__}, not Hello")
        welcome = self._links._events.admit(body)
        welcome = msgspec.structs.replace(welcome, machine_version=self._links._local.machine_version)
        self._transport.write(encode(welcome))
        if welcome.refusal:
            self._transport.close()
            raise FrameError(welcome.refusal)
        self._hello_timer.cancel()
        for other in self._links._inbound:
            before = other.hello
            if (
                before is not None
                and (before.from_id, before.channel) == (body.from_id, body.channel)
                and before.from_incarnation <= body.from_incarnation
            ):
                # The peer dials again: what it dialled before is dead, whether or not this end has noticed.
                # But not what its successor dialled: a node that lost its log may ask in vain for long.
                other.hello = None
                other.abort()
        self.hello = body
        self._reader.bytes_max = FRAME_BYTES_MAX
        if not body.wiped:
            self._links._events.met(body.from_id, body.machine_version)
