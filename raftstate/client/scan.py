"""Scans: all pairs of an interval, as they were at one revision, page by page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

from raftstate.client.methods import RANGE
from raftstate.client.results import range_result
from raftstate.client.types import KeyValue
from raftstate.pb.v1 import common_pb2, kv_pb2

if TYPE_CHECKING:
    from raftstate.client.async_client import AsyncClient


class AsyncScan:
    """The pairs of a scan, in order of their keys; an async iterator, made by `AsyncClient.scan`.

    Each page is read when the one before it is used up. The first one includes every write acknowledged
    before it; it pins the revision. The others may come from any node that has applied as much.
    """

    def __init__(self, client: AsyncClient, request: kv_pb2.RangeRequest, timeout: float | None) -> None:
        self._client = client
        self._request = request
        self._timeout = timeout
        self._page: Iterator[KeyValue] = iter(())
        self._done = False
        self.revision: int | None = request.revision or None
        """The revision that all pairs are of; None: the first page has not been read yet."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> KeyValue:
        while True:
            for pair in self._page:
                return pair
            self._page = iter(await self._next_page())

    async def _next_page(self) -> tuple[KeyValue, ...]:
        """Read a page. After a call that failed or was cancelled, the next one reads the same page.

        Raises `StopAsyncIteration` at the end.
        """
        if self._done:
            raise StopAsyncIteration
        request = self._request
        reply = await self._client._read(RANGE, request, self._timeout)
        if self.revision is None:
            self.revision = request.revision = reply.header.revision
        if request.consistency != common_pb2.CONSISTENCY_LOCAL:
            request.consistency = common_pb2.CONSISTENCY_LOCAL
            request.min_applied_index = reply.header.applied_index
        page = range_result(reply)
        start = page.next_start
        if start is None:
            self._done = True
        else:
            request.key = start
        return page.kvs


class Pages:
    """The pages of a scan, each as a tuple: an async iterator."""

    def __init__(self, scan: AsyncScan) -> None:
        self._scan = scan

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[KeyValue, ...]:
        return await self._scan._next_page()


class Scan:
    """The sync face of `AsyncScan`: an iterator, made by `Client.scan`. For one thread at a time."""

    def __init__(self, inner: AsyncScan, pages: Iterator[tuple[KeyValue, ...]]) -> None:
        self._inner = inner
        self._pages = pages
        self._page: Iterator[KeyValue] = iter(())

    @property
    def revision(self) -> int | None:
        """The revision that all pairs are of; None: the first page has not been read yet."""
        return self._inner.revision

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> KeyValue:
        while True:
            for pair in self._page:
                return pair
            self._page = iter(next(self._pages))
