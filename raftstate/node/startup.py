"""What a node checks between opening its stores and running: that log and state fit together."""

from __future__ import annotations

from collections.abc import Sequence

from raftstate.core.errors import Compacted, Damaged, Unavailable
from raftstate.core.storage import Storage
from raftstate.core.types import ConfState, HardState
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
        self.snapshot = log.snapshot

    def initial_state(self) -> tuple[HardState, ConfState]:
        """Return the saved hard state, its commit index raised to the applied one, and the configuration."""
        saved, _ = self._log.initial_state()
        return HardState(saved.term, saved.vote, max(saved.commit, self._applied_index)), self._conf_state


def check_state_fits_log(storage: Storage, applied_index: int, applied_term: int) -> None:
    """Raise `DataLossError` unless the log holds, or was cut at, the entry that the state applied last; that
    of a damaged record can't be compared."""
    try:
        term = storage.term(applied_index)
    except Damaged:
        return
    except (Compacted, Unavailable) as error:
        raise DataLossError(
            f"the state has applied index {applied_index}, the log reaches from {storage.first_index()} "
            f"to {storage.last_index()}: they are not of one node, or one of them was replaced; replace this "
            "node"
        ) from error
    if term != applied_term:
        raise DataLossError(
            f"the state has applied index {applied_index} in term {applied_term}, the log holds that index "
            f"in term {term}: they are not of one node; replace this node"
        )


def cut_damage(log_store: LogStore, applied_index: int, applied_term: int) -> None:
    """Cut the log behind its damaged records, if the state holds all that they held.

    Args:
        log_store: opened, and not used by anybody yet.
        applied_index: what the state holds durably.
        applied_term: the term of that entry.

    Raises `StorageError` when the disk failed.
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
