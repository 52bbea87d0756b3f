"""The records of members: they follow the configuration, and what changes of it say."""

from __future__ import annotations

import msgspec

from raftstate.core.conf_change import LEAVE_JOINT, encode_conf_change
from raftstate.core.types import ConfChangeV2, ConfState
from raftstate.machine.layout import META_KEY, meta_row, read_meta
from raftstate.machine.tables import Table
from raftstate.machine.types import Member, MemberChange
from tests.machine.rig import MEMBERS, Rig

THREE = ConfState(voters=(1, 2, 3))
N4 = Member(4, 1, "n4", "127.0.0.1:7104", "127.0.0.1:7004", promote=True)


def change(rig: Rig, state: ConfState, *records: Member, context: bytes | None = None) -> bytes:
    """Apply a membership entry that leads to `state`; return the digest after it, in hexadecimal."""
    raw = msgspec.msgpack.encode(MemberChange(list(records))) if context is None else context
    made = encode_conf_change(ConfChangeV2(context=raw))
    entry = msgspec.structs.replace(made, index=rig.machine.applied_index + 1, term=1)
    with rig.tables.write() as tables:
        [result] = rig.machine.apply(tables, [entry], {entry.index: state})
    return b"%016x" % result.digest


def names(rig: Rig) -> list[str]:
    return [member.name + " learner" * member.learner for member in rig.machine.members]


def test_a_record_comes_with_its_node_and_goes_with_it() -> None:
    rig = Rig()
    change(rig, ConfState(voters=(1, 2, 3), learners=(4,)), N4)
    assert names(rig) == ["n1", "n2", "n3", "n4 learner"]
    change(rig, ConfState(voters=(1, 2, 3, 4)))
    assert names(rig) == ["n1", "n2", "n3", "n4"]
    change(rig, ConfState(voters=(1, 2, 4), voters_outgoing=(1, 2, 3, 4)))
    assert names(rig) == ["n1", "n2", "n3", "n4"]  # in one half still
    left = msgspec.structs.replace(LEAVE_JOINT, index=rig.machine.applied_index + 1, term=1)
    with rig.tables.write() as tables:
        rig.machine.apply(tables, [left], {left.index: ConfState(voters=(1, 2, 4))})
    assert names(rig) == ["n1", "n2", "n4"]
    rig.reload()
    assert names(rig) == ["n1", "n2", "n4"]


def test_an_id_that_was_given_is_remembered_after_its_node_has_left() -> None:
    rig = Rig()
    assert rig.machine.last_member_id == 3
    change(rig, ConfState(voters=(1, 2, 3), learners=(4,)), N4)
    change(rig, THREE)
    rig.reload()
    assert (names(rig), rig.machine.last_member_id) == (["n1", "n2", "n3"], 4)


def test_a_record_replaces_the_one_with_its_id_and_one_of_a_stranger_is_passed_over() -> None:
    rig = Rig()
    moved = msgspec.structs.replace(MEMBERS[1], client_address="127.0.0.1:9999", incarnation=2, learner=True)
    change(rig, THREE, moved, N4)
    assert rig.machine.members == [MEMBERS[0], msgspec.structs.replace(moved, learner=False), MEMBERS[2]]


def test_a_voter_that_is_to_become_a_learner_counts_as_one() -> None:
    rig = Rig()
    change(rig, ConfState(voters=(1, 2), voters_outgoing=(1, 2, 3), learners_next=(3,)))
    assert names(rig) == ["n1", "n2", "n3 learner"]


def test_garbage_beside_a_change_changes_no_record() -> None:
    rig = Rig()
    change(rig, THREE, context=b"\xc1garbage")
    assert rig.machine.members == MEMBERS


def test_the_digest_covers_the_records() -> None:
    moved = msgspec.structs.replace(MEMBERS[0], client_address="127.0.0.1:9999")
    assert change(Rig(), THREE, MEMBERS[0]) == change(Rig(), THREE) != change(Rig(), THREE, moved)


def test_before_machine_version_3_records_and_digest_are_as_they_were() -> None:
    rigs = [Rig(), Rig()]
    for rig in rigs:
        meta = msgspec.structs.replace(read_meta(rig.tables), machine_version=2)
        rig.tables.put(Table.HOT, META_KEY, meta_row(meta))
        rig.reload()
    assert change(rigs[0], THREE, N4) == change(rigs[1], THREE)
    assert rigs[0].machine.members == MEMBERS
