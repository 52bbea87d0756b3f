"""A `FakeCluster` whose clients have watches, too: of its machine's changes, by a `FakeWatches` for each."""

from __future__ import annotations

from typing import Any

import pytest

import raftstate
from raftstate.client import links
from raftstate.client.leader import LeaderTracker
from raftstate.client.transport import Transport
from raftstate.client.watch_stream import Watcher
from raftstate.machine.history import changes_from
from raftstate.machine.layout import Change, ChangeKind
from raftstate.machine.types import ItemResult
from raftstate.pb.v1 import watch_pb2
from tests.client.fake_cluster import FakeCluster
from tests.client.fake_watch import FakeWatches, deletion, put


class WatchedCluster(FakeCluster):
    """`watches`: those of each client, in the order of their first calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.history: list[watch_pb2.Event] = []
        self.watches: list[FakeWatches] = []
        monkeypatch.setattr(links, "Watcher", self._watcher)

    def connect(self) -> raftstate.AsyncClient:
        return raftstate.connect_async(self.url)

    def watched_keys(self, client: int) -> list[bytes]:
        """The keys that a client has watches of now, in order."""
        node = self.watches[client].serving
        stream = None if node is None else node.stream
        return [] if stream is None else [watch.create.key for watch in stream.watches.values()]

    def keys(self) -> list[bytes]:
        """All keys that are there."""
        there = {}
        for event in self.history:
            there[event.kv.key] = not event.kind
        return sorted(key for key in there if there[key])

    def _watcher(self, transport: Transport, tracker: LeaderTracker) -> Watcher:
        watches = FakeWatches(history=self.history, revision=self.rig.machine.revision)
        self.watches.append(watches)
        watches.watcher = Watcher(watches, watches.tracker)
        return watches.watcher

    def _run(self, item: Any) -> list[ItemResult]:
        results = super()._run(item)
        self._publish()
        return results

    def _publish(self) -> None:
        revision = self.history[-1].kv.mod_revision + 1 if self.history else 2
        for at, _, change in changes_from(self.rig.tables, revision):
            self.history.append(_event(at, change))
        for watches in self.watches:
            watches.revision = self.rig.machine.revision
            watches.compacted = self.rig.machine.compacted_revision
            watches.apply()


def _event(revision: int, change: Change) -> watch_pb2.Event:
    if change.kind is ChangeKind.DELETE:
        return deletion(change.key, revision)
    event = put(change.key, revision, change.value)
    event.kv.create_revision = change.create_revision
    event.kv.version = change.version
    event.kv.lease = change.lease
    return event
