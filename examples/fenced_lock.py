"""A lock whose holder may be gone without knowing it, and a token that keeps such a holder from doing harm.

    python examples/fenced_lock.py [URL]

A process can stop for longer than its lease (a full disk, a laptop's lid, a long collection) and wake up
believing that it still holds the lock. The fencing token grows from holder to holder: whatever is protected
remembers the highest one that it has seen, and refuses a lower one. In the store itself, `lock.held()` does
the same.
"""

from __future__ import annotations

import sys
import tempfile

import raftstate
from raftstate import Put


class Printer:
    """Something outside of the store, which takes jobs from one holder at a time."""

    def __init__(self) -> None:
        self.highest_token = 0

    def print(self, token: int, text: str) -> bool:
        """Print, unless a later holder has been here."""
        if token < self.highest_token:
            return False
        self.highest_token = token
        print(f"printed: {text}")
        return True


def main(url: str) -> None:
    printer = Printer()
    with raftstate.connect(url) as store:
        with store.lock("printer", ttl=5) as first:
            printer.print(first.token, "page of the first holder")
            stale_token = first.token
            stale = first.held()

        with store.lock("printer", ttl=5) as second:
            assert second.token > stale_token
            printer.print(second.token, "page of the second holder")

            # The first holder wakes up, and goes on where it was stopped.
            if not printer.print(stale_token, "late page of the first holder"):
                print("the printer refused the stale token")
            late = store.txn().when(stale).then(Put("printer/last", b"first")).commit()
            print("a stale holder's transaction was done:", late.succeeded)
            good = store.txn().when(second.held()).then(Put("printer/last", b"second")).commit()
            print("the holder's transaction was done:", good.succeeded)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(f"embedded:{folder}/state")
