"""The HTTP port of a real node, in this process: when there is one, and what it says when all is not well."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from raftstate.config import ClusterConfig, MemberConfig, NodeSettings
from raftstate.errors import ConfigError
from raftstate.ops.metrics import METRICS
from raftstate.pb.v1 import kv_pb2
from raftstate.rpc.methods import call, methods_of
from raftstate.server import Node, Stores


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def settings_in(
    folder: Path, listen_metrics: str | None, client_port: int = 7001, members: int = 1
) -> NodeSettings:
    everyone = tuple(
        MemberConfig(
            id=id,
            name=f"n{id}",
            peer_address=f"127.0.0.1:{id}",
            client_address=f"127.0.0.1:{client_port + id - 1}",
        )
        for id in range(1, members + 1)
    )
    return NodeSettings(
        name="n1",
        cluster=ClusterConfig(cluster_id=5, members=everyone),
        data_dir=folder / "data",
        bootstrap=True,
        listen_metrics=listen_metrics,
        log_map_bytes=16 << 20,
        state_map_bytes=64 << 20,
    )


@asynccontextmanager
async def running(settings: NodeSettings, *, default_metrics: bool = True) -> AsyncIterator[Node]:
    """Run a node without ports but the one for metrics."""
    stores = Stores(settings)
    try:
        node = Node(
            settings,
            stores,
            lambda: None,
            listen_clients=False,
            listen_peers=False,
            default_metrics=default_metrics,
        )
        try:
            await node.start()
            yield node
        finally:
            await node.stop()
    finally:
        stores.close()


async def get(address: str, path: str) -> tuple[int, str]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\n\r\n".encode())
    head, _, body = (await asyncio.wait_for(reader.read(), 10)).decode().partition("\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return int(head.split()[1]), body


async def put(node: Node, key: bytes) -> None:
    method = methods_of(node.service)["KV/Put"]
    await call(method, kv_pb2.PutRequest(key=key, value=b"v"), 5.0)  # type: ignore[arg-type]


async def test_a_scrape_shows_every_metric_of_the_table(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path, "127.0.0.1:0")) as node:
        for number in range(3):
            await put(node, b"k%d" % number)
        status, text = await get(node.service.metrics_address, "/metrics")
        assert status == 200
        typed = set(re.findall(r"^# TYPE (\S+) \w+$", text, re.MULTILINE))
        assert {metric.name for metric in METRICS} <= typed
        for line in (
            "raftstate_server_has_leader 1.0",
            "raftstate_server_is_leader 1.0",
            "raftstate_debugging_mvcc_keys_total 3.0",
            "raftstate_server_commands_applied_total 3.0",
            "raftstate_server_commit_duration_seconds_count 3.0",
            'raftstate_server_members{role="voter"} 1.0',
            'raftstate_server_proposals_failed_total{outcome="unknown"} 0.0',
        ):
            assert f"\n{line}\n" in text
        assert "process_resident_memory_bytes" in text


async def test_alarms_are_shown_by_kind_and_make_the_node_unready(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path, "127.0.0.1:0")) as node:
        address = node.service.metrics_address
        await put(node, b"k")  # it leads once this is answered
        assert await get(address, "/readyz") == (200, "ok\n")
        node.driver.fitness.limit("state", "the state is damaged", may_read=False)
        _, text = await get(address, "/metrics")
        assert '\nraftstate_server_alarms{kind="state"} 1.0\n' in text
        assert "\nraftstate_server_may_read 0.0\n" in text
        status, told = await get(address, "/readyz")
        assert (status, told.splitlines()) == (
            503,
            [
                "[+]running ok",
                "[+]leader ok",
                "[+]applied ok",
                "[-]readable failed: the state is damaged",
                "readyz check failed",
            ],
        )
        assert await get(address, "/livez") == (200, "ok\n")
        node.driver.fitness.lift("state")
        assert (await get(address, "/readyz"))[0] == 200


async def test_a_node_without_a_leader_lives_and_is_not_ready(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path, "127.0.0.1:0", members=3)) as node:
        address = node.service.metrics_address
        status, told = await get(address, "/readyz")
        assert (status, "[-]leader failed: node 1 " in told) == (503, True)
        assert (await get(address, "/livez?verbose"))[1].splitlines() == [
            "[+]driver ok",
            "[+]ticks ok",
            "livez check passed",
        ]


async def test_a_node_that_halted_does_not_live(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path, "127.0.0.1:0")) as node:
        node.driver._halt(RuntimeError("the disk failed"))
        status, told = await get(node.service.metrics_address, "/livez")
        assert (status, told.splitlines()[0]) == (
            503,
            "[-]driver failed: the node has halted: the disk failed",
        )
        assert (await get(node.service.metrics_address, "/metrics"))[0] == 200


async def test_a_driver_that_ticks_no_more_does_not_live(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path, "127.0.0.1:0")) as node:
        node.driver._tick = lambda: None  # type: ignore[method-assign]
        node.driver.ticked_ns -= 6_000_000_000
        status, told = await get(node.service.metrics_address, "/livez")
        assert (status, "[-]ticks failed: the last tick was 6." in told) == (503, True)


async def test_the_default_port_lies_above_that_for_clients(tmp_path: Path) -> None:
    port = free_port()
    async with running(settings_in(tmp_path, None, client_port=port - 200)) as node:
        assert node.service.metrics_address == f"127.0.0.1:{port}"
        assert node.service.status().metrics_address == f"127.0.0.1:{port}"
        assert (await get(f"127.0.0.1:{port}", "/livez"))[0] == 200


async def test_a_default_port_that_is_taken_keeps_no_node_from_serving_but_one_that_was_named_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        async with running(settings_in(tmp_path / "a", None, client_port=port - 200)) as node:
            assert node.service.metrics_address == ""
        assert "no metrics" in caplog.text
        with pytest.raises(ConfigError, match="can't listen for metrics on"):
            async with running(settings_in(tmp_path / "b", f"127.0.0.1:{port}")):
                pass


async def test_there_is_no_port_where_none_is_wanted(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path / "a", "off")) as node:
        assert node.service.metrics_address == ""
    async with running(settings_in(tmp_path / "b", None), default_metrics=False) as node:
        assert node.service.metrics_address == ""
    async with running(settings_in(tmp_path / "c", "127.0.0.1:0"), default_metrics=False) as node:
        assert node.service.metrics_address != ""
