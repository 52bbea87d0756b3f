"""Three schedules of messages, crashes and cuts, to be played on any Raft of three nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Outcome(Protocol):
    """What a client was told of its request."""

    @property
    def acknowledged(self) -> bool:
        """Whether it was told that all is done; not: that it failed, that nobody knows, or nothing yet."""


class Peers(Protocol):
    """Nodes 1, 2 and 3. Messages wait in their connections until they are delivered, and time stands still
    but for `beat`, `elect` and `settle` (or hardly passes)."""

    ids: tuple[int, ...]
    large_bytes: int
    """Of a value of which one message carries two, and not three."""

    def turn(self, node: int) -> None:
        """Let a node do what there is to do for it now."""

    def beat(self, node: int) -> None:
        """Let as much time pass as there is between two heartbeats, and the node do its part."""

    def elect(self, *candidates: int) -> int:
        """Have one of these elected by whoever is connected, what it committed delivered; return which."""

    def settle(self) -> None:
        """Deliver everything to whoever is connected, until nothing changes any more."""

    def put(self, node: int, key: str, size: int = 1) -> Outcome:
        """Have a node take a write of so many random bytes; the outcome is told when it is known."""

    def remove(self, node: int, removed: int) -> Outcome:
        """Ask a node to remove another one from the cluster."""

    def compact(self, node: int) -> None:
        """Have a node cut its log behind what it has applied."""

    def keys(self, node: int) -> set[str]:
        """Return the keys in the state of a node."""

    def crash(self, node: int) -> None:
        """Stop a node for good; its connections break."""

    def sever(self, one: int, other: int) -> None:
        """Break a connection: what is under way is lost, and both ends see it."""

    def connect(self, one: int, other: int) -> None:
        """Make a connection anew."""

    def lose(self, sender: int, to: int) -> None:
        """Lose what is under way from one node to another, as when a connection breaks and is made again."""

    def deliver(self, sender: int, to: int, count: int | None = None) -> int:
        """Deliver the next messages between two nodes, in order; None: all. Return how many there were."""

    def deliver_refusal(self, sender: int, to: int) -> None:
        """Deliver messages up to the next one that refuses entries since those before them are missing."""


@dataclass
class Played:
    """What came of a schedule: acknowledged keys, and by which node; the keys of each node at the end."""

    acknowledged: dict[str, int]
    keys: dict[int, set[str]]

    def lost(self) -> set[str]:
        """Return the keys that were acknowledged and that no node has."""
        return self.acknowledged.keys() - set().union(*self.keys.values())


@dataclass
class SentAgain:
    """Where the nodes are when the first half of what is sent again has arrived."""

    leader: int
    follower: int
    away: int
    acknowledged: dict[str, int]


def send_again_by_halves(peers: Peers) -> SentAgain:
    """A leader acts on a refusal that is out of date; of what it then sends, the first message arrives.

    One follower is away all the time, so that leader and other follower are the majority. No message is
    delivered out of order, or twice.
    """
    leader = peers.elect(1, 2, 3)
    follower, away = (node for node in peers.ids if node != leader)
    peers.sever(leader, away)
    writes = {"a": peers.put(leader, "a", peers.large_bytes)}
    peers.beat(leader)
    peers.lose(leader, follower)
    for key in ("b", "c"):
        writes[key] = peers.put(leader, key, peers.large_bytes)
        peers.beat(leader)
    peers.deliver(leader, follower)  # two messages, and two refusals: "a" is missing
    peers.turn(follower)
    peers.deliver_refusal(follower, leader)
    peers.beat(leader)  # all three are sent
    peers.deliver(leader, follower)
    peers.turn(follower)
    peers.deliver_refusal(follower, leader)  # the second: from before the follower had them
    peers.beat(leader)
    peers.deliver(follower, leader)  # it has them
    peers.turn(leader)
    acknowledged = {key: leader for key, outcome in writes.items() if outcome.acknowledged}
    peers.deliver(leader, follower, 1)
    peers.turn(follower)
    return SentAgain(leader, follower, away, acknowledged)


def stale_refusal(peers: Peers) -> Played:
    """A leader crashes while it sends what its follower has acknowledged a second time."""
    at = send_again_by_halves(peers)
    peers.crash(at.leader)
    peers.elect(at.follower, at.away)
    return Played(at.acknowledged, {node: peers.keys(node) for node in (at.follower, at.away)})


def snapshot_to_a_deposed_leader(peers: Peers, writes: int = 6) -> Played:
    """A leader is cut off with a write in its log; the others elect another, write, and cut their logs.

    When it is connected again, it is sent a snapshot, and works between any two of its messages.
    """
    deposed = peers.elect(1, 2, 3)
    others = [node for node in peers.ids if node != deposed]
    for other in others:
        peers.sever(deposed, other)
    outcomes = {("alone", deposed): peers.put(deposed, "alone")}
    peers.beat(deposed)
    leader = peers.elect(*others)
    # Values are noise, which no compression makes small: the snapshot takes several messages.
    for number in range(writes):
        outcomes[f"k{number}", leader] = peers.put(leader, f"k{number}", peers.large_bytes)
    peers.settle()
    for other in others:
        peers.compact(other)
    peers.connect(deposed, leader)
    for _ in range(20):
        peers.beat(leader)
        while peers.deliver(leader, deposed, 1):
            peers.turn(deposed)
        peers.deliver(deposed, leader)
        for other in others:
            if other != leader:
                peers.deliver(leader, other)
                peers.turn(other)
                peers.deliver(other, leader)
    peers.settle()
    acknowledged = {key: node for (key, node), outcome in outcomes.items() if outcome.acknowledged}
    return Played(acknowledged, {node: peers.keys(node) for node in peers.ids})


def removals_by_an_isolated_leader(peers: Peers) -> Played:
    """A leader that is cut off is asked to remove both others, and to write; they elect another, and write.

    Once all are connected again, both are asked to write.
    """
    isolated = peers.elect(1, 2, 3)
    others = [node for node in peers.ids if node != isolated]
    for other in others:
        peers.sever(isolated, other)
    for other in others:
        peers.remove(isolated, other)
    outcomes = {("alone", isolated): peers.put(isolated, "alone")}
    for _ in range(3):
        peers.beat(isolated)
    leader = peers.elect(*others)
    outcomes["elsewhere", leader] = peers.put(leader, "elsewhere")
    peers.settle()
    for other in others:
        peers.connect(isolated, other)
    peers.settle()
    outcomes["alone again", isolated] = peers.put(isolated, "alone again")
    outcomes["elsewhere again", leader] = peers.put(leader, "elsewhere again")
    peers.settle()
    acknowledged = {key: node for (key, node), outcome in outcomes.items() if outcome.acknowledged}
    return Played(acknowledged, {node: peers.keys(node) for node in peers.ids})
