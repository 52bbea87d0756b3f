"""Peer links over real sockets.

Who gets in, what gets through, and what a bad connection harms (itself only).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop

from raftstate.core.types import Entry, Message, MessageType
from raftstate.node.environment import LeaseStamp, PeerBody, TransferLeader
from raftstate.node.frames import Channel, FrameReader, Hello, Reason, Welcome, encode
from raftstate.node.links import LinkEvents, LocalPeer, PeerLinks

CLUSTER = 77


class End:
    """One node's links, with everything that they told."""

    def __init__(self, node_id: int, addresses: dict[int, str]) -> None:
        self.bodies: list[tuple[int, PeerBody]] = []
        self.lost: list[int] = []
        self.changed = asyncio.Event()
        self.met: list[tuple[int, int]] = []
        events = LinkEvents(
            body=lambda peer, body: self.bodies.append((peer, body)),
            turn=self.changed.set,
            met=lambda peer, version: self.met.append((peer, version)),
            lost=self._lost,
            refused=self._refused,
            admit=self._admit,
            takes=lambda peer, incarnation, body: incarnation >= self.incarnations.get(peer, 0),
        )
        self.incarnations: dict[int, int] = {}
        self.refusals: list[tuple[int, Welcome]] = []
        local = LocalPeer(CLUSTER, node_id, 1, machine_version=10 + node_id)
        self.links = PeerLinks(
            local, {peer: (address,) for peer, address in addresses.items()}, events, seed=node_id
        )

    def _admit(self, hello: Hello) -> Welcome:
        known = self.incarnations.get(hello.from_id, 0)
        if hello.from_incarnation < known and not hello.wiped:
            return Welcome("it was replaced", reason=Reason.REPLACED, incarnation=known)
        return Welcome(
            "" if hello.cluster_id == CLUSTER else f"this is cluster {CLUSTER}, not {hello.cluster_id}"
        )

    def _refused(self, peer: int, welcome: Welcome) -> None:
        self.refusals.append((peer, welcome))
        self.changed.set()

    def _lost(self, peer: int) -> None:
        self.lost.append(peer)
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
async def pair() -> AsyncIterator[tuple[End, End, int]]:
    two = End(2, {})
    port = await two.links.start("127.0.0.1", 0)
    one = End(1, {2: f"127.0.0.1:{port}"})
    await one.links.start("127.0.0.1", 0)
    yield one, two, port
    await one.links.close()
    await two.links.close()


async def connected(end: End, peer: int) -> None:
    async with asyncio.timeout(10):
        while not end.links.connected(peer):  # noqa: ASYNC110 - links tell of what is lost, not of what is made
            await asyncio.sleep(0)


async def test_bodies_arrive_on_both_channels(pair: tuple[End, End, int]) -> None:
    one, two, _ = pair
    await connected(one, 2)
    small = Message(MessageType.HEARTBEAT, to=2, from_=1, term=1)
    large = Message(MessageType.APP, to=2, from_=1, term=1, entries=[Entry(1, 1, data=b"x" * 3_000_000)])
    assert one.links.send(2, large)
    assert one.links.send(2, small)
    await two.until(lambda: len(two.bodies) == 2)
    assert sorted(two.bodies, key=lambda item: item[1].type) == [(1, large), (1, small)]


async def test_sending_to_a_peer_that_is_not_connected_says_so(pair: tuple[End, End, int]) -> None:
    _, two, _ = pair
    assert two.links.send(1, TransferLeader(1)) is False


