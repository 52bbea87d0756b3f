"""What a node checks between opening its stores and running: that log and state fit together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raftstate.core.errors import Compacted, Damaged, Unavailable
from raftstate.core.storage import Storage
from raftstate.core.types import NONE, ConfState, HardState, Snapshot
from raftstate.errors import DataLossError
from raftstate.logs import get_logger
from raftstate.machine.types import Member
from raftstate.store.log import LogStore

log = get_logger(__name__)


class LogLostError(DataLossError):
    """The log is in no state that can be gone on from. `members`: those of the state beside it, as far as
    that can be read."""

    def __init__(self, message: str, members: Sequence[Member]) -> None:
        super().__init__(message)
        self.members = members


CUT_ENTRIES = 10_000
"""How many entries one transaction of a cut at the start removes: nothing waits for it yet."""


class StartStorage:
    """The log as a starting core sees it: a `core.storage.Storage` over `log`.

    A change of the commit index alone forces no write, so the stored one may lie behind what the state has
    durably applied; applied is committed, so the higher of the two is the commit index.

    Args:
        log: the log.
        conf_state: the configuration as of the applied index, from the state.
        applied_index: of the state.
    """

    def __init__(self, log: Storage, conf_state: ConfState, applied_index: int) -> None:
        self._log = log
        self._conf_state = conf_state
        self._applied_index = applied_index
        self.entries = log.entries
        self.term = log.term
        self.first_index = log.first_index
        self.last_index = log.last_index
        self.source: Callable[[], Snapshot] = log.snapshot
        """Whom the core is answered by when it asks for a snapshot."""

    def snapshot(self) -> Snapshot:
        """See `Storage.snapshot`."""
        return self.source()

    def initial_state(self) -> tuple[HardState, ConfState]:
        """Return the saved hard state, its commit index raised to the applied one, and the configuration."""
        saved, _ = self._log.initial_state()
        return HardState(saved.term, saved.vote, max(saved.commit, self._applied_index)), self._conf_state


def cut_damage(log_store: LogStore, applied_index: int, applied_term: int) -> None:
    """Cut the log behind its damaged records, if the state holds all that they held.

    A start verifies only what comes after; but it reads the record of the last entry applied.

    Args:
        log_store: opened, and not used by anybody yet.
        applied_index: what the state holds durably.
        applied_term: the term of that entry.

    Raises `StorageError` when the disk failed, or more than records is damaged.
    """
    damaged = log_store.damaged
    if not damaged or damaged[-1] > applied_index:
        return
    boundary = min(damaged[-1] + 1, applied_index)
    term = applied_term if boundary == applied_index else None
    while (write := log_store.compact(boundary, CUT_ENTRIES, term)) is not None:
        log_store.publish(write)
    log.warning(
        "damaged log records were applied already; the log was cut", records=len(damaged), boundary=boundary
    )


def reset_to_finish(log: Storage, applied_index: int, applied_term: int) -> HardState | None:
    """Say whether a crash cut an install short between its two halves, the state and the log.

    Args:
        log: the log.
        applied_index, applied_term: the entry that the state applied last.

    Returns:
        None: the log holds that entry, or was cut at it. Else an installed state is ahead of what this log
        knows to be committed: the hard state with which the log is to begin anew behind that entry. Term and
        vote are kept, for they are promises; a term that the log has not heard of yet it has not voted in.

    Raises:
        DataLossError: they don't fit, and no crash explains it.
    """
    saved, _ = log.initial_state()
    try:
        found = f"that index in term {(term := log.term(applied_index))}"
        if term == applied_term:
            return None
    except Damaged as error:
        # That of a later entry says as much: terms never decrease along a log.
        if _next_term(log, applied_index + 1) >= applied_term:
            return None
        found = str(error)
    except (Compacted, Unavailable):
        found = f"the indexes from {log.first_index()} to {log.last_index()}"
    # An install begins with a snapshot ahead of the commit index. What the log knows to be committed it would
    # have been of one mind with.
    if applied_index <= max(saved.commit, log.first_index() - 1):
        raise DataLossError(
            f"the state has applied index {applied_index} in term {applied_term}, the log holds {found} and "
            f"knows {saved.commit} to be committed: they are not of one node, or one of them was replaced; "
            "replace this node"
        )
    if saved.term >= applied_term:
        return HardState(saved.term, saved.vote, applied_index)
    return HardState(applied_term, NONE, applied_index)


def _next_term(log: Storage, index: int) -> int:
    while True:
        try:
            return log.term(index)  # that of the last entry can always be read
        except Damaged:
            index += 1
