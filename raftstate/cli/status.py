"""status."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import msgspec
import typer
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from raftstate.cli.common import (
    JsonOption,
    console,
    interrupted_once,
    megabytes,
    print_json,
    print_table,
    reader_has_gone,
)
from raftstate.cli.remote import TimeoutOption, UrlOption, open_client
from raftstate.client import Client, NodeStatus
from raftstate.client.async_client import TIMEOUT_S_DEFAULT
from raftstate.errors import NoLeaderError

_COUNTERS = ("term", "commit", "applied", "checkpoint")
_CONTENTS = ("revision", "compacted", "keys", "leases", "watches")
_LARGE = ("cluster_id", "digest")
"""64 bits are more than a JSON number holds everywhere."""


def status(
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on, until SIGINT or SIGTERM; with --json a line each time.")
    ] = False,
    interval: Annotated[float, typer.Option(min=0.1, max=3_600, help="Seconds between two looks.")] = 1.0,
    url: UrlOption = None,
    timeout: TimeoutOption = TIMEOUT_S_DEFAULT,
    json: JsonOption = False,
) -> None:
    """Show every node: its role, how far it is, how much it stores. Exit code 4 when none answers.

    "lag" is how many entries a node has yet to apply of what is known to be committed; "compacted" the
    revision that reads of the past and watches reach back to; "watches" are those that the node itself
    serves. The leader's followers are shown as it sees them.
    """
    with open_client(url, timeout) as client:
        if not watch:
            nodes = client.status()
            if json:
                print_json(_fields(nodes))
            else:
                for table in _tables(nodes):
                    print_table(table)
                console().print(_works(nodes), _alarms(nodes), sep="", end="")
            return
        try:
            with interrupted_once():
                if json:
                    _watch_json(client, interval)
                elif sys.stdout.isatty():
                    _watch_screen(client, interval)
                else:
                    _watch_text(client, interval)
        except KeyboardInterrupt:
            return


def _watch_json(client: Client, interval_s: float) -> None:
    while True:
        try:
            print_json(_fields(client.status()))
        except NoLeaderError as error:
            print_json({"error": error.message})
        time.sleep(interval_s)
        if reader_has_gone():
            raise BrokenPipeError


def _watch_screen(client: Client, interval_s: float) -> None:
    with Live(console=console(), auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            live.update(Group(*_moving(client)), refresh=True)
            time.sleep(interval_s)


def _watch_text(client: Client, interval_s: float) -> None:
    while True:
        for part in _moving(client):
            if isinstance(part, Table):
                print_table(part)
            else:
                console().print(part)
        time.sleep(interval_s)
        if reader_has_gone():
            raise BrokenPipeError


def _moving(client: Client) -> list[Table | Text]:
    """Return what changes from one look to the next."""
    try:
        nodes = client.status()
    except NoLeaderError as error:
        return [Text(error.message, style="bold red")]
    return [_progress_table(nodes), *_followers_tables(nodes), _works(nodes), _alarms(nodes)]


def _fields(nodes: list[NodeStatus]) -> dict[str, object]:
    commit = _commit(nodes)
    return {"nodes": [_node_fields(node, commit) for node in nodes]}


def _commit(nodes: list[NodeStatus]) -> int:
    """Return the highest index that any node knows to be committed."""
    return max(node.commit_index for node in nodes)


def _node_fields(node: NodeStatus, commit: int) -> dict[str, object]:
    if node.error:
        return {"endpoint": node.endpoint, "error": node.error}
    fields: dict[str, object] = msgspec.to_builtins(node)
    del fields["error"]
    for key in _LARGE:
        fields[key] = f"{getattr(node, key):016x}"
    fields["lag"] = max(0, commit - node.applied_index)
    return fields


def _tables(nodes: list[NodeStatus]) -> list[Table]:
    return [_progress_table(nodes), _details_table(nodes), *_followers_tables(nodes)]


def _table(left: tuple[str, ...], right: tuple[str, ...]) -> Table:
    table = Table(box=None, header_style="bold")
    for heading in left:
        table.add_column(heading, no_wrap=True)
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _progress_table(nodes: list[NodeStatus]) -> Table:
    """How far each node is, and what it holds."""
    commit = _commit(nodes)
    table = _table(("node", "endpoint", "role"), (*_COUNTERS, "lag", *_CONTENTS, "log", "state"))
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


def _details_table(nodes: list[NodeStatus]) -> Table:
    """What each node is, and what it lives in."""
    table = _table(
        ("node", "id", "incarnation", "version", "machine", "digest", "metrics"),
        ("checkpoint age", "disk free", "log max", "state max"),
    )
    for node in nodes:
        if not node.error:
            table.add_row(
                node.name,
                str(node.node_id),
                str(node.incarnation),
                node.version,
                str(node.machine_version),
                f"{node.digest:016x}",
                node.metrics_address or "none",
                f"{node.checkpoint_age_ms / 1_000:.1f} s",
                megabytes(node.disk_free_bytes),
                megabytes(node.log_map_bytes),
                megabytes(node.state_map_bytes),
            )
    return table


def _followers_tables(nodes: list[NodeStatus]) -> list[Table]:
    """How far the others are, as their leader sees them; no table without a leader of others."""
    leaders = [node for node in nodes if node.progress]
    if not leaders:
        return []
    leader = max(leaders, key=lambda node: node.term)
    names = {member.id: member.name for member in leader.members}
    table = _table(("follower", "replication", "active"), ("match", "entries behind", "seconds behind"))
    for peer in leader.progress:
        table.add_row(
            names.get(peer.id, str(peer.id)),
            peer.state,
            "yes" if peer.recently_active else "[bold red]no",
            str(peer.match_index),
            str(peer.lag_entries),
            f"{peer.lag_ms / 1_000:.1f}",
        )
    return [table]


def _works(nodes: list[NodeStatus]) -> Text:
    """Return what nodes do to their files, and have yet to do."""
    lines = []
    for node in nodes:
        if node.rebuild:
            copied = f"{megabytes(node.rebuild_done_bytes)} of {megabytes(node.rebuild_total_bytes)}"
            lines.append(f"{node.name}: rewrites its files ({node.rebuild}), {copied}\n")
        if node.erased_index < node.last_erase_index:
            lines.append(f"{node.name}: what was erased is still in its files\n")
    return Text("".join(lines))


def _alarms(nodes: list[NodeStatus]) -> Text:
    lines = [f"{node.name}: {alarm}\n" for node in nodes for alarm in node.alarms]
    return Text("".join(lines), style="bold red")
