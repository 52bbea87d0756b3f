"""txn, compact, scan: several keys at once, and the past."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Annotated

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
from raftstate.client import Delete, DeleteResult, Get, KeyValue, Put, PutResult, Range, RangeResult, where
from raftstate.client.async_client import TIMEOUT_S_DEFAULT
from raftstate.client.compare import Compare
from raftstate.client.txn import TxnOperation
from raftstate.client.types import Response
from raftstate.errors import InvalidArgumentError

_COMPARE_FORM = "KEY (version|create|mod|lease|value) (=|!=|<|>) OPERAND, or KEY (exists|missing)"
_OPERATION_FORM = (
    "put KEY VALUE [LEASE], get KEY [REVISION], range START END, prefix PREFIX, delete KEY [END], or"
    " delete-prefix PREFIX"
)
_ATTRIBUTES = {
    "version": "version",
    "create": "create_revision",
    "mod": "mod_revision",
    "lease": "lease",
    "value": "value",
}
_LINES_SHOWN = 1_000
"""Pairs that a scan prints at once: fewer writes, and the first ones appear soon."""


def txn(
    when: Annotated[
        list[str] | None, typer.Option(metavar="COMPARE", help=f"A condition: {_COMPARE_FORM}.")
    ] = None,
    then: Annotated[
        list[str] | None,
        typer.Option(metavar="OPERATION", help=f"Done if all conditions hold: {_OPERATION_FORM}."),
    ] = None,
    otherwise: Annotated[
        list[str] | None, typer.Option("--else", metavar="OPERATION", help="Done if one does not hold.")
    ] = None,
    url: UrlOption = None,
    timeout: TimeoutOption = TIMEOUT_S_DEFAULT,
    json: JsonOption = False,
) -> None:
    """Compare, and do one list of operations or the other, in one step. Exit code 1: a compare was false.

    Each option is one argument, split like a shell would split it: raftstate txn --when "jobs/1 value =
    queued" --then "put jobs/1 running" --else "get jobs/1". All three may be given several times.
    """
    if not (then or otherwise):
        raise InvalidArgumentError("give --then or --else: what is to be done", field="then")
    compares = [_compare(each) for each in when or ()]
    success = [_operation(each) for each in then or ()]
    failure = [_operation(each) for each in otherwise or ()]
    with open_client(url, timeout) as client:
        result = client.txn().when(*compares).then(*success).otherwise(*failure).commit()
    if json:
        responses = [_response_fields(each) for each in result.responses]
        fields = {"succeeded": result.succeeded, "revision": result.revision, "responses": responses}
        print_json(fields)
    else:
        print_text(f"{'succeeded' if result.succeeded else 'failed'}, revision {result.revision}")
        for operation, response in zip(
            success if result.succeeded else failure, result.responses, strict=True
        ):
            _print_response(operation, response)
    if not result.succeeded:
        raise typer.Exit(1)


def compact(
    revision: Annotated[int, typer.Argument(help="Reads and watches reach back to here, and no further.")],
    url: UrlOption = None,
    timeout: TimeoutOption = TIMEOUT_S_DEFAULT,
    json: JsonOption = False,
) -> None:
    """Forget the history before REVISION. Its space is used again, bit by bit, on each node."""
    with open_client(url, timeout) as client:
        client.compact(revision)
    if json:
        print_json({"compacted_revision": revision})
    else:
        print_text(f"compacted up to revision {revision}")


def scan(
    start: Annotated[str | None, typer.Argument(help="The first key.", show_default="the very first")] = None,
    end: Annotated[str | None, typer.Argument(help="The first key left out.", show_default="none")] = None,
    prefix: Annotated[
        str | None, typer.Option(help="All keys that begin so, in place of START and END.")
    ] = None,
    revision: RevisionOption = None,
    keys_only: Annotated[bool, typer.Option("--keys-only", help="Leave the values out.")] = False,
    url: UrlOption = None,
    timeout: TimeoutOption = TIMEOUT_S_DEFAULT,
    json: JsonOption = False,
) -> None:
    """Print all pairs of [START, END) as they were at one revision, however many there are.

    A line each, in the order of their keys, key and value separated by a tab; what is not printable is
    escaped as in Python. With --json a line of JSON each.
    """
    if prefix is not None and (start is not None or end is not None):
        raise InvalidArgumentError("give START and END, or --prefix, not both", field="prefix")
    with open_client(url, timeout) as client:
        pairs = client.scan(
            None if start is None else raw_argument(start),
            None if end is None else raw_argument(end),
            prefix=None if prefix is None else raw_argument(prefix),
            revision=revision,
            keys_only=keys_only,
        )
        lines: list[str] = []
        for pair in pairs:
            if json:
                print_json(pair_fields(pair, with_value=not keys_only))
                continue
            lines.append(_line(pair, keys_only=keys_only))
            if len(lines) == _LINES_SHOWN:
                _write(lines)
                lines = []
        _write(lines)


def _line(pair: KeyValue, *, keys_only: bool = False) -> str:
    return printable(pair.key) + ("" if keys_only else "\t" + printable(pair.value))


def _write(lines: Iterable[str]) -> None:
    write_out("".join(f"{line}\n" for line in lines).encode())


# ---- what stands on the command line


def _words(text: str, form: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InvalidArgumentError(f"{text!r}: {error}; the form is {form}") from error


def _compare(text: str) -> Compare:
    match _words(text, _COMPARE_FORM):
        case [key, "exists"]:
            return where(raw_argument(key)).exists()
        case [key, "missing"]:
            return where(raw_argument(key)).missing()
        case [key, attribute, "=" | "==" | "!=" | "<" | ">" as sign, operand] if attribute in _ATTRIBUTES:
            subject = getattr(where(raw_argument(key)), _ATTRIBUTES[attribute])
            value = raw_argument(operand) if attribute == "value" else _number(operand, text)
            compares = {
                "=": subject.__eq__,
                "==": subject.__eq__,
                "!=": subject.__ne__,
                "<": subject.__lt__,
                ">": subject.__gt__,
            }
            compare: Compare = compares[sign](value)
            return compare
    raise InvalidArgumentError(f"{text!r} is no condition; the form is {_COMPARE_FORM}", field="when")


def _operation(text: str) -> TxnOperation:
    match _words(text, _OPERATION_FORM):
        case ["put", key, value]:
            return Put(raw_argument(key), raw_argument(value))
        case ["put", key, value, lease]:
            return Put(raw_argument(key), raw_argument(value), lease=_number(lease, text))
        case ["get", key]:
            return Get(raw_argument(key))
        case ["get", key, revision]:
            return Get(raw_argument(key), revision=_number(revision, text))
        case ["range", start, end]:
            return Range(raw_argument(start), raw_argument(end))
        case ["prefix", prefix]:
            return Range(prefix=raw_argument(prefix))
        case ["delete", key]:
            return Delete(raw_argument(key))
        case ["delete", key, end]:
            return Delete(raw_argument(key), range_end=raw_argument(end))
        case ["delete-prefix", prefix] if prefix:
            return Delete(raw_argument(prefix), prefix=True)
    raise InvalidArgumentError(f"{text!r} is no operation; the form is {_OPERATION_FORM}", field="then")


def _number(word: str, text: str) -> int:
    if word.isascii() and word.isdecimal():
        return int(word)
    raise InvalidArgumentError(f"{text!r}: {word!r} is no whole number")


# ---- what came of it


def _response_fields(response: Response) -> dict[str, object] | None:
    match response:
        case None:
            return None
        case KeyValue():
            return pair_fields(response)
        case PutResult():
            return {"revision": response.revision}
        case DeleteResult():
            return {"deleted": response.deleted}
        case RangeResult():
            kvs = [pair_fields(pair) for pair in response]
            return {"kvs": kvs, "count": response.count, "more": response.more}


def _print_response(operation: TxnOperation, response: Response) -> None:
    match response:
        case KeyValue():
            print_text(_line(response))
        case DeleteResult():
            print_text(f"deleted {response.deleted}")
        case RangeResult():
            _write(_line(pair) for pair in response)
        case None if isinstance(operation, Get):
            print_text("there is no such key")
        case _:
            print_text("done")
