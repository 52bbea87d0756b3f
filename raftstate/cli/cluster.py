"""status, transfer-leader."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer
from rich.markup import escape
from rich.table import Table

from raftstate.cli.common import (
    JsonOption,
    TimeoutOption,
    UrlOption,
    console,
    open_client,
    print_json,
    print_table,
)
from raftstate.client import NodeStatus
from raftstate.client.async_client import TIMEOUT_S_DEFAULT

_COUNTERS = ("term", "commit", "applied", "checkpoint")
_CONTENTS = ("revision", "compacted", "keys", "leases", "watches")


def status(
    url: UrlOption = None, timeout: TimeoutOption = TIMEOUT_S_DEFAULT, json: JsonOption = False
) -> None:
    """Show every node: its role, how far it is, how much it stores. Exit code 4 when none answers.

    "compacted" is the revision that reads of the past and watches reach back to; "watches" are those that
    the node itself serves.
    """
    with open_client(url, timeout) as client:
        nodes = client.status()
    commit = max(node.commit_index for node in nodes)
    if json:
        print_json({"nodes": [_node_fields(node, commit) for node in nodes]})
        return
    print_table(_table(nodes, commit))
    output = console()
    for node in nodes:
        if node.rebuild:
            copied = f"{megabytes(node.rebuild_done_bytes)} of {megabytes(node.rebuild_total_bytes)}"
            output.print(f"{node.name}: rewrites its files ({node.rebuild}), {copied}", markup=False)
        if node.erased_index < node.last_erase_index:
            output.print(f"{node.name}: what was erased is still in its files", markup=False)
        for alarm in node.alarms:
            output.print(f"{node.name}: {alarm}", style="bold red", markup=False)


def transfer_leader(
    target: Annotated[
        str | None, typer.Argument(help="Name or id of a voter.", show_default="the most up-to-date one")
    ] = None,
    url: UrlOption = None,
    timeout: TimeoutOption = TIMEOUT_S_DEFAULT,
    json: JsonOption = False,
) -> None:
    """Hand leadership to another voter."""
    with open_client(url, timeout) as client:
        leader_id = client.transfer_leader(int(target) if target and target.isdecimal() else target)
        names = {member.id: member.name for node in client.status() for member in node.members}
    name = names.get(leader_id, "")
    if json:
        print_json({"leader_id": leader_id, "leader": name})
    else:
        typer.echo(f"{name or leader_id} leads")


def _node_fields(node: NodeStatus, commit: int) -> dict[str, object]:
    if node.error:
        return {"endpoint": node.endpoint, "error": node.error}
    fields: dict[str, object] = msgspec.to_builtins(node)
    del fields["error"]
    # 64 bits are more than a JSON number holds everywhere.
    for key in ("cluster_id", "digest"):
        fields[key] = f"{getattr(node, key):016x}"
    fields["lag"] = max(0, commit - node.applied_index)
    return fields


def _table(nodes: list[NodeStatus], commit: int) -> Table:
    table = Table(box=None, header_style="bold")
    for heading in ("node", "endpoint", "role"):
        table.add_column(heading, no_wrap=True)
    for heading in (*_COUNTERS, "lag", *_CONTENTS, "log", "state"):
        table.add_column(heading, justify="right", no_wrap=True)
    for node in nodes:
        if node.error:
            table.add_row("?", node.endpoint, f"[red]unreachable[/]: {escape(node.error)}")
            continue
        counters = (node.term, node.commit_index, node.applied_index, node.durable_applied_index)
        contents = (node.revision, node.compacted_revision, node.keys, node.leases, node.watches)
        table.add_row(
            node.name,
            node.endpoint,
            f"[bold green]{node.role}" if node.role == "leader" else node.role,
            *map(str, counters),
            str(max(0, commit - node.applied_index)),
            *map(str, contents),
            megabytes(node.log_bytes),
            megabytes(node.state_bytes),
        )
    return table


def megabytes(size_bytes: int) -> str:
    """Return a size for people."""
    return f"{size_bytes / 1e6:,.1f} MB"
