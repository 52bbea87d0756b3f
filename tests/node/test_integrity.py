"""Nodes whose states differ, or are damaged, in a simulated world: the odd one shows nothing and is rebuilt
from a majority; without a majority nobody is."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from chaos.sim.world import CLUSTER_ID, SimCluster, SimNode, was_applied
from raftstate.core.errors import SnapshotTemporarilyUnavailable
from raftstate.core.roles import Role
from raftstate.core.types import ConfState, SnapshotMetadata
from raftstate.machine.layout import META_KEY, change_key, meta_row, read_index, read_meta
from raftstate.machine.reader import Reader
from raftstate.machine.tables import Table
from raftstate.machine.types import Code
from raftstate.node.environment import (
    Outcome,
    PeerBody,
    Rejected,
    RepairChunk,
    RepairOffer,
    RepairPull,
    RepairRequest,
)

KEYS = 30


def diverge(node: SimNode, by: int = 1) -> None:
    """Have a node's machine come to something else from its next entry on, as a bug or a bad chip would."""
    meta = read_meta(node.tables)
    row = meta_row(type(meta)(*_fields(meta, digest=meta.digest ^ by)))
    node.tables.put(Table.HOT, META_KEY, row)
    node.machine.load(node.tables)


def _fields(meta: object, **changed: object) -> list[object]:
    names = meta.__struct_fields__  # type: ignore[attr-defined]
    return [changed.get(name, getattr(meta, name)) for name in names]


def lose_change(node: SimNode, key: str) -> None:
    """Take the row of a key's value out of a node's tables."""
    row = node.tables.get(Table.INDEX, key.encode())
    assert row is not None
    revision, sub, *_ = read_index(key.encode(), row)
    assert node.tables.delete(Table.CHANGES, change_key(revision, sub))


def flip(node: SimNode, key: str) -> None:
    """Flip a bit in the index row of a key."""
    row = node.tables.get(Table.INDEX, key.encode())
    assert row is not None
    node.tables.put(Table.INDEX, key.encode(), row[:-1] + bytes([row[-1] ^ 1]))


def value_at(node: SimNode, key: str) -> bytes | None:
    pair = Reader(node.tables).get(key.encode())
    return None if pair is None else pair.value


def written(cluster: SimCluster, count: int = KEYS, prefix: str = "k", via: int = 0) -> list[list[Outcome]]:
    """Write keys, one after the other, and wait for the answers."""
    done = []
    for number in range(count):
        leader = cluster.elect()
        outcomes = cluster.put(via or leader.id, f"{prefix}{number}", str(number))
        cluster.run_until(lambda outcomes=outcomes: outcomes)
        done.append(outcomes)
    return done


def of_one_mind(cluster: SimCluster) -> bool:
    nodes = [node for node in cluster.nodes.values() if node.alive]
    return len({(node.driver.applied_index, node.machine.digest) for node in nodes}) == 1 and not any(
        node.integrity.quarantined for node in nodes
    )


def follower_of(cluster: SimCluster, leader: SimNode) -> SimNode:
    return next(node for node in cluster.nodes.values() if node is not leader)


@pytest.mark.parametrize("seed", range(5))
def test_an_odd_follower_shows_nothing_and_is_rebuilt_from_the_majority(seed: int) -> None:
    cluster = SimCluster(3, seed)
    leader = cluster.elect()
    written(cluster)
    odd = follower_of(cluster, leader)
    diverge(odd)
    written(cluster, prefix="after")
    cluster.run_until(lambda: odd.integrity.quarantined, 5)
    assert not odd.driver.fitness.may_read
    assert not odd.driver.fitness.may_lead
    assert "differs from that of nodes" in odd.driver.fitness.alarms[0]
    cluster.run_until(lambda: of_one_mind(cluster), 10)
    assert (odd.rebuilds, odd.driver.fitness.alarms) == (1, ())
    cluster.run_for(3)
    assert [node.rebuilds for node in cluster.nodes.values() if node is not odd] == [0, 0]
    assert all(node.driver.fitness.alarms == () for node in cluster.nodes.values())
    assert value_at(odd, "after3") == b"3"


