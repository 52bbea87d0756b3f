"""How a client's messages reach a node: what the rest of the client knows of it.

`channels.Channels` does it with gRPC; a node within this process is reached without a socket. All failures
are `RpcFailure`s, whoever carries the messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

Request = TypeVar("Request")
Response = TypeVar("Response")
Outgoing = TypeVar("Outgoing", contravariant=True)
Incoming = TypeVar("Incoming", covariant=True)


@dataclass(frozen=True, slots=True)
class Method(Generic[Request, Response]):
    """A method of the wire contract. `name`: of its service and its own, for example "KV/Get"."""

    name: str
    request: type[Request]
    response: type[Response]

    @property
    def path(self) -> str:
        """The method's full path, as gRPC has it."""
        return f"/raftstate.v1.{self.name}"


class Stream(Protocol[Outgoing, Incoming]):
    """One call with any number of messages either way."""

    async def write(self, message: Outgoing) -> None:
        """Send a message; waits while the node takes no more. Raises `RpcFailure` when the call has ended."""
        ...

    async def read(self) -> Incoming | None:
        """Return the next message; None: the node has ended the call in good order.

        Raises `RpcFailure` when it ended otherwise.
        """
        ...

    def cancel(self) -> None:
        """End the call; harmless when it has ended."""
        ...


class Transport(Protocol):
    """Calls to nodes by address. Belongs to one event loop."""

    async def unary(
        self, address: str, method: Method[Request, Response], request: Request, timeout_s: float
    ) -> Response:
        """Call a method and return its response.

        Raises `RpcFailure`, `ClosedError` after `close`, and `FailedPreconditionError` where the process may
        not make calls.
        """
        ...

    def stream(self, address: str, method: Method[Request, Response]) -> Stream[Request, Response]:
        """Begin a call of a streaming method. Raises as `unary`, but for `RpcFailure`."""
        ...

    async def close(self) -> None:
        """End everything, for good; calls under way fail."""
        ...
