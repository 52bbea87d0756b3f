"""A node that lost its log asks to be replaced; the leader gives each that asks rightly a new incarnation."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

import msgspec
import pytest

from chaos.sim.world import SimCluster, SimNode, was_applied
from raftstate.errors import FailedPreconditionError
from raftstate.machine.types import MACHINE_VERSION, Member
from raftstate.node.environment import PeerBody, ReplaceReply, ReplaceRequest
from raftstate.node.frames import Hello, Reason, Welcome
from raftstate.node.links import LinkEvents, LocalPeer, PeerLinks
from raftstate.node.rejoin import Replaced, WipedPeers, ask_for_replacement

HOST = "127.0.0.1"


class Answers:
    """A network that keeps what it was given."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, PeerBody]] = []

    def send(self, to: int, body: PeerBody) -> bool:
        self.sent.append((to, body))
        return True

    def take(self) -> tuple[int, ReplaceReply]:
        ((to, body),) = self.sent
        self.sent.clear()
        assert isinstance(body, ReplaceReply)
        return to, body


class Asked:
    """A node that answers those who lost their log, with a membership that waits to be told the outcome."""

    def __init__(self, node: SimNode) -> None:
        self.node = node
        self.answers = Answers()
        self.under_way: list[tuple[Member, Replaced]] = []
        WipedPeers(node.driver, self.answers, lambda record, done: self.under_way.append((record, done)))

    def ask(self, sender: int, incarnation: int) -> None:
        self.node.receive(sender, ReplaceRequest(incarnation))


@pytest.fixture
def cluster() -> SimCluster:
    cluster = SimCluster(3, seed=1)
    leader = cluster.elect()
    outcomes = cluster.put(leader.id, "key")
    cluster.run_until(lambda: was_applied(outcomes))
    return cluster


@pytest.mark.case(19)
def test_the_leader_replaces_the_incarnation_that_asks_and_tells_the_next_one(cluster: SimCluster) -> None:
    leader = cluster.elect()
    asked, peer = Asked(leader), leader.id % 3 + 1
    asked.ask(peer, 1)
    asked.ask(peer, 1)
    ((record, done),) = asked.under_way
    assert (record.id, record.incarnation) == (peer, 1)
    assert asked.answers.sent == []
    done(msgspec.structs.replace(record, incarnation=2))
    assert asked.answers.take() == (peer, ReplaceReply(2))
    # Refused by the membership: the next question tries again.
    asked.ask(peer, 1)
    asked.under_way[1][1]("the other voters are no quorum")
    assert asked.answers.take() == (peer, ReplaceReply(0, "the other voters are no quorum"))
    asked.ask(peer, 1)
    assert len(asked.under_way) == 3


def test_who_does_not_lead_says_who_does(cluster: SimCluster) -> None:
    leader = cluster.elect()
    follower = cluster.nodes[leader.id % 3 + 1]
    cluster.run_until(lambda: follower.driver.raw.raft.lead == leader.id)
    asked = Asked(follower)
    asked.ask(leader.id, 1)
    assert asked.answers.take()[1].refusal.startswith(
        f"node {follower.id} does not lead; node {follower.id} "
    )
    assert asked.under_way == []


@pytest.mark.case(19)
def test_an_older_incarnation_is_replaced_again_only_while_nobody_runs_under_the_present_one(
    cluster: SimCluster,
) -> None:
    leader = cluster.elect()
    peer = leader.id % 3 + 1
    asked = Asked(leader)
    applied = leader.driver.applied
    members = tuple(
        msgspec.structs.replace(member, incarnation=3) if member.id == peer else member
        for member in applied.members
    )
    leader.driver.applied = applied._replace(members=members)
    asked.ask(peer, 2)
    assert "was replaced, and runs under incarnation 3" in asked.answers.take()[1].refusal
    asked.ask(peer, 4)
    assert "has not applied yet" in asked.answers.take()[1].refusal
    progress = leader.driver.raw.raft.tracker.progress[peer]
    progress.match, progress.recent_active = 0, False
    asked.ask(peer, 2)
    assert [(record.id, record.incarnation) for record, _ in asked.under_way] == [(peer, 3)]


def test_who_is_no_member_is_not_replaced(cluster: SimCluster) -> None:
    asked = Asked(cluster.elect())
    asked.ask(9, 1)
    assert "is no member" in asked.answers.take()[1].refusal


class Peer:
    """A node's links that answer a ReplaceRequest as they are told to."""

    def __init__(
        self, node_id: int, wiped_address: str, answer: Callable[[int], ReplaceReply | None]
    ) -> None:
        self.hellos: list[Hello] = []
        self.refuse = Welcome()
        events = LinkEvents(
            body=lambda sender, body: self._asked(sender, body, answer),
            turn=lambda: None,
            met=lambda _peer, _version: None,
            lost=lambda _peer: None,
            refused=lambda _peer, _welcome: None,
            admit=self._admit,
            takes=lambda _peer, _incarnation, _body: True,
        )
        self.links = PeerLinks(
            LocalPeer(77, node_id, 1, MACHINE_VERSION), {1: (wiped_address,)}, events, seed=node_id
        )

    def _admit(self, hello: Hello) -> Welcome:
        self.hellos.append(hello)
        return self.refuse

    def _asked(self, sender: int, body: PeerBody, answer: Callable[[int], ReplaceReply | None]) -> None:
        assert isinstance(body, ReplaceRequest)
        reply = answer(body.incarnation)
        if reply is not None:
            self.links.send(sender, reply)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


async def ask(peers: list[Peer], port: int) -> int:
    async with contextlib.AsyncExitStack() as started:
        addresses = {}
        for number, peer in enumerate(peers, 2):
            addresses[number] = (f"{HOST}:{await peer.links.start(HOST, 0)}",)
            started.push_async_callback(peer.links.close)
        local = LocalPeer(77, 1, 4, MACHINE_VERSION, wiped=True)
        async with asyncio.timeout(20):
            return await ask_for_replacement(local, addresses, (HOST, port), seed=1)


async def test_a_wiped_node_asks_all_until_one_gives_it_an_incarnation() -> None:
    port = free_port()
    asked: list[int] = []

    def leads(incarnation: int) -> ReplaceReply:
        asked.append(incarnation)
        return ReplaceReply(0, "not yet") if len(asked) < 3 else ReplaceReply(incarnation + 1)

    follower = Peer(2, f"{HOST}:{port}", lambda _incarnation: ReplaceReply(0, "node 2 does not lead"))
    leader = Peer(3, f"{HOST}:{port}", leads)
    assert await ask([follower, leader], port) == 5
    assert asked[:3] == [4, 4, 4]
    assert all(hello.wiped and hello.from_incarnation == 4 for hello in (*follower.hellos, *leader.hellos))


async def test_an_answer_with_an_old_incarnation_is_none() -> None:
    port = free_port()
    answers = iter([ReplaceReply(4), ReplaceReply(3), ReplaceReply(6)])
    assert await ask([Peer(2, f"{HOST}:{port}", lambda _incarnation: next(answers, None))], port) == 6


async def test_a_node_that_was_removed_asks_no_more() -> None:
    port = free_port()
    peer = Peer(2, f"{HOST}:{port}", lambda _incarnation: None)
    peer.refuse = Welcome("node 1 was removed from the cluster", reason=Reason.REMOVED)
    with pytest.raises(FailedPreconditionError, match="node 1 was removed from the cluster"):
        await ask([peer], port)


async def test_without_peers_there_is_nobody_to_ask() -> None:
    with pytest.raises(FailedPreconditionError, match="node 1 has no peers"):
        await ask([], free_port())
