"""What a leader does of its own accord, in a simulated world: leases end when they must and never before,
history is forgotten at its age, and a cluster moves to the machine version that all of it knows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import msgspec
import pytest

from chaos.sim.clock import MS
from chaos.sim.world import SimCluster, SimNode, was_applied
from raftstate.core.types import EntryType, Message
from raftstate.machine.reader import Reader
from raftstate.machine.types import (
    BATCH_COMMANDS_MAX,
    MACHINE_VERSION,
    BatchResult,
    CompactTo,
    Envelope,
    ExpireLease,
    Item,
    MoveTo,
)
from raftstate.node import upkeep
from raftstate.node.environment import Executed, LeaseStamp, Outcome
from raftstate.node.upkeep import GRACE_NS, LEASE_KEYS_AT_ONCE_MAX, SAMPLES_MAX, RevisionAges

TTL_MS = 5_000
LATE_MS_MAX = 3_000
"""Under one leader a lease ends no later than this after its time to live."""
LEASE = 77


def has_lease(node: SimNode, lease: int = LEASE) -> bool:
    return Reader(node.tables).lease(lease, 0) is not None


def granted(cluster: SimCluster, node_id: int, ttl_ms: int = TTL_MS, ids: Sequence[int] = (LEASE,)) -> int:
    """Grant leases, and wait until all nodes know; return when (ms) they were stamped at the earliest."""
    asked_ms = cluster.time.now_ns // MS
    for at in range(0, len(ids), BATCH_COMMANDS_MAX):
        done(cluster, cluster.grant(node_id, ids[at : at + BATCH_COMMANDS_MAX], ttl_ms))
    cluster.run_until(lambda: all(has_lease(node, ids[-1]) for node in cluster.nodes.values()))
    return asked_ms


def done(cluster: SimCluster, outcomes: list[Outcome]) -> None:
    cluster.run_until(lambda: outcomes)
    assert was_applied(outcomes)
    assert isinstance(outcomes[0], Executed)
    assert isinstance(outcomes[0].result, BatchResult)
    assert [answer.fault for answer in outcomes[0].result.answers if answer.fault] == []


def ended_ms(cluster: SimCluster, lease: int = LEASE, seconds: float = 30) -> int:
    """Run until a node that lives has no such lease any more; return when that was."""
    cluster.run_until(
        lambda: any(not has_lease(node, lease) for node in cluster.nodes.values() if node.alive), seconds
    )
    return cluster.time.now_ns // MS


def proposed(node: SimNode) -> list[list[Item]]:
    """The items of all entries in a node's log, entry by entry."""
    entries = node.storage.entries(node.storage.first_index(), node.storage.last_index() + 1, 1 << 40)
    return [
        msgspec.msgpack.decode(entry.data, type=Envelope).items
        for entry in entries
        if entry.type is EntryType.NORMAL and entry.data
    ]


# -- leases, under one leader


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ttl_ms", [1_000, 5_000, 7_777])
def test_a_lease_ends_after_its_time_to_live_and_soon_after(seed: int, ttl_ms: int) -> None:
    cluster = SimCluster(3, seed)
    leader = cluster.elect()
    asked_ms = granted(cluster, leader.id, ttl_ms)
    acknowledged_ms = cluster.time.now_ns // MS
    done(cluster, cluster.put(leader.id, "mine", lease=LEASE))
    ended = ended_ms(cluster)
    assert asked_ms + ttl_ms <= ended <= acknowledged_ms + ttl_ms + LATE_MS_MAX
    cluster.run_for(0.2)
    assert [Reader(node.tables).get(b"mine") for node in cluster.nodes.values()] == [None] * 3


def test_a_lease_that_is_renewed_in_time_does_not_end() -> None:
    cluster = SimCluster(3, 1)
    leader = cluster.elect()
    granted(cluster, leader.id, 1_000)
    for _ in range(20):
        cluster.run_for(0.95)
        asked_ms = cluster.time.now_ns // MS
        done(cluster, cluster.renew(1 + cluster.random.randrange(3), LEASE))
    assert has_lease(leader)
    assert ended_ms(cluster) >= asked_ms + 1_000


