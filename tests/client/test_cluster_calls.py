from __future__ import annotations

import asyncio

import pytest

import raftstate
from tests.client.fake_cluster import FakeCluster


async def test_status_lists_every_node_of_the_url(cluster: FakeCluster, store: raftstate.AsyncClient) -> None:
    nodes = await store.status()
    assert [(node.endpoint, node.name, node.role, node.leader_id, node.term) for node in nodes] == [
        (cluster.nodes[0].address, "n1", "leader", 1, 1),
        (cluster.nodes[1].address, "n2", "follower", 1, 1),
        (cluster.nodes[2].address, "n3", "follower", 1, 1),
    ]
    assert [member.name for member in nodes[0].members] == ["n1", "n2", "n3"]


async def test_status_finds_the_nodes_that_the_url_leaves_out_and_shows_those_that_are_down(
    cluster: FakeCluster,
) -> None:
    await cluster.nodes[2].stop()
    async with raftstate.connect_async(cluster.nodes[1].address) as store:
        nodes = await store.status()
    assert {node.endpoint: (node.name, node.error) for node in nodes} == {
        cluster.nodes[1].address: ("n2", ""),
        cluster.nodes[0].address: ("n1", ""),
        cluster.nodes[2].address: ("", "Connection refused"),
    }


async def test_status_of_one_endpoint_asks_that_one_only(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    nodes = await store.status(cluster.nodes[2].address)
    assert [node.name for node in nodes] == ["n3"]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("127.0.0.1:1", r"the node did not answer within 2 s; tried 127\.0\.0\.1:1 \(.+\)"),
        ("127.0.0.1:1,127.0.0.1:2", "no node answered within 2 s; tried .*, 127"),
    ],
)
async def test_status_of_nobody_is_an_error(url: str, says: str) -> None:
    async with raftstate.connect_async(url) as store:
        with pytest.raises(raftstate.NoLeaderError, match=says):
            await store.status()


async def test_status_of_one_dead_node_is_told_of_that_node(store: raftstate.AsyncClient) -> None:
    with pytest.raises(raftstate.NoLeaderError, match=r"the node did not answer .* 127\.0\.0\.1:1 \("):
        await store.status("127.0.0.1:1")


async def test_a_port_that_speaks_something_else_is_suspected() -> None:
    async def answer_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer_http, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, raftstate.connect_async(f"127.0.0.1:{port}") as store:
        with pytest.raises(raftstate.NoLeaderError, match="; this may not be a client port"):
            await store.status()


@pytest.mark.parametrize("target", [2, "n2"])
async def test_leadership_is_handed_to_a_member_by_id_or_name(
    cluster: FakeCluster, store: raftstate.AsyncClient, target: int | str
) -> None:
    assert await store.transfer_leader(target) == 2
    assert cluster.leader == 1
    await store.put("k", b"1")
    assert cluster.batch_nodes == [1]


async def test_a_transfer_to_a_stranger_names_the_members(store: raftstate.AsyncClient) -> None:
    with pytest.raises(
        raftstate.InvalidArgumentError, match="no member is named 'n9'; members are n1, n2, n3"
    ):
        await store.transfer_leader("n9")
