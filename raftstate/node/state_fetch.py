"""A node whose state is lost, while its log is not, gets a copy from its peers before any core runs.

What it has voted for and acknowledged stands in its log, so its part in the cluster goes on; what it has
applied can be had from anybody. It keeps its name and incarnation, and to its peers it is, for that long, a
follower that says nothing. A copy must hold all up to the log's boundary: what follows it is in the log, or
the log begins anew behind it, by the rule for an install that a crash cut short.

The copy may be of a node that is wrong and does not know it yet. Then the digests tell, soon after the start.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from raftstate.core.types import SnapshotMetadata
from raftstate.errors import RaftstateError
from raftstate.logs import get_logger
from raftstate.machine.types import MEMBERSHIP_SINCE
from raftstate.machine.verify import check_state
from raftstate.node.clock import LoopClock
from raftstate.node.environment import (
    Done,
    PeerBody,
    PreparedState,
    RepairChunk,
    RepairOffer,
)
from raftstate.node.frames import Hello, Welcome
from raftstate.node.links import LinkEvents, LocalPeer, PeerLinks
from raftstate.node.repair_transfer import RepairFetch
from raftstate.store.snapshot import PreparedGeneration, SnapshotBuilder

log = get_logger(__name__)

T = TypeVar("T")

PAUSE_S = 1.0
"""Between two attempts: a peer may be about to start, or to make its copy."""


class FetchedState:
    """A prepared generation: implements `environment.PreparedState`."""

    def __init__(self, generation: PreparedGeneration) -> None:
        self.generation = generation
        meta = generation.meta
        self.cluster_id = meta.cluster_id
        self.metadata = SnapshotMetadata(meta.conf_state, meta.index, meta.term)

    def discard(self) -> None:
        """See `environment.PreparedState.discard`."""
        if not self.generation.is_offered:
            self.generation.discard()


class Builds:
    """Builds states in a data directory that has none in use: implements what `RepairFetch` asks of an
    `environment.SnapshotDisk`.

    Args:
        data_directory: of this node; its lock is held.
        map_bytes: the most that the state can ever take.
        cluster_id: of this node.
    """

    def __init__(self, data_directory: Path, map_bytes: int, cluster_id: int) -> None:
        self._data_directory = data_directory
        self._map_bytes = map_bytes
        self._cluster_id = cluster_id
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="raftstate-fetch")

    def why_no_room(self, raw_bytes: int) -> str:
        """See `environment.SnapshotDisk.why_no_room`. What lacks is found while writing: nothing else is
        served from this disk meanwhile."""
        return ""

    def build(self) -> _Build:
        """See `environment.SnapshotDisk.build`."""
        return _Build(self)

    def builder(self) -> SnapshotBuilder:
        """Begin one, on the thread."""
        return SnapshotBuilder(self._data_directory, self._map_bytes, self._cluster_id)

    def run(self, job: Callable[[], T], done: Callable[[T | BaseException], None]) -> None:
        """Run a job on the thread; `done` gets its result, or what it raised, on the loop."""

        def finished(running: asyncio.Future[T]) -> None:
            if not running.cancelled():
                error = running.exception()
                done(running.result() if error is None else error)

        asyncio.get_running_loop().run_in_executor(self._thread, job).add_done_callback(finished)

    def close(self) -> None:
        """Wait for the thread's last job."""
        self._thread.shutdown()


