"""Move money between two accounts: read, decide, and write only if nothing has changed meanwhile.

    python examples/transactions.py [URL]

Without a URL (raftstate://host:port,... or embedded:DIR) it runs on an embedded store in a temporary folder.
"""

from __future__ import annotations

import sys
import tempfile
import threading

import raftstate
from raftstate import Get, Put, where


def transfer(store: raftstate.Client, source: str, target: str, amount: int) -> bool:
    """Move an amount; return False, with nothing done, where the source does not hold so much."""
    while True:
        # Both balances as of one revision.
        balances = store.txn().then(Get(source), Get(target)).commit()
        held, other = balances
        if int(held.value) < amount:
            return False
        done = (
            store.txn()
            .when(
                where(source).mod_revision == held.mod_revision,
                where(target).mod_revision == other.mod_revision,
            )
            .then(
                Put(source, str(int(held.value) - amount).encode()),
                Put(target, str(int(other.value) + amount).encode()),
            )
            .commit()
        )
        if done.succeeded:
            return True
        # Somebody else was faster: read again.


def main(url: str) -> None:
    with raftstate.connect(url) as store:
        store.put("accounts/ann", b"100")
        store.put("accounts/bob", b"100")

        def busy(source: str, target: str) -> None:
            for _ in range(20):
                transfer(store, source, target, 5)

        threads = [
            threading.Thread(target=busy, args=("accounts/ann", "accounts/bob")),
            threading.Thread(target=busy, args=("accounts/bob", "accounts/ann")),
            threading.Thread(target=busy, args=("accounts/ann", "accounts/bob")),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        balances = {pair.key.decode(): int(pair.value) for pair in store.range(prefix="accounts/")}
        print(balances)
        print("total", sum(balances.values()))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(f"embedded:{folder}/state")
