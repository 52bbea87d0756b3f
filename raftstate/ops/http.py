"""A small HTTP server for scrapes and probes, on the node's event loop.

On the loop, not on a thread of its own: that it answers is the proof that the loop turns, and what it shows
is of one moment without a lock. What takes longer than a look, the text of a scrape, is made on a thread.

It answers one GET or HEAD a connection and closes it. Whatever a stranger does costs little: the head of a
request has a size and a time, an answer has a time to be taken, and connections are counted.
"""

from __future__ import annotations

import asyncio
import http
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from raftstate.errors import ConfigError
from raftstate.logs import get_logger

log = get_logger(__name__)

HEAD_BYTES_MAX = 8 << 10
"""What browsers and Prometheus send is a tenth of it."""
HEAD_S_MAX = 5.0
"""From the connection to the end of the request's head."""
ANSWER_S_MAX = 10.0
"""Until the client has taken the answer: Prometheus' own default patience."""
CONNECTIONS_MAX = 32
"""A few scrapers and probes need no more. One more takes the place of the one that has been silent for the
longest, so that nobody keeps a probe out by connecting; it is closed unheard while all are being answered."""

PLAIN = "text/plain; charset=utf-8"


class Response(NamedTuple):
    """What is answered."""

    status: http.HTTPStatus
    body: bytes
    content_type: str = PLAIN


Query = Mapping[str, list[str]]
Handler = Callable[[Query], Awaitable[Response]]
"""Takes what stands after the ? of the URL."""


class _BadRequestError(Exception):
    def __init__(self, status: http.HTTPStatus, why: str, allow: str = "") -> None:
        super().__init__(why)
        self.status = status
        self.allow = allow


class HttpServer:
    """Serves handlers by path. `start`, then `close`."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = dict(handlers)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._silent: dict[asyncio.StreamWriter, None] = {}
        """Those who have not asked yet, in the order in which they came."""

    @property
    def connections_open(self) -> int:
        """How many connections are being served."""
        return len(self._connections)

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port (of `port` 0 the one that the system chose).

        Raises `ConfigError` when the address can't be bound.
        """
        try:
            self._server = await asyncio.start_server(self._accept, host, port, limit=HEAD_BYTES_MAX)
        except OSError as error:
            raise ConfigError(
                f"can't listen for metrics on {host}:{port}: {error}; another process may be there, or the "
                "address not be this machine's. Give listen_metrics another one",
                field="listen_metrics",
            ) from error
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def close(self) -> None:
        """Listen no more, and end what is under way."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)
        if self._server is not None:
            await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= CONNECTIONS_MAX:
            silent = next(iter(self._silent), writer)
            self._silent.pop(silent, None)
            silent.transport.abort()
            if silent is writer:
                return
        self._silent[writer] = None
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, whatever becomes of it."""
        try:
            answer = await self._answer(reader, writer)
            if answer is not None:
                async with asyncio.timeout(ANSWER_S_MAX):
                    writer.write(answer)
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
        except (OSError, TimeoutError) as error:
            log.debug("metrics client lost", error=str(error) or type(error).__name__)
        finally:
            self._silent.pop(writer, None)
            # After a good end there is nothing left to abort.
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes | None:
        """Return what to send; None: the client asked nothing."""
        method = "GET"
        allow = ""
        try:
            async with asyncio.timeout(HEAD_S_MAX):
                head = await _read_head(reader)
            self._silent.pop(writer, None)
            if head is None:
                return None
            method, target = _request_line(head)
            response = await self._respond(method, target)
        except TimeoutError:
            response = _said(http.HTTPStatus.REQUEST_TIMEOUT, f"no request came within {HEAD_S_MAX:g} s")
        except _BadRequestError as error:
            response, allow = _said(error.status, str(error)), error.allow
        except Exception:
            log.exception("a scrape or probe failed")
            response = _said(http.HTTPStatus.INTERNAL_SERVER_ERROR, "the node's log says more")
        lines = [
            f"HTTP/1.1 {response.status.value} {response.status.phrase}",
            f"Content-Type: {response.content_type}",
            f"Content-Length: {len(response.body)}",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            "Connection: close",
            *([f"Allow: {allow}"] if allow else []),
        ]
        head_bytes = ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
        return head_bytes if method == "HEAD" else head_bytes + response.body

    async def _respond(self, method: str, target: str) -> Response:
        try:
            url = urlsplit(target)
            query = parse_qs(url.query, keep_blank_values=True, max_num_fields=16)
        except ValueError as error:
            raise _BadRequestError(http.HTTPStatus.BAD_REQUEST, f"this is no URL: {error}") from None
        handler = self._handlers.get(url.path)
        if handler is None:
            raise _BadRequestError(
                http.HTTPStatus.NOT_FOUND, f"there is nothing here but {', '.join(self._handlers)}"
            )
        if method not in ("GET", "HEAD"):
            raise _BadRequestError(http.HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD", allow="GET, HEAD")
        return await handler(query)


def _said(status: http.HTTPStatus, what: str) -> Response:
    return Response(status, f"{what}\n".encode())


async def _read_head(reader: asyncio.StreamReader) -> bytes | None:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except ConnectionError:
        return None
    except asyncio.LimitOverrunError:
        raise _BadRequestError(
            http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            f"the head of the request is longer than {HEAD_BYTES_MAX} bytes",
        ) from None
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise _BadRequestError(http.HTTPStatus.BAD_REQUEST, "the request has no end") from None
        return None


def _request_line(head: bytes) -> tuple[str, str]:
    """Return (method, target). Raises `_BadRequestError` unless it is HTTP/1."""
    try:
        method, target, version = head.partition(b"\r\n")[0].decode("ascii").split(" ")
    except ValueError:
        raise _BadRequestError(http.HTTPStatus.BAD_REQUEST, "this is not HTTP") from None
    if not version.startswith("HTTP/1.") or not target.startswith("/") or not method.isalpha():
        raise _BadRequestError(http.HTTPStatus.BAD_REQUEST, "only HTTP/1 is spoken here")
    return method.upper(), target
