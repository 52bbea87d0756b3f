"""What the streaming services know of a stream, whoever carries it."""

from __future__ import annotations

from typing import Protocol

from google.protobuf.message import Message


class Stream(Protocol):
    """The node's side of one call with any number of messages either way.

    One task reads, and one at a time writes. Both raise what they like when the call is over for a reason of
    its own (the client is gone): a handler lets that pass.
    """

    async def read(self) -> bytes | None:
        """Return the client's next message, serialized; None: it has no more to say."""
        ...

    async def write(self, message: Message) -> None:
        """Send a message, which the handler changes no more; waits while the client takes no more."""
        ...
