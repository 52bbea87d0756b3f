"""The Watch service: changes to keys, as they are made, over one stream for any number of watches.

    read ──> create, cancel, progress, in the order they came ──┐
                                                                ├──> the node's watches of this stream
    write <── what they have to say, one message at a time <────┘

Nothing is queued here beyond the message that is being written: a client that reads slowly, or not at all,
costs the node what `NodeWatches` counts for it, which is bounded; where others wait for that, it is given up.
A create that is refused is answered in the place of its watch, and the stream goes on; what is no request at
all ends it.
"""

from __future__ import annotations

import asyncio

from raftstate.errors import ClosedError, InvalidArgumentError
from raftstate.machine.types import covers
from raftstate.node.service import TIMEOUT_S_DEFAULT, NodeService, NodeWatches, WatchSpec
from raftstate.pb.v1 import watch_pb2
from raftstate.rpc.conversion import canceled_message, watch_message
from raftstate.rpc.stream import Stream
from raftstate.rpc.validation import check_known, check_watch, decode


class WatchHandlers:
    """Answers for one node."""

    def __init__(self, service: NodeService) -> None:
        self._service = service

    async def watch(self, stream: Stream) -> None:
        """Serve one stream until the client has no more to say and no watch is left.

        Raises `ResourceExhaustedError` at the limit of streams, `InvalidArgumentError` when what came was no
        request, `ClosedError` when the node stops.
        """
        watches = self._service.watches()
        try:
            await _WatchStream(self._service, watches, stream).serve()
        finally:
            watches.close()


class _WatchStream:
    """One stream: a reader and a writer."""

    def __init__(self, service: NodeService, watches: NodeWatches, stream: Stream) -> None:
        self._service = service
        self._watches = watches
        self._stream = stream
        self._writing = asyncio.Lock()
        self._open = 0
        """Watches that have not ended."""
        self._all_read = False

    async def serve(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                watched = tasks.create_task(self._watches.until_given_up())
                writer = tasks.create_task(self._write_news())
                writer.add_done_callback(lambda _: watched.cancel())
                await self._read_requests()
                self._all_read = True
                if not self._open:
                    writer.cancel()
        except ExceptionGroup as group:
            # The first failure (as a rule: of the stream, the client being gone) cancelled all others.
            raise group.exceptions[0] from None

    async def _read_requests(self) -> None:
        while (raw := await self._stream.read()) is not None:
            request = decode(watch_pb2.WatchRequest, raw)
            kind = request.WhichOneof("request")
            if kind == "create":
                await self._create(request)
                continue
            check_known(request)
            if kind == "cancel":
                self._watches.cancel(request.cancel.watch_id)
            elif kind == "progress":
                self._watches.request_progress()
            else:
                raise InvalidArgumentError(
                    "a request must hold create, cancel or progress, got none of them", field="request"
                )

    async def _create(self, request: watch_pb2.WatchRequest) -> None:
        """Add a watch, or answer why not."""
        create = request.create
        self._open += 1
        try:
            check_known(request)
            check_watch(create)
            start, end = covers(create.key, create.range_end)
            spec = WatchSpec(
                watch_id=create.watch_id,
                start=start,
                end=end,
                start_revision=create.start_revision,
                prev_kv=create.prev_kv,
                progress_notify=create.progress_notify,
                no_put=create.no_put,
                no_delete=create.no_delete,
            )
            await self._watches.create(spec, timeout_s=TIMEOUT_S_DEFAULT)
        except ClosedError:
            raise
        except Exception as error:  # noqa: BLE001 - becomes the answer; the unforeseen is logged there
            self._open -= 1
            refused = canceled_message(self._service, create.watch_id, error)
            await self._write(refused)

    async def _write_news(self) -> None:
        while not self._all_read or self._open:
            await self._write(await self._next_message())

    async def _next_message(self) -> watch_pb2.WatchResponse:
        # The news themselves are let go here: while it is written, the message is copy enough.
        news = await self._watches.next()
        self._open -= len(news.ended)
        return watch_message(self._service, news)

    async def _write(self, message: watch_pb2.WatchResponse) -> None:
        async with self._writing:
            await self._stream.write(message)
