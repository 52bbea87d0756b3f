"""What a part of a node may want to hear of its driver, beside the bodies that it takes (`Driver.on`)."""

from __future__ import annotations

from raftstate.core.types import ConfChange, ConfChangeV2


class DriverPart:
    """A part that stands beside the driver and is told what happens. By itself it does nothing about it.

    Called on the driver's thread. What one raises halts the node.
    """

    def ticked(self) -> None:
        """A tick has passed, for the core too."""

    def went_over(self, change: ConfChange | ConfChangeV2) -> None:
        """The core has gone over to the configuration that a committed change leads to. The entry that holds
        it is not applied yet: `membership_watchers` hear of that."""

    def link_lost(self, peer: int) -> None:
        """A connection to or from a peer was closed or reset."""

    def stopped(self, reason: str) -> None:
        """The node takes no more part: whoever waits for something must be told so. `reason`: for people."""
