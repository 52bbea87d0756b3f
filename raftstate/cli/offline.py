"""check, recover: the directory of a node that does not run."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from raftstate.cli.common import JsonOption, print_json

_QUIET_S = 1.0
"""How long a check says nothing of how far it is."""

FolderArgument = Annotated[Path, typer.Argument(help="The node's folder, or its data folder.", metavar="DIR")]


def check(folder: FolderArgument, json: JsonOption = False) -> None:
    """Check everything in the directory of a stopped node, and change nothing.

    Says what is wrong, what follows from it and what to do. Exit code 1 when there is damage.
    """
    # Here, so that the other commands need not load the store.
    from raftstate.offline.check import check as check_node

    report = check_node(folder, _Progress())
    if json:
        print_json(
            {
                "ok": not report.findings,
                "findings": [finding._asdict() for finding in report.findings],
                "pending": report.pending,
                "fine": report.fine,
            }
        )
    else:
        for line in report.fine:
            typer.echo(f"fine     {line}")
        for line in report.pending:
            typer.echo(f"pending  {line}")
        for finding in report.findings:
            typer.echo(f"DAMAGE   {finding.part}: {finding.problem}")
            typer.echo(f"         {finding.meaning}")
        if not report.findings:
            typer.echo("no damage found")
    if report.findings:
        raise typer.Exit(1)


def recover(
    folder: FolderArgument,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Do it, after having read what may be missing.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Make a new cluster of one node of what a stopped node holds, after a majority was lost for good.

    Says what may be missing, and without --accept-loss does nothing else, with exit code 1.
    """
    from raftstate.offline.recover import look
    from raftstate.offline.recover import recover as recover_node

    found = recover_node(folder) if accept_loss else look(folder)
    cluster_id, name = found.identity.cluster_id, found.identity.name
    if json:
        print_json(
            {
                "recovered": accept_loss,
                "losses": list(found.losses),
                **(
                    {"cluster_id": str(cluster_id), "incarnation": found.identity.incarnation}
                    if accept_loss
                    else {}
                ),
            }
        )
    else:
        typer.echo("What may be missing:" if not accept_loss else "Recovered. What may be missing:")
        for loss in found.losses:
            typer.echo(f"  - {loss}")
        if accept_loss:
            typer.echo(f"{name} is now the only voter of a new cluster, {cluster_id:#x}.")
            if found.settings is None:
                typer.echo(
                    f"Its settings were not found: give its node.toml cluster_id = {cluster_id}, this node "
                    f"alone as member, and incarnation = {found.identity.incarnation}."
                )
            typer.echo("Next: start it (`raftstate serve`), then add nodes (`raftstate member add`).")
        else:
            typer.echo("Nothing was changed. If no other node can be brought back, give --accept-loss.")
    if not accept_loss:
        raise typer.Exit(1)


class _Progress:
    """Tells stderr what is looked at, of a check that takes long, where a person sees it."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()

    def __call__(self, what: str) -> None:
        if sys.stderr.isatty() and time.monotonic() - self._began_s > _QUIET_S:
            typer.echo(f"checking {what}", err=True)
