"""A node's snapshots on a simulated disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import xxhash

from chaos.sim.memory_tables import MemoryTables
from raftstate.core.types import SnapshotMetadata
from raftstate.errors import DataLossError, RaftstateError
from raftstate.machine.layout import read_meta
from raftstate.machine.tables import Table
from raftstate.node.environment import Clock, Done, PreparedState, SnapshotFile

if TYPE_CHECKING:
    from chaos.sim.world import SimNode


class Prepared:
    def __init__(self, tables: MemoryTables) -> None:
        self.tables = tables
        meta = read_meta(tables)
        self.cluster_id = meta.cluster_id
        self.metadata = SnapshotMetadata(meta.conf_state, meta.applied_index, meta.applied_term)

    def discard(self) -> None:
        pass


class SnapshotDisk:
    """Snapshots of `MemoryTables`, as bytes with a checksum. Everything takes a moment."""

    def __init__(self, node: SimNode, clock: Clock) -> None:
        self._node, self._clock = node, clock
        self._files: dict[str, bytes] = {}

    def _soon(self, callback: Callable[[], None]) -> None:
        self._clock.call_later(self._node.cluster.random.uniform(0.0001, 0.005), callback)

    def make(self, done: Callable[[SnapshotFile | BaseException], None]) -> Callable[[], None]:
        cancelled = False

        def begin() -> None:
            if not cancelled:
                tables = self._node.tables.copy()
                self._clock.call_later(self._node.cluster.random.uniform(0.001, 0.1), lambda: end(tables))

        def end(tables: MemoryTables) -> None:
            if cancelled:
                return
            if self._node.disk_is_full:
                done(RaftstateError("the disk is full"))
                return
            node = self._node
            node.snapshots_made += 1
            metadata = Prepared(tables).metadata
            rows = {table: list(tables.scan(table)) for table in Table}
            content = msgspec.msgpack.encode(rows)
            checksum = xxhash.xxh3_64(content).digest()
            name = f"snapshot-{metadata.index}"
            self._files[name] = content + (bytes(8) if node.damage_snapshots else checksum)
            done(SnapshotFile(name, metadata, len(self._files[name]), len(content)))

        def cancel() -> None:
            nonlocal cancelled
            cancelled = True

        self._soon(begin)
        return cancel

    def read(
        self, file: SnapshotFile, offset: int, size: int, done: Callable[[bytes | BaseException], None]
    ) -> None:
        content = self._files[file.name][offset : offset + size]
        self._soon(lambda: done(content))

    def remove(self, file: SnapshotFile) -> None:
        del self._files[file.name]

    def why_no_room(self, raw_bytes: int) -> str:
        return "the disk is full" if self._node.disk_is_full else ""

    def build(self) -> _Build:
        return _Build(self._soon)

    def make_current(self, prepared: PreparedState) -> None:
        assert isinstance(prepared, Prepared)
        self._node.checkpoint = prepared.tables.copy()
        self._node.is_switched = True
        self._node.installed.append(prepared.metadata.index)


class _Build:
    def __init__(self, soon: Callable[[Callable[[], None]], None]) -> None:
        self._soon = soon
        self._content = b""
        self._discarded = False
        self._queue: deque[Callable[[], None]] = deque()

    def _in_order(self, call: Callable[[], None]) -> None:
        self._queue.append(call)
        self._soon(lambda: self._queue.popleft()())

    def feed(self, data: bytes, done: Done) -> None:
        self._content += data
        self._in_order(lambda: None if self._discarded else done(None))

    def finish(self, done: Callable[[PreparedState | BaseException], None]) -> None:
        def finish() -> None:
            if not self._discarded:
                done(self._built())

        self._in_order(finish)

    def _built(self) -> PreparedState | BaseException:
        content, checksum = self._content[:-8], self._content[-8:]
        if xxhash.xxh3_64(content).digest() != checksum:
            return DataLossError("the snapshot is damaged")
        tables = MemoryTables()
        tables_of_rows = msgspec.msgpack.decode(content, type=dict[Table, list[tuple[bytes, bytes]]])
        for table, rows in tables_of_rows.items():
            tables.put_many(table, rows, append=True)
        return Prepared(tables)

    def discard(self) -> None:
        self._discarded = True
