"""A process for the tests to kill: writes a log without end, and says on stdout what is durable.

    python -m tests.store.log_writing_process DIRECTORY SEED

Prints `first last term` for each write that was reported done. What it writes depends on what the log holds
and on the seed: appends of one to twenty entries of up to 20,000 bytes, truncations of what is not
committed, hard states, compactions. Each payload tells its index and term, so that a reader can check what
it finds.
"""

from __future__ import annotations

import queue
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from raftstate.core.types import Entry, HardState
from raftstate.store.log import LogStore
from raftstate.store.log_writer import LogWriter


def payload(index: int, term: int) -> bytes:
    """What the entry of this index and term holds."""
    return b"%d/%d " % (index, term) * (index * term * 7919 % 2000)


def main() -> None:
    path, rng = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
    log = LogStore.open(path, map_bytes=1 << 30)
    posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    writer = LogWriter(log, posted.put, clock_ns=time.monotonic_ns)
    term = log.last_hard_state.term + 1
    next_index, commit = log.last_index() + 1, log.last_hard_state.commit
    waiting = 0

    def reporter(first: int, last: int, of_term: int) -> Callable[[BaseException | None], None]:
        def done(error: BaseException | None) -> None:
            nonlocal waiting, commit
            if error is not None:
                raise error
            waiting -= 1
            print(first, last, of_term, flush=True)

        return done

    while True:
        while waiting < 4:
            first = next_index
            if rng.random() < 0.1 and first > commit + 2:
                first, term = rng.randrange(commit + 1, first), term + 1
            last = first + rng.randrange(20)
            commit = max(commit, min(first - 1, log.last_index()) - 30)
            entries = [Entry(index=i, term=term, data=payload(i, term)) for i in range(first, last + 1)]
            waiting += 1
            writer.append(HardState(term, 1, commit), entries, reporter(first, last, term))
            next_index = last + 1
            if rng.random() < 0.05:
                writer.compact(max(0, commit - 50), lambda error: None)
        posted.get()()


if __name__ == "__main__":
    main()
