"""A client never reads older than what it has read or written before, at whichever node (monotonic reads and
read-your-writes: Terry and others, "Session Guarantees for Weakly Consistent Replicated Data", 1994)."""

from __future__ import annotations

from chaos.invariants import Violation


class SessionReads:
    """Remembers the newest revision of each key that each client has seen."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, bytes], int] = {}

    def wrote(self, client: int, key: bytes, revision: int) -> None:
        """A client's write was acknowledged, with its revision."""
        self._seen[client, key] = max(revision, self._seen.get((client, key), 0))

    def floor(self, client: int, key: bytes) -> int:
        """Return the revision that a read which begins now must not lie below."""
        return self._seen.get((client, key), 0)

    def read(self, client: int, key: bytes, floor: int, revision: int) -> None:
        """A read that began at `floor` returned a key as of a revision (0: absent).

        Raises:
            Violation: it is older than what the client had seen when it began.
        """
        if revision < floor:
            raise Violation(
                "session_reads",
                f"client {client} read {key!r} as of revision {revision}; it had seen {floor} before",
            )
        self.wrote(client, key, revision)
