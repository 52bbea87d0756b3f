"""serve: one node in the foreground."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import structlog
import typer
import uvloop

from raftstate.cli.common import JsonOption, print_json
from raftstate.config import ClusterConfig, MemberConfig, NodeSettings, load_settings
from raftstate.errors import ConfigError
from raftstate.lifeline import watch
from raftstate.supervisor import (
    CLIENT_PORT_DEFAULT,
    HOST,
    PEER_PORT_OFFSET,
    check_unused,
    new_cluster_id,
    write_node_file,
)


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
    _set_up_logging(settings.log_level)
    uvloop.run(serve_node(settings, ready=lambda: _say_ready(settings, ready_fd, json)))


def _set_up_logging(level: str) -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # stdout is for what was asked for.
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            # Plain: a traceback with local variables would print keys and values of users.
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ],
    )


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
    file = data / "node.toml"
    if not file.exists():
        if (data / "data").exists():
            raise ConfigError(
                f"{data} holds a node's data but no node.toml; restore it, or give --config", field="data"
            )
        check_unused(data, ("node.toml.new",))
        write_node_file(data, "n1", _alone())
        arguments = {**arguments, "bootstrap": True}
    return load_settings(file, arguments)


def _alone() -> ClusterConfig:
    """Return a cluster of one node on the default ports."""
    member = MemberConfig(
        id=1,
        name="n1",
        client_address=f"{HOST}:{CLIENT_PORT_DEFAULT}",
        peer_address=f"{HOST}:{CLIENT_PORT_DEFAULT + PEER_PORT_OFFSET}",
    )
    return ClusterConfig(cluster_id=new_cluster_id(), members=(member,))
