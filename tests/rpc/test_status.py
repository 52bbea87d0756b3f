"""Each error of a node, and what it becomes on the wire."""

from __future__ import annotations

import grpc
import pytest

from raftstate import errors
from raftstate.machine.reader import SortTarget
from raftstate.machine.types import Code, Fault, Item
from raftstate.node.service import ReadConsistency, Role
from raftstate.pb.v1 import cluster_pb2, common_pb2, kv_pb2, txn_pb2
from raftstate.rpc.status import MESSAGE_CHARACTERS_MAX, refusal_of_error, refusal_of_fault
from raftstate.rpc.validation import SortOrder
from tests.rpc.conftest import Served
from tests.rpc.errors import refusal

S = grpc.StatusCode
NOT_APPLIED = common_pb2.OUTCOME_NOT_APPLIED
UNKNOWN = common_pb2.OUTCOME_UNKNOWN

# error -> status, code, outcome of a write, outcome of a read
ERRORS: list[tuple[type[errors.RaftstateError], grpc.StatusCode, int, int, int]] = [
    (errors.InvalidArgumentError, S.INVALID_ARGUMENT, 1, NOT_APPLIED, NOT_APPLIED),
    (errors.ResourceExhaustedError, S.RESOURCE_EXHAUSTED, 2, NOT_APPLIED, NOT_APPLIED),
    (errors.OutOfRangeError, S.OUT_OF_RANGE, 3, NOT_APPLIED, NOT_APPLIED),
    (errors.ConflictError, S.FAILED_PRECONDITION, 4, NOT_APPLIED, NOT_APPLIED),
    (errors.NoLeaderError, S.UNAVAILABLE, 5, NOT_APPLIED, NOT_APPLIED),
    (errors.IndefiniteError, S.UNKNOWN, 6, UNKNOWN, UNKNOWN),
    (errors.SessionExpiredError, S.FAILED_PRECONDITION, 7, NOT_APPLIED, NOT_APPLIED),
    (errors.WrongClusterError, S.FAILED_PRECONDITION, 11, NOT_APPLIED, NOT_APPLIED),
    (errors.DataLossError, S.DATA_LOSS, 12, UNKNOWN, NOT_APPLIED),
    (errors.UnimplementedError, S.UNIMPLEMENTED, 13, NOT_APPLIED, NOT_APPLIED),
    (errors.FailedPreconditionError, S.FAILED_PRECONDITION, 14, NOT_APPLIED, NOT_APPLIED),
    (errors.LeaseNotFoundError, S.NOT_FOUND, 15, NOT_APPLIED, NOT_APPLIED),
    (errors.ClosedError, S.UNAVAILABLE, 5, NOT_APPLIED, NOT_APPLIED),
    (errors.DeadlineError, S.DEADLINE_EXCEEDED, 0, NOT_APPLIED, NOT_APPLIED),
    (errors.StorageError, S.INTERNAL, 0, UNKNOWN, NOT_APPLIED),
    (errors.InvariantError, S.INTERNAL, 0, UNKNOWN, NOT_APPLIED),
    (errors.ConfigError, S.INTERNAL, 0, UNKNOWN, NOT_APPLIED),
    (errors.LockLostError, S.INTERNAL, 0, UNKNOWN, NOT_APPLIED),
]

FAULTS = {
    Code.INVALID: S.INVALID_ARGUMENT,
    Code.RESOURCE_EXHAUSTED: S.RESOURCE_EXHAUSTED,
    Code.OUT_OF_RANGE: S.OUT_OF_RANGE,
    Code.CONFLICT: S.FAILED_PRECONDITION,
    Code.NO_LEADER: S.UNAVAILABLE,
    Code.UNKNOWN_OUTCOME: S.UNKNOWN,
    Code.SESSION_EXPIRED: S.FAILED_PRECONDITION,
    Code.STALE: S.FAILED_PRECONDITION,
    Code.WINDOW: S.FAILED_PRECONDITION,
    Code.CANCELLED: S.CANCELLED,
    Code.WRONG_CLUSTER: S.FAILED_PRECONDITION,
    Code.DATA_LOSS: S.DATA_LOSS,
    Code.UNIMPLEMENTED: S.UNIMPLEMENTED,
    Code.FAILED_PRECONDITION: S.FAILED_PRECONDITION,
    Code.LEASE_NOT_FOUND: S.NOT_FOUND,
}


def raise_on_write(served: Served, error: Exception) -> None:
    async def fail(_item: Item) -> None:
        raise error

    served.node.on_write = fail


def raise_on_read(served: Served, error: Exception) -> None:
    async def fail(_consistency: ReadConsistency, _max_staleness_ms: int) -> None:
        raise error

    served.node.on_read = fail


