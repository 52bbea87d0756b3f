"""What a forked child inherits and must not use: its parent's sessions, serials, threads and sockets.

A child that went on with the serials would have its writes answered with its parent's. And a child that went
on with gRPC would break the parent too: they share the descriptors by which gRPC wakes its pollers, and the
threads that serve them exist in the parent only. So a client that has not been used yet begins anew in a
child, and one whose process had opened a channel refuses there.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

from raftstate.errors import FailedPreconditionError

# gRPC's own fork handlers restart its threads in the child, and half of the children die of it (SIGSEGV,
# grpcio 1.85) without having made a call. Read by gRPC when it is imported; who has set it, or imported gRPC
# earlier, has chosen.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# And it tells the terminal of each node that stops in good order.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


class _Forgets(Protocol):
    def _forget_parent(self) -> None:
        """Called in a forked child before anything else runs there: begin anew."""


class _Process:
    """What is known of this process.

    `has_channels`: it opened a gRPC channel; `inherited`: its parent had.
    """

    def __init__(self) -> None:
        self.has_channels = False
        self.inherited = False


_process = _Process()
_living: weakref.WeakSet[_Forgets] = weakref.WeakSet()

kept: list[object] = []
"""What a child keeps and never touches: closing the parent's channels would shut sockets both hold."""


def begin_anew_in_child(owner: _Forgets) -> None:
    """Have `owner._forget_parent()` called in each process forked from now on, as long as `owner` lives."""
    _living.add(owner)


def about_to_open_channel() -> None:
    """Note that this process uses gRPC. Raises `FailedPreconditionError` in the child of one that did."""
    if _process.inherited:
        raise FailedPreconditionError(
            f"process {os.getpid()} was forked from one that had used a raftstate client; gRPC can't be"
            " used on both sides of a fork; nothing was sent. Fork before the first call, or start processes"
            " by multiprocessing's method spawn or forkserver"
        )
    _process.has_channels = True


def _in_child() -> None:
    _process.inherited = _process.has_channels
    for owner in list(_living):
        owner._forget_parent()


os.register_at_fork(after_in_child=_in_child)
