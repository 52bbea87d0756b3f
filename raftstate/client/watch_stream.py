"""The way of watches: one stream to one node for all watches of a client.

One task (`_run`) keeps a stream to the tracker's home node while there are watches. When the stream breaks,
or its node is of no use any more, every watch is created anew on the next node from its own resume point
(`watch_inbox`). Each creation has an id of its own, so that what was on its way to an earlier one is not
taken for the present one's.

A node is of no use when it does not answer, though nothing came from it for a while; when it has heard no
leader for some time, since what the others commit does not reach it; and when a stream that should at least
carry progress notes is silent.

A watch whose events nobody takes is *parked*: ended at the node, and created again when they were taken. So
it takes memory neither here nor there, and the others of the stream go on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable

from raftstate.client.faults import RpcFailure, as_error, detail_of, passes
from raftstate.client.leader import LeaderTracker, backoff_s
from raftstate.client.methods import WATCH
from raftstate.client.transport import Stream, Transport
from raftstate.client.watch_inbox import Inbox, decode
from raftstate.errors import (
    ClosedError,
    DeadlineError,
    InvariantError,
    NoLeaderError,
    OutOfRangeError,
    RaftstateError,
)
from raftstate.pb.v1 import cluster_pb2, common_pb2, watch_pb2

FIRST_S = 1.0
"""A node that says nothing at all on a new stream for so long is asked whether it lives."""
QUIET_S = 3.0
"""So is one whose watches had no events for so long."""
ASK_S = 2.0
"""A node that lives answers within this."""
CUT_OFF_ASKS = 2
"""A node that hears no leader in so many askings in sequence is left: an election is over by then."""
SILENT_S = 15.0
"""Three of a node's intervals between progress notes (5 s)."""

_SILENT_MS_MAX = 2_000
"""A leader that a node has not heard for so long is not its leader any more: several election timeouts."""

DECODE_EVENTS = 256
"""Events are taken in portions of so many; in between, those who wait for them have their turn."""

_WatchStream = Stream[watch_pb2.WatchRequest, watch_pb2.WatchResponse]


