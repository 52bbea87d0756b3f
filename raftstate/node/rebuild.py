"""Puts another generation in the place of a running node's state: a copy from elsewhere, or of its own.

    prepared at index s   log boundary <= s; this node has applied s, or knows it to be committed
    thread                its own machine applies the log's entries behind s, until few are left
    thread                a checkpoint of it, then it is made current: from here on a start opens it
    thread, between two   the last entries; nothing is applied meanwhile
    transactions
    loop                  readers, machine and applier go over to it; what waits to be applied is applied

The log is kept from s on meanwhile, and nothing in it changes: neither last index, nor term or vote. Whatever
step a crash comes after, a start finds the old state with the log behind its checkpoint, or the new one with
the log behind that.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from raftstate.core.conf_change import decode_conf_change
from raftstate.core.errors import Compacted
from raftstate.core.membership import ConfChangeError, next_conf_state
from raftstate.core.types import ConfState, Entry, EntryType
from raftstate.errors import ClosedError, DataLossError, FailedPreconditionError, RaftstateError
from raftstate.logs import get_logger
from raftstate.machine.machine import Machine
from raftstate.node.applier import StateApplier
from raftstate.node.environment import PreparedState
from raftstate.node.snapshot_disk import generation_of
from raftstate.store.log import LogStore
from raftstate.store.snapshot import PreparedGeneration
from raftstate.store.state import StateStore

log = get_logger(__name__)

T = TypeVar("T")

PORTION_BYTES = 64 << 10
"""Entries of one transaction: some 200 small writes, a few milliseconds that share the interpreter with the
loop."""
PAUSE_S = 0.001
"""Between two of them."""
CHECKPOINT_BYTES = 32 << 20
"""As for the state in use: what the disk is given at once, and what a crash leaves to be done again."""
LAST_BYTES = 1 << 20
"""Of those for which nothing is applied otherwise."""
FEW_ENTRIES = 100
"""What is left for the moment in which nothing is applied: 10 ms or so, but a second where all are large."""
ROUNDS_MAX = 20
"""How often the thread looks whether only few are left, after the checkpoint; beyond it the rest is
taken as it is: entries come faster than they can be applied twice, and will have to wait once."""
REACH_S = 60.0
"""How long this node may take to apply what the copy holds: it was sent while the cluster went on."""
LOOK_S = 0.02


ADOPT_S = 10.0
"""How long a snapshot that is being installed may take to be gone over to, before it is this one's turn."""
REWRITE = "rewrite"
"""The owner of a copy that this node makes of its own state."""
REPAIR = "repair"
"""The owner of a copy of another node's state."""


class Progress(Protocol):
    """What a rebuild asks of a `Driver`."""

    @property
    def running(self) -> bool:
        """Whether the node takes part."""
        ...

    @property
    def applied_index(self) -> int:
        """The last entry applied."""
        ...

    @property
    def committed_index(self) -> int:
        """The last entry known to be committed."""
        ...

    def state_rebuilt(self, index: int) -> None:
        """The state is another one, made from a copy as of `index`."""
        ...


class Replay:
    """Applies the log to a prepared generation. One thread at a time.

    Raises `DataLossError` when a row that it needs is damaged.
    """

    def __init__(self, prepared: PreparedGeneration, log_store: LogStore) -> None:
        self._opened = prepared.opened
        self._log = log_store
        with self._opened.read() as tables:
            self._machine = Machine(tables)

    @property
    def applied_index(self) -> int:
        """How far it is."""
        return self._machine.applied_index

    @property
    def digest(self) -> int:
        """The machine's digest as of there."""
        return self._machine.digest

    def run(self, to_index: int) -> None:
        """Apply the entries up to `to_index`, which are committed.

        Raises:
            DataLossError: an entry is damaged, or a row.
            FailedPreconditionError: the log was cut behind an entry that is needed.
            StorageError: the disk failed.
        """
        for entries in self._portions(to_index, LAST_BYTES):
            self._apply(entries)

    def run_paced(self, to_index: int, pause: Callable[[], None]) -> None:
        """Do so in many transactions, with pauses and checkpoints between them. `pause` may raise."""
        for entries in self._portions(to_index, PORTION_BYTES):
            self._apply(entries)
            if self._opened.dirtied_bytes >= CHECKPOINT_BYTES:
                self.checkpoint()
            pause()

    def checkpoint(self) -> None:
        """Make it durable. Blocks on the disk."""
        self._opened.checkpoint(self.applied_index)

    def _portions(self, to_index: int, bytes_max: int) -> Iterator[list[Entry]]:
        while self.applied_index < to_index:
            first = self.applied_index + 1
            try:
                yield self._log.stored(first, to_index + 1, bytes_max)
            except Compacted as error:
                raise FailedPreconditionError(f"entry {first} is needed, and cut from the log") from error

    def _apply(self, entries: list[Entry]) -> None:
        conf_states: dict[int, ConfState] = {}
        state = self._machine.conf_state()
        for entry in entries:
            if entry.type is not EntryType.NORMAL:
                with contextlib.suppress(ConfChangeError):  # it fitted on no node
                    state = next_conf_state(state, decode_conf_change(entry))
                conf_states[entry.index] = state
        with self._opened.write() as tables:
            self._machine.apply(tables, entries, conf_states)


