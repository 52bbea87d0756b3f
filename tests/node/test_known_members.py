"""Who the members were, for a start that has nothing else to ask."""

from __future__ import annotations

from pathlib import Path

from raftstate.machine.types import Member
from raftstate.node.known_members import FILE, note_members, noted_members

MEMBERS = [Member(1, 2, "n1", "h1:1", "h1:2"), Member(4, 1, "n4", "h4:1", "h4:2")]


def test_what_was_noted_is_known_to_the_same_cluster(tmp_path: Path) -> None:
    assert noted_members(tmp_path, 7) == []
    note_members(tmp_path, 7, MEMBERS)
    assert noted_members(tmp_path, 7) == MEMBERS
    assert noted_members(tmp_path, 8) == []


def test_a_damaged_list_is_none(tmp_path: Path) -> None:
    note_members(tmp_path, 7, MEMBERS)
    path = tmp_path / FILE
    content = bytearray(path.read_bytes())
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert noted_members(tmp_path, 7) == []
    path.write_bytes(b"")
    assert noted_members(tmp_path, 7) == []
