"""How much a batch may look at and say, and how much one call of apply may look at.

The allowances of a batch are part of what the machine decides, alike on all nodes: what was read for a
command that was then refused counts too. That of a call is the caller's own, and no result depends on it.
"""

from __future__ import annotations

from raftstate.machine.types import (
    ANSWERS_BYTES_MAX,
    PAIR_OVERHEAD_BYTES_MAX,
    RANGE_DELETE_KEYS_MAX,
    TXN_READ_KEYS_MAX,
    Answer,
    Code,
    DeleteDone,
    Fault,
    KeyValue,
    LongApply,
    OperationDone,
    PutDone,
)

RESPONSE_OVERHEAD_BYTES_MAX = 32
"""What one operation of a transaction may take in an answer beside its pairs, whatever the encoding."""
_BYTES_PER_KEY = 4_096
"""So many bytes of values, read and not answered, hold up a call of apply like one more key."""


class Budget:
    """What is left to the batch that is run, and to the call of apply.

    Args:
        keys_at_once_max: how many keys ranges may meet before `LongApply` is raised; None: any number.
    """

    def __init__(self, keys_at_once_max: int | None = None) -> None:
        self.answer_bytes = 0
        """What was read for this batch's answers, as `pair_bytes` counts."""
        self._command_end_bytes = ANSWERS_BYTES_MAX
        self._deletes_left = RANGE_DELETE_KEYS_MAX
        self._reads_left = TXN_READ_KEYS_MAX
        self._keys_left = keys_at_once_max

    def begin_batch(self) -> None:
        """Give the next batch its own allowances."""
        self.answer_bytes = 0
        self._command_end_bytes = ANSWERS_BYTES_MAX
        self._deletes_left = RANGE_DELETE_KEYS_MAX
        self._reads_left = TXN_READ_KEYS_MAX

    def begin_command(self) -> None:
        """Give the next command its own allowance of bytes."""
        self._command_end_bytes = self.answer_bytes + ANSWERS_BYTES_MAX

    # -- bytes

    def check_pairs(self) -> Fault | None:
        """Return a fault once the pairs that were read for the command have too many bytes."""
        if self.answer_bytes <= self._command_end_bytes:
            return None
        return Fault(
            Code.RESOURCE_EXHAUSTED,
            f"previous pairs may have {ANSWERS_BYTES_MAX} bytes in all, these have more; "
            "delete without prev_kv, or in parts",
            "prev_kv",
        )

    def add_pairs(self, pairs: list[KeyValue]) -> Fault | None:
        """Count the pairs of a range in a transaction; return a fault once there are too many bytes."""
        self.answer_bytes += sum(map(pair_bytes, pairs))
        return None if self.answer_bytes <= self._command_end_bytes else self.range_fault()

    def range_fault(self) -> Fault:
        """Return the fault of a range whose pairs a transaction can't answer."""
        return Fault(
            Code.RESOURCE_EXHAUSTED,
            f"the pairs that a transaction answers may have {ANSWERS_BYTES_MAX} bytes in all, and with this "
            "range they have more; read it outside of the transaction, in parts, or with keys_only",
            "range",
        )

    def add_response(self) -> None:
        """Count an operation of a transaction, whose answer takes some bytes even with no pairs."""
        self.answer_bytes += RESPONSE_OVERHEAD_BYTES_MAX

    # -- keys

    @property
    def deletes_end(self) -> int:
        """How many keys to look for, at most, when so many as may be deleted are too many by one."""
        return self._end(self._deletes_left)

    @property
    def reads_end(self) -> int:
        """As `deletes_end`, for keys that are read or compared."""
        return self._end(self._reads_left)

    def meet_deletes(self, count: int) -> Fault | None:
        """Count keys that a range delete met; return a fault when the batch has met too many.

        Raises `LongApply`.
        """
        self.spend(count)
        left, self._deletes_left = self._deletes_left, max(0, self._deletes_left - count)
        if count <= left:
            return None
        return Fault(
            Code.RESOURCE_EXHAUSTED,
            f"the range deletes of a batch may meet {RANGE_DELETE_KEYS_MAX} keys, and this range "
            f"holds more than the {left} left; delete it in parts, each in a batch of its own",
            "range_end",
        )

    def meet_lease(self, count: int) -> Fault | None:
        """Count the keys of a lease that is revoked, as `meet_deletes` does."""
        self.spend(count)
        left, self._deletes_left = self._deletes_left, max(0, self._deletes_left - count)
        if count <= left:
            return None
        return Fault(
            Code.RESOURCE_EXHAUSTED,
            f"the range deletes and revokes of a batch may meet {RANGE_DELETE_KEYS_MAX} keys, and this lease "
            f"holds {count} where {left} were left; revoke it in a batch of its own",
            "id",
        )

    def meet_reads(self, count: int) -> Fault | None:
        """Count keys that a range of a transaction met; return a fault when the batch has met too many.

        Raises `LongApply`.
        """
        self.spend(count)
        left, self._reads_left = self._reads_left, max(0, self._reads_left - count)
        if count <= left:
            return None
        return Fault(
            Code.RESOURCE_EXHAUSTED,
            f"the ranges that the transactions of a batch read or compare may hold {TXN_READ_KEYS_MAX} keys, "
            f"and this one holds more than the {left} left; read it outside of a transaction, or in parts",
            "range_end",
        )

    def spend(self, keys: int, value_bytes: int = 0) -> None:
        """Count keys, and values that are only looked at, for the call. Raises `LongApply`."""
        if self._keys_left is None:
            return
        self._keys_left -= keys + value_bytes // _BYTES_PER_KEY
        if self._keys_left < 0:
            raise LongApply("ranges or leases hold more keys than this call was allowed")

    def _end(self, left: int) -> int:
        return 1 + (left if self._keys_left is None else min(left, self._keys_left))


def pair_bytes(pair: KeyValue) -> int:
    """Return what a pair takes in an answer, at most."""
    return len(pair.key) + len(pair.value) + PAIR_OVERHEAD_BYTES_MAX


def answer_bytes(answer: Answer) -> int:
    """Return what an answer takes, at most, as it was counted when it was made."""
    total = sum(map(pair_bytes, answer.prev_kvs))
    if answer.txn is not None:
        for response in answer.txn.responses:
            total += RESPONSE_OVERHEAD_BYTES_MAX + sum(map(pair_bytes, _pairs(response)))
    return total


def _pairs(response: OperationDone) -> list[KeyValue]:
    if isinstance(response, PutDone):
        return [] if response.prev_kv is None else [response.prev_kv]
    return response.prev_kvs if isinstance(response, DeleteDone) else response.kvs
