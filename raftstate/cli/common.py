"""What all commands share: output and signals. Nothing of the client is imported here: `serve` needs none."""

from __future__ import annotations

import base64
import json
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from raftstate.client import KeyValue

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to stdout.")]


_TABLE_WIDTH_MAX = 1_000


def console(*, err: bool = False) -> Console:
    """Return where text for people goes: plain, and never wrapped, where it is not a terminal."""
    # Here, so that commands without tables need not load it.
    from rich.console import Console

    stream = sys.stderr if err else sys.stdout
    return Console(
        stderr=err, soft_wrap=not stream.isatty(), highlight=False, width=None if stream.isatty() else 200
    )


def print_table(table: Table) -> None:
    """Print a table for people; one that is wider than the terminal is left to the terminal to wrap, since
    columns cut short tell nobody anything.
    """
    output = console()
    shown = output.width
    output.width = _TABLE_WIDTH_MAX
    output.width = max(shown, output.measure(table).maximum)
    output.print(table)


def write_out(raw: bytes) -> None:
    """Write all of `raw` to stdout, at once.

    Not through `sys.stdout`: unbuffered (PYTHONUNBUFFERED), it drops what a full pipe did not take, and on a
    pipe that somebody made non-blocking it fails. Raises OSError.
    """
    sys.stdout.flush()
    descriptor = sys.stdout.fileno()
    rest = memoryview(raw)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            select.select([], [descriptor], [])


def reader_has_gone() -> bool:
    """Return whether nobody can read what is written to stdout any more: it is a pipe without a reader."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def print_text(line: str) -> None:
    """Print a line to stdout, at once."""
    write_out(f"{line}\n".encode(errors="backslashreplace"))


def print_json(value: object) -> None:
    """Print one line of JSON to stdout, at once."""
    print_text(json.dumps(value))


def raw_argument(argument: str) -> bytes:
    """Return the bytes that stood on the command line."""
    return os.fsencode(argument)


def megabytes(size_bytes: int) -> str:
    """Return a size for people."""
    return f"{size_bytes / 1e6:,.1f} MB"


def bytes_field(name: str, raw: bytes) -> dict[str, str]:
    """Return bytes as a JSON field: as text under `name` where they are UTF-8, else under `name`_base64."""
    try:
        return {name: raw.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(raw).decode()}


def pair_fields(pair: KeyValue, *, with_value: bool = True) -> dict[str, object]:
    """Return a pair as a JSON object; the lease as text, since not every reader's numbers hold 64 bits."""
    return {
        **bytes_field("key", pair.key),
        **(bytes_field("value", pair.value) if with_value else {}),
        "create_revision": pair.create_revision,
        "mod_revision": pair.mod_revision,
        "version": pair.version,
        "lease": str(pair.lease),
    }


def printable(raw: bytes) -> str:
    """Return bytes as text on one line: what is not printable UTF-8 is escaped as in Python."""
    text = raw.replace(b"\\", b"\\\\").decode("utf-8", errors="backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


@contextmanager
def interrupted_once() -> Iterator[None]:
    """Within, the first SIGINT or SIGTERM raises KeyboardInterrupt; later ones don't disturb the cleaning
    up."""
    asked = False

    def interrupt(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        if not asked:
            asked = True
            raise KeyboardInterrupt

    previous = {each: signal.signal(each, interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
