"""What a request comes down to, by what the leader knows: the change, or why there is none."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from raftstate.core.types import ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState
from raftstate.machine.types import Code, Fault, Member, MemberChange
from raftstate.node.member_changes import (
    AddMember,
    MemberRequest,
    Plan,
    PromoteMember,
    RemoveMembers,
    ReplaceMember,
    UpdateMember,
    View,
    plan,
)

ADD, LEARN = ConfChangeType.ADD_NODE, ConfChangeType.ADD_LEARNER_NODE
REMOVE, UPDATE = ConfChangeType.REMOVE_NODE, ConfChangeType.UPDATE_NODE


def member(id: int, *, learner: bool = False, promote: bool = False, incarnation: int = 1) -> Member:
    return Member(id, incarnation, f"n{id}", f"h{id}:2", f"h{id}:1", learner=learner, promote=promote)


def view(*members: Member, silent: tuple[int, ...] = (), **changes: object) -> View:
    """A view of members led by the first, all of them healthy but some."""
    ids = [each.id for each in members]
    seen = View(
        own_id=ids[0],
        conf_state=ConfState(
            voters=tuple(each.id for each in members if not each.learner),
            learners=tuple(each.id for each in members if each.learner),
        ),
        members=members,
        last_member_id=max(ids),
        machine_version=3,
        commit_index=5_000,
        match=dict.fromkeys(ids, 5_000),
        healthy=frozenset(ids) - set(silent),
        replicating=frozenset(ids),
    )
    return dataclasses.replace(seen, **changes)  # type: ignore[arg-type]


THREE = (member(1), member(2), member(3))


def change_of(planned: Plan | Fault) -> tuple[tuple[ConfChangeSingle, ...], list[Member]]:
    """The steps of a planned change and the records that it brings."""
    assert isinstance(planned, Plan), planned
    assert isinstance(planned.change, ConfChangeV2)
    records = msgspec.msgpack.decode(planned.change.context, type=MemberChange).records
    return planned.change.changes, records


def refused(seen: View, request: MemberRequest) -> tuple[Code, str, str]:
    fault = plan(seen, request)
    assert isinstance(fault, Fault), fault
    return Code(fault.code), fault.field, fault.message


def test_a_new_member_gets_the_next_id_that_nobody_ever_had() -> None:
    seen = view(*THREE, last_member_id=9)
    new = Member(10, 1, "x", "h:2", "h:1", learner=True, promote=True)
    assert change_of(plan(seen, AddMember("x", "h:2", "h:1"))) == ((ConfChangeSingle(LEARN, 10),), [new])
    (_, (stays,)) = change_of(plan(seen, AddMember("x", "h:2", "h:1", promote=False)))
    assert not stays.promote


def test_an_add_whose_answer_was_lost_may_be_asked_again_until_the_node_has_taken_part() -> None:
    new = member(4, learner=True, promote=True)
    again = AddMember("n4", "h4:2", "h4:1")
    assert plan(view(*THREE, new, match={4: 0}), again) == Plan((4,))
    code, field, text = refused(view(*THREE, new, match={4: 1}), again)
    assert (code, field) == (Code.FAILED_PRECONDITION, "name")
    assert "has taken part" in text
    assert "raftstate member replace n4" in text
    assert refused(view(*THREE, member(4), match={4: 0}), again)[0] is Code.FAILED_PRECONDITION
    renewed = member(4, learner=True, promote=True, incarnation=2)
    assert refused(view(*THREE, renewed, match={4: 0}), again)[0] is Code.FAILED_PRECONDITION


@pytest.mark.parametrize(
    ("request_", "code", "field", "says"),
    [
        (AddMember("n2", "h:2", "h:1"), Code.FAILED_PRECONDITION, "name", "in use by node 2 at h2:2"),
        (AddMember("x", "h2:2", "h:1"), Code.FAILED_PRECONDITION, "peer_address", "in use by n2 (node 2)"),
        (AddMember("x", "h:2", "h3:1"), Code.FAILED_PRECONDITION, "client_address", "in use by n3"),
        (AddMember("x", "h2:1", "h:1"), Code.FAILED_PRECONDITION, "peer_address", "in use by n2"),
        (AddMember("x", "h:1", "h:1"), Code.INVALID, "peer_address", "give two ports"),
        (AddMember("-x", "h:2", "h:1"), Code.INVALID, "name", "beginning with a letter or digit"),
        (AddMember("x", "h", "h:1"), Code.INVALID, "peer_address", "'h' is not host:port"),
        (PromoteMember("x"), Code.INVALID, "name", "no member is named 'x'; members are n1, n2, n3"),
        (PromoteMember("n2"), Code.FAILED_PRECONDITION, "name", "n2 is no learner"),
        (RemoveMembers(["n1", "x"]), Code.INVALID, "name", "no member is named 'x'"),
        (RemoveMembers(["n1", "n2", "n3"]), Code.FAILED_PRECONDITION, "", "no voter would be left"),
        (RemoveMembers([]), Code.INVALID, "names", "at least one member"),
        (ReplaceMember("x"), Code.INVALID, "name", "no member is named 'x'"),
        (ReplaceMember("n1"), Code.FAILED_PRECONDITION, "", "hand leadership over first"),
        (ReplaceMember("n2", "h3:2"), Code.FAILED_PRECONDITION, "peer_address", "in use by n3"),
        (UpdateMember(9, "h:2", "h:1"), Code.INVALID, "id", "node 9 is no member"),
        (UpdateMember(2, "h3:2", "h:1"), Code.FAILED_PRECONDITION, "peer_address", "in use by n3"),
    ],
)
def test_refusals_name_what_is_wrong(request_: MemberRequest, code: Code, field: str, says: str) -> None:
    found = refused(view(*THREE), request_)
    assert found[:2] == (code, field)
    assert says in found[2]


def test_there_are_at_most_seven_voters_and_seven_learners() -> None:
    voters = tuple(member(id) for id in range(1, 7))
    coming = member(7, learner=True, promote=True)
    code, _, text = refused(view(*voters, coming), AddMember("x", "h:2", "h:1"))
    assert (code, "7 members that vote or are about to, the limit is 7" in text) == (
        Code.RESOURCE_EXHAUSTED,
        True,
    )
    assert isinstance(plan(view(*voters, coming), AddMember("x", "h:2", "h:1", promote=False)), Plan)
    learners = tuple(member(id, learner=True) for id in range(2, 9))
    code, _, text = refused(view(member(1), *learners), AddMember("x", "h:2", "h:1", promote=False))
    assert (code, "7 learners, the limit is 7" in text) == (Code.RESOURCE_EXHAUSTED, True)
    seven = (*voters, member(7), member(8, learner=True))
    assert refused(view(*seven), PromoteMember("n8"))[0] is Code.RESOURCE_EXHAUSTED


@pytest.mark.case(21)
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"match": {4: 3_999}}, "1001 entries behind (its log is known up to 3999 of 5000)"),
        ({"match": {4: 0}, "commit_index": 10}, "10 entries behind"),
        ({"replicating": frozenset({1, 2, 3})}, "0 entries behind"),
        ({"healthy": frozenset({1, 2, 3})}, "does not answer the leader"),
    ],
)
def test_a_learner_is_promoted_only_when_it_answers_and_has_caught_up(
    changes: dict[str, object], says: str
) -> None:
    learner = member(4, learner=True, promote=True)
    code, _, text = refused(view(*THREE, learner, **changes), PromoteMember("n4"))
    assert code is Code.FAILED_PRECONDITION
    assert says in text
    seen = view(*THREE, learner, match={4: 4_000})
    assert change_of(plan(seen, PromoteMember("n4"))) == ((ConfChangeSingle(ADD, 4),), [member(4)])


@pytest.mark.case(22)
def test_who_is_removed_must_leave_a_quorum_that_answers() -> None:
    five = tuple(member(id) for id in range(1, 6))
    assert change_of(plan(view(*five, silent=(4, 5)), RemoveMembers(["n4", "n5"]))) == (
        (ConfChangeSingle(REMOVE, 4), ConfChangeSingle(REMOVE, 5)),
        [],
    )
    code, _, text = refused(view(*five, silent=(4, 5)), RemoveMembers(["n2", "n3"]))
    assert code is Code.FAILED_PRECONDITION
    assert "3 voters, of which 2 must answer, and 1 do (not n4, n5)" in text
    assert isinstance(plan(view(*five, silent=(4,)), RemoveMembers(["n2"])), Plan)
    # A learner's vote was never counted.
    learner = member(6, learner=True)
    assert isinstance(plan(view(*five, learner, silent=(4, 5)), RemoveMembers(["n6"])), Plan)


@pytest.mark.case(19)
def test_a_replaced_voter_loses_its_vote_and_gets_it_back_later() -> None:
    steps, (record,) = change_of(plan(view(*THREE, silent=(3,)), ReplaceMember("n3", client_address="x:1")))
    assert steps == (ConfChangeSingle(LEARN, 3),)
    assert record == Member(3, 2, "n3", "h3:2", "x:1", learner=True, promote=True)
    (_, (by_hand,)) = change_of(plan(view(*THREE, member(4, learner=True)), ReplaceMember("n4")))
    assert (by_hand.incarnation, by_hand.promote) == (2, False)
    _, _, text = refused(view(*THREE, silent=(2, 3)), ReplaceMember("n3"))
    assert "without n3 1 of 3 voters answer, and 2 must" in text
    renewed = member(3, learner=True, promote=True, incarnation=2)
    assert plan(view(member(1), member(2), renewed), ReplaceMember("n3", incarnation=1)) == Plan((3,))


def test_new_addresses_are_recorded_and_the_same_ones_are_no_change() -> None:
    steps, (record,) = change_of(plan(view(*THREE), UpdateMember(2, "x:2", "x:1")))
    assert (steps, record) == ((ConfChangeSingle(UPDATE, 2),), Member(2, 1, "n2", "x:2", "x:1"))
    assert plan(view(*THREE), UpdateMember(2, "h2:2", "h2:1")) == Plan((2,))


def test_nothing_changes_below_the_machine_version_that_knows_how() -> None:
    assert refused(view(*THREE, machine_version=2), RemoveMembers(["n1"]))[0] is Code.UNIMPLEMENTED