class _Build:
    """Implements `environment.SnapshotBuild`."""

    def __init__(self, builds: Builds) -> None:
        self._builds = builds
        self._made: SnapshotBuilder | None = None
        self._discarded = False

    def _builder(self) -> SnapshotBuilder:
        if self._made is None:
            self._made = self._builds.builder()
        return self._made

    def feed(self, data: bytes, done: Done) -> None:
        self._builds.run(lambda: self._builder().feed(data), self._unless_discarded(done))

    def finish(self, done: Callable[[PreparedState | BaseException], None]) -> None:
        def finish() -> PreparedState:
            return FetchedState(self._builder().finish(check_state))

        self._builds.run(finish, self._unless_discarded(done))

    def discard(self) -> None:
        self._discarded = True

        def discard() -> None:
            if self._made is not None:
                self._made.discard()

        def discarded(result: BaseException | None) -> None:
            if result is not None:
                log.warning("an unfinished state is left over until the next start", error=str(result))

        self._builds.run(discard, discarded)

    def _unless_discarded(self, done: Callable[[T], None]) -> Callable[[T], None]:
        return lambda result: None if self._discarded else done(result)


async def fetch_state(
    local: LocalPeer,
    addresses: Mapping[int, Sequence[str]],
    listen: tuple[str, int],
    builds: Builds,
    *,
    min_index: int,
    seed: int,
) -> None:
    """Get a copy of the state from a peer, and make it the one that the next opening finds.

    Args:
        local: who this node is.
        addresses: of the peers: node id -> host:ports to try in turn.
        listen: host and port on which the peers reach this node: answers come on connections of theirs.
        builds: builds the state.
        min_index: the copy must hold all up to here: the log begins behind it.
        seed: for pauses between dials, and ids.

    Goes on until a peer has given one. Raises:
        ConfigError: the port can't be listened on.
        StorageError: the copy could not be made current.
    """
    met: set[int] = set()
    fetch: RepairFetch

    def take(sender: int, body: PeerBody) -> None:
        if isinstance(body, RepairOffer):
            fetch.offered(sender, body)
        elif isinstance(body, RepairChunk):
            fetch.chunk(sender, body)
        # What else comes is for a node that takes part.

    def meet(peer: int, version: int) -> None:
        if version >= MEMBERSHIP_SINCE:
            met.add(peer)

    def admit(hello: Hello) -> Welcome:
        if hello.cluster_id != local.cluster_id or hello.to_id != local.node_id:
            return Welcome(f"this is node {local.node_id} of cluster {local.cluster_id:#x}")
        return Welcome()

    links = PeerLinks(
        local,
        addresses,
        LinkEvents(
            body=take,
            turn=lambda: None,
            met=meet,
            lost=met.discard,
            refused=lambda peer, welcome: log.warning("refused", peer=peer, reason=welcome.refusal),
            admit=admit,
            takes=lambda _peer, _incarnation, _body: True,
        ),
        seed,
    )
    clock = LoopClock(asyncio.get_running_loop())
    fetch = RepairFetch(builds, links, clock, local.cluster_id, first_id=seed >> 2)
    await links.start(*listen)
    try:
        prepared = await _until_fetched(fetch, met, min_index)
    finally:
        fetch.cancel("this node is stopping")
        await links.close()

    def make_current() -> None:
        prepared.opened.close()
        prepared.opened.generation.make_current()

    await asyncio.get_running_loop().run_in_executor(None, make_current)


async def _until_fetched(fetch: RepairFetch, met: set[int], min_index: int) -> PreparedGeneration:
    for turn in itertools.count():
        peers = sorted(met)
        if peers:
            source = peers[turn % len(peers)]
            got: asyncio.Future[PreparedState | BaseException] = asyncio.get_running_loop().create_future()

            def done(
                result: PreparedState | BaseException,
                got: asyncio.Future[PreparedState | BaseException] = got,
            ) -> None:
                if not got.done():
                    got.set_result(result)

            fetch.begin(source, min_index, done)
            result = await got
            if isinstance(result, FetchedState):
                log.info("state fetched", source=source, index=result.metadata.index)
                return result.generation
            if not isinstance(result, RaftstateError):
                assert isinstance(result, BaseException)
                raise result
            log.warning("no copy of the state yet", source=source, reason=str(result))
        await asyncio.sleep(PAUSE_S)
    raise AssertionError  # a count has no end