async def refusal_of(port: int, hello: bytes) -> tuple[object, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(hello)
    frames = FrameReader()
    answer: object = None
    while data := await reader.read(4096):
        for body in frames.feed(data):
            answer = body
    writer.close()
    await writer.wait_closed()
    return answer, b""


async def test_a_peer_of_another_cluster_is_told_why_it_is_refused(pair: tuple[End, End, int]) -> None:
    answer, _ = await refusal_of(pair[2], encode(Hello(78, 1, 1, 2, Channel.BULK)))
    assert answer == Welcome("this is cluster 77, not 78", machine_version=12)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00" * 64,
        b"RS\x09\x01" + b"\x00" * 12,
        b"RS\x01\x03\xff\xff\xff\xff" + b"\x00" * 8,
        encode(TransferLeader(1)),
        encode(Hello(CLUSTER, 1, 1, 2, Channel.BULK))[:-1] + b"\xff",
    ],
    ids=["http", "zeros", "version", "oversized", "no-hello", "checksum"],
)
async def test_garbage_closes_that_connection_only(pair: tuple[End, End, int], garbage: bytes) -> None:
    one, two, port = pair
    await connected(one, 2)
    assert await refusal_of(port, garbage) == (None, b"")
    assert one.links.send(2, TransferLeader(2))
    await two.until(lambda: two.bodies == [(1, TransferLeader(2))])
    assert two.lost == []


async def test_garbage_after_a_good_hello_closes_that_connection_only(pair: tuple[End, End, int]) -> None:
    one, two, port = pair
    await connected(one, 2)
    answer, _ = await refusal_of(
        port, encode(Hello(CLUSTER, 3, 1, 2, Channel.BULK)) + b"RS\x02" + b"\x00" * 13
    )
    assert answer == Welcome(machine_version=12)
    assert one.links.send(2, TransferLeader(2))
    await two.until(lambda: len(two.bodies) == 1)


async def test_a_lost_connection_is_told_at_once_and_dialled_again(pair: tuple[End, End, int]) -> None:
    one, two, port = pair
    await connected(one, 2)
    await two.links.close()
    await one.until(lambda: 2 in one.lost)
    assert one.links.send(2, TransferLeader(2)) is False
    again = End(2, {})
    await again.links.start("127.0.0.1", port)
    try:
        await connected(one, 2)
        assert one.links.send(2, TransferLeader(2))
        await again.until(lambda: again.bodies == [(1, TransferLeader(2))])
    finally:
        await again.links.close()


def test_a_send_in_the_turn_in_which_the_peer_dies_says_that_nothing_was_sent() -> None:
    """uvloop's transports raise when they are written to after the loss of their connection."""

    async def run() -> list[bool]:
        two = End(2, {})
        port = await two.links.start("127.0.0.1", 0)
        one = End(1, {2: f"127.0.0.1:{port}"})
        await one.links.start("127.0.0.1", 0)
        await connected(one, 2)
        loop = asyncio.get_running_loop()
        sent: list[bool] = []

        def send_every_turn() -> None:
            sent.append(one.links.send(2, TransferLeader(2)))
            if 2 not in one.lost:
                loop.call_soon(send_every_turn)

        send_every_turn()
        for inbound in list(two.links._inbound):
            inbound.abort()
        await one.until(lambda: 2 in one.lost)
        await one.links.close()
        await two.links.close()
        return sent

    sent = uvloop.run(run())
    assert sent[0] is True
    assert sent[-1] is False


async def test_both_ends_of_a_connection_learn_which_machine_version_the_other_one_knows(
    pair: tuple[End, End, int],
) -> None:
    one, two, _ = pair
    await connected(one, 2)
    assert (one.met, two.met) == ([(2, 12)] * 2, [(1, 11)] * 2)


async def test_an_end_that_does_not_say_which_machine_version_it_knows_knows_the_first(
    pair: tuple[End, End, int],
) -> None:
    _, two, port = pair
    await two.until(lambda: len(two.met) == 2)
    before = encode(Hello(CLUSTER, 3, 1, 2, Channel.CONTROL))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(before)
    assert await reader.read(4096) == encode(Welcome("", 12))
    assert two.met[2:] == [(3, 1)]
    writer.close()
    await writer.wait_closed()


