"""A node's log on a simulated disk: what is durable, and what a crash loses; what rots, fails, hangs or finds
no room."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from raftstate.core.errors import Damaged
from raftstate.core.storage import MemoryStorage
from raftstate.core.types import Entry, HardState, Snapshot
from raftstate.errors import StorageError
from raftstate.node.environment import Done

if TYPE_CHECKING:
    from chaos.sim.world import SimNode


class SimLog(MemoryStorage):
    """A log whose records can rot: `rotten` are those that can't be read, `damaged` those known to be so."""

    def __init__(self) -> None:
        super().__init__()
        self.rotten: set[int] = set()
        self.damaged: tuple[int, ...] = ()

    def find_damage(self, after: int = 0) -> None:
        """Verify the records that follow an index, as a start does with what the state lacks, or all of them,
        as the node does soon afterwards."""
        self.damaged = tuple(sorted(index for index in self.rotten if index > after))

    def entries(self, lo: int, hi: int, max_bytes: int) -> list[Entry]:
        found = super().entries(lo, hi, max_bytes)
        for entry in found:
            self._check(entry.index)
        return found

    def term(self, index: int) -> int:
        if index != self.last_index():
            self._check(index)
        return super().term(index)

    def _check(self, index: int) -> None:
        if index in self.rotten:
            if index not in self.damaged:
                self.damaged = tuple(sorted({*self.damaged, index}))
            raise Damaged(f"log entry {index} is damaged", detail={"index": index})

    def append(self, entries: list[Entry]) -> None:
        super().append(entries)
        self._keep(range(1, entries[0].index))

    def apply_snapshot(self, snapshot: Snapshot) -> None:
        super().apply_snapshot(snapshot)
        self._keep(range(0))

    def compact(self, index: int) -> None:
        if index >= self.first_index():
            super().compact(index)
        self._keep(range(index + 1, self.last_index() + 1))

    def refill(self, entries: Sequence[Entry], anchor: tuple[int, int] | None) -> None:
        if anchor is not None and not (
            anchor[0] <= self.last_index() and MemoryStorage.term(self, anchor[0]) == anchor[1]
        ):
            return
        held = {
            entry.index: entry
            for entry in MemoryStorage.entries(self, self.first_index(), self.last_index() + 1, 1 << 60)
        }
        for entry in entries:
            if entry.index in self.rotten:
                assert held[entry.index] == entry, "refilled with another entry than was there"
        self.rotten -= {entry.index for entry in entries}
        self.damaged = tuple(index for index in self.damaged if index in self.rotten)

    def _keep(self, indexes: range) -> None:
        self.rotten &= {*indexes}
        if not self.rotten.issuperset(self.damaged):
            self.damaged = tuple(index for index in self.damaged if index in self.rotten)


class LogDisk:
    """The log's writer: what waits while it writes shares the next commit. A crash loses what is under way,
    or some of the last of it."""

    def __init__(self, node: SimNode, epoch: int) -> None:
        self._node, self._epoch = node, epoch
        self._failed = False
        self._waiting: list[tuple[Callable[[], None], Done | None]] = []
        self._under_way: list[tuple[Callable[[], None], Done | None]] = []

    def keep_some(self, random: random.Random) -> None:
        """At a crash: some of what was under way had reached the disk, in order, though nobody was told. Not
        behind a write that failed."""
        kept = 0 if self._failed else random.randint(0, len(self._under_way))
        for write, _ in self._under_way[:kept]:
            write()
        self._under_way, self._waiting = [], []

    def install(
        self, publish: Callable[[], None], hard_state: HardState, index: int, term: int, done: Done
    ) -> None:
        # A crash may come between the two.
        crash, self._node.crashes_at_install = self._node.crashes_at_install, None
        if crash is not None:
            self._write(publish, lambda _error: crash())
        else:
            self._write(publish, None)
        self._write(lambda: self._node.begin_log_anew(hard_state, index, term), done)

    def append(self, hard_state: HardState | None, entries: Sequence[Entry], done: Done) -> None:
        def write() -> None:
            if hard_state is not None:
                self._node.storage.set_hard_state(hard_state)
            if entries:
                self._node.storage.append(list(entries))

        self._node.write_since_ns = self._node.write_since_ns or self._node.local_ns()
        self._write(write, done)

    def refill(self, entries: Sequence[Entry], anchor: tuple[int, int] | None, done: Done) -> None:
        self._write(lambda: self._node.storage.refill(entries, anchor), done)

    def compact(self, to_index: int, done: Done) -> None:
        self._write(lambda: self._node.storage.compact(to_index), done)

    def _write(self, write: Callable[[], None], done: Done | None) -> None:
        self._waiting.append((write, done))
        if not self._under_way:
            self._begin()

    def _begin(self) -> None:
        self._under_way, self._waiting = self._waiting, []
        node = self._node
        delay_ms = node.cluster.random.uniform(0.2, 1.8) * node.disk_delay_ms
        node.cluster.time.call_later(delay_ms / 1e3, self._end)

    def _end(self) -> None:
        node = self._node
        if node.epoch != self._epoch:
            return
        if node.disk_is_full:
            node.cluster.time.call_later(0.02, self._end)
            return
        # What fails may have reached the disk. After that nothing is tried any more.
        may_write = not self._failed and (not node.disk_fails or node.cluster.random.random() < 0.5)
        self._failed = self._failed or node.disk_fails
        node.disk_fails = False
        error = StorageError("the disk failed a write of the log") if self._failed else None
        written, self._under_way = self._under_way, []
        for write, done in written:
            if may_write:
                write()
            if node.epoch != self._epoch:
                return  # it has crashed
            if done is not None:
                node.call(self._epoch, lambda done=done: done(error))  # type: ignore[misc]
        if self._waiting and not self._under_way:
            self._begin()
        node.write_since_ns = node.local_ns() if self._under_way else None

    @property
    def outstanding_since_ns(self) -> int | None:
        return self._node.write_since_ns

    @property
    def damaged(self) -> Sequence[int]:
        return self._node.storage.damaged
