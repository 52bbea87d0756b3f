"""Snapshots between simulated nodes: a follower that the log can't help any more, and all that may happen on
the way."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from chaos.sim.members import MemberCluster
from chaos.sim.world import SimCluster, SimNode, was_applied
from raftstate.core.types import ConfState, Entry, Message, MessageType, Snapshot, SnapshotMetadata
from raftstate.machine.layout import read_meta
from raftstate.machine.tables import Table
from raftstate.machine.types import Code, Register
from raftstate.node import snapshot_files, snapshot_receiver, snapshot_sender
from raftstate.node.environment import (
    Executed,
    Outcome,
    PeerBody,
    Rejected,
    SnapshotChunk,
    SnapshotFinished,
    SnapshotOffer,
    SnapshotPull,
    SnapshotWithdrawn,
)

SNAPSHOT_BODIES = (SnapshotOffer, SnapshotPull, SnapshotChunk, SnapshotFinished, SnapshotWithdrawn)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the small states of these tests travel in many pieces."""
    monkeypatch.setattr(snapshot_sender, "CHUNK_BYTES", 700)
    monkeypatch.setattr(snapshot_receiver, "PULL_BYTES", 1_500)
    monkeypatch.setattr(snapshot_receiver, "AHEAD_BYTES", 3_000)


def write(cluster: SimCluster, node_id: int, prefix: str, count: int) -> None:
    """Have so many writes acknowledged."""
    outcomes = [cluster.put(node_id, f"{prefix}/{n}", "v" * 50) for n in range(count)]
    cluster.run_until(lambda: all(outcomes))
    assert all(map(was_applied, outcomes))


