"""Reads by a leader's lease, and why no node of the product makes them.

A leader that answers from its belief that it still leads is right for as long as its clock runs like its
followers'. Each schedule here breaks that: by the old leader's own clock no election timeout has passed, and
another node leads and has committed. A transfer needs no clock at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

import raftstate
from raftstate.core.config import Config, ReadOnlyOption
from raftstate.core.roles import Role
from raftstate.core.types import ConfState
from raftstate.node.driver import Timing
from raftstate.node.startup import StartStorage
from raftstate.server.configured import core_config
from tests.core.cluster import Cluster
from tests.core.nodes import stored

OLD, HEIR, THIRD = 1, 2, 3


def led_by_the_old_leader(option: ReadOnlyOption) -> Cluster:
    cluster = Cluster(1, read_only=option)
    cluster.members[OLD].node.campaign()
    cluster.settle()
    assert cluster.propose(OLD, b"before")
    cluster.settle()
    assert (cluster.leader(), cluster.has_applied(THIRD, b"before")) == (OLD, True)
    return cluster


def others_lead(cluster: Cluster, ticks: Callable[[int], int]) -> None:
    """Let the heir be elected by the two that still hear each other. `ticks` says how often the old leader's
    clock ticks in the heir's tick number so and so."""
    for number in range(200):
        cluster.members[HEIR].node.tick()
        cluster.members[THIRD].node.tick()
        for _ in range(ticks(number)):
            cluster.tick(OLD)
        cluster.settle()
        if cluster.leader() not in (OLD, None):
            return
    raise AssertionError("nobody else was elected")


def clock_that_drifts(cluster: Cluster) -> None:
    cluster.partition((OLD,), (HEIR, THIRD))
    others_lead(cluster, lambda number: number % 5 == 0)


def clocks_that_jump(cluster: Cluster) -> None:
    cluster.partition((OLD,), (HEIR, THIRD))
    for _ in range(20):
        cluster.members[HEIR].node.tick()
    for _ in range(20):
        cluster.members[THIRD].node.tick()
    others_lead(cluster, lambda _: 0)


def process_that_is_stopped(cluster: Cluster) -> None:
    """SIGSTOP: its messages wait, and none of its timers fires."""
    cluster.partition((OLD,), (HEIR, THIRD))
    others_lead(cluster, lambda _: 0)


def transfer(cluster: Cluster) -> None:
    """The heir stands at once, and the third votes for it, though both have just heard their leader."""
    cluster.members[OLD].node.transfer_leader(HEIR)
    cluster.handle_ready(OLD)
    cluster.deliver(0)
    cluster.partition((OLD,), (HEIR, THIRD))
    cluster.settle()


SCHEDULES = [clock_that_drifts, clocks_that_jump, process_that_is_stopped, transfer]


def read_at_the_old_leader(cluster: Cluster, schedule: Callable[[Cluster], None]) -> None:
    """Have another leader commit, then ask the old one, which does not know of it. The cluster compares the
    answer, if there is one, with what was committed before."""
    schedule(cluster)
    heir = cluster.leader()
    assert heir in (HEIR, THIRD)
    assert cluster.propose(heir, b"after")
    cluster.settle()
    assert cluster.has_applied(heir, b"after")
    assert cluster.members[OLD].node.raft.state is Role.LEADER
    cluster.read(OLD)
    cluster.settle()


@pytest.mark.case(33)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_read_that_is_confirmed_by_a_round_is_not_answered_whatever_clocks_do(
    schedule: Callable[[Cluster], None],
) -> None:
    cluster = led_by_the_old_leader(ReadOnlyOption.SAFE)
    read_at_the_old_leader(cluster, schedule)
    assert cluster.reads_answered == 0
    cluster.partition()
    heir = cluster.leader()
    assert heir is not None
    cluster.tick(heir)
    cluster.settle()
    cluster.read(OLD)
    cluster.settle()
    assert cluster.reads_answered == 1


@pytest.mark.case(33)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_read_by_the_leader_s_lease_is_stale_then(schedule: Callable[[Cluster], None]) -> None:
    cluster = led_by_the_old_leader(ReadOnlyOption.LEASE_BASED)
    with pytest.raises(AssertionError, match="stale read"):
        read_at_the_old_leader(cluster, schedule)


@pytest.mark.case(33)
def test_the_product_confirms_reads_by_a_round_and_has_no_setting_for_anything_else() -> None:
    storage = StartStorage(stored(), ConfState(voters=(1, 2, 3)), 0)
    config = core_config(1, storage, Timing(15, 405), 0, Random(1))
    assert (config.read_only, Config(1, storage).read_only) == (ReadOnlyOption.SAFE, ReadOnlyOption.SAFE)
    package = Path(raftstate.__file__).parent
    naming = [
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"ReadOnlyOption|LEASE_BASED|read_only=", path.read_text("utf-8"))
    ]
    assert {Path(name).parts[0] for name in naming} == {"core"}, naming
