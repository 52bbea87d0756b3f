"""Has writes acknowledged, one after the other, and says so after each: for who watches its system calls.

    python -m tests.peers.acknowledging_process pysyncobj|raftstate FOLDER WRITES

pysyncobj: three nodes with journals in the folder, in this process, over connections in memory.
raftstate: one embedded node. The process ends without closing anything, since what is synced then was not
synced before the acknowledgements.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SAID = b"acknowledged\n"


def pysyncobj_writes(folder: Path, writes: int) -> Iterator[None]:
    from tests.peers.pysyncobj_peers import PysyncobjPeers

    with pytest.MonkeyPatch.context() as monkeypatch:
        peers = PysyncobjPeers(monkeypatch, journals=folder)
        leader = peers.elect(1, 2, 3)
        for number in range(writes):
            outcome = peers.put(leader, f"k{number}")
            while not outcome.acknowledged:
                peers.round()
            yield


def raftstate_writes(folder: Path, writes: int) -> Iterator[None]:
    import raftstate

    store = raftstate.connect(f"embedded:{folder}")
    for number in range(writes):
        store.put(f"k{number}", b"v")
        yield


def main(system: str, folder: str, writes: str) -> None:
    systems = {"pysyncobj": pysyncobj_writes, "raftstate": raftstate_writes}
    for _ in systems[system](Path(folder), int(writes)):
        os.write(1, SAID)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
