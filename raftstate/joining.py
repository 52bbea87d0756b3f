"""From the answer of a cluster that a node was added to, to the folder of that node."""

from __future__ import annotations

from pathlib import Path

from raftstate import folder
from raftstate.client import MemberAdded
from raftstate.config import ClusterConfig, MemberConfig


def write_joiner(directory: Path, added: MemberAdded) -> Path:
    """Write DIRECTORY/node.toml for a node that was added or replaced, and allow it to start empty.

    Args:
        directory: of the node; checked by `folder.check_joinable` before the cluster was asked.
        added: what the cluster said.

    Returns the path of node.toml. Raises `StorageError` when the disk failed.
    """
    members = tuple(
        MemberConfig(
            id=member.id,
            name=member.name,
            incarnation=member.incarnation,
            peer_address=member.peer_address,
            client_address=member.client_address,
        )
        for member in added.members
    )
    config = ClusterConfig(
        cluster_id=added.cluster_id,
        members=members,
        heartbeat_ms=added.heartbeat_ms,
        election_timeout_ms=added.election_timeout_ms,
        history_retention_s=added.history_retention_s,
    )
    return folder.write_joiner(directory, added.member.name, config)
