"""The commands by name. Each is loaded when it is used: `put` needs nothing of what `demo` imports."""

from __future__ import annotations

import importlib
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

import raftstate


class _Place(NamedTuple):
    module: str
    attribute: str
    """A function, or an app with commands of its own."""


_COMMANDS = {
    "put": _Place("kv", "put"),
    "get": _Place("kv", "get"),
    "delete": _Place("kv", "delete"),
    "range": _Place("kv", "range_"),
    "scan": _Place("txn", "scan"),
    "txn": _Place("txn", "txn"),
    "watch": _Place("watch", "watch"),
    "lease": _Place("lease", "app"),
    "lock": _Place("lock", "lock"),
    "compact": _Place("txn", "compact"),
    "erase": _Place("erase", "erase"),
    "status": _Place("status", "status"),
    "member": _Place("member", "app"),
    "transfer-leader": _Place("cluster", "transfer_leader"),
    "defragment": _Place("erase", "defragment"),
    "doctor": _Place("doctor", "doctor"),
    "check": _Place("offline", "check"),
    "recover": _Place("offline", "recover"),
    "dev": _Place("dev", "dev"),
    "serve": _Place("serve", "serve"),
    "demo": _Place("demo", "demo"),
}


class _Commands(TyperGroup):
    # Contexts and commands are typed by Typer's own parser, which is not for others to import.

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names, in the order in which --help shows them."""
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Load a command; None when there is none of that name."""
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return None
        found = getattr(importlib.import_module(f"raftstate.cli.{place.module}"), place.attribute)
        if isinstance(found, typer.Typer):
            return typer.main.get_command(found)
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        alone.command(cmd_name, help=_unwrapped(found.__doc__))(found)
        return typer.main.get_command(alone)


def _unwrapped(docstring: str) -> str:
    """Return a docstring with a line for each paragraph: where lines end is for the terminal to say."""
    return "\n\n".join(" ".join(part.split()) for part in docstring.split("\n\n"))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"raftstate {raftstate.__version__}")
        raise typer.Exit


app = typer.Typer(
    name="raftstate",
    cls=_Commands,
    help="A replicated state store for Python programs that must not forget.",
    epilog="Exit codes: 0 done; 1 refused or failed, and certainly not done; 2 wrong usage, argument or"
    " setting; 3 a write was sent and its outcome is unknown; 4 no leader, or no node, in time.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
