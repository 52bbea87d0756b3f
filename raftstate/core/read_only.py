"""Read-index requests that wait until the leader knows that it still leads (Raft thesis, 6.4).

May live here: the queue, and the counting of answers. Requests are numbered in order of arrival. A
heartbeat carries the number of the newest request it can vouch for; a peer that answers it confirms that
request and all before it, whatever context their clients chose. When a quorum has answered, the requests
are done. Numbers are never used twice in a node's life, so that a late answer to an earlier round, or to a
request that was dropped, confirms nothing.
"""

from __future__ import annotations

from raftstate.core.config import ReadOnlyOption
from raftstate.core.quorum import JointConfig
from raftstate.core.types import Message


class ReadOnlyQueue:
    """The read-index requests of a leader that are not confirmed yet."""

    __slots__ = ("_acks", "_done", "_waiting", "option")

    def __init__(self, option: ReadOnlyOption) -> None:
        self.option = option
        self._acks: dict[int, int] = {}
        """For each node, the highest number that it confirmed."""
        self._waiting: list[tuple[Message, int]] = []
        """Requests and the commit index at which each arrived; the first has the number `_done + 1`."""
        self._done = 0

    def add(self, commit: int, request: Message) -> None:
        """Queue `request`, which arrived when `commit` was the leader's commit index."""
        self._waiting.append((request, commit))

    def context(self) -> bytes:
        """What a heartbeat has to carry to confirm all that wait; empty if nothing waits."""
        return (self._done + len(self._waiting)).to_bytes(8, "little") if self._waiting else b""

    def acknowledge(self, node_id: int, context: bytes) -> None:
        """Note that `node_id` answered a heartbeat which carried `context`; an empty one confirms nothing."""
        self._acks[node_id] = max(self._acks.get(node_id, 0), int.from_bytes(context, "little"))

    def take_confirmed(self, voters: JointConfig) -> list[tuple[Message, int]]:
        """Remove and return the requests that a quorum of `voters` has confirmed, each with its index."""
        confirmed = min(voters.committed_index(self._acks), self._done + len(self._waiting))
        if confirmed <= self._done:
            return []
        count = confirmed - self._done
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        self._done = confirmed
        return taken

    def drop(self) -> None:
        """Forget all requests and answers, as the role or the set of voters is another one now."""
        self._done += len(self._waiting)
        self._waiting = []
        self._acks = {}
