"""Transactions: compares, and what is done if they hold, or else."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Self

from raftstate.client import limits
from raftstate.client.compare import Compare
from raftstate.client.operations import Delete, Get, Put, Range
from raftstate.client.types import Response, TxnResult
from raftstate.errors import IndefiniteError, InvalidArgumentError
from raftstate.pb.v1 import pipeline_pb2, txn_pb2

if TYPE_CHECKING:
    from raftstate.client.sync_client import Run

TxnOperation = Put | Get | Range | Delete
"""What a transaction can do."""

Commit = Callable[["TxnCommand", float | None], Coroutine[Any, Any, TxnResult]]
"""Has a transaction committed; the second argument is its timeout in seconds."""

_TXN_BYTES = 64
_ITEM_BYTES = 64
"""More than the wire adds to a transaction, and to each of its compares and operations: so much that a full
batch stays below the 16,384 of them that a node takes in one."""


class TxnCommand:
    """A whole transaction. Implements `operations.Operation`."""

    __slots__ = ("compares", "failure", "size_bytes", "success")

    def __init__(
        self,
        compares: tuple[Compare, ...],
        success: tuple[TxnOperation, ...],
        failure: tuple[TxnOperation, ...],
    ) -> None:
        self.compares = compares
        self.success = success
        self.failure = failure
        items = (*compares, *success, *failure)
        if len(items) > limits.TXN_OPERATIONS_MAX:
            raise InvalidArgumentError(
                f"a transaction has at most {limits.TXN_OPERATIONS_MAX:,} compares and operations in all, got"
                f" {len(compares):,} + {len(success):,} + {len(failure):,}; split it",
                field="operations",
            )
        self.size_bytes = _TXN_BYTES + sum(item.size_bytes + _ITEM_BYTES for item in items)
        if self.size_bytes > limits.COMMAND_BYTES_MAX:
            raise InvalidArgumentError(
                f"a transaction has at most {limits.COMMAND_BYTES_MAX:,} bytes, got {self.size_bytes:,};"
                " split it",
                field="operations",
            )

    def fill(self, command: pipeline_pb2.Command) -> None:
        """See `Operation.fill`."""
        txn = command.txn
        txn.SetInParent()  # one of nothing is one, too
        for compare in self.compares:
            compare.fill(txn.compares.add())
        for operation in self.success:
            operation.fill(txn.success.add())
        for operation in self.failure:
            operation.fill(txn.failure.add())

    def done(self, revision: int) -> TxnResult:
        """See `Operation.done`."""
        raise IndefiniteError("the node answered a transaction without its result")

    def result(self, answer: pipeline_pb2.Answer) -> TxnResult:
        """See `Operation.result`."""
        txn, revision = answer.txn, answer.revision
        branch = self.success if txn.succeeded else self.failure
        if len(branch) != len(txn.responses):
            raise IndefiniteError(
                f"the node answered {len(branch)} operations of a transaction with {len(txn.responses)}"
                " responses"
            )
        responses = tuple(map(_response, branch, txn.responses, (revision,) * len(branch)))
        return TxnResult(revision, txn.succeeded, responses)


class _Builder:
    """Collects the parts of a transaction; nothing is sent before it is committed."""

    def __init__(self) -> None:
        self._compares: tuple[Compare, ...] = ()
        self._success: tuple[TxnOperation, ...] = ()
        self._failure: tuple[TxnOperation, ...] = ()

    def when(self, *compares: Compare) -> Self:
        """Add conditions; all must hold. Without any, `then` runs.

        Args:
            compares: made by `raftstate.where`, for example `where("key").version == 0`.

        Raises:
            InvalidArgumentError: one is no compare.
        """
        for position, compare in enumerate(compares):
            if not isinstance(compare, Compare):
                raise InvalidArgumentError(
                    f"compare {position} must be made by where(), for example where('key').version == 0; got"
                    f" {type(compare).__name__}",
                    field="compares",
                )
        self._compares += compares
        return self

    def then(self, *operations: TxnOperation) -> Self:
        """Add what is done, in order, if all compares hold.

        Args:
            operations: `Put`, `Get`, `Range` and `Delete`. No two puts of one key, and no put of a key that a
                delete of the same branch covers.

        Raises:
            InvalidArgumentError: one is no operation.
        """
        self._success += _checked(operations)
        return self

    def otherwise(self, *operations: TxnOperation) -> Self:
        """Add what is done, in order, if a compare does not hold.

        Arguments and errors are those of `then`.
        """
        self._failure += _checked(operations)
        return self

    def _command(self) -> TxnCommand:
        return TxnCommand(self._compares, self._success, self._failure)


class AsyncTxn(_Builder):
    """A transaction to be put together and committed; see `AsyncClient.txn`."""

    def __init__(self, commit: Commit) -> None:
        super().__init__()
        self._commit = commit

    async def commit(self, *, timeout: float | None = None) -> TxnResult:
        """Look at the compares and do what they decide, all of it in one step, once.

        Args:
            timeout: in seconds; None: the client's.

        Returns:
            Whether the compares held, and what each operation of the branch that ran gave.

        Raises:
            InvalidArgumentError: more than 1,024 compares and operations or 8 MiB in all, or two writes of a
                branch overlap; nothing was done.
            LeaseNotFoundError: a put names a lease that does not exist; nothing was done.
            OutOfRangeError: a read's revision is compacted or in the future; nothing was done.
            ResourceExhaustedError: it met too many keys, or too many bytes; nothing was done.
            RaftstateError: else as `AsyncClient.put`.
        """
        return await self._commit(self._command(), timeout)


class Txn(_Builder):
    """The sync face of `AsyncTxn`; see `Client.txn`."""

    def __init__(self, commit: Commit, run: Run) -> None:
        super().__init__()
        self._commit = commit
        self._run = run

    def commit(self, *, timeout: float | None = None) -> TxnResult:
        """Do it; see `AsyncTxn.commit`."""
        return self._run(self._commit(self._command(), timeout))


def _checked(operations: tuple[TxnOperation, ...]) -> tuple[TxnOperation, ...]:
    for position, operation in enumerate(operations):
        if not isinstance(operation, TxnOperation):
            raise InvalidArgumentError(
                f"operation {position} must be a Put, Get, Range or Delete of raftstate, got"
                f" {type(operation).__name__}",
                field="operations",
            )
    return operations


def _response(operation: TxnOperation, response: txn_pb2.ResponseOp, revision: int) -> Response:
    return operation.response(response, revision)