@pytest.mark.case(73)
@pytest.mark.parametrize("seed", range(5))
def test_an_odd_leader_hands_over_answers_nothing_meanwhile_and_is_rebuilt(seed: int) -> None:
    cluster = SimCluster(3, seed)
    leader = cluster.elect()
    written(cluster)
    diverge(leader)
    written(cluster, 3, "then")
    cluster.run_until(lambda: leader.integrity.quarantined, 5)
    assert not leader.driver.fitness.may_read
    pending = cluster.put(leader.id, "late", "x")
    cluster.run_until(lambda: leader.driver.raw.raft.state is not Role.LEADER, 2)
    cluster.run_until(lambda: pending, 5)
    cluster.run_until(lambda: of_one_mind(cluster), 10)
    assert leader.rebuilds == 1
    assert all(was_applied(outcomes) for outcomes in written(cluster, 3, "after", via=leader.id))


def test_what_an_odd_leader_made_of_a_write_is_not_told() -> None:
    cluster = SimCluster(3, 1)
    leader = cluster.elect()
    written(cluster, 3)
    outcomes = cluster.put(leader.id, "late", "x")
    leader.driver.turn()
    leader.driver.fitness.limit("state", "odd", may_lead=False, may_read=False)
    cluster.run_until(lambda: outcomes)
    assert isinstance(outcomes[0], Rejected)
    assert (outcomes[0].fault.code, outcomes[0].applied_never) == (Code.UNKNOWN_OUTCOME, False)


@pytest.mark.case(73)
@pytest.mark.parametrize("seed", range(3))
def test_when_all_differ_everyone_says_so_and_nobody_is_rebuilt(seed: int) -> None:
    cluster = SimCluster(3, seed)
    leader = cluster.elect()
    written(cluster)
    others = [node for node in cluster.nodes.values() if node is not leader]
    diverge(others[0], 1)
    diverge(others[1], 2)
    written(cluster, prefix="after")
    cluster.run_for(5)
    assert [node.rebuilds for node in cluster.nodes.values()] == [0, 0, 0]
    assert not any(node.integrity.quarantined for node in cluster.nodes.values())
    assert all("no majority" in "".join(node.driver.fitness.alarms) for node in cluster.nodes.values())
    assert all(map(was_applied, written(cluster, 3, "still")))


def test_with_two_voters_who_differ_nobody_is_rebuilt() -> None:
    cluster = SimCluster(2, 3)
    written(cluster)
    diverge(cluster.nodes[1])
    written(cluster, prefix="after")
    cluster.run_for(5)
    assert [node.rebuilds for node in cluster.nodes.values()] == [0, 0]
    assert all("no majority" in "".join(node.driver.fitness.alarms) for node in cluster.nodes.values())


def test_of_five_two_that_are_odd_in_different_ways_are_both_rebuilt() -> None:
    cluster = SimCluster(5, 2)
    leader = cluster.elect()
    written(cluster)
    odd = [node for node in cluster.nodes.values() if node is not leader][:2]
    for by, node in enumerate(odd, 1):
        diverge(node, by)
    written(cluster, prefix="after")
    cluster.run_until(lambda: sum(node.rebuilds for node in odd) == 2 and of_one_mind(cluster), 20)
    assert [node.rebuilds for node in cluster.nodes.values() if node not in odd] == [0, 0, 0]


@pytest.mark.parametrize("seed", range(6))
def test_an_odd_node_that_is_restarted_in_the_middle_is_rebuilt_all_the_same(seed: int) -> None:
    cluster = SimCluster(3, seed)
    leader = cluster.elect()
    written(cluster)
    odd = follower_of(cluster, leader)
    diverge(odd)
    written(cluster, prefix="after")
    odd.take_checkpoint()
    cluster.run_until(lambda: odd.integrity.quarantined, 5)
    cluster.run_for(cluster.random.uniform(0, 0.3))
    cluster.crash(odd.id)
    cluster.run_for(0.3)
    odd.start()
    cluster.run_until(lambda: of_one_mind(cluster), 20)
    assert odd.rebuilds >= 1
    assert odd.driver.fitness.may_read


def test_a_node_whose_quarantine_was_noted_shows_nothing_from_its_start_on() -> None:
    cluster = SimCluster(3, 4)
    leader = cluster.elect()
    written(cluster)
    odd = follower_of(cluster, leader)
    odd.take_checkpoint()
    odd.distrusted = "a row was damaged"
    cluster.crash(odd.id)
    odd.start()
    assert not odd.driver.fitness.may_read
    cluster.run_until(lambda: of_one_mind(cluster), 20)
    assert (odd.rebuilds, odd.distrusted) == (1, "")


