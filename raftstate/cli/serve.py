"""serve: one node in the foreground."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from raftstate.cli.common import JsonOption, print_json
from raftstate.config import NodeSettings, load_settings
from raftstate.errors import ConfigError
from raftstate.folder import settings_alone
from raftstate.lifeline import watch
from raftstate.logs import to_stderr


def serve(
    config: Annotated[Path | None, typer.Option(help="The node's settings, a TOML file.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="The node's directory. Without --config, DIR/node.toml is taken; in an empty DIR it is"
            " written, for a cluster of one node."
        ),
    ] = None,
    advertise: Annotated[str | None, typer.Option(help="HOST:PORT that clients are told to use.")] = None,
    listen: Annotated[str | None, typer.Option(help="HOST:PORT to serve clients on.")] = None,
    bootstrap: Annotated[
        bool,
        typer.Option(
            "--bootstrap", help="Allow an empty data directory: the very first start of a node, and no other."
        ),
    ] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond loopback without encryption and authentication.")
    ] = False,
    json: JsonOption = False,
    ready_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    die_with_parent: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve one node until SIGINT or SIGTERM."""
    # Here, so that the other commands need not load the store.
    from raftstate.server import serve as serve_node

    if die_with_parent is not None:
        watch(die_with_parent)
    arguments: dict[str, object] = {
        "advertise": advertise,
        "listen_client": listen,
        "bootstrap": bootstrap or None,
        "insecure": insecure or None,
    }
    settings = settings_for(config, data, arguments)
    to_stderr(settings.log_level, settings.log_format)
    uvloop.run(serve_node(settings, ready=lambda: _say_ready(settings, ready_fd, json)))


def _say_ready(settings: NodeSettings, ready_fd: int | None, json: bool) -> None:
    """Tell whoever started this node that its ports are open: the parent process, a program, or a person."""
    if ready_fd is not None:
        os.write(ready_fd, b"1")
        os.close(ready_fd)
    elif json:
        fields = {"name": settings.name, "pid": os.getpid(), "endpoint": settings.client_listener}
        print_json({**fields, "data": str(settings.data_path)})
    else:
        typer.echo(
            f"{settings.name} serves clients on {settings.client_listener},"
            f" peers on {settings.peer_listener}; data in {settings.data_path}, pid {os.getpid()}"
        )


def settings_for(config: Path | None, data: Path | None, arguments: dict[str, object]) -> NodeSettings:
    """Return the settings that the options of `serve` mean; write DIR/node.toml where there is nothing yet.

    Raises ConfigError, and FailedPreconditionError when `data` holds files of somebody else.
    """
    if config is not None:
        return load_settings(config, {**arguments, "data_dir": data and data.absolute()})
    if data is None:
        raise ConfigError("serve needs --config FILE or --data DIR", field="config")
    return settings_alone(data, arguments)
