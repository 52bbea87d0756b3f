"""The way of writes: one stream to the leader, batches on it, and what to do when either goes away.

One task (`_run`) finds the leader, opens a session and a stream, and begins again when the stream is done
for. On a stream, a sender takes batches from the ledger and a receiver enters the answers. A stream ends when
it breaks; when its node refuses for want of a leader, or the term changes (then it is drained first: what is
in flight is answered, nothing more is sent); and when nothing is answered for a second while another node
leads. Which writes may be sent again, and what their callers are told, is the ledger's affair.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable
from typing import Any

from raftstate.client.faults import RpcFailure, as_error, passes
from raftstate.client.leader import LeaderTracker, backoff_s
from raftstate.client.ledger import Advice, Ledger, Write
from raftstate.client.methods import CLOSE, REGISTER, WRITE
from raftstate.client.operations import Operation
from raftstate.client.transport import Stream, Transport
from raftstate.errors import ClosedError, InvariantError, RaftstateError, SessionExpiredError
from raftstate.pb.v1 import common_pb2, pipeline_pb2, session_pb2

STALL_S = 1.0
"""A stream that owes answers and gives none for so long is looked into."""

REGISTER_S = 2.0
"""A node that does not open a session for so long is left for another."""
CLOSE_SESSION_S = 0.5
"""How long a client that closes waits for its session to be closed; the session would end by itself."""

SWEEP_S_MIN = 0.01
"""Deadlines are this coarse: one timer stands for all writes."""

_WriteStream = Stream[pipeline_pb2.CommandBatch, pipeline_pb2.BatchReply]


class Pipeline:
    """The writes of one client on one event loop."""

    def __init__(self, transport: Transport, tracker: LeaderTracker) -> None:
        self._transport = transport
        self._tracker = tracker
        self._loop = asyncio.get_running_loop()
        self._ledger = Ledger()
        self._session: common_pb2.SessionId | None = None
        self._work = asyncio.Event()
        self._draining = False
        self._task: asyncio.Task[None] | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._sweep_at = float("inf")
        self._closed = False

    def submit(self, operation: Operation[Any], timeout_s: float, *, first: bool = False) -> Write:
        """Take a write; its future gets the outcome. `first`: it is sent before those that wait already.

        Raises `ClosedError`.
        """
        if self._closed:
            raise ClosedError("the client is closed")
        loop = self._loop
        write = Write(loop.create_future(), operation, loop.time() + timeout_s, timeout_s)
        if first:
            self._ledger.add_first(write)
        else:
            self._ledger.add(write)
        if write.deadline < self._sweep_at:
            self._sweep_before(write.deadline)
        if not self._work.is_set():
            self._work.set()
            if self._task is None:
                self._task = asyncio.create_task(self._run(), name="raftstate-pipeline")
                self._task.add_done_callback(self._ended)
        return write

    def give_up(self, write: Write) -> None:
        """The caller does not wait any more."""
        self._ledger.give_up(write)
        if self._ledger.has_work:
            self._work.set()

    async def close(self) -> None:
        """End what waits with `ClosedError`, or as indefinite where it was sent, and close the session."""
        if self._closed:
            return
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        self._ledger.end_all(ClosedError("the client was closed"))
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._session is not None and self._tracker.leader is not None:
            await self._close_session(self._session, self._tracker.leader)

    # ---- from stream to stream

    async def _run(self) -> None:
        attempt = 0
        while True:
            while not self._ledger.has_work:
                self._work.clear()
                await self._work.wait()
            answers = self._ledger.answers
            try:
                await self._write_on_one_stream()
            except RpcFailure as failure:
                self._tracker.note_failure(failure.address, failure.text)
                self._tracker.forget(failure.address)
            except RaftstateError as error:
                self._ledger.end_all(error)
            attempt = 0 if self._ledger.answers != answers else attempt + 1
            await asyncio.sleep(backoff_s(attempt))

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Tell the callers here, rather than let them wait for their deadlines: of a bug, or that somebody
        has cancelled all tasks of the loop.
        """
        self._task = None
        if self._closed:
            return
        end: RaftstateError = ClosedError("the client's task was cancelled from outside")
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._loop.call_exception_handler(
                {"message": "raftstate: the pipeline failed; this is a bug", "exception": error, "task": task}
            )
            end = InvariantError(f"the client's pipeline failed; this is a bug: {error!r}")
        self._ledger.end_all(end)
        self._work.clear()

    async def _write_on_one_stream(self) -> None:
        """Find the leader and write to it until its stream ends. Raises `RpcFailure`, `WrongClusterError`."""
        address = self._tracker.leader or await self._tracker.locate()
        if address is None:
            return
        if self._session is None:
            self._session = await self._register(address)
        self._draining = False
        stream = self._transport.stream(address, WRITE)
        tasks = (
            asyncio.create_task(self._send(stream, self._session)),
            asyncio.create_task(self._receive(stream, address)),
        )
        try:
            await self._until_done(tasks, address)
        finally:
            for task in tasks:
                task.cancel()
            stream.cancel()
            self._ledger.stream_broken()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        self._end_of_stream(outcomes, address)

    async def _until_done(self, tasks: tuple[asyncio.Task[None], ...], address: str) -> None:
        """Wait until a task of the stream ends, or the stream is stalled while another node leads."""
        while True:
            answers = self._ledger.answers
            done, _ = await asyncio.wait(tasks, timeout=STALL_S, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return
            if self._ledger.batches_in_flight and self._ledger.answers == answers:
                leader = await self._tracker.locate()
                if self._draining or leader not in (None, address):
                    self._tracker.note_failure(address, f"gave no answer for {STALL_S:g} s")
                    return

    def _end_of_stream(self, outcomes: Iterable[BaseException | None], address: str) -> None:
        """Draw the conclusions from how the tasks of a stream ended: raise what is final, forget a node that
        went away.
        """
        for outcome in outcomes:
            if isinstance(outcome, RpcFailure):
                self._tracker.note_failure(address, outcome.text)
            elif outcome is not None and not isinstance(outcome, asyncio.CancelledError):
                raise outcome
        if not self._draining:
            self._tracker.forget(address)

    async def _send(self, stream: _WriteStream, session: common_pb2.SessionId) -> None:
        ledger, tracker, work, loop = self._ledger, self._tracker, self._work, self._loop
        while True:
            batch = None if self._draining else ledger.next_batch(session, tracker.cluster_id, loop.time())
            if batch is None:
                work.clear()
                await work.wait()
            else:
                await stream.write(batch.message)

    async def _receive(self, stream: _WriteStream, address: str) -> None:
        ledger, tracker = self._ledger, self._tracker
        while True:
            reply = await stream.read()
            if reply is None:
                return
            tracker.observe(reply.header)
            if tracker.leader != address:
                self._draining = True
            advice = ledger.accept(reply)
            if advice is not None:
                self._follow(advice, address)
            if self._draining and not ledger.batches_in_flight:
                return
            if ledger.has_work:
                self._work.set()

    def _follow(self, advice: tuple[Advice, common_pb2.Error], address: str) -> None:
        what, error = advice
        self._draining = True
        if what is Advice.RENEW:
            self._session = None
        else:
            self._tracker.note_failure(address, error.message)
            self._tracker.forget(address)

    # ---- the session

    async def _register(self, address: str) -> common_pb2.SessionId:
        """Open a session.

        Its nonce makes it this process's own: a stranger's session can have the same index, not the same
        bits.
        """
        request = session_pb2.RegisterRequest(nonce=secrets.randbits(64), cluster_id=self._tracker.cluster_id)
        try:
            reply = await self._transport.unary(address, REGISTER, request, REGISTER_S)
        except RpcFailure as failure:
            if failure.error is not None and not passes(failure.error):
                raise as_error(failure.error) from failure
            raise
        self._tracker.observe(reply.header)
        self._ledger.session_lost(SessionExpiredError("its session has ended"))
        return reply.session

    async def _close_session(self, session: common_pb2.SessionId, address: str) -> None:
        request = session_pb2.CloseRequest(session=session, cluster_id=self._tracker.cluster_id)
        try:
            await self._transport.unary(address, CLOSE, request, CLOSE_SESSION_S)
        except (RpcFailure, RaftstateError):
            return  # it ends by itself when nothing is heard from it; there is nobody left to tell

    # ---- deadlines

    def _sweep_before(self, deadline: float) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        self._sweep_at = max(deadline, self._loop.time() + SWEEP_S_MIN)
        self._sweep = self._loop.call_at(self._sweep_at, self._expire)

    def _expire(self) -> None:
        self._sweep, self._sweep_at = None, float("inf")
        self._ledger.expire(
            self._loop.time(), lambda waited_s: self._tracker.no_leader(waited_s, "the write was not sent")
        )
        earliest = self._ledger.next_deadline()
        if earliest is not None:
            self._sweep_before(earliest)
        self._work.set()
