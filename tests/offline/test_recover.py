"""`raftstate recover`: what is left of a cluster becomes another one, and never meets the first again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from raftstate import connect
from raftstate.config import load_settings
from raftstate.errors import FailedPreconditionError, RaftstateError
from raftstate.machine.machine import Machine
from raftstate.offline import recover as module
from raftstate.offline.check import check
from raftstate.offline.recover import look, recover
from raftstate.store.directory import DataDirectory
from raftstate.store.state import StateStore
from raftstate.supervisor import LocalCluster
from tests.offline.folders import KEYS, command, image, killed, stopped
from tests.store.log_regions import flip, regions


def keys_of(folder: Path) -> set[str]:
    with connect(f"embedded:{folder}") as client:
        return {pair.key.decode() for pair in client.range(b"k", b"l", limit=1_000).kvs}


def test_without_consent_it_only_says_what_may_be_missing(tmp_path: Path) -> None:
    folder = killed(tmp_path / "node")
    before = image(folder)
    told = command("recover", str(folder))
    assert told.returncode == 1
    assert "Nothing was changed." in told.stdout
    assert "clients must connect anew" in told.stdout
    assert image(folder) == before


@pytest.mark.parametrize("make", [stopped, killed])
def test_everything_up_to_the_logs_end_is_kept_in_another_cluster(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    folder = make(tmp_path / "node")
    old = load_settings(folder / "node.toml")
    done = command("recover", str(folder), "--accept-loss", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    new = load_settings(folder / "node.toml")
    assert new.cluster.cluster_id == int(told["cluster_id"]) != old.cluster.cluster_id
    assert (new.member.id, new.member.incarnation) == (old.member.id, old.member.incarnation + 1)
    assert check(folder) == check(folder / "data")
    assert check(folder).findings == []
    assert keys_of(folder) == {f"key{number}" for number in range(KEYS)}
    with connect(f"embedded:{folder}") as client:
        client.put("more", b"of it")


@pytest.mark.case(50)
def test_a_log_that_is_damaged_or_lost_ends_what_is_kept(tmp_path: Path) -> None:
    folder = killed(tmp_path / "damaged")
    log = folder / "data" / "log" / "data.mdb"
    flip(log, regions(log)["record"][-3])
    with pytest.raises(RaftstateError, match="recover DIR --accept-loss"):
        keys_of(folder)
    assert any("is damaged: it, and the 2 entries after it, are lost" in loss for loss in look(folder).losses)
    recover(folder)
    kept = keys_of(folder)
    assert f"key{KEYS - 20}" in kept
    assert f"key{KEYS - 1}" not in kept

    folder = killed(tmp_path / "lost")
    shutil.rmtree(folder / "data" / "log")
    with pytest.raises(RaftstateError, match="recover DIR --accept-loss"):
        keys_of(folder)
    assert "the log can't be read" in look(folder).losses[0]
    recover(folder)
    assert keys_of(folder) <= {f"key{number}" for number in range(KEYS)}


@pytest.mark.case(59)
@pytest.mark.parametrize("step", range(40))
def test_a_crash_at_any_step_leaves_the_old_or_the_new(
    tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = killed(tmp_path / "node", 20)
    before = image(folder)

    class Crash(BaseException):
        pass

    left = step

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def step_or_crash(*args: object, **kwargs: object) -> object:
            nonlocal left
            if left == 0:
                raise Crash
            left -= 1
            return real(*args, **kwargs)

        return step_or_crash

    for name in ("replace", "fsync", "rename"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    monkeypatch.setattr(shutil, "rmtree", counted(shutil.rmtree))
    crashed = False
    try:
        recover(folder)
    except Crash:
        crashed = True
    monkeypatch.undo()
    if not (folder / "data" / "recovering").exists() and crashed and image(folder).keys() == before.keys():
        # Nothing was begun, or all of it was done.
        pass
    elif (folder / "data" / "recovering").exists():
        with pytest.raises(FailedPreconditionError, match=r"a recovery of .* was begun"):
            DataDirectory.open(folder / "data")
        recover(folder)
    assert check(folder).findings == []
    assert keys_of(folder) == {f"key{number}" for number in range(20)}
    assert crashed or step > 10


@pytest.mark.case(78)
@pytest.mark.processes
def test_a_survivor_of_a_lost_majority_serves_and_no_former_node_joins_it(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path / "cluster", nodes=3, port=0)
    with cluster:
        cluster.wait_for_leader()
        with connect(cluster.url) as client:
            for number in range(50):
                client.put(f"key{number}", b"value")
            survivor = cluster.nodes[2]
            for node in cluster.nodes:
                cluster.kill(node.name)
            before = load_settings(survivor.data / "node.toml")
            recover(survivor.data)
            after = load_settings(survivor.data / "node.toml")
            assert [member.name for member in after.cluster.members] == [survivor.name]
            assert after.cluster.cluster_id != before.cluster.cluster_id
            cluster.restart(survivor.name)
            # The old session, at the new cluster: it is not taken for another one.
            with pytest.raises(RaftstateError):
                client.put("stranger", b"value", timeout=3)
        # Nodes that were thought to be lost, and come back: they are another cluster.
        for node in cluster.nodes:
            if node.name != survivor.name:
                cluster.restart(node.name)
        with connect(survivor.endpoint, timeout=20) as client:
            client.put("fresh", b"value")
            assert client.get("stranger") is None
            assert client.get("key49") is not None
            statuses = [status for status in client.status() if status.name == survivor.name]
            assert [member.name for member in statuses[0].members] == [survivor.name]


@pytest.mark.case(73)
def test_a_state_that_its_former_cluster_distrusted_is_all_there_is(tmp_path: Path) -> None:
    folder = stopped(tmp_path / "node")
    state = StateStore.open(folder / "data")
    state.distrust("this node's state differs from that of nodes 2/3, a majority, at log index 64")
    state.close(clean=True)
    recover(folder)
    assert keys_of(folder) == {f"key{number}" for number in range(KEYS)}


def test_the_state_keeps_ids_of_former_members_from_being_used_again(tmp_path: Path) -> None:
    folder = stopped(tmp_path / "node", 3)
    recover(folder)
    state = StateStore.open(folder / "data")
    with state.read() as tables:
        machine = Machine(tables)
    state.close(clean=False)
    assert machine.conf_state().voters == (1,)
    assert [(member.id, member.incarnation) for member in machine.members] == [(1, 2)]
    assert machine.last_member_id == 1
    assert load_settings(folder / "node.toml").log_map_bytes == module.LOG_MAP_BYTES
