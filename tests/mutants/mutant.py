"""What a mutant is: a small defect, put back into the product, that the project's own checks must catch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class DoesNotApply(Exception):  # noqa: N818 - says what happened to the mutant, which counts as survived
    """The text that a mutant replaces is not, or not just once, in its file: the product has moved on."""


@dataclass(frozen=True)
class Edit:
    """One replacement: `old`, which stands exactly once in `file` (relative to the root), by `new`."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """A case's bug, put back.

    `what`: the bug, in one line. `caught_by`: the checks that must fail, pytest node ids or files.
    """

    case: int
    what: str
    edits: tuple[Edit, ...]
    caught_by: tuple[str, ...]


def apply(mutant: Mutant, tree: Path) -> None:
    """Make the mutant's edits in the tree at `tree`.

    Raises:
        DoesNotApply: one of them does not fit; the tree may hold those before it.
    """
    for edit in mutant.edits:
        path = tree / edit.file
        text = path.read_text("utf-8") if path.is_file() else ""
        found = text.count(edit.old)
        if found != 1:
            raise DoesNotApply(
                f"the text to be replaced stands {found} times in {edit.file}, not once; write the mutant of"
                f" case {mutant.case} anew, after the file as it is now: {edit.old.strip().splitlines()[0]!r}"
            )
        path.write_text(text.replace(edit.old, edit.new), "utf-8")
