"""Everything of a state checked: each row, and that the rows belong together."""

from __future__ import annotations

from collections.abc import Callable

from raftstate.errors import DataLossError
from raftstate.machine.digest import recount
from raftstate.machine.layout import Meta, read_meta, read_sums
from raftstate.machine.tables import ReadTables


def check_state(tables: ReadTables, pause: Callable[[], None] = lambda: None) -> Meta:
    """Check a whole state. May take seconds: for a thread that nobody waits for.

    Args:
        tables: one read transaction.
        pause: called after each millisecond or two of work, so that other threads get the interpreter. May
            raise to give up.

    Returns:
        The machine's own record, as the rows bear it out.

    Raises:
        DataLossError: a row is damaged, missing, or contradicts another; the message names it.
    """
    meta = read_meta(tables)
    if recount(tables) != read_sums(tables):
        raise DataLossError("the bucket sums do not match")
    pause()
    return meta
