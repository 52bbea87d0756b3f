"""Nodes as processes: what their logs and their health say while all kinds of things happen to them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import raftstate
from raftstate import Put, where
from raftstate.errors import RaftstateError
from raftstate.pb.v1 import kv_pb2, kv_pb2_grpc
from raftstate.supervisor import LocalCluster

pytestmark = pytest.mark.processes

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    cluster = LocalCluster(tmp_path / "cluster", nodes=3, port=0)
    for node in cluster.nodes:
        file = node.data / "node.toml"
        file.write_text('log_level = "debug"\nlog_format = "json"\n' + file.read_text())
    with cluster:
        cluster.wait_for_leader()
        yield cluster


def told_by(cluster: LocalCluster) -> list[dict[str, object]]:
    return [json.loads(line) for node in cluster.nodes for line in node.log.read_text("utf-8").splitlines()]


def test_no_key_and_no_value_is_ever_in_a_log(cluster: LocalCluster) -> None:
    secret = "sesame-7391"
    with raftstate.connect(cluster.url) as store:
        store.put(f"{secret}/a", secret.encode())
        store.get(f"{secret}/a")
        store.txn().when(where(f"{secret}/a").value == secret.encode()).then(
            Put(f"{secret}/b", secret.encode())
        ).commit()
        with store.lease(10) as lease, store.watch(prefix=secret) as watch:
            store.put(f"{secret}/c", secret.encode(), lease=lease)
            watch.next(timeout=10)
        with store.lock(secret):
            pass
        for bad in (
            lambda: store.put(secret * 100, b""),
            lambda: store.get(secret, revision=1_000_000),
            lambda: store.put(secret, b"x", lease=99),
        ):
            with pytest.raises(RaftstateError):
                bad()
        cluster.kill(cluster.wait_for_leader())
        store.delete(f"{secret}/a")
    survivor = next(node for node in cluster.nodes if node.pid is not None)
    with grpc.insecure_channel(survivor.endpoint) as channel:
        for method in ("raftstate.v1.KV/Put", "raftstate.v1.Pipeline/Write"):
            # What is no message is refused by a stream and by a call alike.
            with pytest.raises(grpc.RpcError):
                list(channel.stream_stream(f"/{method}")(iter([secret.encode()]), timeout=5))
        for request in (
            kv_pb2.PutRequest(key=secret.encode() * 60),
            kv_pb2.PutRequest(key=secret.encode(), lease=99),
        ):
            with pytest.raises(grpc.RpcError):
                kv_pb2_grpc.KVStub(channel).Put(request, timeout=5)
    cluster.stop()
    told = told_by(cluster)
    assert {"serving", "leader"} <= {str(line["event"]) for line in told}
    assert all({"timestamp", "level", "logger", "event"} <= line.keys() for line in told)
    assert secret not in json.dumps(told)


def test_without_a_majority_only_cluster_serves_until_there_is_one_again(cluster: LocalCluster) -> None:
    stays, *others = [node.name for node in cluster.nodes]
    with grpc.insecure_channel(cluster.node(stays).endpoint) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        def said(service: str) -> Iterator[int]:
            request = health_pb2.HealthCheckRequest(service=service)
            return (each.status for each in stub.Watch(request, timeout=60))

        kv, whole = said("raftstate.v1.KV"), said("")
        assert (next(kv), next(whole)) == (SERVING, SERVING)
        for name in others:
            cluster.kill(name)
        assert (next(kv), next(whole)) == (NOT_SERVING, NOT_SERVING)
        request = health_pb2.HealthCheckRequest(service="raftstate.v1.Cluster")
        assert stub.Check(request).status == SERVING
        cluster.restart(others[0])
        assert (next(kv), next(whole)) == (SERVING, SERVING)


def test_doctor_and_status_see_what_runs(cluster: LocalCluster) -> None:
    with raftstate.connect(cluster.url) as store:
        store.put("k", b"v")
        nodes = store.status()
    assert len({node.metrics_address for node in nodes}) == 3
    leader = next(node for node in nodes if node.role == "leader")
    assert sorted(peer.id for peer in leader.progress) == sorted({1, 2, 3} - {leader.node_id})
    assert {(node.incarnation, node.version) for node in nodes} == {(1, raftstate.__version__)}
    assert all(node.disk_free_bytes and node.log_map_bytes and node.state_map_bytes for node in nodes)
    folder = cluster.node(leader.name).data
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "raftstate.cli",
            "doctor",
            "--json",
            "--data",
            str(folder),
            "--url",
            cluster.url,
        ],
        capture_output=True,
        check=False,
    )
    checks = {each["check"]: each["verdict"] for each in json.loads(ended.stdout)["checks"]}
    of_the_cluster = ("members", "leader", "lag", "alarms", "node versions", "wall clocks")
    assert {checks[name] for name in of_the_cluster} == {"ok"}
    assert [checks[f"{name} port"] for name in ("client", "peer", "metrics")] == [
        "note"
    ] * 3  # it listens there
    assert {"sync latency", "file system", "disk space"} <= checks.keys()