class StateRebuilder:
    """Replaces the state of one node. Everything is called on its loop; one replacement at a time.

    Args:
        state: the node's.
        log_store: the node's.
        applier: goes over to the new state.
        driver: knows how far the node is.
        on_halt: called when it can't be told which state a start would open.
    """

    def __init__(
        self,
        state: StateStore,
        log_store: LogStore,
        applier: StateApplier,
        driver: Progress,
        on_halt: Callable[[BaseException], None],
    ) -> None:
        self._state = state
        self._log = log_store
        self._applier = applier
        self._driver = driver
        self._on_halt = on_halt
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="raftstate-rebuild")
        self._needed_from: dict[str, int] = {}
        """By who needs it."""
        self._turn = asyncio.Lock()
        self._going_over: asyncio.Future[None] | None = None
        self._closing = False
        applier.hold_log_from(self._log_needed_from)

    def _log_needed_from(self) -> int | None:
        """For whose sake the log is not cut: copies on their way, as long as there is room. One that takes
        longer than that is given up, rather than writes be refused."""
        if self._needed_from and self._log.size_bytes() > self._log.map_bytes // 2:
            return None
        return min(self._needed_from.values(), default=None)

    @property
    def is_under_way(self) -> bool:
        """Whether a state is being replaced, or a copy that will replace it is on its way."""
        return bool(self._needed_from)

    def hold_log(self, index: int, owner: str = REWRITE) -> None:
        """Keep the log from `index` on, for a copy that is on its way; until `rebuild_from` of the same owner
        ends, or `let_log_go`."""
        self._needed_from[owner] = index

    def let_log_go(self, owner: str = REWRITE) -> None:
        """No copy comes after all."""
        self._needed_from.pop(owner, None)

    async def rebuild_from(
        self,
        prepared: PreparedGeneration,
        check: Callable[[int, int], None] = lambda _index, _digest: None,
        *,
        owner: str = REWRITE,
        gone_over: Callable[[], None] = lambda: None,
    ) -> None:
        """Bring a prepared generation up to date and go on with it. It is discarded if that fails.

        Args:
            prepared: of this cluster, not offered yet.
            check: called with the index that it was brought to, and its digest there, before it is made
                current; may raise to refuse it.
            owner: who holds the log for it.
            gone_over: called in the turn in which this node goes over to it.

        Raises:
            FailedPreconditionError: the log was cut behind a later entry than its last one: a newer one is
                needed; or this node did not come as far as it in time; or a snapshot was installed.
            DataLossError: it holds another entry than the log; or something that is needed is damaged.
            StorageError: the disk failed.
            ClosedError: the node stops.
        """
        index = prepared.meta.index
        self._needed_from[owner] = min(index, self._needed_from.get(owner, index))
        try:
            async with self._turn:
                await self._replace(prepared, check, gone_over)
        finally:
            del self._needed_from[owner]

    async def _replace(
        self,
        prepared: PreparedGeneration,
        check: Callable[[int, int], None],
        gone_over: Callable[[], None],
    ) -> None:
        instead_of = self._state.path
        try:
            replay = await self._bring_up(prepared, check)
            await self._beside(
                lambda: self._state.make_current(prepared, instead_of=instead_of, wait_s=ADOPT_S)
            )
            for _ in range(ROUNDS_MAX):
                if self._driver.applied_index - replay.applied_index <= FEW_ENTRIES:
                    break
                await self._replay(replay)
            await self._go_over(prepared, replay, gone_over)
        except BaseException as error:
            if not prepared.is_offered:
                await self._beside(prepared.discard, even_when_closing=True)
            elif isinstance(error, Exception) and not isinstance(error, ClosedError):
                self._on_halt(error)  # a start goes on with it, and this node can't
            raise

    async def _bring_up(self, prepared: PreparedGeneration, check: Callable[[int, int], None]) -> Replay:
        meta = prepared.meta
        boundary = self._log.first_index() - 1
        if meta.index < boundary:
            raise FailedPreconditionError(
                f"the copy of the state ends with entry {meta.index}, and the log begins behind {boundary}: "
                "a newer copy is needed"
            )
        await self._until_reached(meta.index)
        term = self._log.term(meta.index)
        if term != meta.term:
            raise DataLossError(
                f"the copy of the state ends with entry {meta.index} of term {meta.term}, and the log holds "
                f"that entry in term {term}: they are not of one history"
            )
        replay: Replay = await self._beside(lambda: Replay(prepared, self._log))
        await self._replay(replay)
        while self._driver.applied_index - replay.applied_index > FEW_ENTRIES:
            await self._replay(replay)
        check(replay.applied_index, replay.digest)
        # The log may be on its way to be cut at what was durable before it was held. This is beyond that.
        await self._beside(replay.checkpoint)
        return replay

    async def _replay(self, replay: Replay) -> None:
        to_index = self._driver.applied_index
        await self._beside(lambda: replay.run_paced(to_index, self._pause))

    async def _until_reached(self, index: int) -> None:
        """Wait until this node has applied an entry; or, where it can't apply, holds it and knows it to be
        committed."""
        deadline_s = time.monotonic() + REACH_S
        while self._driver.applied_index < index:
            if self._applier.is_stalled:
                known = min(self._driver.committed_index, self._log.last_index())
                if known >= index:
                    return
            if time.monotonic() > deadline_s:
                raise FailedPreconditionError(
                    f"the copy of the state ends with entry {index}, and this node has applied "
                    f"{self._driver.applied_index} only, {REACH_S:g} s later"
                )
            self._require_open()
            await asyncio.sleep(LOOK_S)

    async def _go_over(
        self, prepared: PreparedGeneration, replay: Replay, gone_over: Callable[[], None]
    ) -> None:
        self._require_open()
        ended = self._going_over = asyncio.get_running_loop().create_future()

        def bring_up() -> None:
            # Nothing is applied meanwhile.
            replay.run(self._driver.applied_index)

        def swap() -> None:
            self._state.adopt(prepared, self._run_beside)

        def done(error: BaseException | None) -> None:
            if error is None:
                self._driver.state_rebuilt(replay.applied_index)
                gone_over()
            if ended.done():
                return
            if error is None:
                ended.set_result(None)
            else:
                ended.set_exception(error)

        self._applier.exchange(bring_up, swap, done)
        try:
            await ended
        finally:
            self._going_over = None

    def _run_beside(self, end: Callable[[], object]) -> None:
        """Remove the old state's files: called by whoever reads it last, on any thread."""

        def run() -> None:
            try:
                end()
            except RaftstateError as error:
                log.warning("old state not removed; the next start does it", reason=str(error))

        if self._closing:
            run()
        else:
            self._thread.submit(run)

    async def _beside(self, job: Callable[[], T], *, even_when_closing: bool = False) -> T:
        if not even_when_closing:
            self._require_open()
        return await asyncio.get_running_loop().run_in_executor(self._thread, job)

    def _pause(self) -> None:
        """On the thread."""
        self._require_open()
        time.sleep(PAUSE_S)

    def _require_open(self) -> None:
        if self._closing or not self._driver.running:
            raise ClosedError("this node is stopping")

    def close(self) -> None:
        """Begin to stop: what is under way ends with `ClosedError`, soon."""
        self._closing = True
        if self._going_over is not None and not self._going_over.done():
            # The next start does it.
            self._going_over.set_exception(ClosedError("this node is stopping"))

    def join(self) -> None:
        """Wait for the thread's last job."""
        self._thread.shutdown()


