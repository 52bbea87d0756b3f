"""A real Prometheus, scraping real nodes. Debian's package `prometheus` has it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import raftstate
from raftstate.supervisor import LocalCluster

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(
        shutil.which("prometheus") is None or shutil.which("promtool") is None,
        reason="prometheus and promtool are not installed (Debian: apt-get install prometheus)",
    ),
]

ROOT = Path(__file__).resolve().parent.parent.parent
RULES = ROOT / "docs" / "alerts.yml"
WAIT_S = 60.0


def promtool(*arguments: str, told: str = "") -> None:
    ended = subprocess.run(
        ["promtool", *arguments], input=told, capture_output=True, text=True, check=False, timeout=100
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_rules_are_well_formed() -> None:
    promtool("check", "rules", str(RULES))


def test_each_alert_fires_when_it_should_and_only_then() -> None:
    promtool("test", "rules", str(Path(__file__).parent / "alerts_test.yml"))


class Prometheus:
    """A running Prometheus. `ask` calls its API."""

    def __init__(self, folder: Path, targets: list[str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{probe.getsockname()[1]}"
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [{"job_name": "raftstate", "static_configs": [{"targets": targets}]}],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        self.log = folder / "prometheus.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'tsdb'}",
                    f"--web.listen-address={self._address}",
                ],
                stdout=log,
                stderr=log,
            )

    def ask(self, path: str) -> Any:
        try:
            with urllib.request.urlopen(f"http://{self._address}/api/v1/{path}", timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.URLError:
            assert self.process.poll() is None, self.log.read_text()
            return None  # it is starting

    def wait_for(self, path: str, condition: Callable[[Any], bool]) -> Any:
        deadline = time.monotonic() + WAIT_S
        while True:
            data = self.ask(path)
            if data is not None and condition(data):
                return data
            assert time.monotonic() < deadline, f"{path}: {data}"
            time.sleep(0.2)

    def values(self, query: str) -> dict[str, float]:
        """Return the value of a query for each instance."""
        found = self.ask(f"query?query={query}")["result"]
        return {each["metric"]["instance"]: float(each["value"][1]) for each in found}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path / "cluster", nodes=3, port=0) as cluster:
        cluster.wait_for_leader()
        yield cluster


@pytest.fixture
def metrics(cluster: LocalCluster) -> dict[str, str]:
    """The address of each node's metrics."""
    with raftstate.connect(cluster.url) as client:
        return {node.name: node.metrics_address for node in client.status()}


@pytest.fixture
def prometheus(tmp_path: Path, metrics: dict[str, str]) -> Iterator[Prometheus]:
    running = Prometheus(tmp_path, list(metrics.values()))
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()


def all_rules(data: Any) -> list[Any]:
    return [rule for group in data["groups"] for rule in group["rules"]]


def test_it_scrapes_every_node_and_evaluates_every_rule(
    cluster: LocalCluster, metrics: dict[str, str], prometheus: Prometheus
) -> None:
    prometheus.wait_for(
        "targets",
        lambda data: [target["health"] for target in data["activeTargets"]] == ["up"] * 3,
    )
    data = prometheus.wait_for(
        "rules",
        lambda data: all(not rule["lastEvaluation"].startswith("0001") for rule in all_rules(data)),
    )
    rules = all_rules(data)
    assert len(rules) == RULES.read_text().count("- alert:")
    assert {rule["name"]: rule.get("lastError", "") for rule in rules if rule["health"] != "ok"} == {}

    with raftstate.connect(cluster.url) as client:
        for number in range(20):
            client.put(f"k{number}", b"v")
    prometheus.wait_for(
        "query?query=sum(raftstate_debugging_mvcc_keys_total)",
        lambda data: data["result"] and float(data["result"][0]["value"][1]) == 60,
    )
    assert set(prometheus.values("raftstate_server_has_leader").values()) == {1.0}
    assert sum(prometheus.values("raftstate_server_is_leader").values()) == 1.0
    assert sum(prometheus.values("raftstate_server_commands_applied_total").values()) >= 60
    assert all(prometheus.values("raftstate_disk_wal_fsync_duration_seconds_count").values())

    lost = next(name for name in metrics if name != cluster.wait_for_leader())
    cluster.kill(lost)
    found = prometheus.wait_for(
        "alerts",
        lambda data: (
            {"RaftstateMemberDown", "RaftstatePeerUnreachable"}
            <= {alert["labels"]["alertname"] for alert in data["alerts"]}
        ),
    )
    down = [alert for alert in found["alerts"] if alert["labels"]["alertname"] == "RaftstateMemberDown"]
    assert [alert["labels"]["instance"] for alert in down] == [metrics[lost]]
    assert down[0]["annotations"]["summary"] == f"{metrics[lost]} does not answer scrapes."


def test_promtool_finds_nothing_wrong_with_what_a_node_says(metrics: dict[str, str]) -> None:
    for address in metrics.values():
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            text = answer.read().decode()
        linted = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
        )
        # Gauges that have the names that etcd gave them are its only complaint.
        complaints = [line.split()[0] for line in linted.stderr.splitlines()]
        assert complaints == ["raftstate_debugging_mvcc_keys_total", "raftstate_debugging_mvcc_watcher_total"]
