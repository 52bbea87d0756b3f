"""One run: a cluster, clients and a plan of faults, all from one seed; what must hold is watched as it goes.

    1. faults and clients, for so many simulated seconds
    2. heal: nothing goes wrong any more, everybody is up, clients end what they have begun; all nodes must
       come to the same state within a bound
    3. a last read of each key at each node; then the whole history is judged

The same seed and plan give the same run, event for event: `digest` is a checksum of all that was told.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import xxhash

from chaos.checker import Operation
from chaos.invariants import Violation
from chaos.invariants.commit_monotonic import CommitMonotonic
from chaos.invariants.configuration_safety import ConfigurationSafety
from chaos.invariants.election_safety import ElectionSafety
from chaos.invariants.exactly_once import check_exactly_once
from chaos.invariants.leader_completeness import LeaderCompleteness
from chaos.invariants.leases import Leases
from chaos.invariants.linearizability import check_linearizability
from chaos.invariants.log_matching import LogMatching
from chaos.invariants.session_reads import SessionReads
from chaos.invariants.state_machine_safety import StateMachineSafety
from chaos.sim.clients import KEYS, Client, Event, LeaseHolder
from chaos.sim.clock import SimTimer
from chaos.sim.faults import Fault, Injector, plan
from chaos.sim.inside import Inside
from chaos.sim.observed import ObservedCluster, ObservedNode
from chaos.sim.operators import DRIFT_MAX, Operators
from raftstate.core.types import ConfState, Entry
from raftstate.errors import FailedPreconditionError, InvariantError, StorageError
from raftstate.machine.layout import read_change
from raftstate.machine.reader import Reader
from raftstate.machine.tables import Table
from raftstate.machine.types import EntryResult
from raftstate.node.environment import Rejected

HEAL_S_MAX = 40.0
"""Within how many simulated seconds of the end of all faults everybody must agree: 2,666 ticks."""
ALONE_EVERY = 8
"""Every eighth seed begins with one node alone; others join it, as in any run."""
CLIENTS, SLOTS = 4, 2
OPERATIONS_PER_S = 20.0
"""About: at least 10 must be done, faults or not."""


@dataclass
class Run:
    """What came of a run."""

    seed: int
    seconds: float
    """Simulated, without the heal phase."""
    faults: list[Fault]
    violation: str = ""
    broke: bool = False
    """Whether the violation is that something broke: an exception that is none of an invariant."""
    unknown: str = ""
    """Why nothing can be said of it; empty: something can."""
    trace: list[str] = field(default_factory=list)
    digest: str = ""
    operations: int = 0
    installed: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    heal_s: float = 0.0
    events: list[Event] = field(default_factory=list)


class Simulation:
    """See the module.

    Args:
        seed: everything that is drawn at random comes from it.
        seconds: simulated, before the heal phase.
        faults: what goes wrong; None: as `plan` draws it.
    """

    def __init__(self, seed: int, seconds: float, faults: Sequence[Fault] | None = None) -> None:
        self.seed = seed
        self.healing = False
        self.think_s = CLIENTS * SLOTS / OPERATIONS_PER_S
        self.session_reads = SessionReads()
        self.leases = Leases(2 * DRIFT_MAX)
        self.run = Run(seed, seconds, list(plan(seed, seconds) if faults is None else faults))
        self._random = random.Random(f"{seed}/world")
        self._values = 0
        self._checksum = xxhash.xxh3_64()
        self._elections = ElectionSafety()
        self._logs = LogMatching()
        self._leaders = LeaderCompleteness()
        self._states = StateMachineSafety()
        self._commits = CommitMonotonic()
        size = 1 if seed % ALONE_EVERY == ALONE_EVERY - 1 else 3
        self._configurations = ConfigurationSafety((tuple(range(1, size + 1)), ()))
        self.inside: Inside  # made with the cluster
        self.cluster = ObservedCluster(size, seed, self)
        self.inside.start()
        self._clients = [Client(self, number, SLOTS) for number in range(CLIENTS)]
        self._clients.append(Client(self, CLIENTS, 1, sleepy=True))
        self._holders = [LeaseHolder(self, number) for number in range(1)]
        self.operators = Operators(self)
        self._end_s = self.now_ns / 1e9 + seconds
        self._injector = Injector(self.operators.handlers, self.tell)

    # -- what everybody here uses

    @property
    def now_ns(self) -> int:
        """The world's time."""
        return self.cluster.time.now_ns

    @property
    def left_s(self) -> float:
        """How many seconds of the run are left, without the heal phase."""
        return self._end_s - self.now_ns / 1e9

    def later(self, delay_s: float, callback: Callable[[], None]) -> SimTimer:
        """Call back after so many of the world's seconds."""
        return self.cluster.time.call_later(delay_s, callback)

    def latency_s(self) -> float:
        """Return how long a message between client and node is on its way."""
        return self._random.uniform(0.0001, 0.003)

    def choose_node(self, random: random.Random) -> ObservedNode:
        """Return whom a client asks: mostly the leader that it knows, if there is one."""
        leader = self.cluster.known_leader
        if leader is not None and random.random() < 0.5:
            return self.cluster.nodes[leader]
        return self.cluster.nodes[random.choice(self.cluster.ids)]

    def new_value(self) -> bytes:
        """Return a value that no other write has."""
        self._values += 1
        return b"v%d" % self._values

    def tell(self, line: str) -> None:
        """Put a line into the trace."""
        told = f"{self.now_ns / 1e6:12.3f} ms  {line}"
        self.run.trace.append(told)
        self._checksum.update(told.encode())

    def violated(self, invariant: str, what: str) -> None:
        """End the run: an invariant does not hold."""
        raise Violation(invariant, what)

    def ended(self, event: Event) -> None:
        """A client's operation has ended."""
        self.run.events.append(event)
        self.tell(f"p{event.process} {event.f} {event.key.decode()} {event.value!r} {event.outcome}")

    # -- what the nodes tell

    def stored(self, node: ObservedNode, entries: Sequence[Entry], previous_term: int | None) -> None:
        """Entries are durable in a node's log."""
        for entry in entries:
            content = bytes([entry.type]) + entry.data
            self._logs.stored(node.id, entry.index, entry.term, previous_term, content)
            previous_term = entry.term

    def leads(self, node: ObservedNode) -> None:
        """A node has begun to lead."""
        raft = node.driver.raw.raft
        self.tell(f"n{node.id} leads term {raft.term}")
        self._elections.leads(node.id, raft.term)

        def term_at(index: int) -> int | None:
            """None where that is compacted, or rotten: the state holds it then, or peers do."""
            known = index >= node.storage.first_index() and index not in node.storage.rotten
            return raft.raft_log.term(index) if known else None

        self._leaders.leads(node.id, raft.term, raft.raft_log.last_index(), term_at)

    def applied(
        self, node: ObservedNode, results: Sequence[EntryResult], conf_states: dict[int, ConfState]
    ) -> None:
        """A node has applied entries."""
        if results:
            self.inside.applied(node, results[-1].index)
        for result in results:
            self._leaders.committed(result.index, result.term)
            self._states.applied(node.id, result.index, result.term, result.digest)
        for index, state in conf_states.items():
            voters = (tuple(sorted(state.voters)), tuple(sorted(state.voters_outgoing)))
            self.tell(f"n{node.id} goes by {voters} from entry {index} on")
            self._configurations.applied(node.id, index, voters)
        self._commits.saw(node.id, node.epoch, node.driver.committed_index)
        for holder in self._holders:
            if holder.lease and node.lease_has_ended(holder.lease):
                self.leases.ended(holder.lease, self.now_ns)

    def halted(self, node: ObservedNode, error: BaseException) -> None:
        """A node can't go on."""
        if isinstance(error, Violation):
            raise error  # of an invariant that was told in the midst of the node's work
        self.tell(f"n{node.id} halts: {error}")
        if isinstance(error, StorageError):
            self.operators.restart_later(node, 0.5)
        elif not isinstance(error, FailedPreconditionError):
            self.run.broke = not isinstance(error, InvariantError)
            raise Violation("halted", f"node {node.id}: {error!r}") from error

    # -- the run

    def go(self) -> Run:
        """Run all of it."""
        run = self.run
        try:
            self._fault_phase()
            self._heal()
            self._judge()
        except Violation as violation:
            self.tell(f"VIOLATION {violation}")
            run.violation = str(violation)
        except Exception as error:  # noqa: BLE001 - not swallowed: it is what the run has found
            where = traceback.extract_tb(error.__traceback__)[-1]
            run.violation = f"exception: {error!r} at {where.name}, line {where.lineno}"
            run.broke = not isinstance(error, InvariantError)
            self.tell(f"VIOLATION {run.violation}\n{traceback.format_exc()}")
        run.operations = len(run.events)
        run.installed, run.skipped = self._injector.installed, self._injector.skipped
        run.digest = f"{self._checksum.intdigest():016x}"
        return run

    def _fault_phase(self) -> None:
        for fault in self.run.faults:
            self.later(fault.at_s, lambda fault=fault: None if self.healing else self._injector.inject(fault))
        for client in self._clients:
            client.start()
        for holder in self._holders:
            holder.start()
        self.cluster.run_for(self.run.seconds)

    def _heal(self) -> None:
        began_ns = self.now_ns
        self.healing = True
        self.tell("heal")
        self.operators.heal()
        try:
            self.cluster.run_until(self._has_converged, HEAL_S_MAX)
        except AssertionError as error:
            if isinstance(error, Violation):
                raise
            raise Violation("convergence", f"{error}: {self.operators.describe()}") from error
        self.run.heal_s = (self.now_ns - began_ns) / 1e9

    def _has_converged(self) -> bool:
        if any(client.busy for client in self._clients) or not self.operators.idle:
            return False
        leader = self.cluster.leader()
        if leader is None:
            return False
        ahead = leader.driver.raw.raft.raft_log.last_index()
        return all(
            node.driver.applied_index == ahead and not node.driver.fitness.why_not_read()
            for node in self.operators.expected(leader)
        )

    def _judge(self) -> None:
        leader = self.cluster.elect()
        process = 1_000
        for node in self.operators.expected(leader):
            for key in KEYS:
                self._last_read(node, key, process)
            process += 1
        self._states_agree(self.operators.expected(leader))
        written = [read_change(row_key, row).value for row_key, row in leader.tables.scan(Table.CHANGES)]
        values = [
            (event, event.value if isinstance(event.value, bytes) else event.value[1])
            for event in self.run.events
            if event.f != "read" and event.value is not None
        ]
        check_exactly_once(
            written,
            {value for event, value in values if event.outcome == "ok"},
            {value for event, value in values if event.outcome in ("never", "fail")},
        )
        self._check_linearizability()

    def _last_read(self, node: ObservedNode, key: bytes, process: int) -> None:
        invoke_ns = self.now_ns
        outcomes: list[int | Rejected] = []
        node.driver.read(5_000_000_000, outcomes.append)
        self.cluster.run_until(lambda: outcomes, 6)
        if isinstance(outcomes[0], Rejected):
            raise Violation("convergence", f"node {node.id} refuses a read after all is well: {outcomes[0]}")
        pair = Reader(node.tables).get(key)
        value = None if pair is None else pair.value
        self.ended(Event(process, "read", key, value, invoke_ns, self.now_ns, "ok"))

    def _states_agree(self, nodes: Sequence[ObservedNode]) -> None:
        found = {(node.driver.applied_index, node.machine.digest) for node in nodes}
        if len({index for index, _ in found}) == 1 and len(found) > 1:
            raise Violation("state_machine_safety", f"states differ at the end: {sorted(found)}")

    def _check_linearizability(self) -> None:
        """Judge what clients saw. What was refused for certain did not happen, and is left out."""
        operations = [
            Operation(
                process=event.process,
                f=event.f,
                key=event.key.decode(),
                value=_value(event.value),
                invoke_ns=event.invoke_ns,
                end_ns=event.end_ns,
                outcome=event.outcome,  # type: ignore[arg-type]
            )
            for event in self.run.events
            if event.outcome != "never"
        ]
        self.run.unknown = check_linearizability(operations)


def _value(value: bytes | tuple[bytes | None, bytes] | None) -> object:
    """Return a value as a history holds it."""
    if isinstance(value, tuple):
        return [_value(item) for item in value]
    return None if value is None else value.decode()
