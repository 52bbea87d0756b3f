"""Follow all changes to a prefix, each exactly once, across restarts of the follower.

    python examples/resumable_watch.py [URL]

What was seen last is kept in the store itself, in one transaction with what was made of it: here, a count of
jobs by state. A follower that is killed at any moment goes on without a gap and counts nothing twice. (A
change of node or of leader needs no care at all: the watch goes on by itself.)
"""

from __future__ import annotations

import json
import sys
import tempfile

import raftstate
from raftstate import Put, where

CURSOR = "counter/cursor"


def follow(store: raftstate.Client, events_at_most: int) -> int:
    """Count changes from where the last follower stopped; return how many were seen."""
    cursor = store.get(CURSOR)
    state = {"revision": 0, "counts": {}} if cursor is None else json.loads(cursor.value)
    version = 0 if cursor is None else cursor.version
    seen = 0
    with store.watch(prefix="jobs/", start_revision=state["revision"] + 1) as events:
        while seen < events_at_most:
            event = events.next(timeout=5)
            if event.kind == "put":
                word = event.value.decode()
                state["counts"][word] = state["counts"].get(word, 0) + 1
            # Every job here is changed by a write of its own, so that a revision is one event.
            state["revision"] = event.revision
            done = (
                store.txn()
                .when(where(CURSOR).version == version)
                .then(Put(CURSOR, json.dumps(state).encode()))
                .commit()
            )
            if not done.succeeded:
                raise RuntimeError("another follower is at work")
            version += 1
            seen += 1
    return seen


def main(url: str) -> None:
    with raftstate.connect(url) as store:
        for number in range(3):
            store.put(f"jobs/{number}", b"queued")
        print("a first follower saw", follow(store, events_at_most=2), "changes, and was stopped")
        store.put("jobs/0", b"done")
        store.delete("jobs/1")
        print("the next one saw", follow(store, events_at_most=3), "more")
        state = json.loads(store.get(CURSOR).value)
        print("counts:", state["counts"])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(f"embedded:{folder}/state")
