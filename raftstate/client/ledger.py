"""The books of one client's writes: what waits, what was sent, what is known of it. No I/O and no clock.

A write gets a serial when it is first sent; a serial is never used again. From then on it is *open* until it
is answered or given up:

    queued --next_batch--> in flight --answer--> settled
      ^                       |
      +---- refused, for now -+   (every copy sent so far was refused: not applied, sent again)
      +---- stream broken ----+   (a copy is *lost*: its fate is unknown, sent again under the same serial)

Whatever ends a write that has a lost copy, or one still in flight, ends it as `IndefiniteError`, unless an
answer does: the server runs a serial once and gives every copy the first answer. A new session ends those
with a lost copy, since there they would be run again.

The floor of a batch is the lowest open serial; serials above it that are no longer waited for travel as given
up, so that a late copy of them is not run.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

from raftstate.client.faults import as_error, as_indefinite, detail_of, passes, refuses
from raftstate.client.limits import BATCH_BYTES_MAX, BATCH_COMMANDS_MAX, SESSION_WINDOW
from raftstate.client.operations import Operation
from raftstate.errors import DeadlineError, IndefiniteError, NoLeaderError, RaftstateError
from raftstate.pb.v1 import common_pb2, pipeline_pb2

BATCHES_EAGER = 2
"""While fewer batches are in flight, what waits is sent at once: a lone write sees no delay."""

BATCHES_MAX = SESSION_WINDOW // BATCH_COMMANDS_MAX
"""From BATCHES_EAGER up to here only full batches are sent: a long line is kept busy, and a short one gets
big batches.
"""

RESEND_S_MIN = 0.05
"""A write that was refused so far is not sent again with less time left.

A copy still in flight at the deadline would turn a certain "not applied" into "unknown".
"""

_HEADER_BYTES = 128
_SERIAL_BYTES = 10
_TIMEOUT_MS_MAX = (1 << 32) - 1
_ANSWER_PART = 0.9
"""The part of the time left that a node may take: what it knows must arrive before the deadline."""


class Advice(Enum):
    """What an answer asks of the pipeline, beyond the ledger's own books."""

    MOVE = auto()  # this node can't get writes done now: find the leader
    RENEW = auto()  # the session is gone: open another


class Batch:
    """Commands that travel together. `open`: how many of them are not answered."""

    __slots__ = ("message", "open")

    def __init__(self, message: pipeline_pb2.CommandBatch) -> None:
        self.message = message
        self.open = 0


class Write:
    """One operation on its way.

    `deadline` is on the loop's clock, `timeout_s` what the caller gave. `future` gets the operation's result.
    """

    __slots__ = (
        "batch",
        "deadline",
        "future",
        "lost",
        "operation",
        "refusal",
        "serial",
        "timeout_s",
    )

    def __init__(
        self, future: asyncio.Future[Any], operation: Operation[Any], deadline: float, timeout_s: float
    ) -> None:
        self.future = future
        self.operation = operation
        self.deadline = deadline
        self.timeout_s = timeout_s
        self.serial = 0
        self.batch: Batch | None = None
        self.lost = False
        self.refusal: common_pb2.Error | None = None

    def resolve(self, result: object) -> None:
        """Hand the result to the caller, unless it has gone."""
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: RaftstateError) -> None:
        """Hand an error to the caller, unless it has gone."""
        if not self.future.done():
            self.future.set_exception(error)

    def end(self, definite: RaftstateError) -> None:
        """Fail without an answer: with `definite` if no copy can be applied, else as indefinite for the same
        reason.
        """
        if self.lost or self.batch is not None:
            message = f"the write was sent, and its outcome is unknown: {definite.message}"
            self.fail(IndefiniteError(message, detail=definite.detail))
        else:
            self.fail(definite)


