"""A run without faults: 1,000 operations on three real nodes, each answer compared with a dict's.

`python -m tests.mutants.fault_free [--operations N] [--seed S]`. Exit 0 if every answer was right. A mutant
must pass it: what goes wrong without any fault needs no schedule, and anybody would notice it.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

import raftstate
from raftstate.client import Client, Delete, Get, Put, where
from raftstate.supervisor import LocalCluster

OPERATIONS = 1_000
KEYS = 60
"""Few, so that most operations meet a key that is there."""


class Checked:
    """Operations on a cluster and on a dict, which must agree.

    Args:
        client: of the cluster, which is empty.
        rng: decides what is done, and to which key.
    """

    def __init__(self, client: Client, rng: random.Random) -> None:
        self._client = client
        self._rng = rng
        self._pairs: dict[bytes, bytes] = {}
        self._revision = 1

    def step(self, number: int) -> None:
        """Do one operation, the one of that number, and check its answer."""
        operation = self._rng.choices((self._put, self._get, self._delete, self._txn), (40, 30, 12, 18))[0]
        operation(b"key/%02d" % self._rng.randrange(KEYS), b"value %d" % number)

    def check_all(self, client: Client) -> None:
        """Check that a client, of whichever nodes, reads all pairs as they are to be."""
        found = {pair.key: pair.value for pair in client.range(prefix=b"")}
        assert found == self._pairs, f"the pairs are {found}, not {self._pairs}"

    def _wrote(self, revision: int) -> None:
        self._revision += 1
        assert revision == self._revision, f"the revision is {revision}, not {self._revision}"

    def _put(self, key: bytes, value: bytes) -> None:
        self._wrote(self._client.put(key, value).revision)
        self._pairs[key] = value

    def _get(self, key: bytes, _value: bytes) -> None:
        pair = self._client.get(key)
        found = None if pair is None else pair.value
        assert found == self._pairs.get(key), f"{key!r} is {found!r}, not {self._pairs.get(key)!r}"

    def _delete(self, key: bytes, _value: bytes) -> None:
        answer = self._client.delete(key)
        there = self._pairs.pop(key, None) is not None
        assert answer.deleted == there, f"{answer.deleted} keys deleted at {key!r}, not {there:d}"
        if there:
            self._wrote(answer.revision)

    def _txn(self, key: bytes, value: bytes) -> None:
        # Replaces the key if it holds what it should, or else makes it: both branches come up.
        expected = self._pairs.get(key, b"none")
        other = b"beside/" + key
        txn = self._client.txn().when(where(key).value == expected).then(Put(key, value), Delete(other))
        answer = txn.otherwise(Put(other, value), Get(key)).commit()
        held = key in self._pairs
        assert answer.succeeded == held, f"the compare of {key!r} was {answer.succeeded}, not {held}"
        self._wrote(answer.revision)
        if held:
            self._pairs[key] = value
            self._pairs.pop(other, None)
        else:
            self._pairs[other] = value


def run(operations: int, seed: int) -> None:
    """Start a cluster, do the operations, read everything through each node, and stop it.

    Raises:
        AssertionError: an answer was wrong, or a node ended.
        RaftstateError: an operation failed.
    """
    with tempfile.TemporaryDirectory(prefix="raftstate-fault-free-") as folder:
        cluster = LocalCluster(Path(folder), nodes=3, port=0)
        with cluster:
            cluster.wait_for_leader()
            with raftstate.connect(cluster.url) as client:
                checked = Checked(client, random.Random(seed))
                for number in range(operations):
                    checked.step(number)
            for endpoint in cluster.endpoints:
                with raftstate.connect(endpoint) as client:
                    checked.check_all(client)
            deaths = cluster.deaths()
            assert not deaths, f"nodes ended: {deaths}; {cluster.log_tail(deaths[0].name)}"


def main(arguments: list[str]) -> int:
    """Run as the module's docstring says."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.fault_free", description=__doc__)
    parser.add_argument("--operations", type=int, default=OPERATIONS, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="S")
    chosen = parser.parse_args(arguments)
    run(chosen.operations, chosen.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