class Watcher:
    """The watches of one client on one event loop."""

    def __init__(self, transport: Transport, tracker: LeaderTracker) -> None:
        self._transport = transport
        self._tracker = tracker
        self._loop = asyncio.get_running_loop()
        self._inboxes: dict[Inbox, None] = {}
        """Those that have not ended."""
        self._live: dict[int, Inbox] = {}
        """By the id of their creation on the present stream."""
        self._to_send: deque[watch_pb2.WatchRequest] = deque()
        self._work = asyncio.Event()
        self._last_id = 0
        self._streaming = False
        self._serving: str | None = None
        """The node of the present stream, once it has said something."""
        self._tried: dict[str, str] = {}
        self._heard_at = 0.0
        self._events = 0
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    # ---- for watches

    def add(self, inbox: Inbox) -> None:
        """Begin a watch. Raises `ClosedError`."""
        if self._closed:
            raise ClosedError("the client is closed; connect again")
        self._inboxes[inbox] = None
        if self._streaming:
            self._create(inbox)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="raftstate-watcher")
            self._task.add_done_callback(self._ended)

    def remove(self, inbox: Inbox) -> None:
        """End a watch; harmless when it has ended."""
        if inbox in self._inboxes:
            del self._inboxes[inbox]
            self._cancel(inbox)

    def remove_soon(self, inbox: Inbox) -> None:
        """As `remove`, from any thread."""
        self._call_soon(self.remove, inbox)

    def refill_soon(self, inbox: Inbox) -> None:
        """Have a parked watch sent events again; from any thread."""
        self._call_soon(self._refill, inbox)

    def late(self, timeout_s: float) -> NoLeaderError | DeadlineError:
        """Return the error for a watch that no node has created in time."""
        if self._serving is None:
            return self._tracker.no_leader(timeout_s, "the watch was not created")
        return DeadlineError(
            f"{self._serving} did not create the watch within {timeout_s:g} s; it is behind, or has no leader"
        )

    @property
    def standing(self) -> str:
        """How things are with the stream, for people."""
        if self._serving is not None:
            return f"the watch is served by {self._serving}"
        tried = ", ".join(f"{address} ({reason})" for address, reason in self._tried.items())
        return f"no node serves the watch at present; tried {tried or 'none yet'}"

    async def close(self) -> None:
        """End all watches with `ClosedError`, and the stream."""
        if self._closed:
            return
        self._closed = True
        self._end_all(ClosedError("the client was closed"))
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _call_soon(self, function: object, inbox: Inbox) -> None:
        # A loop that is closed has ended its client's watches before.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, inbox)  # type: ignore[arg-type]

    def _refill(self, inbox: Inbox) -> None:
        if inbox.parked and inbox in self._inboxes:
            inbox.parked = False
            self._create_unless_live(inbox)

    def _note_failure(self, address: str, reason: str) -> None:
        self._tried[address] = reason
        self._tracker.note_failure(address, reason)

    # ---- from stream to stream

    async def _run(self) -> None:
        attempt = 0
        while self._inboxes:
            self._serving = None
            await self._watch_on_one_stream(self._tracker.home)
            attempt = 0 if self._serving is not None else attempt + 1
            self._serving = None
            await asyncio.sleep(backoff_s(attempt))
        # Here, and not when the task is done: whoever adds a watch in between must see it.
        self._task = None

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Tell those who wait, rather than let them wait for ever: of a bug, or that somebody has cancelled
        all tasks of the loop.
        """
        if self._closed:
            return
        if task.cancelled():
            self._task = None
            self._end_all(ClosedError("the client's task was cancelled from outside"))
            return
        error = task.exception()
        if error is not None:
            self._task = None
            self._loop.call_exception_handler(
                {"message": "raftstate: the watcher failed; this is a bug", "exception": error, "task": task}
            )
            self._end_all(InvariantError(f"the client's watcher failed; this is a bug: {error!r}"))

    def _end_all(self, error: RaftstateError) -> None:
        self._end(list(self._inboxes), error)

    def _end(self, inboxes: Iterable[Inbox], error: RaftstateError) -> None:
        for inbox in inboxes:
            self._inboxes.pop(inbox, None)
            inbox.end(error)

    async def _watch_on_one_stream(self, address: str) -> None:
        """Serve all watches by one node until its stream ends."""
        try:
            await self._serve_by(address)
        except RpcFailure as failure:
            self._note_failure(address, failure.text)
            if failure.error is not None and not passes(failure.error):
                # Those that were promised nothing yet are told; the others go on elsewhere.
                new = [inbox for inbox in self._inboxes if not inbox.created]
                self._end(new, as_error(failure.error))
        except RaftstateError as error:
            self._end_all(error)
        self._tracker.forget(address)

    async def _serve_by(self, address: str) -> None:
        """Raises `RpcFailure`, `WrongClusterError`, `ClosedError`, `FailedPreconditionError`."""
        stream = self._transport.stream(address, WATCH)
        self._streaming = True
        self._heard_at = self._loop.time()
        # Those that begin now need a leader, and the node may wait for one: they come last.
        for inbox in sorted(self._inboxes, key=lambda inbox: not inbox.revision):
            if not inbox.parked:
                self._create(inbox)
        tasks = (
            asyncio.create_task(self._send(stream)),
            asyncio.create_task(self._receive(stream, address)),
            asyncio.create_task(self._look_after(address)),
        )
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            stream.cancel()
            self._streaming = False
            self._live.clear()
            self._to_send.clear()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        failures = [
            outcome
            for outcome in outcomes
            if outcome is not None and not isinstance(outcome, asyncio.CancelledError)
        ]
        # What a node or the client is wrong about weighs more than that a stream broke.
        for failure in sorted(failures, key=lambda failure: isinstance(failure, RpcFailure)):
            raise failure

    async def _look_after(self, address: str) -> None:
        """Return when the node is of no use any more. Raises `RpcFailure` when it does not answer."""
        deaf = 0
        while True:
            events = self._events
            await asyncio.sleep(QUIET_S if self._serving else FIRST_S)
            if not self._live:
                self._heard_at = self._loop.time()
            if not self._live or self._events != events:
                deaf = 0
                continue
            try:
                status = await self._tracker.ask(address, ASK_S)
            except RpcFailure:
                if self._events != events:
                    continue  # busy with sending them
                raise
            deaf = deaf + 1 if _hears_no_leader(status) else 0
            if deaf >= CUT_OFF_ASKS and len(self._tracker.endpoints) > 1:
                self._note_failure(address, "hears no leader")
                return
            if self._loop.time() - self._heard_at > SILENT_S:
                self._note_failure(address, f"said nothing for {SILENT_S:g} s")
                return

    # ---- one stream

    def _create(self, inbox: Inbox) -> None:
        self._last_id += 1
        self._live[self._last_id] = inbox
        self._enqueue(inbox.begin(self._last_id))

    def _create_unless_live(self, inbox: Inbox) -> None:
        if self._streaming and inbox in self._inboxes and not inbox.parked and not self._is_live(inbox):
            self._create(inbox)

    def _is_live(self, inbox: Inbox) -> bool:
        return self._live.get(inbox.watch_id) is inbox

    def _cancel(self, inbox: Inbox) -> None:
        if self._is_live(inbox):
            del self._live[inbox.watch_id]
            self._enqueue(watch_pb2.WatchRequest(cancel=watch_pb2.WatchCancel(watch_id=inbox.watch_id)))

    def _enqueue(self, request: watch_pb2.WatchRequest) -> None:
        self._to_send.append(request)
        self._work.set()

    async def _send(self, stream: _WatchStream) -> None:
        while True:
            while self._to_send:
                await stream.write(self._to_send.popleft())
            self._work.clear()
            await self._work.wait()

    async def _receive(self, stream: _WatchStream, address: str) -> None:
        while (response := await stream.read()) is not None:
            self._tracker.observe(response.header)
            self._serving = address
            self._heard_at = self._loop.time()
            for created in response.created:
                inbox = self._live.get(created.watch_id)
                if inbox is not None:
                    inbox.confirm(created.start_revision)
            for group in response.events:
                await self._deliver(group)
            for watch_id in response.progress:
                inbox = self._live.get(watch_id)
                if inbox is not None:
                    inbox.advance(response.header.revision)
            for canceled in response.canceled:
                self._canceled(canceled, address)
        self._note_failure(address, "ended the stream of watches")

    async def _deliver(self, group: watch_pb2.WatchEvents) -> None:
        """Hand events to their watches; each is decoded once."""
        live = self._live
        if live.keys().isdisjoint(group.watch_ids):
            return
        for start in range(0, len(group.events), DECODE_EVENTS):
            if start:
                await asyncio.sleep(0)
            batch = decode(group.events[start : start + DECODE_EVENTS])
            self._events += len(batch.events)
            for watch_id in group.watch_ids:
                inbox = live.get(watch_id)
                if inbox is None:
                    continue
                if inbox.is_full:
                    self._cancel(inbox)
                    inbox.parked = True
                else:
                    inbox.receive(batch)

    def _canceled(self, canceled: watch_pb2.WatchCanceled, address: str) -> None:
        """A node has ended a watch: end it here, or try again what may succeed later."""
        inbox = self._live.pop(canceled.watch_id, None)
        if inbox is None:
            return  # asked for
        error = canceled.error
        if error.code == common_pb2.ERROR_CODE_OUT_OF_RANGE:
            detail = {**detail_of(error), "compacted_revision": canceled.compacted_revision}
            self._end([inbox], OutOfRangeError(error.message, field=error.field, detail=detail))
            return
        # A limit is told to whoever asks for a new watch. One that was promised goes on when there is room.
        is_limit = error.code == common_pb2.ERROR_CODE_RESOURCE_EXHAUSTED
        if passes(error) or (is_limit and inbox.created):
            self._note_failure(address, error.message or "ended the watch")
            inbox.attempts += 1
            self._loop.call_later(backoff_s(inbox.attempts), self._create_unless_live, inbox)
            return
        self._end([inbox], as_error(error))


def _hears_no_leader(status: cluster_pb2.StatusResponse) -> bool:
    return status.role != cluster_pb2.ROLE_LEADER and (
        not status.leader_id or status.leader_silent_ms > _SILENT_MS_MAX
    )
