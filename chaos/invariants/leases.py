"""No lease ends before its holder's last acknowledged renewal is older than the time to live: measured from
when the renewal was sent, by a clock that may differ from the leader's by as much as clocks drift. Gray and
Cheriton, "Leases", 1989."""

from __future__ import annotations

from chaos.invariants import Violation


class Leases:
    """Remembers until when each lease must last.

    Args:
        drift: by how much the clock of a node may run fast: 0.01 is one percent.
    """

    def __init__(self, drift: float) -> None:
        self._drift = drift
        self._until_ns: dict[int, int] = {}
        self._ended: set[int] = set()

    def renewed(self, lease: int, sent_ns: int, ttl_ms: int) -> None:
        """A grant or renewal was acknowledged; it had been sent at `sent_ns`."""
        until_ns = sent_ns + int(ttl_ms * 1_000_000 / (1 + self._drift))
        self._until_ns[lease] = max(until_ns, self._until_ns.get(lease, 0))

    def given_up(self, lease: int) -> None:
        """The holder counts on it no more."""
        self._until_ns.pop(lease, None)

    def ended(self, lease: int, now_ns: int) -> None:
        """A node has applied the end of a lease.

        Raises:
            Violation: too early.
        """
        until_ns = self._until_ns.get(lease, 0)
        if now_ns < until_ns and lease not in self._ended:
            early_ms = (until_ns - now_ns) / 1e6
            raise Violation("leases", f"lease {lease} ended {early_ms:.1f} ms too early")
        self._ended.add(lease)
