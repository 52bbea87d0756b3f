"""How much a batch may look at and say, and how much one call of apply may look at.

The allowances of a batch are part of what the machine decides, alike on all nodes: what was read for a
command that was then refused counts too. That of a call is the caller's own, and no result depends on it.
"""

from __future__ import annotations

from collections.abc import Collection

from raftstate.machine.types import (
    ANSWERS_BYTES_MAX,
    BATCH_PAIRS_MAX,
    COMMAND_PAIRS_MAX,
    MACHINE_VERSION,
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
_PAIRS_LIMITED_SINCE = 2
"""The machine version that limits the pairs of an answer in number, and not in bytes alone."""
PAST_RANGE_KEYS = 1_000
"""What a range of the past costs of the allowance of reads beside what it meets: rows that a compaction has
made superfluous lie in its way until they are swept, and no two nodes need have the same of them."""
_KEY_WORK, _OPERATION_WORK = 4_096, 1_024
"""What holds up a call of apply like so many bytes of values that are read and not answered: a key of a
range, and a compare or operation of a transaction, to check it and to run it."""
_ANY_NUMBER = 1 << 63


class ReadsSpentError(Exception):
    """A read of the past has met more than the batch had left; `fault` is its refusal."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


class Budget:
    """What is left to the batch that is run, and to the call of apply.

    Args:
        keys_at_once_max: how many keys ranges may meet before `LongApply` is raised; None: any number.
        machine_version: the rules to go by.
    """

    def __init__(self, keys_at_once_max: int | None = None, machine_version: int = MACHINE_VERSION) -> None:
        self._work_left = None if keys_at_once_max is None else keys_at_once_max * _KEY_WORK
        self.move_to(machine_version)
        self.begin_batch()

    def move_to(self, machine_version: int) -> None:
        """Go by the rules of `machine_version` from the next batch on."""
        is_limited = machine_version >= _PAIRS_LIMITED_SINCE
        self._command_pairs_max = COMMAND_PAIRS_MAX if is_limited else _ANY_NUMBER
        self._batch_pairs_max = BATCH_PAIRS_MAX // 2 if is_limited else _ANY_NUMBER

    def begin_batch(self) -> None:
        """Give the next batch its own allowances."""
        self.answer_bytes = 0
        """What was read for this batch's answers, as `pair_bytes` counts."""
        self.pairs = 0
        """How many pairs that were."""
        self._deletes_left = RANGE_DELETE_KEYS_MAX
        self._reads_left = TXN_READ_KEYS_MAX
        self._command_end_bytes = ANSWERS_BYTES_MAX
        self._command_end_pairs = self._command_pairs_max

    def begin_command(self) -> None:
        """Give the next command its own allowance of pairs."""
        self._command_end_bytes = self.answer_bytes + ANSWERS_BYTES_MAX
        self._command_end_pairs = self.pairs + self._command_pairs_max

    # -- pairs

    def add_previous(self, pair: KeyValue) -> None:
        """Count a previous pair."""
        self.answer_bytes += pair_bytes(pair)
        self.pairs += 1

    def has_many_pairs(self, repeated: int) -> bool:
        """Return whether no other command of the batch may run: for the pairs read, and so many repeated."""
        return self.pairs + repeated > self._batch_pairs_max

    def check_pairs(self) -> Fault | None:
        """Return a fault once the previous pairs that were read for the command are too many or too large."""
        if self.answer_bytes <= self._command_end_bytes:
            if self.pairs <= self._command_end_pairs:
                return None
            return Fault(
                Code.RESOURCE_EXHAUSTED,
                f"one command may answer {COMMAND_PAIRS_MAX} pairs, with these previous pairs it has more; "
                "delete without prev_kv, or in parts",
                "prev_kv",
            )
        return Fault(
            Code.RESOURCE_EXHAUSTED,
            f"previous pairs may have {ANSWERS_BYTES_MAX} bytes in all, these have more; "
            "delete without prev_kv, or in parts",
            "prev_kv",
        )

    def add_pairs(self, pairs: list[KeyValue]) -> Fault | None:
        """Count the pairs of a range in a transaction; return a fault once they are too many or too large."""
        self.answer_bytes += sum(map(pair_bytes, pairs))
        self.pairs += len(pairs)
        if self.pairs > self._command_end_pairs:
            return Fault(
                Code.RESOURCE_EXHAUSTED,
                f"a transaction may answer {COMMAND_PAIRS_MAX} pairs, with this range it has more; read it "
                "outside of the transaction, in parts, or with a limit or count_only",
                "range",
            )
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
    def pairs_end(self) -> int:
        """How many pairs to read, at most, when so many as the command may answer are too many by one."""
        return 1 + max(0, self._command_end_pairs - self.pairs)

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
            f"the ranges that the transactions of a batch read or compare may look at {TXN_READ_KEYS_MAX} "
            f"keys, and this one looks at more than the {left} left; read it outside of a transaction, or in "
            "parts",
            "range_end",
        )

    def meet_past(self, rows: int) -> None:
        """Count rows that a read of the past has looked at.

        Raises `ReadsSpentError`, `LongApply`.
        """
        self.spend(rows)
        self._take_past(rows)

    def begin_past_range(self) -> None:
        """Count a range of the past, beside the rows that it will look at. Raises `ReadsSpentError`."""
        self._take_past(PAST_RANGE_KEYS)

    def _take_past(self, count: int) -> None:
        left, self._reads_left = self._reads_left, max(0, self._reads_left - count)
        if count > left:
            raise ReadsSpentError(
                Fault(
                    Code.RESOURCE_EXHAUSTED,
                    f"the ranges that the transactions of a batch read may look at {TXN_READ_KEYS_MAX} keys"
                    " and, for earlier revisions, later changes of keys; each range there counts "
                    f"{PAST_RANGE_KEYS} more; this one looks at more than were left; read it outside of a "
                    "transaction, or in parts",
                    "range_end",
                )
            )

    # -- the call of apply

    def spend(self, keys: int, value_bytes: int = 0) -> None:
        """Count keys, and values that are only looked at, for the call. Raises `LongApply`."""
        self._spend(keys * _KEY_WORK + value_bytes)

    def spend_operations(self, count: int) -> None:
        """Count compares and operations of transactions, as `spend` does."""
        self._spend(count * _OPERATION_WORK)

    def _spend(self, work: int) -> None:
        if self._work_left is None:
            return
        self._work_left -= work
        if self._work_left < 0:
            raise LongApply("ranges, leases or transactions hold more than this call was allowed")

    def _end(self, left: int) -> int:
        return 1 + (left if self._work_left is None else min(left, self._work_left // _KEY_WORK))


def pair_bytes(pair: KeyValue) -> int:
    """Return what a pair takes in an answer, at most."""
    return len(pair.key) + len(pair.value) + PAIR_OVERHEAD_BYTES_MAX


def answer_bytes(answer: Answer) -> int:
    """Return what an answer takes, at most, as it was counted when it was made."""
    responses = 0 if answer.txn is None else len(answer.txn.responses)
    return responses * RESPONSE_OVERHEAD_BYTES_MAX + sum(map(pair_bytes, answer_pairs(answer)))


def answer_pairs(answer: Answer) -> list[KeyValue]:
    """Return all pairs in an answer."""
    if answer.txn is None:
        return answer.prev_kvs
    return [pair for response in answer.txn.responses for pair in _pairs(response)]


def names(answer: Answer, keys: Collection[bytes]) -> bool:
    """Return whether an answer holds a pair of one of these keys."""
    return any(pair.key in keys for pair in answer_pairs(answer))


def _pairs(response: OperationDone) -> list[KeyValue]:
    if isinstance(response, PutDone):
        return [] if response.prev_kv is None else [response.prev_kv]
    return response.prev_kvs if isinstance(response, DeleteDone) else response.kvs
