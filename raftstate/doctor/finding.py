"""What was found."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Verdict(StrEnum):
    """What to think of it."""

    OK = "ok"
    NOTE = "note"
    """Worth knowing."""
    WARNING = "warning"
    """It works, and may not for ever, or not well."""
    FAILED = "failed"
    """A node must not, or can't, run so."""


class Finding(NamedTuple):
    """One thing that was looked at. `advice`: what to do, unless all is well."""

    check: str
    verdict: Verdict
    found: str
    advice: str = ""


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, Verdict.OK, found)


def note(check: str, found: str, advice: str = "") -> Finding:
    """Something worth knowing."""
    return Finding(check, Verdict.NOTE, found, advice)


def warning(check: str, found: str, advice: str) -> Finding:
    """Something that may not go well."""
    return Finding(check, Verdict.WARNING, found, advice)


def failed(check: str, found: str, advice: str) -> Finding:
    """Something that must not be so."""
    return Finding(check, Verdict.FAILED, found, advice)
