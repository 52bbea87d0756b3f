"""put, get, delete, range."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from raftstate.cli.common import (
    JsonOption,
    TimeoutOption,
    UrlOption,
    open_client,
    pair_fields,
    print_json,
    printable,
    raw_argument,
)
from raftstate.client import Consistency
from raftstate.client.async_client import MAX_LAG_MS_DEFAULT, TIMEOUT_S_DEFAULT

ConsistencyOption = Annotated[
    Consistency, typer.Option(help="How fresh the answer must be; bounded: no older than --max-lag-ms.")
]
LagOption = Annotated[
    int, typer.Option("--max-lag-ms", min=1, help="Milliseconds, for --consistency bounded.")
]


def put(
    key: Annotated[str, typer.Argument(help="1 to 480 bytes.")],
    value: Annotated[str, typer.Argument(help="The value; - reads it from stdin. At most 8 MiB.")],
    url: UrlOption = None,
    timeout: TimeoutOption = TIMEOUT_S_DEFAULT,
    json: JsonOption = False,
) -> None:
    """Store VALUE under KEY."""
    raw = sys.stdin.buffer.read() if value == "-" else raw_argument(value)
    with open_client(url, timeout) as client:
        result = client.put(raw_argument(key), raw)
    if json:
        print_json({"revision": result.revision})
    else:
        typer.echo(f"revision {result.revision}")


def get(
    key: Annotated[str, typer.Argument(help="1 to 480 bytes.")],
    consistency: ConsistencyOption = "linearizable",
    max_lag_ms: LagOption = MAX_LAG_MS_DEFAULT,
    url: UrlOption = None,
    timeout: TimeoutOption = TIMEOUT_S_DEFAULT,
    json: JsonOption = False,
) -> None:
    """Print the value under KEY, byte for byte. Exit code 1 when there is none."""
    with open_client(url, timeout) as client:
        pair = client.get(raw_argument(key), consistency=consistency, max_lag_ms=max_lag_ms)
    if json:
        print_json(None if pair is None else pair_fields(pair))
    elif pair is not None:
        sys.stdout.buffer.write(pair.value + (b"\n" if sys.stdout.isatty() else b""))
        sys.stdout.flush()
    if pair is None:
        typer.echo(f"raftstate: there is no key {printable(raw_argument(key))}", err=True)
        raise typer.Exit(1)


def delete(
    key: Annotated[str, typer.Argument(help="The key, or the first of a range.")],
    end: Annotated[
        str | None, typer.Argument(help="Delete all keys from KEY up to this one, itself left out.")
    ] = None,
    prefix: Annotated[bool, typer.Option("--prefix", help="Delete all keys that begin with KEY.")] = False,
    url: UrlOption = None,
    timeout: TimeoutOption = TIMEOUT_S_DEFAULT,
    json: JsonOption = False,
) -> None:
    """Delete KEY, the range [KEY, END), or all keys that begin with KEY; at most 100,000."""
    with open_client(url, timeout) as client:
        range_end = None if end is None else raw_argument(end)
        result = client.delete(raw_argument(key), range_end=range_end, prefix=prefix)
    if json:
        print_json({"deleted": result.deleted, "revision": result.revision})
    else:
        typer.echo(f"deleted {result.deleted}, revision {result.revision}")


def range_(
    start: Annotated[str | None, typer.Argument(help="The first key.", show_default="the very first")] = None,
    end: Annotated[str | None, typer.Argument(help="The first key left out.", show_default="none")] = None,
    prefix: Annotated[
        str | None, typer.Option(help="All keys that begin so, in place of START and END.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Pairs to return, at most.")] = None,
    keys_only: Annotated[bool, typer.Option("--keys-only", help="Leave the values out.")] = False,
    count_only: Annotated[bool, typer.Option("--count-only", help="Print how many keys there are.")] = False,
    consistency: ConsistencyOption = "linearizable",
    max_lag_ms: LagOption = MAX_LAG_MS_DEFAULT,
    url: UrlOption = None,
    timeout: TimeoutOption = TIMEOUT_S_DEFAULT,
    json: JsonOption = False,
) -> None:
    """Print the pairs of [START, END) in the order of their keys: a line each, key and value separated by a
    tab.

    What is not printable is escaped as in Python; --json has the exact bytes.
    """
    with open_client(url, timeout) as client:
        found = client.range(
            None if start is None else raw_argument(start),
            None if end is None else raw_argument(end),
            prefix=None if prefix is None else raw_argument(prefix),
            limit=limit,
            keys_only=keys_only,
            count_only=count_only,
            consistency=consistency,
            max_lag_ms=max_lag_ms,
        )
    if json:
        pairs = [pair_fields(pair, with_value=not keys_only) for pair in found.kvs]
        print_json({"kvs": pairs, "count": found.count, "more": found.more, "revision": found.revision})
        return
    if count_only:
        typer.echo(found.count)
        return
    for pair in found.kvs:
        typer.echo(printable(pair.key) + ("" if keys_only else "\t" + printable(pair.value)))
    if found.more:
        typer.echo(
            f"raftstate: {len(found.kvs)} of {found.count} keys; the next begins after the last", err=True
        )
