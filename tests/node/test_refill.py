"""A node with a damaged log neither leads nor acknowledges what it may have lost, until peers mended it."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Sequence

import pytest

from chaos.sim.log_disk import SimLog
from chaos.sim.world import SimCluster, SimNode, was_applied
from raftstate.core.roles import Role
from raftstate.core.types import Entry, HardState, Message, MessageType
from raftstate.errors import StorageError
from raftstate.machine.tables import Table
from raftstate.node.environment import Done, Outcome, PeerBody, RecordsReply
from raftstate.node.refill import _Wanted


def written(cluster: SimCluster, count: int, prefix: str = "key") -> None:
    """Put `count` keys, one after the other, and wait until all nodes have applied them."""
    leader = cluster.elect()
    for number in range(count):
        outcomes = cluster.put(leader.id, f"{prefix}{number}", "value")
        cluster.run_until(lambda outcomes=outcomes: was_applied(outcomes))  # type: ignore[misc]
    index = leader.driver.applied_index
    living = [node for node in cluster.nodes.values() if node.alive]
    cluster.run_until(lambda: all(node.driver.applied_index >= index for node in living))


def rot(node: SimNode, *indexes: int) -> None:
    assert set(indexes) <= set(range(node.storage.first_index(), node.storage.last_index() + 1))
    node.storage.rotten |= set(indexes)


def acknowledgements(node: SimNode) -> list[int]:
    """The list to which the index of each acknowledgement that the node sends from now on is added."""
    sent: list[int] = []
    network = node.driver._world.network
    send = network.send

    def spy(to: int, body: PeerBody) -> bool:
        if isinstance(body, Message) and body.type is MessageType.APP_RESP and not body.reject:
            sent.append(body.index)
        return send(to, body)

    network.send = spy  # type: ignore[method-assign]
    return sent


def mended(node: SimNode) -> Callable[[], bool]:
    return lambda: not node.storage.rotten and not node.driver.fitness.alarms


def agree(cluster: SimCluster) -> None:
    """Wait until all nodes have applied the same, with the same result."""
    cluster.run_until(
        lambda: (
            len({(node.driver.applied_index, node.driver.applied.digest) for node in cluster.nodes.values()})
            == 1
        )
    )
    cluster.run_for(0.2)
    assert [error for node in cluster.nodes.values() for error in node.failures] == []


@pytest.mark.case(50)
@pytest.mark.parametrize("which", ["middle", "last", "runs", "all"])
def test_a_followers_damaged_records_come_back_from_its_peers(which: str) -> None:
    cluster = SimCluster(3, seed=1)
    written(cluster, 20)
    leader = cluster.elect()
    follower = cluster.nodes[leader.id % 3 + 1]
    last = follower.storage.last_index()
    chosen = {
        "middle": [7],
        "last": [last],
        "runs": [3, 4, 5, 9, 11, last - 1, last],
        "all": [*range(1, last + 1)],
    }[which]
    cluster.crash(follower.id)
    rot(follower, *chosen)
    follower.start()
    assert not follower.driver.fitness.may_lead
    assert "nothing needs to be done" in follower.driver.fitness.alarms[0]
    cluster.run_until(mended(follower))
    assert follower.driver.fitness.may_lead
    agree(cluster)


@pytest.mark.case(52)
def test_where_the_disk_has_no_room_to_mend_it_that_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = SimCluster(3, seed=1)
    written(cluster, 20)
    leader = cluster.elect()
    follower = cluster.nodes[leader.id % 3 + 1]
    cluster.crash(follower.id)
    rot(follower, 7)
    follower.start()
    refused = 0
    disk = follower.driver._world.log_disk
    plain = disk.refill

    def write(entries: Sequence[Entry], anchor: tuple[int, int] | None, done: Done) -> None:
        nonlocal refused
        if refused < 3:
            refused += 1
            done(StorageError("no room", detail={"errno": errno.ENOSPC}))
        else:
            plain(entries, anchor, done)

    monkeypatch.setattr(disk, "refill", write)
    cluster.run_until(mended(follower), seconds=60)
    assert follower.failures == []
    assert refused == 3


@pytest.mark.case(85)
def test_a_node_acknowledges_nothing_at_or_above_its_first_damaged_entry() -> None:
    cluster = SimCluster(3, seed=2)
    written(cluster, 20)
    leader = cluster.elect()
    follower, other = (node for node in cluster.nodes.values() if node is not leader)
    cluster.crash(follower.id)
    rot(follower, 9, 15)
    follower.start()
    sent = acknowledgements(follower)
    # Nobody answers its questions: the peers' code is too old.
    for peer in (leader, other):
        follower.driver.upkeep.met(peer.id, 2)
    outcomes = [cluster.put(leader.id, f"more{number}") for number in range(10)]
    cluster.run_until(lambda: all(map(was_applied, outcomes)))
    cluster.run_for(0.5)
    assert sent
    assert max(sent) <= 8
    # With the other follower gone nothing commits: this one does not count.
    cluster.isolate(other.id)
    waiting = cluster.put(leader.id, "uncommitted", timeout_s=1.0)
    cluster.run_for(0.4)
    assert not waiting
    assert max(sent) <= 8
    assert follower.driver.applied_index == 8
    for peer in (leader, other):
        follower.driver.upkeep.met(peer.id, 3)
    cluster.run_until(mended(follower), 20)
    cluster.cut.clear()
    written(cluster, 3, "after")
    agree(cluster)


@pytest.mark.case(13)
def test_a_leader_whose_record_rots_hands_over_and_sends_no_gap() -> None:
    cluster = SimCluster(3, seed=3)
    written(cluster, 10)
    leader = cluster.elect()
    slow = cluster.nodes[leader.id % 3 + 1]
    cluster.crash(slow.id)
    written(cluster, 10, "missed")
    leader = cluster.elect()
    rot(leader, 14)
    slow.start()
    cluster.run_until(lambda: leader.storage.damaged or mended(slow)())
    cluster.run_until(lambda: cluster.leader() is not None and cluster.leader() is not leader)
    cluster.run_until(mended(leader))
    agree(cluster)


@pytest.mark.case(62)
def test_a_node_votes_only_for_logs_as_long_as_its_own_was() -> None:
    cluster = SimCluster(3, seed=4)
    written(cluster, 5)
    leader = cluster.elect()
    behind, damaged = (node for node in cluster.nodes.values() if node is not leader)
    cluster.isolate(behind.id)
    outcomes = [cluster.put(leader.id, f"acknowledged{number}") for number in range(5)]
    cluster.run_until(lambda: all(map(was_applied, outcomes)))
    last = damaged.storage.last_index()
    assert last > behind.storage.last_index()
    # What the leader and the damaged node acknowledged is now whole at the leader alone, which is gone.
    cluster.crash(leader.id)
    cluster.crash(damaged.id)
    rot(damaged, last)
    damaged.start()
    cluster.cut.clear()
    for _ in range(30):
        cluster.run_for(0.1)
        assert behind.driver.raw.raft.state is not Role.LEADER
        assert damaged.driver.raw.raft.state in (Role.FOLLOWER,)
    assert (damaged.driver.raw.raft.raft_log.last_entry_id().index, damaged.storage.damaged) == (
        last,
        (last,),
    )
    leader.start()
    cluster.run_until(mended(damaged), 20)
    agree(cluster)
    assert all(was_applied(outcome) for outcome in outcomes)


@pytest.mark.case(50)
@pytest.mark.parametrize("places", [(0,), (1,), (0, 1), (2, 3), (4,), (0, 1, 2, 3, 4)])
def test_a_damaged_tail_that_was_never_committed_is_replaced_by_the_leaders(places: tuple[int, ...]) -> None:
    cluster = SimCluster(3, seed=5)
    written(cluster, 5)
    old = cluster.elect()
    cluster.isolate(old.id)
    for number in range(5):
        cluster.put(old.id, f"lost{number}", timeout_s=0.1)
        cluster.run_for(0.01)
    first = old.storage.last_index() - 4
    cluster.run_until(lambda: cluster.leader() not in (None, old))
    leader = cluster.leader()
    assert leader is not None
    outcomes = [cluster.put(leader.id, f"kept{number}") for number in range(10)]
    cluster.run_until(lambda: all(map(was_applied, outcomes)))
    cluster.run_for(0.2)
    cluster.crash(old.id)
    rot(old, *(first + place for place in places))
    old.start()
    cluster.cut.clear()
    cluster.run_until(lambda: not old.storage.rotten, 20)
    written(cluster, 1, "after")
    cluster.run_until(mended(old))
    agree(cluster)


@pytest.mark.case(50)
def test_what_is_applied_durably_is_cut_off_instead() -> None:
    cluster = SimCluster(3, seed=6)
    written(cluster, 10)
    leader = cluster.elect()
    follower = cluster.nodes[leader.id % 3 + 1]
    follower.take_checkpoint()
    cluster.crash(follower.id)
    rot(follower, 4, 6)
    follower.start()
    cluster.run_until(mended(follower))
    assert follower.storage.first_index() == 8
    written(cluster, 3, "after")
    agree(cluster)


@pytest.mark.case(50)
def test_what_is_needed_is_fetched_before_what_will_be_cut_off() -> None:
    cluster = SimCluster(3, seed=10)
    written(cluster, 10)
    leader = cluster.elect()
    follower = cluster.nodes[leader.id % 3 + 1]
    follower.take_checkpoint()
    written(cluster, 10, "more")
    cluster.crash(follower.id)
    rot(follower, 4, 15, 18)
    for node in cluster.nodes.values():
        if node is not follower:
            node.storage.compact(8)
    follower.start()
    cluster.run_until(lambda: follower.storage.damaged == (4,))
    cluster.run_until(lambda: follower.driver.applied_index == leader.driver.applied_index)
    assert follower.needs_snapshot == []
    follower.take_checkpoint()
    cluster.run_until(mended(follower))
    assert follower.storage.first_index() == 6
    agree(cluster)


@pytest.mark.case(84)
def test_what_all_peers_have_compacted_needs_a_snapshot_that_is_as_new() -> None:
    cluster = SimCluster(3, seed=7)
    written(cluster, 10)
    leader = cluster.elect()
    follower = cluster.nodes[leader.id % 3 + 1]
    cluster.crash(follower.id)
    rot(follower, 4, 6)
    for node in cluster.nodes.values():
        if node is not follower:
            node.storage.compact(8)
    follower.start()
    cluster.run_until(lambda: follower.needs_snapshot)
    assert {*follower.needs_snapshot} == {6}
    cluster.run_for(1)
    assert (follower.storage.damaged, follower.driver.applied_index) == ((4, 6), 3)
    assert not follower.failures


@pytest.mark.case(50)
def test_a_sole_voter_with_damage_says_what_to_do_and_does_not_lead() -> None:
    cluster = SimCluster(1, seed=8)
    written(cluster, 5)
    node = cluster.nodes[1]
    cluster.crash(1)
    rot(node, 3)
    node.start()
    cluster.run_for(2)
    assert node.driver.raw.raft.state is Role.FOLLOWER
    assert "raftstate recover DIR --accept-loss" in node.driver.fitness.alarms[0]


@pytest.mark.parametrize("what", ["another anchor", "another entry", "too many", "not asked for"])
def test_records_that_do_not_belong_there_are_not_believed(what: str) -> None:
    cluster = SimCluster(3, seed=9)
    written(cluster, 10)
    leader = cluster.elect()
    follower = cluster.nodes[leader.id % 3 + 1]
    cluster.crash(follower.id)
    rot(follower, 4, 5)
    follower.start()
    handlers = follower.driver._handlers
    take = handlers[RecordsReply]
    strange: list[RecordsReply] = []

    def first_a_strange_one(sender: int, reply: RecordsReply) -> None:
        if strange:
            take(sender, reply)
            return
        four, five = reply.entries
        other = Entry(4, four.term, data=b"other")
        # Committed here, but not where the answer comes from: its anchor is all that could vouch for it.
        made = {
            "another anchor": RecordsReply(4, [other, five], 6, reply.anchor_term + 1, 3, 0),
            "another entry": RecordsReply(4, [five], 6, reply.anchor_term, 3, 0),
            "too many": RecordsReply(4, [four, five, Entry(6, 1)], 6, reply.anchor_term, 3, 0),
            "not asked for": RecordsReply(3, [Entry(3, 1), other], 6, reply.anchor_term, 3, 0),
        }
        strange.append(made[what])
        take(sender, strange[0])
        assert follower.storage.damaged == (4, 5)

    handlers[RecordsReply] = first_a_strange_one
    cluster.run_until(mended(follower))  # the simulated log refuses other entries than were there
    assert strange
    agree(cluster)


@pytest.mark.case(50)
@pytest.mark.parametrize(("at_peer", "believed"), [(-1, 1), (0, 2), (1, 2), (5, 2)])
def test_without_the_anchor_a_record_is_believed_only_where_both_know_it_to_be_committed(
    at_peer: int, believed: int
) -> None:
    cluster = SimCluster(3, seed=9)
    written(cluster, 10)
    node = cluster.elect()
    refill = node.driver._handlers[RecordsReply].__self__  # type: ignore[attr-defined]
    committed = node.driver.committed_index
    entries = [Entry(index, 1, data=b"any") for index in range(committed - 1, committed + 2)]
    wanted = _Wanted(committed - 1, committed + 1, committed + 2, 1)
    reply = RecordsReply(committed - 1, entries, committed + 2, 2, committed + at_peer, 0)
    assert refill._believed(wanted, reply) == (entries[:believed], None)


def notice(cluster: SimCluster) -> None:
    """Restart the nodes whose records have rotted and were not read since."""
    for node in cluster.nodes.values():
        if not node.storage.rotten <= {*node.storage.damaged}:
            cluster.crash(node.id)
            node.start()


@pytest.mark.case(50)
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("log_margin", [None, 200])
def test_damage_under_load_loses_nothing_and_mends_itself(seed: int, log_margin: int | None) -> None:
    cluster = SimCluster(3, seed=100 + seed, log_margin=log_margin)
    rng = random.Random(seed)
    cluster.elect()
    outcomes: dict[str, list[Outcome]] = {}
    for round_ in range(12):
        for number in range(rng.randrange(1, 8)):
            key = f"k{round_}.{number}"
            node = cluster.nodes[rng.choice(cluster.ids)]
            if node.alive:
                outcomes[key] = cluster.put(node.id, key, timeout_s=3.0)
        cluster.run_for(rng.uniform(0.01, 0.4))
        victim = cluster.nodes[rng.choice(cluster.ids)]
        notice(cluster)
        cluster.run_until(lambda: not any(node.storage.rotten for node in cluster.nodes.values()), 30)
        # What all others have cut off needs a snapshot: that is another test's business.
        first = max(node.storage.first_index() for node in cluster.nodes.values())
        records = range(first, victim.storage.last_index() + 1)
        if rng.random() < 0.5:
            rot(victim, *rng.sample(records, min(len(records), rng.randrange(1, 5))))
            if victim.driver.raw.raft.state is Role.LEADER:
                continue  # it notices when it reads them, or after its next start
        cluster.crash(victim.id)
        cluster.run_for(rng.uniform(0, 0.5))
        victim.start()
    notice(cluster)
    cluster.run_until(lambda: all(mended(node)() for node in cluster.nodes.values()), 60)
    written(cluster, 1, "last")
    agree(cluster)
    acknowledged = [key for key, outcome in outcomes.items() if was_applied(outcome)]
    assert len(acknowledged) > 10
    for node in cluster.nodes.values():
        for key in acknowledged:
            assert node.tables.get(Table.INDEX, key.encode()) is not None, f"{key} is lost on node {node.id}"


def test_the_simulated_log_rots_as_the_real_one_does() -> None:
    log = SimLog()
    log.set_hard_state(HardState(1, 1, 0))
    log.append([Entry(index, 1) for index in range(1, 6)])
    log.rotten = {2, 5}
    log.find_damage()
    assert (log.damaged, log.term(5)) == ((2, 5), 1)
    log.append([Entry(5, 2)])
    assert log.damaged == (2,)
