"""A node within the caller's process: a cluster of one, on a thread of its own, without a port.

    with raftstate.connect("embedded:./state") as store: ...

A client reaches it through the very handlers that serve gRPC (`rpc.methods`), so that calls, errors, sessions
and durability are the same; only the socket is missing. The directory is the folder of a node as any other
(`folder`): `raftstate serve --data DIR` goes on with it. `embedded:DIR?listen=HOST:PORT` also opens a client
port.

Clients of one process share the node of a directory; it stops, in good order, with the last of them, or at
the end of the process. A process that is killed loses nothing that was acknowledged.
"""

from __future__ import annotations

from raftstate.embedded.node import EmbeddedNode, open_node
from raftstate.embedded.transport import EmbeddedTransport, NodeThread

__all__ = ["EmbeddedNode", "EmbeddedTransport", "NodeThread", "open_node"]
