"""Sessions over single requests: a write is run once, whatever is sent again."""

from __future__ import annotations

import grpc
import pytest

from raftstate.pb.v1 import common_pb2, kv_pb2, session_pb2
from tests.rpc.conftest import Served
from tests.rpc.errors import refusal


async def register(served: Served, nonce: int = 0xFEED) -> common_pb2.SessionId:
    reply = await served.session.Register(session_pb2.RegisterRequest(nonce=nonce))
    return reply.session


def put_request(
    session: common_pb2.SessionId, serial: int, value: bytes, floor: int = 0
) -> kv_pb2.PutRequest:
    context = kv_pb2.WriteContext(session=session, serial=serial, floor=floor)
    return kv_pb2.PutRequest(key=b"a", value=value, context=context)


async def test_a_session_is_its_log_position_and_the_clients_nonce(served: Served) -> None:
    reply = await served.session.Register(session_pb2.RegisterRequest(nonce=(1 << 64) - 1, ttl_ms=10_000))
    assert (reply.session.index, reply.session.nonce) == (1, (1 << 64) - 1)
    assert (reply.ttl_ms, reply.header.applied_index, reply.header.revision) == (10_000, 1, 1)


async def test_a_session_that_asks_for_no_time_to_live_gets_the_default(served: Served) -> None:
    reply = await served.session.Register(session_pb2.RegisterRequest(nonce=1))
    assert reply.ttl_ms == 600_000


async def test_a_serial_sent_again_is_answered_alike_and_run_once(served: Served) -> None:
    session = await register(served)
    first = await served.kv.Put(put_request(session, 1, b"first"))
    again = await served.kv.Put(put_request(session, 1, b"second"))
    assert (first.header.revision, again.header.revision) == (2, 2)
    assert (await served.kv.Get(kv_pb2.GetRequest(key=b"a"))).kv.value == b"first"


@pytest.mark.parametrize(
    ("serial", "floor", "code"),
    [(1, 5, common_pb2.ERROR_CODE_STALE), (4_097, 1, common_pb2.ERROR_CODE_WINDOW)],
)
async def test_a_serial_outside_the_window_is_refused_as_not_run(
    served: Served, serial: int, floor: int, code: int
) -> None:
    session = await register(served)
    told = await refusal(served.kv.Put(put_request(session, serial, b"v", floor)))
    assert (told.status, told.error.code, told.error.outcome) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        code,
        common_pb2.OUTCOME_NOT_APPLIED,
    )


async def test_a_session_nobody_registered_or_that_was_closed_is_expired(served: Served) -> None:
    session = await register(served)
    stranger = common_pb2.SessionId(index=session.index, nonce=session.nonce + 1)
    await served.session.Close(session_pb2.CloseRequest(session=session))
    for gone in (stranger, session):
        told = await refusal(served.kv.Put(put_request(gone, 1, b"v")))
        assert (told.status, told.error.code) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            common_pb2.ERROR_CODE_SESSION_EXPIRED,
        )


async def test_a_serial_cancelled_before_it_ran_never_runs(served: Served) -> None:
    session = await register(served)
    cancelled = await served.session.Cancel(session_pb2.CancelRequest(session=session, serial=1))
    assert not cancelled.HasField("answer")
    repeated = await served.session.Cancel(session_pb2.CancelRequest(session=session, serial=1))
    assert not repeated.HasField("answer")
    told = await refusal(served.kv.Put(put_request(session, 1, b"late")))
    assert (told.status, told.error.code) == (grpc.StatusCode.CANCELLED, common_pb2.ERROR_CODE_CANCELLED)
    assert not (await served.kv.Get(kv_pb2.GetRequest(key=b"a"))).HasField("kv")


async def test_a_cancel_that_comes_too_late_returns_the_answer(served: Served) -> None:
    session = await register(served)
    await served.kv.Put(put_request(session, 1, b"v"))
    context = kv_pb2.WriteContext(session=session, serial=2)
    await served.kv.Delete(kv_pb2.DeleteRequest(key=b"a", prev_kv=True, context=context))
    cancelled = await served.session.Cancel(session_pb2.CancelRequest(session=session, serial=2))
    assert (cancelled.answer.revision, cancelled.answer.deleted) == (3, 1)
    assert [(kv.key, kv.value) for kv in cancelled.answer.prev_kvs] == [(b"a", b"v")]
    assert not cancelled.answer.HasField("error")
