"""doctor: what it thinks of machines, disks and clusters, those that are not at hand too."""

from __future__ import annotations

import json
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raftstate.client import NodeStatus
from raftstate.client.types import MemberStatus
from raftstate.doctor import cluster, disk, host
from raftstate.doctor.disk import Mount
from raftstate.doctor.finding import Finding, Verdict
from raftstate.folder import write_node_file
from raftstate.supervisor import LocalCluster
from tests.cli.conftest import Run

OK, NOTE, WARNING, FAILED = Verdict.OK, Verdict.NOTE, Verdict.WARNING, Verdict.FAILED
GB = 1 << 30

MOUNTINFO = r"""
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
30 21 0:40 / /mnt/a\040b rw - nfs4 server:/x rw,vers=4.2
31 21 0:41 / /mnt rw - xfs /dev/sdb rw
32 31 0:42 / /mnt/data rw,noatime - tmpfs tmpfs rw
33 32 8:3 / /mnt/data rw - ext4 /dev/sdc ro,barrier=0
""".strip().splitlines()


@pytest.mark.parametrize(
    ("path", "kind", "point"),
    [
        ("/srv/x", "ext4", "/"),
        ("/mnt/a b/c", "nfs4", "/mnt/a b"),
        ("/mnt/database", "xfs", "/mnt"),
        ("/mnt/data/n1", "ext4", "/mnt/data"),
    ],
)
def test_a_path_is_on_what_was_mounted_last_at_the_deepest_point(path: str, kind: str, point: str) -> None:
    mount = disk.mount_of(Path(path), disk.parse_mounts(MOUNTINFO))
    assert (mount.kind, mount.point) == (kind, Path(point))


@pytest.mark.parametrize(
    ("kind", "options", "verdict", "told"),
    [
        ("ext4", "rw", OK, ""),
        ("xfs", "rw,noatime", OK, ""),
        ("nfs4", "rw", FAILED, "use a local disk"),
        ("fuse.sshfs", "rw", FAILED, "use a local disk"),
        ("9p", "rw", FAILED, "use a local disk"),
        ("overlay", "rw", WARNING, "a volume of its own"),
        ("tmpfs", "rw", WARNING, "it is memory"),
        ("ext4", "ro", FAILED, "remount it read-write"),
        ("ext4", "rw,barrier=0", FAILED, "with barriers"),
    ],
)
def test_file_systems(kind: str, options: str, verdict: Verdict, told: str) -> None:
    finding = disk.judge_mount(Mount(Path("/d"), kind, frozenset(options.split(","))))
    assert (finding.verdict, told in finding.advice) == (verdict, True)


