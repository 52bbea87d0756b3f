"""A program on both stores, step by step, up to the first difference; and the shrinking of it."""

from __future__ import annotations

import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from raftstate.supervisor import SERVE_COMMAND, LocalCluster
from tests.differential.comparison import same, same_watch
from tests.differential.etcd import Etcd, EtcdProcess
from tests.differential.generator import clearing
from tests.differential.operations import (
    TO_THE_END,
    WRITES,
    Answer,
    Collect,
    Delete,
    DeleteAnswer,
    Leases,
    Operation,
    Picture,
    Put,
    Range,
    RangeAnswer,
    Refusal,
    Reply,
    Request,
    Txn,
    TxnAnswer,
    Watch,
    WatchAnswer,
    pairs,
)
from tests.differential.ours import OurNode
from tests.differential.pipelined import OurPipelinedNode
from tests.differential.plants import PLANTS
from tests.differential.store import OpenWatch, Ours

REMEMBERED_OPERATIONS = 2_000
"""How far back a difference is looked for when its program is shrunk."""
SHRINKING_S = 60.0
_MARKS = 2
"""A watch may begin two revisions in the future."""
_SETTINGS = ("RAFTSTATE_CLUSTER__HISTORY_RETENTION_S=0",)
"""Nothing is compacted but by the program, however long it runs."""
_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Difference:
    """What both stores answered to one step. `asked`: the request as sent, or the watch looked at."""

    operation: Operation
    asked: Request | Watch
    etcd: Reply
    ours: Reply


@dataclass
class Outcome:
    """What a run came to. `done`: operations without a difference; `last`: the last of them, and then the one
    with a difference."""

    done: int
    difference: Difference | None
    last: list[Operation]
    counts: Counter[tuple[str, str]]
    revision: int
    compacted: int
    seconds: float


class Contest:
    """Both stores, as of the same state, and what has been learnt of it.

    `batch`: so many writes that follow one another are answered together by ours.
    """

    def __init__(self, etcd: Etcd, ours: Ours, picture: Picture, batch: int = 1) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.picture = picture
        self._etcd = etcd
        self._ours = ours
        self._batch = batch
        self._waiting: list[tuple[Operation, Request, Reply, Callable[[], Reply]]] = []
        self._watches: dict[str, tuple[Watch, int, OpenWatch, OpenWatch]] = {}

    def step(self, operation: Operation) -> Difference | None:
        """Do one operation on both stores. Return what they answered differently, if anything."""
        if isinstance(operation, Watch):
            return self._open(operation)
        if isinstance(operation, Collect):
            return self._collect(operation)
        return self._ask(operation, operation)

    def close(self) -> None:
        """Close the watches that are open."""
        for _, _, of_etcd, of_ours in self._watches.values():
            of_etcd.close()
            of_ours.close()
        self._watches.clear()

    def settle(self) -> Difference | None:
        """Wait for all writes that were put off. Return the first that was answered differently."""
        waiting, self._waiting = self._waiting, []
        for operation, request, etcd, wait in waiting:
            ours = wait()
            if not same(request, etcd, ours):
                return Difference(operation, request, etcd, ours)
        return None

    def _ask(self, operation: Operation, request: Request) -> Difference | None:
        is_write = isinstance(request, WRITES)
        if not is_write and (difference := self.settle()):
            return difference
        request = self.picture.resolve(request)
        wait = self._ours.begin(request)
        etcd = self._etcd.ask(request)
        self.picture.learn(request, etcd)
        self.counts[type(request).__name__, outcome_of(etcd.answer)] += 1
        self._waiting.append((operation, request, etcd, wait))
        if is_write and len(self._waiting) < self._batch:
            return None
        if difference := self.settle():
            return difference
        if isinstance(request, Range) and request.keys_only and request.target == "value":
            return self._compare_order_without_values(request)
        return None

    def _compare_order_without_values(self, request: Range) -> Difference | None:
        """Look whether ours sorts by values that are not returned as it does by those that are."""
        full, ours = (self._ours.begin(asked)() for asked in (replace(request, keys_only=False), request))
        if not isinstance(full.answer, RangeAnswer):
            return None
        blank = [kv._replace(value=b"") for kv in full.answer.kvs]
        expected = full._replace(answer=full.answer._replace(kvs=blank))
        return None if ours == expected else Difference(request, request, expected, ours)

    def _open(self, watch: Watch) -> Difference | None:
        if watch.name in self._watches:
            return None
        if difference := self.settle():
            return difference
        start = self.picture.number(watch.start)
        opened = self._etcd.watch(watch, start), self._ours.watch(watch, start)
        self._watches[watch.name] = (replace(watch, start=start), self.picture.compacted, *opened)
        return None

    def _collect(self, operation: Collect) -> Difference | None:
        if operation.name not in self._watches:
            return None
        watch, compacted, of_etcd, of_ours = self._watches[operation.name]
        until = 0
        for _ in range(_MARKS):
            for mark, is_seen in (
                (Put(watch.key, b"mark"), not watch.no_put),
                (Delete(watch.key), not watch.no_delete),
            ):
                if difference := self._ask(operation, mark):
                    return difference
                until = self.picture.revision if is_seen else until
        if difference := self.settle():
            return difference
        etcd, ours = of_etcd.collect(until), of_ours.collect(until)
        del self._watches[operation.name]
        assert isinstance(watch.start, int)
        self.counts["Watch", etcd.ending.split()[0]] += 1
        self.counts["(events)", "sent"] += len(etcd.events)
        for kv in pairs(etcd):
            self.picture.see(kv)
        if same_watch(watch.start, compacted, etcd, ours):
            return None
        return Difference(operation, watch, Reply(None, etcd), Reply(None, ours))


