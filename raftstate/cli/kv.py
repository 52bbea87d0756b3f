"""put, get, delete, range."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

import typer

from raftstate.cli.common import (
    JsonOption,
    pair_fields,
    print_json,
    print_text,
    printable,
    raw_argument,
    write_out,
)
from raftstate.cli.remote import RevisionOption, TimeoutOption, UrlOption, open_client
from raftstate.client import Client, RangeResult, SortBy
from raftstate.client.async_client import MAX_LAG_MS_DEFAULT, TIMEOUT_S_DEFAULT
from raftstate.client.limits import VALUE_BYTES_MAX
from raftstate.errors import InvalidArgumentError

ConsistencyOption = Annotated[
    # "session" is for those who make several calls: here each is a process of its own.
    Literal["linearizable", "bounded", "local"],
    typer.Option(help="How fresh the answer must be; bounded: no older than --max-lag-ms."),
]
LagOption = Annotated[
    int, typer.Option("--max-lag-ms", min=1, help="Milliseconds, for --consistency bounded.")
]


def put(
    key: Annotated[str, typer.Argument(help="1 to 480 bytes.")],
    value: Annotated[str, typer.Argument(help="The value; - reads it from stdin. At most 8 MiB.")],
    lease: Annotated[
        int,
        typer.Option(min=0, help="Id of the lease that KEY is deleted with.", show_default="none"),
    ] = 0,
    url: UrlOption = None,
    timeout: TimeoutOption = TIMEOUT_S_DEFAULT,
    json: JsonOption = False,
) -> None:
    """Store VALUE under KEY. Without --lease, KEY is detached from the lease that it had."""
    raw = _read_value() if value == "-" else raw_argument(value)
    with open_client(url, timeout) as client:
        result = client.put(raw_argument(key), raw, lease=lease)
    if json:
        print_json({"revision": result.revision})
    else:
        print_text(f"revision {result.revision}")


def get(
    key: Annotated[str, typer.Argument(help="1 to 480 bytes.")],
    revision: RevisionOption = None,
    consistency: ConsistencyOption = "linearizable",
    max_lag_ms: LagOption = MAX_LAG_MS_DEFAULT,
    url: UrlOption = None,
    timeout: TimeoutOption = TIMEOUT_S_DEFAULT,
    json: JsonOption = False,
) -> None:
    """Print the value under KEY, byte for byte. Exit code 1 when there is none."""
    with open_client(url, timeout) as client:
        pair = client.get(
            raw_argument(key), revision=revision, consistency=consistency, max_lag_ms=max_lag_ms
        )
    if json:
        print_json(None if pair is None else pair_fields(pair))
    elif pair is not None:
        write_out(pair.value + (b"\n" if sys.stdout.isatty() else b""))
    if pair is None:
        typer.echo(f"raftstate: there is no key {printable(raw_argument(key))}", err=True)
        raise typer.Exit(1)


def delete(
    key: Annotated[str, typer.Argument(help="The key, or the first of a range.")],
    end: Annotated[
        str | None, typer.Argument(help="Delete all keys from KEY up to this one, itself left out.")
    ] = None,
    prefix: Annotated[bool, typer.Option("--prefix", help="Delete all keys that begin with KEY.")] = False,
    every_key: Annotated[
        bool, typer.Option("--all", help='Let --prefix with the KEY "" delete every key there is.')
    ] = False,
    url: UrlOption = None,
    timeout: TimeoutOption = TIMEOUT_S_DEFAULT,
    json: JsonOption = False,
) -> None:
    """Delete KEY, the range [KEY, END), or all keys that begin with KEY; at most 100,000."""
    if prefix and end is not None:
        raise InvalidArgumentError("give END or --prefix, not both", field="end")
    if prefix and not key and not every_key:
        raise InvalidArgumentError(
            "an empty prefix is that of every key; give --all, too, to delete them all", field="key"
        )
    with open_client(url, timeout) as client:
        range_end = None if end is None else raw_argument(end)
        result = client.delete(raw_argument(key), range_end=range_end, prefix=prefix)
    if json:
        print_json({"deleted": result.deleted, "revision": result.revision})
    else:
        print_text(f"deleted {result.deleted}, revision {result.revision}")


def range_(
    start: Annotated[str | None, typer.Argument(help="The first key.", show_default="the very first")] = None,
    end: Annotated[str | None, typer.Argument(help="The first key left out.", show_default="none")] = None,
    prefix: Annotated[
        str | None, typer.Option(help="All keys that begin so, in place of START and END.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Pairs to print, at most.", show_default="all")
    ] = None,
    revision: RevisionOption = None,
    sort: Annotated[
        SortBy | None,
        typer.Option(
            help="create and mod are the revisions of the first and the last put.", show_default="key"
        ),
    ] = None,
    descending: Annotated[bool, typer.Option("--descending", help="The largest first.")] = False,
    keys_only: Annotated[bool, typer.Option("--keys-only", help="Leave the values out.")] = False,
    count_only: Annotated[bool, typer.Option("--count-only", help="Print how many keys there are.")] = False,
    consistency: ConsistencyOption = "linearizable",
    max_lag_ms: LagOption = MAX_LAG_MS_DEFAULT,
    url: UrlOption = None,
    timeout: TimeoutOption = TIMEOUT_S_DEFAULT,
    json: JsonOption = False,
) -> None:
    """Print the pairs of [START, END): a line each, key and value separated by a tab.

    What is not printable is escaped as in Python; --json has the exact bytes. What does not fit one answer
    of the cluster is read page after page: each page is as --consistency says, and writes between two of
    them show in the later one only (scan reads all pages as of one revision). The count and the revision in
    --json are those of the first page. --sort and --descending are for what fits one answer: 10,000 pairs
    or 3 MiB.
    """
    if prefix is not None and (start is not None or end is not None):
        raise InvalidArgumentError("give START and END, or --prefix, not both", field="prefix")

    def read(client: Client, first: bytes | None, wanted: int | None) -> RangeResult:
        return client.range(
            first,
            None if end is None else raw_argument(end),
            prefix=None if prefix is None else raw_argument(prefix),
            limit=wanted,
            revision=revision,
            sort=sort,
            descending=descending,
            keys_only=keys_only,
            count_only=count_only,
            consistency=consistency,
            max_lag_ms=max_lag_ms,
        )

    with open_client(url, timeout) as client:
        pages = _pages(read, client, None if start is None else raw_argument(start), limit)
        if json:
            _print_range_json(list(pages), keys_only=keys_only)
        else:
            _print_range(pages, keys_only=keys_only, count_only=count_only)


def _pages(
    read: Callable[[Client, bytes | None, int | None], RangeResult],
    client: Client,
    first: bytes | None,
    limit: int | None,
) -> Iterator[RangeResult]:
    """Yield one answer after the other until the range ends or `limit` pairs were read.

    Raises `InvalidArgumentError` for a sorted range that does not fit one answer.
    """
    left = limit
    while True:
        page = read(client, first, left)
        left = None if left is None else left - len(page)
        is_last = left == 0 or not page.more or not page.kvs
        if not is_last and not page.by_key:
            raise InvalidArgumentError(
                f"--sort and --descending are for what fits one answer; {len(page)} of {page.count} pairs do."
                " Give a --limit of no more, or sort what `raftstate scan` prints",
                field="sort",
            )
        yield page
        if is_last:
            return
        first = page.next_start


def _print_range_json(pages: list[RangeResult], *, keys_only: bool) -> None:
    pairs = [pair_fields(pair, with_value=not keys_only) for page in pages for pair in page]
    print_json({"kvs": pairs, "count": pages[0].count, "more": pages[-1].more, "revision": pages[0].revision})


def _print_range(pages: Iterator[RangeResult], *, keys_only: bool, count_only: bool) -> None:
    shown = 0
    left_out = 0
    for page in pages:
        if count_only:
            print_text(str(page.count))
            return
        lines = [printable(pair.key) + ("" if keys_only else "\t" + printable(pair.value)) for pair in page]
        write_out("".join(f"{line}\n" for line in lines).encode())
        shown += len(page)
        left_out = page.count - len(page)
    if left_out:
        typer.echo(f"raftstate: {shown} of {shown + left_out} keys; --limit left the others out", err=True)


def _read_value() -> bytes:
    """Return what stdin holds, at most one byte more than a value may have: enough to be refused."""
    if sys.stdin is None:
        raise InvalidArgumentError("the value - is read from stdin, and stdin is closed", field="value")
    raw = sys.stdin.buffer.read(VALUE_BYTES_MAX + 1)
    if len(raw) > VALUE_BYTES_MAX:
        raise InvalidArgumentError(
            f"stdin holds more than {VALUE_BYTES_MAX} bytes, the most that a value may have;"
            " split it over several keys",
            field="value",
        )
    return raw