def cluster_with_one_behind(seed: int, *, margin: int = 5, writes: int = 60) -> tuple[SimCluster, SimNode]:
    """Three nodes; the one returned was down while the others wrote, and cut their logs behind it."""
    cluster = SimCluster(3, seed, log_margin=margin)
    leader = cluster.elect()
    write(cluster, leader.id, "before", 3)
    behind = next(node for node in cluster.nodes.values() if node is not leader)
    cluster.run_for(0.3)
    cluster.crash(behind.id)
    cluster.run_until(cluster.leader)
    for n in range(writes // 3):
        write(cluster, cluster.elect().id, f"meanwhile/{n}", 3)  # an entry
    cluster.run_for(0.5)
    last = behind.storage.last_index()
    assert all(node.storage.first_index() > last + 1 for node in cluster.nodes.values() if node.alive)
    return cluster, behind


def same_state(cluster: SimCluster) -> bool:
    """Whether all nodes have applied the same, and all that is committed."""
    nodes = list(cluster.nodes.values())
    if not all(node.alive for node in nodes):
        return False
    committed = max(node.driver.raw.raft.raft_log.committed for node in nodes)
    return all(node.driver.applied_index == committed for node in nodes) and (
        len({node.machine.digest for node in nodes}) == 1
    )


def healthy(cluster: SimCluster) -> None:
    """Assert that nobody halted, and that all come to the same state."""
    cluster.run_until(lambda: same_state(cluster), seconds=60)
    assert [node.failures for node in cluster.nodes.values()] == [[], [], []]
    dumps = [node.tables.dump() for node in cluster.nodes.values()]
    assert dumps[0] == dumps[1] == dumps[2]


def test_a_follower_that_the_log_can_t_help_is_sent_a_snapshot_and_then_the_log() -> None:
    cluster, behind = cluster_with_one_behind(1)
    behind.start()
    healthy(cluster)
    assert len(behind.installed) == 1
    outcomes = cluster.put(behind.id, "after")
    cluster.run_until(lambda: outcomes)
    assert was_applied(outcomes)
    healthy(cluster)
    reads = cluster.read(behind.id)
    cluster.run_until(lambda: reads)
    assert isinstance(reads[0], int)


@pytest.mark.case(45)
@pytest.mark.parametrize("seed", range(5))
def test_the_log_is_kept_for_a_follower_that_installs_while_others_write(seed: int) -> None:
    cluster, behind = cluster_with_one_behind(seed, margin=1)
    writer = cluster.elect()
    behind.disk_delay_ms = 20
    behind.start()
    for n in range(40):
        write(cluster, writer.id, f"more/{n}", 3)
        cluster.run_for(0.03)
    healthy(cluster)
    # However much was written meanwhile: it was sent one, and went on by the log.
    assert len(behind.installed) == 1


def bodies_at(cluster: SimCluster, tamper: Callable[[int, int, PeerBody], list[float] | None]) -> None:
    """Have `tamper` decide on the bodies of snapshots; None: as ever."""

    def decide(sender: int, to: int, body: PeerBody) -> list[float]:
        decided = tamper(sender, to, body) if isinstance(body, SNAPSHOT_BODIES) else None
        return [cluster.random.uniform(0.0001, 0.002)] if decided is None else decided

    cluster.tamper = decide


@pytest.mark.parametrize("seed", range(10))
def test_lost_repeated_and_late_bodies_of_a_snapshot_are_harmless(seed: int) -> None:
    cluster, behind = cluster_with_one_behind(seed)

    def unreliable(_sender: int, _to: int, _body: PeerBody) -> list[float]:
        times = cluster.random.choice([0, 1, 1, 1, 1, 2, 3])
        return [cluster.random.choice([0.0005, 0.002, 0.01, 0.3]) for _ in range(times)]

    bodies_at(cluster, unreliable)
    behind.start()
    cluster.run_until(lambda: behind.installed, seconds=120)
    healthy(cluster)


@pytest.mark.parametrize("kind", SNAPSHOT_BODIES)
def test_each_kind_of_body_may_be_lost_once(kind: type) -> None:
    cluster, behind = cluster_with_one_behind(2)
    lost: list[PeerBody] = []

    def lose_first(_sender: int, _to: int, body: PeerBody) -> list[float] | None:
        if isinstance(body, kind) and not lost:
            lost.append(body)
            return []
        return None

    bodies_at(cluster, lose_first)
    behind.start()
    cluster.run_until(lambda: behind.installed, seconds=5)  # it is not left to a second transfer
    healthy(cluster)
    assert len(behind.installed) == 1


def test_a_transfer_goes_on_where_it_was_when_the_link_is_back() -> None:
    cluster, behind = cluster_with_one_behind(3)
    leader = cluster.elect()
    chunks: list[int] = []

    def note(sender: int, to: int, body: PeerBody) -> list[float] | None:
        if isinstance(body, SnapshotChunk):
            chunks.append(body.offset)
            if len(chunks) == 8:
                cluster.cut |= {(sender, to), (to, sender)}
        return None

    bodies_at(cluster, note)
    behind.start()
    cluster.run_until(lambda: len(chunks) >= 8)
    cluster.run_for(0.3)
    cluster.cut.clear()
    healthy(cluster)
    assert chunks.count(0) == 1
    assert len(behind.installed) == 1
    assert leader.snapshots_made == 1


def test_a_transfer_that_does_not_come_on_is_given_up_and_the_log_let_go() -> None:
    cluster, behind = cluster_with_one_behind(4)
    leader = cluster.elect()
    bodies_at(cluster, lambda _sender, _to, body: [] if isinstance(body, SnapshotPull) else None)
    behind.start()
    cluster.run_until(lambda: leader.driver.snapshots.sender.log_needed_from())
    cluster.run_for(20)
    first = leader.storage.first_index()
    write(cluster, leader.id, "more", 50)
    cluster.run_for(20)
    assert leader.storage.first_index() > first
    cluster.tamper = None
    healthy(cluster)


@pytest.mark.parametrize("moment", [SnapshotOffer, SnapshotPull, SnapshotChunk, SnapshotFinished])
@pytest.mark.parametrize("how", ["crash", "isolate"])
def test_a_change_of_leader_in_mid_transfer_costs_nothing_but_time(moment: type, how: str) -> None:
    cluster, behind = cluster_with_one_behind(5)
    leader = cluster.elect()
    seen: list[PeerBody] = []

    def note(_sender: int, _to: int, body: PeerBody) -> list[float] | None:
        if isinstance(body, moment):
            seen.append(body)
        return None

    bodies_at(cluster, note)
    behind.start()
    cluster.run_until(lambda: seen)
    if how == "crash":
        cluster.crash(leader.id)
    else:
        cluster.isolate(leader.id)
    cluster.run_until(lambda: cluster.leader() not in (None, leader), seconds=60)
    new = cluster.elect()
    write(cluster, new.id, "new", 10)
    cluster.cut.clear()
    if how == "crash":
        leader.start()
    healthy(cluster)


def steps_of_an_install(seed: int) -> tuple[SimCluster, SimNode]:
    """A cluster at the moment when a follower is offered a snapshot."""
    cluster, behind = cluster_with_one_behind(seed, margin=3, writes=30)
    offered: list[PeerBody] = []

    def note(_sender: int, _to: int, body: PeerBody) -> list[float] | None:
        if isinstance(body, SnapshotOffer):
            offered.append(body)
        return None

    bodies_at(cluster, note)
    behind.start()
    cluster.run_until(lambda: offered)
    return cluster, behind


@pytest.mark.case(40)
@pytest.mark.case(67)
@pytest.mark.parametrize("seed", [6, 7])
def test_a_crash_after_any_step_of_an_install_leaves_the_old_state_or_the_new(seed: int) -> None:
    cluster, behind = steps_of_an_install(seed)
    steps = 0
    between: list[int] = []
    while not (behind.installed and behind.driver.applied_index >= behind.installed[0]):
        cluster.time.step()
        steps += 1
        between += [steps] if behind.is_switched else []
    resets = 0
    for crash_after in sorted({*range(0, steps + 20, 5), *between}):
        cluster, behind = steps_of_an_install(seed)
        for _ in range(crash_after):
            cluster.time.step()
        cluster.crash(behind.id)
        old, new = behind.storage.last_index(), read_meta(behind.checkpoint).applied_index
        behind.start()
        assert behind.driver.applied_index == new
        assert behind.storage.first_index() <= new + 1 <= behind.storage.last_index() + 1, (old, new)
        resets += behind.resets_at_start
        healthy(cluster)
    # Some of them came between the new state and the new log.
    assert resets > 0


@pytest.mark.case(67)
@pytest.mark.case(83)
def test_a_crash_between_the_new_state_and_the_new_log_is_mended_at_the_start() -> None:
    cluster, behind = steps_of_an_install(8)
    cluster.run_until(lambda: behind.installed)
    term, vote = behind.driver.raw.raft.term, behind.driver.raw.raft.vote
    assert behind.storage.last_index() < behind.installed[0]
    cluster.crash(behind.id)
    behind.start()
    assert behind.resets_at_start == 1
    assert behind.storage.first_index() == behind.installed[0] + 1
    hard_state, _ = behind.storage.initial_state()
    assert (hard_state.term, hard_state.vote) == (term, vote)
    healthy(cluster)
    assert len(behind.installed) == 1


@pytest.mark.case(39)
def test_what_follows_a_snapshot_is_applied_to_its_state_however_late_that_is_adopted() -> None:
    cluster, behind = steps_of_an_install(6)
    adopt = behind.applier.adopt
    # As when a checkpoint of the old state is being synced, which is waited for.
    behind.applier.adopt = lambda prepared, done: (  # type: ignore[method-assign]
        cluster.time.call_later(1, lambda: adopt(prepared, done)) and None
    )
    applied: list[int] = []
    behind.driver.result_watchers.append(lambda results: applied.extend(entry.index for entry in results))
    cluster.run_until(lambda: behind.installed)
    before = list(applied)
    for n in range(5):
        write(cluster, cluster.elect().id, f"behind/{n}", 3)
        cluster.run_for(0.1)
    assert (behind.failures, applied) == ([], before)
    healthy(cluster)
    assert applied[len(before) :] == list(range(behind.installed[0] + 1, behind.driver.applied_index + 1))


@pytest.mark.case(43)
@pytest.mark.parametrize("log_margin", [None, 0])
def test_an_older_snapshot_is_answered_with_what_is_committed_and_no_bytes_travel(
    log_margin: int | None,
) -> None:
    cluster = SimCluster(3, 9, log_margin=log_margin)
    leader = cluster.elect()
    for n in range(3):
        write(cluster, leader.id, f"a/{n}", 1)
    cluster.run_for(0.5)
    follower = next(node for node in cluster.nodes.values() if node is not leader)
    # With no margin the follower's log does not hold the snapshot's last entry any more.
    assert (follower.storage.first_index() > 3) is (log_margin == 0)
    raft = follower.driver.raw.raft
    sent: list[PeerBody] = []

    def note(sender: int, _to: int, body: PeerBody) -> list[float] | None:
        sent.extend([body] if sender == follower.id else [])
        return None

    bodies_at(cluster, note)
    metadata = SnapshotMetadata(ConfState(voters=(1, 2, 3)), 2, 1)
    message = Message(
        MessageType.SNAP, follower.id, leader.id, raft.term, snapshot=Snapshot(metadata=metadata)
    )
    follower.receive(leader.id, SnapshotOffer(77, message, 1_000, 1_000))
    assert sent == [SnapshotFinished(77, ok=True)]
    assert raft.raft_log.committed > 2
    healthy(cluster)
    assert follower.installed == []


@pytest.mark.case(61)
def test_a_log_that_holds_the_snapshot_s_last_entry_keeps_what_comes_after_it() -> None:
    cluster = SimCluster(3, 10)
    leader = cluster.elect()
    write(cluster, leader.id, "a", 5)
    cluster.run_for(0.2)
    follower = next(node for node in cluster.nodes.values() if node is not leader)
    # It holds entries that it does not know to be committed.
    bare = {(other, follower.id) for other in cluster.ids if other != follower.id}
    raft_log = follower.driver.raw.raft.raft_log
    outcomes = cluster.put(leader.id, "late")
    cluster.run_until(lambda: follower.storage.last_index() > raft_log.committed, seconds=1)
    cluster.cut |= bare
    last = raft_log.last_index()
    assert last > raft_log.committed
    term = raft_log.term(last)
    raft = follower.driver.raw.raft
    metadata = SnapshotMetadata(ConfState(voters=(1, 2, 3)), last, term)
    message = Message(
        MessageType.SNAP, follower.id, leader.id, raft.term, snapshot=Snapshot(metadata=metadata)
    )
    follower.receive(leader.id, SnapshotOffer(78, message, 1_000, 1_000))
    assert raft_log.committed == raft_log.last_index() == last
    assert follower.installed == []
    cluster.cut.clear()
    cluster.run_until(lambda: outcomes)
    healthy(cluster)


@pytest.mark.case(41)
def test_a_second_snapshot_while_the_first_is_being_installed_waits_for_it() -> None:
    cluster, behind = steps_of_an_install(11)
    leader = cluster.elect()
    cluster.run_until(lambda: behind.driver.snapshots.receiver.is_installing)
    sent: list[SnapshotFinished] = []

    def note(sender: int, _to: int, body: PeerBody) -> list[float] | None:
        if isinstance(body, SnapshotFinished) and sender == behind.id:
            sent.append(body)
        return None

    bodies_at(cluster, note)
    raft = behind.driver.raw.raft
    metadata = SnapshotMetadata(ConfState(voters=(1, 2, 3)), raft.raft_log.committed + 5, raft.term)
    message = Message(MessageType.SNAP, behind.id, leader.id, raft.term, snapshot=Snapshot(metadata=metadata))
    behind.receive(leader.id, SnapshotOffer(1 << 62, message, 1_000, 1_000))
    assert [(finished.id, finished.ok) for finished in sent] == [(1 << 62, False)]
    healthy(cluster)
    assert len(behind.installed) == 1


@pytest.mark.case(42)
@pytest.mark.case(56)
def test_a_damaged_snapshot_is_refused_and_another_one_is_made() -> None:
    cluster, behind = cluster_with_one_behind(12)
    leader = cluster.elect()
    leader.damage_snapshots = True
    behind.start()
    cluster.run_until(lambda: leader.snapshots_made >= 2, seconds=60)
    assert behind.installed == []
    assert any("damaged" in alarm for alarm in behind.driver.fitness.alarms)
    leader.damage_snapshots = False
    healthy(cluster)
    assert behind.driver.fitness.alarms == ()


def test_a_follower_without_room_says_why_and_is_sent_it_when_there_is() -> None:
    cluster, behind = cluster_with_one_behind(13)
    behind.start()
    behind.disk_is_full = True
    cluster.run_until(lambda: behind.driver.fitness.alarms, seconds=20)
    assert "the disk is full" in behind.driver.fitness.alarms[0]
    assert behind.driver.fitness.may_read
    cluster.run_for(5)
    behind.disk_is_full = False
    healthy(cluster)
    assert behind.driver.fitness.alarms == ()
    assert cluster.elect().snapshots_made <= 2


def test_a_leader_that_may_show_nothing_offers_no_snapshot() -> None:
    cluster, behind = cluster_with_one_behind(14)
    leader = cluster.elect()
    leader.driver.fitness.limit("state", "it differs from the others'", may_read=False)
    behind.start()
    cluster.run_for(3)
    assert leader.snapshots_made == 0
    leader.driver.fitness.lift("state")
    healthy(cluster)


def test_a_file_goes_when_nobody_has_needed_it_for_a_while() -> None:
    cluster, behind = cluster_with_one_behind(15)
    leader = cluster.elect()
    behind.start()
    healthy(cluster)
    own = leader.driver.snapshots.own
    cluster.run_for(snapshot_files.UNUSED_NS / 1e9 + 1)
    assert own._newest is None
    assert own.log_needed_from() is None


def test_writes_proposed_by_a_leader_that_is_sent_a_snapshot_later_are_unknown() -> None:
    cluster = SimCluster(3, 16, log_margin=2)
    old = cluster.elect()
    write(cluster, old.id, "a", 3)
    cluster.isolate(old.id)
    outcomes = [cluster.put(old.id, f"lonely/{n}", timeout_s=50) for n in range(5)]
    cluster.run_until(lambda: cluster.leader() not in (None, old), seconds=10)
    new = cluster.elect()
    for n in range(10):
        write(cluster, new.id, f"b/{n}", 5)
    cluster.run_for(0.5)
    cluster.cut.clear()
    healthy(cluster)
    assert len(old.installed) == 1
    for outcome in outcomes:
        assert len(outcome) == 1
        assert isinstance(outcome[0], Rejected)
        assert (outcome[0].fault.code, outcome[0].applied_never) == (Code.UNKNOWN_OUTCOME, False)
    assert not any(b"lonely" in key for rows in new.tables.dump().values() for key in rows)


@pytest.mark.case(44)
def test_sessions_and_members_come_with_a_snapshot_and_those_who_wait_for_its_index_go_on() -> None:
    cluster = SimCluster(3, 17, log_margin=2)
    leader = cluster.elect()
    behind = next(node for node in cluster.nodes.values() if node is not leader)
    cluster.run_for(0.2)
    cluster.crash(behind.id)
    cluster.run_until(cluster.leader)
    leader = cluster.elect()
    registered: list[Outcome] = []
    leader.driver.submit(Register(9, 600_000), 1, 5_000_000_000, registered.append)
    for n in range(10):
        write(cluster, leader.id, f"b/{n}", 5)
    cluster.run_for(0.5)
    behind.start()
    waited: list[int | Rejected] = []
    assert isinstance(registered[0], Executed)
    behind.driver.wait_for(registered[0].index, 20_000_000_000, waited.append)
    healthy(cluster)
    assert isinstance(waited[0], int)
    assert behind.machine.session_count == 1
    assert behind.driver.applied.sessions == 1
    assert behind.driver.applied.members == leader.driver.applied.members


def random_schedule(seed: int) -> int:
    """Writes, crashes, cuts and unreliable transfers, with a log that reaches back next to nothing. Returns
    how many snapshots were installed."""
    cluster = SimCluster(3, seed, log_margin=seed % 4)
    draw = cluster.random
    written: dict[str, list[Outcome]] = {}

    def unreliable(_sender: int, _to: int, _body: PeerBody) -> list[float]:
        times = draw.choice([0, 1, 1, 1, 1, 1, 1, 2])
        return [draw.choice([0.0005, 0.002, 0.02]) for _ in range(times)]

    bodies_at(cluster, unreliable)
    for step in range(60):
        node = cluster.nodes[draw.choice(cluster.ids)]
        match draw.choice(["put", "put", "put", "put", "crash", "start", "start", "isolate", "heal", "wait"]):
            case "put" if node.alive:
                for n in range(draw.randrange(1, 5)):
                    key = f"{step}/{n}"
                    written[key] = cluster.put(node.id, key, "v" * 40)
            case "crash" if node.alive and sum(each.alive for each in cluster.nodes.values()) > 1:
                cluster.crash(node.id)
            case "start" if not node.alive:
                node.start()
            case "isolate" if not cluster.cut:
                cluster.isolate(node.id)
            case "heal":
                cluster.cut.clear()
        cluster.run_for(draw.choice([0.001, 0.02, 0.2, 0.6]))
    cluster.cut.clear()
    for node in cluster.nodes.values():
        if not node.alive:
            node.start()
    cluster.elect()
    last = cluster.put(cluster.elect().id, "last")
    cluster.run_until(lambda: last, seconds=20)
    healthy(cluster)
    acknowledged = [key for key, outcomes in written.items() if was_applied(outcomes)]
    keys = {key for key, _ in cluster.nodes[1].tables.scan(Table.INDEX)}
    lost = [key for key in acknowledged if not any(key.encode() in held for held in keys)]
    assert lost == []
    return sum(len(node.installed) for node in cluster.nodes.values())


@pytest.mark.case(39)
@pytest.mark.parametrize("base", range(4))
def test_random_schedules_lose_nothing_and_end_with_equal_states(base: int) -> None:
    assert sum(random_schedule(seed) for seed in range(base * 10, base * 10 + 10)) > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("base", range(10))
def test_many_random_schedules_lose_nothing(base: int) -> None:
    assert sum(random_schedule(seed) for seed in range(1_000 + base * 100, 1_100 + base * 100)) > 0


def test_a_node_that_joins_takes_no_entries_from_the_first_one_on_but_a_snapshot() -> None:
    cluster = MemberCluster(3, 18)
    leader = cluster.elect()
    write(cluster, leader.id, "a", 3)
    blank = cluster.add(4, promote=False)
    # A leader whose log still begins with the first entry would send it so.
    entries = [Entry(1, 1), Entry(2, 1, data=b"x")]
    term = leader.driver.raw.raft.term
    append = Message(MessageType.APP, blank.id, leader.id, term, entries=entries, commit=2)
    assert blank.driver.applied.is_blank
    blank.receive(leader.id, append)
    assert blank.driver.raw.raft.raft_log.last_index() == 0
    cluster.run_until(lambda: blank.installed)
    cluster.run_until(lambda: blank.driver.applied_index >= leader.driver.applied_index)
    assert not blank.driver.applied.is_blank
    assert blank.machine.digest == leader.machine.digest
    assert blank.failures == []


def test_what_was_handed_to_the_applier_and_is_within_the_snapshot_counts_as_applied() -> None:
    cluster = SimCluster(3, 19, log_margin=3)
    leader = cluster.elect()
    behind = next(node for node in cluster.nodes.values() if node is not leader)
    cluster.run_for(0.2)
    behind.applier_is_stuck = True
    for n in range(3):
        write(cluster, leader.id, f"a/{n}", 3)
    cluster.run_for(0.1)
    assert behind.driver._unapplied
    cluster.isolate(behind.id)
    for n in range(20):
        write(cluster, leader.id, f"b/{n}", 3)
    cluster.run_for(0.5)
    cluster.cut.clear()
    cluster.run_until(lambda: behind.installed)
    behind.applier_is_stuck = False
    healthy(cluster)
    assert behind.driver._unapplied == {}
    assert behind.driver.raw.raft.raft_log._applying_bytes == 0


def test_an_offer_without_a_term_is_ignored() -> None:
    cluster = SimCluster(3, 0)
    leader = cluster.elect()
    follower = next(node for node in cluster.nodes.values() if node is not leader)
    state = follower.driver.applied.conf_state
    snapshot = Snapshot(metadata=SnapshotMetadata(state, 99, 1))
    answered: list[PeerBody] = []

    def note(sender: int, to: int, body: PeerBody) -> list[float]:
        answered.extend([body] if isinstance(body, SnapshotPull | SnapshotFinished) else [])
        return [0.001]

    cluster.tamper = note
    for term, answers in ((0, False), (1, True)):
        message = Message(MessageType.SNAP, to=follower.id, from_=leader.id, term=term, snapshot=snapshot)
        follower.receive(leader.id, SnapshotOffer(7 + term, message, 100, 100))
        cluster.run_for(0.05)
        assert bool(answered) is answers
