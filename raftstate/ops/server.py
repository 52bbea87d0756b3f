"""What a node's HTTP port shows: /metrics, /livez, /readyz."""

from __future__ import annotations

import asyncio
import http
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from raftstate.ops.exposition import CONTENT_TYPE, Exposition
from raftstate.ops.http import HttpServer, Query, Response
from raftstate.ops.metric import Parts, read_all
from raftstate.ops.metrics import METRICS
from raftstate.ops.probes import Check, alive, ready


class OpsServer:
    """The HTTP port of a node.

    `now_ns`: the driver's monotonic clock.
    """

    def __init__(self, parts: Parts, now_ns: Callable[[], int]) -> None:
        self._parts = parts
        self._now_ns = now_ns
        self._exposition = Exposition()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="raftstate-metrics")
        self._http = HttpServer({"/metrics": self._metrics, "/livez": self._livez, "/readyz": self._readyz})

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port. Raises `ConfigError` when the address can't be bound."""
        return await self._http.start(host, port)

    async def close(self) -> None:
        """Listen no more."""
        await self._http.close()
        self._thread.shutdown(cancel_futures=True)

    async def _metrics(self, _query: Query) -> Response:
        readings = read_all(METRICS, self._parts)
        loop = asyncio.get_running_loop()
        text = await loop.run_in_executor(self._thread, self._exposition.text, readings)
        return Response(http.HTTPStatus.OK, text, CONTENT_TYPE)

    async def _livez(self, query: Query) -> Response:
        return _judged("livez", alive(self._parts.driver, self._now_ns()), query)

    async def _readyz(self, query: Query) -> Response:
        return _judged("readyz", ready(self._parts.driver), query)


def _judged(what: str, checks: Iterable[Check], query: Query) -> Response:
    """Answer a probe: "ok", or with `verbose`, or where something is wrong, a line for each check."""
    looked_at = list(checks)
    good = not any(check.reason for check in looked_at)
    lines = [
        f"[-]{check.name} failed: {check.reason}" if check.reason else f"[+]{check.name} ok"
        for check in looked_at
    ]
    verdict = f"{what} check {'passed' if good else 'failed'}"
    body = "ok\n" if good and "verbose" not in query else "\n".join([*lines, verdict]) + "\n"
    return Response(http.HTTPStatus.OK if good else http.HTTPStatus.SERVICE_UNAVAILABLE, body.encode())
