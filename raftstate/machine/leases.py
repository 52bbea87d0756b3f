"""Leases: keys that end with whoever stopped renewing them.

All leases are in memory, each with a row of its own; which keys are attached to one stands in the table
alone, a row for each, and in the changes of those keys. A lease ends by an entry of the log only: what is due
here is what a leader may propose to end.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from struct import Struct

from raftstate.machine.layout import (
    LEASES_END,
    LEASES_START,
    attachment_key,
    attachment_row,
    attachments,
    checksum,
    lease_key,
    lease_row,
    read_attachment,
    read_lease,
    read_lease_key,
)
from raftstate.machine.tables import ReadTables, Table, WriteTables
from raftstate.machine.types import LEASE_KEYS_MAX, LEASES_MAX, Code, Fault

DUE_AT_ONCE_MAX = 1_000
"""Leases that `Leases.due` names in one call: what a leader can propose to end before it asks again."""

_LOOKED_AT_ONCE_MAX = 2_000
"""Entries that `Leases.due` looks at in one call, some 3 ms: when many leases were renewed, those that are
due may be named only after several calls."""

_ID_MASK = (1 << 63) - 1
"""Chosen ids fit the signed 64 bits that other clients keep them in."""
_SEED = Struct("<QQIQQ")
_FACT = Struct("<BQQQ")
_GRANTED, _RENEWED, _ENDED = 1, 2, 3


class Lease:
    """One lease.

    Args:
        id: what clients name it by.
        renewed_ms: the lease clock when it was granted or last renewed.
        ttl_ms: it may end when it was not renewed for so long.
        key_count: how many keys are attached.
    """

    __slots__ = ("id", "key_count", "renewed_ms", "ttl_ms")

    def __init__(self, id: int, renewed_ms: int, ttl_ms: int, key_count: int) -> None:
        self.id = id
        self.renewed_ms = renewed_ms
        self.ttl_ms = ttl_ms
        self.key_count = key_count

    @property
    def due_ms(self) -> int:
        """The lease clock at which it may end."""
        return self.renewed_ms + self.ttl_ms


class Leases:
    """All leases, in memory, and the writes to their rows that one call of apply has gathered."""

    def __init__(self, tables: ReadTables) -> None:
        """Load every lease. Raises `DataLossError` when a row is damaged."""
        self._by_id: dict[int, Lease] = {}
        self._touched: set[int] = set()
        """Leases whose rows are not as in memory; those that ended, too."""
        self._attached: dict[bytes, bool] = {}
        """Keys of attachment rows not yet written; False: to be deleted."""
        self._facts: list[bytes] = []
        for row_key, row in tables.scan(Table.HOT, LEASES_START, LEASES_END):
            id = read_lease_key(row_key)
            self._by_id[id] = Lease(id, *read_lease(row_key, row))
        self._due = [(lease.due_ms, lease.id) for lease in self._by_id.values()]
        """A heap. A lease is due no earlier than its entry says; a renewal does not move the entry."""
        heapify(self._due)

    def __len__(self) -> int:
        return len(self._by_id)

    def find(self, id: int) -> Lease | Fault:
        """Return a lease, or the LEASE_NOT_FOUND fault."""
        return self._by_id.get(id) or Fault(
            Code.LEASE_NOT_FOUND,
            f"there is no lease {id}: it was never granted, was revoked, or has expired; not run",
            "lease",
        )

    def due(self, clock_ms: int) -> list[int]:
        """Return leases that may end at `clock_ms`, those that are due longest first, at most 1,000.

        Looks at 2,000 at most, those too that were renewed since: when it returns few, others may still be
        due, and the next call goes on.
        May be called while another thread applies, but by one thread only.
        """
        found: dict[int, int] = {}
        for _ in range(_LOOKED_AT_ONCE_MAX):
            if not self._due or self._due[0][0] > clock_ms or len(found) == DUE_AT_ONCE_MAX:
                break
            due_ms, id = heappop(self._due)
            lease = self._by_id.get(id)
            if lease is None:
                continue
            if lease.due_ms == due_ms:
                found[id] = (
                    due_ms  # again, if the lease had ended and was granted anew: then it has two entries
                )
            else:
                heappush(self._due, (lease.due_ms, id))
        for id, due_ms in found.items():
            heappush(self._due, (due_ms, id))
        return list(found)

    # -- leases

    def choose_id(self, cluster_id: int, index: int, item: int, serial: int) -> int:
        """Return an id that no lease has: 1 to 2^63 - 1, the same on all nodes.

        Args:
            cluster_id: the cluster's. Not its digest: nodes where that differs should not drift further.
            index: the entry's index.
            item: the number of the batch in it.
            serial: the command's.
        """
        attempt = 0
        while True:
            id = checksum(_SEED.pack(cluster_id, index, item, serial, attempt)) & _ID_MASK
            if id and id not in self._by_id:
                return id
            attempt += 1

    def grant(self, id: int, clock_ms: int, ttl_ms: int) -> Lease | Fault:
        """Add a lease, or return the fault: the id is in use, or there are as many leases as there may be."""
        if id in self._by_id:
            return Fault(
                Code.FAILED_PRECONDITION,
                f"lease {id} is in use; not granted; give another id, or none and the cluster chooses one",
                "id",
            )
        if len(self._by_id) >= LEASES_MAX:
            return Fault(
                Code.RESOURCE_EXHAUSTED,
                f"the cluster holds {len(self._by_id)} leases, limit {LEASES_MAX}; revoke some or wait until "
                "unused ones expire",
            )
        lease = self._by_id[id] = Lease(id, clock_ms, ttl_ms, 0)
        heappush(self._due, (lease.due_ms, id))
        self._note(_GRANTED, lease)
        return lease

    def renew(self, lease: Lease, clock_ms: int) -> None:
        """Let a lease live for its whole time to live from `clock_ms` on."""
        lease.renewed_ms = clock_ms
        self._note(_RENEWED, lease)

    def end(self, lease: Lease) -> None:
        """Forget a lease. Its keys are deleted, and so detached, before."""
        del self._by_id[lease.id]
        self._note(_ENDED, lease)

    # -- their keys

    def check_room(self, id: int) -> Fault | None:
        """Return why no key can be attached to a lease, or None."""
        lease = self.find(id)
        if isinstance(lease, Fault):
            return lease
        if lease.key_count < LEASE_KEYS_MAX:
            return None
        return Fault(
            Code.RESOURCE_EXHAUSTED,
            f"lease {id} holds {lease.key_count} keys, limit {LEASE_KEYS_MAX}; use another one for more keys",
            "lease",
        )

    def move(self, key: bytes, old: int, new: int) -> None:
        """Attach a key to lease `new` instead of `old`; 0: none. Both are there, and differ."""
        if old:
            self._by_id[old].key_count -= 1
            self._attached[attachment_key(old, key)] = False
            self._touched.add(old)
        if new:
            self._by_id[new].key_count += 1
            self._attached[attachment_key(new, key)] = True
            self._touched.add(new)

    def keys(self, tables: WriteTables, id: int) -> Iterator[bytes]:
        """Yield the keys attached to a lease, in order; what was gathered is written before."""
        self.flush(tables)
        for row_key, row in tables.scan(Table.HOT, *attachments(id)):
            yield read_attachment(row_key, row)

    # -- what was gathered

    def take_facts(self) -> bytes:
        """Return what the digest should cover of all that was done since this was last called.

        Attachments are covered by the changes that made them.
        """
        taken, self._facts = self._facts, []
        return b"".join(taken)

    def flush(self, tables: WriteTables) -> None:
        """Write the rows that were gathered."""
        rows = []
        for row_key, is_attached in sorted(self._attached.items()):
            if is_attached:
                rows.append((row_key, attachment_row(row_key)))
            else:
                tables.delete(Table.HOT, row_key)
        for id in sorted(self._touched):
            row_key = lease_key(id)
            lease = self._by_id.get(id)
            if lease is not None:
                rows.append((row_key, lease_row(row_key, lease.renewed_ms, lease.ttl_ms, lease.key_count)))
            else:
                tables.delete(Table.HOT, row_key)
        if rows:
            tables.put_many(Table.HOT, rows)
        self._attached.clear()
        self._touched.clear()

    def _note(self, what: int, lease: Lease) -> None:
        self._touched.add(lease.id)
        self._facts.append(_FACT.pack(what, lease.id, lease.renewed_ms, lease.ttl_ms))