class Ledger:
    """The writes of one client. All its methods are for one thread."""

    def __init__(self) -> None:
        self.queue: deque[Write] = deque()
        self.batches_in_flight = 0
        self.answers = 0
        self._open: dict[int, Write] = {}
        self._given_up: set[int] = set()
        self._again: list[Write] = []
        self._serial = 0

    @property
    def has_work(self) -> bool:
        """Whether writes wait to be sent, or sent again."""
        return bool(self.queue or self._again)

    def add(self, write: Write) -> None:
        """Queue a write."""
        self.queue.append(write)

    def add_first(self, write: Write) -> None:
        """Queue a write that can't wait behind others, as the renewal of a lease.

        It stands behind those that have a serial, though: when the window is full, they open it again.
        """
        sent = 0
        for other in self.queue:
            if not other.serial:
                break
            sent += 1
        self.queue.insert(sent, write)

    @property
    def floor(self) -> int:
        """The lowest serial that is still waited for, or the next one.

        Open writes stand in the order of their serials.
        """
        return next(iter(self._open), self._serial + 1)

    # ---- sending

    def next_batch(self, session: common_pb2.SessionId, cluster_id: int, now: float) -> Batch | None:
        """Take from the queue what should be sent now; None: nothing, or it is better to wait for answers."""
        self._queue_again()
        if not self.queue or self.batches_in_flight >= BATCHES_MAX:
            return None
        if self.batches_in_flight >= BATCHES_EAGER and not self._fills_a_batch():
            return None
        floor = self.floor
        self._given_up = {serial for serial in self._given_up if serial > floor}
        message = pipeline_pb2.CommandBatch(
            cluster_id=cluster_id, session=session, floor=floor, given_up=self._given_up
        )
        batch = Batch(message)
        deadline = self._fill(batch, floor + SESSION_WINDOW, now)
        if not batch.open:
            return None
        left_ms = int((deadline - now) * 1_000 * _ANSWER_PART)
        message.timeout_ms = min(_TIMEOUT_MS_MAX, max(1, left_ms))
        self.batches_in_flight += 1
        return batch

    def _queue_again(self) -> None:
        """Put what was sent before in front of what was not: the lowest serial holds up the window."""
        if self._again:
            self._again.sort(key=lambda write: write.serial, reverse=True)
            self.queue.extendleft(self._again)
            self._again.clear()

    def _fill(self, batch: Batch, ceiling: int, now: float) -> float:
        """Move writes from the queue into a batch and return their latest deadline.

        Serials stay below `ceiling`.
        """
        queue, opened, add = self.queue, self._open, batch.message.commands.add
        free_bytes = BATCH_BYTES_MAX - _HEADER_BYTES - _SERIAL_BYTES * len(self._given_up)
        deadline = 0.0
        count = 0
        while queue and count < BATCH_COMMANDS_MAX:
            write = queue[0]
            if write.refusal is not None and not write.lost and write.deadline - now < RESEND_S_MIN:
                write.end(_always_refused(write, write.refusal))
                self.give_up(write)
            if write.future.done():
                queue.popleft()
                continue
            operation = write.operation
            size_bytes = operation.size_bytes
            if count and size_bytes > free_bytes:
                break
            serial = write.serial
            if not serial:
                serial = self._serial + 1
                if serial >= ceiling:
                    break
                self._serial = write.serial = serial
                opened[serial] = write
            queue.popleft()
            command = add()
            command.serial = serial
            operation.fill(command)
            write.batch = batch
            free_bytes -= size_bytes
            count += 1
            if write.deadline > deadline:
                deadline = write.deadline
        batch.open = count
        return deadline

    def _fills_a_batch(self) -> bool:
        if len(self.queue) >= BATCH_COMMANDS_MAX:
            return True
        total_bytes = 0
        for write in self.queue:
            total_bytes += write.operation.size_bytes
            if total_bytes >= BATCH_BYTES_MAX:
                return True
        return False

    # ---- answers

    def accept(self, reply: pipeline_pb2.BatchReply) -> tuple[Advice, common_pb2.Error] | None:
        """Enter the answers of one message; return what the pipeline should do about them, if anything, and
        the error that says so.
        """
        self.answers += 1
        take = self._open.pop
        for serial, revision in zip(reply.serials, reply.revisions, strict=False):
            write = take(serial, None)
            if write is None:
                continue
            batch = write.batch
            if batch is not None:
                batch.open -= 1
                if not batch.open:
                    self.batches_in_flight -= 1
            future = write.future
            if not future.done():
                try:
                    future.set_result(write.operation.done(revision))
                except IndefiniteError as error:
                    future.set_exception(error)
        advice = None
        for answer in reply.answers:
            advice = self._settle(answer) or advice
        return advice

    def _settle(self, answer: pipeline_pb2.Answer) -> tuple[Advice, common_pb2.Error] | None:
        write = self._open.get(answer.serial)
        if write is None:
            return None
        self._land(write)
        if answer.HasField("error"):
            return self._refused(write, answer.error)
        del self._open[write.serial]
        try:
            write.resolve(write.operation.result(answer))
        except IndefiniteError as error:
            write.fail(error)
        return None

    def _refused(self, write: Write, error: common_pb2.Error) -> tuple[Advice, common_pb2.Error] | None:
        """Enter the refusal of one copy: send again what may yet succeed, end the rest."""
        if refuses(error):
            write.refusal = error
        else:
            write.lost = True
        code = error.code
        if passes(error):
            self._again.append(write)
            return Advice.MOVE, error
        if code == common_pb2.ERROR_CODE_WINDOW:
            # Answers that wait for the floor to pass them fill the session; it has moved by the time of the
            # next batch.
            self._again.append(write)
            return None
        if code == common_pb2.ERROR_CODE_SESSION_EXPIRED:
            self._again.append(write)
            return Advice.RENEW, error
        del self._open[write.serial]
        # STALE: the server has forgotten the answer to a serial that is still waited for; it may well have
        # run.
        unknown = write.lost or code == common_pb2.ERROR_CODE_STALE
        write.fail(as_indefinite(error) if unknown else as_error(error))
        return None

    # ---- what ends without an answer

    def stream_broken(self) -> None:
        """The stream is gone: what was in flight on it is queued again, with a copy of unknown fate."""
        unanswered = [write for write in self._open.values() if write.batch is not None]
        for write in unanswered:
            write.batch = None
            write.lost = True
        self._again.extend(unanswered)
        self.batches_in_flight = 0

    def session_lost(self, reason: RaftstateError) -> None:
        """A new session begins, with nothing in flight: no copy of the old serials that may have run must run
        again.
        """
        self._queue_again()
        for write in self._open.values():
            write.serial = 0
            if write.lost:
                write.end(reason)
        self._open.clear()
        self._given_up.clear()

    def give_up(self, write: Write) -> None:
        """The caller has gone. A late copy is not run once a later batch was."""
        if write.serial and self._open.pop(write.serial, None) is not None:
            self._given_up.add(write.serial)
            self._land(write)
        if not write.future.cancelled() and write.future.done():
            # The caller went just as this was told; nobody else will look at it.
            write.future.exception()

    def expire(self, now: float, no_leader: Callable[[float], NoLeaderError]) -> None:
        """End the writes whose deadline has passed.

        `no_leader(timeout_s)` is the error for those that met no leader at all.
        """
        self._queue_again()
        for write in self._waiting():
            if write.deadline <= now and not write.future.done():
                write.end(self._late(write, no_leader))
                self.give_up(write)
        self.queue = deque(write for write in self.queue if not write.future.done())

    def next_deadline(self) -> float | None:
        """Return the earliest deadline; None: nothing waits."""
        return min((write.deadline for write in self._waiting() if not write.future.done()), default=None)

    def end_all(self, reason: RaftstateError) -> None:
        """End every write, for one reason."""
        for write in self._waiting():
            write.end(type(reason)(reason.message, field=reason.field, detail=reason.detail))
            self.give_up(write)
        self.queue.clear()
        self._again.clear()

    def _waiting(self) -> list[Write]:
        """All that is not settled: open, or queued and never sent."""
        return [*self._open.values(), *(write for write in self.queue if not write.serial)]

    def _late(self, write: Write, no_leader: Callable[[float], NoLeaderError]) -> RaftstateError:
        """Return why a write that ran out of time did so, as if it was never sent or always refused."""
        if write.batch is not None or write.lost:
            return DeadlineError(f"no answer came within {write.timeout_s:g} s")
        if write.refusal is not None:
            return _always_refused(write, write.refusal)
        if self.batches_in_flight:
            return DeadlineError(
                f"the write waited {write.timeout_s:g} s behind {len(self._open)} others and was not sent;"
                " write less at once"
            )
        return no_leader(write.timeout_s)

    def _land(self, write: Write) -> None:
        """A write's copy is no longer in flight."""
        batch, write.batch = write.batch, None
        if batch is not None:
            batch.open -= 1
            if not batch.open:
                self.batches_in_flight -= 1


def _always_refused(write: Write, error: common_pb2.Error) -> NoLeaderError:
    return NoLeaderError(
        f"every attempt within {write.timeout_s:g} s was refused, the last one with: {error.message}",
        field=error.field,
        detail=detail_of(error),
    )
