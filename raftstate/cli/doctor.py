"""doctor: is this machine, and the cluster, fit for what it is to do?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from raftstate.cli.common import JsonOption, console, print_json
from raftstate.cli.remote import TimeoutOption
from raftstate.client.async_client import TIMEOUT_S_DEFAULT
from raftstate.config import NodeSettings, load_settings
from raftstate.doctor import cluster, disk, host
from raftstate.doctor.finding import Finding, Verdict
from raftstate.errors import ConfigError

_STYLES = {Verdict.OK: "green", Verdict.NOTE: "cyan", Verdict.WARNING: "yellow", Verdict.FAILED: "bold red"}


def doctor(
    data: Annotated[
        Path | None,
        typer.Option(help="The node's directory, as `serve` has it, or one on the disk that it will have."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="The node's settings, a TOML file.")] = None,
    url: Annotated[
        str | None,
        typer.Option(
            envvar="RAFTSTATE_URL",
            help="A cluster that runs.",
            show_default="the members that the settings name, if any answers",
        ),
    ] = None,
    timeout: TimeoutOption = TIMEOUT_S_DEFAULT,
    json: JsonOption = False,
) -> None:
    """Look at this machine, the disk of a data directory, and a cluster that runs; say what to do.

    Nothing is changed; some hundred small writes are made in the data directory, and removed. Exit code 1
    when something failed; a warning is none.
    """
    findings = list(_look(data, config, url, timeout))
    failures = sum(finding.verdict is Verdict.FAILED for finding in findings)
    if json:
        print_json({"ok": not failures, "checks": [finding._asdict() for finding in findings]})
    else:
        _show(findings)
    if failures:
        raise typer.Exit(1)


def _look(data: Path | None, config: Path | None, url: str | None, timeout_s: float) -> Iterator[Finding]:
    file = config
    if file is None and data is not None and (data / "node.toml").exists():
        file = data / "node.toml"
    settings: NodeSettings | None = None
    if file is not None:
        try:
            arguments = {"data_dir": data.absolute()} if config is not None and data is not None else None
            settings = load_settings(file, arguments)
        except ConfigError as error:
            yield host.settings_finding(error)
    yield from host.look(settings)
    folder = settings.data_path if settings is not None else data
    if folder is not None:
        yield from disk.look(folder)
    members = "" if settings is None else ",".join(each.client_address for each in settings.cluster.members)
    if url or members:
        yield from cluster.look(url or members, timeout_s, must_run=url is not None)


def _show(findings: Iterable[Finding]) -> None:
    table = Table(box=None, header_style="bold")
    for heading in ("check", "verdict", "found"):
        table.add_column(heading, no_wrap=heading != "found", overflow="fold")
    for finding in findings:
        style = _STYLES[finding.verdict]
        advice = f"\n[{style}]{escape(finding.advice)}[/]" if finding.advice else ""
        table.add_row(finding.check, f"[{style}]{finding.verdict}[/]", f"{escape(finding.found)}{advice}")
    console().print(table)
