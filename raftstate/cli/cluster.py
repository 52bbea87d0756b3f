"""transfer-leader."""

from __future__ import annotations

from typing import Annotated

import typer

from raftstate.cli.common import JsonOption, print_json
from raftstate.cli.remote import TimeoutOption, UrlOption, open_client
from raftstate.client.async_client import TIMEOUT_S_DEFAULT


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
