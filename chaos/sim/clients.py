"""Simulated clients: they write in sessions, retry, give up and cancel, read at any node, and hold leases.

They stand where the gRPC services stand: each request is submitted to the driver of a node, and comes back,
or does not. What a client library has to do for "exactly once" they do by themselves: one serial for all
transmissions of a write, a refusal believed only when all of them were refused, and a write that is given up
either cancelled or named as given up.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from raftstate.machine.reader import Reader
from raftstate.machine.types import (
    Answer,
    Batch,
    BatchResult,
    Cancel,
    Cancelled,
    Code,
    Item,
    Refused,
    Register,
    Registered,
    SessionId,
)
from raftstate.node.environment import Executed, Outcome, Rejected
from raftstate.pb.v1.pipeline_pb2 import Command, CommandBatch
from raftstate.pb.v1.txn_pb2 import Compare

if TYPE_CHECKING:
    from chaos.sim.simulation import Simulation

KEYS = [b"k%d" % number for number in range(6)]
LEASE_TTL_MS = 2_000
ATTEMPT_S = (0.3, 2.0)
"""How long a client waits for an answer before it asks another node."""
DEADLINE_S = 6.0
"""How long it goes on with one operation."""
SLEEPY_ATTEMPT_S = (11.0, 14.0)
SLEEPY_TTL_MS = 10_000
"""What a client does whose machine sleeps between two attempts: its session may end meanwhile."""
REPLY_LOST = 0.01
"""How many answers get lost on their way, though nothing is broken."""


class Event(NamedTuple):
    """What a client did: one operation, from its invocation to its end."""

    process: int
    f: str
    """read, write or cas."""
    key: bytes
    value: bytes | tuple[bytes | None, bytes] | None
    invoke_ns: int
    end_ns: int | None
    """None: its outcome was never known."""
    outcome: str
    """ok; fail: a cas whose compare was false; never: it was refused for certain; info: nobody knows."""


class _Operation:
    """One that is under way. `answered`: whether nothing more is expected of it."""

    def __init__(self, serial: int, now_ns: int) -> None:
        self.serial = serial
        self.invoke_ns = now_ns
        self.sent = 0
        self.refused = 0
        self.answered = False


class Slot:
    """One operation at a time of a client: a process of the history."""

    def __init__(self, client: Client, process: int) -> None:
        self._client = client
        self._sim = client.sim
        self.process = process
        self._random = client.random
        self.open: _Operation | None = None

    def next_later(self) -> None:
        """Begin another operation after a while, unless the run is over."""
        self._sim.later(self._random.expovariate(1 / self._sim.think_s), self._next)

    def _next(self) -> None:
        if self._sim.healing or (self._client.sleepy and self._sim.left_s < SLEEPY_ATTEMPT_S[1]):
            return
        if self._client.session is None:
            self._client.register(self._next)
            return
        drawn = self._random.random()
        key = self._random.choice(KEYS)
        if drawn < 0.05:
            self._write_without_session(key)
        elif drawn < 0.45:
            self._write(key)
        elif drawn < 0.60:
            self._cas(key)
        elif drawn < 0.88:
            self._read(key)
        else:
            self._session_read(key)

    # -- writes

    def _write(self, key: bytes) -> None:
        value = self._sim.new_value()
        command = Command()
        command.put.key, command.put.value = key, value
        self._begin("write", key, value, command)

    def _write_without_session(self, key: bytes) -> None:
        """Write as a program does that has no client library: nobody may send it twice."""
        value, invoke_ns = self._sim.new_value(), self._sim.now_ns
        command = Command(serial=1)
        command.put.key, command.put.value = key, value
        self.open = _Operation(0, invoke_ns)
        self._sim.tell(f"p{self.process} write {key.decode()} {value!r} without a session")

        def end(outcome: str) -> None:
            self.open = None
            end_ns = None if outcome == "info" else self._sim.now_ns
            self._sim.ended(Event(self.process, "write", key, value, invoke_ns, end_ns, outcome))
            self.next_later()

        def answer(outcome: Outcome) -> None:
            if isinstance(outcome, Rejected):
                end("never" if outcome.applied_never else "info")
            else:
                end("never" if isinstance(outcome.result, Refused) else "ok")

        item = Batch(CommandBatch(commands=[command]).SerializeToString())
        self._client.send(item, answer, lambda: end("info"))

    def _cas(self, key: bytes) -> None:
        old = self._client.last_read.get(key)
        value = self._sim.new_value()
        compare = Compare(key=key)
        if old is None:
            compare.version = 0
        else:
            compare.value = old
        command = Command()
        command.txn.compares.append(compare)
        put = command.txn.success.add().put
        put.key, put.value = key, value
        self._begin("cas", key, (old, value), command)

    def _begin(self, f: str, key: bytes, value: bytes | tuple[bytes | None, bytes], command: Command) -> None:
        client = self._client
        operation = self.open = _Operation(client.next_serial(), self._sim.now_ns)
        command.serial = operation.serial
        self._sim.tell(f"p{self.process} {f} {key.decode()} {value!r} as {operation.serial}")
        session = client.session
        assert session is not None

        def end(outcome: str, revision: int = 0) -> None:
            operation.answered = True
            self.open = None
            end_ns = None if outcome == "info" else self._sim.now_ns
            self._sim.ended(Event(self.process, f, key, value, operation.invoke_ns, end_ns, outcome))
            if outcome == "ok":
                client.last_read[key] = value if isinstance(value, bytes) else value[1]
                self._sim.session_reads.wrote(client.number, key, revision)
            self.next_later()

        def attempt() -> None:
            if operation.answered:
                return
            if self._sim.now_ns > operation.invoke_ns + client.deadline_s * 1e9:
                give_up()
                return
            item = Batch(client.batch(command, session).SerializeToString())
            operation.sent += 1
            asleep = client.sleepy and operation.sent == 1
            client.send(item, lambda outcome: answer(outcome), attempt, asleep=asleep)

        def give_up() -> None:
            if operation.refused == operation.sent:
                end("never")
            elif self._random.random() < 0.5:
                client.given_up.add(operation.serial)
                end("info")
            else:
                client.cancel(session, operation.serial, cancelled)

        def cancelled(found: Cancelled | None) -> None:
            if operation.answered:
                return
            if found is None:
                end("info")
            elif found.answer is None or self._code(found.answer) is Code.CANCELLED:
                end("never")
            else:
                done(found.answer)

        def answer(outcome: Outcome) -> None:
            if operation.answered:
                return
            if isinstance(outcome, Rejected):
                operation.refused += outcome.applied_never
                self._sim.later(self._random.uniform(0.01, 0.1), attempt)
            elif isinstance(outcome.result, Refused):
                refused(outcome.result.fault.code)
            else:
                client.saw(outcome)
                assert isinstance(outcome.result, BatchResult)
                result = outcome.result
                if operation.serial in result.serials:
                    revision = result.revisions[result.serials.index(operation.serial)]
                    done(Answer(operation.serial, revision))
                else:
                    done(next(found for found in result.answers if found.serial == operation.serial))

        def done(found: Answer) -> None:
            code = self._code(found)
            if code is None:
                compared = found.txn is None or found.txn.succeeded
                end("ok" if compared else "fail", found.revision)
            else:
                refused(code)

        def refused(code: Code) -> None:
            if code is Code.SESSION_EXPIRED:
                client.session_ended(session)
                end("never" if operation.sent == 1 else "info")
            elif code is Code.WINDOW:
                self._sim.later(0.05, attempt)
            else:
                self._sim.violated(
                    "exactly_once", f"serial {operation.serial} is waited for, got {code.name}"
                )

        attempt()

    @staticmethod
    def _code(answer: Answer) -> Code | None:
        return None if answer.fault is None else answer.fault.code

    # -- reads

    def _read(self, key: bytes) -> None:
        self._read_at(key, "read", lambda node, done: node.driver.read(2_000_000_000, done))

    def _session_read(self, key: bytes) -> None:
        index = self._client.index
        self._read_at(
            key, "session read", lambda node, done: node.driver.wait_for(index, 2_000_000_000, done)
        )

    def _read_at(self, key: bytes, what: str, ask: Callable[..., None]) -> None:
        """Read once, at any node. Without an answer nothing is known, and nothing need be."""
        sim, client = self._sim, self._client
        invoke_ns = sim.now_ns
        node = sim.choose_node(self._random)
        floor = sim.session_reads.floor(client.number, key)
        operation = self.open = _Operation(0, invoke_ns)

        def end(found: tuple[bytes | None, int, int] | None) -> None:
            if operation.answered:
                return
            operation.answered = True
            self.open = None
            if found is not None:
                value, revision, applied = found
                if what == "read":
                    client.last_read[key] = value
                    sim.ended(Event(self.process, "read", key, value, invoke_ns, sim.now_ns, "ok"))
                sim.session_reads.read(client.number, key, floor, revision)
                client.index = max(client.index, applied)
            self.next_later()

        def confirmed(outcome: int | Rejected) -> None:
            found = None
            if not isinstance(outcome, Rejected) and not node.driver.fitness.why_not_read():
                pair = Reader(node.tables).get(key)
                value, revision = (None, 0) if pair is None else (pair.value, pair.mod_revision)
                found = (value, revision, node.driver.applied_index)
            sim.later(sim.latency_s(), lambda: end(found))

        def arrive() -> None:
            if node.running:
                node.call(node.epoch, lambda: ask(node, confirmed))

        sim.later(sim.latency_s(), arrive)
        sim.later(self._random.uniform(*ATTEMPT_S), lambda: end(None))


class Client:
    """A session, and some slots that write in it.

    Args:
        sim: what it runs in.
        number: from 0 on.
        slots: how many operations it has under way at once.
        sleepy: whether it falls asleep after the first attempt of each write, and misses the answer.
    """

    def __init__(self, sim: Simulation, number: int, slots: int, *, sleepy: bool = False) -> None:
        self.sim = sim
        self.number = number
        self.sleepy = sleepy
        self.deadline_s = 3 * SLEEPY_ATTEMPT_S[1] if sleepy else DEADLINE_S
        self.random = random.Random(f"{sim.seed}/client/{number}")
        self.session: SessionId | None = None
        self.index = 0
        """The last entry that it has seen the result of: what it reads later must include that."""
        self.last_read: dict[bytes, bytes | None] = {}
        self.given_up: set[int] = set()
        self._serial = 0
        self._registering: list[Callable[[], None]] = []
        self._slots = [Slot(self, number * 10 + slot) for slot in range(slots)]

    def start(self) -> None:
        """Begin to work."""
        for slot in self._slots:
            slot.next_later()

    @property
    def busy(self) -> bool:
        """Whether anything is under way."""
        return any(slot.open is not None for slot in self._slots)

    def next_serial(self) -> int:
        """Return a serial that was never used."""
        self._serial += 1
        return self._serial

    def batch(self, command: Command, session: SessionId) -> CommandBatch:
        """Return a batch of one command, with what the session is to forget."""
        waited_for = [slot.open.serial for slot in self._slots if slot.open is not None and slot.open.serial]
        floor = min(waited_for, default=self._serial + 1)
        self.given_up = {serial for serial in self.given_up if serial >= floor}
        batch = CommandBatch(floor=floor, given_up=sorted(self.given_up), commands=[command])
        batch.session.index, batch.session.nonce = session.index, session.nonce
        return batch

    def send(
        self,
        item: Item,
        answer: Callable[[Outcome], None],
        unanswered: Callable[[], None],
        *,
        asleep: bool = False,
    ) -> None:
        """Send an item to some node. Either `answer` is called, with what came back; or `unanswered`, once
        the client has waited long enough. Not both. `asleep`: it hears nothing for a long time."""
        sim = self.sim
        node = sim.choose_node(self.random)
        timer = None
        over = False

        def give_up() -> None:
            nonlocal over
            if not over:
                over = True
                unanswered()

        def replied(outcome: Outcome) -> None:
            nonlocal over
            if not over:
                over = True
                if timer is not None:
                    timer.cancel()
                answer(outcome)

        def reply(outcome: Outcome) -> None:
            if not asleep and self.random.random() >= REPLY_LOST:
                sim.later(sim.latency_s(), lambda: replied(outcome))

        def arrive() -> None:
            if node.running:
                node.call(node.epoch, lambda: node.driver.submit(item, 1, 5_000_000_000, reply))

        timer = sim.later(self.random.uniform(*(SLEEPY_ATTEMPT_S if asleep else ATTEMPT_S)), give_up)
        sim.later(sim.latency_s(), arrive)

    # -- sessions

    def register(self, then: Callable[[], None]) -> None:
        """Open a session, however long it takes; then call."""
        self._registering.append(then)
        if len(self._registering) == 1:
            self._register()

    def _register(self) -> None:
        if self.sim.healing:
            self._registering.clear()
            return

        def answer(outcome: Outcome) -> None:
            if isinstance(outcome, Executed) and isinstance(outcome.result, Registered):
                self.session = outcome.result.session
                self.index = max(self.index, outcome.index)
                waiting, self._registering = self._registering, []
                for then in waiting:
                    then()
            else:
                self.sim.later(0.1, self._register)

        ttl_ms = SLEEPY_TTL_MS if self.sleepy else self.random.choice([10_000, 20_000, 600_000])
        self.send(Register(self.random.getrandbits(64), ttl_ms), answer, self._register)

    def session_ended(self, session: SessionId) -> None:
        """A session is gone: go on in another one."""
        if self.session == session:
            self.session = None

    def saw(self, executed: Executed) -> None:
        """Note what a read in this session must include from now on."""
        self.index = max(self.index, executed.index)

    def cancel(self, session: SessionId, serial: int, done: Callable[[Cancelled | None], None]) -> None:
        """Give up a serial for certain: `done` gets what the cluster knows of it; None: that is not known."""
        until_ns = self.sim.now_ns + DEADLINE_S * 1e9

        def attempt() -> None:
            if self.sim.now_ns > until_ns:
                done(None)
                return
            self.send(Cancel(session, serial), answer, attempt)

        def answer(outcome: Outcome) -> None:
            if isinstance(outcome, Executed) and isinstance(outcome.result, Cancelled):
                self.saw(outcome)
                done(outcome.result)
            elif isinstance(outcome, Executed):
                self.session_ended(session)  # without a session nothing is known of its serials
                done(None)
            else:
                self.sim.later(0.05, attempt)

        attempt()


class LeaseHolder:
    """Holds a lease, renews it in time, and begins anew when it is lost."""

    def __init__(self, sim: Simulation, number: int) -> None:
        self._sim = sim
        self._client = Client(sim, 100 + number, 0)
        self._number = number
        self.lease = 0

    def start(self) -> None:
        """Take a lease."""
        if self._sim.healing:
            return
        self._number += 1_000
        self.lease = self._number
        command = Command(serial=1)
        command.lease_grant.id, command.lease_grant.ttl_ms = self.lease, LEASE_TTL_MS
        self._send(command)

    def _renew(self) -> None:
        if self._sim.healing:
            self._sim.leases.given_up(self.lease)
            return
        command = Command(serial=1)
        command.lease_renew.id = self.lease
        self._send(command)

    def _send(self, command: Command) -> None:
        sent_ns = self._sim.now_ns
        lease = self.lease

        def again() -> None:
            # Whatever became of it: a grant that was done already is refused, and then another id is taken.
            self._sim.later(0.1, self._renew if "lease_renew" in str(command) else self.start)

        def answer(outcome: Outcome) -> None:
            result = outcome.result if isinstance(outcome, Executed) else None
            if isinstance(result, BatchResult) and result.answers and result.answers[0].lease is not None:
                self._sim.leases.renewed(lease, sent_ns, LEASE_TTL_MS)
                self._sim.later(LEASE_TTL_MS / 4_000, self._renew)
            elif isinstance(result, BatchResult):
                self._sim.leases.given_up(lease)
                self._sim.later(0.1, self.start)
            else:
                again()

        batch = CommandBatch(commands=[command])
        self._client.send(Batch(batch.SerializeToString()), answer, again)
