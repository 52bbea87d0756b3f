"""lease: grant, renew, revoke, ttl, list, keep-alive."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from raftstate.cli.common import (
    JsonOption,
    bytes_field,
    interrupted_once,
    print_json,
    print_table,
    print_text,
    printable,
)
from raftstate.cli.remote import TimeoutOption, UrlOption, open_client
from raftstate.client import Lease, LeaseStatus
from raftstate.client.async_client import TIMEOUT_S_DEFAULT

_LOOK_S = 0.2
"""How often keep-alive looks whether the lease still lives."""

IdArgument = Annotated[int, typer.Argument(min=1, help="The lease.", metavar="ID")]

app = typer.Typer(
    name="lease",
    help="Leases: keys attached to one are deleted with it when it was not renewed for its time to live.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def grant(
    ttl: Annotated[float, typer.Argument(help="Seconds to live, 1 to 86,400.", metavar="TTL")],
    id: Annotated[
        int | None, typer.Option(min=1, help="Its id.", show_default="the cluster chooses one")
    ] = None,
    url: UrlOption = None,
    timeout: TimeoutOption = TIMEOUT_S_DEFAULT,
    json: JsonOption = False,
) -> None:
    """Make a lease and print its id."""
    with open_client(url, timeout) as client:
        lease = client.lease(ttl, id=id).grant()
    if json:
        print_json(_life(lease))
    else:
        print_text(str(lease.id))


@app.command()
def renew(
    id: IdArgument,
    url: UrlOption = None,
    timeout: TimeoutOption = TIMEOUT_S_DEFAULT,
    json: JsonOption = False,
) -> None:
    """Let a lease live for its whole time from now on."""
    with open_client(url, timeout) as client:
        lease = client.lease(id=id)
        lease.renew()
    if json:
        print_json(_life(lease))
    else:
        print_text(f"lease {id} lives for {lease.ttl_s:g} s from now on")


@app.command()
def revoke(
    id: IdArgument,
    url: UrlOption = None,
    timeout: TimeoutOption = TIMEOUT_S_DEFAULT,
    json: JsonOption = False,
) -> None:
    """End a lease, and delete its keys."""
    with open_client(url, timeout) as client:
        deleted = client.lease(id=id).revoke()
    if json:
        print_json({"id": str(id), "deleted": deleted})
    else:
        print_text(f"revoked lease {id}, deleted {deleted}")


@app.command()
def ttl(
    id: IdArgument,
    keys: Annotated[bool, typer.Option("--keys", help="List the attached keys, too.")] = False,
    url: UrlOption = None,
    timeout: TimeoutOption = TIMEOUT_S_DEFAULT,
    json: JsonOption = False,
) -> None:
    """Say how long a lease has left."""
    with open_client(url, timeout) as client:
        status = client.lease(id=id).time_to_live(keys=keys)
    if json:
        named = {"keys": [bytes_field("key", key) for key in status.keys]} if keys else {}
        print_json({**_fields(status), **named})
        return
    print_text(f"lease {id}: {status.remaining_s:.1f} of {status.ttl_s:g} s left, keys: {status.key_count}")
    for key in status.keys:
        print_text(printable(key))


@app.command("list")
def list_(
    url: UrlOption = None, timeout: TimeoutOption = TIMEOUT_S_DEFAULT, json: JsonOption = False
) -> None:
    """List all leases."""
    with open_client(url, timeout) as client:
        leases = client.leases()
    if json:
        print_json([_fields(each) for each in leases])
        return
    # Here, so that the other commands need not load it.
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for heading in ("lease", "ttl", "left", "keys"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in leases:
        table.add_row(str(each.id), f"{each.ttl_s:g} s", f"{each.remaining_s:.1f} s", str(each.key_count))
    print_table(table)


@app.command("keep-alive")
def keep_alive(
    id: IdArgument,
    url: UrlOption = None,
    timeout: TimeoutOption = TIMEOUT_S_DEFAULT,
    json: JsonOption = False,
) -> None:
    """Renew a lease until SIGINT or SIGTERM, and leave it to end by itself. Exit code 1: it has ended."""
    try:
        with interrupted_once(), open_client(url, timeout) as client:
            lease = client.lease(id=id)
            lease.renew()
            lease.keep_alive()
            if json:
                print_json(_life(lease))
            else:
                print_text(f"keeping lease {id} alive; once interrupted, it has {lease.ttl_s:g} s left")
            while True:
                lease.check()
                time.sleep(_LOOK_S)
    except KeyboardInterrupt:
        return


def _life(lease: Lease) -> dict[str, object]:
    return {"id": str(lease.id), "ttl_s": lease.ttl_s}


def _fields(status: LeaseStatus) -> dict[str, object]:
    return {
        "id": str(status.id),
        "ttl_s": status.ttl_s,
        "remaining_s": status.remaining_s,
        "key_count": status.key_count,
    }
