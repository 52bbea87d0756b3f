"""The steps of an install, once the core has asked for one.

    log thread   make the prepared state current, begin the log anew behind it; then the entries behind it
    loop         adopt: readers see the new state, the machine is loaded from it
                 only now whatever waits for these writes: acknowledgements, votes, the core itself

What the log reports meanwhile is kept back, in order: the core takes the report of a later write for one of
all earlier ones, and would believe its log to end before the snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raftstate.core.types import HardState, Message, SnapshotMetadata
from raftstate.errors import InvariantError
from raftstate.node.environment import Applier, LogDisk, PreparedState, SnapshotDisk


class Installs:
    """At most one install under way, and what waits for it.

    Args:
        log_disk: writes the log.
        snapshot_disk: makes a state current.
        applier: goes on with it.
    """

    def __init__(self, log_disk: LogDisk, snapshot_disk: SnapshotDisk, applier: Applier) -> None:
        self._log_disk = log_disk
        self._snapshot_disk = snapshot_disk
        self._applier = applier
        self._waiting: list[Sequence[Message]] | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether one is."""
        return self._waiting is not None

    def begin(
        self,
        prepared: PreparedState,
        hard_state: HardState,
        installed: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """Begin one; `installed` is called when the node has gone on with the state, and must call `end`.

        Raises `InvariantError` while one is under way.
        """
        if self._waiting is not None:
            raise InvariantError("a snapshot is to be installed while another one is")
        self._waiting = []
        metadata: SnapshotMetadata = prepared.metadata

        def written(error: BaseException | None) -> None:
            if error is not None:
                failed(error)
            else:
                self._applier.adopt(prepared, installed)

        # Entries that came with it are written behind it, with the commit index that goes with them.
        at_snapshot = HardState(hard_state.term, hard_state.vote, metadata.index)
        self._log_disk.install(
            lambda: self._snapshot_disk.make_current(prepared),
            at_snapshot,
            metadata.index,
            metadata.term,
            written,
        )

    def keep_back(self, responses: Sequence[Message]) -> bool:
        """Keep back what a log write was waited for with, if an install is under way; return whether."""
        if self._waiting is None:
            return False
        self._waiting.append(responses)
        return True

    def end(self) -> list[Message]:
        """End it, and return what was kept back, in order."""
        waiting, self._waiting = self._waiting or [], None
        return [response for responses in waiting for response in responses]
