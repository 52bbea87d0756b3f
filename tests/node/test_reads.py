"""Reads at one node: which answer of a leader confirms them, and what they wait for after a restart."""

from __future__ import annotations

import pytest

from chaos.sim.world import SimCluster, SimNode, was_applied
from raftstate.core.rawnode import RawNode
from raftstate.core.types import Message, MessageType, ReadState
from raftstate.machine.reader import Reader
from raftstate.node.environment import Executed, Outcome, Rejected
from raftstate.node.reads import ROUND_NS_MAX, Reads
from tests.core.nodes import build, work

PATIENCE_NS = 60_000_000_000


def follower() -> RawNode:
    node = build(node_id=2)
    node.step(Message(MessageType.HEARTBEAT, to=2, from_=1, term=1))
    work(node)
    return node


def asked(node: RawNode) -> list[bytes]:
    """The contexts of the rounds that a follower has asked its leader for."""
    return [message.entries[0].data for message in work(node) if message.type is MessageType.READ_INDEX]


@pytest.mark.case(31)
def test_a_late_answer_to_a_round_that_was_asked_again_confirms_no_read_that_began_meanwhile() -> None:
    node, now_ns = follower(), 1_000
    reads = Reads(node, lambda: now_ns, bytes(8), lambda: "")
    early: list[int | Rejected] = []
    late: list[int | Rejected] = []
    reads.submit(PATIENCE_NS, early.append)
    reads.flush()
    [first] = asked(node)
    now_ns += ROUND_NS_MAX + 1
    reads.expire(9)
    reads.submit(PATIENCE_NS, late.append)
    reads.flush()
    [second] = asked(node)
    # The leader read its commit index for it before the second read began.
    reads.confirmed([ReadState(5, first)], 9)
    assert (early, late) == ([], [])
    reads.confirmed([ReadState(7, second)], 9)
    assert (early, late) == ([now_ns], [now_ns])


def value_at(node: SimNode, key: str) -> bytes | None:
    pair = Reader(node.tables).get(key.encode())
    return None if pair is None else pair.value


def acknowledged(cluster: SimCluster, node_id: int, key: str, value: str) -> int:
    """Write, and return the index of the entry that holds the write."""
    outcomes: list[Outcome] = cluster.put(node_id, key, value)
    cluster.run_until(lambda: outcomes)
    assert was_applied(outcomes)
    assert isinstance(outcomes[0], Executed)
    return outcomes[0].index


def restarted_behind(size: int) -> tuple[SimCluster, SimNode, int]:
    """A node that acknowledged a write, was killed, and has applied nothing of its log again yet; and the
    index of that write."""
    cluster = SimCluster(size, 3)
    leader = cluster.elect()
    node = leader if size == 1 else next(each for each in cluster.nodes.values() if each is not leader)
    for number in range(5):
        index = acknowledged(cluster, node.id, "x", str(number))
    cluster.run_for(0.5)
    assert value_at(node, "x") == b"4"
    cluster.crash(node.id)
    node.applier_is_stuck = True
    node.start()
    assert (value_at(node, "x"), node.storage.last_index() >= index) == (None, True)
    return cluster, node, index


@pytest.mark.case(34)
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("kind", ["linearizable", "session"])
def test_a_restarted_node_serves_nothing_before_it_has_caught_up_with_what_it_had_acknowledged(
    size: int, kind: str
) -> None:
    cluster, node, index = restarted_behind(size)
    seen: list[bytes | Rejected | None] = []

    def answered(outcome: int | Rejected) -> None:
        seen.append(outcome if isinstance(outcome, Rejected) else value_at(node, "x"))

    if kind == "linearizable":
        node.driver.read(PATIENCE_NS, answered)
    else:
        node.driver.wait_for(index, PATIENCE_NS, answered)
    cluster.run_for(2)
    assert seen == [], "an answer from before the node had applied its log again"
    node.applier_is_stuck = False
    node.applier.hurry()
    cluster.run_until(lambda: seen)
    assert seen == [b"4"]


@pytest.mark.case(34)
@pytest.mark.parametrize("size", [1, 3])
def test_a_read_that_a_restarted_node_can_t_serve_in_time_is_refused_and_says_how_far_it_is(
    size: int,
) -> None:
    cluster, node, index = restarted_behind(size)
    linearizable: list[int | Rejected] = []
    session: list[int | Rejected] = []
    node.driver.read(1_000_000_000, linearizable.append)
    node.driver.wait_for(index, 1_000_000_000, session.append)
    cluster.run_until(lambda: linearizable and session)
    assert isinstance(linearizable[0], Rejected)
    assert isinstance(session[0], Rejected)
    assert f"log index {index}, and this node has applied 0" in session[0].fault.message
