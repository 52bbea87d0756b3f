"""member: who belongs to the cluster, and how that changes."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.table import Table

from raftstate.address import split_address
from raftstate.cli.common import JsonOption, print_json, print_table
from raftstate.cli.remote import TimeoutOption, UrlOption, open_client
from raftstate.client import MemberAdded, MemberList, MemberStatus
from raftstate.client.async_client import TIMEOUT_S_DEFAULT
from raftstate.errors import StorageError
from raftstate.folder import PEER_PORT_OFFSET, check_joinable
from raftstate.joining import write_joiner

app = typer.Typer(
    name="member",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Show and change who belongs to the cluster. One change is made at a time; each returns when it is"
    " committed. Exit code 1: refused, nothing was changed. 3: its outcome is unknown; `member list` tells.",
)

NameArgument = Annotated[str, typer.Argument(help="Of the member.", show_default=False)]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Write DIR/node.toml, with which `raftstate serve --data DIR` starts the node. Copy DIR to the"
        " machine that it is for.",
        metavar="DIR",
        show_default=False,
    ),
]
_PEER_PORT_HELP = f"the host of --address, and its port + {PEER_PORT_OFFSET}"


@app.command("list")
def list_members(
    url: UrlOption = None, timeout: TimeoutOption = TIMEOUT_S_DEFAULT, json: JsonOption = False
) -> None:
    """Show the members: id, name, role, addresses, and how many log entries each is behind."""
    with open_client(url, timeout) as client:
        members = client.members()
    rows = [_row(members, member) for member in members]
    if json:
        print_json({"leader_id": members.leader_id, "commit_index": members.commit_index, "members": rows})
        return
    table = Table(box=None, header_style="bold")
    for heading in ("id", "name", "role", "incarnation", "clients", "peers", "lag", "state"):
        right = heading in ("id", "incarnation", "lag")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for row in rows:
        role = "[bold green]leader" if row["role"] == "leader" else str(row["role"])
        shown = ("incarnation", "client_address", "peer_address", "lag", "state")
        table.add_row(str(row["id"]), str(row["name"]), role, *(_cell(row[key]) for key in shown))
    print_table(table)


@app.command()
def add(
    name: Annotated[
        str,
        typer.Argument(
            help="New in the cluster: letters, digits, dot, dash, underscore.", show_default=False
        ),
    ],
    address: Annotated[
        str, typer.Option(help="HOST:PORT at which clients will reach it.", show_default=False)
    ],
    peer_address: Annotated[
        str | None,
        typer.Option(help="HOST:PORT at which the other nodes will reach it.", show_default=_PEER_PORT_HELP),
    ] = None,
    learner: Annotated[
        bool, typer.Option("--learner", help="It stays without a vote, until `member promote`.")
    ] = False,
    out: OutOption = None,
    url: UrlOption = None,
    timeout: TimeoutOption = TIMEOUT_S_DEFAULT,
    json: JsonOption = False,
) -> None:
    """Add a node, for example: raftstate member add n4 --address 127.0.0.1:7004 --out ./n4

    It joins without a vote, is sent what the cluster stores once it is started, and votes as soon as it has
    caught up. Given again before the node was started, it does the same once more: so --out may come later.
    """
    if out is not None:
        _make(out)
    with open_client(url, timeout) as client:
        added = client.add_member(
            name,
            peer_address=_default_peer_address(address) if peer_address is None else peer_address,
            client_address=address,
            learner=learner,
        )
    role = "a learner" if learner else "a learner until it has caught up"
    again = "already " if added.already else ""
    what = f"{name} is {again}node {added.member.id} of the cluster, {role}"
    _tell_how_to_start(added, what, out, json=json)


@app.command()
def promote(
    name: NameArgument,
    url: UrlOption = None,
    timeout: TimeoutOption = TIMEOUT_S_DEFAULT,
    json: JsonOption = False,
) -> None:
    """Give a learner a vote. Refused while it is too far behind; the message says how far."""
    with open_client(url, timeout) as client:
        members = client.promote_member(name)
    _tell_members(members, f"{name} votes", json=json)


@app.command()
def remove(
    names: Annotated[
        list[str], typer.Argument(help="Of the members.", metavar="NAME...", show_default=False)
    ],
    url: UrlOption = None,
    timeout: TimeoutOption = TIMEOUT_S_DEFAULT,
    json: JsonOption = False,
) -> None:
    """Remove members, for ever; several at once in one step. Their nodes stop by themselves.

    Refused when those that are left and answer would be no majority: then add or restart nodes first, or
    remove the dead ones first.
    """
    with open_client(url, timeout) as client:
        members = client.remove_members(names)
    are = "is no member" if len(names) == 1 else "are no members"
    _tell_members(members, f"{', '.join(names)} {are} any more", json=json)


@app.command()
def replace(
    name: NameArgument,
    address: Annotated[
        str | None,
        typer.Option(help="HOST:PORT at which clients will reach it.", show_default="as before"),
    ] = None,
    peer_address: Annotated[
        str | None,
        typer.Option(help="HOST:PORT at which the other nodes will reach it.", show_default="as before"),
    ] = None,
    out: OutOption = None,
    url: UrlOption = None,
    timeout: TimeoutOption = TIMEOUT_S_DEFAULT,
    json: JsonOption = False,
) -> None:
    """Have a member begin anew with empty data: its disk is lost, or it moves to another machine.

    A node that lost its data must not come back as if it had them: what it acknowledged would be gone. This
    gives it a new incarnation. It is started with --out's directory, is sent what the cluster stores, and
    votes again when it has caught up. Refused unless a majority answers without it.
    """
    if out is not None:
        _make(out)
    with open_client(url, timeout) as client:
        replaced = client.replace_member(name, peer_address=peer_address, client_address=address)
    member = replaced.member
    what = f"{name} begins anew as incarnation {member.incarnation} of node {member.id}"
    _tell_how_to_start(replaced, what, out, json=json)


def _make(out: Path) -> None:
    """Make the folder of a node before the cluster is asked: what was changed is not to be found out to be of
    no use afterwards. Raises `FailedPreconditionError`, `StorageError`."""
    check_joinable(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise StorageError(
            f"can't write to {out}: {error.strerror}; the cluster was asked for nothing. Give another --out"
        ) from error


def _tell_how_to_start(added: MemberAdded, what: str, out: Path | None, *, json: bool) -> None:
    start = None
    if out is not None:
        write_joiner(out, added)
        start = f"raftstate serve --data {shlex.quote(str(out))}"
    if json:
        print_json(
            {
                "member": msgspec.to_builtins(added.member),
                "members": msgspec.to_builtins(added.members),
                "cluster_id": f"{added.cluster_id:016x}",
                "already": added.already,
                "start": start,
            }
        )
    elif start is not None:
        typer.echo(f"{what}. Start it with: {start}")
    else:
        typer.echo(f"{what}. Its settings are not written yet; the same command with --out DIR writes them")


def _tell_members(members: tuple[MemberStatus, ...], what: str, *, json: bool) -> None:
    if json:
        print_json({"members": msgspec.to_builtins(members)})
    else:
        typer.echo(f"{what}; members are {', '.join(member.name for member in members)}")


def _default_peer_address(address: str) -> str:
    host, port = split_address(address)
    return f"[{host}]:{port + PEER_PORT_OFFSET}" if ":" in host else f"{host}:{port + PEER_PORT_OFFSET}"


def _row(members: MemberList, member: MemberStatus) -> dict[str, object]:
    progress = {peer.id: peer for peer in members.progress}.get(member.id)
    leads = member.id == members.leader_id
    role = "leader" if leads else "learner" if member.learner else "voter"
    fields: dict[str, object] = msgspec.to_builtins(member)
    lag = None if progress is None else max(0, members.commit_index - progress.match_index)
    return {
        **fields,
        "role": role,
        "match_index": members.commit_index if leads else progress and progress.match_index,
        "lag": 0 if leads else lag,
        "state": progress and progress.state,
    }


def _cell(value: object) -> str:
    return "" if value is None else str(value)