async def test_a_lease_stamp_takes_the_connection_that_entries_do_not_hold_up(
    pair: tuple[End, End, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _, _ = pair
    await connected(one, 2)
    with monkeypatch.context() as patched:
        patched.delitem(one.links._outbound, (2, Channel.BULK))
        assert one.links.send(2, LeaseStamp(5))
        assert not one.links.send(2, TransferLeader(2))


async def dialled(end: End, peer: int, port: int) -> None:
    end.links.set_peers({peer: (f"127.0.0.1:{port}",)})
    await connected(end, peer)


async def test_peers_that_come_are_dialled_and_those_that_go_are_let_go_of(
    pair: tuple[End, End, int],
) -> None:
    one, two, port = pair
    await connected(one, 2)
    three = End(3, {})
    third = await three.links.start("127.0.0.1", 0)
    try:
        one.links.set_peers({2: (f"127.0.0.1:{port}",), 3: (f"127.0.0.1:{third}",)})
        await connected(one, 3)
        assert one.lost == []  # the connections to the other one stand
        one.links.set_peers({3: (f"127.0.0.1:{third}",)})
        assert one.links.send(2, TransferLeader(2)) is False
        await two.until(lambda: two.lost == [1, 1])
        assert one.links.send(3, TransferLeader(3))
        await three.until(lambda: three.bodies == [(1, TransferLeader(3))])
    finally:
        await three.links.close()


async def test_a_peer_with_another_address_is_dialled_there(pair: tuple[End, End, int]) -> None:
    one, two, _ = pair
    await connected(one, 2)
    moved = End(2, {})
    port = await moved.links.start("127.0.0.1", 0)
    try:
        await dialled(one, 2, port)
        assert one.links.send(2, TransferLeader(2))
        await moved.until(lambda: moved.bodies == [(1, TransferLeader(2))])
        assert two.bodies == []
    finally:
        await moved.links.close()


async def test_a_peer_with_several_addresses_is_found_at_the_one_that_works() -> None:
    two = End(2, {})
    port = await two.links.start("127.0.0.1", 0)
    one = End(1, {})
    await one.links.start("127.0.0.1", 0)
    try:
        one.links.set_peers({2: ("127.0.0.1:1", f"127.0.0.1:{port}")})
        await connected(one, 2)
    finally:
        await one.links.close()
        await two.links.close()


@pytest.mark.case(19)
async def test_a_peer_that_was_replaced_is_cut_off_told_so_and_nothing_of_it_is_taken(
    pair: tuple[End, End, int],
) -> None:
    one, two, _ = pair
    await connected(one, 2)
    two.incarnations[1] = 2
    # Before the connection is dropped, what still comes over it counts for nothing.
    assert one.links.send(2, TransferLeader(2))
    two.links.set_peers({})
    await one.until(lambda: len(one.refusals) > 0)
    assert one.refusals[0] == (
        2,
        Welcome("it was replaced", machine_version=12, reason=Reason.REPLACED, incarnation=2),
    )
    assert two.bodies == []
    assert one.links.send(2, TransferLeader(2)) is False


async def test_what_is_not_to_be_taken_is_dropped_and_the_connection_goes_on(
    pair: tuple[End, End, int],
) -> None:
    one, two, _ = pair
    await connected(one, 2)
    two.incarnations[1] = 2
    assert one.links.send(2, TransferLeader(1))
    assert one.links.send(2, TransferLeader(2))
    two.changed.clear()
    await two.changed.wait()
    two.incarnations[1] = 1
    assert one.links.send(2, TransferLeader(3))
    await two.until(lambda: (1, TransferLeader(3)) in two.bodies)
    assert (1, TransferLeader(1)) not in two.bodies
    assert two.lost == []


async def test_a_node_that_lost_its_log_does_not_break_its_successors_connections(
    pair: tuple[End, End, int],
) -> None:
    one, two, port = pair
    await connected(one, 2)
    two.incarnations[1] = 1
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for channel in Channel:
        writer.write(encode(Hello(CLUSTER, 1, 0, 2, channel, 11, True)))
        assert FrameReader().feed(await reader.read(4096))
        writer.close()
        await writer.wait_closed()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    await asyncio.sleep(0.05)
    assert (one.lost, two.lost) == ([], [])
    assert one.links.send(2, TransferLeader(1))
    await two.until(lambda: bool(two.bodies))
