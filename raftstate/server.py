"""One running node: the only place where its parts are wired together.

    data directory ─ log store ─ log writer ┐
                   └ state store ─ machine ─┴─ applier ─┐
    peer links ─────────────────────────────────────────┼─ driver ─ local node ─ gRPC services
    clock, random ──────────────────────────────────────┘
"""

from __future__ import annotations

import asyncio
import gc
import random
import secrets
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import structlog

from raftstate.config import ClusterConfig, NodeSettings, split_address
from raftstate.core.config import Config
from raftstate.core.errors import Compacted, Unavailable
from raftstate.core.rawnode import RawNode
from raftstate.core.roles import Role
from raftstate.core.types import NONE, ConfState, Entry, HardState, Snapshot
from raftstate.errors import DataLossError, FailedPreconditionError, RaftstateError, WrongClusterError
from raftstate.machine.machine import Machine
from raftstate.machine.types import Member
from raftstate.node.applier import StateApplier
from raftstate.node.clock import LoopClock
from raftstate.node.driver import Driver, Timing, World
from raftstate.node.frames import Hello
from raftstate.node.links import LinkEvents, LocalPeer, PeerLinks
from raftstate.node.local import LocalNode
from raftstate.rpc.server import RpcServer
from raftstate.store.directory import DataDirectory, Identity
from raftstate.store.log import LogStore
from raftstate.store.log_writer import LogWriter
from raftstate.store.state import StateStore
from raftstate.version import __version__

log = structlog.get_logger(__name__)

SWITCH_INTERVAL_S = 0.0005
"""How long a thread keeps the interpreter while another waits for it. Python's default of 5 ms is a third of a heartbeat: with one
busy thread it costs the loop 5 ms at p50, with this 1.9 ms at p99."""
MESSAGE_BYTES_MAX = 1 << 20
APPLYING_BYTES_MAX = 256 << 10
"""Committed entries in one portion: some 800 small writes, a few milliseconds of the loop."""
UNCOMMITTED_BYTES_MAX = 64 << 20
INFLIGHT_BYTES_MAX = 16 << 20
HANDOVER_S_MAX = 1.0
"""How long a leader that is told to stop tries to hand leadership over first."""


async def serve(settings: NodeSettings, *, ready: Callable[[], None] | None = None) -> None:
    """Run a node until SIGTERM, SIGINT or cancellation.

    Args:
        settings: everything that it needs to know.
        ready: called once its ports are open; there may be no leader yet.

    Raises:
        ConfigError, WrongClusterError, FailedPreconditionError, DataLossError, StorageError: it can't start.
        RaftstateError: it halted; the message says why, and what to do.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    async with AsyncExitStack() as stack:
        stores = open_stores(settings)
        stack.callback(stores.close)
        node = Node(settings, stores, stop.set)
        stack.push_async_callback(node.stop)
        await node.start()
        # What lives now lives as long as the node: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        if ready is not None:
            ready()
        await stop.wait()
        await node.hand_over()
    if node.failure is not None:
        raise node.failure
