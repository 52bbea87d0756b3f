"""Transactions: compares against one state, then one of two lists of operations, as one step.

Whether it can run is looked at in etcd's order: the compares; then, in the branch that they chose, the leases
of its puts and the revisions of its ranges, before anything is done; what shows only while it runs (too many
keys, too many bytes, a lease that is full) undoes all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import eq, gt, lt, ne
from typing import Any

from raftstate.errors import InvariantError, ResourceExhaustedError
from raftstate.machine.budget import ReadsSpentError
from raftstate.machine.history import FoundRow, check_revision, rows_at
from raftstate.machine.keyspace import NEVER, Keyspace
from raftstate.machine.layout import IndexRow
from raftstate.machine.reader import Sort, SortTarget, page_of
from raftstate.machine.step import Step
from raftstate.machine.types import (
    ANSWERS_BYTES_MAX,
    Code,
    DeleteDone,
    Fault,
    OperationDone,
    PutDone,
    RangeDone,
    TxnDone,
    covers,
)
from raftstate.pb.v1.txn_pb2 import (
    SORT_ORDER_DESCEND,
    SORT_TARGET_KEY,
    Compare,
    RangeOp,
    RequestOp,
    TxnCommand,
)

_HOLDS: tuple[Callable[[Any, Any], bool], ...] = (eq, ne, gt, lt)
"""By the number of `Compare.Result`."""
_COMPARED = {"mod_revision": 0, "create_revision": 2, "version": 3, "lease": 4}
"""Where in an index row a target stands. The value does not."""


def run_txn(keyspace: Keyspace, txn: TxnCommand) -> TxnDone | Fault:
    """Run a transaction at the next revision; when its branch changes nothing, none is made.

    Args:
        keyspace: what it reads and writes.
        txn: as checked.

    Returns what it found, or the fault that refuses it as a whole, with nothing done.

    Raises `LongApply`.
    """
    run = _Run(keyspace, txn)
    done = run.run()
    if isinstance(done, Fault):
        run.step.undo()
    return done


class _Run:
    """One transaction under way."""

    def __init__(self, keyspace: Keyspace, txn: TxnCommand) -> None:
        self.step = Step(keyspace, looks_at_tables=_looks_at_tables(txn))
        self._keyspace = keyspace
        self._budget = keyspace.budget
        self._txn = txn

    def run(self) -> TxnDone | Fault:
        succeeded = self._compare()
        if isinstance(succeeded, Fault):
            return succeeded
        operations = self._txn.success if succeeded else self._txn.failure
        fault = self._check(operations)
        if fault is not None:
            return fault
        responses: list[OperationDone] = []
        for operation in operations:
            self._budget.add_response()
            done = self._operate(operation)
            if isinstance(done, Fault):
                return done
            responses.append(done)
        return TxnDone(succeeded, responses)

    # -- compares

    def _compare(self) -> bool | Fault:
        """Return whether all compares hold; those after the first that does not are not looked at."""
        for compare in self._txn.compares:
            if compare.range_end:
                found, count = self.step.find_range(compare.key, compare.range_end, self._budget.reads_end)
                fault = self._budget.meet_reads(count)
                if fault is not None:
                    return fault
            else:
                live = self.step.find(compare.key)
                found = [] if live is None else [(compare.key, live)]
            holds = self._holds_for(compare)
            if not all(holds(key, live) for key, live in found or ((compare.key, NEVER),)):
                return False
        return True

    def _holds_for(self, compare: Compare) -> Callable[[bytes, IndexRow], bool]:
        target = compare.WhichOneof("target")
        assert target is not None  # the check saw to it
        want = getattr(compare, target)
        holds = _HOLDS[compare.result]
        if target != "value":
            field = _COMPARED[target]
            return lambda key, live: holds(live[field], want)

        def holds_value(key: bytes, live: IndexRow) -> bool:
            if live is NEVER:
                return False
            value = self._keyspace.change(key, live).value
            self._budget.spend(0, len(value))
            return holds(value, want)

        return holds_value

    # -- operations

    def _check(self, operations: Iterable[RequestOp]) -> Fault | None:
        """Return what can be known before to keep a branch from running: all leases, then all revisions."""
        keyspace = self._keyspace
        for operation in operations:
            if operation.HasField("put") and operation.put.lease:
                lease = keyspace.leases.find(operation.put.lease)
                if isinstance(lease, Fault):
                    return lease
        for operation in operations:
            if operation.HasField("range") and operation.range.revision:
                revision = operation.range.revision
                fault = check_revision(revision, keyspace.compacted_revision, keyspace.revision)
                if fault is not None:
                    return fault
        return None

    def _operate(self, operation: RequestOp) -> OperationDone | Fault:
        if operation.HasField("put"):
            put = operation.put
            previous = self.step.put(put.key, put.value, put.prev_kv, put.lease)
            return previous if isinstance(previous, Fault) else PutDone(previous)
        if operation.HasField("delete"):
            delete = operation.delete
            deleted = self.step.delete(delete.key, delete.range_end, delete.prev_kv)
            return deleted if isinstance(deleted, Fault) else DeleteDone(*deleted)
        if operation.HasField("range"):
            return self._range(operation.range)
        raise InvariantError(
            f"the operation {operation.WhichOneof('op')} passed its check, and nothing runs it"
        )

    def _range(self, operation: RangeOp) -> RangeDone | Fault:
        rows = self._find(operation)
        if isinstance(rows, Fault):
            return rows
        limit = min(operation.limit or self._budget.pairs_end, self._budget.pairs_end)
        try:
            page = page_of(
                self.step.tables,
                rows,
                limit=limit,
                keys_only=operation.keys_only,
                count_only=operation.count_only,
                bytes_max=ANSWERS_BYTES_MAX,
                sort=sort_of(operation.sort_order, operation.sort_target),
            )
        except ResourceExhaustedError as error:
            return Fault(Code.RESOURCE_EXHAUSTED, error.message, error.field)
        fault = self._budget.add_pairs(page.kvs)
        if fault is None and page.more and len(page.kvs) != operation.limit:
            fault = self._budget.range_fault()
        return fault or RangeDone(page.kvs, page.more, page.count)

    def _find(self, operation: RangeOp) -> list[FoundRow] | Fault:
        """Return the rows of a range, in order, as of now or of the revision asked for."""
        if not operation.range_end and not operation.revision:
            live = self.step.find(operation.key)
            return [] if live is None else [(operation.key, live, None)]
        if operation.revision:
            return self._find_past(operation)
        found, count = self.step.find_range(operation.key, operation.range_end, self._budget.reads_end)
        return self._budget.meet_reads(count) or [(key, live, None) for key, live in found]

    def _find_past(self, operation: RangeOp) -> list[FoundRow] | Fault:
        start, end = covers(operation.key, operation.range_end)
        compacted_revision = self._keyspace.compacted_revision
        rows = rows_at(self.step.past(), start, end, operation.revision, compacted_revision)
        try:
            if operation.range_end:
                self._budget.begin_past_range()
            # The values that were read on the way may be large, and not all of them are wanted.
            return [(key, live, None) for key, live, _ in rows]
        except ReadsSpentError as error:
            return error.fault


def sort_of(order: int, target: int) -> Sort | None:
    """Return what a request's sort_order and sort_target mean, as in etcd; None: ascending by key.

    A target without an order is ascending.
    """
    if target == SORT_TARGET_KEY and order != SORT_ORDER_DESCEND:
        return None
    return Sort(SortTarget(target), order == SORT_ORDER_DESCEND)


def _looks_at_tables(txn: TxnCommand) -> bool:
    return any(compare.range_end for compare in txn.compares) or any(
        each.range.range_end or each.range.revision or each.delete.range_end
        for each in (*txn.success, *txn.failure)
    )
