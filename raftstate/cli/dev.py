"""dev: a local cluster in the foreground."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from raftstate.cli.common import JsonOption, console, interrupted_once, print_json
from raftstate.client.limits import TIMEOUT_S_MAX
from raftstate.folder import CLIENT_PORT_DEFAULT
from raftstate.supervisor import NODES_DEFAULT, START_TIMEOUT_S, Death, LocalCluster

_POLL_S = 0.1


def dev(
    nodes: Annotated[int | None, typer.Option(help="1 to 7.", show_default=str(NODES_DEFAULT))] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Where the nodes keep their data; the same DIR resumes.", show_default="removed at the end"
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help="Of the first node; 0 picks free ones.", show_default=str(CLIENT_PORT_DEFAULT)),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=TIMEOUT_S_MAX, help="Seconds that the start may take.")
    ] = START_TIMEOUT_S,
    json: JsonOption = False,
) -> None:
    """Run a local cluster in the foreground until SIGINT or SIGTERM. A node that dies is not restarted."""
    try:
        with interrupted_once(), _directory(data) as folder:
            cluster = LocalCluster(
                folder, nodes=nodes, port=port, tell=lambda what: typer.echo(f"raftstate: {what}", err=True)
            )
            try:
                cluster.start(timeout_s=timeout)
                leader = cluster.wait_for_leader(timeout_s=timeout)
                if json:
                    print_json(_announcement(cluster, leader))
                else:
                    _introduce(console(), cluster, leader, kept=data is not None)
                _report_deaths(cluster, json=json)
            finally:
                cluster.stop()
    except KeyboardInterrupt:
        if not json:
            typer.echo("stopped")
        return
    typer.echo("raftstate: no node is left", err=True)
    raise typer.Exit(1)


@contextmanager
def _directory(data: Path | None) -> Iterator[Path]:
    if data is not None:
        yield data
        return
    folder = Path(tempfile.mkdtemp(prefix="raftstate-dev-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _announcement(cluster: LocalCluster, leader: str) -> dict[str, object]:
    nodes = [
        {"name": node.name, "pid": node.pid, "endpoint": node.endpoint, "data": str(node.data)}
        for node in cluster.nodes
    ]
    return {"endpoints": cluster.endpoints, "leader": leader, "nodes": nodes}


def _introduce(output: Console, cluster: LocalCluster, leader: str, *, kept: bool) -> None:
    table = Table(box=None, header_style="bold")
    for heading in ("node", "role", "pid", "endpoint", "data"):
        table.add_column(heading, no_wrap=heading != "data", overflow="fold")
    for node in cluster.nodes:
        role = "[bold green]leader" if node.name == leader else "follower"
        table.add_row(node.name, role, str(node.pid), node.endpoint, str(node.data))
    output.print(table)
    url = cluster.url
    at_default = cluster.endpoints == [f"127.0.0.1:{CLIENT_PORT_DEFAULT + i}" for i in range(NODES_DEFAULT)]
    argument, option = ("", "") if at_default else (f'"{url}"', f" --url {url}")
    output.print("\n[bold]From Python")
    output.print("  import raftstate", markup=False)
    output.print(f"  with raftstate.connect({argument}) as store:", markup=False)
    output.print('      store.put("jobs/42", b"queued")', markup=False)
    output.print('      print(store.get("jobs/42").value)', markup=False)
    output.print("\n[bold]From a shell")
    output.print(f"  raftstate put{option} jobs/42 queued && raftstate get{option} jobs/42", markup=False)
    output.print("\n[bold]Kill the leader, and write again")
    output.print(f"  kill -9 {cluster.node(leader).pid}", markup=False)
    what = "The same --data resumes it." if kept else "Its data is removed then; --data DIR keeps it."
    output.print(f"\nCtrl-C stops the cluster. {what}")


def _report_deaths(cluster: LocalCluster, *, json: bool) -> None:
    """Report nodes that end; return when none is left."""
    while True:
        for death in cluster.deaths():
            _report(cluster, death, json=json)
        if all(node.pid is None for node in cluster.nodes):
            return
        time.sleep(_POLL_S)


def _report(cluster: LocalCluster, death: Death, *, json: bool) -> None:
    if json:
        print_json({"event": "died", "name": death.name, "pid": death.pid, "cause": death.cause})
        return
    log = cluster.node(death.name).log
    typer.echo(f"{death.name} (pid {death.pid}) ended: {death.cause}. It is not restarted; its log is {log}")
