"""The driver in a simulated world: writes, reads, leadership and loss, without a socket or a real second."""

from __future__ import annotations

from typing import Any

import pytest

from chaos.sim.clock import MS
from chaos.sim.world import SimCluster, SimNode, was_applied
from raftstate.core.roles import Role
from raftstate.core.types import Entry, Message, MessageType
from raftstate.machine.reader import Reader
from raftstate.machine.types import Batch, Code, Register
from raftstate.node.environment import Executed, ForwardReply, Outcome, Rejected, TransferLeader
from raftstate.node.requests import Request, fill_entries


def value_at(node: SimNode, key: str) -> bytes | None:
    pair = Reader(node.tables).get(key.encode())
    return None if pair is None else pair.value


@pytest.mark.parametrize("seed", range(5))
def test_a_write_through_any_node_is_applied_on_all(seed: int) -> None:
    cluster = SimCluster(3, seed)
    cluster.elect()
    for node_id in cluster.ids:
        outcomes = cluster.put(node_id, f"k{node_id}", "v")
        cluster.run_until(lambda outcomes=outcomes: outcomes)
        assert was_applied(outcomes)
    cluster.run_for(0.2)
    assert [[value_at(node, f"k{i}") for i in cluster.ids] for node in cluster.nodes.values()] == [
        [b"v"] * 3
    ] * 3
    assert len({node.machine.digest for node in cluster.nodes.values()}) == 1


def test_a_single_node_is_its_own_majority() -> None:
    cluster = SimCluster(1, 0)
    cluster.elect()
    outcomes = cluster.put(1, "a")
    cluster.run_until(lambda: outcomes)
    assert was_applied(outcomes)


