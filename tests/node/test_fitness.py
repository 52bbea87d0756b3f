from __future__ import annotations

from raftstate.node.fitness import Fitness


def test_a_node_may_do_what_every_limit_allows() -> None:
    fitness = Fitness()
    assert (fitness.may_lead, fitness.may_read, fitness.alarms) == (True, True, ())
    fitness.limit("disk", "the disk is full; free some", may_lead=False)
    fitness.limit("state", "the state is odd; it is rebuilt", may_lead=False, may_read=False)
    assert (fitness.may_lead, fitness.may_read) == (False, False)
    assert fitness.alarms == ("the disk is full; free some", "the state is odd; it is rebuilt")
    assert fitness.why_not_read() == "the state is odd; it is rebuilt"
    fitness.lift("state")
    assert (fitness.may_lead, fitness.may_read) == (False, True)
    fitness.lift("disk")
    assert (fitness.may_lead, fitness.alarms) == (True, ())


def test_those_who_watch_are_told_of_changes_only() -> None:
    fitness = Fitness()
    told: list[tuple[str, ...]] = []
    fitness.watch(lambda: told.append(fitness.alarms))
    fitness.lift("disk")
    fitness.limit("disk", "90 % full")
    fitness.limit("disk", "90 % full")
    fitness.limit("disk", "91 % full", may_lead=False)
    fitness.lift("disk")
    assert told == [("90 % full",), ("91 % full",), ()]
