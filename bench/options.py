"""Numbers on the command line, for argparse's `type`: what has no meaning is a usage error."""

from __future__ import annotations

from argparse import ArgumentTypeError


def positive_int(text: str) -> int:
    """Return a whole number from 1 up."""
    return _at_least(1, text)


def count(text: str) -> int:
    """Return a whole number from 0 up."""
    return _at_least(0, text)


def positive(text: str) -> float:
    """Return a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ArgumentTypeError(f"got {text!r}; it must be a number above 0")
    return number


def _at_least(least: int, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise ArgumentTypeError(f"got {text!r}; it must be a whole number from {least} up")
    return number
