"""The ports that a node opens to its clients and to those who watch over it.

What serves a port is loaded when it is asked for, so that a node without one need not load it. The port for
peers is `node.links`' own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from raftstate.address import join_address, split_address
from raftstate.config import NodeSettings
from raftstate.errors import ConfigError
from raftstate.logs import get_logger
from raftstate.node.local import LocalNode

if TYPE_CHECKING:
    from raftstate.ops.metric import Parts
    from raftstate.ops.server import OpsServer
    from raftstate.rpc.server import RpcServer

log = get_logger(__name__)


def client_server(service: LocalNode, settings: NodeSettings) -> RpcServer:
    """Return what serves the clients' port: bound, and not serving yet.

    Raises `ConfigError` when the address can't be bound, or may not.
    """
    from raftstate.rpc.server import build_server

    host, port = split_address(settings.client_listener)
    return build_server(service, host=host, port=port, insecure=settings.insecure)


async def open_metrics(
    settings: NodeSettings, listener: tuple[str, int], parts: Parts, now_ns: Callable[[], int]
) -> tuple[OpsServer, str] | None:
    """Open the port for metrics and probes.

    Args:
        settings: of the node.
        listener: host and port to listen on; port 0: any.
        parts: what is shown.
        now_ns: the driver's monotonic clock.

    Returns what serves it, and its host:port; None: it can't be bound, and nobody asked for it by name.
    Raises `ConfigError` if somebody did.
    """
    from raftstate.ops.server import OpsServer

    host, port = listener
    ops = OpsServer(parts, now_ns)
    try:
        bound = await ops.start(host, port)
    except ConfigError as error:
        await ops.close()
        if settings.listen_metrics is not None:
            raise
        # A node that served before it knew of metrics still does.
        log.warning("no metrics", reason=str(error))
        return None
    return ops, join_address(host, bound)