@pytest.mark.case(56)
@pytest.mark.parametrize("lost", [lose_change, flip])
@pytest.mark.parametrize("of_leader", [False, True])
def test_an_apply_that_meets_damage_waits_for_another_state_and_goes_on(lost, of_leader: bool) -> None:  # type: ignore[no-untyped-def]
    cluster = SimCluster(3, 7)
    leader = cluster.elect()
    written(cluster)
    bad = leader if of_leader else follower_of(cluster, leader)
    lost(bad, "k3")
    if lost is lose_change:
        flip(bad, "k3")  # a put does not look at the value before
    cluster.put(leader.id, "k3", "new", timeout_s=10)
    cluster.run_until(lambda: bad.integrity.quarantined, 5)
    cluster.run_until(lambda: of_one_mind(cluster), 20)
    assert all(map(was_applied, written(cluster, 3, "after")))
    cluster.run_until(lambda: of_one_mind(cluster), 5)
    assert (bad.rebuilds, bad.failures) == (1, [])
    assert [value_at(node, "k3") for node in cluster.nodes.values()] == [b"new"] * 3


def test_with_one_other_voter_a_damaged_state_is_rebuilt_from_whoever_agrees_with_its_digest() -> None:
    cluster = SimCluster(3, 8)
    leader = cluster.elect()
    bad, down = [node for node in cluster.nodes.values() if node is not leader]
    cluster.crash(down.id)
    written(cluster)
    cluster.run_for(3)
    flip(bad, "k5")
    outcomes = cluster.put(leader.id, "k5", "new", timeout_s=20)
    cluster.run_until(lambda: bad.integrity.quarantined, 5)
    cluster.run_until(lambda: bad.rebuilds == 1 and not bad.integrity.quarantined, 20)
    cluster.run_until(lambda: outcomes)
    assert was_applied(outcomes)
    assert value_at(bad, "k5") == b"new"


def test_a_lagging_node_is_compared_at_old_indexes_and_is_not_odd() -> None:
    cluster = SimCluster(3, 9)
    leader = cluster.elect()
    late = follower_of(cluster, leader)
    written(cluster, 10)
    late.pause()
    written(cluster, 150, "while")
    cluster.run_for(3)
    late.resume()
    cluster.run_until(lambda: of_one_mind(cluster), 10)
    cluster.run_for(3)
    assert [node.rebuilds for node in cluster.nodes.values()] == [0, 0, 0]
    assert all(node.driver.fitness.alarms == () for node in cluster.nodes.values())
    assert late.integrity.exchange.agreed_index > 0


@pytest.mark.case(42)
@pytest.mark.parametrize("seed", range(5))
def test_a_copy_comes_through_a_network_that_loses_a_part_of_it(seed: int) -> None:
    cluster = SimCluster(3, seed)
    leader = cluster.elect()
    written(cluster)
    odd = follower_of(cluster, leader)
    lost = 0

    def tamper(_sender: int, _to: int, body: PeerBody) -> list[float]:
        nonlocal lost
        is_repair = isinstance(body, RepairRequest | RepairOffer | RepairPull | RepairChunk)
        if is_repair and cluster.random.random() < 0.4:
            lost += 1
            return []
        return [cluster.random.uniform(0.0001, 0.002)] * (2 if is_repair else 1)

    cluster.tamper = tamper
    diverge(odd)
    written(cluster, prefix="after")
    cluster.run_until(lambda: odd.rebuilds and of_one_mind(cluster), 60)
    assert lost > 0
    assert value_at(odd, "after3") == b"3"


@pytest.mark.case(82)
def test_a_copy_that_is_damaged_on_its_way_is_not_used_and_another_one_is_asked_for() -> None:
    cluster = SimCluster(3, 3)
    leader = cluster.elect()
    written(cluster)
    odd = follower_of(cluster, leader)
    sources = [node for node in cluster.nodes.values() if node is not odd]
    for node in sources:
        node.damage_snapshots = True
    diverge(odd)
    written(cluster, prefix="after")
    cluster.run_until(lambda: "the last attempt failed" in "".join(odd.driver.fitness.alarms), 20)
    assert odd.rebuilds == 0
    assert not odd.driver.fitness.may_read
    for node in sources:
        node.damage_snapshots = False
        node.driver.snapshots.own.state_replaced()
    cluster.run_until(lambda: odd.rebuilds and of_one_mind(cluster), 60)