@pytest.mark.parametrize("seed", range(10))
def test_what_was_acknowledged_survives_the_leader(seed: int) -> None:
    cluster = SimCluster(3, seed)
    leader = cluster.elect()
    done = [cluster.put(node_id, f"k{n}", str(n)) for n in range(30) for node_id in cluster.ids]
    cluster.run_until(lambda: sum(map(was_applied, done)) > 20)
    cluster.crash(leader.id)
    acknowledged = [n // 3 for n, outcomes in enumerate(done) if was_applied(outcomes)]
    cluster.run_until(lambda: (new := cluster.leader()) is not None and new.id != leader.id)
    outcomes = cluster.put(cluster.elect().id, "after")
    cluster.run_until(lambda: outcomes)
    survivor = cluster.elect()
    assert all(value_at(survivor, f"k{n}") == str(n).encode() for n in acknowledged)


@pytest.mark.parametrize("seed", range(10))
def test_what_was_acknowledged_survives_the_crash_of_all(seed: int) -> None:
    cluster = SimCluster(3, seed)
    cluster.elect()
    done = [cluster.put(1 + n % 3, f"k{n}", str(n)) for n in range(60)]
    cluster.run_until(lambda: sum(map(was_applied, done)) > 25)
    for node in cluster.nodes.values():
        if cluster.random.random() < 0.5:
            node.take_checkpoint()
        node.crash()
    acknowledged = [n for n, outcomes in enumerate(done) if was_applied(outcomes)]
    for node in cluster.nodes.values():
        node.start()
    outcomes = cluster.put(cluster.elect().id, "after")
    cluster.run_until(lambda: outcomes)
    survivor = cluster.elect()
    assert all(value_at(survivor, f"k{n}") == str(n).encode() for n in acknowledged)


@pytest.mark.parametrize("seed", range(20))
def test_a_reset_connection_to_the_leader_ends_in_an_election_before_a_timeout(seed: int) -> None:
    cluster = SimCluster(3, seed)
    leader = cluster.elect()
    cluster.run_for(0.1)
    before_ns = cluster.time.now_ns
    cluster.crash(leader.id)
    cluster.run_until(lambda: (new := cluster.leader()) is not None and new.id != leader.id)
    assert cluster.time.now_ns - before_ns < 150 * MS


def test_a_reset_of_one_connection_does_not_depose_a_leader_that_lives() -> None:
    cluster = SimCluster(3, 4)
    leader = cluster.elect()
    term = leader.driver.raw.raft.term
    follower = next(node for node in cluster.nodes.values() if node is not leader)
    follower.driver.link_lost(leader.id)
    cluster.run_for(2)
    assert (cluster.leader(), leader.driver.raw.raft.term) == (leader, term)


def test_the_minority_refuses_new_writes_as_not_applied_and_calls_old_ones_unknown() -> None:
    cluster = SimCluster(3, 5)
    leader = cluster.elect()
    cluster.isolate(leader.id)
    appended = cluster.put(leader.id, "appended")
    cluster.run_until(lambda: leader.driver.raw.raft.state is not Role.LEADER)
    refused = cluster.put(leader.id, "refused")
    began_ns = cluster.time.now_ns
    cluster.run_until(lambda: refused)
    assert cluster.time.now_ns - began_ns < 2_000 * MS
    assert isinstance(refused[0], Rejected)
    assert (refused[0].fault.code, refused[0].applied_never) == (Code.NO_LEADER, True)
    cluster.run_until(lambda: appended)
    assert isinstance(appended[0], Rejected)
    assert (appended[0].fault.code, appended[0].applied_never) == (Code.UNKNOWN_OUTCOME, False)


@pytest.mark.case(12)
def test_a_write_whose_index_another_leader_filled_was_never_applied() -> None:
    cluster = SimCluster(3, 6)
    old = cluster.elect()
    cluster.isolate(old.id)
    lost = []
    for n in range(3):  # each an entry: the new leader's first, which is empty, meets one of them only
        lost.append(cluster.put(old.id, f"lost/{n}", timeout_s=60))
        cluster.run_for(0.001)
    cluster.run_until(lambda: (new := cluster.leader()) is not None and new is not old)
    new = cluster.elect()
    for n in range(5):
        others = cluster.put(new.id, f"n{n}")
        cluster.run_until(lambda others=others: others)
    cluster.cut.clear()
    cluster.run_until(lambda: all(lost))
    assert [isinstance(outcome, Rejected) and outcome.applied_never for (outcome,) in lost] == [True] * 3
    assert [value_at(old, f"lost/{n}") for n in range(3)] == [None] * 3


@pytest.mark.case(80)
def test_a_forwarded_write_whose_link_breaks_is_unknown_and_is_not_sent_again() -> None:
    cluster = SimCluster(3, 7)
    leader = cluster.elect()
    follower = next(node for node in cluster.nodes.values() if node is not leader)
    cluster.cut.add((leader.id, follower.id))
    outcomes = cluster.put(follower.id, "once")
    cluster.run_for(0.005)
    follower.driver.link_lost(leader.id)
    assert [isinstance(outcome, Rejected) and outcome.applied_never for outcome in outcomes] == [False]
    cluster.cut.clear()
    cluster.run_for(3)
    pair = Reader(cluster.elect().tables).get(b"once")
    assert pair is not None
    assert pair.version == 1


def test_a_late_or_repeated_answer_finds_nobody_waiting() -> None:
    cluster = SimCluster(3, 8)
    leader = cluster.elect()
    follower = next(node for node in cluster.nodes.values() if node is not leader)
    outcomes = cluster.put(follower.id, "a")
    cluster.run_until(lambda: outcomes)
    follower.driver.receive(leader.id, ForwardReply(1))
    assert len(outcomes) == 1


@pytest.mark.parametrize("at_leader", [True, False])
def test_a_linearizable_read_sees_a_write_acknowledged_elsewhere_just_before(at_leader: bool) -> None:
    cluster = SimCluster(3, 9)
    leader = cluster.elect()
    follower = next(node for node in cluster.nodes.values() if node is not leader)
    reader = leader if at_leader else follower
    for n in range(20):
        outcomes = cluster.put(leader.id, "x", str(n))
        cluster.run_until(lambda outcomes=outcomes: outcomes)
        read = cluster.read(reader.id)
        cluster.run_until(lambda read=read: read)
        assert isinstance(read[0], int)
        assert value_at(reader, "x") == str(n).encode()


@pytest.mark.case(32)
def test_an_isolated_leader_confirms_no_read() -> None:
    cluster = SimCluster(3, 10)
    leader = cluster.elect()
    written = cluster.put(leader.id, "x")
    cluster.run_until(lambda: written)  # by now it has committed in its term
    cluster.isolate(leader.id)
    read = cluster.read(leader.id, timeout_s=1)
    cluster.run_until(lambda: read)
    assert isinstance(read[0], Rejected)


@pytest.mark.case(32)
@pytest.mark.parametrize("seed", range(5))
def test_a_leader_that_was_paused_serves_nothing_older_than_its_successor_has_acknowledged(seed: int) -> None:
    cluster = SimCluster(3, seed)
    old = cluster.elect()
    written = cluster.put(old.id, "x", "before")
    cluster.run_until(lambda: written)
    old.pause()
    cluster.isolate(old.id)
    cluster.run_until(lambda: cluster.leader() not in (None, old))
    written = cluster.put(cluster.elect().id, "x", "after")
    cluster.run_until(lambda: written)
    assert was_applied(written)
    old.resume()
    assert old.driver.raw.raft.state is Role.LEADER
    seen: list[bytes | Rejected | None] = []

    def answered(outcome: int | Rejected) -> None:
        seen.append(outcome if isinstance(outcome, Rejected) else value_at(old, "x"))

    old.driver.read(60_000 * MS, answered)
    cluster.run_for(0.2)
    assert seen == []
    cluster.cut.clear()
    cluster.run_until(lambda: seen)
    assert seen == [b"after"]


def test_after_a_stall_a_follower_reads_its_sockets_before_it_counts_a_tick() -> None:
    cluster = SimCluster(3, 24)
    leader = cluster.elect()
    cluster.run_for(0.2)
    follower = next(node for node in cluster.nodes.values() if node is not leader)
    raft = follower.driver.raw.raft
    cluster.isolate(follower.id)
    cluster.run_until(lambda: raft.election_elapsed == raft.randomized_election_ticks - 1)
    follower.pause()
    cluster.cut.clear()
    cluster.run_for(1)
    leaders: list[int] = []
    follower.driver.leader_watchers.append(leaders.append)
    follower.resume()
    cluster.run_for(1)
    assert (raft.lead, raft.term, leaders) == (leader.id, leader.driver.raw.raft.term, [])


@pytest.mark.case(68)
def test_a_leader_whose_log_write_hangs_hands_leadership_over() -> None:
    cluster = SimCluster(3, 11)
    leader = cluster.elect()
    cluster.run_for(0.1)
    leader.disk_delay_ms = 60_000
    outcomes = cluster.put(leader.id, "a", timeout_s=30)
    # Long before it would step down, had nobody taken over.
    cluster.run_until(lambda: (new := cluster.leader()) is not None and new is not leader, seconds=0.8)
    cluster.run_until(lambda: value_at(cluster.elect(), "a") is not None, seconds=3)
    assert (
        outcomes == []
    )  # the old leader can't apply what it can't store; its client learns at the deadline: unknown


@pytest.mark.case(29)
def test_a_transfer_to_a_node_that_does_not_answer_is_given_up_and_writes_go_on() -> None:
    cluster = SimCluster(3, 12)
    leader = cluster.elect()
    target = next(node_id for node_id in cluster.ids if node_id != leader.id)
    cluster.isolate(target)
    leader.driver.transfer_leader(target)
    outcomes = cluster.put(leader.id, "a")
    cluster.run_until(lambda: outcomes, seconds=3)
    assert was_applied(outcomes)
    assert cluster.leader() is leader


def test_a_transfer_asked_of_a_follower_reaches_the_leader() -> None:
    cluster = SimCluster(3, 13)
    leader = cluster.elect()
    follower = next(node for node in cluster.nodes.values() if node is not leader)
    cluster.run_for(0.1)
    follower.driver.transfer_leader(follower.id)
    cluster.run_until(lambda: cluster.leader() is follower, seconds=1)


def test_a_failed_log_write_halts_the_node_and_answers_what_waits() -> None:
    cluster = SimCluster(3, 14)
    leader = cluster.elect()
    outcomes = cluster.put(leader.id, "a")
    leader.driver._halt(OSError("the disk is gone"))
    assert len(leader.failures) == 1
    assert isinstance(outcomes[0], Rejected)
    late = cluster.put(leader.id, "b")
    assert isinstance(late[0], Rejected)
    assert late[0].applied_never


def test_sessions_of_clients_that_went_silent_end_by_the_lease_clock_alone() -> None:
    cluster = SimCluster(3, 15)
    leader = cluster.elect()
    outcomes: list[Outcome] = []
    leader.driver.submit(Register(5, 10_000), 1, 5_000 * MS, outcomes.append)
    cluster.run_until(lambda: outcomes)
    cluster.run_for(9)
    assert leader.machine.session_count == 1
    cluster.run_for(5)
    assert [node.machine.session_count for node in cluster.nodes.values()] == [0, 0, 0]


def request(size: int, commands: int = 1, *, register: bool = False) -> Request:
    item = Register(1, 10_000) if register else Batch(b"x" * size)
    return Request(item, commands, size, 0, 0, None, forwarded=False)


def test_entries_are_filled_to_a_mebibyte_or_512_commands_and_end_with_a_registration() -> None:
    sizes = [
        request(700_000),
        request(300_000),
        request(100_000),
        request(10, 500),
        request(10, 20),
        request(64, register=True),
    ]
    last = request(3_000_000)
    assert fill_entries([*sizes, last]) == [sizes[:2], sizes[2:4], sizes[4:6], [last]]


def test_the_same_seed_gives_the_same_run() -> None:
    def run() -> list[object]:
        cluster = SimCluster(3, 16)
        leader = cluster.elect()
        outcomes = [cluster.put(1 + n % 3, f"k{n}") for n in range(20)]
        cluster.run_until(lambda: all(outcomes))
        indexes = [item[0].index for item in outcomes if isinstance(item[0], Executed)]
        return [leader.id, cluster.time.now_ns, leader.machine.digest, *indexes]

    assert run() == run()


def test_an_answer_to_a_forwarder_s_former_life_is_not_taken_for_a_new_request_s() -> None:
    cluster = SimCluster(3, 1)
    leader = cluster.elect()
    follower, other = [node for node in cluster.nodes.values() if node is not leader]
    cluster.run_for(0.2)
    leader.disk_delay_ms = other.disk_delay_ms = 300
    cluster.put(follower.id, "old")
    cluster.run_for(0.02)
    cluster.crash(follower.id)
    follower.start()
    cluster.run_until(lambda: follower.driver.raw.raft.lead == leader.id)
    for node in cluster.nodes.values():
        node.disk_delay_ms = 5_000
    outcomes = cluster.put(follower.id, "new", timeout_s=2)
    # "old" is committed, and its answer sent to the forwarder's new life, long before "new" can be.
    cluster.run_until(lambda: outcomes)
    assert isinstance(outcomes[0], Rejected)
    assert not outcomes[0].applied_never


def test_a_new_leader_s_lease_clock_does_not_count_the_time_that_it_followed_others() -> None:
    cluster = SimCluster(3, 2)
    lonely, second, third = cluster.nodes.values()
    cluster.crash(second.id)
    cluster.crash(third.id)
    cluster.run_for(900)
    second.start()
    third.start()
    cluster.elect()
    cluster.run_for(0.2)
    if cluster.leader() is lonely:
        lonely.driver.transfer_leader(second.id)
        cluster.run_until(lambda: cluster.leader() is second)
    first = cluster.elect()
    outcomes: list[Outcome] = []
    first.driver.submit(Register(9, 600_000), 1, 5_000 * MS, outcomes.append)
    cluster.run_until(lambda: outcomes)
    cluster.run_for(2)
    before_ms = first.machine.lease_clock_ms
    first.driver.transfer_leader(lonely.id)
    cluster.run_until(lambda: cluster.leader() is lonely)
    cluster.run_for(4)
    assert before_ms < lonely.machine.lease_clock_ms < before_ms + 7_000
    assert lonely.machine.session_count == 1


def test_an_answered_request_holds_its_bytes_no_longer() -> None:
    cluster = SimCluster(3, 17)
    leader = cluster.elect()
    outcomes = [cluster.put(leader.id, f"k{n}", "v" * 1000, timeout_s=86_400) for n in range(10)]
    cluster.run_until(lambda: all(outcomes))
    waiting = [request for _, _, request in leader.driver.requests._deadlines]
    assert all(request.item is None for request in waiting)
    cluster.run_for(61)
    assert leader.driver.requests._deadlines == []


def test_a_transfer_that_reaches_a_node_which_does_not_lead_is_not_passed_on() -> None:
    cluster = SimCluster(3, 18)
    leader = cluster.elect()
    cluster.run_for(0.1)
    first, second = [node for node in cluster.nodes.values() if node is not leader]
    first.driver.receive(second.id, TransferLeader(second.id))
    cluster.run_for(1)
    assert cluster.leader() is leader


def test_a_follower_applies_lazily_unless_it_has_watches() -> None:
    cluster = SimCluster(3, 1)
    leader = cluster.elect()
    watching, idle = (node for node in cluster.nodes.values() if node is not leader)
    watching.driver.has_watches = lambda: True
    cluster.run_for(0.5)
    lazily: dict[int, list[bool]] = {}
    for node in cluster.nodes.values():
        applier = node.driver._world.applier
        lazily[node.id] = noted = []

        def apply(*args: Any, apply: Any = applier.apply, noted: list[bool] = noted, lazily: bool) -> None:
            noted.append(lazily)
            apply(*args, lazily=lazily)

        applier.apply = apply  # type: ignore[method-assign]
    outcomes = cluster.put(leader.id, "k")
    cluster.run_until(lambda: outcomes)
    cluster.run_for(0.5)
    assert {node.id: set(lazily[node.id]) for node in (leader, watching, idle)} == {
        leader.id: {False},
        watching.id: {False},
        idle.id: {True},
    }


def test_a_leader_that_is_not_fit_to_lead_hands_over_and_does_not_stand_again() -> None:
    cluster = SimCluster(3, 22)
    unfit = cluster.elect()
    unfit.driver.fitness.limit("disk", "its disk is full", may_lead=False)
    cluster.run_until(lambda: unfit.driver.raw.raft.state is not Role.LEADER, 0.3)
    for node in cluster.nodes.values():
        if node is not unfit:
            cluster.crash(node.id)
    cluster.run_for(5)
    assert unfit.driver.raw.raft.state is Role.FOLLOWER
    unfit.driver.fitness.lift("disk")
    cluster.run_until(lambda: unfit.driver.raw.raft.state is Role.PRE_CANDIDATE, 2)


@pytest.mark.parametrize("kind", [kind for kind in MessageType if kind is not MessageType.READ_INDEX])
def test_a_message_without_a_term_is_not_taken_from_a_peer(kind: MessageType) -> None:
    cluster = SimCluster(3, 0)
    leader = cluster.elect()
    follower = next(node for node in cluster.nodes.values() if node is not leader)
    for node, sender in ((follower, leader.id), (leader, follower.id)):
        raft, last = node.driver.raw.raft, node.storage.last_index()
        before = (
            raft.state,
            raft.term,
            raft.vote,
            raft.lead,
            raft.raft_log.last_index(),
            raft.raft_log.committed,
        )
        entry = Entry(index=last + 1, term=raft.term)
        message = Message(kind, to=node.id, from_=sender, index=last, log_term=raft.term, entries=[entry])
        node.receive(sender, message)
        raft = node.driver.raw.raft
        assert node.driver.halted is None
        assert before == (
            raft.state,
            raft.term,
            raft.vote,
            raft.lead,
            raft.raft_log.last_index(),
            raft.raft_log.committed,
        )
