"""erase and defragment."""

from __future__ import annotations

import json

import pytest

from raftstate.cli import erase
from raftstate.client import MemberErase, MemberStatus, NodeStatus
from raftstate.errors import RaftstateError
from tests.cli.conftest import Run
from tests.cli.fake_client import FakeClient


def members(*states: str) -> list[MemberErase]:
    return [
        MemberErase(id, f"n{id}", f"h:{id}", state)  # type: ignore[arg-type]
        for id, state in enumerate(states, 1)
    ]


def test_an_erase_says_what_its_progress_is_asked_with(run: Run, client: FakeClient) -> None:
    client.put(b"k", b"v")
    assert run("erase", "k") == (0, b"erased up to revision 4, index 77\n", "")
    assert run("erase", "k").out == b"erased up to revision 5, index 77 (there was no such key)\n"
    assert json.loads(run("erase", "k", "--json").out) == {"revision": 6, "deleted": False, "index": 77}


def test_progress_is_a_line_a_member_and_an_exit_code(run: Run, client: FakeClient) -> None:
    client.progress = [members("done", "pending", "unreachable"), members("done", "done")]
    assert run("erase", "--progress", "5") == (1, b"n1: done\nn2: pending\nn3: unreachable\n", "")
    code, out, _ = run("erase", "--progress", "5", "--json")
    assert (code, json.loads(out)["index"]) == (0, 5)
    assert [each["state"] for each in json.loads(out)["members"]] == ["done", "done"]
    assert client.calls == [5, 5]


def test_waiting_tells_what_changes_until_all_are_done(
    run: Run, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erase, "_LOOK_S", 0)
    client.progress = [
        members("pending", "unreachable"),
        members("pending", "unreachable"),
        members("done", "pending"),
        members("done", "done"),
    ]
    code, out, _ = run("erase", "k", "--wait")
    assert code == 0
    assert out.decode().splitlines()[1:] == [
        "n1: pending",
        "n2: unreachable",
        "n1: done",
        "n2: pending",
        "n2: done",
    ]


@pytest.mark.parametrize("arguments", [(), ("k", "--progress", "5")])
def test_a_key_or_an_index_is_needed_and_not_both(
    run: Run, client: FakeClient, arguments: tuple[str, ...]
) -> None:
    code, _, err = run("erase", *arguments)
    assert (code, err) == (2, "raftstate: give KEY, or --progress INDEX\n")


def nodes(*, down: int = 0) -> list[NodeStatus]:
    all_members = tuple(MemberStatus(id, f"n{id}", "", f"h:{id}", 1, False) for id in (1, 2, 3))
    return [
        NodeStatus(endpoint=f"h:{id}", error="refused")
        if id == down
        else NodeStatus(
            endpoint=f"h:{id}",
            node_id=id,
            name=f"n{id}",
            role="leader" if id == 1 else "follower",
            members=all_members,
            state_bytes=1_000_000,
        )
        for id in (1, 2, 3)
    ]


def test_nodes_are_defragmented_one_after_the_other_and_the_leader_last(run: Run, client: FakeClient) -> None:
    client.nodes = nodes()
    code, out, _ = run("defragment")
    assert (code, client.calls) == (0, [2, 3, 1])
    assert out.splitlines()[0] == b"n2: 3.0 MB, now 1.0 MB"
    client.calls.clear()
    code, out, _ = run("defragment", "n3", "--json")
    assert (code, client.calls) == (0, [3])
    assert json.loads(out) == {"nodes": [{"node": "n3", "before_bytes": 3_000_000, "after_bytes": 1_000_000}]}


def test_nothing_is_defragmented_while_a_node_that_should_be_is_down(run: Run, client: FakeClient) -> None:
    client.nodes = nodes(down=2)
    assert run("defragment") == (1, b"", "raftstate: n2 can't be reached; nothing was begun\n")
    assert client.calls == []
    assert run("defragment", "1").code == 0
    assert run("defragment", "n9").err == "raftstate: no member is 'n9'; members are n1 (1), n2 (2), n3 (3)\n"


def test_a_rebuild_is_waited_for(run: Run, client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    client.nodes = nodes()
    looks = []

    def look(endpoint: str | None = None) -> list[NodeStatus]:
        looks.append(endpoint)
        if len(looks) == 4:
            raise RaftstateError("gone")
        rebuild = "defragment" if len(looks) > 1 else ""
        return [
            NodeStatus(
                endpoint=n.endpoint,
                node_id=n.node_id,
                name=n.name,
                role=n.role,
                members=n.members,
                rebuild=rebuild,
            )
            for n in nodes()
            if endpoint in (None, n.endpoint)
        ]

    monkeypatch.setattr(client, "status", look)
    monkeypatch.setattr(erase, "_LOOK_S", 0)
    assert run("defragment", "n2") == (1, b"", "raftstate: gone\n")
    assert looks == [None, "h:2", "h:2", "h:2"]
