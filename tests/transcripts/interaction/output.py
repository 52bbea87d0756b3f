"""The output of one command: indented where nodes act in turn, silent at log level NONE."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

LOG_LEVELS = ("DEBUG", "INFO", "WARN", "ERROR", "FATAL", "NONE")


class CommandError(Exception):
    """What a command prints when it can't be carried out, in etcd's words."""


class Output:
    """Text that a command prints. The core logs nothing, so that of the log levels only NONE, which silences
    the commands too, makes a difference."""

    def __init__(self) -> None:
        self.level = "DEBUG"
        self._parts: list[str] = []

    @property
    def quiet(self) -> bool:
        return self.level == "NONE"

    def write(self, text: str) -> None:
        if not self.quiet:
            self._parts.append(text)

    def take(self) -> str:
        """Return all that was written since the last call."""
        text, self._parts = "".join(self._parts), []
        return text

    @contextmanager
    def indented(self) -> Iterator[None]:
        """Indent by two spaces what is written meanwhile."""
        outer, self._parts = self._parts, []
        try:
            yield
        finally:
            text = self.take()
            self._parts = outer
            self._parts.extend(f"  {line}\n" for line in text.removesuffix("\n").split("\n") if text)
