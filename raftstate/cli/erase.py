"""erase, defragment: what rewrites the files of every node."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer

from raftstate.cli.common import JsonOption, megabytes, print_json, print_text, raw_argument
from raftstate.cli.remote import TimeoutOption, UrlOption, open_client
from raftstate.client import Client, MemberErase, NodeStatus
from raftstate.client.async_client import TIMEOUT_S_DEFAULT
from raftstate.errors import FailedPreconditionError, InvalidArgumentError

_LOOK_S = 0.5
"""Between two looks at how far the nodes are."""


def erase(
    key: Annotated[str | None, typer.Argument(help="1 to 480 bytes.", show_default=False)] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until every member has rewritten its files.")
    ] = False,
    progress: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="INDEX", help="Show how far the erase with this index is.", show_default=False
        ),
    ] = None,
    url: UrlOption = None,
    timeout: TimeoutOption = TIMEOUT_S_DEFAULT,
    json: JsonOption = False,
) -> None:
    """Delete KEY together with its history, for good: from every file of every member.

    It is gone for all readers at once, and so is the history of all other keys up to there. Then each member
    rewrites its files: --wait waits for that, --progress INDEX looks (exit code 1 while a member is not
    done). What clients and backups hold is not reached.
    """
    if (key is None) == (progress is None):
        raise InvalidArgumentError("give KEY, or --progress INDEX", field="key")
    with open_client(url, timeout) as client:
        if key is None:
            assert progress is not None
            index, fields = progress, {"index": progress}
        else:
            result = client.erase(raw_argument(key))
            index, fields = result.index, msgspec.to_builtins(result)
            if not json:
                there = "" if result.deleted else " (there was no such key)"
                print_text(f"erased up to revision {result.revision}, index {index}{there}")
            if not wait:
                if json:
                    print_json(fields)
                return
        members = _wait(client, index, json) if wait else client.erase_progress(index)
    if json:
        print_json({**fields, "members": msgspec.to_builtins(members)})
    elif not wait:
        _print_members(members)
    if any(member.state != "done" for member in members):
        raise typer.Exit(1)


def _wait(client: Client, index: int, json: bool) -> list[MemberErase]:
    """Wait until all members are done; tell each change, unless in JSON."""
    before: dict[int, str] = {}
    while True:
        members = client.erase_progress(index)
        if not json:
            _print_members([each for each in members if before.get(each.id) != each.state])
        if all(member.state == "done" for member in members):
            return members
        before = {member.id: member.state for member in members}
        time.sleep(_LOOK_S)


def _print_members(members: Sequence[MemberErase]) -> None:
    for member in members:
        print_text(f"{member.name}: {member.state}")


def defragment(
    node: Annotated[
        str | None,
        typer.Argument(
            help="Name or id of a member.", show_default="all, one after the other, the leader last"
        ),
    ] = None,
    url: UrlOption = None,
    timeout: TimeoutOption = TIMEOUT_S_DEFAULT,
    json: JsonOption = False,
) -> None:
    """Rewrite the files of a node's state without the space that nothing uses; it goes on serving.

    Needs room on the node's disk for what the state holds, once more.
    """
    done = []
    with open_client(url, timeout) as client:
        for each in _nodes(client, node):
            name = each.name
            before_bytes = client.defragment(each.node_id)
            after = _await_rebuild(client, each)
            done.append({"node": name, "before_bytes": before_bytes, "after_bytes": after.state_bytes})
            if not json:
                print_text(f"{name}: {megabytes(before_bytes)}, now {megabytes(after.state_bytes)}")
    if json:
        print_json({"nodes": done})


def _nodes(client: Client, wanted: str | None) -> list[NodeStatus]:
    """Return the nodes to defragment, the leader last. Raises `FailedPreconditionError` when one is down."""
    nodes = client.status()
    members = {member.id: member for node in nodes for member in node.members}
    chosen = [
        member for member in members.values() if wanted is None or wanted in (member.name, str(member.id))
    ]
    if not chosen:
        known = ", ".join(f"{member.name} ({member.id})" for member in members.values())
        raise InvalidArgumentError(f"no member is {wanted!r}; members are {known}", field="node")
    answered = {node.node_id: node for node in nodes if not node.error}
    down = [member.name for member in chosen if member.id not in answered]
    if down:
        raise FailedPreconditionError(f"{', '.join(down)} can't be reached; nothing was begun")
    found = [answered[member.id] for member in chosen]
    return sorted(found, key=lambda node: (node.role == "leader", node.node_id))


def _await_rebuild(client: Client, node: NodeStatus) -> NodeStatus:
    """Wait until a node has rewritten its files; return its status then."""
    while True:
        [status] = client.status(node.endpoint)
        if not status.rebuild:
            return status
        time.sleep(_LOOK_S)
