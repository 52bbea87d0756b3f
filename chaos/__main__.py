"""Command line of the chaos suite: `python -m chaos COMMAND`. Exit codes are those of each command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NamedTuple

from chaos.checker import command as check
from chaos.sim import command as sim


class Command(NamedTuple):
    """A command: what --help says, its options, and what runs it and returns the exit code."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


COMMANDS: dict[str, Command] = {
    "sim": Command(sim.HELP, sim.add_arguments, sim.run),
    "check": Command(check.HELP, check.add_arguments, check.run),
}


def main(arguments: list[str]) -> int:
    """Run a command; return its exit code (2: wrong usage)."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        command.add_arguments(commands.add_parser(name, help=command.help, description=command.help))
    parsed = parser.parse_args(arguments)
    return COMMANDS[parsed.command].run(parsed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
