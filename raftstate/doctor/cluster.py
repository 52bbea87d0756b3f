"""A cluster that runs: who leads, who is behind, whether all agree, and whose clock is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from raftstate.client import Client, NodeStatus, connect
from raftstate.doctor.finding import Finding, failed, note, ok, warning
from raftstate.errors import NoLeaderError

LAG_ENTRIES_MAX = 5_000
CLOCK_MS_MAX = 500
"""Nothing depends on the wall clock but what people read, and restoring as of a time."""
CHECKPOINT_AGE_MS_MAX = 60_000
MAP_PART_MAX = 0.8


class Look(NamedTuple):
    """What the nodes said, and when it was asked and answered by this machine's wall clock, in ms."""

    nodes: Sequence[NodeStatus]
    asked_ms: int
    answered_ms: int


def look(url: str | None, timeout_s: float, *, must_run: bool) -> Iterator[Finding]:
    """Yield what is found at a cluster. `must_run`: it was named, so that it fails if it does not answer."""
    with connect(url, timeout=timeout_s) as client:
        try:
            looked = ask(client, lambda: time.time_ns() // 1_000_000)
        except NoLeaderError as error:
            if must_run:
                yield failed("cluster", error.message, "start its nodes, or name their client ports")
            else:
                yield note("cluster", "no node answers", "start them, or give --url")
            return
    yield from judge(looked)


def ask(client: Client, now_ms: Callable[[], int]) -> Look:
    """Ask all nodes. Raises `NoLeaderError` when none answers."""
    client.status()  # connections are made here, so that the next answers are quick
    asked = now_ms()
    nodes = client.status()
    return Look(nodes, asked, now_ms())


def judge(looked: Look) -> Iterator[Finding]:
    """Say what to think of what the nodes said."""
    here = [node for node in looked.nodes if not node.error]
    yield from _members(looked.nodes, here)
    yield _leader(here)
    yield _lag(here)
    yield _alarms(here)
    yield _versions(here)
    yield _digests(here)
    yield from _disks(here)
    yield _clocks(here, looked)


def _names(nodes: Sequence[NodeStatus]) -> str:
    return ", ".join(node.name for node in nodes)


def _members(nodes: Sequence[NodeStatus], here: Sequence[NodeStatus]) -> Iterator[Finding]:
    members = max(here, key=lambda node: node.applied_index).members
    voters = [member for member in members if not member.learner]
    answered = {node.node_id for node in here}
    missing = [member for member in members if member.id not in answered]
    found = f"{len(members)} members ({len(voters)} voters), {len(here)} answer"
    spare = (len(voters) - 1) // 2 - sum(not member.learner for member in missing)
    if missing:
        names = ", ".join(f"{member.name} ({member.client_address})" for member in missing)
        advice = f"start {names}, or have it replaced (raftstate member replace)"
        yield (failed if spare <= 0 else warning)(
            "members", f"{found}; {max(0, spare)} more may fail", advice
        )
    elif len(voters) == 1:
        yield note("members", found, "one voter survives no failure: add two (raftstate member add)")
    elif len(voters) % 2 == 0:
        yield warning("members", found, "an even number of voters survives no more failures than one less")
    else:
        yield ok("members", f"{found}; {spare} may fail")
    strange = [node.endpoint for node in nodes if node.error]
    if strange and not missing:
        yield warning("endpoints", f"{', '.join(strange)} does not answer", "name the members' client ports")


def _leader(here: Sequence[NodeStatus]) -> Finding:
    leaders = [node for node in here if node.role == "leader"]
    newest = max((node.term for node in here), default=0)
    led = [node for node in leaders if node.term == newest]
    if len(led) == 1:
        blind = [node for node in here if node.leader_id != led[0].node_id]
        found = f"{led[0].name} leads term {newest}"
        if blind:
            return warning("leader", f"{found}; {_names(blind)} does not follow it", "look at the peer links")
        return ok("leader", found)
    return failed(
        "leader", f"no node leads term {newest}", "a majority of voters must run and reach each other"
    )


def _lag(here: Sequence[NodeStatus]) -> Finding:
    commit = max(node.commit_index for node in here)
    behind = [node for node in here if commit - node.applied_index > LAG_ENTRIES_MAX]
    if behind:
        told = ", ".join(f"{node.name} by {commit - node.applied_index:,}" for node in behind)
        return warning("lag", f"behind index {commit:,}: {told}", "its disk or network may be slow")
    return ok("lag", f"at most {max(commit - node.applied_index for node in here):,} entries")


def _alarms(here: Sequence[NodeStatus]) -> Finding:
    told = [f"{node.name}: {alarm}" for node in here for alarm in node.alarms]
    return failed("alarms", "; ".join(told), "each says what to do") if told else ok("alarms", "none")


def _versions(here: Sequence[NodeStatus]) -> Finding:
    versions = {node.version for node in here}
    machine = {node.machine_version for node in here}
    found = f"raftstate {', '.join(sorted(versions))}; machine {', '.join(map(str, sorted(machine)))}"
    if len(versions) > 1:
        return warning("node versions", found, "finish the upgrade: new rules wait for all nodes")
    return ok("node versions", found)


def _digests(here: Sequence[NodeStatus]) -> Finding:
    by_index: dict[int, dict[int, list[str]]] = {}
    for node in here:
        by_index.setdefault(node.applied_index, {}).setdefault(node.digest, []).append(node.name)
    for index, digests in by_index.items():
        if len(digests) > 1:
            sides = " against ".join(", ".join(names) for names in digests.values())
            return failed(
                "digests",
                f"states differ at index {index}: {sides}",
                "take the minority out of service and replace it",
            )
    compared = max(sum(map(len, digests.values())) for digests in by_index.values())
    if len(here) > 1 and compared == 1:
        return note("digests", "no two nodes were at the same index", "try again when less is written")
    return ok("digests", f"{compared} of {len(here)} nodes were at the same index, and agree")


def _disks(here: Sequence[NodeStatus]) -> Iterator[Finding]:
    full = [
        f"{node.name}'s {what} {size / limit:.0%} of {limit / 1e9:,.1f} GB"
        for node in here
        for what, size, limit in (
            ("log", node.log_bytes, node.log_map_bytes),
            ("state", node.state_bytes, node.state_map_bytes),
        )
        if limit and size > MAP_PART_MAX * limit
    ]
    if full:
        yield warning(
            "file sizes", "; ".join(full), "raise log_map_bytes or state_map_bytes, or delete and compact"
        )
    else:
        yield ok("file sizes", f"below {MAP_PART_MAX:.0%} of what they can be")
    old = [node for node in here if node.checkpoint_age_ms > CHECKPOINT_AGE_MS_MAX]
    if old:
        told = ", ".join(f"{node.name} {node.checkpoint_age_ms / 1_000:.0f} s" for node in old)
        yield warning(
            "checkpoints", f"the last one is old: {told}", "the disk takes long to sync: look at it"
        )
    else:
        yield ok("checkpoints", "recent")


def _clocks(here: Sequence[NodeStatus], looked: Look) -> Finding:
    """An answer was made between asking and answering: what lies outside of that is the clock's fault."""
    wrong = {
        node.name: max(looked.asked_ms - node.wall_clock_ms, node.wall_clock_ms - looked.answered_ms, 0)
        for node in here
        if node.wall_clock_ms
    }
    far = {name: off for name, off in wrong.items() if off > CLOCK_MS_MAX}
    if far:
        told = ", ".join(f"{name} by at least {off:,} ms" for name, off in far.items())
        return warning(
            "wall clocks", f"off from this machine's: {told}", "run a time service (chrony) everywhere"
        )
    trip = looked.answered_ms - looked.asked_ms
    return ok("wall clocks", f"within {max(wrong.values(), default=0) + trip:,} ms of this machine's")