def test_the_table_above_holds_every_error_there_is() -> None:
    known = {
        each
        for each in vars(errors).values()
        if isinstance(each, type) and issubclass(each, errors.RaftstateError)
    }
    assert {row[0] for row in ERRORS} == known - {errors.RaftstateError}
    assert set(FAULTS) == set(Code)


def test_the_machines_codes_and_the_nodes_enums_have_the_wires_numbers() -> None:
    wire = {name: number for name, number in common_pb2.ErrorCode.items() if number}
    assert {f"ERROR_CODE_{code.name}": code.value for code in Code} == wire
    assert {f"CONSISTENCY_{each.name}": each.value for each in ReadConsistency} == dict(
        common_pb2.Consistency.items()
    )
    orders = {f"SORT_ORDER_{order.name}": order.value for order in SortOrder}
    targets = {f"SORT_TARGET_{target.name}": target.value for target in SortTarget}
    assert (orders, targets) == (dict(txn_pb2.SortOrder.items()), dict(txn_pb2.SortTarget.items()))
    roles = {name: number for name, number in cluster_pb2.Role.items() if number}
    assert {f"ROLE_{role.name}": role.value for role in Role} == roles


@pytest.mark.parametrize("row", ERRORS, ids=lambda row: row[0].__name__)
async def test_an_error_of_the_node_has_one_status_and_an_honest_outcome(
    served: Served, row: tuple[type[errors.RaftstateError], grpc.StatusCode, int, int, int]
) -> None:
    kind, status, code, write_outcome, read_outcome = row
    raise_on_write(served, kind("it is so", field="a.b"))
    raise_on_read(served, kind("it is so", field="a.b"))
    written = await refusal(served.kv.Put(kv_pb2.PutRequest(key=b"a")))
    read = await refusal(served.kv.Get(kv_pb2.GetRequest(key=b"a")))
    assert (written.status, written.error.code, written.error.outcome) == (status, code, write_outcome)
    assert (read.status, read.error.code, read.error.outcome) == (status, code, read_outcome)
    if status is not S.INTERNAL:
        told = "unknown" if write_outcome == UNKNOWN else "not_applied"
        assert written.text == f"it is so; outcome={told}, field=a.b"


async def test_without_a_leader_a_write_is_told_what_the_node_knows(served: Served) -> None:
    detail: dict[str, object] = {
        "term": 7,
        "leader_id": 3,
        "leader_address": "127.0.0.1:7003",
        "leader_silent_ms": 1_600,
    }
    raise_on_write(served, errors.NoLeaderError("no leader took the write in time", detail=detail))
    told = await refusal(served.kv.Put(kv_pb2.PutRequest(key=b"a"), timeout=5))
    assert told.status is S.UNAVAILABLE
    assert told.text == (
        "no leader took the write in time; outcome=not_applied, term=7, leader_id=3,"
        " leader_address=127.0.0.1:7003, leader_silent_ms=1600"
    )
    assert told.error == common_pb2.Error(
        code=common_pb2.ERROR_CODE_NO_LEADER,
        outcome=NOT_APPLIED,
        message="no leader took the write in time",
        term=7,
        leader_id=3,
        leader_address="127.0.0.1:7003",
        leader_silent_ms=1_600,
    )


async def test_what_nobody_foresaw_is_logged_with_its_traceback_and_of_unknown_outcome(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    raise_on_write(served, ZeroDivisionError("secret internals"))
    told = await refusal(served.kv.Put(kv_pb2.PutRequest(key=b"a")))
    assert told.status is S.INTERNAL
    assert told.text == "the node failed inside (ZeroDivisionError); its log says more; outcome=unknown"
    [record] = caplog.records
    assert (record.levelname, record.values["write"]) == ("ERROR", True)  # type: ignore[attr-defined]
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
    assert record.exc_info[2] is not None


@pytest.mark.parametrize(
    ("code", "status"), FAULTS.items(), ids=lambda each: str(getattr(each, "name", each))
)
def test_a_fault_of_the_machine_has_one_status(code: Code, status: grpc.StatusCode) -> None:
    told = refusal_of_fault(Fault(code, "it is so", "a.b"))
    outcome = UNKNOWN if code == Code.UNKNOWN_OUTCOME else NOT_APPLIED
    error = common_pb2.Error(
        code=common_pb2.ErrorCode.Name(code), outcome=outcome, message="it is so", field="a.b"
    )
    assert (told.status, told.error) == (status, error)


def test_a_long_message_is_cut_so_that_it_fits_the_headers() -> None:
    told = refusal_of_error(errors.ConflictError("x" * 100_000), write=True)
    assert told.error.message == "x" * (MESSAGE_CHARACTERS_MAX - 3) + "..."
