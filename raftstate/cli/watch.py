"""watch: changes as they are made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from raftstate.cli.common import (
    JsonOption,
    interrupted_once,
    pair_fields,
    print_json,
    print_text,
    printable,
    raw_argument,
    reader_has_gone,
)
from raftstate.cli.remote import TimeoutOption, UrlOption, open_client
from raftstate.client import Watch, WatchEvent
from raftstate.client.async_client import TIMEOUT_S_DEFAULT
from raftstate.errors import DeadlineError

_LOOK_S = 1.0
"""How often it looks whether somebody still reads what it prints."""


def watch(
    prefix: Annotated[str, typer.Argument(help='Watch all keys that begin so; "" is every key.')],
    exact: Annotated[bool, typer.Option("--exact", help="Watch the one key of that name.")] = False,
    revision: Annotated[
        int | None,
        typer.Option(min=1, help="Begin with the changes of this revision.", show_default="those to come"),
    ] = None,
    prev: Annotated[bool, typer.Option("--prev", help="Also show the value before each change.")] = False,
    count: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many changes.", show_default="never")
    ] = None,
    url: UrlOption = None,
    timeout: TimeoutOption = TIMEOUT_S_DEFAULT,
    json: JsonOption = False,
) -> None:
    """Print each change to the keys that begin with PREFIX, once and in order, until SIGINT or SIGTERM.

    A line each: revision, put or delete, key and value, separated by tabs. It goes on across changes of
    leader and node; --timeout is for its beginning. With --count, exit code 130 says that it was interrupted
    before.
    """
    name = raw_argument(prefix)
    try:
        with interrupted_once(), open_client(url, timeout) as client:
            asked = client.watch(
                name if exact else None,
                prefix=None if exact else name,
                start_revision=revision,
                prev_kv=prev,
            )
            with asked as watching:
                typer.echo("raftstate: watching; interrupt to stop", err=True)
                for number, event in enumerate(_events(watching), 1):
                    if json:
                        print_json(_fields(event))
                    else:
                        print_text(_line(event, prev=prev))
                    if number == count:
                        return
    except KeyboardInterrupt:
        if count is not None:
            raise


def _events(watching: Watch) -> Iterator[WatchEvent]:
    while True:
        try:
            yield watching.next(timeout=_LOOK_S)
        except DeadlineError:
            if reader_has_gone():
                raise BrokenPipeError from None


def _fields(event: WatchEvent) -> dict[str, object]:
    previous = {} if event.prev_kv is None else {"prev_kv": pair_fields(event.prev_kv)}
    pair = pair_fields(event.kv, with_value=event.kind == "put")
    return {"kind": event.kind, "revision": event.revision, **pair, **previous}


def _line(event: WatchEvent, *, prev: bool) -> str:
    parts = [str(event.revision), event.kind, printable(event.key)]
    if event.kind == "put":
        parts.append(printable(event.value))
    if prev:
        parts.append("was " + ("nothing" if event.prev_kv is None else printable(event.prev_kv.value)))
    return "\t".join(parts)
