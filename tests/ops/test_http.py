"""The HTTP server, as strangers meet it: what is asked well, badly, slowly, or not at all."""

from __future__ import annotations

import asyncio
import http
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from raftstate.errors import ConfigError
from raftstate.ops import http as ops_http
from raftstate.ops.http import HttpServer, Query, Response


async def hello(query: Query) -> Response:
    return Response(http.HTTPStatus.OK, f"hello {query.get('name')}\n".encode())


async def broken(query: Query) -> Response:
    raise RuntimeError("secret")


@pytest_asyncio.fixture
async def port() -> AsyncIterator[int]:
    server = HttpServer({"/hello": hello, "/broken": broken})
    port = await server.start("127.0.0.1", 0)
    yield port
    await server.close()


async def exchange(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()
    return answer


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.005)


def asked(method: str, target: str) -> bytes:
    return f"{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


async def test_a_get_is_answered_and_the_connection_closed(port: int) -> None:
    head, _, body = (await exchange(port, asked("GET", "/hello?name=a&verbose"))).partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 200 OK",
        b"Content-Type: text/plain; charset=utf-8",
        b"Content-Length: 12",
        b"Cache-Control: no-store",
        b"X-Content-Type-Options: nosniff",
        b"Connection: close",
    ]
    assert body == b"hello ['a']\n"


async def test_a_head_has_the_length_and_no_body(port: int) -> None:
    answer = await exchange(port, asked("HEAD", "/hello"))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Length: 11\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_", "status", "told"),
    [
        (asked("GET", "/"), b"404 Not Found", b"there is nothing here but /hello, /broken"),
        (asked("GET", "//hello/"), b"404 Not Found", b"there is nothing here"),
        (asked("POST", "/hello"), b"405 Method Not Allowed", b"Allow: GET, HEAD"),
        (asked("POST", "/other"), b"404 Not Found", b"there is nothing here"),
        (b"GET http://x/hello HTTP/1.1\r\n\r\n", b"400 Bad Request", b"only HTTP/1"),
        (b"GET /hello HTTP/2\r\n\r\n", b"400 Bad Request", b"only HTTP/1"),
        (b"\xff\xfe\r\n\r\n", b"400 Bad Request", b"this is not HTTP"),
        (b"GET\r\n\r\n", b"400 Bad Request", b"this is not HTTP"),
        (asked("GET", "/hello?" + "a&" * 40), b"400 Bad Request", b"this is no URL"),
        (asked("GET", "//["), b"400 Bad Request", b"this is no URL"),
        (b"GET /hello HTTP/1.1\r\nX: " + b"y" * 9_000 + b"\r\n\r\n", b"431 ", b"longer than 8192 bytes"),
    ],
)
async def test_what_is_asked_badly_is_told_so(port: int, request_: bytes, status: bytes, told: bytes) -> None:
    answer = await exchange(port, request_)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert told in answer
    assert (await exchange(port, asked("GET", "/hello"))).startswith(b"HTTP/1.1 200")


async def test_a_handler_that_fails_tells_its_client_nothing_of_why(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await exchange(port, asked("GET", "/broken"))
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"secret" not in answer
    assert "a scrape or probe failed" in caplog.text


async def test_who_asks_nothing_is_given_up(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops_http, "HEAD_S_MAX", 0.05)
    assert (await exchange(port, b"GET /hel")).startswith(b"HTTP/1.1 408 ")


async def test_who_leaves_without_asking_is_no_error(port: int, caplog: pytest.LogCaptureFixture) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    await writer.wait_closed()
    assert (await exchange(port, asked("GET", "/hello"))).startswith(b"HTTP/1.1 200")
    assert caplog.records == []


async def test_who_does_not_take_the_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def large(query: Query) -> Response:
        return Response(http.HTTPStatus.OK, bytes(64 << 20))

    monkeypatch.setattr(ops_http, "ANSWER_S_MAX", 0.05)
    server = HttpServer({"/large": large})
    port = await server.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 10)
    writer.write(asked("GET", "/large"))
    # The reader stops taking when it has twice its limit, until somebody reads.
    await until(lambda: server.connections_open == 1)
    await until(lambda: server.connections_open == 0)
    try:
        assert len(await reader.read()) < 64 << 20
    except ConnectionResetError:
        pass
    finally:
        writer.close()
        await server.close()


async def test_who_connects_and_says_nothing_keeps_nobody_out(
    port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ops_http, "CONNECTIONS_MAX", 2)
    waiting = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
    for _, writer in waiting:
        writer.write(b"GET ")  # accepted by the time that the next one is
    assert (await exchange(port, asked("GET", "/hello"))).startswith(b"HTTP/1.1 200")
    first, second = (reader for reader, _ in waiting)
    with pytest.raises((ConnectionResetError, AssertionError)):
        assert await first.read(1)
    assert not second.at_eof()
    for _, writer in waiting:
        writer.close()
    assert caplog.records == []


async def test_connections_beyond_the_limit_are_closed_unheard_while_all_are_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = asyncio.Event()

    async def slow(query: Query) -> Response:
        await free.wait()
        return Response(http.HTTPStatus.OK, b"slow\n")

    monkeypatch.setattr(ops_http, "CONNECTIONS_MAX", 2)
    server = HttpServer({"/slow": slow})
    port = await server.start("127.0.0.1", 0)
    slow_ones = [asyncio.create_task(exchange(port, asked("GET", "/slow"))) for _ in range(2)]
    await until(lambda: server.connections_open == 2 and not server._silent)
    with pytest.raises((ConnectionResetError, AssertionError)):
        assert await exchange(port, asked("GET", "/slow"))
    free.set()
    assert all(answer.endswith(b"slow\n") for answer in await asyncio.gather(*slow_ones))
    await server.close()


async def test_a_port_that_is_taken_is_refused_by_name(port: int) -> None:
    with pytest.raises(ConfigError, match=f"can't listen for metrics on 127.0.0.1:{port}") as refused:
        await HttpServer({}).start("127.0.0.1", port)
    assert refused.value.field == "listen_metrics"
