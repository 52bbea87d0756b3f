"""Opening a node's data before it runs, with the cluster's help if something of it is lost.

A node whose log is lost asks to be replaced and begins anew; one whose state is lost fetches a copy. Both
wait for other nodes, and end early when this one is told to stop. What this node does to its files alone is
in `stores`.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import secrets
from collections.abc import Coroutine, Sequence, Set

from raftstate.address import split_address
from raftstate.config import NodeSettings
from raftstate.logs import get_logger
from raftstate.machine.types import MACHINE_VERSION, Member
from raftstate.node.known_members import noted_members
from raftstate.node.links import LocalPeer
from raftstate.node.rejoin import ask_for_replacement
from raftstate.node.startup import LogLostError
from raftstate.node.state_fetch import Builds, fetch_state
from raftstate.server.configured import peer_addresses
from raftstate.server.stores import StateLostError, Stores, make_blank, open_directory
from raftstate.store import replacement
from raftstate.store.directory import DataDirectory
from raftstate.store.files import disk_failure

log = get_logger(__name__)


async def open_stores(settings: NodeSettings, stop: asyncio.Event, distrust: Set[str]) -> Stores | None:
    """Open a node's data. If its log is lost, have the cluster replace the node first, by an empty one.

    Args:
        settings: of the node.
        stop: ends the wait for that.
        distrust: as `Stores` takes it.

    Returns None when `stop` was set first. Raises what `serve` does when it can't start.
    """
    with contextlib.ExitStack() as opened:
        directory = open_directory(settings)
        opened.callback(directory.close)
        suspect = note_crashes(directory)
        try:
            stores = Stores(settings, directory, distrust=distrust, suspect=suspect)
        except LogLostError as lost:
            log.error("the log is lost; asking to be replaced", node=settings.name, reason=str(lost))
            if not await rejoin(settings, directory, lost.members, stop):
                return None
            stores = Stores(settings, directory, distrust=distrust)
        except StateLostError as lost_state:
            log.error("the state is lost; fetching a copy", node=settings.name, reason=str(lost_state))
            if not await refetch(settings, directory, lost_state.log_boundary, stop):
                return None
            stores = Stores(settings, directory, distrust=distrust)
        opened.pop_all()
        return stores


def note_crashes(directory: DataDirectory) -> bool:
    """Have a crash of this process by a fatal signal (SIGSEGV, SIGBUS, SIGABRT) leave its traces in the data
    directory; return whether the last run did. LMDB trusts the pages that it reads: a damaged one may do it.

    Raises `StorageError` when the file can't be used.
    """
    path = directory.path / "crash"
    try:
        last = path.read_bytes() if path.exists() else b""
        # Open for as long as the process lives: the handler writes to it.
        faulthandler.enable(path.open("wb"))
    except OSError as error:
        raise disk_failure("noting crashes", path, error) from error
    if last:
        log.error("the last run crashed; checking pages", trace=last[:4_000].decode(errors="replace"))
    return bool(last)


async def refetch(
    settings: NodeSettings, directory: DataDirectory, log_boundary: int, stop: asyncio.Event
) -> bool:
    """Get the state from another node; return False if `stop` was set first."""
    identity = directory.identity
    local = LocalPeer(identity.cluster_id, identity.node_id, identity.incarnation, MACHINE_VERSION)
    builds = Builds(directory.path, settings.state_map_bytes, identity.cluster_id)
    try:
        fetching = fetch_state(
            local,
            peer_addresses(settings, noted_members(directory.path, identity.cluster_id)),
            split_address(settings.peer_listener),
            builds,
            min_index=log_boundary,
            seed=secrets.randbits(62),
        )
        return await _unless_stopped(fetching, stop)
    finally:
        builds.close()


async def _unless_stopped(work: Coroutine[object, object, None], stop: asyncio.Event) -> bool:
    """Wait for `work`, or give it up when `stop` is set; return whether it was done."""
    working = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait([working, stopped], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return False
        working.result()
        return True
    finally:
        for task in (working, stopped):
            task.cancel()
        await asyncio.gather(working, stopped, return_exceptions=True)


async def rejoin(
    settings: NodeSettings, directory: DataDirectory, members: Sequence[Member], stop: asyncio.Event
) -> bool:
    """Have the cluster replace this node, and make its data anew; return False if `stop` was set first."""
    identity = directory.identity
    local = LocalPeer(
        identity.cluster_id, identity.node_id, identity.incarnation, MACHINE_VERSION, wiped=True
    )
    addresses = peer_addresses(settings, members)
    listen = split_address(settings.peer_listener)

    async def be_replaced() -> None:
        incarnation = await ask_for_replacement(local, addresses, listen, secrets.randbits(64))
        log.warning("replaced; beginning anew", node=settings.name, incarnation=incarnation)
        replacement.begin(directory, incarnation)
        replacement.finish(directory, lambda path: make_blank(settings, path))

    return await _unless_stopped(be_replaced(), stop)
