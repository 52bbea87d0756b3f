"""The member commands: what they ask, what they print, and the folders that they write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raftstate.cli.serve import settings_for
from raftstate.errors import FailedPreconditionError, IndefiniteError, InvalidArgumentError, NoLeaderError
from tests.cli.conftest import Run
from tests.cli.fake_client import FakeClient


def test_members_are_shown_with_their_roles_and_how_far_behind_they_are(run: Run, client: FakeClient) -> None:
    code, out, err = run("member", "list")
    assert (code, err) == (0, "")
    assert [line.split() for line in out.decode().splitlines()] == [
        ["id", "name", "role", "incarnation", "clients", "peers", "lag", "state"],
        ["1", "n1", "leader", "1", "h1:7001", "h1:7101", "0"],
        ["2", "n2", "voter", "1", "h2:7001", "h2:7101", "10", "replicate"],
        ["3", "n3", "learner", "1", "h3:7001", "h3:7101", "100", "snapshot"],
    ]


def test_members_as_json(run: Run, client: FakeClient) -> None:
    listed = json.loads(run("member", "list", "--json").out)
    assert (listed["leader_id"], listed["commit_index"]) == (1, 100)
    assert listed["members"][1] == {
        "id": 2,
        "name": "n2",
        "peer_address": "h2:7101",
        "client_address": "h2:7001",
        "incarnation": 1,
        "learner": False,
        "promote": False,
        "role": "voter",
        "match_index": 90,
        "lag": 10,
        "state": "replicate",
    }


def test_a_node_is_added_and_can_be_served_from_the_folder_that_was_written(
    run: Run, client: FakeClient, tmp_path: Path
) -> None:
    out = tmp_path / "n 4"
    code, said, err = run("member", "add", "n4", "--address", "127.0.0.1:7004", "--out", str(out))
    assert (code, err) == (0, "")
    assert said.decode() == (
        f"n4 is node 4 of the cluster, a learner until it has caught up. Start it with: "
        f"raftstate serve --data '{out}'\n"
    )
    assert client.calls == [("n4", "127.0.0.1:7104", "127.0.0.1:7004", False)]
    settings = settings_for(None, out, {})
    assert (settings.name, settings.node_id, settings.member.incarnation) == ("n4", 4, 1)
    assert (settings.join, settings.bootstrap, settings.data_path) == (True, True, out / "data")
    assert (settings.client_listener, settings.peer_listener) == ("127.0.0.1:7004", "127.0.0.1:7104")
    cluster = settings.cluster
    assert (cluster.cluster_id, cluster.heartbeat_ms, cluster.election_timeout_ms) == (77, 20, 500)
    assert [member.name for member in cluster.members] == ["n1", "n2", "n3", "n4"]


def test_a_learner_and_other_peer_addresses_are_asked_for(run: Run, client: FakeClient) -> None:
    said = run("member", "add", "n4", "--address", "[::1]:5", "--learner").out.decode()
    assert "a learner. Its settings are not written yet; the same command with --out DIR" in said
    run("member", "add", "n4", "--address", "h:5", "--peer-address", "h:9")
    assert client.calls == [("n4", "[::1]:105", "[::1]:5", True), ("n4", "h:9", "h:5", False)]


def test_an_added_node_as_json(run: Run, client: FakeClient, tmp_path: Path) -> None:
    added = json.loads(run("member", "add", "n4", "--address", "h:5", "--json").out)
    assert (added["member"]["id"], added["cluster_id"], added["already"]) == (4, "000000000000004d", False)
    assert (len(added["members"]), added["start"]) == (4, None)


def test_a_folder_with_data_is_refused_before_the_cluster_is_asked(
    run: Run, client: FakeClient, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "identity").write_text("")
    for command in (("add", "n4", "--address", "h:5"), ("replace", "n2")):
        code, _, err = run("member", *command, "--out", str(tmp_path))
        assert code == 1
        assert "holds the data of a node already" in err
    assert client.calls == []


def test_a_replaced_node_starts_empty_under_its_new_incarnation_in_its_old_folder(
    run: Run, client: FakeClient, tmp_path: Path
) -> None:
    run("member", "replace", "n2", "--out", str(tmp_path))
    (tmp_path / "new").unlink()  # it was started since, and has lost its data again
    assert not settings_for(None, tmp_path, {"insecure": True}).bootstrap
    code, said, _ = run("member", "replace", "n2", "--address", "h9:1", "--out", str(tmp_path))
    assert code == 0
    assert said.startswith(b"n2 begins anew as incarnation 2 of node 2. Start it with: raftstate serve")
    assert client.calls[-1] == ("n2", None, "h9:1")
    settings = settings_for(None, tmp_path, {"insecure": True})
    assert (settings.member.incarnation, settings.join, settings.bootstrap) == (2, True, True)


def test_promotion_and_removal_say_who_is_left(run: Run, client: FakeClient) -> None:
    assert run("member", "promote", "n3").out == b"n3 votes; members are n1, n2, n3\n"
    assert run("member", "remove", "n2", "n3").out == b"n2, n3 are no members any more; members are n1\n"
    assert run("member", "remove", "n2").out == b"n2 is no member any more; members are n1, n3\n"
    assert client.calls == ["n3", ["n2", "n3"], ["n2"]]
    left = json.loads(run("member", "remove", "n2", "--json").out)
    assert [member["name"] for member in left["members"]] == ["n1", "n3"]


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (FailedPreconditionError("no quorum"), 1),
        (InvalidArgumentError("no such member"), 2),
        (IndefiniteError("lost"), 3),
        (NoLeaderError("nobody"), 4),
    ],
)
def test_exit_codes_tell_how_it_ended(run: Run, client: FakeClient, failure: Exception, code: int) -> None:
    client.failure = failure
    for command in (
        ("list",),
        ("promote", "n3"),
        ("remove", "n3"),
        ("replace", "n3"),
        ("add", "n4", "--address", "h:1"),
    ):
        assert run("member", *command) == (code, b"", f"raftstate: {failure}\n")


def test_a_newcomer_is_told_what_there_is(run: Run, client: FakeClient) -> None:
    code, out, _ = run("member", "--help")
    assert code == 0
    for name in ("list", "add", "promote", "remove", "replace"):
        assert name in out.decode()
    assert run("member", "add", "n4").code == 2


@pytest.mark.parametrize("command", [["add", "n4", "--address", "127.0.0.1:7004"], ["replace", "n2"]])
def test_a_folder_that_can_not_be_written_is_refused_before_the_cluster_is_asked(
    run: Run, client: FakeClient, tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "file").touch()
    code, _, err = run("member", *command, "--out", str(tmp_path / "file" / "n4"))
    assert code == 1
    assert "the cluster was asked for nothing" in err
    assert client.calls == []


def test_every_command_is_named_in_the_help(run: Run) -> None:
    shown = run("--help").out.decode()
    assert all(f" {name} " in shown for name in ("member", "lease", "check", "recover", "erase", "doctor"))
