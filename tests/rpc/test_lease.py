"""Leases over a real channel, to the real machine."""

from __future__ import annotations

import grpc
import pytest

from raftstate.node.service import ReadConsistency
from raftstate.pb.v1 import common_pb2, kv_pb2, lease_pb2, session_pb2
from raftstate.rpc import lease
from tests.rpc.conftest import Served
from tests.rpc.errors import refusal
from tests.rpc.fake_node import CLUSTER_ID, NODE_ID, TERM

TTL_MS = 60_000


def header(*, revision: int, applied_index: int) -> common_pb2.ResponseHeader:
    return common_pb2.ResponseHeader(
        cluster_id=CLUSTER_ID, node_id=NODE_ID, revision=revision, applied_index=applied_index, term=TERM
    )


async def grant(served: Served, lease_id: int) -> None:
    await served.lease.Grant(lease_pb2.LeaseGrantRequest(id=lease_id, ttl_ms=TTL_MS))


async def put(served: Served, key: bytes, lease_id: int) -> None:
    await served.kv.Put(kv_pb2.PutRequest(key=key, lease=lease_id))


async def test_a_lease_is_granted_under_the_id_asked_for_or_one_of_the_cluster_s(served: Served) -> None:
    granted = await served.lease.Grant(lease_pb2.LeaseGrantRequest(id=7, ttl_ms=TTL_MS))
    head = header(revision=1, applied_index=1)
    assert granted == lease_pb2.LeaseGrantResponse(header=head, id=7, ttl_ms=TTL_MS)
    chosen = await served.lease.Grant(lease_pb2.LeaseGrantRequest(ttl_ms=TTL_MS))
    assert chosen.id not in (0, 7)
    assert chosen.ttl_ms == TTL_MS


async def test_an_id_in_use_is_refused(served: Served) -> None:
    await grant(served, 7)
    told = await refusal(served.lease.Grant(lease_pb2.LeaseGrantRequest(id=7, ttl_ms=TTL_MS)))
    assert (told.status, told.error.code, told.error.outcome) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        common_pb2.ERROR_CODE_FAILED_PRECONDITION,
        common_pb2.OUTCOME_NOT_APPLIED,
    )


async def test_a_revoke_deletes_the_keys_of_its_lease_in_one_revision(served: Served) -> None:
    await grant(served, 7)
    for key in (b"b", b"a"):
        await put(served, key, 7)
    revoked = await served.lease.Revoke(lease_pb2.LeaseRevokeRequest(id=7))
    head = header(revision=4, applied_index=4)
    assert revoked == lease_pb2.LeaseRevokeResponse(header=head, deleted=2)
    assert (await served.kv.Range(kv_pb2.RangeRequest(key=b"a", range_end=b"z"))).count == 0


async def test_a_renewal_says_for_how_long(served: Served) -> None:
    await grant(served, 7)
    renewed = await served.lease.Renew(lease_pb2.LeaseRenewRequest(id=7))
    head = header(revision=1, applied_index=2)
    assert renewed == lease_pb2.LeaseRenewResponse(header=head, id=7, ttl_ms=TTL_MS)


async def test_what_is_left_of_a_lease_with_its_keys_only_when_they_are_wanted(served: Served) -> None:
    await grant(served, 7)
    for key in (b"b", b"a"):
        await put(served, key, 7)
    # The fake's lease clock moves by a second an entry.
    expected = lease_pb2.LeaseTimeToLiveResponse(
        header=header(revision=3, applied_index=3),
        id=7,
        ttl_ms=TTL_MS,
        remaining_ms=TTL_MS - 2_000,
        key_count=2,
    )
    assert await served.lease.TimeToLive(lease_pb2.LeaseTimeToLiveRequest(id=7)) == expected
    expected.keys.extend([b"a", b"b"])
    assert await served.lease.TimeToLive(lease_pb2.LeaseTimeToLiveRequest(id=7, keys=True)) == expected


