"""What a node's parts are told, made of its settings. Pure functions, without a disk, a clock or a port."""

from __future__ import annotations

import random
from collections.abc import Sequence

from raftstate.config import ClusterConfig, NodeSettings
from raftstate.core.config import Config
from raftstate.machine.types import Member
from raftstate.node.driver import Timing
from raftstate.node.startup import StartStorage

MESSAGE_BYTES_MAX = 1 << 20
"""Entries in one message: some 10 ms at 100 MB/s, so that heartbeats on the other connection are not late."""
APPLYING_BYTES_MAX = 256 << 10
"""Committed entries in one portion: some 800 small writes, a few milliseconds of the loop."""
UNCOMMITTED_BYTES_MAX = 64 << 20
"""What a leader holds in memory while no quorum answers; beyond it writes are refused."""
INFLIGHT_BYTES_MAX = 16 << 20
"""What is sent to a follower ahead of its answers: a second's worth over a link of 128 Mbit/s."""


def initial_members(cluster: ClusterConfig) -> list[Member]:
    """Return the members of a new cluster, as its state records them."""
    return [
        Member(member.id, member.incarnation, member.name, member.peer_address, member.client_address)
        for member in cluster.members
    ]


def peer_addresses(settings: NodeSettings, members: Sequence[Member]) -> dict[int, tuple[str, ...]]:
    """Return where a node dials the others.

    Args:
        settings: of the node. What they say of a member by its name comes first and alone.
        members: as the node has applied them; none: it is new, and goes by the members of its settings.

    Returns:
        For each other member host:ports to try in turn: that of its record, and that of the settings' list if
        that is another one, since a cluster whose nodes all moved while they were down has no leader who
        could record it.
    """
    configured = {member.id: member for member in settings.cluster.members}
    known = members or configured.values()
    found: dict[int, tuple[str, ...]] = {}
    for member in known:
        if member.id == settings.node_id:
            continue
        mapped = settings.peer_addresses.get(member.name)
        listed = configured.get(member.id)
        others = [listed.peer_address] if listed is not None and listed.name == member.name else []
        found[member.id] = (
            (mapped,) if mapped is not None else tuple(dict.fromkeys((member.peer_address, *others)))
        )
    return found


def core_config(
    node_id: int, storage: StartStorage, timing: Timing, applied_index: int, rng: random.Random
) -> Config:
    """Return the core's settings as the product uses it."""
    return Config(
        id=node_id,
        storage=storage,
        random=rng,
        election_ticks=timing.election_ticks,
        heartbeat_ticks=1,
        applied=applied_index,
        async_storage_writes=True,
        max_message_bytes=MESSAGE_BYTES_MAX,
        max_applying_bytes=APPLYING_BYTES_MAX,
        max_uncommitted_bytes=UNCOMMITTED_BYTES_MAX,
        max_inflight_bytes=INFLIGHT_BYTES_MAX,
        check_quorum=True,
        pre_vote=True,
        disable_proposal_forwarding=True,
        step_down_on_removal=True,
    )
