"""What the commands that reach a cluster share: where it is, and for how long to try."""

from __future__ import annotations

from typing import Annotated

import typer

from raftstate.client import Client, connect
from raftstate.client.async_client import TIMEOUT_S_DEFAULT
from raftstate.client.limits import TIMEOUT_S_MAX

UrlOption = Annotated[
    str | None,
    typer.Option(
        envvar="RAFTSTATE_URL",
        help="The cluster: \\[raftstate://]host:port,host:port,... Or embedded:DIR, a store in a directory,"
        " whose one node runs in this process.",
        show_default="the three nodes of `raftstate dev`",
    ),
]
TimeoutOption = Annotated[
    float, typer.Option(min=0.001, max=TIMEOUT_S_MAX, help="Seconds until a request is given up.")
]
RevisionOption = Annotated[
    int | None, typer.Option(min=1, help="Read as of this revision.", show_default="the latest")
]


def open_client(url: str | None, timeout: float = TIMEOUT_S_DEFAULT) -> Client:
    """Return a client of the cluster at `url`, for `with`."""
    return connect(url, timeout=timeout)
