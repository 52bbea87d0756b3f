"""Connections in memory, as TCP's are: in order, nothing twice; what is under way when one breaks is lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import permutations
from typing import Generic, TypeVar

Message = TypeVar("Message")


class Links(Generic[Message]):
    """The connections between some nodes, all up at first. Messages wait until they are delivered by hand.

    Args:
        ids: the nodes.
        receive: called with sender, receiver and message when one is delivered.
    """

    def __init__(self, ids: tuple[int, ...], receive: Callable[[int, int, Message], None]) -> None:
        self._receive = receive
        self._under_way: dict[tuple[int, int], deque[Message]] = {
            pair: deque() for pair in permutations(ids, 2)
        }
        self._broken: set[frozenset[int]] = set()

    def are_connected(self, one: int, other: int) -> bool:
        """Return whether what one of them sends can reach the other."""
        return frozenset((one, other)) not in self._broken

    def send(self, sender: int, to: int, message: Message) -> bool:
        """Put a message behind those under way; return whether there is a connection."""
        connected = self.are_connected(sender, to)
        if connected:
            self._under_way[sender, to].append(message)
        return connected

    def sever(self, one: int, other: int) -> None:
        """Break a connection: what is under way is lost."""
        self._broken.add(frozenset((one, other)))
        self._under_way[one, other].clear()
        self._under_way[other, one].clear()

    def connect(self, one: int, other: int) -> None:
        """Make a connection anew."""
        self._broken.discard(frozenset((one, other)))

    def lose(self, sender: int, to: int) -> None:
        """Lose what is under way in one direction."""
        self._under_way[sender, to].clear()

    def pending(self, sender: int, to: int) -> list[Message]:
        """Return what is under way, the next to arrive first."""
        return list(self._under_way[sender, to])

    def deliver(self, sender: int, to: int, count: int | None = None) -> int:
        """Deliver so many of the messages that are under way now (None: all of them); return how many did."""
        waiting = self._under_way[sender, to]
        wanted = len(waiting) if count is None else count
        delivered = 0
        while waiting and delivered < wanted:  # a delivery may break the connection
            delivered += 1
            self._receive(sender, to, waiting.popleft())
        return delivered

    def deliver_all(self) -> bool:
        """Deliver what is under way everywhere; return whether there was anything."""
        pairs = [pair for pair, messages in self._under_way.items() if messages]
        for sender, to in pairs:
            self.deliver(sender, to)
        return bool(pairs)
