"""What the tests of snapshots share: real states of a machine, and snapshots of them as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raftstate.core.types import Entry
from raftstate.machine.layout import read_meta
from raftstate.machine.machine import Machine
from raftstate.machine.verify import check_state
from raftstate.store.snapshot import PreparedGeneration, SnapshotMeta, content_of, write_snapshot
from raftstate.store.state import StateStore
from tests.machine.rig import CLUSTER, MEMBERS
from tests.machine.test_apply import CONF_STATES, PROGRAM

MAP_BYTES = 1 << 28


def no_pause() -> None:
    pass


def new_state(directory: Path, program: Sequence[Entry] = PROGRAM) -> StateStore:
    """A state that has applied `program`, checkpointed."""
    directory.mkdir(exist_ok=True)
    store = StateStore.create(directory, MAP_BYTES)
    with store.write() as tables:
        Machine.bootstrap(tables, CLUSTER, MEMBERS)
    return apply_all(store, program)


def blank_state(directory: Path) -> StateStore:
    """The state of a node that joins."""
    directory.mkdir(exist_ok=True)
    store = StateStore.create(directory, MAP_BYTES)
    with store.write() as tables:
        Machine.blank(tables, CLUSTER)
    store.checkpoint(0)
    return store


def apply_all(store: StateStore, program: Sequence[Entry]) -> StateStore:
    with store.read() as committed:
        machine = Machine(committed)
    with store.write() as tables:
        machine.apply(tables, program, CONF_STATES)
    store.checkpoint(machine.applied_index)
    return store


def meta_of(store: StateStore) -> SnapshotMeta:
    with store.read() as tables:
        meta = read_meta(tables)
        rows, raw_bytes = content_of(tables)
    return SnapshotMeta(
        meta.cluster_id,
        meta.applied_index,
        meta.applied_term,
        meta.conf_state,
        meta.machine_version,
        rows,
        raw_bytes,
    )


def snapshot_of(store: StateStore) -> bytes:
    """A snapshot of a state, as the bytes of its file."""
    path = store.path.parent / "snapshot-test"
    meta = meta_of(store)
    with store.read() as tables:
        size = write_snapshot(tables, meta, path, no_pause)
    content = path.read_bytes()
    path.unlink()
    assert size == len(content)
    return content


def prepare(store: StateStore, snapshot: bytes, piece_bytes: int = 64 << 10) -> PreparedGeneration:
    """Build a generation beside a state from a snapshot that arrives in pieces; discard what fails."""
    builder = store.build(CLUSTER)
    try:
        for start in range(0, len(snapshot), piece_bytes):
            builder.feed(snapshot[start : start + piece_bytes])
        return builder.finish(check_state)
    except BaseException:
        builder.discard()
        raise