class Arena:
    """Processes of both stores, used as long as both are in the same state, and else started afresh.

    `plant`: what ours does wrong, by name. `batch`: over 1, its writes go over a pipeline, so many at a time.
    Their data stand in memory, where there is a file system for that: durability is not judged here.
    """

    def __init__(self, plant: str | None = None, batch: int = 1) -> None:
        self.plant = plant
        self._batch = batch
        self.etcd_version = ""
        self._running: ExitStack | None = None
        self._stores: tuple[Etcd, OurNode] | None = None
        self._picture = Picture()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the processes; the next contest starts new ones."""
        if self._running is not None:
            running, self._running = self._running, None
            self._stores = None
            running.close()

    def contest(self) -> Contest:
        """Return both stores empty, with equal revisions.

        Raises:
            EtcdMissingError: etcd is not installed.
            EtcdFailedError: it did not start.
            RaftstateError: our node did not start.
        """
        if self._stores is None or not _cleared(Contest(*self._stores, self._picture)):
            self.stop()
            self._stores = self._start()
            self._picture = Picture()
        etcd, ours = self._stores
        return Contest(etcd, PLANTS[self.plant](ours) if self.plant else ours, self._picture, self._batch)

    def _start(self) -> tuple[Etcd, OurNode]:
        with ExitStack() as starting:
            within = str(_MEMORY) if _MEMORY.is_dir() else None
            scratch = tempfile.TemporaryDirectory(prefix="raftstate-differential-", dir=within)
            folder = Path(starting.enter_context(scratch))
            (folder / "etcd").mkdir()
            process = starting.enter_context(EtcdProcess(folder / "etcd"))
            self.etcd_version = process.version
            cluster = starting.enter_context(
                LocalCluster(folder / "ours", nodes=1, port=0, command=("env", *_SETTINGS, *SERVE_COMMAND))
            )
            cluster.wait_for_leader()
            etcd = Etcd(process.address)
            ours = (OurNode if self._batch == 1 else OurPipelinedNode)(cluster.endpoints[0])
            starting.callback(etcd.close)
            starting.callback(ours.close)
            self._running = starting.pop_all()
        return etcd, ours


def run(
    contest: Contest,
    program: Iterable[Operation],
    operations: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Outcome:
    """Run a program on both stores, up to the first difference.

    Args:
        contest: both stores.
        program: yields what to do.
        operations: how many of the program's operations are done; one that has fewer ends earlier.
        progress: told how many are done, after each.
    """
    begun = time.monotonic()
    last: deque[Operation] = deque(maxlen=REMEMBERED_OPERATIONS)
    done, difference = 0, None
    try:
        for operation in program:
            if done == operations:
                break
            last.append(operation)
            difference = contest.step(operation)
            if difference is not None:
                break
            done += 1
            progress(done)
        difference = difference or contest.settle()
    finally:
        contest.close()
    picture = contest.picture
    seconds = time.monotonic() - begun
    return Outcome(done, difference, list(last), contest.counts, picture.revision, picture.compacted, seconds)


def shrink(
    arena: Arena, program: list[Operation], *, budget_s: float = SHRINKING_S
) -> list[Operation] | None:
    """Return a short program that shows a difference on fresh stores, or None: none was found in time.

    Args:
        arena: where programs are tried.
        program: operations, of which the last one showed a difference.
        budget_s: how long to look for a shorter one, in seconds.
    """
    deadline = time.monotonic() + budget_s

    def differs(candidate: list[Operation]) -> bool:
        return time.monotonic() < deadline and _shows_a_difference(arena, candidate)

    tails = (program[-length:] for length in (10, 50, 200, 700, len(program)))
    shortest = next((tail for tail in tails if differs(tail)), None)
    if shortest is None:
        return None
    before = None
    while shortest != before:
        before = shortest
        shortest = _without_parts(_without_operations(shortest, differs), differs)
    arena.stop()
    return shortest if _shows_a_difference(arena, shortest) else None


def _without_operations(
    program: list[Operation], differs: Callable[[list[Operation]], bool]
) -> list[Operation]:
    """Drop operations, many at a time at first, as long as the rest still differs."""
    size = max(1, len(program) // 2)
    while True:
        start = 0
        while start < len(program):
            candidate = program[:start] + program[start + size :]
            if candidate and differs(candidate):
                program = candidate
            else:
                start += size
        if size == 1:
            return program
        size //= 2


def _without_parts(program: list[Operation], differs: Callable[[list[Operation]], bool]) -> list[Operation]:
    """Drop compares and operations of transactions, as long as the rest still differs."""
    number = 0
    while number < len(program):
        candidates = [
            [*program[:number], simpler, *program[number + 1 :]] for simpler in _simpler(program[number])
        ]
        better = next((candidate for candidate in candidates if differs(candidate)), None)
        if better is None:
            number += 1
        else:
            program = better
    return program


def outcome_of(answer: Answer) -> str:
    """Return in a word or two what came of a request."""
    match answer:
        case Refusal(kind):
            return kind
        case DeleteAnswer(deleted):
            return "some" if deleted else "none"
        case RangeAnswer(more=more, count=count):
            return ("more" if more else "all") if count else "none"
        case TxnAnswer(succeeded):
            return "succeeded" if succeeded else "failed"
        case WatchAnswer(ending=ending):
            return ending
    return "done"


def _cleared(contest: Contest) -> bool:
    """Empty both stores; return whether they agree in all of it."""
    looks = (Range(b"\x00", TO_THE_END), Leases())
    try:
        return all(contest.step(operation) is None for operation in (*clearing(), *looks))
    finally:
        contest.close()


def _shows_a_difference(arena: Arena, program: list[Operation]) -> bool:
    return run(arena.contest(), program, len(program)).difference is not None


def _simpler(operation: Operation) -> Iterable[Operation]:
    """Yield transactions that lack a part."""
    if not isinstance(operation, Txn):
        return
    for part in ("compares", "success", "failure"):
        items = getattr(operation, part)
        for number in range(len(items)):
            yield replace(operation, **{part: items[:number] + items[number + 1 :]})