@pytest.mark.parametrize("offset_s", [3_600, -3_600])
def test_a_jump_of_the_wall_clock_moves_no_lease(offset_s: int) -> None:
    cluster = SimCluster(3, 2)
    leader = cluster.elect()
    asked_ms = granted(cluster, leader.id)
    cluster.run_for(1)
    cluster.time.wall_offset_ns = offset_s * 1_000 * MS
    ended = ended_ms(cluster)
    assert asked_ms + TTL_MS <= ended <= asked_ms + TTL_MS + LATE_MS_MAX


def test_many_leases_that_are_due_at_once_end_in_entries_of_bounded_size_and_none_is_ended_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upkeep, "LOOK_NS", 0)  # with each heartbeat
    cluster = SimCluster(3, 3)
    leader = cluster.elect()
    ids = range(1, 2_501)
    granted(cluster, leader.id, TTL_MS, ids)
    acknowledged_ms = cluster.time.now_ns // MS
    for node in cluster.nodes.values():
        node.disk_delay_ms = 20  # so that entries are under way for longer than from one look to the next
    cluster.run_until(lambda: leader.machine.lease_count == 0, 30)
    assert cluster.time.now_ns // MS <= acknowledged_ms + TTL_MS + LATE_MS_MAX
    endings = [items for items in proposed(leader) if any(isinstance(item, ExpireLease) for item in items)]
    assert max(map(len, endings)) <= BATCH_COMMANDS_MAX
    assert sorted(item.lease for items in endings for item in items) == list(ids)


def test_leases_with_many_keys_are_ended_by_entries_of_their_own() -> None:
    cluster = SimCluster(1, 4)
    leader = cluster.elect()
    granted(cluster, 1, 60_000, (1, 2, 3))
    keys = LEASE_KEYS_AT_ONCE_MAX // 2 + 1
    for lease in (1, 2):
        for n in range(keys):
            cluster.put(1, f"{lease}/{n}", lease=lease)
    cluster.run_until(lambda: leader.machine.lease_count == 0, 90)
    endings = [items for items in proposed(leader) if any(isinstance(item, ExpireLease) for item in items)]
    assert [[item.lease for item in items] for items in endings] == [[1], [2, 3]]


# -- leases, when leaders change, stall and stop


