"""serve: one node in the foreground."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from raftstate.address import split_address
from raftstate.cli.common import JsonOption, print_json
from raftstate.config import NodeSettings
from raftstate.errors import ConfigError
from raftstate.folder import settings_alone, settings_of
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
    listen: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT to serve clients on; unless --advertise differs, what they are told, too."
        ),
    ] = None,
    advertise: Annotated[str | None, typer.Option(help="HOST:PORT that clients are told to use.")] = None,
    peer: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT to serve the other nodes on; unless --advertise-peer differs, what they are told,"
            " too."
        ),
    ] = None,
    advertise_peer: Annotated[
        str | None, typer.Option(help="HOST:PORT that the other nodes are told to use.")
    ] = None,
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
    """Serve one node until SIGINT or SIGTERM.

    Whatever addresses it is started with, the cluster records them, and the other nodes and clients follow.
    """
    if die_with_parent is not None:
        watch(die_with_parent)
    arguments: dict[str, object] = {
        "advertise": advertise,
        "advertise_peer": advertise_peer,
        "listen_client": listen,
        "listen_peer": peer,
        "bootstrap": bootstrap or None,
        "insecure": insecure or None,
    }
    begins = config is None and data is not None and not (data / "node.toml").exists()
    settings = settings_for(config, data, arguments)
    if begins:
        # To stderr: a mistyped directory must not pass for a node that came back.
        typer.echo(f"{data} was empty: a new cluster of one node begins there", err=True)
    # Here, so that the other commands need not load the store. What is loaded stays: the collector need not
    # look at it, now or at the node's start, which takes a tenth less without.
    gc.disable()
    from raftstate.server import serve as serve_node

    gc.freeze()
    gc.enable()

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
    if config is None and data is None:
        raise ConfigError("serve needs --config FILE or --data DIR", field="config")

    def load() -> NodeSettings:
        if config is not None:
            return settings_of(config, {**arguments, "data_dir": data and data.absolute()})
        assert data is not None
        return settings_alone(data, arguments)

    settings = load()
    told = {
        told: arguments[listen]
        for told, listen in (("advertise", "listen_client"), ("advertise_peer", "listen_peer"))
        if arguments.get(listen) is not None and getattr(settings, told) is None
    }
    # An address that stands for all of a machine's is none to be told.
    told = {name: address for name, address in told.items() if not _is_wildcard(str(address))}
    if told:
        arguments = {**arguments, **told}
        settings = load()
    return settings


def _is_wildcard(address: str) -> bool:
    host = split_address(address)[0]
    return host in ("0.0.0.0", "::")
