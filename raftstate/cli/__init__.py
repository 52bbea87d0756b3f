"""The raftstate command. Exit codes: 0 done, 1 refused or failed, 2 usage, 3 outcome unknown, 4 no leader in
time."""

from __future__ import annotations

import sys

import typer

from raftstate.cli import cluster, demo, dev, kv, serve
from raftstate.errors import IndefiniteError, NoLeaderError, RaftstateError

EXIT_FAILED = 1
EXIT_UNKNOWN = 3
EXIT_NO_LEADER = 4

app = typer.Typer(
    name="raftstate",
    help="A replicated state store for Python programs that must not forget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (kv.put, kv.get, kv.delete):
    app.command()(command)
app.command("range")(kv.range_)
app.command()(cluster.status)
app.command("transfer-leader")(cluster.transfer_leader)
app.command()(dev.dev)
app.command()(serve.serve)
app.command()(demo.demo)


def main() -> None:
    """Run the command line; end the process with the exit code of what happened."""
    try:
        app(prog_name="raftstate")
    except RaftstateError as error:
        typer.echo(f"raftstate: {error.message}", err=True)
        sys.exit(_exit_code(error))


def _exit_code(error: RaftstateError) -> int:
    if isinstance(error, IndefiniteError):
        return EXIT_UNKNOWN
    return EXIT_NO_LEADER if isinstance(error, NoLeaderError) else EXIT_FAILED
