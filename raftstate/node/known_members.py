"""Who the members were when this node last knew, beside its data: for a start without a state that says it.

A node's settings list the members of the day on which they were written; a cluster that has grown since is
not in them. Only addresses to ask at are taken from here, so an old list is better than none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import xxhash

from raftstate.errors import StorageError
from raftstate.logs import get_logger
from raftstate.machine.types import Member
from raftstate.store.files import durable_write

log = get_logger(__name__)

FILE = "members"


class _Known(msgspec.Struct, array_like=True):
    cluster_id: int
    members: list[Member]


_decode = msgspec.msgpack.Decoder(_Known).decode


def note_members(data_directory: Path, cluster_id: int, members: Sequence[Member]) -> None:
    """Note who the members are. A disk that can't is no reason to stop."""
    content = msgspec.msgpack.encode(_Known(cluster_id, list(members)))
    content += xxhash.xxh3_64_digest(content)
    path = data_directory / FILE
    try:
        if not path.exists() or path.read_bytes() != content:
            durable_write(path, content)
    except (OSError, StorageError) as error:
        log.warning("members not noted", reason=str(error))


def noted_members(data_directory: Path, cluster_id: int) -> list[Member]:
    """Return who was noted; none if nobody was, or it can't be read, or is of another cluster."""
    try:
        content = (data_directory / FILE).read_bytes()
        if xxhash.xxh3_64_digest(content[:-8]) != content[-8:]:
            return []
        known = _decode(content[:-8])
    except (OSError, msgspec.DecodeError):
        return []
    return known.members if known.cluster_id == cluster_id else []
