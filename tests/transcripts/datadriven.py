"""The datadriven file format: commands with arguments, each with the output that it is expected to give.

    # a comment
    command argument key=value key=(value,value) \\
        a directive line may go on
    input lines, if the command takes any
    ----
    expected output, up to a blank line

An expected output that holds blank lines stands between two pairs of `----` lines. The format is that of the
Go package cockroachdb/datadriven; `subtest NAME` and `subtest end` only group directives there, and are
passed over here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

SEPARATOR = "----"

_LOGGER_LINE = re.compile(r"\s*(DEBUG|INFO|WARN|ERROR)\b")


class FormatError(Exception):
    """A file that is not in the datadriven format; says the line."""


@dataclass(frozen=True)
class Argument:
    """`key`, `key=value` or `key=(value,value)`; `values` is empty for the first of these."""

    key: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Directive:
    """One command of a file. `line` counts from 1; each line of `expected` ends in a newline.

    `answer` is where the expected output stands, with its doubled separators if it has some: the positions
    of its lines, which count from 0.
    """

    line: int
    command: str
    arguments: tuple[Argument, ...] = ()
    input: str = ""
    expected: str = ""
    answer: range = field(default=range(0), compare=False)

    def values(self, key: str) -> tuple[str, ...] | None:
        """Return the values of the first argument with that key, or None if there is none."""
        return next((argument.values for argument in self.arguments if argument.key == key), None)


def parse(text: str) -> list[Directive]:
    """Return a file's directives in order.

    Raises:
        FormatError: an argument list can't be read, or a directive has no `----` line.
    """
    return list(_Reader(text).directives())


def parse_arguments(text: str) -> tuple[Argument, ...]:
    """Parse what follows a command. Parentheses may be nested; a comma within an inner pair separates
    nothing.

    Raises:
        ValueError: a key is empty, or a parenthesis is not closed.
    """
    arguments = []
    rest = text.strip()
    while rest:
        key_match = re.match(r"[^ =]+", rest)
        if key_match is None:
            raise ValueError(f"expected an argument's name, got {rest!r}")
        key, rest = key_match[0], rest[key_match.end() :]
        if rest.startswith("=("):
            values, rest = _parenthesized(rest[2:])
        elif rest.startswith("="):
            value, _, rest = rest[1:].partition(" ")
            values = (value,)
        else:
            values = ()
        arguments.append(Argument(key, values))
        rest = rest.lstrip()
    return tuple(arguments)


def _parenthesized(text: str) -> tuple[tuple[str, ...], str]:
    """Return the values up to the parenthesis that closes the one before `text`, and what follows it."""
    values = []
    depth = start = 0
    for position, character in enumerate(text):
        if depth == 0 and character in ",)":
            values.append(text[start:position].strip())
            start = position + 1
            if character == ")":
                return tuple(values), text[start:]
        elif character in "()":
            depth += 1 if character == "(" else -1
    raise ValueError(f"a parenthesis is not closed in ({text}")


def comparable(output: str) -> str:
    """Return an output without what is not judged: logger lines and the newline at the end.

    An environment that logs nothing prints `ok` where another one printed log lines only; so that is what
    these become.
    """
    lines = output.removesuffix("\n").split("\n")
    kept = [line for line in lines if not _LOGGER_LINE.match(line)]
    return "\n".join(kept) if kept else "ok"


def with_outputs(text: str, outputs: Sequence[tuple[Directive, str]]) -> str:
    """Return the file `text` with other expected outputs; what is no output stays as it is.

    Args:
        text: as it was parsed.
        outputs: each directive of `text`, in order, and the output that it shall have.
    """
    lines = _lines(text)
    parts: list[str] = []
    begin = 0
    for directive, output in outputs:
        parts += lines[begin : directive.answer.start]
        parts += _answer(output)
        begin = directive.answer.stop
    return "\n".join(parts + lines[begin:]) + "\n"


def _lines(text: str) -> list[str]:
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def _answer(output: str) -> list[str]:
    lines = output.removesuffix("\n").split("\n")
    if all(line.strip() for line in lines) and lines[0] != SEPARATOR:
        return lines
    # The first of the two that open it is the one before every output.
    return [SEPARATOR, *lines, SEPARATOR, SEPARATOR]


class _Reader:
    def __init__(self, text: str) -> None:
        self._lines = _lines(text)
        self._position = 0

    def directives(self) -> Iterator[Directive]:
        while (line := self._next()) is not None:
            start = self._position
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            while line.endswith("\\") and (continuation := self._next()) is not None:
                line = line.removesuffix("\\") + " " + continuation.strip()
            command, _, rest = line.partition(" ")
            if command == "subtest":
                continue
            try:
                arguments = parse_arguments(rest)
            except ValueError as error:
                raise FormatError(f"line {start}: {error}") from error
            given = self._input(start)
            begin = self._position
            expected, end = self._expected()
            yield Directive(start, command, arguments, given, expected, range(begin, end))

    def _next(self) -> str | None:
        if self._position == len(self._lines):
            return None
        self._position += 1
        return self._lines[self._position - 1]

    def _input(self, start: int) -> str:
        lines = []
        while (line := self._next()) != SEPARATOR:
            if line is None:
                raise FormatError(
                    f"line {start}: the directive has no {SEPARATOR} line before the end of the file"
                )
            lines.append(line)
        return "\n".join(lines).strip()

    def _expected(self) -> tuple[str, int]:
        """Return the expected output, and the position behind its last line."""
        lines: list[str] = []
        begin = self._position
        line = self._next()
        if line != SEPARATOR:
            while line is not None and line.strip():
                lines.append(line)
                line = self._next()
            return "".join(f"{line}\n" for line in lines), begin + len(lines)
        start = self._position
        while (line := self._next()) is not None:
            if (
                line == SEPARATOR
                and self._position < len(self._lines)
                and self._lines[self._position] == SEPARATOR
            ):
                self._position += 1
                return "".join(f"{line}\n" for line in lines), self._position
            lines.append(line)
        raise FormatError(f"line {start}: the doubled {SEPARATOR} is not closed by another one")
