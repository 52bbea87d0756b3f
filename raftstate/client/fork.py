"""What a forked child inherits and must not use: its parent's sessions, serials, sockets and threads.

A child that went on with them would send serials that the parent sends too, and the server would answer one's
write with the other's.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class _Forgets(Protocol):
    def _forget_parent(self) -> None:
        """Called in a forked child before anything else runs there: begin anew."""


_living: weakref.WeakSet[_Forgets] = weakref.WeakSet()

inherited: list[object] = []
"""What a child keeps and never touches: to close the parent's channels here would shut the sockets that both
hold.
"""


def begin_anew_in_child(owner: _Forgets) -> None:
    """Have `owner._forget_parent()` called in every process that is forked from now on, for as long as
    `owner` lives.
    """
    _living.add(owner)


def _in_child() -> None:
    for owner in list(_living):
        owner._forget_parent()


os.register_at_fork(after_in_child=_in_child)