@pytest.mark.parametrize(
    ("free", "total", "verdict"),
    [
        (100 * GB, 200 * GB, OK),
        (3 * GB, 200 * GB, WARNING),
        (GB - 1, 200 * GB, FAILED),
        (0, 200 * GB, FAILED),
        (GB, 2 * GB, OK),
        (GB // 6, 2 * GB, FAILED),
    ],
)
def test_disk_space(free: int, total: int, verdict: Verdict) -> None:
    assert disk.judge_space(free, total).verdict is verdict


@pytest.mark.parametrize(
    ("times", "verdict", "found"),
    [
        ([0.001] * 200, OK, "p50 1.00 ms, p99 1.00 ms of 200 writes"),
        ([0.001] * 197 + [0.05] * 3, WARNING, "p99 50.00 ms"),
        ([0.3], FAILED, "p50 300.00 ms"),
        ([0.000_005] * 200, NOTE, "p50 0.01 ms"),
    ],
)
def test_sync_latencies(times: list[float], verdict: Verdict, found: str) -> None:
    finding = disk.judge_syncs(times)
    assert (finding.verdict, found in finding.found) == (verdict, True)


def test_a_slow_disk_is_not_written_to_for_ever_and_nothing_is_left(tmp_path: Path) -> None:
    ticks = iter(range(0, 10_000, 3))
    assert len(disk.time_syncs(tmp_path, lambda: float(next(ticks)))) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_not_be_written_in_is_a_failure(tmp_path: Path) -> None:
    finding = disk.look_at_syncs(tmp_path / "absent")
    assert (finding.verdict, finding.advice) == (
        FAILED,
        "let the user that runs the node own the data directory",
    )


def test_a_directory_that_is_yet_to_be_made_is_judged_where_it_will_be(tmp_path: Path) -> None:
    assert disk.nearest(tmp_path / "a" / "b") == tmp_path


def test_limits() -> None:
    infinite = resource.RLIM_INFINITY
    assert [host.judge_files(soft, 9_999).verdict for soft in (256, 1_024, 8_192, infinite)] == [
        FAILED,
        WARNING,
        OK,
        OK,
    ]
    assert host.judge_address_space(infinite, 80 * GB, True).verdict is OK
    assert host.judge_address_space(infinite, 80 * GB, False).verdict is FAILED
    assert host.judge_address_space(80 * GB, 80 * GB, True).verdict is FAILED
    assert host.judge_address_space(82 * GB, 80 * GB, True).verdict is OK
    assert [host.judge_memory(size).verdict for size in (GB // 4, 4 * GB)] == [WARNING, OK]
    [without] = host.clocks({"CLOCK_MONOTONIC_RAW": 4})
    assert (without.verdict, "no CLOCK_BOOTTIME" in without.found) == (WARNING, True)


def test_ports_are_free_or_listened_on_or_held_by_who_does_not_answer() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        assert host.look_at_port("client port", "127.0.0.1", port).verdict is FAILED
        holder.listen()
        assert host.look_at_port("client port", "127.0.0.1", port).verdict is NOTE
    assert host.look_at_port("client port", "127.0.0.1", port).verdict is OK
    assert host.look_at_port("client port", "203.0.113.1", 80).verdict is FAILED


MEMBERS = tuple(
    MemberStatus(id, f"n{id}", f"127.0.0.1:810{id}", f"127.0.0.1:800{id}", 1, learner=False)
    for id in (1, 2, 3)
)


def node(id: int, **fields: Any) -> NodeStatus:
    known: dict[str, Any] = {
        "endpoint": f"127.0.0.1:800{id}",
        "node_id": id,
        "name": f"n{id}",
        "version": "1.0",
        "machine_version": 3,
        "role": "leader" if id == 1 else "follower",
        "term": 4,
        "leader_id": 1,
        "applied_index": 100,
        "commit_index": 100,
        "digest": 7,
        "wall_clock_ms": 1_005,
        "log_bytes": 1,
        "log_map_bytes": 100,
        "members": MEMBERS,
    }
    return NodeStatus(**{**known, **fields})


def judged(*nodes: NodeStatus) -> dict[str, Finding]:
    return {finding.check: finding for finding in cluster.judge(cluster.Look(nodes, 1_000, 1_010))}


def test_a_cluster_in_which_all_is_well() -> None:
    findings = judged(node(1), node(2), node(3))
    assert {finding.verdict for finding in findings.values()} == {OK}
    assert findings["members"].found == "3 members (3 voters), 3 answer; 1 may fail"
    assert findings["digests"].found == "3 of 3 nodes were at the same index, and agree"


@pytest.mark.parametrize(
    ("change", "check", "verdict", "found"),
    [
        (lambda: judged(node(1), node(2)), "members", FAILED, "2 answer; 0 more may fail"),
        (lambda: judged(node(1), node(2), node(3, role="leader")), "leader", FAILED, "no node leads"),
        (lambda: judged(node(1, role="follower"), node(2)), "leader", FAILED, "no node leads term 4"),
        (lambda: judged(node(1), node(2), node(3, leader_id=0)), "leader", WARNING, "n3 does not follow"),
        (lambda: judged(node(1, commit_index=9_000, applied_index=9_000), node(2)), "lag", WARNING, "8,900"),
        (lambda: judged(node(1), node(2, alarms=("disk is full",))), "alarms", FAILED, "n2: disk is full"),
        (lambda: judged(node(1), node(2, version="1.1")), "node versions", WARNING, "1.0, 1.1"),
        (lambda: judged(node(1), node(2), node(3, digest=8)), "digests", FAILED, "n1, n2 against n3"),
        (lambda: judged(node(1), node(2, applied_index=99, digest=8)), "digests", NOTE, "no two nodes"),
        (lambda: judged(node(1), node(2, log_bytes=81)), "file sizes", WARNING, "n2's log 81%"),
        (lambda: judged(node(1, checkpoint_age_ms=61_000)), "checkpoints", WARNING, "n1 61 s"),
        (
            lambda: judged(node(1), node(2, wall_clock_ms=5_000)),
            "wall clocks",
            WARNING,
            "n2 by at least 3,990",
        ),
    ],
)
def test_what_is_wrong_with_a_cluster(
    change: Callable[[], dict[str, Finding]], check: str, verdict: Verdict, found: str
) -> None:
    finding = change()[check]
    assert (finding.verdict, found in finding.found) == (verdict, True), finding
    assert finding.advice


def test_the_verdict_of_all_is_the_exit_code(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAFTSTATE_URL", raising=False)
    monkeypatch.setattr(disk, "look_at_syncs", lambda folder: Finding("sync latency", OK, "quick"))
    monkeypatch.setattr(disk, "judge_space", lambda free, total: Finding("disk space", OK, "much"))
    monkeypatch.setattr(disk, "judge_mount", lambda mount: Finding("file system", OK, "a good one"))
    config = LocalCluster(tmp_path / "c", nodes=1, port=0).config
    write_node_file(tmp_path / "n", "n1", config)
    code, out, _ = run("doctor", "--data", str(tmp_path / "n"), "--json", "--timeout", "0.5")
    said = json.loads(out)
    checks = {each["check"]: each["verdict"] for each in said["checks"]}
    assert (code, said["ok"]) == (0, True), said
    assert {name: checks[name] for name in ("client port", "peer port", "cluster", "file system")} == {
        "client port": "ok",
        "peer port": "ok",
        "cluster": "note",
        "file system": "ok",
    }
    # One that was named must answer.
    code, out, _ = run("doctor", "--url", config.members[0].client_address, "--timeout", "0.5")
    assert code == 1
    assert b"start its nodes" in out
    (tmp_path / "n" / "node.toml").write_text("speed = 1\n")
    code, out, _ = run("doctor", "--data", str(tmp_path / "n"), "--json")
    assert (code, json.loads(out)["ok"]) == (1, False)
    assert any("there is no such setting" in each["found"] for each in json.loads(out)["checks"])
