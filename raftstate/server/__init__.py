"""A running node: the only place where its parts are wired together.

    data directory ┬ log store ─── log writer ┐
                   └ state store ─ machine ───┴ applier ┐
    peer links ─────────────────────────────────────────┼ driver ─ local node ─ gRPC services
    clock, random ──────────────────────────────────────┘

A node runs until it is told to stop, or until its driver halts. `serving` runs one as a process: it has
`opening` open what is in `stores`, and starts a `node` on that.
"""

from raftstate.server.configured import peer_addresses
from raftstate.server.node import Node
from raftstate.server.serving import RESTART_S_MAX, Restarts, either, serve
from raftstate.server.stores import Stores

__all__ = ["RESTART_S_MAX", "Node", "Restarts", "Stores", "either", "peer_addresses", "serve"]
