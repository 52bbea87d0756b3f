"""The member calls over a real server: what they ask of the node, and how its answers and refusals arrive."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from raftstate.errors import (
    FailedPreconditionError,
    IndefiniteError,
    InvalidArgumentError,
    NoLeaderError,
    ResourceExhaustedError,
    UnimplementedError,
)
from raftstate.machine.types import Member
from raftstate.node.member_changes import (
    AddMember,
    MembersChanged,
    PromoteMember,
    RemoveMembers,
    ReplaceMember,
)
from raftstate.pb.v1 import cluster_pb2, common_pb2
from tests.rpc.conftest import Served
from tests.rpc.errors import refusal
from tests.rpc.fake_node import CLUSTER_ID, MEMBERS, NODE_ID, TERM

NEW = Member(3, 1, "n3", "127.0.0.1:8003", "127.0.0.1:7003", learner=True, promote=True)


def header(applied_index: int) -> common_pb2.ResponseHeader:
    return common_pb2.ResponseHeader(
        cluster_id=CLUSTER_ID, node_id=NODE_ID, revision=1, applied_index=applied_index, term=TERM
    )


def message(member: Member) -> cluster_pb2.Member:
    return cluster_pb2.Member(
        id=member.id,
        incarnation=member.incarnation,
        name=member.name,
        peer_address=member.peer_address,
        client_address=member.client_address,
        learner=member.learner,
        promote=member.promote,
    )


TIMES = cluster_pb2.ClusterTimes(heartbeat_ms=15, election_timeout_ms=400, history_retention_s=3_600)


async def test_members_are_listed_with_what_the_leader_knows_of_them(served: Served) -> None:
    assert await served.cluster.MemberList(cluster_pb2.MemberListRequest()) == (
        cluster_pb2.MemberListResponse(
            header=header(0),
            members=map(message, MEMBERS),
            leader_id=NODE_ID,
            commit_index=20,
            progress=[
                cluster_pb2.PeerProgress(
                    id=1,
                    match_index=20,
                    next_index=22,
                    state="replicate",
                    recently_active=True,
                    lag_entries=1,
                    lag_ms=9,
                )
            ],
            times=TIMES,
        )
    )


async def test_a_member_that_is_added_is_answered_with_all_that_its_node_needs(served: Served) -> None:
    served.node.changed = MembersChanged(7, [*MEMBERS, NEW], [3], already=True)
    request = cluster_pb2.MemberAddRequest(
        name="n3", peer_address=NEW.peer_address, client_address=NEW.client_address
    )
    assert await served.cluster.MemberAdd(request, timeout=3) == cluster_pb2.MemberAddResponse(
        header=header(7),
        member=message(NEW),
        members=map(message, (*MEMBERS, NEW)),
        times=TIMES,
        already=True,
    )
    assert served.node.member_requests == [AddMember("n3", NEW.peer_address, NEW.client_address)]
    assert served.node.timeouts_s[0] <= 3
    request.learner = True
    await served.cluster.MemberAdd(request)
    asked = served.node.member_requests[1]
    assert isinstance(asked, AddMember)
    assert not asked.promote


async def test_promotion_removal_and_replacement_say_what_was_asked(served: Served) -> None:
    cluster = served.cluster
    promoted = await cluster.MemberPromote(cluster_pb2.MemberPromoteRequest(name="n1"))
    assert promoted == cluster_pb2.MemberPromoteResponse(header=header(7), members=map(message, MEMBERS))
    removed = await cluster.MemberRemove(cluster_pb2.MemberRemoveRequest(names=["n1", "n2"]))
    assert removed == cluster_pb2.MemberRemoveResponse(header=header(7), members=map(message, MEMBERS))
    replaced = await cluster.MemberReplace(
        cluster_pb2.MemberReplaceRequest(name="n1", client_address="127.0.0.1:7009")
    )
    assert replaced == cluster_pb2.MemberReplaceResponse(
        header=header(7), member=message(MEMBERS[0]), members=map(message, MEMBERS), times=TIMES
    )
    assert served.node.member_requests == [
        PromoteMember("n1"),
        RemoveMembers(["n1", "n2"]),
        ReplaceMember("n1", "", "127.0.0.1:7009"),
    ]


@pytest.mark.parametrize(
    ("call", "request_", "field", "says"),
    [
        ("MemberAdd", cluster_pb2.MemberAddRequest(name="a b"), "name", "got 'a b'"),
        ("MemberAdd", cluster_pb2.MemberAddRequest(name="n9"), "peer_address", "'' is not host:port"),
        (
            "MemberAdd",
            cluster_pb2.MemberAddRequest(name="n9", peer_address="h:1", client_address="h"),
            "client_address",
            "'h' is not host:port",
        ),
        ("MemberRemove", cluster_pb2.MemberRemoveRequest(), "names", "at least one member"),
        ("MemberRemove", cluster_pb2.MemberRemoveRequest(names=["a", "a"]), "names", "each once"),
        (
            "MemberReplace",
            cluster_pb2.MemberReplaceRequest(name="n1", peer_address="x"),
            "peer_address",
            "'x' is not host:port",
        ),
    ],
)
async def test_what_is_malformed_is_refused_before_the_node_is_asked(
    served: Served, call: str, request_: Any, field: str, says: str
) -> None:
    told = await refusal(getattr(served.cluster, call)(request_))
    assert (told.status, told.error.code, told.error.field, told.error.outcome) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        common_pb2.ERROR_CODE_INVALID,
        field,
        common_pb2.OUTCOME_NOT_APPLIED,
    )
    assert says in told.text
    assert served.node.member_requests == []


@pytest.mark.parametrize(
    ("error", "status", "outcome"),
    [
        (
            FailedPreconditionError("another change"),
            grpc.StatusCode.FAILED_PRECONDITION,
            common_pb2.OUTCOME_NOT_APPLIED,
        ),
        (
            InvalidArgumentError("no member", field="name"),
            grpc.StatusCode.INVALID_ARGUMENT,
            common_pb2.OUTCOME_NOT_APPLIED,
        ),
        (
            ResourceExhaustedError("7 voters"),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            common_pb2.OUTCOME_NOT_APPLIED,
        ),
        (UnimplementedError("version 2"), grpc.StatusCode.UNIMPLEMENTED, common_pb2.OUTCOME_NOT_APPLIED),
        (NoLeaderError("none"), grpc.StatusCode.UNAVAILABLE, common_pb2.OUTCOME_NOT_APPLIED),
        (IndefiniteError("lost"), grpc.StatusCode.UNKNOWN, common_pb2.OUTCOME_UNKNOWN),
        (RuntimeError("a bug"), grpc.StatusCode.INTERNAL, common_pb2.OUTCOME_UNKNOWN),
    ],
)
async def test_refusals_and_unknown_outcomes_of_a_change_arrive_as_those_of_writes(
    served: Served, error: Exception, status: grpc.StatusCode, outcome: int
) -> None:
    served.node.members_error = error
    told = await refusal(served.cluster.MemberRemove(cluster_pb2.MemberRemoveRequest(names=["n1"])))
    assert (told.status, told.error.outcome) == (status, outcome)
