"""Keeps the conversion of many pairs from holding the event loop: heartbeats and other calls get their
turns."""

from __future__ import annotations

import asyncio

PAIRS_A_TURN = 2_000
"""Converted in one turn of the loop, or those of one answer: about 1 us each, and as much again to send."""


class Pace:
    """What all calls of a node share. In order: who asks for many pairs is not overtaken for ever."""

    def __init__(self) -> None:
        self._spent = 0
        """In this turn of the loop."""
        self._queue = asyncio.Lock()

    async def spend(self, pairs: int) -> None:
        """Wait until so many pairs may be converted. At once if it is few, or the first in this turn."""
        if not self._queue.locked() and self._has_room(pairs):
            self._take(pairs)
            return
        async with self._queue:
            while not self._has_room(pairs):  # noqa: ASYNC110 - the next turn of the loop is waited for
                await asyncio.sleep(0)
            self._take(pairs)

    def _has_room(self, pairs: int) -> bool:
        return not self._spent or self._spent + pairs <= PAIRS_A_TURN

    def _take(self, pairs: int) -> None:
        if pairs and not self._spent:
            asyncio.get_running_loop().call_soon(self._begin_turn)
        self._spent += pairs

    def _begin_turn(self) -> None:
        self._spent = 0
