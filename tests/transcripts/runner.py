"""Finds transcript files, tells their formats apart, judges them, and writes their outputs anew."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.transcripts import confchange, quorum
from tests.transcripts.datadriven import Directive, FormatError, comparable, parse, with_outputs


class Environment(Protocol):
    """What the directives of one file act on."""

    def handle(self, directive: Directive) -> str:
        """Carry out a directive and return its output."""
        ...


@dataclass(frozen=True)
class Failure:
    """Where a file first went wrong. `line` is that of the directive; 0: the file can't be run at all."""

    line: int
    got: str
    expected: str

    def __str__(self) -> str:
        return f"line {self.line}: got {self.got!r}, expected {self.expected!r}"

    def diff(self) -> str:
        """Return the two outputs as a unified diff: `-` is expected, `+` was got."""
        lines = difflib.unified_diff(
            self.expected.split("\n"), self.got.split("\n"), "expected", "got", lineterm="", n=3
        )
        return "\n".join(lines)


def default_paths() -> list[Path]:
    """Return what RAFTSTATE_TRANSCRIPTS names, else `shared/etcd-raft-testdata` beside the checkout."""
    named = os.environ.get("RAFTSTATE_TRANSCRIPTS")
    if named:
        return [Path(name) for name in named.split(os.pathsep)]
    return [Path(__file__).resolve().parents[3] / "shared" / "etcd-raft-testdata"]


def find_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Return the files among `paths`, and every `*.txt` below the folders among them, sorted by folder."""
    for path in paths:
        if path.is_dir():
            yield from sorted(path.rglob("*.txt"))
        else:
            yield path


def environment_for(directives: Iterable[Directive]) -> Environment:
    """Return a fresh environment for a file, by the commands that stand in it.

    Raises:
        FormatError: there are no directives, or commands of more than one format.
    """
    commands = {directive.command for directive in directives}
    if not commands:
        raise FormatError("no directives")
    small: list[tuple[frozenset[str], type[Environment]]] = [
        (quorum.COMMANDS, quorum.Environment),
        (confchange.COMMANDS, confchange.Environment),
    ]
    for known, environment in small:
        if commands <= known:
            return environment()
        if commands & known:
            raise FormatError(f"two formats: {sorted(commands & known)} and {sorted(commands - known)}")
    # Only these files need the whole core; the other two formats run without it.
    from tests.transcripts.interaction import Environment as InteractionEnvironment

    return InteractionEnvironment()


def judge(path: Path) -> Failure | None:
    """Run one file; return where it first differs from what it expects, or None if it does not.

    An exception out of the code under judgement is such a difference too.
    """
    try:
        directives = parse(path.read_text(encoding="utf-8"))
        environment = environment_for(directives)
    except (OSError, UnicodeDecodeError, FormatError) as error:
        return Failure(0, f"{type(error).__name__}: {error}", "a transcript")
    for directive in directives:
        expected = comparable(directive.expected)
        try:
            got = comparable(environment.handle(directive))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the verdict on this file
            return Failure(directive.line, f"{type(error).__name__}: {error}", expected)
        if got != expected:
            return Failure(directive.line, got, expected)
    return None


def rewrite(path: Path) -> Failure | None:
    """Write the outputs that one file gives now into it, in place of those that it expects.

    What it says afterwards is what the core does, not what it should do: read the difference before you
    keep it.

    Returns:
        None if that was done; a failure, with the file as it was, if a directive can't be carried out.
    """
    try:
        text = path.read_text(encoding="utf-8")
        directives = parse(text)
        environment = environment_for(directives)
    except (OSError, UnicodeDecodeError, FormatError) as error:
        return Failure(0, f"{type(error).__name__}: {error}", "a transcript")
    outputs = []
    for directive in directives:
        try:
            outputs.append((directive, environment.handle(directive)))
        except Exception as error:  # noqa: BLE001 - whatever it is, there is no output to write
            return Failure(directive.line, f"{type(error).__name__}: {error}", "an output to write")
    path.write_text(with_outputs(text, outputs), encoding="utf-8")
    return None
