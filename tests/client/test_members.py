"""The member calls of the client, and how it follows a cluster whose nodes are replaced one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

import raftstate
from raftstate.client import MemberAdded, MemberStatus
from raftstate.client import leader as leader_module
from raftstate.pb.v1 import cluster_pb2, common_pb2
from tests.client.fake_cluster import FakeCluster

AsyncClient = raftstate.AsyncClient
CALLS: list[Callable[[AsyncClient], Awaitable[Any]]] = [
    lambda store: store.add_member("n9", peer_address="h:2", client_address="h:1"),
    lambda store: store.promote_member("n2"),
    lambda store: store.remove_members(["n2"]),
    lambda store: store.replace_member("n2"),
]


async def test_members_are_listed_by_the_leader(cluster: FakeCluster, store: AsyncClient) -> None:
    cluster.move_leader(1)
    members = await store.members()
    assert [(member.id, member.name) for member in members] == [(1, "n1"), (2, "n2"), (3, "n3")]
    assert (len(members), members.leader_id, members.commit_index) == (3, 1, 9)
    assert [node for node, _ in cluster.member_requests] == [1]


async def test_a_member_is_added_with_what_its_settings_need(
    cluster: FakeCluster, store: AsyncClient
) -> None:
    added = await store.add_member("n9", peer_address="h:2", client_address="h:1", learner=True)
    assert added == MemberAdded(
        member=MemberStatus(9, "n9", "h:2", "h:1", 1, learner=True, promote=False),
        members=added.members,
        cluster_id=cluster.cluster_id,
        heartbeat_ms=15,
        election_timeout_ms=400,
        history_retention_s=60,
    )
    assert [member.name for member in added.members] == ["n1", "n2", "n3", "n9"]


async def test_changes_say_what_was_asked(cluster: FakeCluster, store: AsyncClient) -> None:
    await store.promote_member("n2")
    left = await store.remove_members(name for name in ("n2", "n3"))
    await store.remove_members("n2")
    replaced = await store.replace_member("n1", peer_address="h:9")
    assert [request for _, request in cluster.member_requests] == [
        cluster_pb2.MemberPromoteRequest(name="n2"),
        cluster_pb2.MemberRemoveRequest(names=["n2", "n3"]),
        cluster_pb2.MemberRemoveRequest(names=["n2"]),
        cluster_pb2.MemberReplaceRequest(name="n1", peer_address="h:9"),
    ]
    assert [member.name for member in left] == ["n1", "n2", "n3"]
    assert replaced.member.incarnation == 2


@pytest.mark.parametrize("call", CALLS)
async def test_a_change_is_sent_once_and_without_an_answer_its_outcome_is_unknown(
    cluster: FakeCluster, store: AsyncClient, call: Callable[[AsyncClient], Awaitable[Any]]
) -> None:
    cluster.member_faults.append((grpc.StatusCode.UNAVAILABLE, None))
    with pytest.raises(raftstate.IndefiniteError):
        await call(store)
    refused = common_pb2.Error(
        code=common_pb2.ERROR_CODE_FAILED_PRECONDITION,
        outcome=common_pb2.OUTCOME_NOT_APPLIED,
        message="another membership change is under way",
    )
    cluster.member_faults.append((grpc.StatusCode.FAILED_PRECONDITION, refused))
    with pytest.raises(raftstate.FailedPreconditionError, match="another membership change"):
        await call(store)
    assert len(cluster.member_requests) == 2


async def test_a_list_is_asked_for_again_when_the_answer_was_lost(
    cluster: FakeCluster, store: AsyncClient
) -> None:
    cluster.member_faults.append((grpc.StatusCode.UNAVAILABLE, None))
    assert len(await store.members()) == 3
    assert len(cluster.member_requests) == 2


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("add_member", 4, {"peer_address": "h:1", "client_address": "h:2"}), "name"),
        (("add_member", "n4", {"peer_address": None, "client_address": "h:2"}), "peer_address"),
        (("add_member", "n4", {"peer_address": "h:1", "client_address": "h:2", "learner": 1}), "learner"),
        (("promote_member", None, {}), "name"),
        (("remove_members", [3], {}), "names"),
        (("replace_member", "n4", {"client_address": 3}), "client_address"),
    ],
)
async def test_what_is_no_name_or_address_is_not_sent(
    cluster: FakeCluster, store: AsyncClient, arguments: tuple[str, Any, dict[str, Any]], field: str
) -> None:
    name, first, rest = arguments
    with pytest.raises(raftstate.InvalidArgumentError) as caught:
        await getattr(store, name)(first, **rest)
    assert caught.value.field == field
    assert cluster.member_requests == []


async def test_a_client_goes_on_when_every_node_that_it_was_given_was_replaced(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader_module, "REFRESH_S", 0.0)
    async with raftstate.connect_async(cluster.nodes[0].address, timeout=10) as store:
        await store.put("k", b"1")  # now it knows the others
        cluster.move_leader(2)
        await cluster.nodes[0].stop()
        await store.put("k", b"2")
        found = await store.get("k", consistency="local")
        assert found is not None
        assert found.value == b"2"
        assert len(await store.members()) == 3


async def test_members_that_have_left_are_not_asked_any_more(
    cluster: FakeCluster, store: AsyncClient
) -> None:
    await store.put("k", b"1")
    links = store._links
    assert links is not None
    tracker = links.tracker
    assert tracker.endpoints == store.endpoints
    tracker._given = tracker._given[:1]
    await tracker.ask(cluster.nodes[0].address, 5)
    await tracker.ask(cluster.nodes[1].address, 5)
    assert tracker.endpoints == (cluster.nodes[0].address, cluster.nodes[1].address)
    cluster.present = {0, 2}
    await tracker.ask(cluster.nodes[0].address, 5)
    assert tracker.endpoints == (cluster.nodes[0].address,)
    assert tracker._learned == (cluster.nodes[2].address,)


async def test_the_face_for_threads_has_the_member_calls(cluster: FakeCluster) -> None:
    def use() -> None:
        with raftstate.connect(cluster.url) as store:
            assert len(store.members()) == 3
            added = store.add_member("n9", peer_address="h:2", client_address="h:1")
            assert added.member.name == "n9"
            assert len(store.promote_member("n2")) == len(store.remove_members(["n2"])) == 3
            assert store.replace_member("n1").member.incarnation == 2

    await asyncio.to_thread(use)
