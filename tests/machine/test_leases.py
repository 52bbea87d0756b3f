"""Leases: granting, renewing and ending them, the keys that go with them, and what a leader may propose."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from raftstate.errors import DataLossError
from raftstate.machine import budget, leases
from raftstate.machine import machine as machine_module
from raftstate.machine.digest import recount
from raftstate.machine.layout import (
    attachment_key,
    change_key,
    lease_key,
    name_key,
    read_change,
    read_sums,
)
from raftstate.machine.machine import Machine
from raftstate.machine.reader import LeaseStatus
from raftstate.machine.tables import Table
from raftstate.machine.types import (
    LEASE_KEYS_MAX,
    LEASES_MAX,
    RANGE_DELETE_KEYS_MAX,
    Answer,
    Code,
    Done,
    ExpireLease,
    Fault,
    KeyValue,
    LeaseDone,
    LongApply,
    Refused,
)
from tests.machine.rig import Rig, batch, codes, delete, entry, grant, put, refusal, renew, revoke


def status(rig: Rig, id: int, clock_ms: int = 0) -> LeaseStatus | None:
    return rig.reader.lease(id, clock_ms)


def test_a_lease_is_granted_once_and_makes_no_revision() -> None:
    rig = Rig()
    assert rig.write(grant(1, 7, 5_000), lease_ms=100) == {1: Answer(1, 1, lease=LeaseDone(7, 5_000))}
    assert codes(rig.write(grant(2, 7, 9_000))) == {2: Code.FAILED_PRECONDITION}
    assert status(rig, 7, 100) == LeaseStatus(7, 5_000, 5_000, 0)
    assert rig.machine.lease_count == 1


def test_an_id_that_the_cluster_chooses_is_unused_and_the_same_on_all_nodes() -> None:
    rig, twin = Rig(), Rig()
    item = batch(*(grant(serial) for serial in range(1, 6)))
    found = rig.apply(entry(1, item, item))[0]
    assert twin.apply(*rig.log) == [found]
    ids = {answer.lease.id for each in found.items for answer in each.answers}  # type: ignore[union-attr]
    assert len(ids) == rig.machine.lease_count == 10
    assert all(0 < id < 1 << 63 for id in ids)


def test_an_id_that_is_taken_or_zero_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "checksum", lambda data: data[-8] & 7 | 1 << 63)
    rig = Rig()
    rig.write(grant(1, 1), grant(2, 2))
    assert rig.write(grant(3))[3].lease == LeaseDone(3, 10_000)


def test_there_are_only_so_many_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LEASES_MAX == 100_000
    monkeypatch.setattr(leases, "LEASES_MAX", 2)
    rig = Rig()
    found = rig.write(grant(1, 1), grant(2, 2), grant(3, 3), revoke(4, 1), grant(5, 3))
    assert codes(found) == {1: None, 2: None, 3: Code.RESOURCE_EXHAUSTED, 4: None, 5: None}


def test_a_renewed_lease_lives_for_its_whole_time_from_then_on() -> None:
    rig = Rig()
    rig.write(grant(1, 7, 5_000), lease_ms=100)
    assert rig.write(renew(2, 7), lease_ms=4_000) == {2: Answer(2, 1, lease=LeaseDone(7, 5_000))}
    assert rig.run(ExpireLease(7, 8_999)) == [
        Refused(Fault(Code.FAILED_PRECONDITION, "lease 7 may end at lease clock 9000 ms, got 8999 ms"))
    ]
    assert rig.machine.expired_leases(8_999) == []
    assert rig.machine.expired_leases(9_000) == rig.machine.expired_leases(9_000) == [7]
    assert rig.run(ExpireLease(7, 9_000)) == [Done()]
    assert rig.machine.expired_leases(1 << 60) == []
    assert rig.run(ExpireLease(7, 1)) == [Done()]


def test_what_is_not_granted_can_neither_be_renewed_nor_revoked_nor_attached_to() -> None:
    rig = Rig()
    found = rig.write(renew(1, 7), revoke(2, 7), put(3, b"a", lease=7), put(4, b"b"))
    assert codes(found) == dict.fromkeys((1, 2, 3), Code.LEASE_NOT_FOUND) | {4: None}
    assert found[3].fault == Fault(
        Code.LEASE_NOT_FOUND,
        "there is no lease 7: it was never granted, was revoked, or has expired; not run",
        "lease",
    )
    assert rig.machine.revision == 2
    assert rig.reader.get(b"a") is None


def test_a_put_attaches_a_key_to_its_lease_and_to_no_other() -> None:
    rig = Rig()
    rig.write(grant(1, 7), grant(2, 8))

    def keys() -> tuple[list[bytes], list[bytes]]:
        counts = [status(rig, id) for id in (7, 8)]
        found = (rig.reader.lease_keys(7, 100), rig.reader.lease_keys(8, 100))
        assert [each and each.key_count for each in counts] == [len(each) for each in found]
        return found

    rig.write(put(1, b"a", lease=7), put(2, b"b", lease=7), put(3, b"c", lease=7))
    assert keys() == ([b"a", b"b", b"c"], [])
    assert rig.reader.get(b"a") == KeyValue(b"a", b"v", 2, 2, 1, 7)
    rig.write(put(1, b"a", lease=8), put(2, b"b", lease=7), put(3, b"b", lease=7))
    assert keys() == ([b"b", b"c"], [b"a"])
    rig.write(put(1, b"b"), delete(2, b"c"))
    assert keys() == ([], [b"a"])
    rig.write(delete(1, b"a", b"z"), put(2, b"a", lease=8), put(3, b"a", lease=7), put(4, b"a", lease=8))
    assert keys() == ([], [b"a"])


def test_a_revoke_deletes_its_keys_in_order_in_one_revision() -> None:
    rig = Rig()
    rig.write(grant(1, 7), grant(2, 8), put(3, b"c", lease=7), put(4, b"a", lease=7), put(5, b"b", lease=8))
    found = rig.write(put(1, b"aa", lease=7), revoke(2, 7), put(3, b"a"), revoke(4, 7))
    assert found == {
        1: Answer(1, 5),
        2: Answer(2, 6, deleted=3),
        3: Answer(3, 7),
        4: Answer(4, 7, found[4].fault),
    }
    assert codes(found)[4] == Code.LEASE_NOT_FOUND
    rows = rig.tables.scan(Table.CHANGES, change_key(6, 0), change_key(7, 0))
    assert [read_change(key, row).key for key, row in rows] == [b"a", b"aa", b"c"]
    assert rig.hot_keys(b"L") == [lease_key(8)]
    assert rig.hot_keys(b"K") == [attachment_key(8, b"b")]
    assert recount(rig.tables) == read_sums(rig.tables)


def test_a_revoke_of_a_lease_with_no_key_makes_no_revision() -> None:
    rig = Rig()
    rig.write(grant(1, 7), put(2, b"a", lease=7), delete(3, b"a"))
    assert rig.write(revoke(4, 7)) == {4: Answer(4, 3)}
    assert rig.machine.lease_count == 0


def test_a_lease_that_expires_takes_its_keys_with_it() -> None:
    rig = Rig()
    rig.write(grant(1, 7, 1_000), put(2, b"a", lease=7), put(3, b"b"))
    assert refusal(rig.run(ExpireLease(7, 999))[0]) == (Code.FAILED_PRECONDITION, "")
    [result] = rig.apply(entry(3, ExpireLease(7, 1_000), batch(put(1, b"c"))))
    assert result.items[0] == Done()
    assert result.revision == rig.machine.revision == 5
    assert [pair.key for pair in rig.reader.range(b"\x00", None).kvs] == [b"b", b"c"]


def test_a_lease_holds_only_so_many_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LEASE_KEYS_MAX <= RANGE_DELETE_KEYS_MAX  # so that one revoke always fits a batch
    monkeypatch.setattr(leases, "LEASE_KEYS_MAX", 2)
    rig = Rig()
    rig.write(grant(1, 7), put(2, b"a", lease=7), put(3, b"b", lease=7))
    found = rig.write(
        put(1, b"c", b"1", lease=7), put(2, b"a", lease=7), delete(3, b"b"), put(4, b"c", lease=7)
    )
    assert codes(found) == {1: Code.RESOURCE_EXHAUSTED, 2: None, 3: None, 4: None}
    assert rig.reader.lease_keys(7, 100) == [b"a", b"c"]


def test_revokes_share_the_allowance_of_range_deletes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "RANGE_DELETE_KEYS_MAX", 3)
    rig = Rig()
    rig.write(grant(1, 7), *(put(n, b"k%d" % n, lease=7) for n in (2, 3)), grant(4, 8))
    rig.write(put(1, b"k0", lease=8), put(2, b"k1", lease=8))
    found = rig.write(delete(1, b"k0", b"k2"), revoke(2, 7), put(3, b"z"))
    assert codes(found) == {1: None, 2: Code.RESOURCE_EXHAUSTED, 3: None}
    assert found[2].fault is not None
    assert found[2].fault.message == (
        "the range deletes and revokes of a batch may meet 3 keys, and this lease holds 2 where 1 were left; "
        "revoke it in a batch of its own"
    )
    assert rig.write(revoke(1, 7))[1].deleted == 2


@pytest.mark.parametrize("by_leader", [False, True])
def test_a_lease_with_many_keys_is_given_up_and_ends_the_same(by_leader: bool) -> None:
    rig, twin = Rig(), Rig()
    commands = [grant(1, 7, 1_000), *(put(n, b"k%d" % n, lease=7) for n in range(2, 6))]
    for each in (rig, twin):
        each.write(*commands)
    ends = entry(2, ExpireLease(7, 1_000) if by_leader else batch(revoke(1, 7)))
    before = rig.tables.dump()
    with pytest.raises(LongApply), rig.tables.write() as tables:
        rig.machine.apply(tables, [ends], keys_at_once_max=3)
    assert rig.tables.dump() == before
    rig.reload()
    assert rig.machine.lease_count == 1
    with rig.tables.write() as tables:
        results = rig.machine.apply(tables, [ends], keys_at_once_max=4)
    assert results == twin.apply(ends)
    assert rig.tables.dump() == twin.tables.dump()


def test_leases_are_there_again_after_a_load() -> None:
    rig = Rig()
    rig.write(grant(1, 7, 5_000), grant(2, 5, 1_000), grant(3, 6, 8_000), put(4, b"a", lease=7), lease_ms=100)
    rig.write(renew(1, 5), lease_ms=9_000)
    rig.reload()
    assert rig.machine.lease_count == 3
    assert rig.machine.expired_leases(9_999) == [7, 6]
    assert rig.machine.expired_leases(10_000) == [7, 6, 5]
    assert rig.write(revoke(1, 7))[1].deleted == 1


def test_the_leases_due_longest_come_first_and_not_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "DUE_AT_ONCE_MAX", 3)
    rig = Rig()
    rig.write(*(grant(id, id, 1_000 * id) for id in range(5, 0, -1)))
    assert rig.machine.expired_leases(2_000) == [1, 2]
    assert rig.machine.expired_leases(9_000) == [1, 2, 3]
    rig.write(revoke(1, 2), renew(2, 1), lease_ms=500)
    # One that was revoked and granted anew is one lease.
    rig.write(grant(3, 2, 4_500))
    assert rig.machine.expired_leases(9_000) == [1, 3, 4]
    rig.write(*(revoke(id, id) for id in (1, 3, 4)))
    assert rig.machine.expired_leases(9_000) == rig.machine.expired_leases(9_000) == [2, 5]


def test_answers_of_leases_are_repeated_from_the_session() -> None:
    rig = Rig()
    sid = rig.register()
    commands = [grant(1), grant(2, 7), put(3, b"a", lease=7), renew(4, 7), revoke(5, 7), revoke(6, 9)]
    found = rig.write(*commands, session=sid)
    assert codes(found) == dict.fromkeys(range(1, 6)) | {6: Code.LEASE_NOT_FOUND}
    rig.reload()
    assert rig.write(*commands, session=sid) == found
    assert rig.machine.lease_count == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (grant(1, 7, 1_000), grant(1, 7, 1_001)),
        (revoke(1, 5), revoke(1, 6)),
        (renew(1, 5), grant(1, 5)),
    ],
    ids=["granted", "revoked", "renewed"],
)
def test_the_digest_covers_leases(one: object, other: object, monkeypatch: pytest.MonkeyPatch) -> None:
    # All answers look the same to the digest: only what was done to the leases is left to tell them apart.
    monkeypatch.setattr(machine_module, "_encoder", SimpleNamespace(encode=lambda _: b""))
    digests = []
    for command in (one, other, other):
        rig = Rig()
        rig.write(grant(1, 6))
        if command.WhichOneof("op") != "lease_grant":  # type: ignore[attr-defined]
            rig.write(grant(1, 5))
        rig.write(command)  # type: ignore[arg-type]
        digests.append(rig.machine.digest)
    assert digests[0] != digests[1] == digests[2]


def test_a_lease_whose_rows_do_not_agree_is_damage() -> None:
    rig = Rig()
    rig.write(grant(1, 7), put(2, b"a", lease=7), put(3, b"b", lease=7))
    row = rig.tables.get(Table.HOT, attachment_key(7, b"a"))
    assert row is not None
    rig.tables.delete(Table.HOT, attachment_key(7, b"a"))
    with pytest.raises(DataLossError, match="lease 7 holds 2 keys, and 1 were found"):
        rig.write(revoke(1, 7))
    rig.tables.put(Table.HOT, attachment_key(7, b"a"), row)
    rig.reload()
    rig.tables.delete(Table.INDEX, b"b")
    with pytest.raises(DataLossError, match=f"{name_key(b'b')} is attached to lease 7"):
        rig.write(revoke(1, 7))
    rig.tables.put(Table.HOT, lease_key(7), b"damaged.")
    with pytest.raises(DataLossError, match="of table HOT is damaged"):
        Machine(rig.tables)