class NodeRepair:
    """Implements `integrity.StateRepair` over a rebuilder.

    Args:
        rebuilder: of the node.
        state: of the node.
        log_store: of the node.
    """

    def __init__(self, rebuilder: StateRebuilder, state: StateStore, log_store: LogStore) -> None:
        self._rebuilder = rebuilder
        self._state = state
        self._log = log_store
        self._tasks: set[asyncio.Task[None]] = set()

    def hold_log(self) -> int:
        """See `StateRepair.hold_log`."""
        boundary = self._log.first_index() - 1
        self._rebuilder.hold_log(boundary, REPAIR)
        return boundary

    def let_log_go(self) -> None:
        """See `StateRepair.let_log_go`."""
        self._rebuilder.let_log_go(REPAIR)

    def rebuild(
        self,
        prepared: PreparedState,
        check: Callable[[int, int], None],
        done: Callable[[BaseException | None], None],
    ) -> None:
        """See `StateRepair.rebuild`."""
        generation = generation_of(prepared)

        async def rebuild() -> None:
            try:
                await self._rebuilder.rebuild_from(
                    generation, check, owner=REPAIR, gone_over=lambda: done(None)
                )
            except Exception as error:  # noqa: BLE001 - not swallowed: it is passed on
                done(error)

        self._start(rebuild())

    def mark(self, reason: str) -> None:
        """See `StateRepair.mark`."""

        async def mark() -> None:
            try:
                await asyncio.to_thread(self._state.distrust, reason)
            except RaftstateError as error:
                log.error("not noted for the next start", reason=reason, error=str(error))

        self._start(mark())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Wait for what is under way: the rebuilder was closed, so that is soon."""
        if self._tasks:
            await asyncio.wait(self._tasks)
