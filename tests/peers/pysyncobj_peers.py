"""pysyncobj's core as it is published, over connections in memory, with the clock and the dice of a test."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pysyncobj.syncobj
import pytest
from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, replicated
from pysyncobj.node import Node
from pysyncobj.pickle import dumps, loads
from pysyncobj.transport import Transport

from tests.peers.links import Links

BEAT_S = 0.11
"""A little more than the default `appendEntriesPeriod`."""


@dataclass
class _Outcome:
    """A callback, as the package calls it."""

    reasons: list[int] = field(default_factory=list)

    def __call__(self, _result: object, reason: int) -> None:
        self.reasons.append(reason)

    @property
    def acknowledged(self) -> bool:
        return self.reasons == [FAIL_REASON.SUCCESS]


class Store(SyncObj):
    """A replicated dictionary, made as the package's documentation says."""

    def __init__(self, own: Node, others: list[Node], conf: SyncObjConf, transport: Transport) -> None:
        super().__init__(own, others, conf, nodeClass=Node, transport=transport)
        self.content: dict[str, str] = {}

    @replicated
    def put(self, key: str, value: str) -> None:
        self.content[key] = value


class _MemoryTransport(Transport):  # type: ignore[misc]
    """Implements the package's own seam. Messages are pickled, as its transport over TCP does."""

    def __init__(self, own: int, links: Links[bytes], dropped: Callable[[int, int], None]) -> None:
        super().__init__(None, None, [])
        self._own, self._links, self._dropped = own, links, dropped
        self.unwanted: set[int] = set()
        """To whom there is no connection any more, whoever dials."""

    def send(self, node: Node, message: Any) -> bool:
        return self._links.send(self._own, number(node), dumps(message))

    def addNode(self, node: Node) -> None:  # noqa: N802 - the package's name
        self.unwanted.discard(number(node))

    def dropNode(self, node: Node) -> None:  # noqa: N802 - the package's name
        self.unwanted.add(number(node))
        self._dropped(self._own, number(node))

    def receive(self, sender: int, message: bytes) -> None:
        self._onMessageReceived(name(sender), loads(message))

    def connected(self, other: int, is_up: bool) -> None:
        (self._onNodeConnected if is_up else self._onNodeDisconnected)(name(other))


def name(node_id: int) -> Node:
    return Node(f"n{node_id}")


def number(node: Node) -> int:
    return int(node.id[1:])


class PysyncobjPeers:
    """Implements `schedules.Peers`.

    Args:
        monkeypatch: gives the package another clock and seeded dice, for as long as a test runs.
        journals: a folder for journals; None: nodes keep their logs in memory.
        settings: of `SyncObjConf`; whatever is not named has its default.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *, journals: Path | None = None, **settings: object
    ) -> None:
        self.now_s = 1_000.0
        self._dice = random.Random(1)
        monkeypatch.setattr(pysyncobj.syncobj, "monotonicTime", lambda: self.now_s)
        monkeypatch.setattr(pysyncobj.syncobj, "random", self._dice)
        self.ids = (1, 2, 3)
        self.large_bytes = 40_000  # a message of entries ends with the one that takes it to 64 KiB
        self._links: Links[bytes] = Links(self.ids, self._receive)
        self._alive = {*self.ids}
        self._transports = {own: _MemoryTransport(own, self._links, self._break) for own in self.ids}
        self.stores: dict[int, Store] = {}
        for own, transport in self._transports.items():
            file = None if journals is None else str(journals / f"n{own}.journal")
            conf = SyncObjConf(autoTick=False, journalFile=file, **settings)
            others = [name(other) for other in self.ids if other != own]
            self.stores[own] = Store(name(own), others, conf, transport)
        for own in self.ids:
            for other in self.ids:
                if own != other:
                    self._transports[own].connected(other, True)

    # -- what nodes do

    def turn(self, node: int) -> None:
        self.stores[node].doTick()

    def beat(self, node: int) -> None:
        self.now_s += BEAT_S
        self.turn(node)

    def elect(self, *candidates: int) -> int:
        for candidate in candidates:
            self.now_s += self.stores[candidate].conf.raftMaxTimeout
            self.turn(candidate)
            self.settle()
            if self.stores[candidate]._isLeader():
                return candidate
        raise AssertionError(f"none of {candidates} was elected")

    def settle(self) -> None:
        for _ in range(20):
            self.round()

    def round(self) -> None:
        """Let a beat pass, every node do its part, and everything arrive."""
        self.now_s += BEAT_S
        # Leaders first, so that nobody else's time runs out.
        for node in sorted(self._alive, key=lambda node: not self.stores[node]._isLeader()):
            self.turn(node)
            self._links.deliver_all()

    def put(self, node: int, key: str, size: int = 1) -> _Outcome:
        outcome = _Outcome()
        self.stores[node].put(key, self._dice.randbytes(size // 2).hex(), callback=outcome)
        self.turn(node)
        return outcome

    def remove(self, node: int, removed: int) -> _Outcome:
        outcome = _Outcome()
        self.stores[node].removeNodeFromCluster(name(removed), callback=outcome)
        self.turn(node)
        return outcome

    def compact(self, node: int) -> None:
        self.stores[node].forceLogCompaction()
        self.turn(node)
        self.turn(node)

    def keys(self, node: int) -> set[str]:
        return {*self.stores[node].content}

    def progress(self, leader: int, follower: int) -> tuple[int, int]:
        """Return matchIndex and nextIndex that a leader keeps of a follower."""
        status = self.stores[leader].getStatus()
        peer = name(follower).id
        return status[f"match_idx_server_{peer}"], status[f"next_node_idx_server_{peer}"]

    # -- what happens to them

    def crash(self, node: int) -> None:
        self._alive.discard(node)
        for other in self.ids:
            if other != node:
                self.sever(node, other)

    def sever(self, one: int, other: int) -> None:
        self._links.sever(one, other)
        self._transports[one].connected(other, False)
        self._transports[other].connected(one, False)

    def connect(self, one: int, other: int) -> None:
        if other in self._transports[one].unwanted or one in self._transports[other].unwanted:
            return
        self._links.connect(one, other)
        self._transports[one].connected(other, True)
        self._transports[other].connected(one, True)

    def lose(self, sender: int, to: int) -> None:
        self.sever(sender, to)
        self.connect(sender, to)

    def deliver(self, sender: int, to: int, count: int | None = None) -> int:
        return self._links.deliver(sender, to, count)

    def deliver_refusal(self, sender: int, to: int) -> None:
        messages = [loads(message) for message in self._links.pending(sender, to)]
        refusals = [n for n, message in enumerate(messages) if message.get("reset")]
        assert refusals, f"no refusal is under way: {messages}"
        self._links.deliver(sender, to, refusals[0] + 1)

    def _receive(self, sender: int, to: int, message: bytes) -> None:
        if to in self._alive:
            self._transports[to].receive(sender, message)

    def _break(self, own: int, other: int) -> None:
        if self._links.are_connected(own, other):
            self.sever(own, other)