@pytest.mark.parametrize("dies", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_a_lease_outlives_its_leader_and_ends_no_earlier_than_it_would_have(seed: int, dies: bool) -> None:
    cluster = SimCluster(3, seed)
    leader = cluster.elect()
    asked_ms = granted(cluster, leader.id)
    cluster.run_for(1 + 3.9 * cluster.random.random())
    if dies:
        cluster.crash(leader.id)
    else:
        leader.pause()
    gone_ms = cluster.time.now_ns // MS
    cluster.run_until(lambda: (new := cluster.leader()) is not None and new is not leader)
    elected_ms = cluster.time.now_ns // MS
    if not dies:
        cluster.run_for(5 - (elected_ms - gone_ms) / 1_000)
        leader.resume()
    ended = ended_ms(cluster)
    assert asked_ms + TTL_MS <= ended
    assert ended <= max(asked_ms + TTL_MS, elected_ms + GRACE_NS // MS) + LATE_MS_MAX


def test_nothing_ends_just_after_an_election_since_renewals_may_be_on_their_way() -> None:
    cluster = SimCluster(3, 5)
    leader = cluster.elect()
    granted(cluster, leader.id)
    cluster.run_for((TTL_MS - 20) / 1_000)
    cluster.crash(leader.id)
    new = cluster.elect()
    cluster.run_for(1.8)
    assert has_lease(new)
    done(cluster, cluster.renew(new.id, LEASE))
    cluster.run_for(TTL_MS / 1_000 - 0.1)
    assert has_lease(new)


@pytest.mark.case(69)
@pytest.mark.parametrize("seed", range(4))
def test_a_leader_that_stalls_ends_no_lease_whose_renewals_wait_in_its_sockets(seed: int) -> None:
    cluster = SimCluster(1, seed)
    node = cluster.elect()
    granted(cluster, 1, 3_000)
    cluster.run_for(2.5)
    node.pause()
    cluster.run_for(5)
    asked_ms = cluster.time.now_ns // MS
    renewed = cluster.renew(1, LEASE)
    node.resume()
    done(cluster, renewed)
    ended = ended_ms(cluster)
    assert asked_ms + 3_000 <= ended <= cluster.time.now_ns // MS + LATE_MS_MAX


@pytest.mark.case(69)
@pytest.mark.parametrize("seed", range(4))
def test_no_lease_ends_whose_renewal_waits_in_the_sockets_of_a_cluster_that_stalls_as_a_whole(
    seed: int,
) -> None:
    cluster = SimCluster(3, seed)
    leader = cluster.elect()
    granted(cluster, leader.id, 3_000)
    cluster.run_for(2.9)
    for node in cluster.nodes.values():
        node.pause()
    cluster.run_for(5)
    asked_ms = cluster.time.now_ns // MS
    for node in cluster.random.sample(list(cluster.nodes.values()), 3):
        node.resume()
    cluster.run_for(0.3)  # much else waits in the sockets before it
    assert cluster.leader() is leader
    done(cluster, cluster.renew(leader.id, LEASE))
    ended = ended_ms(cluster)
    assert asked_ms + 3_000 <= ended <= cluster.time.now_ns // MS + LATE_MS_MAX


@pytest.mark.case(69)
def test_after_a_stall_renewals_that_come_within_the_grace_are_in_time() -> None:
    cluster = SimCluster(1, 1)
    node = cluster.elect()
    granted(cluster, 1, 3_000)
    cluster.run_for(2.9)
    node.pause()
    cluster.run_for(5)
    node.resume()
    cluster.run_for(1.9)
    assert has_lease(node)
    done(cluster, cluster.renew(1, LEASE))


@pytest.mark.parametrize("seed", range(6))
def test_a_follower_that_counted_on_while_the_leader_stalled_does_not_lead_with_that_time(seed: int) -> None:
    cluster = SimCluster(3, seed)
    leader = cluster.elect()
    heir, third = (node for node in cluster.nodes.values() if node is not leader)
    granted(cluster, leader.id, 4_000)
    cluster.run_for(0.5)
    cluster.crash(third.id)
    leader.pause()
    cluster.run_for(5)  # the heir alone can't be elected
    asked_ms = cluster.time.now_ns // MS
    renewed = cluster.renew(leader.id, LEASE)
    leader.resume()
    done(cluster, renewed)
    cluster.crash(leader.id)
    third.start()
    cluster.run_until(lambda: cluster.leader() is heir)
    assert ended_ms(cluster) >= asked_ms + 4_000


@pytest.mark.parametrize("seed", range(6))
def test_a_follower_that_was_paused_and_then_leads_ends_no_lease_early(seed: int) -> None:
    cluster = SimCluster(3, seed)
    leader = cluster.elect()
    heir = next(node for node in cluster.nodes.values() if node is not leader)
    granted(cluster, leader.id, 4_000)
    heir.pause()
    for _ in range(3):
        cluster.run_for(1.7)
        asked_ms = cluster.time.now_ns // MS
        done(cluster, cluster.renew(leader.id, LEASE))
    heir.resume()
    leader.driver.transfer_leader(heir.id)
    cluster.run_until(lambda: cluster.leader() is heir)
    assert asked_ms + 4_000 <= ended_ms(cluster) <= asked_ms + 4_000 + GRACE_NS // MS + LATE_MS_MAX


def test_a_new_leader_that_applies_higher_stamps_goes_on_from_them() -> None:
    cluster = SimCluster(3, 6)
    leader = cluster.elect()
    granted(cluster, leader.id, 60_000)
    cluster.run_for(5)
    for node in cluster.nodes.values():
        node.crash()  # each starts from its first state again, with all entries in its log
    for node in cluster.nodes.values():
        node.start()
    new = cluster.elect()
    cluster.run_until(lambda: has_lease(new))
    assert new.driver.lease_clock_ms() >= new.machine.lease_clock_ms > 4_000


# -- the stamps of heartbeats


def test_a_follower_s_lease_clock_is_its_leader_s_soon_after_it_was_paused() -> None:
    cluster = SimCluster(3, 7)
    leader = cluster.elect()
    follower = next(node for node in cluster.nodes.values() if node is not leader)
    granted(cluster, leader.id, 60_000)
    ticks = leader.storage.last_index()
    cluster.run_until(lambda: leader.storage.last_index() > ticks)  # the next tick is a second away
    cluster.run_for(0.01)
    follower.pause()
    cluster.run_for(0.75)
    follower.resume()
    cluster.run_for(0.16)
    assert 0 <= leader.driver.lease_clock_ms() - follower.driver.lease_clock_ms() <= 5


def test_a_lease_stamp_counts_only_if_it_is_the_leader_s() -> None:
    cluster = SimCluster(3, 8)
    leader = cluster.elect()
    first, second = (node for node in cluster.nodes.values() if node is not leader)
    before_ms = first.driver.lease_clock_ms()
    first.driver.receive(second.id, LeaseStamp(before_ms + 1_000_000))
    leader.driver.receive(second.id, LeaseStamp(before_ms + 1_000_000))
    assert (first.driver.lease_clock_ms(), leader.driver.lease_clock_ms() < 60_000) == (before_ms, True)


@pytest.mark.parametrize("machine_version", [1, 2])
def test_stamps_are_sent_only_while_something_lives_by_them_and_all_nodes_know_them(
    machine_version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = SimCluster(3, 9, machine_version=machine_version)
    for node in cluster.nodes.values():
        for other in cluster.ids:
            node.driver.upkeep.met(other, machine_version)
    leader = cluster.elect()
    stamps: list[object] = []
    deliver = cluster.deliver

    def watch(sender: int, to: int, body: object) -> None:
        if not isinstance(body, Message):
            stamps.append(body)
        deliver(sender, to, body)  # type: ignore[arg-type]

    monkeypatch.setattr(cluster, "deliver", watch)
    cluster.run_for(1)
    assert stamps == []
    if machine_version > 1:
        granted(cluster, leader.id)
        cluster.run_for(1)
        assert 10 <= len(stamps) <= 14  # two peers, every 150 ms


# -- compaction by age


@pytest.mark.parametrize("retention_s", [2, 10])
def test_history_is_kept_for_its_retention_and_compacted_soon_after(retention_s: int) -> None:
    cluster = SimCluster(3, 10, retention_s=retention_s)
    leader = cluster.elect()
    written: list[tuple[int, int]] = []  # (time, revision that was the latest from then on)
    for n in range(100):
        done(cluster, cluster.put(leader.id, f"k{n % 7}"))
        written.append((cluster.time.now_ns, leader.machine.revision))
        cluster.run_for(0.2)
        now_ns, compacted = cluster.time.now_ns, leader.machine.compacted_revision
        # Every state of the last `retention_s` can be read: those are the revisions not below the compacted.
        ages_s = [(now_ns - at_ns) / 1e9 for at_ns, revision in written if revision >= compacted]
        superseded_s = [
            (now_ns - later_ns) / 1e9
            for (_, revision), (later_ns, _) in pairwise(written)
            if revision < compacted
        ]
        assert all(age_s >= retention_s for age_s in superseded_s)
        assert max(ages_s) <= retention_s + 2
    assert leader.machine.compacted_revision > 1
    assert len({node.machine.digest for node in cluster.nodes.values()}) in (1, 2)


def test_a_new_leader_goes_on_compacting_without_waiting_for_the_history_to_grow_old_anew() -> None:
    cluster = SimCluster(3, 11, retention_s=10)
    leader = cluster.elect()
    done(cluster, cluster.put(leader.id, "a", "1"))
    done(cluster, cluster.put(leader.id, "a", "2"))
    cluster.run_for(8)
    cluster.crash(leader.id)
    new = cluster.elect()
    cluster.run_until(lambda: new.machine.compacted_revision == 3, 5)


def test_without_a_retention_nothing_is_compacted() -> None:
    cluster = SimCluster(1, 12, retention_s=0)
    leader = cluster.elect()
    done(cluster, cluster.put(1, "a"))
    cluster.run_for(30)
    assert not any(isinstance(item, CompactTo) for items in proposed(leader) for item in items)


def test_an_idle_store_is_compacted_once() -> None:
    cluster = SimCluster(1, 13, retention_s=2)
    leader = cluster.elect()
    done(cluster, cluster.put(1, "a"))
    cluster.run_for(30)
    compactions = [item for items in proposed(leader) for item in items if isinstance(item, CompactTo)]
    assert compactions == [CompactTo(2)]


def test_the_ages_of_revisions_take_bounded_memory_and_are_a_hundredth_precise() -> None:
    retention_ns = 3_600_000 * MS
    ages = RevisionAges(retention_ns)
    for second in range(100_000):
        now_ns = second * 1_000 * MS
        ages.note(now_ns, second)
        known = ages.revision_before(now_ns)
        if second >= 3_636:
            assert known is not None
            assert 3_600 <= second - known <= 3_636
    assert len(ages._samples) <= SAMPLES_MAX + 2


# -- the machine version


def versions(cluster: SimCluster) -> list[int]:
    return [node.machine.machine_version for node in cluster.nodes.values()]


def test_a_cluster_moves_to_a_new_machine_version_once_its_last_member_knows_it() -> None:
    cluster = SimCluster(3, 14, machine_version=1)
    old = cluster.nodes[3]
    old.knows = 1
    for node in cluster.nodes.values():
        node.driver.upkeep.met(3, 1)
    cluster.elect()
    cluster.run_for(5)
    assert versions(cluster) == [1, 1, 1]
    cluster.crash(3)
    cluster.run_for(5)
    assert versions(cluster)[:2] == [1, 1]  # whoever is away may come back as it was
    old.knows = 2
    old.start()
    cluster.run_until(lambda: versions(cluster) == [2, 2, 2], 2)
    moves = [item for items in proposed(cluster.elect()) for item in items if isinstance(item, MoveTo)]
    assert moves == [MoveTo(2)]


def test_a_leader_that_has_not_heard_from_all_members_moves_nothing() -> None:
    cluster = SimCluster(3, 15, machine_version=1)
    for node in cluster.nodes.values():
        node.driver.upkeep.lost(3)
    cluster.nodes[3].crash()
    cluster.elect()
    cluster.run_for(5)
    assert versions(cluster)[:2] == [1, 1]


def test_a_single_node_moves_at_once_and_leads_at_once() -> None:
    cluster = SimCluster(1, 16, machine_version=1)
    began_ns = cluster.time.now_ns
    cluster.run_until(lambda: versions(cluster) == [MACHINE_VERSION])
    assert cluster.time.now_ns - began_ns < 50 * MS  # virtual: some log writes and one heartbeat


def test_below_machine_version_2_nothing_is_proposed_that_older_nodes_do_not_know() -> None:
    cluster = SimCluster(3, 17, machine_version=1, retention_s=1)
    for node in cluster.nodes.values():
        node.driver.upkeep.met(3, 1)
        node.driver.upkeep.met(2, 1)
        node.driver.upkeep.met(1, 1)
    leader = cluster.elect()
    for n in range(10):
        done(cluster, cluster.put(leader.id, f"k{n}"))
        cluster.run_for(0.5)
    kinds = {type(item) for items in proposed(leader) for item in items}
    assert not kinds & {CompactTo, ExpireLease, MoveTo}