def odd_with_a_log_cut_behind_old_snapshots(cluster: SimCluster) -> tuple[SimNode, int]:
    """An odd node, and the boundary of its log: the others have snapshots at hand that are older."""
    leader = cluster.elect()
    odd = follower_of(cluster, leader)
    sources = [node for node in cluster.nodes.values() if node is not odd]
    for node in sources:
        with pytest.raises(SnapshotTemporarilyUnavailable):
            node.driver.snapshots.own.snapshot()
    cluster.run_for(1)
    old = [node.driver.snapshots.own.snapshot().metadata.index for node in sources]
    written(cluster)
    odd.take_checkpoint()
    boundary = read_meta(odd.checkpoint).applied_index
    assert max(old) < boundary
    odd.storage.compact(boundary)
    diverge(odd)
    written(cluster, prefix="after")
    return odd, boundary


@pytest.mark.case(84)
def test_no_copy_is_offered_that_is_older_than_the_log_of_the_one_that_asks() -> None:
    cluster = SimCluster(3, 5)
    offered: list[int] = []

    def note(_sender: int, _to: int, body: PeerBody) -> list[float]:
        if isinstance(body, RepairOffer) and body.metadata is not None:
            offered.append(body.metadata.index)
        return [cluster.random.uniform(0.0001, 0.002)]

    cluster.tamper = note
    odd, boundary = odd_with_a_log_cut_behind_old_snapshots(cluster)
    cluster.run_until(lambda: odd.rebuilds and of_one_mind(cluster), 20)
    assert offered
    assert min(offered) >= boundary
    assert odd.rebuilds == 1


@pytest.mark.case(84)
def test_a_copy_older_than_was_asked_for_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = SimCluster(3, 5)
    for node in cluster.nodes.values():
        take = node.driver._handlers[RepairRequest]
        node.driver.on(
            RepairRequest, lambda sender, asked, take=take: take(sender, RepairRequest(asked.id, 0))
        )
    odd, _ = odd_with_a_log_cut_behind_old_snapshots(cluster)
    used: list[object] = []
    monkeypatch.setattr(odd.integrity._repair, "rebuild", lambda copy, _check, _done: used.append(copy))
    cluster.run_until(lambda: used or "the last attempt failed" in "".join(odd.driver.fitness.alarms), 20)
    assert used == []
    assert "or later was asked for" in "".join(odd.driver.fitness.alarms)


class Copy(NamedTuple):
    """A copy of a state that has arrived."""

    cluster_id: int
    metadata: SnapshotMetadata


@pytest.mark.case(59)
@pytest.mark.case(84)
def test_a_copy_that_is_not_what_was_offered_or_asked_for_is_refused() -> None:
    cluster = SimCluster(3, 5)
    fetch = cluster.nodes[1].integrity._fetch
    fetch._min_index = 7
    offered = SnapshotMetadata(ConfState(voters=(1, 2, 3)), 7, 2)
    assert fetch._why_not(Copy(CLUSTER_ID, offered), offered) == ""
    older = SnapshotMetadata(ConfState(voters=(1, 2, 3)), 6, 2)
    for copy, offer, why in (
        (Copy(CLUSTER_ID + 1, offered), offered, "the copy is of cluster"),
        (Copy(CLUSTER_ID, older), offered, "was offered"),
        (Copy(CLUSTER_ID, older), older, "the copy ends with entry 6, 7 or later was asked for"),
    ):
        assert why in fetch._why_not(copy, offer)


def test_after_so_many_failed_attempts_a_person_is_told_what_to_do() -> None:
    cluster = SimCluster(3, 4)
    leader = cluster.elect()
    written(cluster)
    odd = follower_of(cluster, leader)
    for node in cluster.nodes.values():
        node.damage_snapshots = True
    diverge(odd)
    written(cluster, prefix="after")
    cluster.run_until(lambda: "raftstate member replace" in "".join(odd.driver.fitness.alarms), 400)
    assert odd.rebuilds == 0


def test_a_node_that_stops_gives_up_the_copy_that_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files would take room until somebody collected them: a node may start again in the same process."""
    cluster = SimCluster(3, 1)
    leader = cluster.elect()
    written(cluster)
    odd = follower_of(cluster, leader)
    diverge(odd)
    written(cluster, prefix="after")
    fetch = odd.integrity._fetch
    cluster.run_until(lambda: fetch._build is not None, 10)
    discarded: list[object] = []
    monkeypatch.setattr(type(fetch._build), "discard", lambda build: discarded.append(build))
    build = fetch._build
    odd.driver.stop()
    odd.integrity.stop()
    assert discarded == [build]
    odd.integrity.stop()
    cluster.run_for(3)
    assert discarded == [build]
    assert not odd.rebuilds
