"""A pipe that tells a child process that its parent is gone, however that died.

The parent holds the writing end and never writes; the child waits for the end of the file. Unlike a signal
on the parent's death (prctl on Linux) this works on every Unix, and can't be missed between fork and the
first instruction.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import TracebackType
from typing import Self

GRACE_S = 5.0
"""How long a child has for a clean stop before it exits regardless."""


class Lifeline:
    """The parent's end. Children inherit `child_fd` (subprocess: `pass_fds`) and call `watch` with its
    number."""

    def __init__(self) -> None:
        # Neither end is inheritable by itself: a child that held the writing end would keep its siblings
        # alive.
        self.child_fd, self._parent_fd = os.pipe()
        self._open = True

    def close(self) -> None:
        """Let go: every child that watches is told to stop."""
        if self._open:
            self._open = False
            os.close(self._parent_fd)
            os.close(self.child_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def watch(fd: int, *, grace_s: float = GRACE_S) -> None:
    """From now on, stop this process when the parent behind `fd` is gone.

    It gets a SIGTERM, as if somebody had asked it to stop, and is ended after `grace_s` seconds if it is
    still there.

    Args:
        fd: the reading end, as inherited.
        grace_s: seconds between the two.

    Raises:
        OSError: `fd` is not an open file descriptor.
    """
    os.fstat(fd)
    # A child's children must not hold it: they would hide that this process is gone from nobody, but leak.
    os.set_inheritable(fd, False)
    threading.Thread(target=_wait_for_end, args=(fd, grace_s), name="lifeline", daemon=True).start()


def _wait_for_end(fd: int, grace_s: float) -> None:
    while os.read(fd, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_s)
    os._exit(1)