async def test_keys_too_large_for_a_default_client_are_cut(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "KEYS_BYTES_MAX", 250)
    await grant(served, 7)
    keys = [b"%0100d" % number for number in range(4)]
    for key in keys:
        await put(served, key, 7)
    found = await served.lease.TimeToLive(lease_pb2.LeaseTimeToLiveRequest(id=7, keys=True))
    assert (list(found.keys), found.key_count) == (keys[:2], 4)


async def test_leases_are_listed_in_pages_by_id(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for lease_id in (5, 3, 9):
        await grant(served, lease_id)
    await put(served, b"a", 5)
    listed = await served.lease.List(lease_pb2.LeaseListRequest())
    assert listed == lease_pb2.LeaseListResponse(
        header=header(revision=2, applied_index=4),
        leases=[
            lease_pb2.LeaseStatus(id=3, ttl_ms=TTL_MS, remaining_ms=TTL_MS - 2_000),
            lease_pb2.LeaseStatus(id=5, ttl_ms=TTL_MS, remaining_ms=TTL_MS - 3_000, key_count=1),
            lease_pb2.LeaseStatus(id=9, ttl_ms=TTL_MS, remaining_ms=TTL_MS - 1_000),
        ],
    )
    page = await served.lease.List(lease_pb2.LeaseListRequest(limit=2))
    assert ([each.id for each in page.leases], page.more) == ([3, 5], True)
    rest = await served.lease.List(lease_pb2.LeaseListRequest(limit=2, above=5))
    assert ([each.id for each in rest.leases], rest.more) == ([9], False)
    monkeypatch.setattr(lease, "LEASES_PAGE_MAX", 1)
    for limit in (0, 3, (1 << 32) - 1):
        capped = await served.lease.List(lease_pb2.LeaseListRequest(limit=limit))
        assert ([each.id for each in capped.leases], capped.more) == ([3], True)


async def test_a_lease_that_is_not_there_is_not_found(served: Served) -> None:
    for call in (
        served.lease.Revoke(lease_pb2.LeaseRevokeRequest(id=7)),
        served.lease.Renew(lease_pb2.LeaseRenewRequest(id=7)),
        served.lease.TimeToLive(lease_pb2.LeaseTimeToLiveRequest(id=7)),
    ):
        told = await refusal(call)
        assert (told.status, told.error.code, told.error.outcome) == (
            grpc.StatusCode.NOT_FOUND,
            common_pb2.ERROR_CODE_LEASE_NOT_FOUND,
            common_pb2.OUTCOME_NOT_APPLIED,
        )
        assert "there is no lease 7" in told.text


async def test_reads_of_leases_pass_on_consistency_and_deadline(served: Served) -> None:
    asked: list[tuple[ReadConsistency, int]] = []

    async def note(consistency: ReadConsistency, max_staleness_ms: int) -> None:
        asked.append((consistency, max_staleness_ms))

    served.node.on_read = note
    bounded = lease_pb2.LeaseListRequest(consistency=common_pb2.CONSISTENCY_BOUNDED, max_staleness_ms=200)
    await served.lease.List(bounded, timeout=3)
    local = lease_pb2.LeaseTimeToLiveRequest(id=7, consistency=common_pb2.CONSISTENCY_LOCAL)
    await refusal(served.lease.TimeToLive(local, timeout=3))
    assert asked == [(ReadConsistency.BOUNDED, 200), (ReadConsistency.LOCAL, 50)]
    assert all(2 < timeout_s < 2.9 for timeout_s in served.node.timeouts_s)


async def test_a_grant_in_a_session_that_is_sent_again_is_the_same_lease(served: Served) -> None:
    session = (await served.session.Register(session_pb2.RegisterRequest(nonce=9))).session
    context = kv_pb2.WriteContext(session=session, serial=1, floor=1)
    request = lease_pb2.LeaseGrantRequest(ttl_ms=TTL_MS, context=context)
    first, again = await served.lease.Grant(request), await served.lease.Grant(request)
    assert first.id == again.id
    assert len((await served.lease.List(lease_pb2.LeaseListRequest())).leases) == 1
