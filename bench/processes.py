"""What other processes cost: memory and processor time of a process, by its id. Linux only."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def anonymous_bytes(pid: int) -> int:
    """Return what a process holds in memory of its own: mapped files, such as the node's state, not counted.

    Raises `ProcessLookupError` when there is none of this id.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        raise ProcessLookupError(f"there is no process {pid}") from None
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {pid} has ended")


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used, in seconds, the kernel's for it included.

    Raises `ProcessLookupError` when there is none of this id.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        raise ProcessLookupError(f"there is no process {pid}") from None
    # The name, in parentheses, may hold anything; the fields are counted from behind it.
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
