"""Leases as they are read."""

from __future__ import annotations

import pytest

from raftstate.errors import DataLossError
from raftstate.machine.layout import attachment_key, lease_key
from raftstate.machine.reader import LeaseStatus
from raftstate.machine.tables import Table
from raftstate.pb.v1.pipeline_pb2 import Command
from tests.machine.rig import Rig, put

BIGGEST = (1 << 64) - 1


def grant(id: int, ttl_ms: int) -> Command:
    command = Command(serial=1)
    command.lease_grant.id, command.lease_grant.ttl_ms = id, ttl_ms
    return command


def attached(key: bytes, lease: int) -> Command:
    command = put(1, key)
    command.put.lease = lease
    return command


def filled() -> Rig:
    rig = Rig()
    for id, ttl_ms in ((7, 5_000), (1 << 40, 60_000), (BIGGEST, 1_000)):
        [answer] = rig.write(grant(id, ttl_ms), lease_ms=10_000).values()
        assert answer.fault is None
    for key in (b"b", b"\xff" * 480, b"a"):
        rig.write(attached(key, 7), lease_ms=10_000)
    rig.write(attached(b"c", BIGGEST), lease_ms=10_000)
    return rig


def test_a_lease_says_what_is_left_of_it_and_how_many_keys_it_has() -> None:
    reader = filled().reader
    assert reader.lease(7, 12_000) == LeaseStatus(7, 5_000, 3_000, 3)
    assert reader.lease(7, 99_000) == LeaseStatus(7, 5_000, 0, 3)
    assert reader.lease(7, 9_000) == LeaseStatus(
        7, 5_000, 5_000, 3
    )  # a clock that is behind promises no more
    assert reader.lease(8, 12_000) is None


def test_leases_come_in_pages_in_order_of_their_ids() -> None:
    reader = filled().reader
    ids = [7, 1 << 40, BIGGEST]

    def page(above: int, limit: int) -> tuple[list[int], bool]:
        found, more = reader.leases(above, limit, 10_000)
        return [lease.id for lease in found], more

    assert page(0, 10) == (ids, False)
    assert page(0, 3) == (ids, False)
    assert page(0, 2) == (ids[:2], True)
    assert page(7, 1) == (ids[1:2], True)
    assert page(8, 2) == (ids[1:], False)
    assert page(BIGGEST, 2) == ([], False)
    assert reader.leases(6, 1, 10_001) == ([LeaseStatus(7, 5_000, 4_999, 3)], True)


def test_the_keys_of_a_lease_come_in_order_as_many_as_fit() -> None:
    reader = filled().reader
    assert reader.lease_keys(7, 1 << 20) == [b"a", b"b", b"\xff" * 480]
    assert reader.lease_keys(7, 482) == [b"a", b"b", b"\xff" * 480]
    assert reader.lease_keys(7, 481) == [b"a", b"b"]
    assert reader.lease_keys(7, 0) == []
    assert reader.lease_keys(BIGGEST, 10) == [b"c"]
    assert reader.lease_keys(1 << 40, 10) == reader.lease_keys(8, 10) == []


def test_a_damaged_lease_or_attachment_is_found() -> None:
    rig = filled()
    for row_key in (lease_key(7), attachment_key(7, b"b")):
        row = rig.tables.get(Table.HOT, row_key)
        assert row is not None
        rig.tables.put(Table.HOT, row_key, bytes((row[0] ^ 1,)) + row[1:])
    reader = rig.reader
    with pytest.raises(DataLossError, match="of table HOT is damaged"):
        reader.lease(7, 0)
    with pytest.raises(DataLossError, match="of table HOT is damaged"):
        reader.leases(0, 1, 0)
    with pytest.raises(DataLossError, match="of table HOT is damaged"):
        reader.lease_keys(7, 100)
