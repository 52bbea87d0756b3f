"""Schedules in which pysyncobj, as it is published, loses what it acknowledged; what becomes of them here.

Each is played twice, by the very same function of `schedules`: on pysyncobj's own core over connections in
memory, where a test asserts that the loss is real, and on this project's driver, where it must not happen.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from importlib import metadata
from typing import TYPE_CHECKING

import pytest

from tests.peers import schedules
from tests.peers.raftstate_peers import RaftstatePeers

if TYPE_CHECKING:
    from tests.peers.pysyncobj_peers import PysyncobjPeers

SEEDS = range(5)


@pytest.fixture
def pysyncobj(monkeypatch: pytest.MonkeyPatch) -> Callable[..., PysyncobjPeers]:
    """Return what makes three nodes of pysyncobj; its settings may be given."""
    pytest.importorskip("pysyncobj", reason="pysyncobj is not installed: pip install 'raftstate[peers]'")
    from tests.peers.pysyncobj_peers import PysyncobjPeers

    return lambda **settings: PysyncobjPeers(monkeypatch, **settings)


def test_the_pysyncobj_that_is_tried_is_the_one_that_was_published(
    pysyncobj: Callable[..., PysyncobjPeers],
) -> None:
    files = metadata.files("pysyncobj")
    assert files is not None
    sources = [file for file in files if file.suffix == ".py"]
    assert "pysyncobj/syncobj.py" in map(str, sources)
    for file in sources:
        assert file.hash is not None
        digest = hashlib.new(file.hash.mode, file.read_binary()).digest()
        assert base64.urlsafe_b64encode(digest).decode().rstrip("=") == file.hash.value, file


# -- a refusal that is out of date


def test_pysyncobj_loses_an_acknowledged_write_after_a_refusal_that_is_out_of_date(
    pysyncobj: Callable[..., PysyncobjPeers],
) -> None:
    played = schedules.stale_refusal(pysyncobj())
    assert {*played.acknowledged} == {"a", "b", "c"}
    assert played.lost() == {"c"}


def test_pysyncobj_moves_next_index_back_to_what_its_follower_has_acknowledged(
    pysyncobj: Callable[..., PysyncobjPeers],
) -> None:
    peers = pysyncobj()
    at = schedules.send_again_by_halves(peers)
    peers.lose(at.leader, at.follower)
    peers.beat(at.leader)
    peers.deliver(at.leader, at.follower)
    peers.deliver(at.follower, at.leader)
    match_index, next_index = peers.progress(at.leader, at.follower)
    assert next_index <= match_index


@pytest.mark.case(8)
@pytest.mark.case(10)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_refusal_that_is_out_of_date_loses_nothing(seed: int) -> None:
    peers = RaftstatePeers(seed)
    played = schedules.stale_refusal(peers)
    assert {*played.acknowledged} >= {"a", "b"}
    assert all(keys >= {*played.acknowledged} for keys in played.keys.values())


@pytest.mark.case(8)
@pytest.mark.parametrize("seed", SEEDS)
def test_what_arrives_again_takes_nothing_from_the_end_of_the_log(seed: int) -> None:
    peers = RaftstatePeers(seed)
    leader = peers.elect(1, 2, 3)
    follower, away = (node for node in peers.ids if node != leader)
    peers.sever(leader, away)
    first = peers.put(leader, "a")
    [append] = peers.appends(leader, follower)
    second = peers.put(leader, "b")
    peers.deliver(leader, follower)
    peers.turn(follower)
    peers.deliver(follower, leader)
    peers.turn(leader)
    assert (first.acknowledged, second.acknowledged) == (True, True)
    peers.cluster.deliver(leader, follower, append)
    peers.turn(follower)
    peers.crash(leader)
    peers.elect(follower, away)
    assert peers.keys(follower) == peers.keys(away) == {"a", "b"}


# -- a snapshot


def test_pysyncobj_reports_success_for_a_write_that_a_snapshot_then_takes_away(
    pysyncobj: Callable[..., PysyncobjPeers],
) -> None:
    played = schedules.snapshot_to_a_deposed_leader(pysyncobj())
    assert "alone" in played.acknowledged
    assert played.lost() == {"alone"}


@pytest.mark.case(9)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_deposed_leader_that_is_sent_a_snapshot_acknowledges_nothing_of_its_own(seed: int) -> None:
    peers = RaftstatePeers(seed)
    played = schedules.snapshot_to_a_deposed_leader(peers)
    expected = {f"k{number}" for number in range(6)}
    assert {*played.acknowledged} == expected
    assert all(keys == expected for keys in played.keys.values())
    # It was a snapshot, and one node's.
    assert sum(len(node.installed) for node in peers.cluster.nodes.values()) == 1


# -- changes of the membership


def test_pysyncobj_has_two_leaders_that_both_acknowledge_after_an_isolated_one_removed_the_others(
    pysyncobj: Callable[..., PysyncobjPeers],
) -> None:
    played = schedules.removals_by_an_isolated_leader(pysyncobj(dynamicMembershipChange=True))
    isolated, elected = played.acknowledged["alone"], played.acknowledged["elsewhere"]
    assert isolated != elected
    # Even when all are connected again.
    assert played.acknowledged == {
        "alone": isolated,
        "alone again": isolated,
        "elsewhere": elected,
        "elsewhere again": elected,
    }
    assert played.keys[isolated] == {"alone", "alone again"}
    assert played.keys[elected] == {"elsewhere", "elsewhere again"}


@pytest.mark.case(16)
@pytest.mark.parametrize("seed", SEEDS)
def test_an_isolated_leader_removes_nobody_and_acknowledges_nothing(seed: int) -> None:
    peers = RaftstatePeers(seed)
    played = schedules.removals_by_an_isolated_leader(peers)
    expected = {"elsewhere", "alone again", "elsewhere again"}  # the second once it was a follower
    assert {*played.acknowledged} == expected
    assert all(keys == expected for keys in played.keys.values())
    assert [node.names for node in peers.cluster.nodes.values()] == [["n1", "n2", "n3"]] * 3


@pytest.mark.case(16)
def test_an_isolated_leader_takes_one_removal_into_its_log_and_no_second_before_it_is_committed() -> None:
    peers = RaftstatePeers(1)
    isolated = peers.elect(1, 2, 3)
    others = [node for node in peers.ids if node != isolated]
    for other in others:
        peers.sever(isolated, other)
    for other in others:
        peers.remove(isolated, other)
    peers.beat(isolated)
    assert peers.changes_in_log(isolated) == 1
